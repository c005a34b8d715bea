"""rtnetlink's tables: what is asked of them, and what a message says of an entry.

Numbers and kinds of attributes are pyroute2's, to which this is a door. What is plain is packed
and read here, because its messages can be anything that netlink knows, and cost accordingly
(decision 20). Counters and ages are cut out: the same entry is the same bytes (decision 18).
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Callable, Mapping
from functools import cache
from ipaddress import ip_address
from typing import Any, NamedTuple

from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from reconciler.core.datapath import PROTOCOL, IpAddress, IpNetwork
from reconciler.targets.netlink.message import (
    ATTRIBUTE,
    HEADER,
    NLA_TYPE_MASK,
    attribute,
    native,
)

AF = {"ipv4": 2, "ipv6": 10}

ARPHRD_ETHER = 1
NUD_PERMANENT = 0x80
RTN_UNICAST = 1
RTPROT_KERNEL = 2

RTEXT_FILTER_SKIP_STATS = 0x8
"""Without IPv6's counters, a third of each message (linux/rtnetlink.h, Linux 4.4)."""

IFF_UP = 0x1
IFA_F_NODAD, IFA_F_NOPREFIXROUTE = 0x02, 0x200
FR_ACT_TO_TBL, FR_ACT_GOTO = 1, 2
SCOPE_UNIVERSE, SCOPE_LINK, SCOPE_NOWHERE = 0, 253, 255


def af_of(address: IpAddress | IpNetwork) -> int:
    """Return the family's number."""
    return AF["ipv4" if address.version == 4 else "ipv6"]


Facts = Any
"""A message as a dict: its header's fields, and the attributes that the kernel sent by their names
without the prefix (``ifname``)."""

Attributes = tuple[tuple[str, Any], ...]
"""Attributes of a request, by pyroute2's names; a tuple is what is inside of one."""


class Table(NamedTuple):
    """One of the kernel's tables.

    Attributes:
        message: pyroute2's class for its entries.
        get: the request (linux/rtnetlink.h).
        attributes: those that are wanted, of nested ones the way; all, if none are named.
        takes: whether an entry is wanted, by its message; all are, if this is None.
        asks: attributes of a request for the whole table.
        is_restless: its entries have counters or ages, which change by themselves.
        identity: tells entries apart, by their messages, where a dump may be put together from
            interrupted ones: such an entry is there if any of them has shown it.
    """

    name: str
    message: Any
    get: int
    attributes: tuple[str | tuple[str, str], ...] = ()
    takes: Callable[[bytes], bool] | None = None
    asks: Attributes = ()
    is_restless: bool = False
    identity: Callable[[bytes], object] | None = None


def index_of(link: bytes) -> int:
    """Return a link's index, by its message."""
    return native(link[HEADER.size + 4 : HEADER.size + 8])  # ``struct ifinfomsg``


def _is_of_an_owner(route: bytes) -> bool:
    """Leave out what the kernel keeps for itself: routes to its own addresses, broadcasts."""
    protocol, kind = route[HEADER.size + 5], route[HEADER.size + 7]  # ``struct rtmsg``
    return kind == RTN_UNICAST or protocol == PROTOCOL


def _is_permanent(neighbour: bytes) -> bool:
    """Leave out what comes and goes with traffic."""
    state = native(neighbour[HEADER.size + 8 : HEADER.size + 10])  # ``struct ndmsg``
    return bool(state & NUD_PERMANENT)


LINKS = Table(
    "links",
    ifinfmsg,
    18,
    ("ifname", "address", "mtu", "link", "ifalias", "link_netnsid", ("linkinfo", "kind")),
    asks=(("IFLA_EXT_MASK", RTEXT_FILTER_SKIP_STATS),),
    is_restless=True,
    identity=index_of,
)
ADDRESSES = Table(
    "addresses", ifaddrmsg, 22, ("local", "address", "flags"), identity=lambda address: address
)
ROUTES = Table(
    "routes",
    rtmsg,
    26,
    ("dst", "gateway", "table", "oif", "priority", "metrics", "prefsrc"),
    _is_of_an_owner,
)
LOCAL_ROUTES = ROUTES._replace(name="the local table", takes=None, identity=lambda entry: entry)
"""What the host takes for its own: the kernel asks this table before all rules."""
LOOKUPS = ROUTES._replace(name="the route of a packet", takes=None)
NEIGHBOURS = Table(
    "permanent neighbours", ndmsg, 30, ("dst", "lladdr"), _is_permanent, is_restless=True
)
RULES = Table("rules", fibmsg, 34)


