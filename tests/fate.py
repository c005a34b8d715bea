"""A node whose every effect can be the last of its process, and whose every look can be late.

The targets are the fakes that have signed the real ones' contracts. Each effect of theirs, a
record, a netlink change, a transaction, an EC2 call, passes ``Fate`` before and after it happens;
each look passes it as well. What outlives the process outlives it here: the disk, the kernel, EC2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

from builders import SUBNET, document, eni, intent, node
from fake_cloud import FakeEc2, FakeImds
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

from reconciler.core.attachment import IntentState
from reconciler.core.cloud import Limits
from reconciler.core.finding import Finding
from reconciler.domains.link import PodLink, Veth
from reconciler.domains.nat import NftElement
from reconciler.errors import ReconcilerError
from reconciler.node import LocalNode, World

CIDR = next(SUBNET.subnets(new_prefix=26))
"""Small, because the fake counts what is free with each look."""

LATE_S = 30.0
"""Seconds that a look at EC2 may be late: more than it ever is, less than answers are trusted."""

SETTINGS = {"net/ipv4/ip_forward": "0"} | {
    f"net/ipv4/conf/eth{n}/rp_filter": "1" for n in range(3)
}

Point = tuple[str, int]
""""before" or "after" an effect, "look" or "pass", and which one, from 0."""


class Fate:
    """Counts what happens, and strikes at one point.

    Args:
        strike: where; None lets everything happen.
    """

    def __init__(self, strike: Point | None = None) -> None:
        self.strike = strike
        self.counts = {"effect": 0, "look": 0, "pass": 0}
        self.log: list[str] = []

    @contextmanager
    def effect(self, what: str) -> Iterator[None]:
        """Surround an effect."""
        number = self._count("effect")
        self.log.append(what)
        if self.strike == ("before", number):
            raise CrashError
        yield
        if self.strike == ("after", number):
            raise CrashError

    def is_stale(self) -> bool:
        """Whether this look shows what was before the last effect on what it looks at."""
        return self.strike == ("look", self._count("look"))

    def is_lost(self) -> bool:
        """Whether the event that would bring this pass about gets lost."""
        return self.strike == ("pass", self._count("pass"))

    def _count(self, what: str) -> int:
        self.counts[what] += 1
        return self.counts[what] - 1


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
            with self.effect(str(group[0])):
                failures += self._fake.apply(group)
        return failures

    @contextmanager
    def effect(self, what: str) -> Iterator[None]:
        """Surround an effect, and remember how it was before."""
        with self._fate().effect(what):
            self._before = self._copy()
            yield

    def look(self, ask: Callable[..., Any], *arguments: Any) -> Any:
        """Ask the fake, or what it was before the last effect."""
        if not self._fate().is_stale():
            return ask(*arguments)
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
            k: copy(v) for k, v in vars(self._fake).items() if isinstance(v, dict | set | list)
        }


class DoomedState(Doomed):
    """Records: never stale, because their directory has one writer and no cache."""

    def observe(self, *arguments: Any) -> Any:
        return self._fake.observe(*arguments)

    def observe_at(self, *arguments: Any) -> Any:
        return self._fake.observe_at(*arguments)

    def record(self, creation: Any) -> None:
        with self.effect(f"record {creation.token}"):
            self._fake.record(creation)

    def forget(self, creation: Any) -> None:
        with self.effect(f"forget {creation.token}"):
            self._fake.forget(creation)

    def remember(self, *look: Any) -> None:
        with self.effect("remember the look"):
            self._fake.remember(*look)


class DoomedNetlink(Doomed):
    def links(self) -> Any:
        return self.look(self._fake.links)

    def pod_addresses(self) -> Any:
        return self.look(self._fake.pod_addresses)


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
        now = self._clock()
        self._times += [now] * (len(self._history) - len(self._times))
        recent = sum(now - at <= LATE_S for at in self._times)
        always, self.lag = self.lag, min(self.lag or int(self._fate().is_stale()), recent)
        try:
            return super().observe(desired)
        finally:
            self.lag = always


@dataclass
class Life:
    """A node from its first start to its last, whatever dies in between.

    Attributes:
        running: numbers of the pods that run.
        deaths: how often the process died.
    """

    strike: Point | None = None
    parts: dict[str, Any] = field(default_factory=dict)
    running: set[int] = field(default_factory=set)
    now: float = 1000.0
    deaths: int = 0

    def __post_init__(self) -> None:
        self.fate = Fate(self.strike)
        self.document = document(**self.parts)
        self.disk = FakeState()
        self.state = DoomedState(self.disk, self._fate)
        self.ec2 = DoomedEc2(
            [eni(0, 0, primary=SUBNET[10], delete_on_termination=True)],
            Limits(3, 6),
            CIDR,
            journal=self.state,
            clock=lambda: self.now,
            fate=self._fate,
        )
        self.kernel = FakeNetlink()
        self.nft = FakeNft()
        self.conntrack = FakeConntrack()
        self.imds = FakeImds(node(), self.ec2)
        self.world = World(
            imds=self.imds,
            make_ec2=lambda *_: self.ec2,
            netlink=DoomedNetlink(self.kernel, self._fate),
            nft=Doomed(self.nft, self._fate, whole=True),
            sysctl=Doomed(FakeSysctl(dict(SETTINGS)), self._fate),
            conntrack=Doomed(self.conntrack, self._fate, whole=True),
            surroundings=FakeSurroundings(),
            remains=FakeRemains(),
            now=lambda: self.now,
        )
        self._links: set[str] = set()
        self.start()

    def _fate(self) -> Fate:
        return self.fate

    def start(self) -> None:
        """Another process; all it has is what outlived the one before."""
        self.ec2.restart()
        self.node = LocalNode(self.state, self.world)

    # -- what happens to the node ----------------------------------------------------------

    def edit(self, **parts: Any) -> None:
        self.document = document(**(self.parts | parts))

    def begin_pod(self, number: int) -> None:
        self.running.add(number)
        self.kernel.namespaces.add(f"/run/netns/pod{number}@1")
        self.disk.put(intent(number))

    def end_pod(self, number: int, *, silently: bool = False) -> None:
        self.running.discard(number)
        self.kernel.lose_namespace(f"/run/netns/pod{number}@1")
        if not silently:
            self.disk.put(intent(number, IntentState.RELEASED))
            return
        self.disk.put(replace(intent(number), netns_alive=False))
        for record in self.disk.observe().attachments:
            if record.key == intent(number).key:
                self.disk.put(replace(record, netns_alive=False))

    def lose_records(self) -> None:
        """Somebody has emptied the directory of attachments."""
        for record in self.disk.observe().attachments:
            del self.disk._records[record.kind, record.key]

    # -- what the daemon does about it -----------------------------------------------------

    def work(self, seconds: float = 3.0) -> None:
        """The passes that events bring about, each of which may be the last."""
        keys = frozenset(i.key for i in self.disk.observe().intents)
        self._pass(lambda: self.node.pods_pass(keys))
        self._pass(lambda: self.node.pool_pass(self.document))
        self._pass(lambda: self.node.kernel_pass(self.document, audit=False))
        self.now += seconds
        self.ec2.settle()

    def tick(self, seconds: float) -> None:
        """What the clock brings about, without any event."""
        for turn in (self.node.pool_pass, self.node.kernel_pass):
            self._try(lambda turn=turn: turn(self.document))  # type: ignore[misc]
        self.now += seconds
        self.ec2.settle()

    def _pass(self, run: Callable[[], Any]) -> None:
        if not self.fate.is_lost():
            self._try(run)

    def _try(self, run: Callable[[], Any]) -> None:
        self._plug()
        try:
            run()
        except ReconcilerError:
            pass  # the next one looks again
        except CrashError:
            self.deaths += 1
            self.start()
        self._plug()
        self.check()

    def _plug(self) -> None:
        """Links come and go with attachments."""
        attached = {e.mac: e for e in self.ec2.enis if e.status in {"attached", "detaching"}}
        for mac in self._links - attached.keys():
            self.kernel.unplug(mac)
        for mac in attached.keys() - self._links:
            self.kernel.plug(mac, f"eth{attached[mac].device_index}")
        self._links = set(attached)

    # -- what must be so -------------------------------------------------------------------

    def check(self) -> None:
        """At every moment: nothing is held twice, nothing in use rests, no limit is exceeded."""
        records = self.disk.observe()
        held = {own: a.key for a in records.attachments for own in a.addresses}
        assert len(held) == sum(len(a.addresses) for a in records.attachments)
        alive = {intent(n).key for n in self.running}
        resting = {c.address for c in records.cooling}
        assert not alive & {key for address, key in held.items() if address in resting}
        assert (
            len([e for e in self.ec2.enis if e.device_index is not None]) <= self.ec2.limits.enis
        )

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
        mine = {a for record in records.attachments for a in record.addresses}
        assert self.lost() == set(), "EC2 does not assign them"
        here = list(self.kernel._objects.values())
        assert len([o for o in here if isinstance(o, Veth)]) == len(keys)
        assert len([o for o in here if isinstance(o, PodLink)]) == len(keys)
        elements = [o for o in self.nft.observe() if isinstance(o, NftElement)]
        assert {e.first for e in elements if e.set in ("pods_ipv4", "pods_ipv6")} == mine
        assert [e for e in self.ec2.enis if e.device_index is None] == [], "a leaked ENI"
        assert [c for c in records.creations if not c.done] == []
        assert list(map(str, self._audit())) == []

    def _audit(self) -> tuple[Finding, ...]:
        before, self.fate = self.fate, Fate()
        try:
            return self.node.audit(self.document)
        finally:
            self.fate = before
