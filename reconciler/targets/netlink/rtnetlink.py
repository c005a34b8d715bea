"""rtnetlink by pyroute2's tables of attributes, without its event loop: a door to ``pyroute2``.

``IPRoute`` runs an event loop for each message it reads, and decodes some forty attributes of each
link. Both are paid for every pod on the node at every look. Here one plain socket is asked, and
what is told in the same bytes as before is not decoded again. Counters and ages are cut out of it,
and what is plain is packed and read here (decision 20).

How much is in a table is up to whoever writes into it. So the kernel is asked with filters
(NETLINK_GET_STRICT_CHK, Linux 4.20), its answer is looked at message by message, and what is not
wanted is never kept; bytes, tries and time of each question have a bound (decision 21).
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from functools import cache
from ipaddress import ip_address
from typing import Any, NamedTuple

from pyroute2.netlink.exceptions import NetlinkDumpInterrupted, NetlinkError
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from reconciler.core.datapath import PROTOCOL
from reconciler.errors import ObserveError

Facts = Any
"""A message as a dict: its header's fields, and the attributes that the kernel sent by their names
without the prefix (``ifname``)."""

Memory = dict[str, dict[bytes, Facts]]
"""What was decoded at the last observation, by question and content."""

Told = tuple[bytes, ...]
"""A table's messages, without who asked, and without counters and ages."""

DUMP_ATTEMPTS = 30
"""A dump the kernel marks as interrupted (NLM_F_DUMP_INTR) is not the truth. Cilium settled on
30 tries (cilium/cilium#35614)."""

UNITED_ATTEMPTS = 3
"""Tries after which what several interrupted dumps have shown together is taken for the whole,
where one entry too many does no harm (``Table.identity``)."""


class Bounds(NamedTuple):
    """How much of one table is read at most.

    Attributes:
        size: bytes of the kernel's answers to one question, over all tries.
        attempts: tries of a dump that the kernel marks as interrupted.
        seconds: over all tries.
    """

    size: int
    attempts: int
    seconds: float


HOST_BOUNDS = Bounds(256 << 20, DUMP_ATTEMPTS, 5.0)
"""For the host's tables: 200,000 routes are some 15 MB, and a dump of them takes half a second.
Nothing of it is kept but what is wanted."""

POD_BOUNDS = Bounds(1 << 20, 5, 1.0)
"""For one question to a pod's namespace: some 10,000 entries. What we put there is a handful."""

RECEIVE_BYTES = 1 << 17
"""The kernel fills as much of a dump into one answer as the reader has room for, up to 32 KiB."""

HEADER = struct.Struct("=IHHII")
"""``struct nlmsghdr``: length, type, flags, sequence, port."""

KIND_END, NOBODY = 6, bytes(10)
"""Where its type ends, and what stands for the rest."""

ATTRIBUTE = struct.Struct("=HH")
"""``struct nlattr``: length, type."""

NLA_TYPE_MASK = 0x3FFF

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

RTEXT_FILTER_SKIP_STATS = 0x8
"""Without IPv6's counters, a third of each message (linux/rtnetlink.h, Linux 4.4)."""

ARPHRD_ETHER = 1

STACKED = {"bond", "bridge", "ipvlan", "macvlan", "vlan"}
"""Links that copy the MAC of an interface below them, and so are not the ENI."""

NUD_PERMANENT = 0x80
RTN_UNICAST = 1

U16 = struct.Struct("=H")
I32 = struct.Struct("=i")

AF = {"ipv4": 2, "ipv6": 10}
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_DUMP_INTR = 0x10
SOL_NETLINK, NETLINK_GET_STRICT_CHK = 270, 12


Attributes = tuple[tuple[str, Any], ...]
"""Attributes of a request, by pyroute2's names; a tuple is what is inside of one."""


class How(Enum):
    """Ways to change an entry: its message's distance from the request to read, and flags.

    Source: linux/rtnetlink.h (RTM_NEW* and RTM_DEL* come before RTM_GET*), linux/netlink.h.
    """

    SET = (-2, 0)
    CREATE = (-2, 0x400 | 0x200)
    REPLACE = (-2, 0x400 | 0x100)
    DELETE = (-1, 0)

    @property
    def offset(self) -> int:
        """From RTM_GET* to the message's type."""
        return self.value[0]

    @property
    def flags(self) -> int:
        """NLM_F_CREATE with NLM_F_EXCL or NLM_F_REPLACE."""
        return self.value[1]


CHANGE_BOUNDS = Bounds(RECEIVE_BYTES, 1, float("inf"))
"""For the answer to one change. It may take as long as others hold the kernel's lock: what has
become of a change that is not waited for is not known."""


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


