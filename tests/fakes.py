"""The kernel, nftables and records in memory; ``fake_cloud`` has EC2, ``fake_directories`` files.

Each signs the contract of its target (tests/targets), so that it may not be kinder than the
real one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from reconciler.core.attachment import Attachment, AttachmentKey, Cooling, Intent, alias_key
from reconciler.core.datapath import MAIN_TABLE, PODS_TABLE, IpAddress, IpNetwork, host_network
from reconciler.core.facts import Node
from reconciler.diagnostics.foreign import Foreign
from reconciler.diagnostics.ruleset import Ruleset
from reconciler.diagnostics.stock_objects import Leftover, PodEnd, Sighting
from reconciler.domains.address import LinkAddress
from reconciler.domains.conntrack import ConntrackFlush, Flow, OpenTo
from reconciler.domains.fast_path import FlowObject, FlowTable
from reconciler.domains.forward import ForwardAccept
from reconciler.domains.inputs import Links
from reconciler.domains.link import EniLink, Link, PodLink, Veth
from reconciler.domains.nat_objects import (
    NftChain,
    NftElement,
    NftLink,
    NftObject,
    NftSet,
    NftTable,
)
from reconciler.domains.neighbour import Learnt, Neighbour
from reconciler.domains.route import Route
from reconciler.domains.sysctl import Sysctl
from reconciler.egress.destinations import NO_EGRESS, Egress
from reconciler.engine.converge import Observed
from reconciler.engine.plan import Change, Key, Verb
from reconciler.errors import ApplyError, NamespaceError
from reconciler.ipam.cloud import Cloud
from reconciler.ipam.ec2_action import Creation
from reconciler.ipam.identity import EgressIdentity
from reconciler.ipam.records import Records, SetAside
from reconciler.ipam.release import Quarantine
from reconciler.targets.foreign import Latest
from reconciler.targets.netlink.decode import KernelObject
from reconciler.targets.netlink.removals import Removals
from reconciler.targets.scoped import RecordAction
from reconciler.targets.state.codec import Record, _parse_intent

Identity = tuple[str, Key]
K = TypeVar("K", EniLink, Veth, PodLink, LinkAddress)
P = TypeVar("P", Intent, Attachment)
R = TypeVar("R", Intent, Attachment, Cooling, Quarantine, Creation, EgressIdentity)


class RefusedError(Exception):
    """What a fake answers where the real thing would."""


class CrashError(BaseException):
    """The process dies here; nobody catches it but who plays the operating system."""


class FakeLearnt:
    """Neighbours that the kernel has learnt; notes what it was asked for, and may refuse."""

    def __init__(self, *seen: Learnt) -> None:
        self.seen = set(seen)
        self.macs: set[str] = set()
        self.asked: list[Learnt] = []
        self.refuses: ApplyError | None = None

    def observe(self, macs: Collection[str], networks: Iterable[Any]) -> frozenset[Learnt]:
        self.macs = set(macs)
        wanted = tuple(networks)
        return frozenset(n for n in self.seen if any(n.address in w for w in wanted))

    def ask_again(self, neighbours: Iterable[Learnt]) -> tuple[ApplyError, ...]:
        self.asked.extend(neighbours)
        return (self.refuses,) if self.refuses else ()


class FakeNetlink:
    """Links, addresses, neighbours, routes and rules, and how losing one loses others."""

    def __init__(
        self, objects: Iterable[KernelObject] = (), namespaces: Iterable[str] = ()
    ) -> None:
        self.namespaces = set(namespaces)
        self.learnt = FakeLearnt()
        self.removals = Removals(self._delete)
        self._objects: dict[tuple[type, Key], KernelObject] = {}
        for o in objects:
            self._put(o)

    def plug(self, mac: str, name: str) -> None:
        """An ENI is attached."""
        self._put(EniLink(mac, name, 1500, up=False))

    def unplug(self, mac: str) -> None:
        """An ENI is detached."""
        for o in list(self._objects.values()):
            if isinstance(o, EniLink) and o.mac == mac:
                del self._objects[type(o), o.key]
                self._lose(netns="", device=o.name, kinds=(Route, LinkAddress))

    def lose_namespace(self, netns: str) -> None:
        """A pod's namespace ends, and with it every pair that reaches into it."""
        self.namespaces.discard(netns)
        for o in list(self._objects.values()):
            if isinstance(o, PodLink) and o.netns == netns:
                self._remove(o)

    def replace(self, obj: KernelObject) -> None:
        """Somebody else changed it."""
        self._put(obj)

    def links(self) -> Links:
        objects = list(self._objects.values())
        names = {o.mac: o.name for o in objects if isinstance(o, EniLink)}
        veths = {alias_key(o.alias): o.name for o in objects if isinstance(o, Veth)}
        macs = {o.name: o.mac for o in objects if isinstance(o, Veth)}
        return Links(names, {key: name for key, name in veths.items() if key}, macs)

    def pod_addresses(self) -> dict[str, tuple[IpAddress, ...]]:
        routes = [o for o in self._objects.values() if isinstance(o, Route)]
        ours = [r for r in routes if r.table == PODS_TABLE and r.protocol == 201]
        found: dict[str, tuple[IpAddress, ...]] = {}
        for r in sorted(ours, key=lambda r: r.key):
            found[r.device] = (*found.get(r.device, ()), r.destination.network_address)
        return found

    def queues(self) -> frozenset[tuple[str, str]]:
        return frozenset()

    def addresses_behind(self, links: Iterable[str]) -> dict[str, tuple[IpAddress, ...]]:
        found = {}
        for name in links:
            of_host = [
                o.address
                for o in self._objects.values()
                if isinstance(o, Neighbour) and (o.netns, o.device) == ("", name)
            ]
            ends = [o for o in self._objects.values() if isinstance(o, PodLink) and o.veth == name]
            inside = [
                o.address
                for o in self._objects.values()
                for end in ends
                if isinstance(o, LinkAddress) and (o.netns, o.device) == (end.netns, end.name)
            ]
            found[name] = tuple(sorted(set(of_host or inside), key=lambda a: (a.version, int(a))))
        return found

    def occupied(
        self, addresses: Collection[IpAddress], networks: Collection[IpNetwork]
    ) -> dict[IpNetwork, str]:
        return {
            host_network(o.address): f"it is on {o.device}"
            for o in self._objects.values()
            if isinstance(o, LinkAddress)
            and not o.netns
            and (o.address in addresses or any(o.address in n for n in networks))
        }

    def _delete(self, index: int) -> None:
        for o in list(self._objects.values()):
            if isinstance(o, Veth) and self._index(o.name) == index:
                self._remove(o)

    def _index(self, name: str) -> int:
        return int.from_bytes(name.encode(), "big")

    def observe(self, desired: Iterable[KernelObject]) -> Observed:
        desired = list(desired)
        places = {o.key for o in desired if isinstance(o, Route)}
        asked = {(o.netns, o.address) for o in desired if isinstance(o, Neighbour)}
        visited = {o.netns for o in desired if isinstance(o, PodLink | Neighbour)} | {""}
        gone = visited - self.namespaces - {""}
        return Observed(
            (
                o
                for o in self._objects.values()
                if getattr(o, "netns", "") in visited - gone
                and not (isinstance(o, Route) and o.protocol != 201 and o.key not in places)
                and not (isinstance(o, Neighbour) and (o.netns, o.address) not in asked)
            ),
            unread_places={
                netns: NamespaceError(netns, "No such file or directory") for netns in gone
            },
        )

    def observe_inside(self, places: Iterable[KernelObject]) -> Observed:
        seen = self.observe(places)
        return Observed(
            (o for o in seen if getattr(o, "netns", "")), unread_places=seen.unread_places
        )

    def observe_at(self, places: Iterable[KernelObject]) -> Observed:
        places = list(places)
        keys = {(type(o), o.key) for o in places}
        seen = self.observe(places)
        return Observed(
            (o for o in seen if getattr(o, "netns", "") or (type(o), o.key) in keys),
            unread_places=seen.unread_places,
        )

    def apply(self, actions: Sequence[Change[KernelObject]]) -> tuple[ApplyError, ...]:
        failures = []
        made = {a.key for a in actions if a.kind == Veth.kind and a.verb is Verb.CREATE}
        for action in actions:
            try:
                if action.verb is Verb.DELETE:
                    link = action.object
                    if (
                        isinstance(link, Veth)
                        and link.key not in made
                        and self.removals.take(self._index(link.name), link.name)
                    ):
                        continue
                    self._remove(link)
                else:
                    self._check(action)
                    self._rename(action)
                    self._put(action.object)
            except RefusedError as error:
                failures.append(ApplyError(str(action), str(error), ""))
        return tuple(failures)

    def _rename(self, action: Change[KernelObject]) -> None:
        """What leads over a link goes with it when it is set down for that, but its pair."""
        was, now = action.was, action.object
        if isinstance(now, Veth) and isinstance(was, Veth) and was.name != now.name:
            self._objects.pop((Veth, was.key))
            self._lose(netns="", device=was.name, kinds=(Route, LinkAddress, Neighbour))
            for end in [o for o in self._objects.values() if isinstance(o, PodLink)]:
                if end.veth == was.name:
                    self._put(replace(end, veth=now.name))

    def _check(self, action: Change[KernelObject]) -> None:  # noqa: C901, PLR0912 - a case for each kind
        match action.object:
            case Veth() as veth if action.verb is Verb.CREATE:
                if veth.pod_netns not in self.namespaces:
                    raise RefusedError("ENOENT")
                if self._find(PodLink, netns=veth.pod_netns, name=veth.pod_name):
                    raise RefusedError("EEXIST")
                self._put(
                    PodLink(
                        veth.pod_netns, veth.pod_name, veth.pod_mac, veth.mtu, False, veth.name
                    )
                )
            case PodLink() as link:
                if not self._find(PodLink, netns=link.netns, name=link.name):
                    raise RefusedError("ENODEV")
            case LinkAddress() as address:
                self._device(address.netns, address.device)
            case Neighbour() as neighbour:
                self._device(neighbour.netns, neighbour.device)
            case Route() as route:
                if not self._device(route.netns, route.device).up:
                    raise RefusedError("ENETDOWN")
                if route.gateway and not self._is_on_link(route, route.gateway):
                    raise RefusedError("ENETUNREACH")
                if route.source and not self._find(
                    LinkAddress, netns=route.netns, address=route.source
                ):
                    raise RefusedError("EINVAL")
            case EniLink() as link:
                if not self._find(EniLink, mac=link.mac):
                    raise RefusedError("ENODEV")
            case _:
                pass

    def _is_on_link(self, route: Route, gateway: IpAddress) -> bool:
        """A gateway must be reached by a route without one, in that table or in main."""
        return any(
            isinstance(o, Route)
            and o.netns == route.netns
            and o.gateway is None
            and o.table in (route.table, MAIN_TABLE)
            and gateway in o.destination
            for o in self._objects.values()
        ) or (route.destination.version == 6 and gateway.is_link_local)

    def _device(self, netns: str, name: str) -> Link:
        for o in self._objects.values():
            if not isinstance(o, EniLink | Veth | PodLink) or o.name != name:
                continue
            if (o.netns if isinstance(o, PodLink) else "") == netns:
                return o
        raise RefusedError("ENODEV")

    def _find(self, kind: type[K], **fields: object) -> K | None:
        for o in self._objects.values():
            if isinstance(o, kind) and all(getattr(o, k) == v for k, v in fields.items()):
                return o
        return None

    def _put(self, obj: KernelObject) -> None:
        if isinstance(obj, EniLink) and not obj.up:
            self._lose(netns="", device=obj.name, kinds=(Route,))
        self._objects[type(obj), obj.key] = obj

    def _remove(self, obj: KernelObject) -> None:
        existing = self._objects.pop((type(obj), obj.key), None)
        if isinstance(existing, Veth):
            self._lose(netns="", device=existing.name, kinds=(Route, LinkAddress, Neighbour))
            for end in [o for o in self._objects.values() if isinstance(o, PodLink)]:
                if end.veth == existing.name:
                    self._remove(end)
        if isinstance(existing, PodLink):
            self._lose(existing.netns, existing.name, (Route, LinkAddress, Neighbour))
            if host := self._find(Veth, name=existing.veth):
                self._remove(host)

    def _lose(
        self, netns: str, device: str, kinds: tuple[type[Route | LinkAddress | Neighbour], ...]
    ) -> None:
        for identity, o in list(self._objects.items()):
            if isinstance(o, kinds) and o.netns == netns and o.device == device:
                del self._objects[identity]


