"""Rounds in which a pod whose data makes a domain raise is left out, and no other.

A domain desires and plans for all pods at once. When it raises what no code expects, the pods that
cause it are found by bisection. They are left out of that domain: their objects are kept as they
are, and a condition names each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from reconciler.core.attachment import Attachment, AttachmentKey
from reconciler.core.datapath import PODS_TABLE
from reconciler.domains import nat_identities
from reconciler.domains.attachment import Allocation
from reconciler.domains.inputs import Inputs
from reconciler.domains.nat_objects import NftChain, NftElement, NftLink, NftTable
from reconciler.domains.nat_rules import SETS
from reconciler.domains.route import Route
from reconciler.engine import converge as engine
from reconciler.engine.converge import Domain, Hold, Outcome, Outcomes
from reconciler.engine.plan import Action, Change, Plan, Verb
from reconciler.errors import InternalError, PodError, boundary
from reconciler.ipam.records import Records

Keys = frozenset[AttachmentKey]

K = TypeVar("K")
T = TypeVar("T")

OF_PODS = frozenset(
    name
    for sets in SETS.values()
    for name in (sets.pods, sets.pod_eni, sets.no_metadata, sets.group_mark, sets.group_nat)
).union(nat_identities.OF_PODS)
"""The nftables sets of which each element is one pod's."""


def converge(
    domains: Sequence[Domain[Inputs]],
    inputs: Inputs,
    *,
    hold: Hold = engine.hold_nothing,
    leaving: Iterable[Attachment] = (),
) -> Outcomes:
    """Converge as ``engine.converge`` does; a pod that makes a domain raise is left out of it.

    ``leaving``: pods that are no more wanted, and of which something may be there.
    """
    guards = _guards(domains, (*inputs.attachments, *leaving))
    return _told(guards, engine.converge([g.domain for g in guards], inputs, hold=hold))


def dry_run(domains: Sequence[Domain[Inputs]], inputs: Inputs) -> Outcomes:
    """Plan as ``engine.dry_run`` does; likewise."""
    guards = _guards(domains, inputs.attachments)
    return _told(guards, engine.dry_run([g.domain for g in guards], inputs))


def left_out(outcomes: Outcomes) -> dict[AttachmentKey, PodError]:
    """Return the pods that were left out of a domain, and why."""
    errors = [e for o in outcomes.values() for e in o.errors if isinstance(e, PodError)]
    return {e.key: e for e in errors if isinstance(e.key, AttachmentKey)}


def find(keys: Sequence[K], attempt: Callable[[Sequence[K]], object]) -> dict[K, InternalError]:
    """Return those of some keys with which an attempt raises, each by itself, and what."""
    try:
        attempt(keys)
    except InternalError as error:
        if len(keys) < 2:
            return dict.fromkeys(keys, error)
        half = len(keys) // 2
        return find(keys[:half], attempt) | find(keys[half:], attempt)
    return {}