def _is_of_somebody(route: bytes) -> bool:
    """Leave out what the kernel keeps for itself: routes to its own addresses, broadcasts."""
    protocol, kind = route[HEADER.size + 5], route[HEADER.size + 7]  # ``struct rtmsg``
    return kind == RTN_UNICAST or protocol == PROTOCOL


def index_of(link: bytes) -> int:
    """Return a link's index, by its message."""
    index: int = I32.unpack_from(link, HEADER.size + 4)[0]  # ``struct ifinfomsg``
    return index


def name_of(link: bytes) -> bytes:
    """Return a link's name, by its message."""
    return attribute(LINKS, link, "IFLA_IFNAME").rstrip(b"\0")


def may_be_eni(link: bytes) -> bool:
    """Whether a link is Ethernet, and not stacked on another, by its message."""
    (kind,) = U16.unpack_from(link, HEADER.size + 2)  # ``struct ifinfomsg``
    info = attribute(LINKS, link, "IFLA_LINKINFO")
    return kind == ARPHRD_ETHER and not (info and _read_link_kind(info) in STACKED)


def _is_permanent(neighbour: bytes) -> bool:
    """Leave out what comes and goes with traffic."""
    (state,) = U16.unpack_from(neighbour, HEADER.size + 8)  # ``struct ndmsg``
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
    _is_of_somebody,
)
LOCAL_ROUTES = ROUTES._replace(name="the local table", takes=None, identity=lambda entry: entry)
"""What the host takes for its own: the kernel asks this table before all rules."""
NEIGHBOURS = Table(
    "permanent neighbours", ndmsg, 30, ("dst", "lladdr"), _is_permanent, is_restless=True
)
RULES = Table("rules", fibmsg, 34)


class Rtnetlink:
    """A socket into the namespace its thread was in when it was made; it stays there for life.

    Args:
        memory: shared by the sockets into one namespace; without it everything is decoded.
        bounds: of each question. A question that goes beyond them leaves the socket of no use.
    """

    def __init__(self, memory: Memory | None = None, bounds: Bounds = HOST_BOUNDS) -> None:
        self._memory = memory
        self._bounds = bounds
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        # Without it the kernel takes no notice of a filter, and shows the whole table.
        self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)

    def __enter__(self) -> Rtnetlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def dump(self, table: Table, filters: Attributes = (), **fields: int) -> list[Facts]:
        """Read a table, again if the kernel says that it changed meanwhile.

        Of routes and rules without a ``family`` the kernel shows those of one family only.

        Args:
            table: which.
            filters: what entries must have, where the kernel can tell.
            fields: the same, of what an entry's message begins with.

        Raises:
            NetlinkError: the kernel refused.
            ObserveError: the table never stood still, or is beyond the bounds.
        """
        told = self.read(table, filters, None, **fields)
        return self.decode(table, told, (filters, *sorted(fields.items())))

    def read(
        self,
        table: Table,
        filters: Attributes = (),
        takes: Callable[[bytes], bool] | None = None,
        **fields: int,
    ) -> Told:
        """Read a table as ``dump`` does, for ``decode`` to make sense of.

        Args:
            table: which.
            filters: what entries must have, where the kernel can tell.
            takes: whether an entry is wanted, where only we can; it is given its whole message.
            fields: what an entry's message must begin with.

        Raises:
            NetlinkError: the kernel refused.
            ObserveError: the table never stood still, or is beyond the bounds.
        """
        request = _request(table, NLM_F_DUMP, fields, table.asks + filters)
        meter = _Meter(table.name, self._bounds)
        united: dict[object, bytes] = {}
        attempts = min(self._bounds.attempts, UNITED_ATTEMPTS if table.identity else DUMP_ATTEMPTS)
        for _ in range(attempts):
            told: list[bytes] = []
            try:
                for content in self._ask(request, NLM_F_DUMP, meter):
                    if table.takes is not None and not table.takes(content):
                        continue
                    if takes is None or takes(content):
                        told.append(_cut(table, content))
            except NetlinkDumpInterrupted:
                if table.identity:
                    united |= {table.identity(entry): entry for entry in told}
                continue
            return tuple(told)
        if table.identity:
            return tuple(united.values())
        raise ObserveError(table.name, f"they changed during each of {attempts} dumps")

    def decode(self, table: Table, told: Told, question: object = None) -> list[Facts]:
        """Decode what was read; the same message twice is decoded once.

        Args:
            table: which.
            told: as read.
            question: tells it from others about the same table.
        """
        if self._memory is None:
            return [decode_message(table, _wanted(table, content)) for content in told]
        what = f"{table.name} {question}"
        before = self._memory.get(what, {})
        now = {
            c: before[c] if c in before else decode_message(table, _wanted(table, c)) for c in told
        }
        self._memory[what] = now
        return [now[content] for content in told]

    def read_one(self, table: Table, attributes: Attributes, **fields: int) -> Told:
        """Read one entry, to be decoded; nothing if it is none of those that are wanted.

        Raises:
            NetlinkError: the kernel has no such entry, or refused.
        """
        request = _request(table, 0, fields, attributes)
        answer = self._ask(request, 0, _Meter(table.name, self._bounds))
        return tuple(_wanted(table, c) for c in answer if not table.takes or table.takes(c))

    def change(self, table: Table, how: How, attributes: Attributes, **fields: int) -> None:
        """Make, change or delete one entry.

        Raises:
            NetlinkError: the kernel refused.
        """
        self._change(table, _request(table, how.flags | NLM_F_ACK, fields, attributes, how.offset))

    def delete(self, table: Table, told: bytes) -> None:
        """Delete the entry of which the kernel told this, its message without the header.

        Raises:
            NetlinkError: the kernel refused.
        """
        kind, flags = table.get + How.DELETE.offset, NLM_F_REQUEST | NLM_F_ACK
        self._change(table, HEADER.pack(HEADER.size + len(told), kind, flags, 0, 0) + told)

    def _change(self, table: Table, request: bytes) -> None:
        for _ in self._ask(request, NLM_F_ACK, _Meter(table.name, CHANGE_BOUNDS)):
            pass

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _ask(self, request: bytes, flags: int, meter: _Meter) -> Iterator[bytes]:
        """Yield the answer's messages.

        Raises:
            NetlinkError: the kernel refused.
            NetlinkDumpInterrupted: what was told is not of one moment.
            ObserveError: it is more than the bounds allow.
        """
        self._socket.send(request)
        interrupted = False
        pieces = 0
        while True:
            answer = self._socket.recv(RECEIVE_BYTES)
            meter.count(len(answer))
            position = 0
            while position < len(answer):
                length, kind, its_flags, _, _ = HEADER.unpack_from(answer, position)
                if not HEADER.size <= length <= len(answer) - position:
                    raise ObserveError(meter.what, f"a message of {length} bytes is cut off")
                content = answer[position : position + length]
                position += (length + 3) & ~3
                interrupted |= bool(its_flags & NLM_F_DUMP_INTR)
                if kind in (NLMSG_ERROR, NLMSG_DONE):
                    _raise_refusal(content)
                    # What came in one piece is of one moment, whatever changed until the kernel
                    # found that there is no more (``netlink_dump_done``).
                    if interrupted and pieces > 1:
                        raise NetlinkDumpInterrupted
                    return
                pieces += position == (length + 3) & ~3
                yield content
            if not flags & (NLM_F_DUMP | NLM_F_ACK):
                return


