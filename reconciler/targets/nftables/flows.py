"""The fast path's table: a flowtable, and the chain that puts connections into it.

The kernel takes a link out of a flowtable when the link goes, and ends what is in it when the link
goes down (``nf_flow_table_cleanup``). A transaction that names a link which is gone fails as a
whole; so if one fails, each link is told alone.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence

from reconciler.core.datapath import ENI_GROUP, FLOWS, POD_GROUP
from reconciler.domains.fast_path import FLOWTABLE, FlowLink, FlowObject, FlowTable
from reconciler.engine.plan import Change, Verb
from reconciler.errors import ApplyError, ObserveError
from reconciler.targets.netlink import nf_tables as nft
from reconciler.targets.netlink.message import (
    NLM_F_APPEND,
    NLM_F_CREATE,
    attribute,
    attributes,
    nested,
)
from reconciler.targets.netlink.namespaces import empty_namespace
from reconciler.targets.netlink.nfnetlink import Request
from reconciler.targets.netlink.ruleset import Nfnetlink, TooMuchError

NFTA_FLOWTABLE_NAME, NFTA_FLOWTABLE_HOOK, NFTA_FLOWTABLE_FLAGS = 2, 3, 7
NFTA_FLOWTABLE_HOOK_NUM, NFTA_FLOWTABLE_HOOK_PRIORITY, NFTA_FLOWTABLE_HOOK_DEVS = 1, 2, 3
NFT_META_L4PROTO, NFT_META_IIFGROUP, NFT_META_OIFGROUP, NFT_CT_STATE = 16, 21, 22, 0
EQUAL, DIFFERENT = 0, 1
ESTABLISHED = 2  # of a connection that was answered (NF_CT_STATE_BIT)

CHAIN = "through"

LAST_PRIORITY = 1000
"""Behind all that decides at the forward hook: what it drops is in no flow."""

FORWARD, INGRESS = 2, 0
"""Hooks (linux/netfilter.h, linux/netfilter_netdev.h)."""

PER_MESSAGE = 64
"""Links in one message; the kernel takes 256 (NFT_NETDEVICE_MAX)."""

GONE = {errno.ENOENT, errno.ENODEV}


class Flows:
    """The table in the network namespace this object was made in."""

    def __init__(self) -> None:
        self._kernel = Nfnetlink()
        self._rules: list[bytes] | None = None
        """What the kernel makes of our rules."""
        self._refusal: str | None = None

    def refusal(self) -> str:
        """Say why this kernel takes no flowtable; "" if it does. It is asked once, by making one.

        Raises:
            ObserveError: there is no namespace to make it in.
        """
        if self._refusal is None:
            self._refusal, self._rules = _try()
        return self._refusal

    def observe(self, desired: Iterable[FlowObject] = ()) -> frozenset[FlowObject]:
        """Read the table; the empty set if there is none.

        Raises:
            ObserveError: the kernel refused, or never held still.
        """
        del desired
        if (flags := self._kernel.table_flags("inet", FLOWS)) is None:
            return frozenset()
        try:
            links = self._links()
            is_as_written = not flags and links is not None and self._is_as_written()
        except TooMuchError:
            links, is_as_written = None, False
        return frozenset({FlowTable(readable=is_as_written), *(links or ())})

    def _links(self) -> frozenset[FlowLink] | None:
        """Return the flowtable's links; None if it is another, or none, or more than one."""
        tables = self._kernel.table_parts(nft.NFT_MSG_GETFLOWTABLE, "inet", FLOWS)
        if len(tables) != 1 or tables[0][NFTA_FLOWTABLE_NAME] != FLOWTABLE.encode() + b"\0":
            return None
        hook = dict(attributes(tables[0][NFTA_FLOWTABLE_HOOK]))
        place = hook[NFTA_FLOWTABLE_HOOK_NUM] + hook[NFTA_FLOWTABLE_HOOK_PRIORITY]
        if any(place) or any(tables[0].get(NFTA_FLOWTABLE_FLAGS, b"")):
            return None
        devices = attributes(hook.get(NFTA_FLOWTABLE_HOOK_DEVS, b""))
        return frozenset(FlowLink(nft.text(name[:-1])) for _, name in devices)

    def _is_as_written(self) -> bool:
        chains = self._kernel.table_chains("inet", FLOWS)
        places = [(c.name, c.hook, c.type, c.priority, c.drops) for c in chains]
        rules = self._kernel.table_rules("inet", FLOWS)
        others = self._kernel.table_parts(nft.NFT_MSG_GETSET, "inet", FLOWS)
        ours = [(CHAIN.encode(), rule) for rule in self._rules or ()]
        is_ours = places == [(CHAIN, "forward", "filter", LAST_PRIORITY, False)]
        return is_ours and rules == ours and not others

    def apply(self, actions: Sequence[Change[FlowObject]]) -> tuple[ApplyError, ...]:
        """Commit all actions as one transaction; each of them alone if that fails."""
        try:
            self._kernel.commit_ours(_requests(actions))
        except OSError:
            return tuple(failure for a in actions for failure in self._apply_one(a))
        return ()

    def _apply_one(self, action: Change[FlowObject]) -> Iterator[ApplyError]:
        try:
            self._kernel.commit_ours(_requests([action]))
        except OSError as error:
            # A link that has gone meanwhile is no failure: the next look does not desire it.
            if not (isinstance(action.object, FlowLink) and error.errno in GONE):
                yield ApplyError.from_errno(str(action), error)


