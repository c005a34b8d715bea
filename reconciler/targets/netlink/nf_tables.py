"""nftables' messages: numbers, names and chains (linux/netfilter/nf_tables.h)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from reconciler.targets.netlink.message import ATTRIBUTE, attribute, attributes, nested
from reconciler.targets.netlink.nfnetlink import FAMILIES, HEADERS

NFT_MSG_NEWTABLE, NFT_MSG_GETTABLE, NFT_MSG_DELTABLE = 0, 1, 2
NFT_MSG_NEWCHAIN, NFT_MSG_GETCHAIN, NFT_MSG_DELCHAIN = 3, 4, 5
NFT_MSG_NEWRULE, NFT_MSG_GETRULE, NFT_MSG_DELRULE = 6, 7, 8
NFT_MSG_NEWSET, NFT_MSG_GETSET, NFT_MSG_DELSET = 9, 10, 11
NFT_MSG_NEWSETELEM, NFT_MSG_GETSETELEM, NFT_MSG_DELSETELEM = 12, 13, 14
NFT_MSG_NEWGEN, NFT_MSG_GETGEN = 15, 16
NFT_MSG_NEWFLOWTABLE, NFT_MSG_GETFLOWTABLE, NFT_MSG_DELFLOWTABLE = 22, 23, 24
NFT_MSG_NEWOBJ, NFT_MSG_GETOBJ, NFT_MSG_DELOBJ = 18, 19, 20

NFTA_TABLE = 1  # names the table in every notification but the one that ends a change
NFTA_TABLE_NAME, NFTA_TABLE_FLAGS = 1, 2
NFTA_CHAIN_TABLE, NFTA_CHAIN_HANDLE, NFTA_CHAIN_NAME = 1, 2, 3
NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY, NFTA_CHAIN_TYPE = 4, 5, 7
NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY, NFTA_HOOK_DEV, NFTA_HOOK_DEVS = 1, 2, 3, 4
NFTA_GEN_ID, NFTA_GEN_PROC_PID, NFTA_GEN_PROC_NAME = 1, 2, 3
NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS = 1, 2, 4
NFTA_SET_TABLE, NFTA_SET_NAME, NFTA_SET_FLAGS = 1, 2, 3
NFTA_OBJ_NAME, NFTA_OBJ_TYPE, NFTA_OBJ_DATA = 2, 3, 4
NFTA_COUNTER_BYTES, NFTA_COUNTER_PACKETS = 1, 2
NFT_OBJECT_COUNTER = 1
NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_ELEMENTS = 1, 2, 3
NFTA_LIST_ELEM, NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_DATA = 1, 1, 2
NFTA_DATA_VALUE, NFTA_DATA_VERDICT = 1, 2
NFTA_VERDICT_CODE, NFTA_VERDICT_CHAIN = 1, 2

NFT_TABLE_F_DORMANT = 1
NF_DROP = 0
HOOKS = {0: "prerouting", 1: "input", 2: "forward", 3: "output", 4: "postrouting", 5: "ingress"}
HOOKS_OF_NETDEV = {0: "ingress", 1: "egress"}

ROUTED = {"inet", "ip", "ip6"}
"""Families whose packets are routed; the numbers of a bridge's or netdev's hooks mean others."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain of any table. Names can be printed; they may be of bytes that are no text.

    Attributes:
        hook: where routed packets enter it; "" if only other chains lead here.
        type: filter, nat or route; "" as above.
        drops: its policy is to drop.
        devices: links by which packets come to it, for hooks ingress and egress.
        place: table and name as the kernel has them.
    """

    family: str
    table: str
    name: str
    hook: str = ""
    type: str = ""
    priority: int = 0
    drops: bool = False
    devices: tuple[str, ...] = ()
    place: tuple[bytes, bytes] = field(default=(b"", b""), compare=False, repr=False)

    @property
    def home(self) -> tuple[str, bytes]:
        """Its family, and its table as the kernel has it."""
        return self.family, self.place[0]

    @property
    def path(self) -> str:
        """As ``nft`` names it."""
        return f"{self.family} {self.table} {self.name}"


def parts(message: bytes) -> dict[int, bytes]:
    """Return the attributes of a whole message."""
    return dict(attributes(message, HEADERS))


def string(kind: int, content: str) -> bytes:
    """Return an attribute that holds a name."""
    return attribute(kind, content.encode() + b"\0")


def text(name: bytes) -> str:
    """Return a name that can be printed, and compared with ours, whatever its bytes are."""
    return name.decode(errors="backslashreplace")


def leads_to(element: bytes) -> tuple[str, bytes]:
    """Return the chain that an element's verdict names, and its value; empty what it has not."""
    data = dict(attributes(dict(attributes(element)).get(NFTA_SET_ELEM_DATA, b"")))
    verdict = dict(attributes(data.get(NFTA_DATA_VERDICT, b"")))
    chain = verdict.get(NFTA_VERDICT_CHAIN, b"")
    return text(chain[:-1]), data.get(NFTA_DATA_VALUE, b"")