class _Meter:
    """Counts what one question costs.

    Args:
        what: is asked for.
        bounds: of it.
    """

    def __init__(self, what: str, bounds: Bounds) -> None:
        self.what = what
        self._bounds = bounds
        self._size = 0
        self._until = time.monotonic() + bounds.seconds

    def count(self, size: int) -> None:
        """Add an answer's bytes.

        Raises:
            ObserveError: they are too many, or it takes too long.
        """
        self._size += size
        if self._size > self._bounds.size:
            limit = self._bounds.size >> 20
            raise ObserveError(self.what, f"they are more than {limit} MiB, the most that is read")
        if time.monotonic() > self._until:
            limit_s = self._bounds.seconds
            raise ObserveError(self.what, f"reading them took longer than {limit_s:.0f} s")


def _request(
    table: Table, flags: int, fields: Mapping[str, int], attributes: Attributes, offset: int = 0
) -> bytes:
    form, names = _fields(table.message)
    body = form.pack(*(fields.get(name, 0) for name in names))
    body += _pack(attributes, _numbers(table.message))
    return (
        HEADER.pack(HEADER.size + len(body), table.get + offset, flags | NLM_F_REQUEST, 0, 0)
        + body
    )


def _pack(attributes: Attributes, numbers: Mapping[str, tuple[int, str]]) -> bytes:
    """Return attributes as the kernel reads them, each filled up to four bytes (netlink(7))."""
    packed = []
    for name, value in attributes:
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
        length = ATTRIBUTE.size + len(payload)
        packed += [ATTRIBUTE.pack(length, number), payload, bytes(-length % 4)]
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


def _raise_refusal(content: bytes) -> None:
    """Raise what an error message, or the end of a dump, says went wrong."""
    body = content[HEADER.size : HEADER.size + 4]
    code = -struct.unpack("=i", body)[0] if len(body) == 4 else 0
    if code:
        raise NetlinkError(code, os.strerror(code))


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


