"""Removing what amazon-vpc-cni-k8s has left, and finding the other ends of its pods' links."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reconciler.core.attachment import netns_identity
from reconciler.diagnostics import stock_objects as stock
from reconciler.diagnostics.stock_objects import (
    Leftover,
    PodEnd,
    StockRoute,
    StockRule,
)
from reconciler.domains.route import Route
from reconciler.engine.plan import Change, Verb
from reconciler.errors import ApplyError, ObserveError
from reconciler.targets.iptables.programs import Iptables
from reconciler.targets.netlink.message import (
    HEADER,
    NETLINK_ROUTE,
    KernelError,
    Socket,
    attribute,
    attributes,
    native,
)
from reconciler.targets.netlink.namespaces import entered_by
from reconciler.targets.netlink.rtnetlink import GONE, POD_BOUNDS, How, Rtnetlink
from reconciler.targets.netlink.tables import (
    AF,
    FR_ACT_TO_TBL,
    LINKS,
    RULES,
    Attributes,
    decode_entry,
)
from reconciler.targets.netlink.target import Sessions, apply_one
from reconciler.targets.nftables.target import StockTables

RTM_GETNSID, NETNSA_NSID, NETNSA_FD = 90, 1, 3

PLACES = ("run/netns/*", "proc/[0-9]*/ns/net")
"""Where namespaces of pods are, below the root: mounted by the runtime, or only a process's."""


def remove(
    actions: Sequence[Change[Leftover]], iptables: Iptables, tables: StockTables
) -> tuple[ApplyError, ...]:
    """Remove objects: iptables and nftables first, a transaction each; return what failed."""

    def of(kinds: Any) -> list[Any]:  # mypy narrows no ``Change`` by its object
        return [a for a in actions if isinstance(a.object, kinds)]

    return (
        *iptables.apply(of(stock.IptablesRule | stock.IptablesChain)),
        *tables.apply(of(stock.StockTable)),
        *_remove(of(StockRule | StockRoute)),
    )


def _remove(actions: Iterable[Change[StockRule | StockRoute]]) -> tuple[ApplyError, ...]:
    failures = []
    with Sessions() as sessions:
        for action in actions:
            try:
                match action.object:
                    case StockRule() as rule:
                        _remove_rule(sessions(""), rule)
                    case StockRoute(device=""):
                        pass  # it went with its link
                    case StockRoute() as old:
                        way = old.device, old.gateway, old.metric, old.protocol
                        route = Route("", old.table, old.destination, *way)
                        apply_one(sessions, Change(Verb.DELETE, route, action.reason))
            except KernelError as error:
                if error.errno not in GONE:
                    failures.append(ApplyError.from_errno(str(action), error))
    return tuple(failures)


def _remove_rule(host: Rtnetlink, rule: StockRule) -> None:
    wanted: Attributes = (
        ("FRA_PRIORITY", rule.priority),
        ("FRA_TABLE", rule.table),
        ("FRA_PROTOCOL", rule.protocol),
    )
    fields = {"family": AF["ipv4"], "action": FR_ACT_TO_TBL}
    if rule.mark is not None:
        wanted += (("FRA_FWMARK", rule.mark), ("FRA_FWMASK", rule.mask))
    for side, network in (("src", rule.source), ("dst", rule.destination)):
        if network is not None:
            wanted += ((f"FRA_{side.upper()}", str(network.network_address)),)
            fields[f"{side}_len"] = network.prefixlen
    host.change(RULES, How.DELETE, wanted, **fields)


def find_ends(veths: set[str]) -> Mapping[str, PodEnd]:
    """Find the other ends of host links, wherever a namespace can be seen.

    Each link's peer, by namespace id and index, is matched with what is in that namespace.
    """
    peers: dict[int, dict[int, tuple[str, str]]] = {}
    found: dict[str, PodEnd] = {}
    known: set[int] = set()
    try:
        with Rtnetlink() as host:
            messages = host.dump(LINKS) if veths else []
        for message in messages:
            name, nsid = message.get("ifname"), message.get("link_netnsid")
            if name in veths and nsid is not None:
                ends = peers.setdefault(nsid, {})
                ends[message.get("link")] = (name, message.get("address"))
        for pattern in PLACES if peers else ():
            for path in sorted(Path("/").glob(pattern)):
                _look_into(path, peers, known, found)
    except OSError as error:
        raise ObserveError("namespaces of pods", str(error)) from error
    return found


def _look_into(
    path: Path,
    peers: dict[int, dict[int, tuple[str, str]]],
    known: set[int],
    found: dict[str, PodEnd],
) -> None:
    """Add what one namespace holds of the ends that are looked for."""
    try:
        # Another program may have put a pipe there: opening it must not wait.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return  # a process that has ended, or a mount that is being made
    try:
        inode = os.fstat(fd).st_ino
        if inode in known:
            return
        known.add(inode)
        ends = peers.pop(_nsid(fd), None)
        if ends is None:
            return
        with entered_by(fd):
            inner = Rtnetlink(POD_BOUNDS)
        with inner:
            for index, (veth, host_mac) in ends.items():
                # By its index: how many more there are is up to the pod.
                for told in inner.read_one(LINKS, LINKS.asks, index=index):
                    link = decode_entry(LINKS, told)
                    identity = netns_identity(str(path), inode)
                    end = PodEnd(identity, link.get("ifname"), host_mac, link.get("address"))
                    found[veth] = end
    finally:
        os.close(fd)


def _nsid(fd: int) -> int:
    """Return this namespace's number for another one; -1 if it has none.

    The kernel gives one to a namespace as soon as one of our links has its peer there.
    """
    # ``struct rtgenmsg``, one attribute (linux/rtnetlink.h, linux/net_namespace.h).
    body = bytes(4) + attribute(NETNSA_FD, struct.pack("=I", fd))
    try:
        with Socket(NETLINK_ROUTE) as s:
            (answer,) = s.ask(RTM_GETNSID, 0, body)
    except KernelError:
        return -1  # no namespace: an ordinary file, or a mount that is gone
    number = dict(attributes(answer, HEADER.size + 4)).get(NETNSA_NSID)
    return -1 if number is None else native(number, signed=True)