class _Guard:
    """One domain in one convergence.

    ``failed``: pods left out of it and of those after it, which build upon it; each with the
    domain that raised, and what.
    """

    def __init__(
        self,
        domain: Domain[Inputs],
        everybody: Sequence[Attachment],
        failed: dict[AttachmentKey, tuple[str, InternalError]],
    ) -> None:
        self._real = domain
        self._everybody = everybody
        self._failed = failed
        self.domain = replace(domain, desire=self._desire, plan=self._plan)

    def told(self, outcome: Outcome) -> Outcome:
        """Return the domain's outcome with an error for each pod that was left out."""
        if not self._failed:
            return outcome
        names = {a.key: a.pod for a in self._everybody}
        errors = [
            PodError(key, names.get(key) or str(key), error)
            for key, (name, error) in sorted(self._failed.items())
            if name == self._real.name
        ]
        return replace(outcome, errors=(*outcome.errors, *errors))

    def _desire(self, inputs: Inputs) -> object:
        def desire(left: Keys) -> object:
            return self._real.desire(_leave_out(inputs, left) if left else inputs)

        return self._without(self._keys, desire, f"desire of {self._real.name}")

    def _keys(self) -> Keys:
        return frozenset(a.key for a in self._everybody)

    def _plan(self, desired: object, observed: object) -> Plan:
        def keys() -> Keys:
            if not isinstance(observed, Records):
                return self._keys()
            found = {i.key for i in observed.intents}
            return frozenset(found.union(a.key for a in observed.attachments))

        def plan(left: Keys) -> Plan:
            if not left:
                return self._real.plan(desired, observed)
            if isinstance(desired, Allocation) and isinstance(observed, Records):
                return _plan_records(self._real, desired, observed, left)
            if isinstance(observed, frozenset) and isinstance(desired, frozenset):
                return self._plan_objects(desired, observed, left)
            return self._real.plan(desired, observed)

        return self._without(keys, plan, f"plan of {self._real.name}")

    def _without(self, keys: Callable[[], Keys], attempt: Callable[[Keys], T], what: str) -> T:
        """Make an attempt; if it raises, without the pods with which it does.

        ``keys`` are those of all pods; ``attempt`` takes those that are left out.

        Raises:
            InternalError: it raises with no pod at all, or not because of single ones.
        """

        def make(left: Iterable[AttachmentKey]) -> T:
            with boundary(what):
                return attempt(frozenset(left))

        try:
            return make(self._failed)
        except InternalError:
            everybody = keys()
            make(everybody)  # or else it comes from no pod
            found = find(sorted(everybody - self._failed.keys()), lambda k: make(everybody - {*k}))
            if not found:
                raise
            self._failed |= {key: (self._real.name, error) for key, error in found.items()}
            return make(self._failed)

    def _plan_objects(
        self, desired: frozenset[object], observed: frozenset[object], left: Keys
    ) -> Plan:
        """Plan with all that is of some pods out of sight: it is neither changed nor removed."""
        pods = [a for a in self._everybody if a.key in left]
        names = {a.veth for a in pods}
        places = {a.netns for a in pods} - {""}
        addresses = {str(own) for a in pods for own in a.addresses}
        wanted = {o.name for o in desired if isinstance(o, NftChain)}
        # The kernel keeps no chain from going that an element leads to, but refuses everything.
        gone = {o.name for o in observed if isinstance(o, NftChain)} - wanted

        def is_theirs(o: object) -> bool:
            match o:
                case NftElement():
                    is_address = o.set in OF_PODS and str(o.first) in addresses
                    return is_address and o.goto not in gone
                case NftLink():
                    return o.link in names and o.goto not in gone
                case Route(netns="", table=table, destination=destination) if table == PODS_TABLE:
                    return o.device in names or str(destination.network_address) in addresses
            if netns := getattr(o, "netns", ""):
                return netns in places
            # Of a setting the name is a path, with the link's in it.
            name = getattr(o, "device", "") or getattr(o, "name", "")
            return name in names or not names.isdisjoint(name.split("/"))

        kept = frozenset(o for o in observed if is_theirs(o))
        plan = self._real.plan(frozenset(o for o in desired if not is_theirs(o)), observed - kept)
        if any(a.verb is Verb.DELETE and a.kind == NftTable.kind for a in plan.actions):
            # The table is made anew, with what it had of them.
            elements = [o for o in kept if isinstance(o, NftElement | NftLink)]
            again = [o for o in elements if o.goto in {"", *wanted}]
            plan += Plan(tuple(Change(Verb.CREATE, o, "kept") for o in again))
        return plan


def _guards(domains: Sequence[Domain[Inputs]], everybody: Sequence[Attachment]) -> list[_Guard]:
    failed: dict[AttachmentKey, tuple[str, InternalError]] = {}
    return [_Guard(d, everybody, failed) for d in domains]


def _told(guards: Iterable[_Guard], outcomes: Outcomes) -> Outcomes:
    told = {g.domain.name: g for g in guards}
    return {name: told[name].told(outcome) for name, outcome in outcomes.items()}


def _leave_out(inputs: Inputs, keys: Keys) -> Inputs:
    pods = inputs.attachments
    return replace(
        inputs,
        attachments=tuple(a for a in pods if a.key not in keys),
        left_out=(*inputs.left_out, *(a for a in pods if a.key in keys)),
    )


def _plan_records(
    domain: Domain[Inputs], desired: Allocation, observed: Records, left: Keys
) -> Plan:
    """Plan without some pods' records; what they have is given to no other pod."""
    pods = [a for a in observed.attachments if a.key in left]
    addresses = {own for a in pods for own in a.addresses}
    supply = replace(desired.supply, elsewhere=desired.supply.elsewhere | addresses)
    desired = replace(desired, supply=supply)
    plan = domain.plan(desired, observed.without(left))
    taken = {a.netns for a in pods} - {""} | {a.veth for a in pods}

    def takes(action: Action) -> bool:
        o = getattr(action, "object", None)
        return isinstance(o, Attachment) and not taken.isdisjoint({o.netns, o.veth})

    return replace(plan, actions=tuple(a for a in plan.actions if not takes(a)))
