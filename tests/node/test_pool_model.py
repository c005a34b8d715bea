"""The pool against everything at once: pods, faults, stale and short looks, hands, restarts.

One process of two threads, no clock and no kernel of its own: the fakes have signed their targets'
contracts. The code under test is what the daemon runs, from the state directory to the calls.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from baton import Baton, Lock, Told
from builders import BEGIN_S, SUBNET, document, eni, intent, node
from fake_cloud import FakeEc2, FakeImds, follow_attachments
from fakes import (
    CrashError,
    FakeConntrack,
    FakeNetlink,
    FakeNft,
    FakeRemains,
    FakeState,
    FakeSurroundings,
    FakeSysctl,
)
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from reconciler.core.attachment import IntentState
from reconciler.errors import ReconcilerError
from reconciler.ipam.cloud import Limits
from reconciler.ipam.ec2_action import DeleteEni, DetachEni, ReleaseAddresses, ReleasePrefixes
from reconciler.ipam.pool_status import find_pool_status
from reconciler.ipam.release import unit_networks
from reconciler.node.environment import Environment
from reconciler.node.passes import LocalNode

STEPS = int(os.environ.get("MODEL_STEPS", "50"))
RUNS = int(os.environ.get("MODEL_RUNS", "30"))
"""50 runs of up to 50 steps; ``make soak``: 1,000 of up to 60, for Hypothesis ends some early."""

CODES = [
    "RequestLimitExceeded",
    "UnauthorizedOperation",
    "InsufficientFreeAddressesInSubnet",
    "InternalError",
    "AttachmentLimitExceeded",
]

TROUBLES = [
    "calm",
    "calm",
    "refused",
    "answer lost",
    "stale",
    "truncated",
    "metadata empty",
    "detached by hand",
    "restart",
    "crash in a call",
    "crash in a write",
]

LIES = {"answer lost", "stale", "crash in a call"}
"""Troubles by which the node does not hear what it was given; so is a list that hides it."""

SKEWS = [0.0, 3600.0, -3600.0]
"""What the wall clock may be off by, in seconds: a step is up to two hours either way."""

POOLS: list[dict[str, Any]] = [
    {"warmPool": {"addresses": {"warm": 2, "minimum": 6, "surplus": 2}, "cooldown": "30s"}},
    {"warmPool": {"addresses": {"warm": 0, "minimum": 0, "surplus": 0}, "cooldown": "0s"}},
    {"warmPool": {"addresses": {"warm": 0, "minimum": 0, "surplus": 0}, "cooldown": "5s"}},
    {"warmPool": {"enis": {"warm": 1}}},
    {"warmPool": {"prefixes": {"warm": 1}}, "eni": {"allocate": "prefixes"}},
    {"warmPool": {"addresses": {"warm": 5}}, "eni": {"allocate": "prefixes"}, "maxPods": 20},
    {"warmPool": {"addresses": {"warm": 3}}, "eni": {"max": 2}},
    {"warmPool": {"addresses": {"warm": 3}}, "families": ["ipv4", "ipv6"]},
    {"warmPool": {"addresses": {"warm": 2}}, "families": ["ipv6"], "egressFamilies": ["ipv4"]},
    {"warmPool": {"cooldown": "0s"}, "families": ["ipv6"], "eni": {"usePrimary": False}},
]
FAMILIES: list[dict[str, Any]] = [
    {"families": ["ipv4"], "egressFamilies": []},
    {"families": ["ipv6"], "egressFamilies": []},
    {"families": ["ipv6"], "egressFamilies": ["ipv4"]},
    {"families": ["ipv4", "ipv6"], "egressFamilies": []},
]


class Watched(FakeEc2):
    """Looks over the shoulder of whoever gives something back."""

    def __init__(self, *arguments: Any, held: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._held = held

    def _apply_one(self, action: Any) -> None:
        match action:
            case ReleaseAddresses():
                given = set(action.units)
            case ReleasePrefixes():
                given = {a for p in action.units for a in p}
            case DetachEni() | DeleteEni():
                found = [e for e in self.enis if e.eni_id == action.eni_id]
                given = {a for e in found for a in self._held() if e.holds(a)}
            case _:
                given = set()
        assert not given & self._held(), f"{action} is in use"
        super()._apply_one(action)


class PoolMachine(RuleBasedStateMachine):
    """A node, its runtime, its EC2, and whoever else has hands on them."""

    @initialize(parts=st.sampled_from(POOLS), full=st.sampled_from([0, 0, 200, 240]))
    def begin(self, parts: dict[str, Any], full: int) -> None:
        self.time = BEGIN_S
        self.skew = 0.0
        self.lies = 0
        self.parts = parts
        self.document = document(**parts)
        self.state = FakeState()
        first = eni(0, 0, primary=SUBNET[10], delete_on_termination=True)
        self.ec2 = Watched(
            [first],
            Limits(3, 10),
            SUBNET,
            {SUBNET[i] for i in range(12, 12 + full)},
            journal=self.state,
            clock=lambda: self.time,
            held=self._held,
        )
        self.imds = FakeImds(node(), self.ec2)
        self.netlink = FakeNetlink()
        self.conntrack = FakeConntrack()
        self.links: set[str] = set()
        self.number = 0
        self.running: set[int] = set()
        self.baton: Baton | None = None
        self.restart()

    def restart(self) -> None:
        """The daemon dies and another one starts; only records outlive it."""
        self.ec2.restart()
        self.lock = Lock()
        ec2 = Told(self.ec2, self._point)
        self.node = LocalNode(
            Told(self.state, self._point),
            Environment(
                imds=self.imds,
                make_ec2=lambda *_: ec2,
                netlink=self.netlink,
                nft=FakeNft(),
                sysctl=FakeSysctl({}),
                conntrack=self.conntrack,
                surroundings=FakeSurroundings(),
                remains=FakeRemains(),
                now=lambda: self.time + self.skew,
                clock=lambda: self.time,
            ),
        )

        self.node.pool.binding = self.lock  # type: ignore[assignment]

    def _point(self) -> None:
        if self.baton is not None:
            self.baton.point()

    # Few rules that do much: Hypothesis leaves some out of each run.

    @rule(start=st.integers(0, 6), end=st.integers(0, 6), silent=st.booleans())
    def change_pods(self, start: int, end: int, silent: bool) -> None:
        """Pods come and go; some end without a DEL."""
        for number in sorted(self.running)[:end]:
            self.running.discard(number)
            self.netlink.lose_namespace(f"/run/netns/pod{number}@{number}")
            if silent:
                self._kill(number)
            else:
                self.state.put(intent(number, IntentState.RELEASED))
        for _ in range(start):
            self._start()

    def _start(self) -> None:
        self.number += 1
        self.netlink.namespaces.add(f"/run/netns/pod{self.number}@{self.number}")
        self.state.put(intent(self.number))
        self.running.add(self.number)

    @rule(change=st.sampled_from(FAMILIES), really=st.sampled_from([False, False, True]))
    def edit(self, change: dict[str, Any], really: bool) -> None:
        """Somebody wants other families."""
        if really:
            self.document = document(**(self.parts | change))

    def _kill(self, number: int) -> None:
        self.state.put(replace(intent(number), netns_alive=False))
        for record in self.state.observe().attachments:
            if record.key == intent(number).key:
                self.state.put(replace(record, netns_alive=False))

    @rule(
        seconds=st.sampled_from([0.1, 5.0, 31.0, 61.0, 121.0, 700.0]),
        passes=st.sampled_from([(), ("pods",), ("kernel",), ("pods", "kernel"), ("audit",)]),
        look=st.booleans(),
        within=st.none() | st.tuples(st.integers(0, 9), st.none() | st.integers(0, 9)),
        start=st.integers(1, 6),
    )
    def turn(
        self,
        seconds: float,
        passes: tuple[str, ...],
        look: bool = True,
        within: tuple[int, int | None] | None = None,
        start: int = 1,
    ) -> None:
        """The daemon works, and time goes by; one pass may come within the other thread's."""
        if within is not None and passes:
            self.change_pods(0, len(self.running), silent=False)
            for _ in range(2):
                self._kernel_pass()
                self.time += 31.0  # longer than any of these addresses cools
            self._both(passes[0], within, start, look=look)
            passes = passes[1:]
        else:
            self._pool_pass(look=look)
        for kind in passes:
            self._kernel_pass(kind)
        self.time += seconds
        self.ec2.settle()

    @rule(skew=st.sampled_from(SKEWS))
    def step_clock(self, skew: float) -> None:
        """Somebody sets the wall clock, or a time service does; what has passed is the same."""
        self.skew = skew

    def _both(self, kind: str, within: tuple[int, int | None], start: int, *, look: bool) -> None:
        """Pods come while the one thread gives back what others have left, and the other serves.

        Args:
            kind: of the pass that serves them.
            within: at which call of the first thread it begins, and at which of its own it stops.
            start: pods that come.
            look: at EC2.
        """
        self._plug()

        def second() -> None:
            for _ in range(start):
                self._start()
            self._serve(kind)

        baton = self.baton = self.lock.baton = Baton(second, *within)
        try:
            with suppress(ReconcilerError):
                self.node.pool.run(self.document, look=look)
            baton.finish()
        except CrashError as error:
            with suppress(CrashError):
                baton.finish(died=error)
            self.restart()
        finally:
            self.baton = self.lock.baton = None
        self._plug()
        self._talk()

    def _kernel_pass(self, kind: str = "audit") -> None:
        self._plug()
        try:
            self._serve(kind)
        except CrashError:
            self.restart()
        self._talk()

    def _serve(self, kind: str) -> None:
        with suppress(ReconcilerError):
            if kind == "pods":
                self.node.pods_pass(frozenset(i.key for i in self.state.observe().intents))
            else:
                self.node.kernel_pass(self.document, audit=kind == "audit")

    def _talk(self) -> None:
        for a in self.state.observe().attachments:
            self.conntrack.addresses.update(a.addresses)

    def _pool_pass(self, *, look: bool = True) -> Any:
        self._plug()
        try:
            return self.node.pool.run(self.document, look=look)
        except ReconcilerError:
            return None
        except CrashError:
            self.restart()
            return None
        finally:
            self._plug()

    @rule(kind=st.sampled_from(TROUBLES), code=st.sampled_from(CODES), data=st.data())
    def trouble(self, kind: str, code: str, data: Any) -> None:
        self.lies += kind in LIES
        networks = sorted({n for e in self.ec2.enis for n in unit_networks(e)}, key=str)
        attached = [e.eni_id for e in self.ec2.enis if e.device_index]
        match kind:
            case "refused":
                self.ec2.fault = ("before", code)
            case "answer lost":
                self.ec2.fault = ("after", "")
            case "stale":
                self.ec2.lag = data.draw(st.integers(1, 6))
            case "truncated" if networks:
                self.ec2.hidden = set(data.draw(st.sets(st.sampled_from(networks), min_size=1)))
                self.lies += any(n.version == 6 for n in self.ec2.hidden)
            case "metadata empty":
                self.imds.empty = True
            case "detached by hand" if attached:
                self.ec2.detach_by_hand(data.draw(st.sampled_from(attached)))
            case "restart":
                self.restart()
            case "crash in a call":
                self.ec2.fault = (data.draw(st.sampled_from(["crash before", "crash after"])), "")
            case "crash in a write":
                self.state.crash_in = data.draw(st.integers(0, 5))
            case _:
                self._calm()

    @rule(what=st.sampled_from(["an ENI", "every ENI", "the type", "metadata"]), data=st.data())
    def garble(self, what: str, data: Any) -> None:
        """Something of what is answered cannot be read, until all is calm again."""
        names = [e.eni_id for e in self.ec2.enis]
        match what:
            case "an ENI":
                self.ec2.unreadable = {data.draw(st.sampled_from(names))}
            case "every ENI":
                self.ec2.unreadable = set(names)
            case "the type":
                self.ec2.knows_type = False
            case _:
                self.imds.unreadable = True

    def _calm(self) -> None:
        self.ec2.fault, self.ec2.lag, self.ec2.hidden = None, 0, set()
        self.ec2.unreadable, self.ec2.knows_type = set(), True
        self.imds.empty = self.imds.unreadable = False
        self.state.crash_in = None

    # -- what must hold at every moment ---------------------------------------------------

    @invariant()
    def no_address_is_held_twice(self) -> None:
        if not hasattr(self, "state"):
            return
        records = self.state.observe()
        held = {own: a.key for a in records.attachments for own in a.addresses}
        assert len(held) == sum(len(a.addresses) for a in records.attachments)
        # The cooldown is written before the attachment goes: a crash in between leaves both, and
        # only ever those of a pod that ended.
        deferred = {c.address for c in records.cooling}
        alive = {intent(n).key for n in self.running}
        assert not alive & {key for address, key in held.items() if address in deferred}
        leaving = [q.network for q in records.quarantined]
        assert not [a for a in held if any(a in network for network in leaving)]

    @invariant()
    def no_limit_is_exceeded(self) -> None:
        if not hasattr(self, "ec2"):
            return
        attached = [e for e in self.ec2.enis if e.device_index is not None]
        assert len(attached) <= 3
        assert all(len(e.secondaries) + len(e.prefixes) <= 9 for e in self.ec2.enis)
        # What failed to be attached is finished or deleted, and never grows without end.
        assert len(self.ec2.enis) <= 7

    def teardown(self) -> None:
        """Once faults stop, a fixed point is reached, and it is the right one."""
        if not hasattr(self, "node"):
            return
        self._calm()
        self.change_pods(0, 1, silent=False)
        self._kernel_pass()
        self.step_clock(self.skew - 7200.0)
        for _ in range(10):
            self.turn(130.0, passes=("audit",))
        assert not self.state.observe().cooling, "no clock makes a rest longer than it is"
        self.time += 3700.0  # creations count for an hour
        for _ in range(8):
            self.turn(130.0, passes=("audit",))
        before = dict(self.ec2.calls)
        outcome = self._pool_pass()
        assert [str(a) for a in outcome.plan.actions] == []
        looks = {"DescribeNetworkInterfaces"}
        spent = {k for k, v in self.ec2.calls.items() if v != before.get(k, 0)}
        assert spent <= looks
        assert not outcome.errors
        self._check_the_end(outcome)

    def _check_the_end(self, outcome: Any) -> None:
        at = find_pool_status(outcome.desired, outcome.observed)
        reasons = {r.reason for r in outcome.remaining.refusals}
        assert at.stock.held >= at.band.low or reasons
        assert not [e for e in self.ec2.enis if e.owned and e.device_index is None]
        records = self.state.observe()
        # Whoever runs has an address, unless there is none; whoever ended holds none.
        bound = {a.key for a in records.attachments}
        alive = {intent(n).key for n in self.running}
        assert bound <= alive
        missing = alive - bound
        assert not missing or reasons or at.band.binds == "maxPods"
        here = [e for e in self.ec2.enis if e.device_index is not None]
        bound_addresses = {own for a in records.attachments for own in a.vpc_addresses}
        lost = {a for a in bound_addresses if not any(e.holds(a) for e in here)}
        told = {r for r in outcome.remaining.refusals if r.reason == "AddressLost"}
        assert not lost or told
        assert not outcome.desired.ec2.disagreements
        if outcome.desired.delegates:
            # What was not told, or not truly, may bring one too many, and no more.
            count = [len(e.ipv6_prefixes) for e in at.enis if e.eni_id in at.needed]
            assert (count and all(0 < n <= 1 + self.lies for n in count)) or reasons
        for a in records.attachments:
            of_vpc = a.vpc_addresses
            assert [e for e in here if all(e.holds(own) for own in of_vpc)] or told

    # -- helpers --------------------------------------------------------------------------

    def _held(self) -> set[Any]:
        """What nobody may take away: pods' addresses, and those that rest."""
        records = self.state.observe()
        bound = {own for a in records.attachments for own in a.addresses}
        return bound | {c.address for c in records.cooling}

    def _plug(self) -> None:
        """Links come and go with attachments."""
        self.links = follow_attachments(self.netlink, self.ec2, self.links)


PoolMachine.TestCase.settings = settings(
    max_examples=RUNS,
    stateful_step_count=STEPS,
    deadline=None,
    # A failure names its steps; making them fewer takes longer than reading them.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    report_multiple_bugs=False,
)
TestPool = pytest.mark.timeout(3600)(PoolMachine.TestCase)
