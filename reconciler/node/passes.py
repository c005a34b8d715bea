"""One node: its targets, its domains, and the passes over them.

This is the composition that ``run``, ``diff`` and ``apply`` share. A pass over the kernel never
waits for EC2: it works on the last observation of EC2, which a pass over the pool brings.
"""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from reconciler.core.attachment import (
    MAX_POD_ADDRESSES,
    Attachment,
    AttachmentKey,
    IntentState,
)
from reconciler.core.datapath import IpAddress
from reconciler.core.facts import Eni, Node
from reconciler.core.predecessor import OWNER
from reconciler.core.unreadable import MAX_NAMED, Unread
from reconciler.diagnostics import findings
from reconciler.diagnostics.audit import contradictions
from reconciler.diagnostics.difference import compare, compare_inside, unasked
from reconciler.diagnostics.lookup import Packet
from reconciler.diagnostics.passage import find_obstacles
from reconciler.diagnostics.tables import make_tables
from reconciler.diagnostics.trace import Query, Trace, trace
from reconciler.domains import attachment, conflist, executable, forward, nat, route, rule
from reconciler.domains import eni as eni_domain
from reconciler.domains.conflist import Conflist, OtherConf, Plugins
from reconciler.domains.executable import Executable
from reconciler.domains.inputs import Inputs
from reconciler.domains.left_out import converge, dry_run, left_out
from reconciler.engine.backoff import Backoffs
from reconciler.engine.converge import Domain, Outcome, Outcomes
from reconciler.engine.finding import Finding
from reconciler.engine.observed import cut_kinds, unread_places
from reconciler.engine.plan import Change, Plan, Refusal
from reconciler.errors import (
    ApplyError,
    ConflictError,
    NamespaceError,
    NotReadyError,
    ObserveError,
    PodError,
    ReconcilerError,
    boundary,
)
from reconciler.ipam.allocation import Unexplained
from reconciler.ipam.cloud import Cloud, arrived, is_whole, retain
from reconciler.ipam.pace import is_changing
from reconciler.ipam.records import Records, find_copies
from reconciler.ipam.unrecorded import believe, find_unrecorded
from reconciler.migration import takeover
from reconciler.migration.migration import Migration
from reconciler.node.cooldown import Cooldowns
from reconciler.node.environment import Environment
from reconciler.node.kernel_domains import (
    PodObjects,
    alone,
    inside_objects,
    kernel_domains,
    pod_domains,
    pod_objects,
)
from reconciler.node.leaving import Leaving
from reconciler.node.pass_result import (
    PassResult,
    find_difference,
    find_occupied,
    find_waiting,
    touched_pods,
    undone,
    withhold,
)
from reconciler.node.pool_controller import PoolController, Witness
from reconciler.targets.kernel import Kernel
from reconciler.targets.scoped import ScopedState, StateReadOnce
from schemas.document import NodeNetwork
from schemas.load import DocumentError
from schemas.resolve import resolve

NO_BACKOFFS = Backoffs()


OF_ONE_POD = (ApplyError, NamespaceError, PodError)
"""Errors that say nothing of any other pod than their own."""


class Traced(NamedTuple):
    """A connection's way.

    Attributes:
        planned: as desired.
        differences: where node or kernel would not do it so.
        obstacles: what other owners' chains do, or may do, against it.
        hints: what else of theirs decides.
    """

    planned: Trace
    differences: tuple[str, ...]
    obstacles: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()


DEAD_S = 10.0
"""Seconds for which a pod's namespace and link must both be gone before its attachment is released
without a DEL: between the two a runtime may have lost it for good."""


INSPECT_S = 0.25
"""Seconds of one look into the namespaces of pods whose ADD was answered: for hundreds of them, if
nobody makes it slow. Pods that come meanwhile wait for it."""


