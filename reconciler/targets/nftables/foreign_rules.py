"""Rules of other owners, decoded from what the kernel holds.

Not by libnftables, which ends the process at what it does not expect (a crafted set is enough),
and leaves out of a rule what it does not know, so that a rule which drops little looks as if it
dropped everything. Here an expression that is not known is named as such. The form is that of
libnftables' JSON; but a set, named or not, is ``{"set": name}``. Constants:
linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from reconciler.targets.netlink.message import attribute, attributes, nested
from reconciler.targets.netlink.nf_tables import (
    NFTA_DATA_VALUE,
    NFTA_DATA_VERDICT,
    NFTA_LIST_ELEM,
    NFTA_RULE_CHAIN,
    NFTA_RULE_EXPRESSIONS,
    NFTA_RULE_TABLE,
    NFTA_VERDICT_CHAIN,
    NFTA_VERDICT_CODE,
    text,
)

Json = dict[str, Any]

NFTA_RULE_HANDLE, NFTA_RULE_USERDATA = 3, 7
NFTA_EXPR_NAME, NFTA_EXPR_DATA = 1, 2
COMMENT = 0
"""Kind of a rule's user data (libnftnl's NFTNL_UDATA_RULE_COMMENT): kind, length, text, NUL."""

VERDICT_REGISTER, REGISTER = 0, 1
VERDICTS = {-5: "return", -4: "goto", -3: "jump", -1: "continue", 0: "drop", 1: "accept"}
META = {3: "mark", 6: "iifname", 7: "oifname", 15: "nfproto", 16: "l4proto"}
IFNAMSIZ = 16
CT = {0: "state", 1: "direction", 2: "status", 3: "mark"}
OPERATORS = {0: "==", 1: "!=", 2: "<", 3: "<=", 4: ">", 5: ">="}
STATES = {1: "invalid", 2: "established", 4: "related", 8: "new", 64: "untracked"}
NFPROTO = {2: "ipv4", 10: "ipv6"}
NETWORK_HEADER = 1
ADDRESSES = {12: ("ip", "saddr"), 16: ("ip", "daddr"), 8: ("ip6", "saddr"), 24: ("ip6", "daddr")}
"""By their offset in the header; 8 and 24 mean no address of IPv4, and 12 and 16 none of IPv6 that
anybody asks for."""

SIZES = {"ip": 4, "ip6": 16}
DECIDE_NOTHING = {"counter", "last", "log"}
"""Expressions after which a packet goes on as it came."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule as it stands in a chain.

    Attributes:
        body: its expressions, without those that decide nothing. One that is not known is
            ``{"unread": name}``: it may match, change or end anything.
    """

    handle: int
    comment: str
    body: list[Json]


def accept_link(table: str, chain: str, way: str, pattern: str, comment: str) -> bytes:
    """Return the attributes of a rule that accepts whatever comes from, or goes to, some links.

    Args:
        table: in which it is to stand.
        chain: whose last one it is to be.
        way: iifname or oifname.
        pattern: a link's name, or ``prefix*``.
        comment: for people, and to know the rule by.
    """
    key = next(number for number, name in META.items() if name == way)
    name = pattern.encode()
    name = name[:-1] if pattern.endswith("*") else name.ljust(IFNAMSIZ, b"\0")
    verdict = nested(NFTA_DATA_VERDICT, attribute(NFTA_VERDICT_CODE, _be32(1)))
    expressions = (
        ("meta", attribute(1, _be32(REGISTER)) + attribute(2, _be32(key))),
        (
            "cmp",
            attribute(1, _be32(REGISTER))
            + attribute(2, _be32(0))
            + nested(3, attribute(NFTA_DATA_VALUE, name)),
        ),
        ("counter", attribute(1, bytes(8)) + attribute(2, bytes(8))),
        ("immediate", attribute(1, _be32(VERDICT_REGISTER)) + nested(2, verdict)),
    )
    said = comment.encode() + b"\0"
    return (
        attribute(NFTA_RULE_TABLE, table.encode() + b"\0")
        + attribute(NFTA_RULE_CHAIN, chain.encode() + b"\0")
        + nested(
            NFTA_RULE_EXPRESSIONS,
            b"".join(nested(NFTA_LIST_ELEM, _expression(*e)) for e in expressions),
        )
        + attribute(NFTA_RULE_USERDATA, bytes([COMMENT, len(said)]) + said)
    )


def identity(table: str, chain: str, handle: int) -> bytes:
    """Return the attributes that name a rule."""
    return (
        attribute(NFTA_RULE_TABLE, table.encode() + b"\0")
        + attribute(NFTA_RULE_CHAIN, chain.encode() + b"\0")
        + attribute(NFTA_RULE_HANDLE, struct.pack(">Q", handle))
    )


def _expression(name: str, data: bytes) -> bytes:
    return attribute(NFTA_EXPR_NAME, name.encode() + b"\0") + nested(NFTA_EXPR_DATA, data)


def _be32(number: int) -> bytes:
    return struct.pack(">I", number)


def decode_rule(content: bytes) -> Rule:
    """Return the rule in a message's attributes."""
    found = dict(attributes(content))
    decoder = _Decoder()
    for _, element in attributes(found.get(NFTA_RULE_EXPRESSIONS, b"")):
        decoder.take(dict(attributes(element)))
    return Rule(
        int.from_bytes(found.get(NFTA_RULE_HANDLE, b""), "big"),
        _comment(found.get(NFTA_RULE_USERDATA, b"")),
        decoder.body,
    )


