"""What amazon-vpc-cni-k8s has left on this node, in the kernel and in its files.

``iptables`` and ``nft`` have doors of their own, which this one asks. Nothing is recognised here:
what is read is whatever could be the stock plugin's.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from reconciler.core.attachment import AttachmentKey
from reconciler.core.datapath import MAIN_TABLE, PROTOCOL, IpAddress
from reconciler.diagnostics import stock_objects as stock
from reconciler.diagnostics.stock_objects import (
    Allocation,
    Leftover,
    PodEnd,
    Sighting,
    StockRoute,
    StockRule,
)
from reconciler.engine.plan import Change
from reconciler.errors import ApplyError, ObserveError
from reconciler.targets.files.bounded import read_file
from reconciler.targets.iptables.programs import TABLES, Iptables
from reconciler.targets.netlink.decode import decode_route, decode_rule
from reconciler.targets.netlink.message import native
from reconciler.targets.netlink.rtnetlink import Rtnetlink
from reconciler.targets.netlink.tables import LINKS, ROUTES, RULES, Facts, decode_entry, value_of
from reconciler.targets.nftables.target import StockTables

DIRECTORY = Path("/var/run/aws-node")
"""Where its daemon keeps its checkpoint and its socket (amazon-vpc-cni-k8s ``ipamd.go``)."""

VERSION = "vpc-cni-ipam/1"
"""Of the checkpoint (``pkg/ipamd/datastore/data_store.go``)."""

MAX_CHECKPOINT_BYTES = 1 << 22
"""Of the checkpoint: an allocation has some 300 bytes, and a node a few hundred of them."""

UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What a checkpoint that is none may raise; the last one if it is nested very deep."""

SOCKET_TIMEOUT_S = 0.5

MAX_LEFT = 2_000
"""Lines of one of iptables' tables that may be the stock plugin's: some ten for each CIDR."""

PLACES_OF_RULES = {stock.TO_POD, stock.FWMARK, stock.SERVICE_CIDR, stock.FROM_POD, stock.FROM_ENI}
OUR_PROTOCOL = bytes([PROTOCOL])

AF_INET = socket.AF_INET

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
"""Container IDs and interface names, as the CNI specification limits them; they become names of
files."""


