"""Our rules in forward chains of other owners: read, added and deleted."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from reconciler.core.datapath import ALIAS
from reconciler.diagnostics.ruleset import IFNAMSIZ, accepted_link
from reconciler.domains.forward import ForwardAccept
from reconciler.engine.plan import Change, Verb
from reconciler.errors import ApplyError
from reconciler.targets.netlink import nf_tables as nft
from reconciler.targets.netlink.message import NLM_F_APPEND, NLM_F_CREATE, attribute, nested
from reconciler.targets.netlink.nf_tables import Chain, string
from reconciler.targets.netlink.nfnetlink import Request
from reconciler.targets.netlink.ruleset import Nfnetlink
from reconciler.targets.nftables.expressions import (
    COMMENT,
    NFTA_RULE_HANDLE,
    NFTA_RULE_USERDATA,
    decode_rule,
    handle_and_comment,
)
from reconciler.targets.nftables.foreign_chains import MAX_RULES

META_KEYS = {"iifname": 6, "oifname": 7}
VERDICT_REGISTER, REGISTER, EQUAL, ACCEPT = 0, 1, 0, 1


class ForwardRules:
    """Rules of ours in the namespace this object was made in.

    Args:
        with_ours: returns the chains that have some, as far as is known.
    """

    def __init__(self, with_ours: Callable[[], Iterable[Chain]]) -> None:
        self._kernel = Nfnetlink()
        self._with_ours = with_ours

    def observe(self, desired: Iterable[ForwardAccept] = ()) -> frozenset[ForwardAccept]:
        """List the rules that carry our comment; of other chains' rules none is read.

        Raises:
            ObserveError: the kernel refused, or a chain has too many rules.
        """
        handles: dict[ForwardAccept, tuple[int, ...]] = {}
        chains = [*self._with_ours(), *map(_chain, desired)]
        for chain in {(c.family, c.place): c for c in chains}.values():
            for body in self._kernel.rules(chain, MAX_RULES):
                has = ALIAS.encode() in body
                handle, comment = handle_and_comment(body) if has else (0, "")
                if comment != ALIAS:
                    continue
                # One that was changed is like none that is ever desired.
                other = "", f"another rule, of {len(body)} bytes"
                way, pattern = accepted_link(decode_rule(body)) or other
                found = ForwardAccept(chain.family, chain.table, chain.name, way, pattern)
                handles[found] = (*handles.get(found, ()), handle)
        return frozenset(replace(found, handles=h) for found, h in handles.items())

    def apply(self, actions: Sequence[Change[ForwardAccept]]) -> tuple[ApplyError, ...]:
        """Carry out actions, each a transaction: one chain's owner is not another's."""
        failures = []
        for action in actions:
            try:
                self._kernel.commit(_requests(action), action.object.family)
            except OSError as error:
                failures.append(ApplyError.from_errno(str(action), error))
        return tuple(failures)


def _chain(rule: ForwardAccept) -> Chain:
    place = rule.table.encode() + b"\0", rule.chain.encode() + b"\0"
    return Chain(rule.family, rule.table, rule.chain, "forward", place=place)


def _requests(action: Change[ForwardAccept]) -> list[Request]:
    rule = action.object
    table, name = _chain(rule).place
    place = attribute(nft.NFTA_RULE_TABLE, table) + attribute(nft.NFTA_RULE_CHAIN, name)
    if action.verb is Verb.DELETE:
        handles = [attribute(NFTA_RULE_HANDLE, struct.pack(">Q", n)) for n in rule.handles]
        return [(nft.NFT_MSG_DELRULE, 0, place + handle) for handle in handles]
    comment = ALIAS.encode() + b"\0"
    body = (
        place
        + nested(nft.NFTA_RULE_EXPRESSIONS, _expressions(rule.way, rule.pattern))
        + attribute(NFTA_RULE_USERDATA, bytes([COMMENT, len(comment)]) + comment)
    )
    return [(nft.NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, body)]


def _expressions(way: str, pattern: str) -> bytes:
    """Return expressions that accept what comes from, or goes to, links of a name."""
    name = pattern.encode()
    name = name[:-1] if pattern.endswith("*") else name.ljust(IFNAMSIZ, b"\0")
    register = attribute(1, _be32(REGISTER))
    value = nested(3, attribute(nft.NFTA_DATA_VALUE, name))
    verdict = nested(nft.NFTA_DATA_VERDICT, attribute(nft.NFTA_VERDICT_CODE, _be32(ACCEPT)))
    expressions = (
        ("meta", register + attribute(2, _be32(META_KEYS[way]))),
        ("cmp", register + attribute(2, _be32(EQUAL)) + value),
        ("counter", attribute(1, bytes(8)) + attribute(2, bytes(8))),
        ("immediate", attribute(1, _be32(VERDICT_REGISTER)) + nested(2, verdict)),
    )
    return b"".join(
        nested(nft.NFTA_LIST_ELEM, string(1, kind) + nested(2, content))
        for kind, content in expressions
    )


def _be32(number: int) -> bytes:
    return struct.pack(">I", number)