def _comment(data: bytes) -> str:
    offset = 0
    while offset + 2 <= len(data):
        kind, length = data[offset], data[offset + 1]
        if kind == COMMENT:
            return text(data[offset + 2 : offset + 2 + length].rstrip(b"\0"))
        offset += 2 + length
    return ""


@dataclass(slots=True)
class _Decoder:
    """Follows registers through a rule's expressions."""

    body: list[Json] = field(default_factory=list)
    _registers: dict[int, Any] = field(default_factory=dict)

    def take(self, expression: dict[int, bytes]) -> None:
        name = text(expression.get(NFTA_EXPR_NAME, b"").rstrip(b"\0"))
        data = dict(attributes(expression.get(NFTA_EXPR_DATA, b"")))
        if name in DECIDE_NOTHING:
            return
        known = _KNOWN.get(name)
        try:
            decoded = known(self, data) if known else [{"unread": name}]
        except (KeyError, ValueError, struct.error):
            decoded = [{"unread": name}]
        self.body += decoded

    def _load(self, register: bytes, what: Any) -> list[Json]:
        self._registers[_number(register)] = what
        return []

    def _loaded(self, register: bytes) -> Any:
        return self._registers[_number(register)]

    def _meta(self, data: dict[int, bytes]) -> list[Json]:
        key = _number(data[2])
        what = {"meta": {"key": META.get(key, f"key {key}")}}
        if 1 in data:
            return self._load(data[1], what)
        return [{"mangle": {"key": what, "value": self._registers.get(_number(data[3]))}}]

    def _ct(self, data: dict[int, bytes]) -> list[Json]:
        key = _number(data[2])
        what = {"ct": {"key": CT.get(key, f"key {key}")}}
        if 1 in data:
            return self._load(data[1], what)
        return [{"mangle": {"key": what, "value": self._registers.get(_number(data[4]))}}]

    def _payload(self, data: dict[int, bytes]) -> list[Json]:
        if 1 not in data:
            return [{"mangle": {"key": "payload"}}]
        base, offset, length = (_number(data[k]) for k in (2, 3, 4))
        where = ADDRESSES.get(offset) if base == NETWORK_HEADER else None
        if where is None or length > SIZES[where[0]]:
            raw = {"base": base, "offset": offset, "len": length}
            return self._load(data[1], {"payload": raw})
        return self._load(data[1], {"payload": {"protocol": where[0], "field": where[1]}})

    def _bitwise(self, data: dict[int, bytes]) -> list[Json]:
        mask, flip = (_only(data[kind]) for kind in (4, 5))
        if any(flip):
            return self._load(data[2], {"bits": "changed"})
        return self._load(data[2], {"&": [self._loaded(data[1]), mask]})

    def _cmp(self, data: dict[int, bytes]) -> list[Json]:
        operator, value = OPERATORS[_number(data[2])], _only(data[3])
        match self._loaded(data[1]):
            case {"&": [{"ct": {"key": "state"}} as left, bytes(mask)]} if not any(value):
                # "ct state a,b": any of these bits is set.
                return [_match(left, _states(mask), "in" if operator == "!=" else "!")]
            case {"&": [{"payload": {"field": _}} as left, bytes(mask)]}:
                return [_match(left, _network(value, mask), operator)]
            case {"&": [left, bytes(mask)]}:
                masked = {"&": [left, int.from_bytes(mask, sys.byteorder)]}
                return [_match(masked, int.from_bytes(value, sys.byteorder), operator)]
            case left:
                return [_match(left, _value(left, value), operator)]

    def _lookup(self, data: dict[int, bytes]) -> list[Json]:
        name, left = text(data[1].rstrip(b"\0")), self._registers.get(_number(data[2]))
        if 3 in data:
            if _number(data[3]) == VERDICT_REGISTER:
                return [{"vmap": {"key": left, "data": {"set": name}}}]
            return self._load(data[3], {"map": {"key": left, "data": {"set": name}}})
        inverted = 5 in data and _number(data[5]) & 1
        return [_match(left, {"set": name}, "!=" if inverted else "==")]

    def _immediate(self, data: dict[int, bytes]) -> list[Json]:
        ((kind, content),) = attributes(data[2])
        if _number(data[1]) != VERDICT_REGISTER:
            return self._load(data[1], content)
        verdict = dict(attributes(content)) if kind == NFTA_DATA_VERDICT else {}
        (code,) = struct.unpack(">i", verdict[NFTA_VERDICT_CODE])
        word = VERDICTS[code]
        if word in ("jump", "goto"):
            return [{word: {"target": text(verdict[NFTA_VERDICT_CHAIN].rstrip(b"\0"))}}]
        return [{word: None}]

    def _nat(self, data: dict[int, bytes]) -> list[Json]:
        word = {0: "snat", 1: "dnat"}[_number(data[1])]
        address = self._registers.get(_number(data[3])) if 3 in data else None
        if isinstance(address, bytes) and len(address) in SIZES.values():
            return [{word: {"addr": str(ip_address(address))}}]
        return [{word: {"addr": address if isinstance(address, dict) else None}}]

    def _xt(self, kind: str, data: dict[int, bytes]) -> list[Json]:
        name = text(data[1].rstrip(b"\0"))
        if (kind, name) == ("match", "comment"):
            return []  # it matches everything
        return [{"xt": {"type": kind, "name": name}}]

    def _xt_match(self, data: dict[int, bytes]) -> list[Json]:
        return self._xt("match", data)

    def _xt_target(self, data: dict[int, bytes]) -> list[Json]:
        return self._xt("target", data)

    def _reject(self, _: dict[int, bytes]) -> list[Json]:
        return [{"reject": None}]

    def _masquerade(self, _: dict[int, bytes]) -> list[Json]:
        return [{"masquerade": None}]

    def _redirect(self, _: dict[int, bytes]) -> list[Json]:
        return [{"redirect": None}]


