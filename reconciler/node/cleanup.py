"""What an uninstallation removes: what the domains own on the node, with nothing of it desired.

There is no list of objects beside the domains. What a domain removes when nothing is desired goes.
One that then removes nothing knows its objects only by what it desires: of those, what is there
exactly so goes, and what is in the place of one that is ours by its key alone; unless its class
says by ``stays`` why it is left.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from reconciler.core.attachment import Attachment, Intent
from reconciler.domains.inputs import Inputs
from reconciler.engine.converge import Domain, Outcomes, always, converge, dry_run, gaps
from reconciler.engine.plan import Change, Keyed, Plan, Verb, compare
from reconciler.errors import NotReadyError, ObserveError
from reconciler.ipam.records import Records
from reconciler.node.passes import LocalNode
from reconciler.targets.state.parts import StatePart, StateParts
from schemas.document import NodeNetwork

MAX_ROUNDS = 1000
"""Of one removal: at most a thousand routes and rules go in each."""


class Cleanup:
    """The removal of everything of ours from a node, EC2 left alone.

    Args:
        node: whose.
        document: of which families and features are looked for; none of it is desired.
        kept: the directory of the last good document.

    Raises:
        NotReadyError, ObserveError: it is not known which node this is, or it cannot be read; or
            this is not the network namespace of the node.
    """

    def __init__(self, node: LocalNode, document: NodeNetwork, kept: Path) -> None:
        if node.known.facts is None:
            node.pool.learn()
        self._records = node.state.observe()
        cloud = node.known.cloud
        inputs = node.gathering.inputs(document, self._records, cloud)
        if inputs.node.primary_mac not in inputs.links:
            raise ObserveError(
                "the links of the node",
                f"none has the primary ENI's MAC {inputs.node.primary_mac}, so this is not the "
                "network namespace of the node; in Kubernetes that takes hostNetwork: true",
            )
        # What is in a pod's own namespace goes with its link.
        self._inputs = node.after.installation.placed(inputs.seeing(visit=frozenset()))
        others = node.environment.surroundings.observe()
        if others.forward is None:
            why = "; ".join(f"{what}: {reason}" for what, reason in others.unread)
            raise ObserveError("other owners' chains, in which rules of ours may be", why)
        parts = StateParts(node.state.root, kept)
        # The runtime's configuration first: with it no more pods come. The records, which say what
        # is in the kernel, last.
        domains: tuple[Domain[Inputs], ...] = (
            *node.after.installation.domains,
            node.after.others.domain,
            node.after.fast_path.domain,
            *node.domains.all,
            Domain("state", always(frozenset[StatePart]()), compare, parts),
        )
        self.domains = tuple(map(_emptied, domains))

    @property
    def enis(self) -> tuple[str, ...]:
        """ENIs that are attached for pods, by the last observation of EC2."""
        return tuple(e.eni_id for e in self._inputs.enis if e.serves_pods and not e.is_primary)

    @property
    def pods(self) -> tuple[str, ...]:
        """Pods of ours that are alive: with a link or a namespace, and not released by a DEL."""
        return tuple(sorted(_alive(self._records, self._inputs)))

    def plan(self) -> Outcomes:
        """Say what would be removed, in the order in which it would be."""
        return dry_run(self.domains, self._inputs)

    def remove(self) -> Iterator[Outcomes]:
        """Remove it; yield what each round has done."""
        for _ in range(MAX_ROUNDS):
            outcomes = converge(self.domains, self._inputs)
            yield outcomes
            done = any(o.plan.actions for o in outcomes.values())
            if not done or not any(gaps(o.observed).cut_kinds for o in outcomes.values()):
                return


def staying(outcomes: Outcomes) -> Iterator[tuple[Keyed, str]]:
    """Yield the objects of ours that are left, each with the reason."""
    for outcome in outcomes.values():
        if isinstance(outcome.desired, frozenset) and isinstance(outcome.observed, frozenset):
            left = [o for o in outcome.desired & outcome.observed if hasattr(o, "stays")]
            yield from ((o, o.stays) for o in sorted(left, key=lambda o: o.key))


def _alive(records: Records, inputs: Inputs) -> Iterable[str]:
    recorded: list[Intent | Attachment] = [*records.intents, *records.attachments]
    known = {a.key: a.pod for a in recorded if a.pod}
    keys = {a.key for a in records.living if a.netns_alive} | set(inputs.kernel.linked)
    return (known.get(key) or str(key) for key in keys - records.released)


def _emptied(domain: Domain[Inputs]) -> Domain[Inputs]:
    """Return the same domain with nothing desired: what it desires only says what is its own."""

    def desire(inputs: Inputs) -> frozenset[Keyed]:
        try:
            return domain.objects(inputs)
        except NotReadyError:  # without the ENIs: what it would desire cannot be there
            return frozenset()

    def plan(own: frozenset[Keyed], observed: Collection[Keyed]) -> Plan:
        if actions := domain.plan(frozenset(), observed).actions:
            return Plan(actions)
        # An address of a link says not by itself whose it is.
        places = {(o.kind, o.key) for o in own}
        gone = [
            o
            for o in observed
            if o in own or (getattr(o, "is_ours_by_key", False) and (o.kind, o.key) in places)
            if not hasattr(o, "stays")
        ]
        by_key = sorted(gone, key=lambda o: o.key)
        return Plan(tuple(Change(Verb.DELETE, o, "not desired") for o in by_key))

    return replace(domain, desire=desire, plan=plan)