class FakeFlows:
    """A flowtable; ``refuses`` says why the kernel takes none."""

    def __init__(self, refuses: str = "") -> None:
        self.refuses = refuses
        self.objects: set[FlowObject] = set()

    def refusal(self) -> str:
        return self.refuses

    def observe(self, desired: Iterable[FlowObject] = ()) -> frozenset[FlowObject]:
        return frozenset(self.objects)

    def apply(self, actions: Sequence[Change[FlowObject]]) -> tuple[ApplyError, ...]:
        for action in actions:
            if action.verb is Verb.DELETE and isinstance(action.object, FlowTable):
                self.objects.clear()
            elif action.verb is Verb.DELETE:
                self.objects.discard(action.object)
            else:
                self.objects.add(action.object)
        return ()


class FakeNft:
    """Our table: a transaction happens whole or not at all."""

    def __init__(self, objects: Iterable[NftObject] = ()) -> None:
        self._objects = set(objects)
        self.flows = FakeFlows()

    def observe(self, desired: Iterable[NftObject] = ()) -> frozenset[NftObject]:
        return frozenset(self._objects)

    def observe_at(self, places: Iterable[NftElement | NftLink]) -> frozenset[NftObject]:
        keys = {o.key for o in places}
        elements = [o for o in self._objects if isinstance(o, NftElement | NftLink)]
        return frozenset(o for o in elements if o.key in keys)

    def count(self) -> dict[str, int]:
        return {}

    def apply(self, actions: Sequence[Change[NftObject]]) -> tuple[ApplyError, ...]:
        state = {(o.kind, o.key): o for o in self._objects}
        try:
            for action in sorted(actions, key=lambda a: a.verb is not Verb.DELETE):
                obj = action.object
                if action.verb is Verb.DELETE and isinstance(obj, NftTable):
                    state.clear()
                elif action.verb is Verb.DELETE:
                    if state.pop((obj.kind, obj.key), None) is None:
                        raise RefusedError("No such file or directory")
                else:
                    existing = state.get((obj.kind, obj.key))
                    if isinstance(obj, NftChain) and (
                        isinstance(existing, NftChain) and existing.place != obj.place
                    ):
                        raise RefusedError("File exists")
                    state[obj.kind, obj.key] = obj
            if state or any(not isinstance(a.object, NftTable) for a in actions):
                state[NftTable().kind, NftTable().key] = NftTable()
            _check_references(state.values())
        except RefusedError as error:
            return tuple(ApplyError(str(a), "TransactionRefused", str(error)) for a in actions)
        self._objects = set(state.values())
        return ()


