"""The packet fabric: what a VPC does to packets, in one namespace.

Every ENI is a veth pair between its instance's namespace and this one. The VPC knows each address
and the MAC it belongs to, so nothing on a node answers ARP for a pod's address, and a packet whose
source is not an address of the ENI it left by is dropped and written down.

The internet gateway lets primary addresses of primary ENIs pass, and every IPv6 address of the
VPC. It does not translate them, so that a test sees at the far end whose address it was.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import count
from pathlib import Path
from typing import Any

import nftables
from pyroute2 import IPRoute

from lab import netns
from lab.advertisement import ROUTER, advertise
from lab.topology import (
    EC2_ENDPOINT,
    IMDS,
    INTERNET_CIDR,
    INTERNET_HOST,
    INTERNET_IPV6_CIDR,
    INTERNET_IPV6_HOST,
    PEER_CIDR,
    PEER_HOST,
    PEER_IPV6_CIDR,
    PEER_IPV6_HOST,
    SUBNETS,
    VPC_IPV6_CIDR,
    Names,
)
from lab.wire import EniView, WireError

MTU = 9001
BOOT_MTU = 1500
"""Bytes; what a hot-plugged link has before anybody configures it (Linux ena driver)."""

RTPROT_DHCP = 16
IFA_F_NODAD = 0x02
IFA_F_NOPREFIXROUTE = 0x200
INSTANCE = IPv6Address("fe80:ec2::2")
"""Whoever is at the other end of an ENI's wire, whatever the instance calls itself there: a
permanent neighbour gives it the ENI's MAC, and routes to a /80 need no neighbour per address."""

BOOT_LIMIT_S = 5.0
"""Seconds for an instance to take a router's advertisement."""

SCOPE_LINK = 253
NUD_PERMANENT = 0x80
MAX_LINK_NAME = 15

TABLES = ("ip", "ip6")

# Writing down and dropping are two rules: a set that is full ends a rule early.
RULES = """
table {ip} lab {{
  set sources {{ typeof iifname . {ip} saddr; {flags} }}
  set unchecked {{ typeof iifname; }}
  {public_set}
  set spoofed {{ typeof iifname . {ends}; size 65535; flags dynamic; counter; }}
  set not_public {{ typeof iifname . {ends}; size 65535; flags dynamic; counter; }}
  set passed {{ typeof iifname . {ends}; size 65535; flags dynamic; counter; }}
  chain source_check {{
    type filter hook prerouting priority raw; policy accept;
    iifname != "e-*" accept
    {unasked}
    iifname @unchecked goto count
    iifname . {ip} saddr @sources goto count
    update @spoofed {{ iifname . {ends} counter }}
    drop
  }}
  chain count {{
    update @passed {{ iifname . {ends} counter }}
  }}
  chain refuse {{
    update @not_public {{ iifname . {ends} counter }}
    drop
  }}
  chain gateway {{
    type filter hook forward priority filter; policy accept;
    oifname "igw" {ip} saddr != {public} goto refuse
    iifname "igw" {ip} daddr != {public} goto refuse
  }}
}}
"""
IPV4_RULES = RULES.format(
    ip="ip",
    ends="ip saddr . ip daddr",
    flags="",
    public_set="set public { type ipv4_addr; }",
    public="@public",
    unasked="",
)
IPV6_RULES = RULES.format(
    ip="ip6",
    ends="ip6 saddr . ip6 daddr",
    flags="flags interval;",
    public_set="",
    public=VPC_IPV6_CIDR,
    unasked='ip6 saddr { ::, fe80::/10 } accept comment "neighbour discovery stays on the wire"',
)

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

REASONS = {"spoofed": "source is no address of this ENI", "not_public": "no public address"}


@dataclass(frozen=True, slots=True)
class Flow:
    """Packets from one ENI (or gateway) with one source and destination.

    Attributes:
        reason: why they were dropped; empty if they passed.
        eni: the ENI's id, or the gateway's name.
    """

    reason: str
    eni: str
    source: str
    destination: str
    packets: int


