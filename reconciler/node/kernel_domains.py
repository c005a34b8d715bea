"""The domains of the kernel, in the order in which they build upon each other.

And what is left out of a pass's plans: what is in backoff, pods that leave, and namespaces whose
link is another's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

from reconciler.core.attachment import Attachment, AttachmentKey
from reconciler.domains import address, link, nat, neighbour, route, rule, sysctl
from reconciler.domains.address import LinkAddress
from reconciler.domains.inputs import Inputs
from reconciler.domains.left_out import converge
from reconciler.domains.link import PodLink, Veth
from reconciler.domains.nat_objects import NftElement, NftLink, NftObject
from reconciler.domains.neighbour import Neighbour
from reconciler.domains.route import Route
from reconciler.domains.rule import Rule
from reconciler.domains.sysctl import Sysctl
from reconciler.engine.backoff import Backoffs
from reconciler.engine.converge import Domain, Hold, Observed, Outcomes
from reconciler.engine.plan import Action, Key, Plan, Verb
from reconciler.errors import ApplyError, ReconcilerError, boundary
from reconciler.ipam.records import Records
from reconciler.node.environment import Table
from reconciler.targets.kernel import Kernel, SettingsTarget
from reconciler.targets.netlink.decode import KernelObject
from reconciler.targets.scoped import ScopedTarget

PodObject = KernelObject | Sysctl | NftElement | NftLink

NFT_KINDS: tuple[type[NftElement | NftLink], ...] = (NftElement, NftLink)


class KernelDomains:
    """All that is put into the kernel; in ``all``, those that share a target are side by side."""

    def __init__(self, kernel: Kernel, settings: SettingsTarget, nft: Table) -> None:
        self.kernel = kernel
        self._nft = nft
        self.all = (
            Domain("sysctl", sysctl.desire, sysctl.plan, settings, (Sysctl,)),
            Domain("link", link.desire, link.plan, kernel, link.KINDS),
            Domain("link-sysctl", sysctl.desire_pods, sysctl.plan, kernel, (Sysctl,)),
            Domain("address", address.desire, address.plan, kernel, (LinkAddress,)),
            Domain("neighbour", neighbour.desire, neighbour.plan, kernel, (Neighbour,)),
            Domain("route", route.desire, route.plan, kernel, (Route,)),
            Domain("rule", rule.desire, rule.plan, kernel, (Rule,)),
            Domain("nat", nat.desire, nat.plan, nft, atomic=True),
            # What the kernel looks at no more, the ruleset looks at by then.
            Domain("source-check", sysctl.desire_source_check, sysctl.plan, settings, (Sysctl,)),
        )

    def of_pods(self, gone: frozenset[PodObject] = frozenset()) -> list[Domain[Inputs]]:
        """Return the same, for what some pods have and for nothing else.

        ``gone`` is looked at besides all that is desired: it is not wanted any more.
        """
        elements = frozenset(o for o in gone if isinstance(o, NftElement | NftLink))
        others = frozenset(o for o in gone if not isinstance(o, NftElement | NftLink))
        kernel, table = self.kernel, self._nft

        def look(objects: Iterable[KernelObject | Sysctl]) -> Observed:
            return kernel.observe_at(others.union(objects))

        def look_up(objects: Iterable[NftElement | NftLink]) -> frozenset[NftObject]:
            return table.observe_at(elements.union(objects))

        seen, nft = ScopedTarget(look, kernel.apply), ScopedTarget(look_up, table.apply)
        return [
            Domain("link", link.desire_pods, link.plan, seen, link.KINDS),
            Domain("link-sysctl", sysctl.desire_pods, sysctl.plan, seen, (Sysctl,)),
            Domain("address", address.desire_pods, address.plan, seen, (LinkAddress,)),
            Domain("neighbour", neighbour.desire, neighbour.plan, seen, (Neighbour,)),
            Domain("route", route.desire_pods, route.plan, seen, (Route,)),
            Domain("nat", nat.desire_pods, nat.plan, nft, NFT_KINDS, atomic=True),
        ]


def pod_objects(inputs: Inputs) -> frozenset[PodObject]:
    """Every object in the kernel that pods have, on the host and in their namespaces."""
    return frozenset[PodObject]().union(
        link.desire_pods(inputs),
        sysctl.desire_pods(inputs),
        address.desire_pods(inputs),
        neighbour.desire(inputs),
        route.desire_pods(inputs),
        nat.desire_pods(inputs),
    )


def inside_objects(inputs: Inputs) -> frozenset[KernelObject | Sysctl]:
    """What of it is in pods' own namespaces."""
    return frozenset(
        o
        for o in pod_objects(inputs)
        if not isinstance(o, NftElement | NftLink) and getattr(o, "netns", None)
    )


def alone(pod: Attachment, inputs: Inputs) -> Inputs:
    """Inputs of which everything but this pod is left out."""
    key = frozenset({pod.key})
    seen = inputs.seeing(visit=key, linked=key, unreadable=frozenset())
    return replace(seen, attachments=(pod,))


