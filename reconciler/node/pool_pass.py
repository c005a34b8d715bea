"""The pass over the pool: metadata, the inputs, and what the pool controller makes of them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from reconciler.engine.converge import Outcome
from reconciler.errors import ObserveError
from reconciler.ipam.cloud import Cloud, arrived, is_whole, retain
from reconciler.ipam.pace import is_changing
from reconciler.ipam.pool import Demand
from reconciler.ipam.pool_groups import demand_of
from reconciler.node.environment import Ec2Target, Environment, SourcesTarget, State
from reconciler.node.gathering import Gathering, Known
from reconciler.node.pool_controller import Given, PoolController
from reconciler.node.pool_schedule import PoolSchedule, Sources, Witness
from reconciler.targets.ec2.tally import Tallied
from schemas.document import NodeNetwork


class PoolPass:
    """Brings the pool to its target; the pool's thread runs it.

    ``binding`` is held while an address is bound, or withdrawn from binding. ``demand`` is of the
    records as the last pass has first read them.
    """

    def __init__(
        self, state: State, environment: Environment, known: Known, gathering: Gathering
    ) -> None:
        self._state = state
        self._environment = environment
        self._known = known
        self._gathering = gathering
        self.binding = threading.RLock()
        self.schedule = PoolSchedule(environment.clock)
        self.demand: Demand | None = None
        self._ec2: Ec2Target | None = None
        self._controller: PoolController | None = None
        self._is_deaf = False

    @property
    def ec2_calls(self) -> Mapping[str, int]:
        """EC2 calls made so far, by action."""
        return {**self._ec2.calls, **self._ec2.sources.calls} if self._ec2 else {}

    @property
    def ec2_tally(self) -> Mapping[str, Tallied]:
        """How EC2's calls went so far, by action."""
        return self._ec2.tally.all() if self._ec2 else {}

    @property
    def sources(self) -> SourcesTarget | None:
        """The VPC that sources are derived from; None before metadata has answered."""
        return self._ec2.sources if self._ec2 else None

    @property
    def in_transition(self) -> bool:
        """Whether EC2 is about to change something by itself, or a link has yet to appear."""
        links = self._environment.netlink.links().names
        return self._known.cloud is None or is_changing(self._known.cloud, links)

    def hear(self) -> bool:
        """Read metadata again; say whether EC2 should be observed, because of what it shows."""
        before = self._known.facts
        self.schedule.note_reading()
        metadata, errors = self._ask_metadata()
        for error in errors:
            raise error
        assert self._controller is not None
        return self._controller.hear(metadata) or self._known.facts != before

    def learn(self) -> None:
        """Read the node's identity and VPC CIDRs again."""
        environment, known = self._environment, self._known
        facts = replace(environment.imds.node(), name=environment.node_name)
        known.identify(facts)
        if self._controller is None:
            region = environment.imds.region()
            self._ec2 = environment.make_ec2(facts.instance_id, region, self._state)
            if known.cloud and known.cloud.limits:
                self._ec2.know(facts.instance_type, known.cloud.limits)
            self._controller = PoolController(
                state=self._state,
                ec2=self._ec2,
                imds=environment.imds,
                conntrack=environment.conntrack,
                binding=self.binding,
                schedule=self.schedule,
                sources=Sources(environment.clock, is_start=known.cloud is None),
                now=environment.now,
            )

    def run(self, document: NodeNetwork, *, dry: bool = False, look: bool = True) -> Outcome:
        """Look at EC2 and bring the pool to its target.

        Without ``look``, only if an observation is due, or something follows from the last one.

        Raises:
            ObserveError: IMDS or the state directory cannot be read.
            StateError: the look cannot be kept.
        """
        self.demand = None
        if not look and self.schedule.is_unconfirmed and not self._is_deaf:
            with suppress(ObserveError):  # whoever needs an answer says so
                look = self.hear()
        if not look and (foreseen := self._foresee(document)):
            return foreseen
        metadata, errors = self._ask_metadata()
        assert self._controller is not None
        known, given = self._known, self._gather(document)
        if dry:
            outcome = self._controller.rehearse(given, metadata)
        else:
            outcome = self._controller.run(given, metadata, look=look)
        holders = {a.eni_id for a in given.records.attachments if a.eni_id}
        links = self._environment.netlink.links().names  # of what was just attached, too
        seen = outcome.observed
        if isinstance(seen, Cloud) and (known.cloud or is_whole(seen, holders)):
            seen = arrived(seen, links)
            known.see(retain(known.cloud or seen, seen, links))
            if not dry:
                known.remember()
        return replace(outcome, errors=(*outcome.errors, *errors))

    def _foresee(self, document: NodeNetwork) -> Outcome | None:
        """Plan the pool on the last observation; None if EC2 must be observed."""
        known = self._known
        errors: tuple[ObserveError, ...] = ()
        if self._controller is None or known.cloud is None:
            return None
        if self._is_deaf:
            errors = self._ask_metadata()[1]
            if not errors:
                return None
        given = self._gather(document)
        outcome = self._controller.foresee(given)
        if outcome is None:
            return None
        known.see(arrived(known.cloud, given.inputs.links))
        return replace(outcome, errors=(*outcome.errors, *errors))

    def _gather(self, document: NodeNetwork) -> Given:
        """Read records and pods' routes, and gather the inputs."""
        records = self._state.observe()
        routed = self._environment.netlink.pod_addresses()
        inputs = self._gathering.inputs(document, records, self._known.cloud, routed)
        # Of the records alone, as the kernel loop compares it: without what only links show.
        self.demand = self.demand or demand_of(records, inputs.document)
        return Given(inputs, records, routed)

    def _ask_metadata(self) -> tuple[Witness, tuple[ObserveError, ...]]:
        """Read metadata; what the node knew of itself already stays true without it.

        Raises:
            ObserveError: it does not answer, and never has.
        """
        try:
            self.learn()
            metadata = self._environment.imds.interfaces()
            self._is_deaf = False
            return metadata, ()
        except ObserveError as error:
            self._is_deaf = True
            if self._controller is None:
                raise
            # Confirms nothing, so nothing is given back, and proves nothing lost.
            return None, (error,)