def _check_references(objects: Iterable[NftObject]) -> None:
    objects = list(objects)
    chains = {o.name for o in objects if isinstance(o, NftChain)}
    sets = {o.name: o for o in objects if isinstance(o, NftSet)}
    ranges: dict[str, list[tuple[int, int]]] = {}
    for o in objects:
        if isinstance(o, NftElement | NftLink) and (
            o.set not in sets or (o.goto and o.goto not in chains)
        ):
            raise RefusedError("No such file or directory")
        if isinstance(o, NftElement):
            if o.first != o.last and not sets[o.set].interval:
                raise RefusedError("Invalid argument")
            ranges.setdefault(o.set, []).append((int(o.first), int(o.last)))
        if isinstance(o, NftChain):
            for rule in o.rules:
                if any(f'"@{name}"' in rule for name in _named_sets(rule) - sets.keys()):
                    raise RefusedError("No such file or directory")
    for each in ranges.values():
        each.sort()
        if any(a[1] >= b[0] for a, b in pairwise(each)):
            raise RefusedError("Interval overlaps")


def _named_sets(rule: str) -> set[str]:
    return {part.partition('"')[0] for part in rule.split('"@')[1:]}


class FakeSysctl:
    """Settings by name; one that does not exist cannot be written.

    Of links' own settings all exist, for whatever link they are asked of.
    """

    def __init__(self, values: dict[str, str]) -> None:
        self.values = {("", name): value for name, value in values.items()}

    def observe(self, desired: Iterable[Sysctl]) -> frozenset[Sysctl]:
        return frozenset(replace(s, value=v) for s in desired if (v := self._value(s)))

    def _value(self, setting: Sysctl) -> str | None:
        default = "1" if setting.name.startswith("net/ipv6/conf/") else None
        if setting.name.endswith("/accept_local"):
            default = "0"
        return self.values.get((setting.netns, setting.name), default)

    def apply(self, actions: Sequence[Change[Sysctl]]) -> tuple[ApplyError, ...]:
        failures = []
        for action in actions:
            if self._value(action.object) is not None:
                self.values[action.object.netns, action.object.name] = action.object.value
            else:
                failures.append(ApplyError(str(action), "ENOENT", ""))
        return tuple(failures)