def _match(left: Any, right: Any, operator: str) -> Json:
    return {"match": {"op": operator, "left": left, "right": right}}


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _only(data: bytes) -> bytes:
    """Return the content of the one attribute there is."""
    ((_, content),) = attributes(data)
    return content


def _states(mask: bytes) -> list[str]:
    bits = int.from_bytes(mask, sys.byteorder)
    if bits & ~sum(STATES):
        raise ValueError("a connection's state that is not known")
    return [name for bit, name in STATES.items() if bits & bit]


def _value(left: Any, value: bytes) -> Any:
    """Return what something is compared with, in words."""
    match left:
        case {"meta": {"key": "iifname" | "oifname"}}:
            # A pattern is a name without its end.
            whole = b"\0" in value or len(value) == IFNAMSIZ
            return text(value.split(b"\0", 1)[0]) + ("" if whole else "*")
        case {"meta": {"key": "nfproto"}}:
            return NFPROTO.get(value[0], value[0])
        case {"meta": {"key": "mark"}} | {"ct": {"key": "mark"}}:
            return int.from_bytes(value, sys.byteorder)
        case {"payload": {"protocol": str(protocol), "field": _}}:
            # Of a network whose length is whole bytes, only these are compared.
            missing = SIZES[protocol] - len(value)
            return _network(value + bytes(missing), b"\xff" * len(value) + bytes(missing))
        case _:
            return value.hex()


def _network(value: bytes, mask: bytes) -> Any:
    """Return an address or a prefix.

    Raises:
        ValueError: the mask is none of a prefix.
    """
    bits = int.from_bytes(mask, "big")
    length = bits.bit_count()
    size = 8 * len(mask)
    if bits != (1 << size) - (1 << size - length):
        raise ValueError("bits that make no prefix")
    address = str(ip_address(value))
    return address if length == size else {"prefix": {"addr": address, "len": length}}


_KNOWN: dict[str, Callable[[_Decoder, dict[int, bytes]], list[Json]]] = {
    "meta": _Decoder._meta,
    "ct": _Decoder._ct,
    "payload": _Decoder._payload,
    "bitwise": _Decoder._bitwise,
    "cmp": _Decoder._cmp,
    "lookup": _Decoder._lookup,
    "immediate": _Decoder._immediate,
    "nat": _Decoder._nat,
    "match": _Decoder._xt_match,
    "target": _Decoder._xt_target,
    "reject": _Decoder._reject,
    "masq": _Decoder._masquerade,
    "redir": _Decoder._redirect,
}