def _try() -> tuple[str, list[bytes]]:
    """Make the table where nothing is forwarded; return why it was refused, and its rules."""
    try:
        with empty_namespace():
            kernel = Nfnetlink()
            try:
                kernel.commit(_table_requests(), "inet")
            except OSError as error:
                return f"the kernel refuses one: {error.strerror}", []
            return "", [rule for _, rule in kernel.table_rules("inet", FLOWS)]
    except OSError as error:
        why = f"no empty network namespace to try one in: {error}"
        raise ObserveError("flowtables", why) from error


def _requests(actions: Iterable[Change[FlowObject]]) -> list[Request]:
    made: list[Request] = []
    links: dict[int, list[str]] = {}
    for action in actions:
        match action.object:
            case FlowLink(link):
                is_gone = action.verb is Verb.DELETE
                kind = nft.NFT_MSG_DELFLOWTABLE if is_gone else nft.NFT_MSG_NEWFLOWTABLE
                links.setdefault(kind, []).append(link)
            case FlowTable() if action.verb is Verb.DELETE:
                # Made first, so that deleting a table that is already gone is no error.
                made += [_TABLE, (nft.NFT_MSG_DELTABLE, 0, _OURS)]
            case FlowTable():
                made += _table_requests()
    for kind, names in links.items():
        flags = NLM_F_CREATE if kind == nft.NFT_MSG_NEWFLOWTABLE else 0
        for at in range(0, len(names), PER_MESSAGE):
            made.append((kind, flags, _flowtable(names[at : at + PER_MESSAGE])))
    return made


_OURS = nft.string(1, FLOWS)
_TABLE: Request = (nft.NFT_MSG_NEWTABLE, NLM_F_CREATE, _OURS)


def _table_requests() -> list[Request]:
    hook = attribute(nft.NFTA_HOOK_HOOKNUM, _be32(FORWARD))
    hook += attribute(nft.NFTA_HOOK_PRIORITY, _be32(LAST_PRIORITY))
    name = nft.string(nft.NFTA_CHAIN_NAME, CHAIN)
    chain = name + nested(nft.NFTA_CHAIN_HOOK, hook) + nft.string(nft.NFTA_CHAIN_TYPE, "filter")
    place = _OURS + nft.string(nft.NFTA_RULE_CHAIN, CHAIN)
    rules = (nested(nft.NFTA_RULE_EXPRESSIONS, _rule(to)) for to in (ENI_GROUP, POD_GROUP))
    return [
        _TABLE,
        (nft.NFT_MSG_NEWFLOWTABLE, NLM_F_CREATE, _flowtable(())),
        (nft.NFT_MSG_NEWCHAIN, NLM_F_CREATE, _OURS + chain),
        *((nft.NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, place + rule) for rule in rules),
    ]


def _flowtable(links: Sequence[str]) -> bytes:
    hook = attribute(NFTA_FLOWTABLE_HOOK_NUM, _be32(INGRESS))
    hook += attribute(NFTA_FLOWTABLE_HOOK_PRIORITY, _be32(0))
    devices = b"".join(nft.string(1, link) for link in links)
    if devices:
        hook += nested(NFTA_FLOWTABLE_HOOK_DEVS, devices)
    return _OURS + nft.string(NFTA_FLOWTABLE_NAME, FLOWTABLE) + nested(NFTA_FLOWTABLE_HOOK, hook)


def _rule(to: int) -> bytes:
    """TCP from a pod to a group of links, if it was answered: into the flowtable."""
    register = attribute(1, _be32(1))
    state = (
        attribute(1, _be32(1))
        + attribute(2, _be32(1))
        + attribute(3, _be32(4))
        + nested(4, attribute(nft.NFTA_DATA_VALUE, struct.pack("I", ESTABLISHED)))
        + nested(5, attribute(nft.NFTA_DATA_VALUE, bytes(4)))
    )
    expressions: tuple[tuple[str, bytes], ...] = (
        ("meta", _meta(NFT_META_IIFGROUP)),
        ("cmp", _compared(EQUAL, struct.pack("I", POD_GROUP))),
        ("meta", _meta(NFT_META_OIFGROUP)),
        ("cmp", _compared(EQUAL, struct.pack("I", to))),
        ("meta", _meta(NFT_META_L4PROTO)),
        ("cmp", _compared(EQUAL, bytes([socket.IPPROTO_TCP]))),
        ("ct", register + attribute(2, _be32(NFT_CT_STATE))),
        ("bitwise", state),
        ("cmp", _compared(DIFFERENT, bytes(4))),
        ("flow_offload", nft.string(1, FLOWTABLE)),
    )
    return b"".join(
        nested(nft.NFTA_LIST_ELEM, nft.string(1, kind) + nested(2, content))
        for kind, content in expressions
    )


def _meta(key: int) -> bytes:
    return attribute(1, _be32(1)) + attribute(2, _be32(key))


def _compared(how: int, value: bytes) -> bytes:
    data = nested(3, attribute(nft.NFTA_DATA_VALUE, value))
    return attribute(1, _be32(1)) + attribute(2, _be32(how)) + data


def _be32(number: int) -> bytes:
    return struct.pack(">I", number)
