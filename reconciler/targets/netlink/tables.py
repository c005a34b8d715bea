"""rtnetlink's tables: what is asked of them, and what an entry says.

An entry is a message without its netlink header. Numbers and kinds of attributes are pyroute2's,
to which this is a door. They are packed and read here, because its messages can be anything that
netlink knows, and cost accordingly (decision 20).
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache, lru_cache
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
    NLA_TYPE_MASK,
    attribute,
    attributes,
    native,
)

AF = {"ipv4": 2, "ipv6": 10}

ARPHRD_ETHER = 1
NUD_PERMANENT = 0x80
RTN_UNICAST = 1
RTPROT_KERNEL = 2

RTEXT_FILTER_SKIP_STATS = 0x8
"""Without IPv6's counters, a third of each message (linux/rtnetlink.h, Linux 4.4)."""

IFLA_AF_SPEC, IFLA_INET_CONF, ACCEPT_LOCAL = 26, 1, 23
"""Settings of a link by family, IPv4's, and one of them (linux/if_link.h, linux/ip.h)."""

IFF_UP = 0x1
IFA_F_NODAD, IFA_F_NOPREFIXROUTE = 0x02, 0x200
FR_ACT_TO_TBL, FR_ACT_GOTO = 1, 2
SCOPE_UNIVERSE, SCOPE_LINK, SCOPE_NOWHERE = 0, 253, 255


def af_of(address: IpAddress | IpNetwork) -> int:
    """Return the family's number."""
    return AF["ipv4" if address.version == 4 else "ipv6"]


Facts = Any
"""An entry as a dict: its header's fields, and the attributes that the kernel sent, by their names
without the prefix (``ifname``)."""

Attributes = tuple[tuple[str, Any], ...]
"""Attributes of a request, by pyroute2's names; a tuple is what is inside of one.

Values are as pyroute2's tables have them, which have no types."""


class Table(NamedTuple):
    """One of the kernel's tables.

    Attributes:
        message: pyroute2's class for its entries.
        get: the request (linux/rtnetlink.h).
        attributes: those that are wanted; all, if none are named.
        takes: whether an entry is wanted; all are, if this is None.
        asks: attributes of a request for the whole table.
        is_restless: its entries have counters or ages, which change by themselves.
        part: an attribute of which only one inside of it is kept: their numbers.
        identity: tells entries apart where a dump may be put together from interrupted ones: such
            an entry is there if any of them has shown it.
    """

    name: str
    message: Any  # pyroute2 has no types
    get: int
    attributes: tuple[str, ...] = ()
    takes: Callable[[bytes], bool] | None = None
    asks: Attributes = ()
    is_restless: bool = False
    part: tuple[int, int] | None = None
    identity: Callable[[bytes], object] | None = None


def index_of(link: bytes) -> int:
    """Return a link's index."""
    return native(link[4:8])  # ``struct ifinfomsg``


def _is_of_an_owner(route: bytes) -> bool:
    """Leave out what the kernel keeps for itself: routes to its own addresses, broadcasts."""
    return route[7] == RTN_UNICAST or route[5] == PROTOCOL  # ``struct rtmsg``


def _is_permanent(neighbour: bytes) -> bool:
    """Leave out what comes and goes with traffic."""
    return bool(native(neighbour[8:10]) & NUD_PERMANENT)  # ``struct ndmsg``


