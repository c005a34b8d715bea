"""A node whose every effect can be the last of its process, and whose every look can be late.

The targets are the fakes that have signed the real ones' contracts. Each effect of theirs, a
record, a file, a netlink message, a transaction, an EC2 call, passes ``Fate`` before and after it
happens; each look passes it as well. An action that the real target carries out by two messages is
two effects. What outlives the process outlives it here: the disk, the kernel, EC2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from math import inf
from typing import Any

from builders import BEGIN_S, SUBNET, document, eni, intent, node
from crash_fakes import (
    LATE_S,
    Doomed,
    DoomedEc2,
    DoomedImds,
    DoomedNetlink,
    DoomedRemains,
    DoomedState,
    Fate,
    Kernel,
    Point,
)
from fake_cloud import follow_attachments
from fake_directories import FakeDirectories
from fakes import (
    CrashError,
    FakeConntrack,
    FakeNft,
    FakeRemains,
    FakeState,
    FakeSurroundings,
    FakeSysctl,
)

from reconciler.core.attachment import IntentState, netns_identity
from reconciler.core.facts import ForwardChain, Installation
from reconciler.diagnostics.foreign import Foreign
from reconciler.diagnostics.stock_objects import (
    Allocation,
    PodEnd,
    Sighting,
    StockRoute,
    StockRule,
)
from reconciler.domains.link import PodLink, Veth
from reconciler.domains.nat_objects import NftElement
from reconciler.domains.route import Route
from reconciler.errors import Issue, ReconcilerError
from reconciler.ipam.cloud import Limits
from reconciler.node import views
from reconciler.node.environment import Environment
from reconciler.node.passes import LocalNode
from reconciler.targets.netlink.removals import Removals

CIDR = next(SUBNET.subnets(new_prefix=26))
"""Small, because the fake counts what is free with each look."""

SETTINGS = {"net/ipv4/ip_forward": "0"} | {
    f"net/ipv4/conf/eth{n}/rp_filter": "1" for n in range(3)
}

PLACES = Installation(
    "/etc/cni/net.d", "/opt/cni/bin", "/usr/lib/cni", "/run/node-network", "/etc/tmpfiles.d"
)
PORTMAP = {"/opt/cni/bin/portmap": ("portmap", "0755")}
DROPPING = ForwardChain("ip", "filter", "FORWARD", drops=True)

STOCK_POD = 7
"""Number of the pod that the stock plugin has started."""

STOCK_VETH = "eni0123456789a"
STOCK_NETWORK = ip_network("10.0.1.13/32")


def _namespace(number: int) -> str:
    """What a pod's namespace is known by; that of number 0 has no known inode."""
    one = intent(number)
    return netns_identity(one.netns, one.netns_inode)