# -- requests

WIDTHS = {"uint8": 1, "uint16": 2, "uint32": 4, "netns_fd": 4}
"""Bytes of a number, by pyroute2's word for its kind."""

INNER = {
    "IFLA_INFO_KIND": (1, "asciiz"),
    "IFLA_INFO_DATA": (2, "nested"),
    "VETH_INFO_PEER": (1, "nested"),
}
"""Numbers of attributes inside of others (linux/if_link.h, linux/veth.h)."""

PEER_HEADER = bytes(16)
"""The other end of a veth is described by a whole message, of which this is the beginning."""


def pack_entry(table: Table, fields: Mapping[str, int], wanted: Attributes) -> bytes:
    """Return a request's body: what an entry's message begins with, and attributes."""
    form, names = _fields(table.message)
    head = form.pack(*(fields.get(name, 0) for name in names))
    return head + _pack(wanted, _numbers(table.message))


def _pack(wanted: Attributes, numbers: Mapping[str, tuple[int, str]]) -> bytes:
    packed = []
    for name, value in wanted:
        number, kind = numbers[name]
        match value:
            case tuple():
                payload = PEER_HEADER if name == "VETH_INFO_PEER" else b""
                payload += _pack(value, numbers)
            case int():
                # Four, if it is taken for something else: IFA_TARGET_NETNSID is.
                payload = value.to_bytes(WIDTHS.get(kind, 4), sys.byteorder)
            case _ if kind == "asciiz":
                payload = value.encode() + b"\0"
            case _ if kind in ("l2addr", "lladdr"):
                payload = bytes.fromhex(value.replace(":", ""))
            case _:
                payload = ip_address(value).packed
        packed.append(attribute(number, payload))
    return b"".join(packed)


@cache
def _fields(message: Any) -> tuple[struct.Struct, tuple[str, ...]]:
    """Return what a message begins with, and the names of what is in it."""
    form = struct.Struct("=" + "".join(form for _, form in message.fields))
    return form, tuple(name for name, form in message.fields if not form.endswith("x"))


@cache
def _numbers(message: Any) -> Mapping[str, tuple[int, str]]:
    """Return number and kind of each attribute, by its name."""
    listed = message.nla_map
    numbered = listed if len(listed[0]) == 3 else [(n, *named) for n, named in enumerate(listed)]
    return {name: (number, kind) for number, name, kind in numbered} | INNER


# -- answers, as bytes


def value_of(table: Table, content: bytes, name: str) -> bytes:
    """Return an attribute of a message, not decoded; nothing if it has none of that name."""
    return values_of(table, content, name)[0]


def values_of(table: Table, content: bytes, *names: str) -> list[bytes]:
    """Return some attributes of a message, as ``value_of`` does."""
    # Not by ``message.attributes``: each of 200,000 routes that a host may have comes by here.
    numbers, position = _places_of(table.message, names)
    found = [b""] * len(names)
    left, end = len(names), len(content) - ATTRIBUTE.size
    while left and position <= end:
        length, number = ATTRIBUTE.unpack_from(content, position)
        place = numbers.get(number & NLA_TYPE_MASK)
        if place is not None:
            found[place] = content[position + ATTRIBUTE.size : position + length]
            left -= 1
        position += (length + 3 & ~3) or ATTRIBUTE.size
    return found


@cache
def _places_of(message: Any, names: tuple[str, ...]) -> tuple[Mapping[int, int], int]:
    """Return the places of attributes by number, and where the first one begins."""
    places = {_numbers(message)[name][0]: place for place, name in enumerate(names)}
    return places, HEADER.size + _fields(message)[0].size


KIND_END, NOT_KEPT = 6, bytes(10)
"""Where a message's type ends, and what stands for the rest of its header."""

MAX_LAYOUTS = 1024
"""Layouts that are remembered. A node has a handful; with each more name of a pod's link there
is a message of one more length."""


class _Layout(NamedTuple):
    """Where the attributes of a message are.

    Attributes:
        headers: of all its attributes, and before them the message's own type.
        told: what they say; a message that says the same has its attributes in the same places.
        kept: the wanted ones.
        header: what the message begins with when nothing else is left.
    """

    headers: struct.Struct
    told: tuple[int, ...]
    kept: tuple[slice, ...]
    header: bytes


_layouts: dict[tuple[int, int], _Layout] = {}
"""The last one seen, by table and length: a node has hundreds of links and neighbours that differ
in their numbers alone, and to go from attribute to attribute takes four times as long."""