LINKS = Table(
    "links",
    ifinfmsg,
    18,
    (
        "ifname",
        "address",
        "mtu",
        "link",
        "group",
        "ifalias",
        "link_netnsid",
        "linkinfo",
        "af_spec",
    ),
    asks=(("IFLA_EXT_MASK", RTEXT_FILTER_SKIP_STATS),),
    is_restless=True,
    part=(IFLA_AF_SPEC, AF["ipv4"]),
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


@cache
def _header(message: Any) -> tuple[struct.Struct, tuple[str, ...]]:
    """Return what an entry begins with, and the names of what is in it."""
    form = struct.Struct("=" + "".join(form for _, form in message.fields))
    return form, tuple(name for name, form in message.fields if not form.endswith("x"))


@cache
def _numbers(message: Any) -> Mapping[str, tuple[int, str]]:
    """Return number and kind of each attribute, by its name."""
    listed = message.nla_map
    numbered = listed if len(listed[0]) == 3 else [(n, *named) for n, named in enumerate(listed)]
    return {name: (number, kind) for number, name, kind in numbered}


# -- requests

WIDTHS = {"uint8": 1, "uint16": 2}
"""Bytes of a number, by pyroute2's word for its kind; all others have four."""

INNER = {
    "IFLA_INFO_KIND": (1, "asciiz"),
    "IFLA_INFO_DATA": (2, "nested"),
    "VETH_INFO_PEER": (1, "nested"),
    "IFLA_AF_SPEC": (IFLA_AF_SPEC, "nested"),
    "AF_INET": (AF["ipv4"], "nested"),
    "IFLA_INET_CONF": (IFLA_INET_CONF, "nested"),
    "IPV4_DEVCONF_ACCEPT_LOCAL": (ACCEPT_LOCAL, "uint32"),
}
"""Numbers of attributes inside of others (linux/if_link.h, linux/veth.h)."""

PEER_HEADER = bytes(16)
"""The other end of a veth is described by a whole entry, of which this is the beginning."""


def pack_entry(table: Table, fields: Mapping[str, int], wanted: Attributes) -> bytes:
    """Return a request's body: what an entry begins with, and attributes."""
    form, names = _header(table.message)
    return form.pack(*[fields.get(name, 0) for name in names]) + _pack(wanted, table.message)


@lru_cache(1 << 8)
def _pack(wanted: Attributes, message: Any) -> bytes:
    """Return attributes of an entry; most questions are put to each pod's namespace alike."""
    packed = []
    numbers = _numbers(message)
    for name, value in wanted:
        number, kind = INNER.get(name) or numbers[name]
        match value:
            case tuple():
                payload = PEER_HEADER if name == "VETH_INFO_PEER" else b""
                payload += _pack(value, message)
            case int():
                payload = value.to_bytes(WIDTHS.get(kind, 4), sys.byteorder)
            case _ if kind == "asciiz":
                payload = value.encode() + b"\0"
            case _ if kind in ("l2addr", "lladdr"):
                payload = bytes.fromhex(value.replace(":", ""))
            case _:
                payload = ip_address(value).packed
        packed.append(attribute(number, payload))
    return b"".join(packed)


# -- answers


def value_of(table: Table, entry: bytes, name: str) -> bytes:
    """Return an attribute of an entry, not decoded; nothing if it has none of that name."""
    return values_of(table, entry, name)[0]


def values_of(table: Table, entry: bytes, *names: str) -> list[bytes]:
    """Return some attributes of an entry, as ``value_of`` does."""
    # Not by ``message.attributes``: each of 200,000 routes that a host may have comes by here.
    numbers, position = _places_of(table.message, names)
    found = [b""] * len(names)
    left, end = len(names), len(entry) - ATTRIBUTE.size
    while left and position <= end:
        length, number = ATTRIBUTE.unpack_from(entry, position)
        place = numbers.get(number & NLA_TYPE_MASK)
        if place is not None:
            found[place] = entry[position + ATTRIBUTE.size : position + length]
            left -= 1
        position += (length + 3 & ~3) or ATTRIBUTE.size
    return found


@cache
def _places_of(message: Any, names: tuple[str, ...]) -> tuple[Mapping[int, int], int]:
    """Return the places of attributes by number, and where the first one begins."""
    places = {_numbers(message)[name][0]: place for place, name in enumerate(names)}
    return places, _header(message)[0].size


def comparable(table: Table, entry: bytes) -> bytes:
    """Return an entry without counters and ages: the same one is the same bytes (decision 18)."""
    if not table.is_restless:
        return entry
    wanted, start = _wanted(table), _header(table.message)[0].size
    # Two bytes each: to unpack forty attributes of each link takes three times as long.
    words, position, kept = memoryview(entry).cast("H"), start // 2, [entry[:start]]
    end = len(words)
    whole, inner = table.part or (0, 0)
    while position < end:
        after = position + ((words[position] + 3 >> 2) * 2 or 2)
        number = words[position + 1] & NLA_TYPE_MASK
        if number in wanted:
            if number == whole:
                kept.append(_part_of(entry, words, range(position, after), inner))
            else:
                kept.append(entry[2 * position : 2 * after])
        position = after
    return b"".join(kept)


def _part_of(entry: bytes, words: memoryview, place: range, inner: int) -> bytes:
    """Return an attribute with only one of those inside of it; its place is in words."""
    position, end = place.start + 2, min(place.stop, len(words) - 1)
    while position < end:
        after = position + ((words[position] + 3 >> 2) * 2 or 2)
        if words[position + 1] & NLA_TYPE_MASK == inner:
            part = entry[2 * position : 2 * after]
            return ATTRIBUTE.pack(ATTRIBUTE.size + len(part), words[place.start + 1]) + part
        position = after
    return b""


remembered: dict[str, Mapping[bytes, Facts]] = {}
"""By table: what ``decode_host`` has returned the last time, by entry."""


def decode_host(table: Table, told: Iterable[bytes]) -> list[Facts]:
    """Return what is wanted of all that was read of the host's table.

    Entries that were there the last time are not decoded again (decision 18).
    """
    last = remembered.get(table.name, {})
    now = remembered[table.name] = {e: last.get(e) or decode_entry(table, e) for e in told}
    return list(now.values())


def decode_entry(table: Table, entry: bytes) -> Facts:
    """Return what is wanted of an entry."""
    form, names = _header(table.message)
    facts = dict(zip(names, form.unpack_from(entry), strict=True))
    wanted = _wanted(table)
    for number, value in attributes(entry, form.size):
        if number in wanted:
            name, read = wanted[number]
            facts[name] = read(value)
        elif not table.attributes:
            facts[str(number)] = value.hex()
    return facts


@cache
def _wanted(table: Table) -> Mapping[int, tuple[str, Callable[[bytes], int | str]]]:
    """Return what wanted attributes are called in ``Facts``, and how they are read, by number."""
    prefix = len(table.message.prefix)
    named = {n[prefix:].lower(): known for n, known in _numbers(table.message).items()}
    return {
        named[name][0]: (name, READERS.get(named[name][1], bytes.hex))
        for name in table.attributes or named
    }


def _read_text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")  # an alias may be anything


def _read_mac(value: bytes) -> str:
    return value.hex(":")


def _read_address(value: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(value) == 4 else socket.AF_INET6, value)


def read_link_kind(value: bytes) -> str:
    """Return ``IFLA_INFO_KIND``, which comes first; what is only another's port has none."""
    number, kind = next(attributes(value), (0, b""))
    return _read_text(kind) if number == INNER["IFLA_INFO_KIND"][0] else ""


def _read_accept_local(value: bytes) -> int:
    """Return ``accept_local`` of ``IFLA_AF_SPEC``: an array of settings, counted from 1."""
    for family, settings in attributes(value):
        for number, numbers in attributes(settings) if family == AF["ipv4"] else ():
            if number == IFLA_INET_CONF:
                return native(numbers[4 * ACCEPT_LOCAL - 4 : 4 * ACCEPT_LOCAL])
    return 0


def _read_metrics(value: bytes) -> str:
    """Spell a route's metrics (``RTA_METRICS``), as ``mtu 1300 advmss 1260``."""
    known = {number: named for named, (number, _) in _numbers(rtmsg.metrics).items()}
    words = ((known.get(n, f"RTAX_{n}")[5:].lower(), v) for n, v in attributes(value))
    return " ".join(f"{w} {_read_text(v) if w == 'cc_algo' else native(v)}" for w, v in words)


def _read_range(value: bytes) -> str:
    half = len(value) // 2
    return f"{native(value[:half])}:{native(value[half:])}"


READERS: Mapping[str, Callable[[bytes], int | str]] = {
    "asciiz": _read_text,
    "int32": lambda value: native(value, signed=True),
    "uint8": native,
    "uint32": native,
    "l2addr": _read_mac,
    "lladdr": _read_mac,
    "ipaddr": _read_address,
    "target": _read_address,
    "ifinfo": read_link_kind,
    "metrics": _read_metrics,
    "af_spec": _read_accept_local,
    "port_range": _read_range,
    "uid_range": _read_range,
}
"""By pyroute2's word for a kind of attribute; all others are spelt as hexadecimal digits."""