def element(table: str, name: str, key: bytes) -> bytes:
    """Return the attributes of a request about one element of a set."""
    keyed = nested(NFTA_SET_ELEM_KEY, attribute(NFTA_DATA_VALUE, key))
    return (
        string(NFTA_SET_ELEM_LIST_TABLE, table)
        + string(NFTA_SET_ELEM_LIST_SET, name)
        + nested(NFTA_SET_ELEM_LIST_ELEMENTS, nested(NFTA_LIST_ELEM, keyed))
    )


def plain_chain(message: bytes) -> tuple[bytes, bytes] | None:
    """Return table and name of a chain that has no hook; None if it may have one.

    By the place of its attributes (nf_tables_fill_chain_info): table, name, handle, and then the
    hook, if there is one. A cluster with 10,000 services has 60,000 without.
    """
    length, kind = ATTRIBUTE.unpack_from(message, HEADERS)
    name_at = HEADERS + (length + 3 & ~3)
    name_length, name_kind = ATTRIBUTE.unpack_from(message, name_at)
    handle_at = name_at + (name_length + 3 & ~3)
    handle, more = message[handle_at + 2 : handle_at + 4], message[handle_at + 12 : handle_at + 16]
    if (kind, name_kind, handle) != (NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME, _HANDLE):
        return None
    if len(more) == 4 and more[2] & 0x3F == NFTA_CHAIN_HOOK:
        return None
    return message[HEADERS + 4 : HEADERS + length], message[name_at + 4 : name_at + name_length]


_HANDLE = struct.pack("=H", NFTA_CHAIN_HANDLE)


def decode_chain(message: bytes) -> Chain:
    """Return what a message says about a chain."""
    family = FAMILIES.get(message[16], "")
    place, found = plain_chain(message), {}
    if place is None:
        found = parts(message)
        place = found[NFTA_CHAIN_TABLE], found[NFTA_CHAIN_NAME]
    table, name = (text(part[:-1]) for part in place)
    if NFTA_CHAIN_HOOK not in found or family not in ROUTED | {"netdev"}:
        return Chain(family, table, name, place=place)
    hook = dict(attributes(found[NFTA_CHAIN_HOOK]))
    policy = found.get(NFTA_CHAIN_POLICY, b"\1")
    hooks = HOOKS_OF_NETDEV if family == "netdev" else HOOKS
    devices = [hook[NFTA_HOOK_DEV]] if NFTA_HOOK_DEV in hook else []
    devices += [name for _, name in attributes(hook.get(NFTA_HOOK_DEVS, b""))]
    return Chain(
        family,
        table,
        name,
        hooks.get(int.from_bytes(hook[NFTA_HOOK_HOOKNUM], "big"), ""),
        text(found.get(NFTA_CHAIN_TYPE, b"")[:-1]),
        int.from_bytes(hook[NFTA_HOOK_PRIORITY], "big", signed=True),
        drops=int.from_bytes(policy, "big") == NF_DROP,
        place=place,
        devices=tuple(dict.fromkeys(text(name[:-1]) for name in devices)),
    )