class PodObjects:
    """What single pods have in the kernel, computed once for each that is asked for."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._known: dict[Attachment, frozenset[PodObject] | None] = {}

    def of(self, pod: Attachment) -> frozenset[PodObject] | None:
        """Return all of a pod's objects; None if they cannot be told."""
        if pod not in self._known:
            self._known[pod] = None
            with suppress(ReconcilerError), boundary("desire of one pod"):
                self._known[pod] = pod_objects(alone(pod, self._inputs))
        return self._known[pod]

    def has_any(self, pod: Attachment, left: Collection[tuple[str, Key]]) -> bool:
        """Whether a pod has one of some objects, by kind and key; so too if it cannot be told."""
        objects = self.of(pod)
        return objects is None or any((o.kind, o.key) in left for o in objects)


NO_BACKOFFS = Backoffs()


def hold(
    backoffs: Backoffs, first: Callable[[Domain[Inputs], Plan], Plan] = lambda _, plan: plan
) -> Hold:
    """Return what leaves out of plans what is in backoff, and says so; ``first`` comes before."""
    now = time.monotonic()

    def leave_out(domain: Domain[Inputs], plan: Plan) -> tuple[Plan, tuple[ApplyError, ...]]:
        held = backoffs.hold(first(domain, plan), now, atomic=domain.atomic)
        return held, backoffs.explain(held)

    return leave_out


def begun(plan: Plan, names: Collection[str]) -> Plan:
    """Return a plan in which the deletions of links with these names are under way."""
    going = [
        a
        for a in plan.actions
        if a.verb is Verb.DELETE and a.kind == Veth.kind and a.key[0] in names
    ]
    if not going:
        return plan
    rest = tuple(a for a in plan.actions if a not in going)
    return replace(plan, actions=rest, begun=(*plan.begun, *going))


def converge_held(
    domains: Sequence[Domain[Inputs]], inputs: Inputs, backoffs: Backoffs
) -> Outcomes:
    """Converge what was not in vain lately."""
    return converge(domains, inputs, hold=hold(backoffs))


class Leaving:
    """Takes what would be made for pods that leave out of the plans of one pass.

    A pass plans on records that it has read at its beginning. A DEL is answered at once, and the
    runtime then takes the namespace away, and the link with it: to the look that follows, the pod
    seems to lack everything.

    Where a link of another owner has the name of ours, nothing else is put into that namespace: it
    would give that owner's link our address, and its namespace our default route.

    Args:
        attachments: of the pods that the pass plans for.
        objects: what each of them has.
        look: reads records again; only those of pods for which something would be made.
        removing: names the links whose deletion is under way.
    """

    def __init__(
        self,
        attachments: Collection[Attachment],
        objects: PodObjects,
        look: Callable[[Collection[AttachmentKey]], Records],
        removing: Callable[[], Collection[str]],
    ) -> None:
        self._attachments = attachments
        self._objects = objects
        self._look = look
        self._removing = removing
        self._known: dict[AttachmentKey, bool] = {}
        self._lost: frozenset[str] = frozenset()
        self._others: frozenset[str] = frozenset()

    def left_out(self, domain: Domain[Inputs], plan: Plan) -> Plan:
        """Return a plan without what would be made for pods that leave, or in another's place."""
        if domain.name == "link":
            plan = begun(plan, self._removing())
            refused = (r.about for r in plan.refusals if r.about)
            self._others = frozenset(str(key[0]) for kind, key in refused if kind == PodLink.kind)
        if self._others:
            allowed = tuple(a for a in plan.actions if not self._is_another_s(a))
            plan = replace(plan, actions=allowed)
        made = [a for a in plan.actions if a.verb is not Verb.DELETE]
        if domain.atomic or not made:
            return plan
        if domain.name == "link":
            # The first domain of each look.
            created = [a for a in made if a.verb is Verb.CREATE and a.kind == Veth.kind]
            self._known, self._lost = {}, frozenset(str(a.key[0]) for a in created)
        going = self._going(self._concerned(getattr(a, "object", None) for a in made))
        if not going:
            return plan
        theirs: set[tuple[str, Key]] = set()
        for pod in going:
            # Of one whose objects cannot be told nothing is made but by mistake, and that is seen.
            theirs |= {(o.kind, o.key) for o in self._objects.of(pod) or ()}
        kept = [a for a in plan.actions if a.verb is Verb.DELETE or (a.kind, a.key) not in theirs]
        return replace(plan, actions=tuple(kept))

    def _is_another_s(self, action: Action) -> bool:
        netns = getattr(getattr(action, "object", None), "netns", "")
        return netns in self._others and action.verb is not Verb.DELETE

    def _concerned(self, objects: Iterable[object]) -> list[Attachment]:
        """Return the pods that these objects are of: in their namespaces, or on their links."""
        places: set[str] = set()
        devices: set[str] = set()
        for o in objects:
            if netns := getattr(o, "netns", ""):
                places.add(netns)
            else:
                devices.add(getattr(o, "device", "") or getattr(o, "name", ""))
        return [a for a in self._attachments if a.netns in places or a.veth in devices]

    def _going(self, attachments: list[Attachment]) -> tuple[Attachment, ...]:
        asked = frozenset(a.key for a in attachments if a.key not in self._known)
        if asked:
            try:
                with boundary("observe of attachment"):
                    now = self._look(asked)
            except ReconcilerError:
                return ()  # the pass has its own look at them, and says so
            now = now.among(asked)
            # Without its namespace no link can be made; one that is there is kept.
            gone = {a.key for a in now.attachments if not a.netns_alive and a.veth in self._lost}
            self._known |= {key: key in gone or key in now.released for key in asked}
        return tuple(a for a in attachments if self._known[a.key])