class Fabric:
    """The VPC's data plane; lives in the namespace of the process that makes it."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._namespaces: dict[str, str] = {}
        self._launching: str | None = None
        self._enis: dict[str, str] = {}
        self._elements: dict[str, set[str]] = {}
        self._booted: set[str] = set()
        self._nft = nftables.Nftables()
        self._nft.set_json_output(True)

    def build(self) -> None:
        """Lay out routers, gateways and the hosts behind them."""
        _sysctl("ipv4/ip_forward", "1")
        for name in ("all", "default"):
            _sysctl(f"ipv4/conf/{name}/rp_filter", "0")
            _sysctl(f"ipv4/conf/{name}/send_redirects", "0")
        # What is tested is the node's IPv6, not how long the fabric's takes to trust itself.
        _sysctl("ipv6/conf/default/accept_dad", "0")
        _sysctl("ipv6/conf/all/forwarding", "1")
        self._command(IPV4_RULES)
        self._command(IPV6_RULES)
        with IPRoute() as ip:
            lo = ip.link_lookup(ifname="lo")[0]
            routers = [s.cidr.network_address + 1 for s in SUBNETS]
            for address in (*routers, EC2_ENDPOINT, IMDS):
                ip.addr("add", index=lo, address=str(address), prefixlen=32)
        self._neighbour("pcx", "peer", (PEER_CIDR, PEER_HOST), (PEER_IPV6_CIDR, PEER_IPV6_HOST))
        self._neighbour(
            "igw",
            "internet",
            (INTERNET_CIDR, INTERNET_HOST),
            (INTERNET_IPV6_CIDR, INTERNET_IPV6_HOST),
        )

    @contextmanager
    def launching(self, part: str) -> Iterator[None]:
        """Say which namespace the instance that starts now lives in."""
        self._launching = self._names.namespace(part)
        try:
            yield
        finally:
            self._launching = None

    # -- Wire -----------------------------------------------------------------------------

    def plug(self, eni: EniView) -> None:
        """Make the ENI's veth pair, down on the instance's side, as hot-plugging leaves it."""
        assert eni.instance_id is not None
        if eni.instance_id not in self._namespaces:
            if self._launching is None:
                raise WireError("the lab's instances are made with it; there is no place for more")
            self._namespaces[eni.instance_id] = self._launching
        namespace = self._namespaces[eni.instance_id]
        link = _link_name(eni.eni_id)
        self._enis[link] = eni.eni_id
        with IPRoute() as ip, _opened(netns.path(namespace)) as fd:
            peer = {
                "ifname": _free_name(namespace, eni.device_index or 0),
                "address": eni.mac,
                "mtu": BOOT_MTU,
                "net_ns_fd": fd,
            }
            ip.link("add", ifname=link, kind="veth", mtu=MTU, peer=peer)
            _sysctl(f"ipv4/conf/{link}/proxy_arp", "1")
            _sysctl(f"ipv4/neigh/{link}/proxy_delay", "0")
            index = ip.link_lookup(ifname=link)[0]
            ip.link("set", index=index, state="up")
            # As the VPC router; no route, because every wire has the same address.
            ip.addr("add", index=index, address=str(ROUTER), prefixlen=128, flags=IFA_F_NODAD)
            ip.neigh(
                "replace", dst=str(INSTANCE), lladdr=eni.mac, ifindex=index, state=NUD_PERMANENT
            )
        if eni.device_index == 0:
            self._boot(namespace, eni)
        self.readdress(eni)

    def unplug(self, eni: EniView) -> None:
        """Remove the pair, and with it everything that leads there."""
        link = _link_name(eni.eni_id)
        with IPRoute() as ip:
            for index in ip.link_lookup(ifname=link):
                ip.link("delete", index=index)
        for table in TABLES:
            self._set_elements("sources", link, set(), table)
            self._set_elements("unchecked", link, set(), table)
        self._set_elements("public", link, set())
        self._booted.discard(eni.eni_id)

    def readdress(self, eni: EniView) -> None:
        """Deliver to the ENI's addresses by its MAC, and accept nothing else from it."""
        link = _link_name(eni.eni_id)
        addresses = _all_addresses(eni)
        with IPRoute() as ip:
            index = ip.link_lookup(ifname=link)[0]
            known = {
                IPv4Address(n.get("dst"))
                for n in ip.get_neighbours(family=2, ifindex=index)
                if n["state"] & NUD_PERMANENT
            }
            for address in addresses - known:
                ip.neigh(
                    "replace", dst=str(address), lladdr=eni.mac, ifindex=index, state=NUD_PERMANENT
                )
                ip.route("replace", dst=f"{address}/32", oif=index, scope=SCOPE_LINK)
            for address in known - addresses:
                ip.neigh("delete", dst=str(address), ifindex=index)
                ip.route("delete", dst=f"{address}/32", oif=index, scope=SCOPE_LINK)
            networks = _ipv6_networks(eni)
            reached = {
                IPv6Network((r.get("dst"), r["dst_len"]))
                for r in ip.get_routes(family=socket.AF_INET6, oif=index)
                if r.get("gateway") == str(INSTANCE)
            }
            for network in networks ^ reached:
                verb = "add" if network in networks else "delete"
                ip.route(verb, dst=str(network), gateway=str(INSTANCE), oif=index)
        self._set_elements("sources", link, {f'"{link}" . {a}' for a in addresses})
        self._set_elements("sources", link, {f'"{link}" . {n}' for n in networks}, "ip6")
        unchecked = set() if eni.source_dest_check else {f'"{link}"'}
        for table in TABLES:
            self._set_elements("unchecked", link, unchecked, table)
        public = {str(eni.primary)} if eni.device_index == 0 else set()
        self._set_elements("public", link, public)
        if eni.device_index == 0 and eni.ipv6_addresses and eni.eni_id not in self._booted:
            assert eni.instance_id is not None
            self._boot_ipv6(self._namespaces[eni.instance_id], link, eni.ipv6_addresses[0])
            self._booted.add(eni.eni_id)

    # -- what happened --------------------------------------------------------------------

    def drops(self) -> tuple[Flow, ...]:
        """Return what was dropped, and why."""
        return tuple(f for name in REASONS for f in self._flows(name))

    def passed(self) -> tuple[Flow, ...]:
        """Return what ENIs sent and the source check let through."""
        return tuple(self._flows("passed"))

    def forget(self) -> None:
        """Count from nothing."""
        for table in TABLES:
            for name in (*REASONS, "passed"):
                self._command(f"flush set {table} lab {name}")

    def _flows(self, name: str) -> Iterator[Flow]:
        for table in TABLES:
            yield from self._flows_of(table, name)

    def _flows_of(self, table: str, name: str) -> Iterator[Flow]:
        for entry in json.loads(self._command(f"list set {table} lab {name}"))["nftables"]:
            for element in entry.get("set", {}).get("elem", []):
                body = element["elem"]
                link, source, destination = body["val"]["concat"]
                packets = body["counter"]["packets"]
                eni = self._enis.get(link, link)
                yield Flow(REASONS.get(name, ""), eni, source, destination, packets)

    def _set_elements(self, name: str, link: str, wanted: set[str], table: str = "ip") -> None:
        key = f"{table}/{name}/{link}"
        have = self._elements.get(key, set())
        place = f"{table} lab {name}"
        commands = [f"add element {place} {{ {e} }}" for e in sorted(wanted - have)]
        commands += [f"delete element {place} {{ {e} }}" for e in sorted(have - wanted)]
        if commands:
            self._command("\n".join(commands))
        self._elements[key] = wanted

    def _command(self, text: str) -> str:
        code, output, error = self._nft.cmd(text)
        if code != 0:
            raise RuntimeError(f"nft: {error}")
        return str(output)

    def _neighbour(self, link: str, part: str, *networks: tuple[Network, Address]) -> None:
        """Connect a network beyond the VPC, with one host in it that has an address of each."""
        namespace = self._names.namespace(part)
        with IPRoute() as ip, _opened(netns.path(namespace)) as fd:
            peer = {"ifname": "eth0", "mtu": MTU, "net_ns_fd": fd}
            ip.link("add", ifname=link, kind="veth", mtu=MTU, peer=peer)
            index = ip.link_lookup(ifname=link)[0]
            ip.link("set", index=index, state="up")
            for cidr, _ in networks:
                _add_address(ip, index, cidr[1], cidr.prefixlen)
        for cidr, host in networks:
            _configure(namespace, "eth0", host, cidr, cidr[1])

    def _boot(self, namespace: str, eni: EniView) -> None:
        """Configure an instance's first link, as its DHCP client does."""
        assert eni.primary is not None
        # It has booted long ago, and its link-local address was found to be its own then.
        with netns.inside(namespace):
            _sysctl("ipv6/conf/eth0/accept_dad", "0")
        router = eni.subnet_cidr.network_address + 1
        _configure(namespace, "eth0", eni.primary, eni.subnet_cidr, router)

    def _boot_ipv6(self, namespace: str, link: str, address: IPv6Address) -> None:
        """Give an instance its address as DHCPv6 does, and its default route by advertisement."""
        with netns.inside(namespace):
            ip = IPRoute()
        with ip:
            index = ip.link_lookup(ifname="eth0")[0]
            ip.link("set", index=index, state="up")
            _add_address(ip, index, address, 128)
            deadline = time.monotonic() + BOOT_LIMIT_S
            while not _has_ipv6_default(ip, index):
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{namespace} takes no router advertisement")
                # Again, because a link carries only some time after it is up.
                advertise(link)
                time.sleep(0.01)