@dataclass
class Life:
    """A node from its first start to its last, whatever dies in between.

    Attributes:
        stock: the stock plugin has had the node, and has started a pod.
        running: numbers of the pods that run.
        deaths: how often the process died.
        look: events have EC2 looked at, whether something follows from the last observation or
            not.
    """

    strike: Point | None = None
    parts: dict[str, Any] = field(default_factory=dict)
    stock: bool = False
    apart: bool = False
    running: set[int] = field(default_factory=set)
    now: float = BEGIN_S
    skew: float = 0.0
    look: bool = True
    deaths: int = 0
    _held: frozenset[Any] = frozenset()
    _bound: frozenset[str] = frozenset()
    _ending: list[int] = field(default_factory=list)
    _is_down: bool = False
    _seen_at: float = inf

    def __post_init__(self) -> None:
        self.fate = Fate(self.strike)
        self.document = document(**self.parts)
        self.disk = FakeState()
        self.state = DoomedState(self.disk, self._fate)
        self.ec2 = DoomedEc2(
            [self._primary()],
            Limits(3, 6),
            CIDR,
            journal=self.state,
            clock=lambda: self.now,
            fate=self._fate,
        )
        self.kernel = Kernel()
        self.nft = FakeNft()
        self.conntrack = FakeConntrack()
        self.imds = DoomedImds(node(), self.ec2, fate=self._fate)
        self.remains = FakeRemains()
        if self.stock:
            self._inherit()
        others = Doomed(FakeSurroundings(Foreign(forward=(DROPPING,))), self._fate)
        others.forward = others  # type: ignore[attr-defined]
        self.environment = Environment(
            imds=self.imds,
            make_ec2=lambda *_: self.ec2,
            netlink=DoomedNetlink(self.kernel, self._fate),
            nft=Doomed(self.nft, self._fate, whole=True),
            sysctl=Doomed(FakeSysctl(dict(SETTINGS)), self._fate),
            conntrack=Doomed(self.conntrack, self._fate, whole=True),
            surroundings=others,
            remains=DoomedRemains(self.remains, self._fate),
            files=Doomed(FakeDirectories(PLACES, dict(PORTMAP)), self._fate),
            now=lambda: self.now + self.skew,
            clock=lambda: self.now,
        )
        self._links: set[str] = set()
        self.start()

    def _primary(self) -> Any:
        first = eni(0, 0, primary=SUBNET[10], delete_on_termination=True)
        if not self.stock:
            return first
        tags = ("node.k8s.amazonaws.com/instance_id",)
        addresses = tuple(SUBNET[n] for n in range(12, 15))
        return replace(first, secondaries=addresses, stock=True, stock_tags=tags)

    def _inherit(self) -> None:
        """What the stock plugin leaves of one pod: its link, route, rules, chain, and an entry."""
        one = intent(STOCK_POD)
        netns, address = f"{one.netns}@{one.netns_inode}", STOCK_NETWORK.network_address
        self.kernel.namespaces.add(netns)
        self.kernel.replace(Veth(STOCK_VETH, "02:11::1", 9001, ""))
        self.kernel.replace(PodLink(netns, "eth0", "02:11::2", 9001, True, STOCK_VETH))
        self.remains.ends[STOCK_VETH] = PodEnd(netns, "eth0", "02:11::1", "02:11::2")
        self.remains.sighting = Sighting(
            rules=(StockRule(512, 254, destination=STOCK_NETWORK),),
            routes=(StockRoute(254, STOCK_NETWORK, STOCK_VETH),),
            saved={("nft", "nat"): (":AWS-SNAT-CHAIN-0 - [0:0]",)},
            allocations={address: Allocation(one.key, address, "default/web")},
        )
        self.running.add(STOCK_POD)
        self.kernel.running.add(one.key)

    def _fate(self) -> Fate:
        return self.fate

    def start(self) -> None:
        """Another process; all it has is what outlived the one before."""
        self.ec2.restart()
        self.disk.restart()
        self.kernel.removals = Removals(self._delete_link)
        self.kernel.removals.apart = self.apart
        self.node = LocalNode(self.state, self.environment)

    def _delete_link(self, index: int) -> None:
        with self.fate.effect("delete a link"):
            self.kernel._delete(index)

    # -- what happens to the node ----------------------------------------------------------

    def edit(self, **parts: Any) -> None:
        self.document = document(**(self.parts | parts))

    def begin_pod(self, number: int, pod: str = "") -> None:
        self.running.add(number)
        self.kernel.running.add(intent(number).key)
        self.kernel.namespaces.add(_namespace(number))
        self.disk.put(intent(number, pod=pod))

    def end_pod(self, number: int, *, silently: bool = False) -> None:
        """End a pod, as runtimes do: its namespace goes after the DEL, or without one."""
        self.running.discard(number)
        self.kernel.running.discard(intent(number).key)
        if not silently:
            self.disk.put(intent(number, IntentState.RELEASED))
            self._ending.append(number)
            return
        self._lose_namespace(number)
        self.disk.put(replace(intent(number), netns_alive=False))

    def _lose_namespace(self, number: int) -> None:
        self.kernel.lose_namespace(_namespace(number))
        if self.stock and number == STOCK_POD:
            self.remains.sighting = replace(self.remains.sighting, routes=())
        for record in self.disk.observe().attachments:
            if record.key == intent(number).key:
                self.disk.put(replace(record, netns_alive=False))

    def lose_records(self) -> None:
        """Somebody has emptied the directory of attachments."""
        for record in self.disk.observe().attachments:
            del self.disk._records[record.kind, record.key]
        self._held = self._bound = frozenset()

    # -- what the daemon does about it -----------------------------------------------------

    def work(self, seconds: float = 3.0) -> None:
        """The passes that events bring about, each of which may be the last."""
        if self.fate.is_deaf:
            self.tick(seconds)
            return
        keys = frozenset(i.key for i in self.disk.observe().intents)
        self._pass(lambda: self.node.pods_pass(keys))
        self._try(self.kernel.removals.turn)
        self._pass(lambda: self.node.pool.run(self.document, look=self.look))
        self._pass(lambda: self._full_pass(audit=False))
        self._let_pass(seconds)

    def _let_pass(self, seconds: float) -> None:
        self._is_down = False
        while self._ending:
            self._lose_namespace(self._ending.pop())
        records = self.disk.observe()
        dead = {a.key for a in records.attachments if a.netns not in self.kernel.namespaces}
        for record in (*records.attachments, *records.intents):
            # A late look may have a pod taken over whose namespace has just gone.
            if record.key in dead and record.netns_alive:
                self.disk.put(replace(record, netns_alive=False))
        self.now += seconds
        if self.now >= self._seen_at:
            self.ec2.lag, self._seen_at = 0, inf
        self.ec2.settle()

    def _full_pass(self, *, audit: bool) -> None:
        """All that the daemon does of a full pass, in its order."""
        result = self.node.kernel_pass(self.document, audit=audit)
        self.node.after.run(result)

    def tick(self, seconds: float) -> None:
        """What the clock brings about, without any event."""
        self._try(lambda: self.node.pool.run(self.document))
        self._try(lambda: self._full_pass(audit=True))
        self._try(self.kernel.removals.turn)
        self._let_pass(seconds)

    def _pass(self, run: Callable[[], Any]) -> None:
        if not self.fate.is_lost():
            self._try(run)

    def _try(self, run: Callable[[], Any]) -> None:
        if self._is_down:
            return
        self._plug()
        self.fate.move_on()
        try:
            run()
        except ReconcilerError:
            pass  # the next one looks again
        except CrashError:
            self.deaths += 1
            self._is_down = self.strike is not None and self.strike[0] == "down"
            if self.strike is not None and self.strike[0] == "unseen":
                self.ec2.lag, self._seen_at = 1, self.now + LATE_S
            self.start()
        self._plug()
        for record in self.disk.observe().living:
            self.conntrack.addresses.update(record.addresses)  # they talk
        self.check()

    def _plug(self) -> None:
        """Links come and go with attachments."""
        self._links = follow_attachments(self.kernel, self.ec2, self._links)

    # -- what must be so -------------------------------------------------------------------

    def check(self) -> None:
        """At every moment: nothing is held twice, nothing in use rests, no limit is exceeded.

        And what a pod has had rests, for the clock stands still while a pass runs, and its link is
        gone before its record is.
        """
        records = self.disk.observe()
        held: dict[Any, Any] = {own: a.key for a in records.attachments for own in a.addresses}
        assert len(held) == sum(len(a.addresses) for a in records.attachments)
        dedicated = {own: i.key for i in records.identities for own in i.addresses}
        assert held.keys().isdisjoint(dedicated), "a pod's, and a namespace's"
        held |= dedicated
        alive = {intent(n).key for n in self.running}
        deferred = {c.address for c in records.cooling}
        assert not alive & {key for address, key in held.items() if address in deferred}
        assert (
            len([e for e in self.ec2.enis if e.device_index is not None]) <= self.ec2.limits.enis
        )
        assert self.lost() == set(), "in use, and given back"
        assert self._held <= held.keys() | deferred, "given back without a rest"
        elements = [o for o in self.nft.observe() if isinstance(o, NftElement)]
        named = {e.value for e in elements if e.set == "dedicated_ipv4"}
        assert named <= dedicated.keys() | deferred, "in the ruleset, and held by no record"
        links = {o.name for o in self.kernel._objects.values() if isinstance(o, Veth)}
        bound = {a.veth for a in records.attachments}
        assert not links & (self._bound - bound), "forgotten before its link was gone"
        self._held, self._bound = frozenset(held), frozenset(bound)
        if self.stock and STOCK_POD in self.running:
            ways = {o.destination for o in self.kernel._objects.values() if isinstance(o, Route)}
            ways |= {r.destination for r in self.remains.sighting.routes}
            assert STOCK_NETWORK in ways, "no way to the stock plugin's pod"

    def lost(self) -> set[Any]:
        """Addresses that pods use and EC2 does not assign to an ENI of this node."""
        here = [e for e in self.ec2.enis if e.device_index is not None]
        used = {a for r in self.disk.observe().living for a in r.vpc_addresses}
        return {a for a in used if not any(e.holds(a) for e in here)}

    def check_end(self) -> None:
        """Once it is calm: whoever runs has everything, nobody else has anything."""
        records = self.disk.observe()
        keys = {intent(n).key for n in self.running}
        assert {a.key for a in records.attachments} == keys, "lost, or not released"
        assert {i.key for i in records.intents} == keys
        assert (records.cooling, records.quarantined) == ((), ())
        mine = {a for record in records.attachments for a in record.vpc_addresses}
        assert self.lost() == set(), "EC2 does not assign them"
        here = list(self.kernel._objects.values())
        assert len([o for o in here if isinstance(o, Veth)]) == len(keys)
        assert len([o for o in here if isinstance(o, PodLink)]) == len(keys)
        elements = [o for o in self.nft.observe() if isinstance(o, NftElement)]
        assert {e.first for e in elements if e.set in ("pods_ipv4", "pods_ipv6")} == mine
        assert [e for e in self.ec2.enis if e.device_index is None] == [], "a leaked ENI"
        assert [c for c in records.creations if not c.done] == []
        assert list(map(str, self._audit())) == []

    def _audit(self) -> tuple[Issue, ...]:
        before, self.fate = self.fate, Fate()
        try:
            return views.audit(self.node, self.document)
        finally:
            self.fate = before
