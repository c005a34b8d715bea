"""A second party breaks everything on a real kernel, in bursts, while pods come and go.

One look of the product at everything puts it right, whatever it was; foreign objects stay; and
what was done to one pod pauses no connection of another. EC2 alone is not real here.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from builders import SUBNET, document, eni, intent, key, node
from conftest import namespace
from drift_injection import FOREIGN, HOST, IN_POD, POD_ON_HOST, run
from fake_cloud import FakeEc2, FakeImds
from fakes import FakeRemains, FakeState, FakeSurroundings
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from pyroute2 import IPRoute

from lab import netns
from lab.traffic import Receiver, Stream
from reconciler.core.attachment import IntentState
from reconciler.ipam.cloud import Limits
from reconciler.node import views
from reconciler.node.environment import Environment
from reconciler.node.passes import LocalNode

RUNS = int(os.environ.get("STORM_RUNS", "3"))
STEPS = int(os.environ.get("STORM_STEPS", "12"))

VPC_HOST = "10.0.9.10"
MOST_PODS = 4


class Chatter:
    """An open connection that never stops talking, and knows whether it was ever cut."""

    def __init__(self, where: str) -> None:
        self._stream = Stream(where, VPC_HOST)
        self._ended = threading.Event()
        self.rounds = 0
        self.failed = False
        self._thread = threading.Thread(target=self._talk, daemon=True)
        self._thread.start()

    def _talk(self) -> None:
        while not self._ended.wait(0.005):
            if not self._stream.exchange(f"line {self.rounds}"):
                self.failed = True
                return
            self.rounds += 1

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._stream.__exit__()


class StormMachine(RuleBasedStateMachine):
    """A node, its pods, and somebody with root."""

    @initialize()
    def begin(self) -> None:
        self.stack = ExitStack()
        self.home = self.stack.enter_context(namespace("home"))
        self.vpc = self.stack.enter_context(namespace("vpc"))
        self.enis = [eni(0), eni(1)]
        for one in self.enis:
            self._plug(one.mac, f"eth{one.device_index}")
        run(self.home, f"ip address add {self.enis[0].primary}/24 dev eth0; ip link set eth0 up")
        run(self.home, "ip route add default via 10.0.1.1 dev eth0")
        run(self.vpc, f"ip address add {VPC_HOST}/32 dev lo; sysctl -qw net.ipv4.ip_forward=1")
        run(self.vpc, "ip address add 10.0.1.1/24 dev xeth0")
        # Into one namespace both ENIs lead, as they do in one subnet.
        run(self.vpc, "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.xeth1.rp_filter=0")
        run(self.vpc, "sysctl -qw net.ipv4.conf.xeth1.proxy_arp=1")
        self.stack.enter_context(Receiver(self.vpc))
        self.state = FakeState()
        ec2 = FakeEc2(self.enis, Limits(3, 10), SUBNET, journal=self.state)
        self.stack.enter_context(netns.inside(self.home))
        self.document = document(
            warmPool={"addresses": {"warm": 1, "surplus": 30}, "cooldown": "0s"},
            pods={"repair": "all"},
        )
        self.node = LocalNode(
            self.state,
            Environment(
                imds=FakeImds(node(), ec2),
                make_ec2=lambda *_: ec2,
                surroundings=FakeSurroundings(),
                remains=FakeRemains(),
            ),
        )
        self.node.pool.run(self.document)
        self.number = 0
        self.pods: dict[int, str] = {}
        self.spaces: dict[int, ExitStack] = {}
        self.chatter: dict[int, Chatter] = {}
        self.foreign: set[int] = set()
        self.start_pods(2)

    def _plug(self, mac: str, name: str) -> None:
        with netns.inside(self.home), netns.path(self.vpc).open() as other, IPRoute() as ip:
            peer = {"ifname": f"x{name}", "net_ns_fd": other.fileno()}
            ip.link("add", ifname=name, kind="veth", address=mac, mtu=9001, peer=peer)
        run(self.vpc, f"ip link set x{name} mtu 9001 up")

    # -- what the runtime and the second party do ------------------------------------------

    @precondition(lambda self: len(self.pods) < MOST_PODS)
    @rule(count=st.integers(1, 2))
    def start_pods(self, count: int) -> None:
        fresh = range(self.number, self.number + count)
        self.number += count
        for number in fresh:
            self.spaces[number] = ExitStack()
            self.pods[number] = self.spaces[number].enter_context(namespace(f"p{number}"))
            place = netns.path(self.pods[number])
            self.state.put(
                intent(
                    number, netns=str(place), netns_inode=place.stat().st_ino, pod=f"p/{number}"
                )
            )
        self.mend()
        for number in fresh:
            address, device = self._attachment(number).addresses[0], self._device(number)
            # The VPC delivers to an ENI by its MAC; nothing answers ARP for a pod's address.
            link, mac = f"xeth{device}", self.enis[device].mac
            run(self.vpc, f"ip route add {address}/32 dev {link}")
            run(self.vpc, f"ip neighbour add {address} dev {link} lladdr {mac} nud permanent")
            self.spaces[number].enter_context(Receiver(self.pods[number]))
            self.chatter[number] = Chatter(self.pods[number])

    @precondition(lambda self: len(self.pods) > 1)
    @rule(data=st.data())
    def end_a_pod(self, data: Any) -> None:
        number = data.draw(st.sampled_from(sorted(self.pods)))
        address = self._attachment(number).addresses[0]
        self._end(number)
        self.state.put(intent(number, IntentState.RELEASED))
        self.mend()
        assert self._attachment(number) is None
        run(self.vpc, f"ip route delete {address}/32")

    @rule(data=st.data())
    def break_one_pod(self, data: Any) -> None:
        """Whatever is done to one, all others talk on, before, while and after it is mended."""
        number = data.draw(st.sampled_from(sorted(self.pods)))
        burst = data.draw(
            st.lists(st.sampled_from([*POD_ON_HOST, *IN_POD]), min_size=1, max_size=5)
        )
        attachment = self._attachment(number)
        words = {"address": attachment.addresses[0], "veth": attachment.veth}
        self.chatter.pop(number).close()
        others = {n: c.rounds for n, c in self.chatter.items()}
        for command in burst:
            where = self.pods[number] if command in IN_POD else self.home
            run(where, command.format(**words))
        self.mend()
        for other, rounds in others.items():
            talk = self.chatter[other]
            while talk.rounds <= rounds + 1 and not talk.failed:
                talk._thread.join(0.005)
            assert not talk.failed, f"{burst} on pod {number} cut pod {other}"
        self.chatter[number] = Chatter(self.pods[number])

    @rule(burst=st.lists(st.sampled_from(HOST), min_size=1, max_size=6))
    def break_the_host(self, burst: list[str]) -> None:
        for command in burst:
            run(self.home, command.format())
        self.mend()
        for number in list(self.chatter):
            self.chatter.pop(number).close()
            self.chatter[number] = Chatter(self.pods[number])

    @rule(which=st.integers(0, len(FOREIGN) - 1))
    def put_something_foreign(self, which: int) -> None:
        if which not in self.foreign and run(self.home, FOREIGN[which][0]):
            self.foreign.add(which)

    # -- what the product does about it ----------------------------------------------------

    def mend(self) -> None:
        """One look at everything, after which nothing is left to do."""
        result = self.node.kernel_pass(self.document, audit=True)
        left = {n: [str(e) for e in o.errors] for n, o in result.outcomes.items() if not o.settled}
        assert left == {}
        outcomes = views.diff(self.node, self.document)
        assert [str(a) for o in outcomes.values() for a in o.plan.actions] == []
        assert {a.key for a in result.done.values()} == {key(n) for n in self.pods}

    def teardown(self) -> None:
        if not hasattr(self, "stack"):
            return
        try:
            if hasattr(self, "chatter"):
                self.mend()
                for which in sorted(self.foreign):
                    # A flush of the ruleset takes their tables as well.
                    if "nft" not in FOREIGN[which][0]:
                        assert run(self.home, FOREIGN[which][1]), f"{FOREIGN[which][0]} is gone"
        finally:
            for number in list(getattr(self, "pods", {})):
                self._end(number)
            self.stack.close()

    # -- helpers ---------------------------------------------------------------------------

    def _end(self, number: int) -> None:
        if number in self.chatter:
            self.chatter.pop(number).close()
        self.spaces.pop(number).close()
        del self.pods[number]

    def _attachment(self, number: int) -> Any:
        records = self.state.observe().attachments
        return next((a for a in records if a.key == key(number)), None)

    def _device(self, number: int) -> int:
        return next(
            e.device_index or 0 for e in self.enis if e.eni_id == self._attachment(number).eni_id
        )


StormMachine.TestCase.settings = settings(
    max_examples=RUNS,
    stateful_step_count=STEPS,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    report_multiple_bugs=False,
)


@pytest.fixture(autouse=True)
def own_namespace() -> Iterator[None]:
    """Leave the thread where it was, also if a step was interrupted."""
    before = Path("/proc/thread-self/ns/net").stat().st_ino
    yield
    assert Path("/proc/thread-self/ns/net").stat().st_ino == before


TestStorm = pytest.mark.kernel(pytest.mark.timeout(3600)(StormMachine.TestCase))