MAX_LAYOUTS = 1024
"""Layouts that are remembered. A node has a handful; with each more name of a pod's link there
is a message of one more length."""


def _wanted(table: Table, content: bytes) -> bytes:
    """Leave out of a message whatever is not wanted, and who asked."""
    place = table.get, len(content)
    layout = _layouts.get(place)
    if layout is None or layout.headers.unpack(content) != layout.told:
        if len(_layouts) >= MAX_LAYOUTS:
            _layouts.clear()
        layout = _layouts[place] = _lay_out(table, content)
    return layout.header + b"".join([content[part] for part in layout.kept])


def _cut(table: Table, content: bytes) -> bytes:
    """Leave out who asked, and of a restless table all that is not wanted."""
    if table.is_restless:
        return _wanted(table, content)
    # Who asked is in the header, and no two sockets have the same number.
    return content[:KIND_END] + NOBODY + content[HEADER.size :]


def _lay_out(table: Table, content: bytes) -> _Layout:
    """Go from attribute to attribute."""
    numbers = _wanted_numbers(table)
    start = position = HEADER.size + _fields(table.message)[0].size
    form = f"=4xH{start - KIND_END}x"
    kept = [slice(HEADER.size, start if numbers else len(content))]
    while position < len(content):
        length, number = ATTRIBUTE.unpack_from(content, position)
        after = min(position + (length + 3 & ~3), len(content))
        if number & NLA_TYPE_MASK in numbers:
            kept.append(slice(position, after))
        form += f"HH{after - position - ATTRIBUTE.size}x"
        position = after
    headers = struct.Struct(form)
    told = headers.unpack(content)
    size = HEADER.size + sum(part.stop - part.start for part in kept)
    return _Layout(headers, told, tuple(kept), HEADER.pack(size, told[0], 0, 0, 0))


@cache
def _wanted_numbers(table: Table) -> Mapping[int, tuple[str, str]]:
    """Return what wanted attributes are called in ``Facts``, and their kind, by number."""
    found = {}
    for way in table.attributes:
        outer, name = (way, way) if isinstance(way, str) else way
        number, kind = _numbers(table.message)[f"{table.message.prefix}{outer.upper()}"]
        found[number] = (name, kind)
    return found


def decode_message(table: Table, content: bytes) -> Facts:
    """Decode what is wanted of a message; all of it, and all that is not plain, by pyroute2."""
    form, names = _fields(table.message)
    facts = dict(zip(names, form.unpack_from(content, HEADER.size), strict=True))
    position = HEADER.size + form.size
    wanted = _wanted_numbers(table)
    while position < len(content):
        length, number = ATTRIBUTE.unpack_from(content, position)
        name, kind = wanted.get(number & NLA_TYPE_MASK, ("", ""))
        if kind not in READERS:
            return _decode_whole(table, content)
        facts[name] = READERS[kind](content[position + ATTRIBUTE.size : position + length])
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


def attribute(table: Table, content: bytes, name: str) -> bytes:
    """Return an attribute of a message, not decoded; nothing if it has none of that name."""
    return attributes(table, content, name)[0]


def attributes(table: Table, content: bytes, *names: str) -> list[bytes]:
    """Return some attributes of a message, as ``attribute`` does."""
    numbers, position = _numbers_of(table.message, names)
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
def _numbers_of(message: Any, names: tuple[str, ...]) -> tuple[Mapping[int, int], int]:
    """Return the places of attributes by number, and where the first one begins."""
    places = {_numbers(message)[name][0]: place for place, name in enumerate(names)}
    return places, HEADER.size + _fields(message)[0].size


def _read_text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")  # an alias may be anything


def _read_number(value: bytes) -> int:
    return int.from_bytes(value, sys.byteorder)


def _read_signed(value: bytes) -> int:
    return int.from_bytes(value, sys.byteorder, signed=True)


def _read_mac(value: bytes) -> str:
    return value.hex(":")


def _read_address(value: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(value) == 4 else socket.AF_INET6, value)


def _read_link_kind(value: bytes) -> str:
    """Return ``IFLA_INFO_KIND``, which comes first; what is only another's port has none."""
    length, number = ATTRIBUTE.unpack_from(value)
    is_kind = number == INNER["IFLA_INFO_KIND"][0]
    return _read_text(value[ATTRIBUTE.size : length]) if is_kind else ""


READERS: Mapping[str, Callable[[bytes], int | str]] = {
    "asciiz": _read_text,
    "int32": _read_signed,
    "uint32": _read_number,
    "l2addr": _read_mac,
    "lladdr": _read_mac,
    "ipaddr": _read_address,
    "target": _read_address,
    "ifinfo": _read_link_kind,
}
"""By pyroute2's word for a kind of attribute."""