def _has_ipv6_default(ip: IPRoute, index: int) -> bool:
    routes = ip.get_routes(family=socket.AF_INET6, oif=index)
    return any(r["dst_len"] == 0 and r.get("gateway") for r in routes)


def _add_address(ip: IPRoute, index: int, address: Address, length: int) -> None:
    """Add an address without duplicate address detection: in a VPC it has one owner."""
    flags = IFA_F_NODAD if address.version == 6 else 0
    ip.addr("add", index=index, address=str(address), prefixlen=length, flags=flags)


def _configure(
    namespace: str, link: str, address: Address, cidr: Network, router: Address
) -> None:
    with netns.inside(namespace):
        ip = IPRoute()
    with ip:
        index = ip.link_lookup(ifname=link)[0]
        ip.link("set", index=index, state="up", mtu=MTU)
        _add_address(ip, index, address, cidr.prefixlen)
        everything = "0.0.0.0/0" if address.version == 4 else "::/0"
        ip.route("add", dst=everything, gateway=str(router), oif=index, proto=RTPROT_DHCP)


def _free_name(namespace: str, index: int) -> str:
    """Return the name udev would give: eth<index>, or the next one that is free."""
    with netns.inside(namespace):
        ip = IPRoute()
    with ip:
        used = {link.get("ifname") for link in ip.get_links()}
    return next(name for n in count(index) if (name := f"eth{n}") not in used)


def _all_addresses(eni: EniView) -> set[IPv4Address]:
    return set(eni.addresses) | {a for prefix in eni.prefixes for a in prefix}


def _ipv6_networks(eni: EniView) -> set[IPv6Network]:
    return {*map(IPv6Network, eni.ipv6_addresses), *eni.ipv6_prefixes}


def _link_name(eni_id: str) -> str:
    return f"e-{eni_id[-(MAX_LINK_NAME - 2) :]}"


def _sysctl(name: str, value: str) -> None:
    (Path("/proc/sys/net") / name).write_text(value)


@contextmanager
def _opened(where: Path) -> Iterator[int]:
    fd = os.open(where, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def as_dict(flow: Flow) -> dict[str, Any]:
    """Return a flow as JSON can carry it."""
    return {
        "reason": flow.reason,
        "eni": flow.eni,
        "source": flow.source,
        "destination": flow.destination,
        "packets": flow.packets,
    }