class LocalNode:
    """The node this process runs on, as far as it is known.

    Attributes:
        facts: identity and VPC CIDRs; None until IMDS has answered once.
        cloud: the last observation of EC2, also of an earlier process; None until there was one.
        cooldowns: what is known of connections of addresses that cool.
    """

    def __init__(self, state: Any, environment: Environment | None = None) -> None:
        self.state = state
        self._environment = environment or Environment(node_name=os.environ.get("NODE_NAME", ""))
        self._remembered: tuple[Node | None, Cloud | None] = state.recall() or (None, None)
        self.facts: Node | None = self._remembered[0]
        self.cloud: Cloud | None = self._remembered[1]
        self._resolved: tuple[NodeNetwork | None, Node | None, NodeNetwork | None] = (
            None,
            None,
            None,
        )
        self._netlink = self._environment.netlink
        self._kernel = Kernel(self._environment.netlink, self._environment.sysctl)
        self._kernel_domains = kernel_domains(
            self._kernel, self._environment.sysctl, self._environment.nft
        )
        self._ec2: Any = None
        self._pool_controller: PoolController | None = None
        self._records: Records | None = None
        self._binding = threading.RLock()
        self.cooldowns = Cooldowns(self._environment.conntrack, self._environment.now)
        self._dead_since: dict[AttachmentKey, float] = {}
        self._survey: Inputs | None = None
        self._proven: frozenset[AttachmentKey] = frozenset()
        self._unread = Unread()
        self._inspected: AttachmentKey | None = None
        self._changed: dict[AttachmentKey, str] = {}
        self._migration = Migration(self._environment.remains)
        self._can_serve = False
        self._is_deaf = False

    @property
    def ec2_calls(self) -> Mapping[str, int]:
        """EC2 calls made so far, by action."""
        return dict(self._ec2.calls) if self._ec2 else {}

    @property
    def taking_over(self) -> bool:
        """Whether the node is being, or was, taken over from the stock plugin."""
        return self._migration.taking_over

    @property
    def runtime_directories(self) -> tuple[Path, ...]:
        """The container runtime's directories into which something is installed."""
        places = self._environment.files.places
        return tuple(Path(d) for d in (places.conf_dir, places.bin_dir) if d)

    @property
    def dead_until(self) -> tuple[float, ...]:
        """When pods that were seen dead are released if no DEL comes; monotonic seconds."""
        return tuple(since + DEAD_S for since in self._dead_since.values())

    @property
    def pool_due_s(self) -> float | None:
        """Seconds until the next pass over the pool is due; None if unknown."""
        return self._pool_controller.due_s if self._pool_controller else None

    @property
    def is_unconfirmed(self) -> bool:
        """Whether EC2 and metadata differ of the pool; nothing is given back meanwhile."""
        return self._pool_controller is not None and self._pool_controller.is_unconfirmed

    @property
    def is_pending(self) -> bool:
        """Whether the pool has more to do, or to confirm, than its plan of now says."""
        return self._pool_controller is not None and self._pool_controller.is_pending

    @property
    def hear_after_s(self) -> float:
        """Seconds until metadata may have more to tell."""
        return self._pool_controller.hear_after_s if self._pool_controller else float("inf")

    def hear(self) -> bool:
        """Read metadata again; say whether EC2 should be observed, because of what it shows.

        Raises:
            ObserveError: it does not answer.
        """
        before = self.facts
        if self._pool_controller is not None:
            self._pool_controller.readings += 1
        metadata, errors = self._ask_metadata()
        for error in errors:
            raise error
        assert self._pool_controller is not None
        return self._pool_controller.hear(metadata) or self.facts != before

    def learn(self) -> Node:
        """Read the node's identity and VPC CIDRs again.

        Raises:
            ObserveError: IMDS does not answer.
        """
        environment, before = self._environment, self.facts
        self.facts = replace(environment.imds.node(), name=environment.node_name)
        if before is not None and before.instance_id != self.facts.instance_id:
            self.cloud = None  # an image was made of another instance, with its last look in it
        if self._pool_controller is None:
            region = environment.imds.region()
            self._ec2 = environment.make_ec2(self.facts.instance_id, region, self.state)
            if self.cloud and self.cloud.limits:
                self._ec2.know(self.facts.instance_type, self.cloud.limits)
            self._pool_controller = PoolController(
                state=self.state,
                ec2=self._ec2,
                netlink=environment.netlink,
                conntrack=environment.conntrack,
                binding=self._binding,
                now=environment.now,
                clock=environment.clock,
            )
        return self.facts

    def resolve(self, document: NodeNetwork) -> NodeNetwork:
        """Apply the document's overrides for this node.

        Raises:
            NotReadyError: it is not known yet which node this is.
            ConflictError: overrides that match this node contradict each other.
        """
        facts = self.facts
        if facts is None:
            raise NotReadyError("instance metadata has not answered yet")
        given, known, resolved = self._resolved
        if resolved is not None and given is document and known == facts:
            return resolved  # of 10,000 CIDRs it takes a tenth of a second, for each pass
        try:
            resolved = resolve(
                document,
                instance_type=facts.instance_type,
                zone=facts.availability_zone,
                node_name=facts.name,
            )
        except DocumentError as error:
            raise ConflictError(str(error)) from error
        self._resolved = document, facts, resolved
        return resolved

    def pool_pass(self, document: NodeNetwork, *, dry: bool = False, look: bool = True) -> Outcome:
        """Look at EC2 and bring the pool to its target.

        Args:
            document: what is desired.
            dry: change nothing.
            look: at EC2, whatever follows; or else only if an observation is due, or something
                follows from the last one.

        Raises:
            ObserveError: IMDS or the state directory cannot be read.
            StateError: the look cannot be kept.
        """
        if not look and self.is_unconfirmed and not self._is_deaf:
            with suppress(ObserveError):  # whoever needs an answer says so
                look = self.hear()
        if not look and (foreseen := self._foresee(document)):
            return foreseen
        metadata, errors = self._ask_metadata()
        assert self._pool_controller is not None
        records = self.state.observe()
        inputs = self._inputs(document, records, self.cloud)
        if dry:
            outcome = self._pool_controller.rehearse(inputs, metadata)
        else:
            outcome = self._pool_controller.run(inputs, metadata, look=look)
        outcome = replace(outcome, errors=(*outcome.errors, *errors))
        holders = {a.eni_id for a in records.attachments if a.eni_id}
        links = self._netlink.links().names  # of what was just attached, too
        seen = outcome.observed
        if isinstance(seen, Cloud) and (self.cloud or is_whole(seen, holders)):
            seen = arrived(seen, links)
            self.cloud = retain(self.cloud or seen, seen, links)
            if not dry and self._remembered != (self.facts, self.cloud):
                self.state.remember(inputs.node, self.cloud)
                self._remembered = (self.facts, self.cloud)
        return outcome

    def _foresee(self, document: NodeNetwork) -> Outcome | None:
        """Plan the pool on the last observation; None if EC2 must be observed."""
        errors: tuple[ObserveError, ...] = ()
        if self._pool_controller is None or self.cloud is None:
            return None
        if self._is_deaf:
            errors = self._ask_metadata()[1]
            if not errors:
                return None
        inputs = self._inputs(document, self.state.observe(), self.cloud)
        outcome = self._pool_controller.foresee(inputs)
        if outcome is None:
            return None
        self.cloud = arrived(self.cloud, inputs.links)
        return replace(outcome, errors=(*outcome.errors, *errors))

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
            if self._pool_controller is None:
                raise
            # Confirms nothing, so nothing is given back, and proves nothing lost.
            return None, (error,)

    def kernel_pass(
        self,
        document: NodeNetwork,
        *,
        audit: bool = True,
        backoffs: Backoffs = NO_BACKOFFS,
    ) -> PassResult:
        """Bind, converge the kernel, and only then release.

        Args:
            document: what is desired.
            audit: look into every pod's namespace, and not only into those of which something is
                new or was seen to differ: nothing in there notifies the host.
            backoffs: the objects that are left alone for a while.

        Raises:
            NotReadyError: EC2 has not been observed yet. Without its ENIs the node would seem to
                need none of their routes and rules.
            ObserveError: links or the state directory cannot be read.
        """
        cloud = self._require_observation()
        try:
            with boundary("observe of attachment"):
                self._records = self.state.observe()
        except ReconcilerError as error:
            if self._records is None:
                raise
            # Repair goes on with what was last read; no pod gets or loses an address meanwhile.
            outcomes = {"attachment": Outcome(errors=(error,))}
            inputs = self._inputs(document, self._records, cloud)
            self._records = self._records.joined(inputs.unrecorded)
        else:
            inputs = self._inputs(document, self._records, cloud)
            _need_node(inputs)
            self.state.hold(inputs.unrecorded)
            self._records = self._records.joined(inputs.unrecorded)
            flows, ended = self.cooldowns.review(self._records.resting)
            dead = self._find_dead(self._records, inputs)
            inputs = replace(inputs, flows=flows, dead=dead)
            with self._binding:
                outcomes = dict(converge([self._attachment_domain(self._records)], inputs))
            outcomes["conntrack"] = ended
        records = self._records_after(outcomes)
        inputs = replace(inputs, attachments=_without_copies(records.living, inputs.pods))
        observed_at = time.monotonic()
        self._unread = self._unread.among(a.key for a in records.living)
        visit = self._to_visit(inputs, audit=audit)
        going = [a for a in records.attachments if a.key in records.released]
        inputs = replace(inputs, visit=visit)
        objects = PodObjects(inputs)
        inputs, kernel = self._converge_kernel(
            self._kernel_domains, inputs, objects, backoffs, going
        )
        outcomes |= kernel
        visited = [a for a in inputs.visited if a in records.living]
        done = {a.key: a for a in self._in_place(visited, objects, outcomes)}
        finished = records.unfinished & (self._proven | done.keys())
        if (records.released or finished) and not outcomes["attachment"].failed:
            if cut_kinds(outcomes["link"].observed):
                going = []  # something of theirs may be among what was not shown
            clear = frozenset(a.key for a in self._in_place(going, objects, outcomes))
            # What was adopted has its record by now, and the kernel has changed since.
            predecessor = replace(inputs.predecessor, adoptions=())
            after = replace(inputs, clear=clear, finished=finished, predecessor=predecessor)
            with self._binding:
                outcomes |= converge([self._attachment_domain()], after)
            records = self._records_after(outcomes)
        outcomes["takeover"] = self._migration.retire(
            inputs,
            records,
            in_place=self._all_in_place(outcomes) and not self.readable_at(inputs),
        )
        self._survey = inputs
        visited = [a for a in visited if a in records.living]
        done = {key: a for key, a in done.items() if a in records.living}
        self._prove(records, visited, done)
        waiting = find_waiting(outcomes) | find_occupied(visited, outcomes)
        return PassResult(outcomes, observed_at, records, inputs, done, waiting)

    def pods_pass(
        self, keys: frozenset[AttachmentKey], *, backoffs: Backoffs = NO_BACKOFFS
    ) -> PassResult:
        """Bind, converge and release these attachments, by the last full pass.

        The rounds are those of ``kernel_pass``, with the objects of these pods alone: nothing of
        any other is read or changed, so the cost does not grow with pods. What is not as the last
        full pass has left it makes this one fail, and it is for the next full one to mend.

        Raises:
            NotReadyError: there was no full pass yet.
            ObserveError: a record of these pods cannot be read.
        """
        inputs, before = self._surveyed()
        inputs = replace(inputs, now=self._environment.now(), clock=self._environment.clock())
        state = ScopedState(self.state, keys, before)
        plan = partial(attachment.plan_pods, keys)
        domain = Domain("attachment", attachment.desire, plan, state)
        with self._binding:
            outcomes = converge([domain], inputs)
        asked = self._records_after(outcomes).among(keys)
        concerned, living = asked.attachments, asked.living
        observed_at = time.monotonic()
        inputs = replace(inputs, attachments=living, pods=inputs.pods & keys, visit=None)
        inputs = replace(inputs, unreadable=frozenset())  # some may be readable by now
        leaving = tuple(a for a in concerned if a.key in asked.released)
        gone: frozenset[Any] = frozenset()
        if leaving:
            # Only the host's objects: those in a pod's namespace go with its link.
            gone = pod_objects(
                replace(inputs, attachments=leaving, pods=keys, visit=frozenset[AttachmentKey]())
            )
        domains = pod_domains(self._kernel, self._environment.nft, gone)
        objects = PodObjects(inputs)
        inputs, kernel = self._converge_kernel(domains, inputs, objects, backoffs, concerned)
        outcomes |= kernel
        told = [a for a in concerned if a not in living or a in inputs.visited]
        done = {a.key: a for a in self._in_place(told, objects, outcomes)}
        going = frozenset(done.keys() & asked.released)
        finished = frozenset(done.keys() & asked.unfinished)
        if (going or finished) and not outcomes["attachment"].failed:
            with self._binding:
                after = replace(inputs, clear=going, finished=finished)
                outcomes |= converge([domain], after)
        records = self._records_after(outcomes)
        self._proven = self._proven - keys | done.keys() & {a.key for a in living}
        waiting = find_waiting(outcomes) | find_occupied(living, outcomes)
        here = {a.key: a for a in living if a.key in done}
        return PassResult(outcomes, observed_at, records, inputs, here, waiting, asked=keys)

    def check(self, key: AttachmentKey) -> Attachment | Refusal:
        """Compare every object of an attachment with the kernel; change nothing.

        Returns:
            The attachment if all are in place, or the first that is not, in the order in which
            they build upon each other.

        Raises:
            NotReadyError: there was no full pass yet.
            ObserveError: its records cannot be read.
        """
        survey, before = self._surveyed()
        records: Records = self.state.observe_at(frozenset({key}), before)
        attachment = next((a for a in records.living if a.key == key), None)
        if attachment is None:
            return Refusal(f"attachment {key}", "NotAttached", "nothing is bound to it")
        if not attachment.netns_alive:
            return Refusal(f"namespace {attachment.netns}", "Differs", "it is gone")
        inputs = alone(attachment, survey)
        outcomes = dry_run(pod_domains(self._kernel, self._environment.nft), inputs)
        for unread in unread_places(outcomes["link"].observed).values():
            return Refusal(f"namespace {attachment.netns}", "NamespaceUnreadable", str(unread))
        for outcome in outcomes.values():
            if difference := find_difference(outcome):
                return difference
        return attachment

    def _surveyed(self) -> tuple[Inputs, Records]:
        """Return what the last full pass has found, with the ENIs of now, and the last records.

        Raises:
            NotReadyError: there was none yet.
        """
        cloud = self.cloud
        if self._survey is None or self._records is None or cloud is None:
            raise NotReadyError("nothing was looked at yet")
        return replace(self._survey, enis=cloud.enis), self._records

    def _prove(
        self,
        records: Records,
        visited: Iterable[Attachment],
        done: Mapping[AttachmentKey, Attachment],
    ) -> None:
        """Remember whose objects were all seen in place, the pod's own included."""
        withheld = {a.key for a in visited} - done.keys()
        bound = {a.key for a in records.attachments}
        self._proven = (self._proven - withheld | done.keys()) & bound - records.released

    def observe_others(
        self, result: PassResult, *, backoffs: Backoffs = NO_BACKOFFS
    ) -> PassResult:
        """Look at other owners after a pass over the kernel; say what of theirs hurts us.

        Puts rules of ours into their forward chains if the document asks for it. No pod waits for
        this: it is answered by the pass itself.
        """
        outcomes, findings = self._observe_others(
            result.inputs, backoffs=backoffs, leaving=_leaving(result.outcomes)
        )
        if takeover := result.outcomes.get("takeover"):
            findings += takeover.remaining.findings
        return replace(result, outcomes=result.outcomes | outcomes, findings=findings)

    def install(self, result: PassResult, *, backoffs: Backoffs = NO_BACKOFFS) -> PassResult:
        """Give the container runtime the CNI executable and configuration, after a full pass.

        Not before pods can be served for the first time; what an earlier process has installed
        stays as it is until then, because without it a runtime could not even end pods.
        """
        self._can_serve = self._can_serve or self._serves_pods(result)
        outcomes = self._install(result.inputs, dry=not self._can_serve, backoffs=backoffs)
        if not self._can_serve:
            outcomes = {name: withhold(outcome) for name, outcome in outcomes.items()}
        found = tuple(f for o in outcomes.values() for f in o.remaining.findings)
        return replace(
            result,
            outcomes=result.outcomes | outcomes,
            findings=(*(result.findings or ()), *found),
        )

    def _install(self, inputs: Inputs, *, dry: bool, backoffs: Backoffs = NO_BACKOFFS) -> Outcomes:
        files = self._environment.files
        domains = [
            Domain("executable", executable.desire, executable.plan, files, (Executable,)),
            Domain(
                "conflist", conflist.desire, conflist.plan, files, (Conflist, OtherConf, Plugins)
            ),
        ]
        inputs = replace(inputs, installation=files.places)
        return dry_run(domains, inputs) if dry else converge_held(domains, inputs, backoffs)

    def _serves_pods(self, result: PassResult) -> bool:
        """Whether a new pod would get addresses, and find everything that all pods share.

        What one pod that is here already lacks holds no other back.
        """
        inputs = result.inputs
        node = replace(inputs, attachments=(), visit=frozenset())
        outcomes = [result.outcomes[d.name] for d in self._kernel_domains]
        errors = [e for o in (*outcomes, result.outcomes["attachment"]) for e in o.errors]
        left = {(a.kind, a.key) for o in outcomes for a in undone(o)}
        left |= {about for o in outcomes for r in o.remaining.refusals if (about := r.about)}
        shared = {(o.kind, o.key) for d in self._kernel_domains for o in d.desire(node)}
        return (
            all(isinstance(e, OF_ONE_POD) for e in errors)
            and not left & shared
            and all(
                any(
                    e.ipv6_prefixes if family == "ipv6" else e.pod_addresses
                    for e, _ in inputs.pod_enis
                )
                for family in inputs.document.families
            )
        )

    def _observe_others(
        self,
        inputs: Inputs,
        *,
        dry: bool = False,
        backoffs: Backoffs = NO_BACKOFFS,
        leaving: frozenset[Any] = frozenset(),
    ) -> tuple[Outcomes, tuple[Finding, ...]]:
        surroundings = self._environment.surroundings
        with boundary("observe of forward"):
            seen = surroundings.observe()
        outcomes: Outcomes = {}
        if seen.forward is not None:
            inputs = replace(inputs, forward=seen.forward)
            domain = Domain("forward", forward.desire, forward.plan, surroundings.forward)
            outcomes = (
                dry_run([domain], inputs) if dry else converge_held([domain], inputs, backoffs)
            )
            if outcomes["forward"].plan.actions and not dry:
                seen = surroundings.observe()
        hurting = findings.judge(findings.without(seen, leaving), findings.desire(inputs))
        return outcomes, hurting

    def findings(self, document: NodeNetwork, outcomes: Outcomes) -> tuple[Finding, ...]:
        """Say what other owners have that hurts us; nothing if EC2 was never looked at.

        Args:
            document: what is desired.
            outcomes: of ``diff``: what it plans to remove hurts no more.

        Raises:
            ObserveError, NotReadyError: as for the passes.
        """
        if self.cloud is None:
            return ()
        inputs = self._inputs(document, self.state.observe(), self.cloud)
        return self._observe_others(inputs, dry=True, leaving=_leaving(outcomes))[1]

    def _find_dead(self, records: Records, inputs: Inputs) -> frozenset[AttachmentKey]:
        """Tell attachments of which namespace and link have been gone for a while.

        Whether an intent still wants them, or nobody does: then no DEL will ever come.
        """
        now = inputs.clock
        dead = {
            i.key
            for i in records.intents
            if i.state is IntentState.WANTED and not i.netns_alive and i.key not in inputs.pods
        }
        asked = {i.key for i in records.intents}
        dead |= {
            a.key
            for a in records.attachments
            if a.key not in asked and not a.netns_alive and a.key not in inputs.pods
        }
        self._dead_since = {key: self._dead_since.get(key, now) for key in dead}
        return frozenset(k for k, since in self._dead_since.items() if now - since >= DEAD_S)

    def _records_after(self, outcomes: Outcomes) -> Records:
        """Return what the last observation of the records showed."""
        observed = outcomes["attachment"].observed
        if isinstance(observed, Records):
            self._records = observed
        assert self._records is not None
        return self._records

    def _converge_kernel(
        self,
        domains: Sequence[Domain],
        inputs: Inputs,
        objects: PodObjects,
        backoffs: Backoffs,
        gone: Iterable[Attachment],
    ) -> tuple[Inputs, Outcomes]:
        """Converge the kernel.

        Again with a pod whose link had to be made anew, because its other end has not been looked
        at. A pod whose namespace turns out to be unreadable is left out, with backoff.
        """
        inputs = replace(
            inputs,
            unreadable=inputs.unreadable | self._unread.unreadable(self._environment.clock()),
        )
        earlier: Outcomes = {}
        while True:
            leaving = Leaving(inputs.attachments, objects, self._look_again)
            hold = partial(_hold, backoffs, time.monotonic(), leaving)
            outcomes = converge(domains, inputs, hold=hold, leaving=gone)
            outcomes = {
                name: replace(o, plan=earlier[name].plan + o.plan) if name in earlier else o
                for name, o in outcomes.items()
            }
            unread = unread_places(outcomes["link"].observed)
            failed = {a.key: unread[a.netns].why for a in inputs.visited if a.netns in unread}
            looked = [a.key for a in inputs.visited]
            self._unread = self._unread.after(looked, failed, self._environment.clock())
            inputs = replace(inputs, unreadable=inputs.unreadable | failed.keys())
            touched = touched_pods(inputs, outcomes["link"])
            if not touched:
                return inputs, outcomes
            visit = None if inputs.visit is None else inputs.visit | touched
            inputs = replace(inputs, visit=visit)
            earlier = outcomes

    def _look_again(self, keys: Collection[AttachmentKey]) -> Records:
        """Read the records of some pods again, in the middle of a pass."""
        assert self._records is not None
        records: Records = self.state.observe_at(frozenset(keys), self._records)
        return records

    def _to_visit(self, inputs: Inputs, *, audit: bool) -> frozenset[AttachmentKey] | None:
        """Name the pods whose own namespace is put right; None for all of them.

        Unless the document says otherwise, a namespace is the pod's own from the moment on at
        which everything that ADD puts there was seen.
        """
        if inputs.document.pods.repair == "all":
            living = frozenset(a.key for a in inputs.attachments)
            return None if audit else living - self._proven
        return frozenset(a.key for a in inputs.attachments if a.unfinished) - self._proven

    def readable_at(self, inputs: Inputs) -> tuple[float, ...]:
        """When unreadable namespaces that matter are tried again; monotonic seconds."""
        waiting = {
            a.key
            for a in inputs.attachments
            if a.unfinished or inputs.document.pods.repair == "all"
        }
        return tuple(f.until for k, f in self._unread.known.items() if k in waiting)

    def inspect(self, result: PassResult, *, everyone: bool) -> tuple[Finding, ...]:
        """Look into the namespaces of pods whose ADD was answered; change nothing.

        It is their own affair what is in there. So this comes last, takes ``INSPECT_S`` at most,
        and goes on with the next pod when it is called again.

        Args:
            result: of a pass over everything.
            everyone: or only those that could not be read the last time.

        Returns:
            What there is to say of all of them: those that differ from what ADD has left, and
            those that could not be read.
        """
        inputs = result.inputs
        if inputs.document.pods.repair == "none":
            left_out = frozenset(a.key for a in inputs.visited)
            self._inspect(
                [
                    a
                    for a in inputs.attachments
                    if a.key not in left_out and (everyone or a.key in self._unread.known)
                ],
                inputs,
            )
        else:
            self._changed.clear()
        living = {a.key: a for a in inputs.attachments}
        self._changed = {k: kinds for k, kinds in self._changed.items() if k in living}
        changed = [f"{living[k].pod or k} ({kinds})" for k, kinds in sorted(self._changed.items())]
        return (*self._unread.findings(inputs.attachments), *_changed_by_pods(changed))

    def _inspect(self, pods: Sequence[Attachment], inputs: Inputs) -> None:
        deadline = time.monotonic() + INSPECT_S
        start = bisect([a.key for a in pods], self._inspected) if self._inspected else 0
        for pod in (*pods[start:], *pods[:start]):
            if time.monotonic() > deadline:
                return
            self._inspected = pod.key
            self._changed.pop(pod.key, None)
            clock = self._environment.clock()
            if pod.netns_alive and pod.key not in self._unread.unreadable(clock):
                why = self._inspect_one(pod, inputs)
                failed = {pod.key: why} if why else {}
                self._unread = self._unread.after([pod.key], failed, clock)

    def _inspect_one(self, pod: Attachment, inputs: Inputs) -> str:
        """Note what a pod has changed; return why that cannot be read, if so."""
        wanted = inside_objects(alone(pod, inputs))
        try:
            with boundary("the look into a pod"):
                seen = self._kernel.observe_inside(wanted)
        except ReconcilerError as error:
            return str(error)
        for unread in seen.unread_places.values():
            return unread.why
        if kinds := {o.kind for o in wanted.difference(seen)}:
            self._changed[pod.key] = ", ".join(sorted(kinds))
        return ""

    def diff(self, document: NodeNetwork) -> Outcomes:
        """Plan everything, change nothing.

        Raises:
            ObserveError, NotReadyError: as for the passes.
        """
        outcomes = {"eni": self.pool_pass(document, dry=True)}
        if self.cloud is None:
            return outcomes  # it says why EC2 could not be read
        self.state.hold(())  # what an earlier observation of this process has found in the kernel
        records = self.state.observe()
        inputs = self._inputs(document, records, self.cloud, rehearsal=True)
        self.state.hold(inputs.unrecorded)
        inputs = replace(inputs, clear=records.released)
        outcomes |= dry_run([self._attachment_domain()], inputs)
        adopted = [a for a, _ in inputs.predecessor.adoptions if a not in inputs.attachments]
        everybody = (*inputs.attachments, *adopted)
        inputs = replace(inputs, attachments=everybody)
        inputs = replace(inputs, visit=self._to_visit(inputs, audit=True))
        outcomes |= dry_run(self._kernel_domains, inputs)
        outcomes["link"] = _with_unread(outcomes["link"], inputs)
        last = Domain("takeover", takeover.desire, takeover.plan, self._environment.remains)
        outcomes |= dry_run([last], inputs)
        outcomes |= self._observe_others(inputs, dry=True)[0]
        return outcomes | self._install(inputs, dry=True)

    def audit(
        self, document: NodeNetwork, outcomes: Outcomes | None = None
    ) -> tuple[Finding, ...]:
        """Compare document, intents, records, kernel, nftables and EC2; change nothing.

        What is just being done disagrees for a moment; only what a second observation confirms is
        wrong.

        Args:
            document: what is desired.
            outcomes: of ``diff``; looked at anew if there are none.

        Raises:
            ObserveError, NotReadyError: as for the passes.
        """
        outcomes = outcomes or self.diff(document)
        for outcome in outcomes.values():
            for error in outcome.errors:
                raise error
        seen = outcomes["eni"].observed
        differing = [
            Finding(f"{a.kind} {' '.join(map(str, a.key))}", "Differs", f"{a.reason}; to do: {a}")
            for o in outcomes.values()
            for a in o.plan.actions
        ]
        refused = [
            Finding(r.subject, r.reason, r.message)
            for o in outcomes.values()
            for r in o.plan.refusals
        ]
        cloud = seen if isinstance(seen, Cloud) else None
        against = contradictions(self.state.observe(), cloud, self._environment.now())
        return (*against, *differing, *refused, *outcomes["link"].remaining.findings)

    def endpoints(self, address: IpAddress, protocol: str, port: int) -> tuple[IpAddress, ...]:
        """Return what others on the node translate a destination to; nothing if none does.

        Raises:
            ObserveError: a ruleset could not be read.
        """
        found: tuple[IpAddress, ...] = self._environment.services.endpoints(
            address, protocol, port
        )
        return found

    def trace(
        self, document: NodeNetwork, make: Callable[[Inputs], Sequence[Query]]
    ) -> tuple[Traced, ...]:
        """Follow connections through what is desired, what is there, and the kernel's answers.

        It works on the last observation of EC2 and makes no call.

        Args:
            document: what is desired.
            make: returns the connections, once it is known which pods there are.

        Raises:
            ObserveError, NotReadyError: as for the passes.
            UnknownPodError: ``make`` knows no such pod.
        """
        if self.facts is None:
            self.learn()
        cloud = self._require_observation()
        inputs = self._inputs(document, self.state.observe(), cloud)
        queries = make(inputs)
        fib = self._netlink.fib()
        rules = [r for r in fib.rules if not rule.is_owned(r)]
        routes = [r for r in fib.routes if not route.is_owned(r)]
        desired = make_tables(
            (*rules, *rule.desire(inputs)),
            (*routes, *route.desire(inputs)),
            nat.desire(inputs),
            fib.addresses,
        )
        there = make_tables(fib.rules, fib.routes, self._environment.nft.observe(), fib.addresses)
        others, unread = self._environment.surroundings.chains()
        unread = (*unread, *(f"{what}: not read: {why}" for what, why in fib.unread))
        found = []
        for query in queries:
            planned, actual = trace(query, inputs, desired), trace(query, inputs, there)
            met = find_obstacles(query, planned, inputs, others)
            found.append(
                Traced(
                    planned,
                    self._differences(query, planned, actual),
                    tuple(dict.fromkeys((*met.sure, *unasked(query, fib.rules), *unread))),
                    tuple(dict.fromkeys(met.hints)),
                )
            )
        return tuple(found)

    def _differences(self, query: Query, planned: Trace, actual: Trace) -> tuple[str, ...]:
        packets = [packet for leg in planned.legs for packet, _ in leg.lookups]
        answers = [self._netlink.look_up(packet) for packet in packets]
        found = compare(planned, actual, answers)
        if query.pod is None or not packets:
            return found
        try:
            way = self._netlink.look_up(Packet(None, query.peer), query.pod.netns)
        except ObserveError as error:
            return (*found, f"the pod's own namespace was not asked: {error.why}")
        return (*found, *compare_inside(query.pod, query.peer, way))

    @property
    def in_transition(self) -> bool:
        """Whether EC2 is about to change something by itself, or a link has yet to appear."""
        return self.cloud is None or is_changing(self.cloud, self._netlink.links().names)

    def _inputs(
        self,
        document: NodeNetwork,
        records: Records,
        cloud: Cloud | None,
        *,
        rehearsal: bool = False,
    ) -> Inputs:
        """Gather the inputs; for a rehearsal, as if EC2 had done already what it will be asked.

        The last observation is handed over: the pool's thread may replace it meanwhile.
        """
        if self.facts is None:
            raise NotReadyError("instance metadata has not answered yet")
        enis: tuple[Eni, ...] = cloud.enis if cloud else ()
        links = self._netlink.links()
        known = {a.key for a in records.attachments}
        # A link that a record names is that record's, whatever somebody has made of its alias.
        veths = {a.veth for a in records.attachments}
        unexplained = {k: v for k, v in links.pods.items() if k not in known and v not in veths}
        addresses = self._netlink.pod_addresses() if unexplained else {}
        addresses = {veth: a for veth, a in addresses.items() if len(a) <= MAX_POD_ADDRESSES}
        dumb = [veth for veth in unexplained.values() if veth not in addresses]
        if dumb:
            addresses |= self._look_behind(dumb, enis, records, addresses)
        unrecorded = find_unrecorded(unexplained, addresses, enis, records.intents, links.macs)
        records = records.joined(unrecorded)
        released = records.released
        document = self.resolve(document)
        if rehearsal and document.take_over == OWNER:
            enis = tuple(eni_domain.adopted(e) if e.is_adoptable else e for e in enis)
        return Inputs(
            document=document,
            node=self.facts,
            enis=enis,
            links=links.names,
            attachments=_without_copies(records.living, links.pods),
            now=self._environment.now(),
            clock=self._environment.clock(),
            demand=records.demand,
            pods=frozenset(links.pods),
            unrecorded=unrecorded,
            unexplained=tuple(
                Unexplained(key, veth, links.macs.get(veth, ""))
                for key, veth in sorted(unexplained.items())
                if veth not in addresses and key not in released
            ),
            occupied=self._netlink.occupied(
                {a for e in enis for a in e.pod_addresses},
                {n for e in enis for n in e.ipv6_prefixes},
            ),
            predecessor=self._migration.consider(
                records, enis, asked=document.take_over == OWNER, now=self._environment.clock()
            ),
        )

    def _look_behind(
        self,
        links: Iterable[str],
        enis: Iterable[Eni],
        records: Records,
        known: Mapping[str, tuple[IpAddress, ...]],
    ) -> dict[str, tuple[IpAddress, ...]]:
        """Find out which addresses pods have of which neither a record nor a route is left."""
        taken = {own for a in records.attachments for own in a.addresses}
        taken |= {own for addresses in known.values() for own in addresses}
        found: dict[str, tuple[IpAddress, ...]] = {}
        for link, candidates in self._netlink.addresses_behind(links).items():
            if believed := believe(candidates, enis, taken):
                found[link] = believed
                taken.update(believed)
        return found

    def _require_observation(self) -> Cloud:
        if (cloud := self.cloud) is None:
            raise NotReadyError("EC2 has not been observed yet, so the node's ENIs are unknown")
        return cloud

    def _in_place(
        self, attachments: Iterable[Attachment], objects: PodObjects, outcomes: Outcomes
    ) -> list[Attachment]:
        """Return those of whose kernel objects none is left to do, and this was seen."""
        results = [outcomes[d.name] for d in self._kernel_domains if d.name in outcomes]
        errors = [e for r in results for e in r.errors]
        if any(not isinstance(e, OF_ONE_POD) for e in errors):
            return []
        apart = left_out(outcomes)
        left = {(a.kind, a.key) for r in results for a in undone(r)}
        left |= {about for r in results for f in r.remaining.refusals if (about := f.about)}
        return [
            a
            for a in attachments
            if a.key not in apart and not (left and objects.has_any(a, left))
        ]

    def _all_in_place(self, outcomes: Outcomes) -> bool:
        """Whether everything of ours was seen in its place, and nothing refused one."""
        ours = [outcomes[d.name] for d in self._kernel_domains]
        return outcomes["attachment"].settled and all(
            o.settled and not o.remaining.refusals for o in ours
        )

    def _attachment_domain(self, before: Records | None = None) -> Domain:
        state = self.state if before is None else StateReadOnce(self.state, before)
        return Domain("attachment", attachment.desire, attachment.plan, state)


