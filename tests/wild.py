"""What no program lays out, and somebody could: tables that break the readers of rulesets.

Straight into the kernel, because nft itself would not write it.
"""

from __future__ import annotations

import struct

from reconciler.targets.netlink.message import NLM_F_APPEND, NLM_F_CREATE, attribute, nested
from reconciler.targets.netlink.nf_tables import (
    NFT_MSG_DELTABLE,
    NFT_MSG_NEWCHAIN,
    NFT_MSG_NEWRULE,
    NFT_MSG_NEWSET,
    NFT_MSG_NEWTABLE,
)
from reconciler.targets.netlink.ruleset import Nfnetlink

JUMP, DROP = -3, 0


def make_table(kernel: Nfnetlink, name: bytes, family: str = "ip") -> None:
    """Make a table of any name without NUL."""
    kernel.commit([(NFT_MSG_NEWTABLE, NLM_F_CREATE, _name(1, name))], family)


def make_chain(
    kernel: Nfnetlink, table: bytes, name: bytes, *, hook: int | None = None, family: str = "ip"
) -> None:
    """Make a chain, of type filter and priority 0 if it has a hook."""
    body = _name(1, table) + _name(3, name)
    if hook is not None:
        place = attribute(1, _be32(hook)) + attribute(2, _be32(0))
        body += nested(4, place) + _name(7, b"filter")
    kernel.commit([(NFT_MSG_NEWCHAIN, NLM_F_CREATE, body)], family)


def make_rule(
    kernel: Nfnetlink,
    table: bytes,
    chain: bytes,
    *,
    jump: bytes = b"",
    comment: bytes = b"",
    family: str = "ip",
) -> None:
    """Add a rule that drops everything, or jumps to a chain."""
    verdict = attribute(1, struct.pack(">i", JUMP if jump else DROP))
    verdict += _name(2, jump) if jump else b""
    data = attribute(1, _be32(0)) + nested(2, nested(2, verdict))
    expression = _name(1, b"immediate") + nested(2, data)
    body = _name(1, table) + _name(2, chain) + nested(4, nested(1, expression))
    if comment:
        body += attribute(7, bytes([0, len(comment) + 1]) + comment + b"\0")
    kernel.commit([(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, body)], family)


def make_fatal_set(kernel: Nfnetlink, table: bytes, family: str = "ip") -> None:
    """Make a set whose user data names, as the type of its key, an expression there is none of.

    libnftables 1.0.6 looks the expression up beyond the end of its list, and dies of it.
    """
    address_type, address_bytes = 7, 4
    typeof = bytes([3, 8]) + bytes([0, 4]) + b"\x63\0\0\0" + bytes([1, 0])
    body = _name(1, table) + _name(2, b"fatal") + attribute(3, _be32(0))
    body += attribute(4, _be32(address_type)) + attribute(5, _be32(address_bytes))
    body += attribute(10, _be32(1)) + attribute(13, typeof)
    kernel.commit([(NFT_MSG_NEWSET, NLM_F_CREATE, body)], family)


def remove_table(kernel: Nfnetlink, name: bytes, family: str = "ip") -> None:
    """Delete a table; nft itself might not survive it."""
    kernel.commit([(NFT_MSG_DELTABLE, 0, _name(1, name))], family)


def _name(kind: int, name: bytes) -> bytes:
    return attribute(kind, name + b"\0")


def _be32(number: int) -> bytes:
    return struct.pack(">I", number)
