"""A node whose every effect can be the last of its process, and whose every look can be late.

The targets are the fakes that have signed the real ones' contracts. Each effect of theirs, a
record, a file, a netlink message, a transaction, an EC2 call, passes ``Fate`` before and after it
happens; each look passes it as well. An action that the real target carries out by two messages is
two effects. What outlives the process outlives it here: the disk, the kernel, EC2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from math import inf
from typing import Any

from builders import SUBNET, document, eni, intent, node
from fake_cloud import FakeEc2, FakeImds, follow_attachments
from fakes import (
    CrashError,
    FakeConntrack,
    FakeDirectories,
    FakeNetlink,
    FakeNft,
    FakeRemains,
    FakeState,
    FakeSurroundings,
    FakeSysctl,
)

from reconciler.core.attachment import AttachmentKey, IntentState, alias_key, netns_identity
from reconciler.core.facts import ForwardChain, Installation
from reconciler.diagnostics.foreign import Foreign
from reconciler.diagnostics.stock_objects import (
    Allocation,
    PodEnd,
    Sighting,
    StockRoute,
    StockRule,
)
from reconciler.domains.address import LinkAddress
from reconciler.domains.link import PodLink, Veth
from reconciler.domains.nat_objects import NftElement
from reconciler.domains.route import Route
from reconciler.engine.plan import Change, Verb
from reconciler.errors import Issue, ReconcilerError
from reconciler.ipam.cloud import Limits
from reconciler.node import views
from reconciler.node.environment import Environment
from reconciler.node.passes import LocalNode

CIDR = next(SUBNET.subnets(new_prefix=26))
"""Small, because the fake counts what is free with each look."""

LATE_S = 30.0
"""Seconds that an observation of EC2 may be late.