def _leaving(outcomes: Outcomes) -> frozenset[Any]:
    """Return what the stock plugin has left and is about to be removed."""
    last = outcomes.get("takeover")
    actions = last.remaining.actions if last else ()
    return frozenset(a.object for a in actions if isinstance(a, Change))


def converge_held(domains: Sequence[Domain], inputs: Inputs, backoffs: Backoffs) -> Outcomes:
    """Converge what was not in vain lately."""
    hold = partial(_hold, backoffs, time.monotonic(), None)
    return converge(domains, inputs, hold=hold)


def _hold(
    backoffs: Backoffs, now: float, leaving: Leaving | None, domain: Domain, plan: Plan
) -> tuple[Plan, tuple[ApplyError, ...]]:
    """Leave out what is of pods that leave; and what was in vain lately, and say so."""
    if leaving is not None:
        plan = leaving.left_out(domain, plan)
    held = backoffs.hold(plan, now, atomic=domain.atomic)
    return held, backoffs.explain(held)


def _with_unread(links: Outcome, inputs: Inputs) -> Outcome:
    """Add a word on each pod's namespace that a look could not read."""
    places = unread_places(links.observed)
    failed = {a.key: places[a.netns].why for a in inputs.attachments if a.netns in places}
    found = tuple(Unread().after((), failed, 0.0).findings(inputs.attachments))
    if not found:
        return links
    plan = replace(links.plan, findings=(*links.plan.findings, *found))
    return replace(links, plan=plan, remaining=plan)


