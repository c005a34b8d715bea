"""The packet world: what a VPC does to packets, in one namespace.

Every ENI is a veth pair between its instance's namespace and this one. The VPC knows each address
and the MAC it belongs to, so nothing on a node answers ARP for a pod's address, and a packet whose
source is not an address of the ENI it left by is dropped and written down.

The internet gateway lets primary addresses of primary ENIs pass. It does not translate them, so
that a test sees at the far end whose address it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from itertools import count
from pathlib import Path
from typing import Any

import nftables
from pyroute2 import IPRoute

from lab import netns
from lab.topology import (
    EC2_ENDPOINT,
    IMDS,
    INTERNET_CIDR,
    INTERNET_HOST,
    PEER_CIDR,
    PEER_HOST,
    SUBNETS,
    Names,
)
from lab.wire import EniView, WireError

MTU = 9001
BOOT_MTU = 1500
"""Bytes; what a hot-plugged link has before anybody configures it (Linux ena driver)."""

RTPROT_DHCP = 16
SCOPE_LINK = 253
NUD_PERMANENT = 0x80
MAX_LINK_NAME = 15

# Writing down and dropping are two rules: a set that is full ends a rule early.
RULES = """
table ip lab {
  set sources { typeof iifname . ip saddr; }
  set unchecked { typeof iifname; }
  set public { type ipv4_addr; }
  set spoofed { typeof iifname . ip saddr . ip daddr; size 65535; flags dynamic; counter; }
  set not_public { typeof iifname . ip saddr . ip daddr; size 65535; flags dynamic; counter; }
  set passed { typeof iifname . ip saddr . ip daddr; size 65535; flags dynamic; counter; }
  chain source_check {
    type filter hook prerouting priority raw; policy accept;
    iifname != "e-*" accept
    iifname @unchecked goto count
    iifname . ip saddr @sources goto count
    update @spoofed { iifname . ip saddr . ip daddr counter }
    drop
  }
  chain count {
    update @passed { iifname . ip saddr . ip daddr counter }
  }
  chain refuse {
    update @not_public { iifname . ip saddr . ip daddr counter }
    drop
  }
  chain gateway {
    type filter hook forward priority filter; policy accept;
    oifname "igw" ip saddr != @public goto refuse
    iifname "igw" ip daddr != @public goto refuse
  }
}
"""

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
        self._public: dict[str, str] = {}
        self._nft = nftables.Nftables()
        self._nft.set_json_output(True)

    def build(self) -> None:
        """Lay out routers, gateways and the hosts behind them."""
        _sysctl("ipv4/ip_forward", "1")
        for name in ("all", "default"):
            _sysctl(f"ipv4/conf/{name}/rp_filter", "0")
            _sysctl(f"ipv4/conf/{name}/send_redirects", "0")
        self._command(RULES)
        with IPRoute() as ip:
            lo = ip.link_lookup(ifname="lo")[0]
            routers = [s.cidr.network_address + 1 for s in SUBNETS]
            for address in (*routers, EC2_ENDPOINT, IMDS):
                ip.addr("add", index=lo, address=str(address), prefixlen=32)
        self._neighbour("pcx", "peer", PEER_CIDR, PEER_HOST)
        self._neighbour("igw", "internet", INTERNET_CIDR, INTERNET_HOST)

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
            ip.link("set", index=ip.link_lookup(ifname=link)[0], state="up")
        self.readdress(eni)
        if eni.device_index == 0:
            self._boot(namespace, eni)

    def unplug(self, eni: EniView) -> None:
        """Remove the pair, and with it everything that leads there."""
        link = _link_name(eni.eni_id)
        with IPRoute() as ip:
            for index in ip.link_lookup(ifname=link):
                ip.link("delete", index=index)
        self._set_elements("sources", link, set())
        self._set_elements("unchecked", link, set())
        self._set_elements("public", link, set())

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
        self._set_elements("sources", link, {f'"{link}" . {a}' for a in addresses})
        unchecked = set() if eni.source_dest_check else {f'"{link}"'}
        self._set_elements("unchecked", link, unchecked)
        public = {str(eni.primary)} if eni.device_index == 0 else set()
        self._set_elements("public", link, public)

    # -- what happened --------------------------------------------------------------------

    def drops(self) -> tuple[Flow, ...]:
        """Return what was dropped, and why."""
        return tuple(f for name in REASONS for f in self._flows(name))

    def passed(self) -> tuple[Flow, ...]:
        """Return what ENIs sent and the source check let through."""
        return tuple(self._flows("passed"))

    def forget(self) -> None:
        """Count from nothing."""
        for name in (*REASONS, "passed"):
            self._command(f"flush set ip lab {name}")

    def _flows(self, name: str) -> Iterator[Flow]:
        for entry in json.loads(self._command(f"list set ip lab {name}"))["nftables"]:
            for element in entry.get("set", {}).get("elem", []):
                body = element["elem"]
                link, source, destination = body["val"]["concat"]
                packets = body["counter"]["packets"]
                eni = self._enis.get(link, link)
                yield Flow(REASONS.get(name, ""), eni, source, destination, packets)

    def _set_elements(self, name: str, link: str, wanted: set[str]) -> None:
        key = f"{name}/{link}"
        have = self._elements.get(key, set())
        commands = [f"add element ip lab {name} {{ {e} }}" for e in sorted(wanted - have)]
        commands += [f"delete element ip lab {name} {{ {e} }}" for e in sorted(have - wanted)]
        if commands:
            self._command("\n".join(commands))
        self._elements[key] = wanted

    def _command(self, text: str) -> str:
        code, output, error = self._nft.cmd(text)
        if code != 0:
            raise RuntimeError(f"nft: {error}")
        return str(output)

    def _neighbour(self, link: str, part: str, cidr: IPv4Network, host: IPv4Address) -> None:
        """Connect a network beyond the VPC, with one host in it."""
        router = cidr.network_address + 1
        namespace = self._names.namespace(part)
        with IPRoute() as ip, _opened(netns.path(namespace)) as fd:
            peer = {"ifname": "eth0", "mtu": MTU, "net_ns_fd": fd}
            ip.link("add", ifname=link, kind="veth", mtu=MTU, peer=peer)
            index = ip.link_lookup(ifname=link)[0]
            ip.link("set", index=index, state="up")
            ip.addr("add", index=index, address=str(router), prefixlen=cidr.prefixlen)
        _configure(namespace, "eth0", host, cidr, router)

    def _boot(self, namespace: str, eni: EniView) -> None:
        """Configure an instance's first link, as its DHCP client does."""
        assert eni.primary is not None
        router = eni.subnet_cidr.network_address + 1
        _configure(namespace, "eth0", eni.primary, eni.subnet_cidr, router)


def _configure(
    namespace: str, link: str, address: IPv4Address, cidr: IPv4Network, router: IPv4Address
) -> None:
    with netns.inside(namespace):
        ip = IPRoute()
    with ip:
        index = ip.link_lookup(ifname=link)[0]
        ip.link("set", index=index, state="up", mtu=MTU)
        ip.addr("add", index=index, address=str(address), prefixlen=cidr.prefixlen)
        ip.route("add", dst="default", gateway=str(router), oif=index, proto=RTPROT_DHCP)


def _free_name(namespace: str, index: int) -> str:
    """Return the name udev would give: eth<index>, or the next one that is free."""
    with netns.inside(namespace):
        ip = IPRoute()
    with ip:
        used = {link.get("ifname") for link in ip.get_links()}
    return next(name for n in count(index) if (name := f"eth{n}") not in used)


def _all_addresses(eni: EniView) -> set[IPv4Address]:
    return set(eni.addresses) | {a for prefix in eni.prefixes for a in prefix}


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