More than it ever is, less than answers are trusted.
"""

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

AFTER = ("after", "down", "unseen")
Point = tuple[str, int]
""""before" or "after" an effect, "look" or "pass", and which one, from 0; or all "events".
"down" is "after", and nobody starts it before something else has happened; "unseen" is "after" an
EC2 call of which the looks that follow know nothing for a while."""


class Fate:
    """Counts what happens, and strikes at one point.

    Args:
        strike: where; None lets everything happen.

    Attributes:
        counts: how many effects, looks and passes there were.
        log: the effects, in order.
        kinds: how often which kind of effect was had.
        deaths: where a death leaves a world that no other death leaves. Dying after an effect, or
            before the next one of the same pass, is the same to whoever starts afterwards.
        late: looks that would show something else if they were late; only if nothing strikes.
    """

    def __init__(self, strike: Point | None = None) -> None:
        self.strike = strike
        self.counts = {"effect": 0, "look": 0, "pass": 0}
        self.log: list[str] = []
        self.kinds: Counter[str] = Counter()
        self.deaths: list[Point] = []
        self.late: list[Point] = []
        self._moment = 0
        self._last = -1

    @contextmanager
    def effect(self, what: str, kind: str = "") -> Iterator[None]:
        """Surround an effect.

        Args:
            what: the action, as an operator would type it.
            kind: its verb and its object's noun; by default the same.
        """
        number = self._count("effect")
        self.log.append(what)
        self.kinds[kind or what] += 1
        if self._last != self._moment:
            self.deaths.append(("before", number))
        self.deaths.append(("after", number))
        self._last = self._moment
        if self.strike == ("before", number):
            raise CrashError
        yield
        if self.strike is not None and self.strike in {(w, number) for w in AFTER}:
            raise CrashError

    def look(self, now: Callable[[], Any], before: Callable[[], Any]) -> Any:
        """Look at what is, or at what was before the last effect on it."""
        number = self._count("look")
        if self.strike == ("look", number):
            return before()
        if self.strike is None and _answer(now) != _answer(before):
            self.late.append(("look", number))
        return now()

    def move_on(self) -> None:
        """Another pass begins, or the world has changed by itself."""
        self._moment += 1

    def is_lost(self) -> bool:
        """Whether the event that would bring this pass about gets lost."""
        return self.strike == ("pass", self._count("pass"))

    @property
    def is_deaf(self) -> bool:
        """Whether every event gets lost."""
        return self.strike is not None and self.strike[0] == "events"

    def _count(self, what: str) -> int:
        self.counts[what] += 1
        return self.counts[what] - 1


def _answer(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except ReconcilerError as error:
        return type(error)


class Doomed:
    """A fake whose effects and looks pass ``Fate``; everything else is the fake's own.

    Args:
        fake: what keeps the world.
        fate: what happens to whoever asks.
        whole: whether actions happen together, or one by one.
    """

    def __init__(self, fake: Any, fate: Callable[[], Fate], *, whole: bool = False) -> None:
        self._fake = fake
        self._fate = fate
        self._whole = whole
        self._before = self._copy()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fake, name)

    def apply(self, actions: Sequence[Any]) -> tuple[Any, ...]:
        failures: tuple[Any, ...] = ()
        for group in [actions] if self._whole else [[a] for a in actions]:
            with self.effect(str(group[0]), _kind(group[0])):
                failures += self._fake.apply(group)
                self._fate().kinds.update(_kind(a) for a in group[1:])
        return failures

    @contextmanager
    def effect(self, what: str, kind: str = "") -> Iterator[None]:
        """Surround an effect, and remember how it was before."""
        with self._fate().effect(what, kind):
            self._before = self._copy()
            yield

    def look(self, ask: Callable[..., Any], *arguments: Any) -> Any:
        """Ask the fake, or what it was before the last effect."""
        return self._fate().look(lambda: ask(*arguments), lambda: self._then(ask, *arguments))

    def _then(self, ask: Callable[..., Any], *arguments: Any) -> Any:
        now = self._copy()
        vars(self._fake).update(self._before)
        try:
            return ask(*arguments)
        finally:
            vars(self._fake).update(now)

    def observe(self, *arguments: Any) -> Any:
        return self.look(self._fake.observe, *arguments)

    def observe_at(self, *arguments: Any) -> Any:
        return self.look(self._fake.observe_at, *arguments)

    def _copy(self) -> dict[str, Any]:
        return {
            k: copy(v) if isinstance(v, dict | set | list) else v
            for k, v in vars(self._fake).items()
        }


def _namespace(number: int) -> str:
    """What a pod's namespace is known by; that of number 0 has no known inode."""
    one = intent(number)
    return netns_identity(one.netns, one.netns_inode)


def _kind(action: Any) -> str:
    return f"{action.verb} {action.kind}"


class DoomedState(Doomed):
    """Records: never stale, because ours have one writer, and nobody replaces an unread intent."""

    def observe(self, *arguments: Any) -> Any:
        return self._fake.observe(*arguments)

    def observe_at(self, *arguments: Any) -> Any:
        return self._fake.observe_at(*arguments)

    def record(self, creation: Any) -> None:
        with self.effect(f"record {creation.token}", "record a creation"):
            self._fake.record(creation)

    def forget(self, creation: Any) -> None:
        with self.effect(f"forget {creation.token}", "forget a creation"):
            self._fake.forget(creation)

    def remember(self, *look: Any) -> None:
        with self.effect("remember the look"):
            self._fake.remember(*look)


class DoomedNetlink(Doomed):
    """The kernel, message by message."""

    def apply(self, actions: Sequence[Any]) -> tuple[Any, ...]:
        failures: tuple[Any, ...] = ()
        for action in actions:
            for half in _halves(action):
                if refused := super().apply([half]):
                    # Under the name of the whole: nothing else would match what is planned.
                    failures += self._fake.apply([action]) or refused
                    break
        return failures

    def links(self) -> Any:
        return self.look(self._fake.links)

    def pod_addresses(self) -> Any:
        return self.look(self._fake.pod_addresses)


