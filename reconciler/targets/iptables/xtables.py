"""iptables' matches and targets as the kernel keeps them, alike in both backends.

Structures: linux/netfilter/xt_*.h. What is not decoded is named, and may hold or not.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable

from reconciler.diagnostics import ruleset as of

STATES, UNTRACKED, BY_DNAT = 0xF, 1 << 8, 1 << 7
"""Bits of XT_CONNTRACK_STATE_BIT: invalid, established, related and new are nftables' as well."""

DNATED = 1 << 5
XT_CONNTRACK_STATE = 1
XT_ADDRTYPE_INVERT_DEST = 2
XT_CONNMARK_RESTORE = 2
XT_RPFILTER_INVERT = 8
XT_CT_NOTRACK = 1

NEUTRAL = {
    *("AUDIT", "CHECKSUM", "CLASSIFY", "CONNSECMARK", "CT", "DSCP", "HL", "LED", "LOG", "NFLOG"),
    *("RATEEST", "SECMARK", "SET", "TCPMSS", "TCPOPTSTRIP", "TOS", "TRACE", "TTL"),
}
"""Targets after which a packet goes on to the next rule, unchanged in what rules here ask for."""

SOURCE, DESTINATION = ("MASQUERADE", "SNAT"), ("DNAT", "REDIRECT")
VERDICTS = {"REJECT": "drop"} | dict.fromkeys(SOURCE, "snat") | dict.fromkeys(DESTINATION, "dnat")

Expressions = tuple[of.Expression, ...]


def decode_match(name: str, revision: int, info: bytes) -> Expressions:
    """Return what a match asks for."""
    try:
        return MATCHES[name](revision, info)
    except (KeyError, struct.error, IndexError, NotImplementedError):
        return (of.Unclear(name),)


def decode_target(name: str, revision: int, info: bytes) -> Expressions:
    """Return what a target does, but for the verdicts that are no extension."""
    if name in VERDICTS:
        return (of.Verdict(VERDICTS[name]),)
    if name == "NOTRACK" or (name == "CT" and info[:1] and info[0] & XT_CT_NOTRACK):
        return (of.Changes("notrack"),)
    if name in NEUTRAL:
        return ()
    try:
        if name == "MARK" and revision == 2:
            mark, mask = struct.unpack_from("II", info)
            return (of.SetMark(mask, mark),)
        if name == "CONNMARK" and revision >= 1:
            nfmask, mode = struct.unpack_from("8xIB", info)
            return (of.SetMark(nfmask, 0, known=False),) if mode == XT_CONNMARK_RESTORE else ()
    except struct.error:
        pass  # of a kernel that keeps it otherwise
    return (of.Unclear(name, ends=True),)


def _understood(*conditions: bool) -> None:
    if not all(conditions):
        raise NotImplementedError


def _mark(revision: int, info: bytes) -> Expressions:
    _understood(revision == 1)
    return (of.field_is("mark", 0, info[4:8], info[:4], bool(info[8])),)


def _any_bit(field: str, bits: int, negated: bool) -> Expressions:
    # "Any of these bits" is the opposite of "none of them".
    return (of.field_is(field, 0, _host(bits), bytes(4), not negated),)


def _conntrack(revision: int, info: bytes) -> Expressions:
    flags, inverted, states = struct.unpack_from("HHH", info, 146)
    _understood(revision in (2, 3), flags == XT_CONNTRACK_STATE)
    negated = bool(inverted & XT_CONNTRACK_STATE)
    if states == BY_DNAT:
        return _any_bit("status", DNATED, negated)
    return _state(0, struct.pack("I", states), negated)


def _state(_: int, info: bytes, negated: bool = False) -> Expressions:
    (states,) = struct.unpack_from("I", info)
    _understood(not states & ~(STATES | UNTRACKED))
    return _any_bit("state", states & STATES, negated)


def _tcp(_: int, info: bytes) -> Expressions:
    *ports, option, mask, _flags, inverted = struct.unpack_from("4H4B", info)
    unclear = (of.Unclear("TCP flags"),) if mask or option else ()
    return (*_ports(ports, inverted), *unclear)


def _udp(_: int, info: bytes) -> Expressions:
    *ports, inverted = struct.unpack_from("4HB", info)
    return _ports(ports, inverted)


def _ports(ports: list[int], inverted: int) -> Expressions:
    sides = ((0, *ports[:2], inverted & 1), (2, *ports[2:], inverted & 2))
    return tuple(
        of.FieldIn("transport", at, ((_port(low), _port(high)),), bool(negated))
        for at, low, high, negated in sides
        if (low, high) != (0, 0xFFFF)
    )


def _multiport(revision: int, info: bytes) -> Expressions:
    flags, count = info[0], info[1]
    ports, starts = struct.unpack_from("15H", info, 2), struct.unpack_from("15B", info, 32)
    _understood(revision == 1, flags <= 1, count <= len(ports))
    ranges: list[tuple[bytes, bytes]] = []
    number = 0
    while number < count:
        last = number + 1 if starts[number] and number + 1 < count else number
        ranges.append((_port(ports[number]), _port(ports[last])))
        number = last + 1
    return (of.FieldIn("transport", 2 * flags, tuple(ranges), bool(info[47])),)


def _addrtype(revision: int, info: bytes) -> Expressions:
    source, destination, flags = struct.unpack_from("HHI", info)
    if revision == 0:
        (flags,) = struct.unpack_from("I", info, 8)
        flags = XT_ADDRTYPE_INVERT_DEST if flags else 0
    _understood(not source, bool(destination), not flags & ~XT_ADDRTYPE_INVERT_DEST)
    kinds = tuple(_host(kind) for kind in range(12) if destination >> kind & 1)
    return (of.FieldIn("daddrtype", 0, tuple((k, k) for k in kinds), bool(flags)),)


def _rpfilter(_: int, info: bytes) -> Expressions:
    is_not = bool(info[0] & XT_RPFILTER_INVERT)
    return (of.field_is("wayback", 0, b"\xff" * 4, bytes((0, 0, 0, 1)), is_not),)


MATCHES: dict[str, Callable[[int, bytes], Expressions]] = {
    "comment": lambda revision, info: (),
    "mark": _mark,
    "conntrack": _conntrack,
    "state": _state,
    "tcp": _tcp,
    "udp": _udp,
    "multiport": _multiport,
    "addrtype": _addrtype,
    "rpfilter": _rpfilter,
}


def _host(value: int) -> bytes:
    return value.to_bytes(4, sys.byteorder)


def _port(value: int) -> bytes:
    return value.to_bytes(2, "big")