class FakeState:
    """Records by kind and key.

    Attributes:
        crash_in: writes until the process dies, right after the last of them; None for never.
    """

    def __init__(self, records: Records = Records()) -> None:  # noqa: B008 - frozen
        everything: tuple[Record, ...] = (
            *records.intents,
            *records.attachments,
            *records.cooling,
            *records.quarantined,
            *records.creations,
            *records.identities,
        )
        self._records: dict[Identity, Record] = {(r.kind, r.key): r for r in everything}
        self._look: tuple[Node, Cloud] | None = None
        self._egress = NO_EGRESS
        self._unwritten: dict[Identity, Record] = {}
        self.crash_in: int | None = None

    def restart(self) -> None:
        """Another process: it knows only what was written."""
        self._unwritten = {}

    root = Path("/run/node-network")
    is_own = True

    def sweep(self) -> None:
        """Nothing is left of any writing."""

    def hand_over(self, release: dict[str, Any]) -> None:
        self.put(_parse_intent(release))

    def reclaim(self) -> tuple[()]:
        return ()

    def hold(self, attachments: Iterable[Attachment]) -> None:
        for a in attachments:
            if (a.kind, a.key) not in self._records:
                self._unwritten[a.kind, a.key] = a

    def observe(self, desired: Iterable[object] = ()) -> Records:
        everything = self._unwritten | self._records

        def of(kind: type[R]) -> tuple[R, ...]:
            found = [r for r in everything.values() if isinstance(r, kind)]
            return tuple(sorted(found, key=lambda r: r.key))

        return Records(
            of(Intent),
            of(Attachment),
            of(Cooling),
            of(Quarantine),
            of(Creation),
            identities=of(EgressIdentity),
            unwritten=frozenset(self._unwritten.keys() - self._records.keys()),
        )

    def observe_at(self, keys: Collection[AttachmentKey], before: Records) -> Records:
        now = self.observe()

        def merge(was: Iterable[P], found: Iterable[P]) -> tuple[P, ...]:
            kept = [r for r in was if r.key not in keys] + [r for r in found if r.key in keys]
            return tuple(sorted(kept, key=lambda r: r.key))

        return replace(
            now,
            intents=merge(before.intents, now.intents),
            attachments=merge(before.attachments, now.attachments),
        )

    def put(self, record: Record) -> None:
        """Write a record, as the executable does."""
        self._records[record.kind, record.key] = record

    def recall(self) -> tuple[Node, Cloud] | None:
        return self._look

    def remember(self, node: Node, cloud: Cloud) -> None:
        self._look = (node, cloud)

    def recall_egress(self) -> Egress:
        return self._egress

    def remember_egress(self, egress: Egress) -> None:
        self._egress = egress

    def record(self, creation: Creation) -> None:
        self._records[creation.kind, creation.key] = creation
        self._wrote()

    def _wrote(self) -> None:
        if self.crash_in is not None:
            self.crash_in -= 1
            if self.crash_in < 0:
                self.crash_in = None
                raise CrashError

    def forget(self, creation: Creation) -> None:
        self._records.pop((creation.kind, creation.key), None)

    def apply(self, actions: Sequence[RecordAction]) -> tuple[ApplyError, ...]:
        for action in actions:
            self._unwritten.pop((action.object.kind, action.object.key), None)
            if action.verb is Verb.DELETE:
                self._records.pop((action.object.kind, action.object.key), None)
            elif not isinstance(action.object, SetAside):
                self._records[action.object.kind, action.object.key] = action.object
            self._wrote()
        return ()


