"""iptables' matches and targets as the kernel keeps them, alike in both backends.

Structures: linux/netfilter/xt_*.h. What is not decoded is named, and may hold or not.
"""

from __future__ import annotations

import struct
import sys

from reconciler.diagnostics.ruleset import (
    Changes,
    Expression,
    FieldIn,
    SetMark,
    Unclear,
    Verdict,
    field_is,
)

HEADER = 32
"""``struct xt_entry_match`` and ``xt_entry_target``: size, name and revision."""

STATES, UNTRACKED, BY_DNAT = 0xF, 1 << 8, 1 << 7
"""Bits of XT_CONNTRACK_STATE_BIT: invalid, established, related and new are nftables' as well."""

DNATED = 1 << 5
XT_CONNTRACK_STATE = 1

NEUTRAL = {
    *("AUDIT", "CHECKSUM", "CLASSIFY", "CONNSECMARK", "CT", "DSCP", "HL", "LED", "LOG", "NFLOG"),
    *("RATEEST", "SECMARK", "SET", "TCPMSS", "TCPOPTSTRIP", "TOS", "TRACE", "TTL"),
}
"""Targets after which a packet goes on to the next rule, unchanged in what rules here ask for."""

VERDICTS = {
    "REJECT": "drop",
    "MASQUERADE": "snat",
    "SNAT": "snat",
    "DNAT": "dnat",
    "REDIRECT": "dnat",
}


def decode_match(name: str, revision: int, info: bytes) -> tuple[Expression, ...]:
    """Return what a match asks for."""
    try:
        return MATCHES[name](revision, info) if name in MATCHES else (Unclear(name),)
    except (struct.error, IndexError):
        return (Unclear(name),)


def decode_target(name: str, revision: int, info: bytes) -> tuple[Expression, ...]:
    """Return what a target does, but for the verdicts that are no extension."""
    if name in VERDICTS:
        return (Verdict(VERDICTS[name]),)
    if name == "NOTRACK" or (name == "CT" and info[:1] and info[0] & 1):  # XT_CT_NOTRACK
        return (Changes("notrack"),)
    if name in NEUTRAL:
        return ()
    try:
        if name == "MARK" and revision == 2:
            mark, mask = struct.unpack_from("II", info)
            return (SetMark(mask, mark),)
        if name == "CONNMARK" and revision >= 1:
            nfmask, mode = struct.unpack_from("8xIB", info)
            return (SetMark(nfmask, 0, known=False),) if mode == RESTORE else ()
    except struct.error:
        pass  # of a kernel that keeps it otherwise
    return (Unclear(name, ends=True),)


RESTORE = 2
"""XT_CONNMARK_RESTORE."""


def _comment(revision: int, info: bytes) -> tuple[Expression, ...]:
    del revision, info
    return ()


def _mark(revision: int, info: bytes) -> tuple[Expression, ...]:
    if revision != 1:
        return (Unclear("mark"),)
    mark, mask, invert = info[:4], info[4:8], info[8]
    return (field_is("mark", 0, mask, mark, bool(invert)),)


def _conntrack(revision: int, info: bytes) -> tuple[Expression, ...]:
    if revision not in (2, 3):
        return (Unclear("conntrack"),)
    flags, inverted, states = struct.unpack_from("HHH", info, 146)
    is_not = bool(inverted & XT_CONNTRACK_STATE)
    if flags != XT_CONNTRACK_STATE:
        return (Unclear("conntrack"),)
    nothing = bytes(4)
    # "Any of these bits" is the opposite of "none of them".
    if states == BY_DNAT:
        return (field_is("status", 0, _host(DNATED), nothing, not is_not),)
    if states & ~(STATES | UNTRACKED):
        return (Unclear("conntrack"),)
    return (field_is("state", 0, _host(states & STATES), nothing, not is_not),)


def _state(revision: int, info: bytes) -> tuple[Expression, ...]:
    del revision
    (states,) = struct.unpack_from("I", info)
    if states & ~(STATES | UNTRACKED):
        return (Unclear("state"),)
    return (field_is("state", 0, _host(states & STATES), bytes(4), negated=True),)


def _tcp(revision: int, info: bytes) -> tuple[Expression, ...]:
    del revision
    *ports, option, mask, _, inverted = struct.unpack_from("4H4B", info)
    unclear = (Unclear("TCP flags"),) if mask or option else ()
    return (*_ports(ports, inverted), *unclear)


def _udp(revision: int, info: bytes) -> tuple[Expression, ...]:
    del revision
    *ports, inverted = struct.unpack_from("4HB", info)
    return _ports(ports, inverted)


def _ports(ports: list[int], inverted: int) -> tuple[Expression, ...]:
    sides = ((0, ports[0], ports[1], inverted & 1), (2, ports[2], ports[3], inverted & 2))
    return tuple(
        FieldIn("transport", at, ((_port(low), _port(high)),), bool(negated))
        for at, low, high, negated in sides
        if (low, high) != (0, 0xFFFF)
    )


def _multiport(revision: int, info: bytes) -> tuple[Expression, ...]:
    flags, count = info[0], info[1]
    ports = struct.unpack_from("15H", info, 2)
    starts = struct.unpack_from("15B", info, 32)
    if revision != 1 or flags > 1 or count > len(ports):
        return (Unclear("multiport"),)
    ranges: list[tuple[bytes, bytes]] = []
    number = 0
    while number < count:
        last = number + 1 if starts[number] and number + 1 < count else number
        ranges.append((_port(ports[number]), _port(ports[last])))
        number = last + 1
    return (FieldIn("transport", 2 * flags, tuple(ranges), bool(info[47])),)


def _addrtype(revision: int, info: bytes) -> tuple[Expression, ...]:
    source, destination, flags = struct.unpack_from("HHI", info)
    if revision == 0:
        negated = bool(struct.unpack_from("I", info, 8)[0])
    elif flags & ~INVERT_DESTINATION:
        return (Unclear("addrtype"),)
    else:
        negated = bool(flags & INVERT_DESTINATION)
    if source or not destination:
        return (Unclear("addrtype"),)
    kinds = tuple(_host(kind) for kind in range(12) if destination >> kind & 1)
    return (FieldIn("daddrtype", 0, tuple((k, k) for k in kinds), negated),)


INVERT_DESTINATION = 2
"""XT_ADDRTYPE_INVERT_DEST."""


def _rpfilter(revision: int, info: bytes) -> tuple[Expression, ...]:
    del revision
    (inverted,) = (bool(info[0] & 8),)  # XT_RPFILTER_INVERT
    return (field_is("wayback", 0, b"\xff" * 4, bytes((0, 0, 0, 1)), inverted),)


MATCHES = {
    "comment": _comment,
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
