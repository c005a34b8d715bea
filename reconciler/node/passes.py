"""One node: the passes over its kernel. ``run``, ``diff`` and ``apply`` share them.

A pass over the kernel never waits for EC2: it works on the last observation of EC2, which a pass
over the pool brings. Its way is downwards only: records, inputs, binding, kernel, release, result.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial

from reconciler.core.attachment import Attachment, AttachmentKey
from reconciler.core.remembered import forget_unasked
from reconciler.domains import attachment
from reconciler.domains.attachment_holders import find_holders
from reconciler.domains.inputs import Inputs
from reconciler.domains.left_out import converge, dry_run, left_out
from reconciler.egress import destinations, observation
from reconciler.engine.backoff import Backoffs
from reconciler.engine.converge import Domain, Outcome, Outcomes, Target, gaps
from reconciler.engine.plan import Plan
from reconciler.errors import Issue, NotReadyError, ObserveError, ReconcilerError, boundary
from reconciler.ipam.records import Records
from reconciler.node import kernel_domains, pass_result
from reconciler.node.after_pass import AfterPass, Installer, OtherOwners, Takeover
from reconciler.node.cooldown import Cooldowns
from reconciler.node.environment import Environment, State
from reconciler.node.fast_path import FastPath
from reconciler.node.gathering import DeadPods, Gathering, Known, without_copies
from reconciler.node.kernel_domains import NO_BACKOFFS, KernelDomains, PodObject, PodObjects
from reconciler.node.pass_result import Inspect, PassResult
from reconciler.node.pool_pass import PoolPass
from reconciler.node.stock_plugin import StockPlugin
from reconciler.node.visits import Inspection, Visits, unread_of
from reconciler.targets.kernel import Kernel
from reconciler.targets.scoped import RecordAction, known_records, records_of
from schemas.apart import Documents
from schemas.document import NodeNetwork


class LocalNode:
    """The node this process runs on; ``after`` is what follows a full pass.

    ``documents`` is what checks the document with its overrides; by default this process.
    """

    def __init__(
        self,
        state: State,
        environment: Environment | None = None,
        documents: Documents | None = None,
    ) -> None:
        env = environment or Environment(node_name=os.environ.get("NODE_NAME", ""))
        self.state, self.environment = state, env
        self.known = Known(state, documents)
        stock = StockPlugin(env.remains)
        self.gathering = Gathering(env, self.known, stock)
        self.pool = PoolPass(state, env, self.known, self.gathering)
        self.cooldowns = Cooldowns(env.conntrack, env.now)
        self.dead = DeadPods()
        self.visits = Visits(env.clock)
        kernel = Kernel(env.netlink, env.sysctl)
        self.domains = KernelDomains(kernel, env.sysctl, env.nft)
        others = OtherOwners(env.surroundings)
        self.after = AfterPass(
            Takeover(stock, self.domains, self.visits),
            others,
            FastPath(env.nft.flows, env.netlink.queues, lambda: others.latest),
            Installer(env.files, self.domains),
            Inspection(kernel, self.visits),
        )
        self._records: Records | None = None
        self._last_inputs: Inputs | None = None

    def kernel_pass(
        self,
        document: NodeNetwork,
        *,
        audit: bool = True,
        is_regular: bool = False,
        backoffs: Backoffs = NO_BACKOFFS,
        asking: tuple[AttachmentKey, ...] = (),
    ) -> PassResult:
        """Bind, converge the kernel, and only then release.

        An ``audit`` looks into every pod's namespace, and not only into those of which something
        is new or was seen to differ: nothing in there notifies the host. A regular one looks into
        some of them in turn, if what is in there is not repaired. ``asking``: pods whose ADD
        waits, in the order in which they came.

        Raises:
            NotReadyError: EC2 has not been observed yet. Without its ENIs the node would seem to
                need none of their routes and rules.
            ObserveError: links or the state directory cannot be read.
        """
        # What is known: records, the last observation of EC2, links.
        cloud = self.known.observation()
        errors = self._read_records()
        assert self._records is not None
        inputs = self.gathering.inputs(document, self._records, cloud)
        inputs = keep_excluded(inputs, self._last_inputs).seeing(asking=asking)
        outcomes = {"attachment": Outcome(errors=errors)} if errors else {}
        if not errors:
            _need_node(inputs)
        self._records = self._records.joined(inputs.kernel.unrecorded)
        # Bind: records of pods that wait for an address.
        if not errors:
            inputs, outcomes = self._bind(inputs, self._records)
        records = self._records_after(outcomes)
        placed = without_copies(records.living, inputs.kernel.linked)
        inputs = inputs.holding(placed, records.identities)
        # Converge: the kernel's objects of the host and of the pods that are visited.
        observed_at = time.monotonic()
        self.visits.forget_others(frozenset(a.key for a in records.living))
        inputs = inputs.seeing(visit=self.visits.choose(inputs, audit=audit))
        going = [a for a in records.attachments if a.key in records.released]
        objects = PodObjects(inputs)
        inputs, kernel = self._converge_kernel(self.domains.all, inputs, objects, backoffs, going)
        outcomes |= kernel
        # Release: records of pods of which nothing is left; and finish those that are in place.
        visited = [a for a in inputs.visited if a in records.living]
        done = {a.key: a for a in self._in_place(visited, objects, outcomes)}
        finished = self.visits.is_proven(records.unfinished) | records.unfinished & done.keys()
        if (records.released or finished) and not outcomes["attachment"].failed:
            if gaps(outcomes["link"].observed).cut_kinds:
                going = []  # something of theirs may be among what was not shown
            clear = frozenset(a.key for a in self._in_place(going, objects, outcomes))
            # What was adopted has its record by now, and the kernel has changed since.
            predecessor = replace(inputs.host.predecessor, adoptions=())
            after = replace(inputs, host=replace(inputs.host, predecessor=predecessor))
            after = after.seeing(clear=clear, finished=finished)
            with self.pool.binding:  # the lock of both loops, for decisions about records
                outcomes |= converge([attachment_domain(self.state)], after)
            records = self._records_after(outcomes)
        # Say what became of it.
        self._last_inputs = inputs
        visited = [a for a in visited if a in records.living]
        done = {key: a for key, a in done.items() if a in records.living}
        self.visits.prove(records, visited, done)
        waiting = pass_result.find_waiting(outcomes) | pass_result.find_occupied(visited, outcomes)
        left = [a for a in records.living if a.key in records.unfinished - done.keys()]
        unplaced = self._find_unplaced(left, objects, outcomes)
        forget_unasked()
        told = (outcomes, observed_at, records, inputs, done, waiting, unplaced)
        inspect = Inspect.SOME if is_regular else Inspect.ALL
        return PassResult(*told, inspect=inspect if audit else Inspect.NONE)

    def pods_pass(
        self, asking: Collection[AttachmentKey], *, backoffs: Backoffs = NO_BACKOFFS
    ) -> PassResult:
        """Bind, converge and release these attachments, by the last full pass; bind in this order.

        The rounds are those of ``kernel_pass``, with the objects of these pods alone: nothing of
        any other is read or changed, so the cost does not grow with pods. What is not as the last
        full pass has left it makes this one fail, and it is for the next full one to mend.

        Raises:
            NotReadyError: there was no full pass yet.
            ObserveError: a record of these pods cannot be read.
        """
        inputs, before = self._last_full_pass()
        keys = frozenset(asking)
        inputs = replace(inputs, now=self.environment.now(), clock=self.environment.clock())
        inputs = inputs.seeing(asking=tuple(asking))
        state = records_of(self.state, keys, before)
        plan = partial(attachment.plan_pods, keys)
        domain = Domain("attachment", attachment.desire, plan, state)
        with self.pool.binding:
            outcomes = converge([domain], inputs)
        records = self._records_after(outcomes)
        if holders := find_holders(keys, records) - keys:
            # A DEL of theirs may be on disk. The kernel gives a namespace the inode of one that
            # has gone, so a new pod may have it within milliseconds of that DEL.
            return self.pods_pass((*asking, *holders), backoffs=backoffs)
        asked = records.among(keys)
        concerned, living = asked.attachments, asked.living
        observed_at = time.monotonic()
        # Some namespaces may be readable by now.
        inputs = inputs.holding(living, asked.identities).seeing(
            linked=inputs.kernel.linked & keys, visit=None, unreadable=frozenset()
        )
        leaving = tuple(a for a in concerned if a.key in asked.released)
        gone: frozenset[PodObject] = frozenset()
        if leaving:
            # Only the host's objects: those in a pod's namespace go with its link.
            there = inputs.seeing(linked=keys, visit=frozenset())
            gone = kernel_domains.pod_objects(replace(there, attachments=leaving))
        domains, objects = self.domains.of_pods(gone), PodObjects(inputs)
        inputs, kernel = self._converge_kernel(domains, inputs, objects, backoffs, concerned)
        outcomes |= kernel
        told = [a for a in concerned if a not in living or a in inputs.visited]
        done = {a.key: a for a in self._in_place(told, objects, outcomes)}
        going = frozenset(done.keys() & asked.released)
        finished = frozenset(done.keys() & asked.unfinished)
        if (going or finished) and not outcomes["attachment"].failed:
            with self.pool.binding:
                outcomes |= converge([domain], inputs.seeing(clear=going, finished=finished))
        records = self._records_after(outcomes)
        here = {a.key: a for a in living if a.key in done}
        self.visits.prove_some(keys, here)
        waiting = pass_result.find_waiting(outcomes) | pass_result.find_occupied(living, outcomes)
        left = [a for a in living if a.key not in here]
        unplaced = self._find_unplaced(left, objects, outcomes)
        return PassResult(
            outcomes, observed_at, records, inputs, here, waiting, unplaced, asked=keys, gone=gone
        )

    def cooling_pass(self) -> PassResult:
        """Say which addresses cool, and end what has cooled; nothing of the kernel is read.

        Raises:
            NotReadyError: there was no full pass yet, or namespaces have addresses of their own,
                of which a full pass alone knows when they cool.
            ObserveError: the records cannot be read.
        """
        inputs, before = self._last_full_pass()
        if before.identities or inputs.document.snat.rules:
            raise NotReadyError("namespaces have addresses of their own")
        observed_at = time.monotonic()
        records = self.state.observe_at((), before)
        flows, ended = self.cooldowns.review(records.resting)
        inputs = replace(inputs, now=self.environment.now(), clock=self.environment.clock())
        state = known_records(self.state, records)
        domain = Domain("attachment", attachment.desire, _plan_cooldowns, state)
        with self.pool.binding:
            outcomes = converge([domain], inputs.seeing(flows=flows)) | {"conntrack": ended}
        records = self._records_after(outcomes)
        return PassResult(outcomes, observed_at, records, inputs, asked=frozenset())

    def check(self, key: AttachmentKey) -> Attachment | Issue:
        """Compare every object of an attachment with the kernel; change nothing.

        Returns the attachment if all are in place, or the first that is not, in the order in which
        they build upon each other; raises as ``pods_pass`` does.
        """
        last, before = self._last_full_pass()
        records = self.state.observe_at(frozenset({key}), before)
        attachment = next((a for a in records.living if a.key == key), None)
        if attachment is None:
            return Issue(f"attachment {key}", "NotAttached", "nothing is bound to it")
        if not attachment.netns_alive:
            return Issue(f"namespace {attachment.netns}", "Differs", "it is gone")
        outcomes = dry_run(self.domains.of_pods(), kernel_domains.alone(attachment, last))
        for unread in gaps(outcomes["link"].observed).unread_places.values():
            return Issue(f"namespace {attachment.netns}", "NamespaceUnreadable", str(unread))
        for outcome in outcomes.values():
            if difference := pass_result.find_difference(outcome):
                return difference
        return attachment

    def _last_full_pass(self) -> tuple[Inputs, Records]:
        """Return what the last full pass has found, with the ENIs of now, and the last records."""
        cloud = self.known.cloud
        if self._last_inputs is None or self._records is None or cloud is None:
            raise NotReadyError("nothing was looked at yet")
        return replace(self._last_inputs, enis=cloud.enis), self._records

    def _read_records(self) -> tuple[ReconcilerError, ...]:
        """Read the records; return why not, if there are those that were last read.

        Repair goes on with these; no pod gets or loses an address meanwhile.
        """
        try:
            with boundary("observe of attachment"):
                self._records = self.state.observe()
        except ReconcilerError as error:
            if self._records is None:
                raise
            return (error,)
        return ()

    def _bind(self, inputs: Inputs, records: Records) -> tuple[Inputs, Outcomes]:
        self.state.hold(inputs.kernel.unrecorded)
        flows, ended = self.cooldowns.review(records.resting)
        inputs = inputs.seeing(flows=flows, dead=self.dead.find(records, inputs))
        domain = attachment_domain(known_records(self.state, records))
        with self.pool.binding:
            return inputs, converge([domain], inputs) | {"conntrack": ended}

    def _records_after(self, outcomes: Outcomes) -> Records:
        """Return what the last observation of the records showed."""
        observed = outcomes["attachment"].observed
        if isinstance(observed, Records):
            self._records = observed
        assert self._records is not None
        return self._records

    def _converge_kernel(
        self,
        domains: Sequence[Domain[Inputs]],
        inputs: Inputs,
        objects: PodObjects,
        backoffs: Backoffs,
        gone: Iterable[Attachment],
    ) -> tuple[Inputs, Outcomes]:
        """Converge the kernel.

        Again with a pod whose link had to be made anew, because its other end has not been looked
        at. A pod whose namespace turns out to be unreadable is left out, with backoff.
        """
        inputs = inputs.seeing(unreadable=inputs.kernel.unreadable | self.visits.unreadable())
        earlier: Outcomes = {}
        while True:
            leaving = kernel_domains.Leaving(
                inputs.attachments, objects, self._look_again, self._removing
            )
            held = kernel_domains.hold(backoffs, leaving.left_out)
            outcomes = converge(domains, inputs, hold=held, leaving=gone)
            outcomes = {
                name: replace(o, plan=earlier[name].plan + o.plan) if name in earlier else o
                for name, o in outcomes.items()
            }
            failed = unread_of(outcomes["link"].observed, inputs.visited)
            self.visits.note([a.key for a in inputs.visited], failed)
            inputs = inputs.seeing(unreadable=inputs.kernel.unreadable | failed.keys())
            touched = pass_result.touched_pods(inputs, outcomes["link"])
            if not touched:
                return inputs, outcomes
            if inputs.kernel.visit is not None:
                inputs = inputs.seeing(visit=inputs.kernel.visit | touched)
            earlier = outcomes

    def _removing(self) -> Collection[str]:
        return self.environment.netlink.removals.names

    def _look_again(self, keys: Collection[AttachmentKey]) -> Records:
        assert self._records is not None
        return self.state.observe_at(frozenset(keys), self._records)

    def _in_place(
        self, attachments: Iterable[Attachment], objects: PodObjects, outcomes: Outcomes
    ) -> list[Attachment]:
        """Return those of whose kernel objects none is left to do, and this was seen."""
        results = [outcomes[d.name] for d in self.domains.all if d.name in outcomes]
        errors = [e for r in results for e in r.errors]
        if any(not e.of_one_pod for e in errors):
            return []
        apart, left = left_out(outcomes), pass_result.not_in_place(results)
        return [
            a
            for a in attachments
            if a.key not in apart and not (left and objects.has_any(a, left))
        ]

    def _find_unplaced(
        self, attachments: Iterable[Attachment], objects: PodObjects, outcomes: Outcomes
    ) -> dict[AttachmentKey, Issue]:
        """Say why some attachments are not in place, each by what is its own."""
        results = [outcomes[d.name] for d in self.domains.all if d.name in outcomes]
        unread = {key: failure.why for key, failure in self.visits.unread.items()}
        own = {a: objects.of(a) or frozenset() for a in attachments}
        return pass_result.find_unplaced(own, results, unread)


def _plan_cooldowns(desired: attachment.Allocation, observed: Records) -> Plan:
    return Plan(tuple(attachment.end_cooldowns(desired, observed.cooling)))


def attachment_domain(state: Target[object, Records, RecordAction]) -> Domain[Inputs]:
    """Return the domain that binds and releases."""
    return Domain("attachment", attachment.desire, attachment.plan, state)


def _need_node(inputs: Inputs) -> None:
    """Refuse to plan where neither an ENI nor a pod has a link: pods would seem to lack theirs."""
    seen = inputs.kernel.linked or any(e.mac in inputs.links for e in inputs.enis)
    if inputs.attachments and inputs.enis and not seen:
        raise ObserveError(
            "the links of the node",
            f"none of {len(inputs.enis)} ENIs and {len(inputs.attachments)} pods has its link in "
            "this network namespace, so it is not the node's; in Kubernetes that takes "
            "hostNetwork: true",
        )


def keep_excluded(inputs: Inputs, before: Inputs | None) -> Inputs:
    """Have what the pass before has excluded stay while a source was never answered.

    The thread that asks for sources remembers it too, for the next process. It lets pods go first,
    so of two edits within a second it may have seen the second one alone.
    """
    egress = inputs.host.egress
    if before is None or not destinations.unknown(inputs.document.snat, egress):
        return inputs
    former = observation.settle(before.host.egress, before.document.snat).former
    return replace(inputs, host=replace(inputs.host, egress=replace(egress, former=former)))