def _halves(action: Any) -> list[Any]:
    """Return the messages that an action is, where it is more than one (netlink_write.py)."""
    match action:
        case Change(verb=Verb.CREATE, object=Veth() as veth):
            # The kernel takes no alias when it makes a link.
            return [
                replace(action, object=replace(veth, alias="", up=False)),
                replace(action, verb=Verb.UPDATE, was=veth),
            ]
        case Change(verb=Verb.UPDATE, object=LinkAddress()):
            return [replace(action, verb=v) for v in (Verb.DELETE, Verb.CREATE)]
        case _:
            return [action]


class Kernel(FakeNetlink):
    """Remembers which running pod's link was taken away.

    Attributes:
        running: attachments of pods that run.
        cut: those of them that lost their link, each as often as it happened.
    """

    def __init__(self) -> None:
        super().__init__()
        self.running: set[AttachmentKey] = set()
        self.cut: list[AttachmentKey] = []

    def _remove(self, obj: Any) -> None:
        there = self._objects.get((type(obj), obj.key))
        if isinstance(there, Veth) and (key := alias_key(there.alias)) in self.running:
            self.cut.append(key)
        super()._remove(obj)


class DoomedEc2(FakeEc2):
    """EC2, of which an action may be several calls: each of them is an effect."""

    def __init__(self, *arguments: Any, fate: Callable[[], Fate], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._fate = fate
        self._times: list[float] = []

    @contextmanager
    def _call(self, name: str) -> Iterator[None]:
        with self._fate().effect(name), super()._call(name):
            yield

    def observe(self, desired: Iterable[Any] = ()) -> Any:
        desired = list(desired)
        return self._fate().look(
            lambda: self._shown(desired, self.lag), lambda: self._shown(desired, self.lag or 1)
        )

    def _shown(self, desired: Iterable[Any], lag: int) -> Any:
        always, self.lag = self.lag, min(lag, self.recent())
        try:
            return super().observe(desired)
        finally:
            self.lag = always

    @property
    def made(self) -> int:
        """How many ENIs were ever created."""
        return self._made

    def recent(self) -> int:
        """Count the calls of which a look may know nothing yet."""
        now = self._clock()
        self._times += [now] * (len(self._history) - len(self._times))
        return sum(now - at <= LATE_S for at in self._times)


class DoomedImds(FakeImds):
    """Instance metadata, which may be late as well."""

    def __init__(self, *arguments: Any, fate: Callable[[], Fate]) -> None:
        super().__init__(*arguments)
        self._fate = fate

    def interfaces(self) -> frozenset[Any]:
        return self._fate().look(super().interfaces, self._late)

    def _late(self) -> frozenset[Any]:
        now = self._ec2.enis
        self._ec2.enis = self._ec2._history[-1] if self._ec2.recent() else now
        try:
            return super().interfaces()
        finally:
            self._ec2.enis = now


class DoomedRemains(Doomed):
    """What the stock plugin has left."""

    def glance(self) -> Any:
        return self.look(self._fake.glance)

    def find_ends(self, veths: Iterable[str]) -> Any:
        return self.look(self._fake.find_ends, list(veths))


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
    running: set[int] = field(default_factory=set)
    now: float = 1000.0
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
        self.node = LocalNode(self.state, self.environment)

    # -- what happens to the node ----------------------------------------------------------

    def edit(self, **parts: Any) -> None:
        self.document = document(**(self.parts | parts))

    def begin_pod(self, number: int) -> None:
        self.running.add(number)
        self.kernel.running.add(intent(number).key)
        self.kernel.namespaces.add(_namespace(number))
        self.disk.put(intent(number))

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
        held = {own: a.key for a in records.attachments for own in a.addresses}
        assert len(held) == sum(len(a.addresses) for a in records.attachments)
        alive = {intent(n).key for n in self.running}
        deferred = {c.address for c in records.cooling}
        assert not alive & {key for address, key in held.items() if address in deferred}
        assert (
            len([e for e in self.ec2.enis if e.device_index is not None]) <= self.ec2.limits.enis
        )
        assert self.lost() == set(), "in use, and given back"
        assert self._held <= held.keys() | deferred, "given back without a rest"
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