class StockPluginTarget:
    """What the stock plugin has left in this network namespace and in its directory."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        self._directory = directory
        self._iptables = Iptables()
        self._tables = StockTables()

    def observe(self, desired: Iterable[object] = ()) -> Sighting:
        """Look at everything that could be the stock plugin's."""
        del desired
        seen = self.glance()
        # With thousands of services iptables-nft-save takes seconds: only where something is.
        telling = {t for t in TABLES if t in seen.tables and self._tables.mentions(t, stock.SIGN)}
        saved, unlisted = self._iptables.observe(telling, stock.SIGN, MAX_LEFT)
        return replace(seen, saved=saved, unlisted=unlisted)

    def glance(self) -> Sighting:
        """Look at all but iptables: where there are thousands of services, that takes long."""
        allocations, unread = self._checkpoint()
        tables = self._tables.observe()
        try:
            rules, routes = _read_kernel()
        except OSError as error:
            raise ObserveError("rules and routes of other owners", str(error)) from error
        return Sighting(
            rules=rules,
            routes=routes,
            tables=tables,
            allocations=allocations,
            unread=unread,
            running=self._is_running(),
        )

    def apply(self, actions: Sequence[Change[Leftover]]) -> tuple[ApplyError, ...]:
        """Remove objects; return what failed."""
        from reconciler.targets import remains  # for who takes over only

        return remains.remove(actions, self._iptables, self._tables)

    def find_ends(self, veths: Iterable[str]) -> Mapping[str, PodEnd]:
        """Find the other ends of host links, wherever a namespace can be seen."""
        from reconciler.targets import remains  # for who takes over only

        return remains.find_ends(set(veths))

    def _checkpoint(self) -> tuple[Mapping[IpAddress, Allocation], str]:
        """Read the checkpoint; say why, if it tells nothing."""
        path = self._directory / "ipam.json"
        try:
            body = json.loads(read_file(path, MAX_CHECKPOINT_BYTES))
            if body["version"] != VERSION:
                return {}, f"{path} is of version {str(body['version'])[:64]}, not {VERSION}"
            found = [_allocation(a) for a in body["allocations"] or () if a.get("ipv4")]
        except UNREADABLE as error:
            return {}, f"{path} cannot be read ({type(error).__name__}: {str(error)[:128]})"
        return {a.address: a for a in found}, ""

    def _is_running(self) -> bool:
        """Whether a process accepts connections on the daemon's socket."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
            s.settimeout(SOCKET_TIMEOUT_S)
            try:
                s.connect(str(self._directory / "ipamd.sock"))
            except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
                return False  # left by a process that is gone
            except OSError:
                return True  # it may run: its queue may be full
        return True


def _allocation(body: dict[str, Any]) -> Allocation:
    container_id, ifname = str(body["containerID"]), str(body["ifName"])
    if not _WORD.fullmatch(container_id) or not _WORD.fullmatch(ifname):
        raise ValueError(f"{container_id!r} and {ifname!r} name no container's interface")
    pod = body.get("metadata") or {}
    name = f"{pod.get('k8sPodNamespace', '')}/{pod.get('k8sPodName', '')}".strip("/")
    return Allocation(AttachmentKey(container_id, ifname), ip_address(body["ipv4"]), name)


def _read_kernel() -> tuple[tuple[StockRule, ...], tuple[StockRoute, ...]]:
    """Read what may be of the stock plugin's, message by message; others may have any number."""
    with Rtnetlink() as host:
        told = host.read(RULES, takes=_may_be_its_rule, family=AF_INET)
        rules = tuple(_decode_rule(decode_entry(RULES, entry)) for entry in told)
        links = [decode_entry(LINKS, m) for m in host.read(LINKS, takes=_may_be_its_link)]
        veths = {m["index"] for m in links if stock.VETH.fullmatch(m.get("ifname") or "")}
        pods = {
            r.destination.network_address.packed
            for r in rules
            if r.priority == stock.TO_POD and r.destination
        }
        takes = partial(_may_be_its_route, frozenset(veths), frozenset(pods))
        routes = host.read(ROUTES, takes=takes, family=AF_INET)
    names = dict(socket.if_nameindex()) if routes else {}
    found = (decode_route(decode_entry(ROUTES, m), "", names) for m in routes)
    names_of = [field.name for field in fields(StockRoute)]
    return rules, tuple(
        StockRoute(**{name: getattr(r, name) for name in names_of}) for r in found if r
    )


def _may_be_its_rule(rule: bytes) -> bool:
    """Whether a rule stands in one of its places; those of others there may hide its own."""
    priority = native(value_of(RULES, rule, "FRA_PRIORITY"))
    return priority in PLACES_OF_RULES and value_of(RULES, rule, "FRA_PROTOCOL") != OUR_PROTOCOL


def _may_be_its_link(link: bytes) -> bool:
    return value_of(LINKS, link, "IFLA_IFNAME").startswith(b"eni")


def _may_be_its_route(veths: frozenset[int], pods: frozenset[bytes], route: bytes) -> bool:
    """Whether a route is in an ENI's table, or leads to one address, over such a link or ruled."""
    _, length, _, _, table, protocol = route[:6]  # ``struct rtmsg``
    if protocol not in stock.PROTOCOLS:
        return False
    if table in stock.ENI_TABLES:
        return True
    link = native(value_of(ROUTES, route, "RTA_OIF"))
    return (table, length) == (MAIN_TABLE, 32) and (
        link in veths or value_of(ROUTES, route, "RTA_DST") in pods
    )


def _decode_rule(message: Facts) -> StockRule:
    rule, destination = decode_rule(message), message.get("dst")
    others = [word for word in rule.extra.split(",") if not word.startswith("FRA_DST=")]
    return StockRule(
        priority=rule.priority,
        table=rule.table or 0,
        destination=ip_network((destination, message["dst_len"])) if destination else None,
        source=rule.source,
        mark=rule.mark,
        mask=rule.mask,
        protocol=rule.protocol,
        extra=",".join(others),
    )