class FakeSurroundings:
    """Other owners, and our rules in their forward chains."""

    def __init__(self, seen: Foreign = Foreign()) -> None:  # noqa: B008 - frozen
        self.seen = seen
        self.forward = self
        self.latest = Latest(lambda: self.seen)
        self.rules: set[ForwardAccept] = set()

    def chains(self) -> tuple[Ruleset, tuple[str, ...]]:
        return self.seen.ruleset, ()

    def observe(self, desired: Iterable[ForwardAccept] | None = None) -> Any:
        return self.seen if desired is None else frozenset(self.rules)

    def apply(self, actions: Sequence[Change[ForwardAccept]]) -> tuple[ApplyError, ...]:
        for action in actions:
            verb = self.rules.discard if action.verb is Verb.DELETE else self.rules.add
            verb(action.object)
        return ()


class FakeRemains:
    """What another plugin has left: rules, routes, chains and tables, and pods' other ends."""

    def __init__(self, sighting: Sighting = Sighting(), **ends: PodEnd) -> None:  # noqa: B008
        self.sighting = sighting
        self.ends = ends

    def observe(self, desired: Iterable[object] = ()) -> Sighting:
        return self.sighting

    def glance(self) -> Sighting:
        return replace(self.sighting, saved={}, unlisted={})

    def find_ends(self, veths: Iterable[str]) -> dict[str, PodEnd]:
        return {name: self.ends[name] for name in veths if name in self.ends}

    def apply(self, actions: Sequence[Change[Leftover]]) -> tuple[ApplyError, ...]:
        gone = [a.object for a in actions]
        self.sighting = replace(
            self.sighting,
            rules=tuple(r for r in self.sighting.rules if r not in gone),
            routes=tuple(r for r in self.sighting.routes if r not in gone),
            saved={} if gone else self.sighting.saved,
            tables=frozenset() if gone else self.sighting.tables,
        )
        return ()


class FakeConntrack:
    """Connections by address; deleting them ends them."""

    def __init__(self, addresses: Iterable[IpAddress] = ()) -> None:
        self.addresses = set(addresses)

    def observe(self, desired: Iterable[ConntrackFlush]) -> frozenset[Flow]:
        wanted = frozenset[IpAddress]().union(*(d.addresses for d in desired))
        return frozenset(Flow(a) for a in self.addresses & wanted)

    def count(self, questions: Sequence[OpenTo]) -> tuple[int, ...] | None:
        return tuple(len(self.addresses & q.pods) for q in questions)

    def apply(self, actions: Sequence[Change[Flow]]) -> tuple[ApplyError, ...]:
        self.addresses -= {a.object.address for a in actions}
        return ()