def wanted_of(table: Table, content: bytes) -> bytes:
    """Leave out of a message whatever is not wanted, and who asked."""
    place = table.get, len(content)
    layout = _layouts.get(place)
    if layout is None or layout.headers.unpack(content) != layout.told:
        if len(_layouts) >= MAX_LAYOUTS:
            _layouts.clear()
        layout = _layouts[place] = _lay_out(table, content)
    return layout.header + b"".join([content[part] for part in layout.kept])


def comparable(table: Table, content: bytes) -> bytes:
    """Return a message without what differs from dump to dump: who asked, counters, ages."""
    if table.is_restless:
        return wanted_of(table, content)
    # Who asked is in the header, and no two sockets have the same number.
    return content[:KIND_END] + NOT_KEPT + content[HEADER.size :]


def _lay_out(table: Table, content: bytes) -> _Layout:
    """Go from attribute to attribute."""
    wanted = _wanted(table)
    start = position = HEADER.size + _fields(table.message)[0].size
    form = f"=4xH{start - KIND_END}x"
    kept = [slice(HEADER.size, start if wanted else len(content))]
    while position < len(content):
        length, number = ATTRIBUTE.unpack_from(content, position)
        after = min(position + (length + 3 & ~3), len(content))
        if number & NLA_TYPE_MASK in wanted:
            kept.append(slice(position, after))
        form += f"HH{after - position - ATTRIBUTE.size}x"
        position = after
    headers = struct.Struct(form)
    told = headers.unpack(content)
    size = HEADER.size + sum(part.stop - part.start for part in kept)
    return _Layout(headers, told, tuple(kept), HEADER.pack(size, told[0], 0, 0, 0))


# -- answers, decoded


def _read_text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")  # an alias may be anything


def _read_signed(value: bytes) -> int:
    return native(value, signed=True)


def _read_mac(value: bytes) -> str:
    return value.hex(":")


def _read_address(value: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(value) == 4 else socket.AF_INET6, value)


def read_link_kind(value: bytes) -> str:
    """Return ``IFLA_INFO_KIND``, which comes first; what is only another's port has none."""
    length, number = ATTRIBUTE.unpack_from(value)
    is_kind = number == INNER["IFLA_INFO_KIND"][0]
    return _read_text(value[ATTRIBUTE.size : length]) if is_kind else ""


READERS: Mapping[str, Callable[[bytes], int | str]] = {
    "asciiz": _read_text,
    "int32": _read_signed,
    "uint32": native,
    "l2addr": _read_mac,
    "lladdr": _read_mac,
    "ipaddr": _read_address,
    "target": _read_address,
    "ifinfo": read_link_kind,
}
"""By pyroute2's word for a kind of attribute."""


_UNKNOWN = ("", None)


@cache
def _wanted(table: Table) -> Mapping[int, tuple[str, Callable[[bytes], int | str] | None]]:
    """Return what wanted attributes are called in ``Facts``, and how they are read, by number."""
    found = {}
    for way in table.attributes:
        outer, name = (way, way) if isinstance(way, str) else way
        number, kind = _numbers(table.message)[f"{table.message.prefix}{outer.upper()}"]
        found[number] = (name, READERS.get(kind))
    return found


def decode_message(table: Table, content: bytes) -> Facts:
    """Decode what is wanted of a message; all of it, and all that is not plain, by pyroute2."""
    form, names = _fields(table.message)
    facts = dict(zip(names, form.unpack_from(content, HEADER.size), strict=True))
    wanted = _wanted(table)
    position, end = HEADER.size + form.size, len(content)
    while position < end:
        length, number = ATTRIBUTE.unpack_from(content, position)
        name, read = wanted.get(number & NLA_TYPE_MASK, _UNKNOWN)
        if read is None:
            return _decode_whole(table, content)
        facts[name] = read(content[position + ATTRIBUTE.size : position + length])
        position += length + 3 & ~3
    return facts


def _decode_whole(table: Table, content: bytes) -> Facts:
    message = table.message(content)
    message.decode()
    facts: dict[str, Any] = {name: message[name] for name, _ in table.message.fields}
    if not table.attributes:
        prefix = len(table.message.prefix)
        facts |= {name[prefix:].lower(): value for name, value in message["attrs"]}
        facts["attrs"] = tuple(message["attrs"])
    for way in table.attributes:
        if (value := message.get(way)) is not None:
            facts[way if isinstance(way, str) else way[-1]] = value
    return facts
