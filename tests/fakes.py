"""One in-memory target for each real one.

Each signs the contract of its target (tests/targets), so that it may not be kinder than the
kernel, nftables, EC2 or the disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import IPv4Network, ip_address
from itertools import pairwise
from typing import Any

from reconciler.core.attachment import Attachment, Cooling, Intent, alias_key
from reconciler.core.datapath import MAIN_TABLE, PODS_TABLE
from reconciler.core.facts import Eni, Links
from reconciler.core.plan import Change, Verb
from reconciler.domains.address import LinkAddress
from reconciler.domains.attachment import Records
from reconciler.domains.eni import (
    INSTANCE_TAG,
    AddEni,
    AssignAddresses,
    AttachEni,
    Cloud,
    Limits,
    TieToInstance,
)
from reconciler.domains.link import EniLink, PodLink, Veth
from reconciler.domains.nat import NftChain, NftElement, NftObject, NftSet, NftTable
from reconciler.domains.neighbour import Neighbour
from reconciler.domains.route import Route
from reconciler.domains.sysctl import Sysctl
from reconciler.errors import ApplyError, NamespaceError


class RefusedError(Exception):
    """What a fake answers where the real thing would."""


class FakeNetlink:
    """Links, addresses, neighbours, routes and rules, and how losing one loses others."""

    def __init__(self, objects: Iterable[Any] = (), namespaces: Iterable[str] = ()) -> None:
        self.namespaces = set(namespaces)
        self._objects: dict[Any, Any] = {}
        for o in objects:
            self._put(o)

    def plug(self, mac: str, name: str) -> None:
        """An ENI is attached."""
        self._put(EniLink(mac, name, 1500, up=False))

    def replace(self, obj: Any) -> None:
        """Somebody else changed it."""
        self._put(obj)

    def links(self) -> Links:
        objects = list(self._objects.values())
        names = {o.mac: o.name for o in objects if isinstance(o, EniLink)}
        veths = {alias_key(o.alias): o.name for o in objects if isinstance(o, Veth)}
        return Links(names, {key: name for key, name in veths.items() if key})

    def pod_addresses(self) -> dict[str, Any]:
        routes = [o for o in self._objects.values() if isinstance(o, Route)]
        ours = [r for r in routes if r.table == PODS_TABLE and r.protocol == 201]
        return {r.device: r.destination.network_address for r in ours}

    def observe(self, desired: Iterable[Any]) -> frozenset[Any]:
        desired = list(desired)
        places = {o.key for o in desired if isinstance(o, Route)}
        visited = {o.netns for o in desired if isinstance(o, PodLink)} | {""}
        for netns in sorted(visited - self.namespaces - {""}):
            raise NamespaceError(netns, "No such file or directory")
        return frozenset(
            o
            for o in self._objects.values()
            if getattr(o, "netns", "") in visited
            and not (
                isinstance(o, Route) and not o.netns and o.protocol != 201 and o.key not in places
            )
        )

    def apply(self, actions: Sequence[Change[Any]]) -> tuple[ApplyError, ...]:
        failures = []
        for action in actions:
            try:
                if action.verb is Verb.DELETE:
                    self._remove(action.object)
                else:
                    self._check(action)
                    self._put(action.object)
            except RefusedError as error:
                failures.append(ApplyError(str(action), str(error), ""))
        return tuple(failures)

    def _check(self, action: Change[Any]) -> None:  # noqa: C901, PLR0912 - a case for each kind
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
                if route.gateway and not self._is_on_link(route):
                    raise RefusedError("ENETUNREACH")
            case EniLink() as link:
                if not self._find(EniLink, mac=link.mac):
                    raise RefusedError("ENODEV")
            case _:
                pass

    def _is_on_link(self, route: Route) -> bool:
        """A gateway must be reached by a route without one, in that table or in main."""
        return any(
            isinstance(o, Route)
            and o.netns == route.netns
            and o.gateway is None
            and o.table in (route.table, MAIN_TABLE)
            and route.gateway in o.destination
            for o in self._objects.values()
        )

    def _device(self, netns: str, name: str) -> Any:
        kinds: tuple[type, ...] = (PodLink,) if netns else (EniLink, Veth)
        for o in self._objects.values():
            if isinstance(o, kinds) and o.name == name and getattr(o, "netns", "") == netns:
                return o
        raise RefusedError("ENODEV")

    def _find(self, kind: type, **fields: Any) -> Any:
        for o in self._objects.values():
            if isinstance(o, kind) and all(getattr(o, k) == v for k, v in fields.items()):
                return o
        return None

    def _put(self, obj: Any) -> None:
        if isinstance(obj, EniLink) and not obj.up:
            self._lose(netns="", device=obj.name, kinds=(Route,))
        self._objects[type(obj), obj.key] = obj

    def _remove(self, obj: Any) -> None:
        existing = self._objects.pop((type(obj), obj.key), None)
        if isinstance(existing, Veth):
            self._lose(netns="", device=existing.name, kinds=(Route, LinkAddress))
            for end in [o for o in self._objects.values() if isinstance(o, PodLink)]:
                if end.veth == existing.name:
                    self._remove(end)
        if isinstance(existing, PodLink):
            self._lose(existing.netns, existing.name, (Route, LinkAddress, Neighbour))
            if host := self._find(Veth, name=existing.veth):
                self._remove(host)

    def _lose(self, netns: str, device: str, kinds: tuple[type, ...]) -> None:
        for identity, o in list(self._objects.items()):
            if isinstance(o, kinds) and o.netns == netns and o.device == device:
                del self._objects[identity]


class FakeNft:
    """Our table: a transaction happens whole or not at all."""

    def __init__(self, objects: Iterable[NftObject] = ()) -> None:
        self._objects = set(objects)

    def observe(self, desired: Iterable[NftObject] = ()) -> frozenset[NftObject]:
        return frozenset(self._objects)

    def apply(self, actions: Sequence[Change[Any]]) -> tuple[ApplyError, ...]:
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
                    if isinstance(existing, NftChain) and existing.place != obj.place:
                        raise RefusedError("File exists")
                    state[obj.kind, obj.key] = obj
            if state or actions:
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
        if isinstance(o, NftElement):
            if o.set not in sets or (o.goto and o.goto not in chains):
                raise RefusedError("No such file or directory")
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
    """Settings by name; one that does not exist cannot be written."""

    def __init__(self, values: dict[str, str]) -> None:
        self.values = dict(values)

    def observe(self, desired: Iterable[Sysctl]) -> frozenset[Sysctl]:
        return frozenset(
            Sysctl(s.name, self.values[s.name]) for s in desired if s.name in self.values
        )

    def apply(self, actions: Sequence[Change[Sysctl]]) -> tuple[ApplyError, ...]:
        failures = []
        for action in actions:
            if action.object.name in self.values:
                self.values[action.object.name] = action.object.value
            else:
                failures.append(ApplyError(str(action), "ENOENT", ""))
        return tuple(failures)


class FakeState:
    """Records by kind and key."""

    def __init__(self, records: Records = Records()) -> None:  # noqa: B008 - frozen
        everything = (*records.intents, *records.attachments, *records.cooling)
        self._records = {(r.kind, r.key): r for r in everything}

    def observe(self, desired: Iterable[object] = ()) -> Records:
        def of(kind: type) -> tuple[Any, ...]:
            found = [r for r in self._records.values() if isinstance(r, kind)]
            return tuple(sorted(found, key=lambda r: r.key))

        return Records(of(Intent), of(Attachment), of(Cooling))

    def apply(self, actions: Sequence[Change[Any]]) -> tuple[ApplyError, ...]:
        for action in actions:
            if action.verb is Verb.DELETE:
                self._records.pop((action.object.kind, action.object.key), None)
            else:
                self._records[action.object.kind, action.object.key] = action.object
        return ()


class FakeEc2:
    """One instance's ENIs in one subnet, with its type's limits."""

    def __init__(
        self, enis: Iterable[Eni], limits: Limits, cidr: IPv4Network, taken: Iterable[Any] = ()
    ) -> None:
        self.enis = list(enis)
        self.limits = limits
        self._cidr = cidr
        self._taken = set(taken)
        self._tokens: dict[str, str] = {}
        self.calls: list[str] = []

    def observe(self, desired: Iterable[Any] = ()) -> Cloud:
        order = sorted(
            self.enis, key=lambda e: (e.device_index is None, e.device_index or 0, e.eni_id)
        )
        return Cloud(tuple(order), self.limits, {self.enis[0].subnet_id: len(self._free())})

    def apply(self, actions: Sequence[Any]) -> tuple[ApplyError, ...]:
        failures = []
        for action in actions:
            try:
                self._apply_one(action)
            except RefusedError as error:
                failures.append(ApplyError(str(action), str(error), ""))
        return tuple(failures)

    def _apply_one(self, action: Any) -> None:
        match action:
            case AddEni():
                self._attach(self._create(action), action.device_index)
            case AttachEni():
                self._attach(action.eni_id, action.device_index)
            case TieToInstance():
                self.calls.append("ModifyNetworkInterfaceAttribute")
                self._change(action.eni_id, delete_on_termination=True)
            case AssignAddresses():
                self.calls.append("AssignPrivateIpAddresses")
                eni = self._get(action.eni_id)
                if 1 + len(eni.secondaries) + action.count > self.limits.addresses_per_eni:
                    raise RefusedError("PrivateIpAddressLimitExceeded")
                fresh = self._take(action.count)
                self._change(eni.eni_id, secondaries=tuple(sorted((*eni.secondaries, *fresh))))

    def _create(self, action: AddEni) -> str:
        self.calls.append("CreateNetworkInterface")
        if action.client_token in self._tokens:
            return self._tokens[action.client_token]
        primary, *secondaries = self._take(1 + action.addresses)
        eni_id = f"eni-new{len(self.enis)}"
        self._tokens[action.client_token] = eni_id
        self.enis.append(
            Eni(
                eni_id=eni_id,
                mac=f"02:bb:00:00:00:{len(self.enis):02x}",
                device_index=None,
                status="available",
                subnet_id=action.subnet_id,
                subnet_cidr=self._cidr,
                primary=primary,
                secondaries=tuple(secondaries),
                security_groups=action.security_groups,
                owned=dict(action.tags).get(INSTANCE_TAG) == action.instance_id,
                delete_on_termination=False,
            )
        )
        return eni_id

    def _attach(self, eni_id: str, index: int) -> None:
        self.calls.append("AttachNetworkInterface")
        if self._get(eni_id).status != "available":
            raise RefusedError("InvalidParameterValue")
        attached = [e for e in self.enis if e.device_index is not None]
        if index in {e.device_index for e in attached}:
            raise RefusedError("InvalidParameterValue")
        if len(attached) >= self.limits.enis:
            raise RefusedError("AttachmentLimitExceeded")
        self.calls.append("ModifyNetworkInterfaceAttribute")
        self._change(
            eni_id,
            device_index=index,
            status="attached",
            attachment_id=f"eni-attach-{eni_id}",
            delete_on_termination=True,
        )

    def _get(self, eni_id: str) -> Eni:
        return next(e for e in self.enis if e.eni_id == eni_id)

    def _change(self, eni_id: str, **fields: Any) -> None:
        self.enis = [replace(e, **fields) if e.eni_id == eni_id else e for e in self.enis]

    def _free(self) -> list[Any]:
        used = {a for e in self.enis for a in (e.primary, *e.secondaries)} | self._taken
        first = int(self._cidr.network_address) + 4
        numbers = range(first, int(self._cidr.broadcast_address))
        return [a for n in numbers if (a := ip_address(n)) not in used]

    def _take(self, count: int) -> list[Any]:
        free = self._free()
        if len(free) < count:
            raise RefusedError("InsufficientFreeAddressesInSubnet")
        return free[:count]