def _changed_by_pods(pods: Sequence[str]) -> Iterator[Finding]:
    if pods:
        more = f" and {len(pods) - MAX_NAMED} more" if len(pods) > MAX_NAMED else ""
        yield Finding(
            "pods",
            "ChangedByPod",
            "what ADD has put into their own namespaces is not all there as it was: "
            f"{', '.join(pods[:MAX_NAMED])}{more}; by pods.repair it is theirs, so nothing is put "
            "back; if they should have it, restart them, or set pods.repair to all",
        )


def _need_node(inputs: Inputs) -> None:
    """Refuse to plan where neither an ENI nor a pod has a link: pods would seem to lack theirs.

    Raises:
        ObserveError: this is another network namespace than the node's.
    """
    seen = inputs.pods or any(e.mac in inputs.links for e in inputs.enis)
    if inputs.attachments and inputs.enis and not seen:
        raise ObserveError(
            "the links of the node",
            f"none of {len(inputs.enis)} ENIs and {len(inputs.attachments)} pods has its link in "
            "this network namespace, so it is not the node's; in Kubernetes that takes "
            "hostNetwork: true",
        )


def _without_copies(
    attachments: Sequence[Attachment], linked: Collection[AttachmentKey]
) -> tuple[Attachment, ...]:
    copies = find_copies(attachments, linked)
    return tuple(a for a in attachments if a.key not in copies)
