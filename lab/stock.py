"""What the stock plugin, amazon-vpc-cni-k8s v1.23.1, leaves on a node: real kernel objects.

A stand-in for migration tests and for the benchmark: not the plugin's code, but the objects that
code makes, for IPv4 on the node's first network card. What is made is decided by ``layout``, as a
list of steps; ``apply`` carries them out in a namespace, with the plugin's own tools where it uses
any (iptables), and in bulk, so that hundreds of pods take seconds. ENIs must be there; the
namespaces of pods as well.

Sources are named by their file in amazon-vpc-cni-k8s.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from lab import netns

MARK = 0x80
"""Bit of the packet and connection marks (``pkg/networkutils/network.go``, defaultConnmark)."""

TO_POD_PRIORITY = 512
FWMARK_PRIORITY = 1024
SERVICE_CIDR_PRIORITY = 1535
FROM_POD_PRIORITY = 1536
FROM_ENI_PRIORITY = 32765
"""Of rules (``pkg/networkutils/network.go``)."""

RULE_PROTOCOL = 0
"""The plugin's netlink library sends no FRA_PROTOCOL, which the kernel keeps as 0 (unspec)."""

VETH_PREFIX = "eni"
POD_GATEWAY = IPv4Address("169.254.1.1")
MTU = 9001
"""Bytes; ``AWS_VPC_ENI_MTU``'s default."""

SNAT_CHAIN = "AWS-SNAT-CHAIN-0"
CONNMARK_CHAIN = "AWS-CONNMARK-CHAIN-0"

CHECKPOINT = Path("/var/run/aws-node/ipam.json")
"""Where the plugin's daemon keeps what it has allocated (``pkg/ipamd/ipamd.go``)."""


class Iptables(StrEnum):
    """Which iptables the plugin's image found to be the node's."""

    NFT = "nft"
    LEGACY = "legacy"


class Connmark(StrEnum):
    """How outbound connections get their mark; the plugin chooses by the iptables it found."""

    NFT = "nft"
    IPTABLES = "iptables"


@dataclass(frozen=True, slots=True)
class StockEni:
    """One ENI and its link on the node.

    Attributes:
        device: EC2's device index; 0 is the primary.
        link: its name in the node's namespace.
        address: the ENI's primary address.
    """

    device: int
    link: str
    address: IPv4Address
    subnet: IPv4Network

    @property
    def table(self) -> int:
        """Its route table (``pkg/networkutils/helper.go``); 254 is main."""
        return self.device + 1 if self.device else 254

    @property
    def gateway(self) -> IPv4Address:
        """The VPC router: the subnet's base plus one."""
        return self.subnet.network_address + 1


@dataclass(frozen=True, slots=True)
class StockPod:
    """One pod.

    Attributes:
        namespace: the Kubernetes namespace.
        netns: name of its network namespace, below /run/netns.
        device: device index of the ENI its address belongs to.
        container_id: the sandbox's id; made of the pod's name if empty.
    """

    namespace: str
    name: str
    address: IPv4Address
    netns: str
    device: int = 0
    container_id: str = ""
    ifname: str = "eth0"

    @property
    def veth(self) -> str:
        """Name of the host's end: made of the pod's name (``pkg/networkutils/names.go``)."""
        return VETH_PREFIX + self._digest[:11]

    @property
    def mac(self) -> str:
        """MAC of the host's end.

        The plugin draws a locally administered one; here it follows from the name.
        """
        return ":".join(["02", *(self._digest[i : i + 2] for i in range(20, 30, 2))])

    @property
    def sandbox(self) -> str:
        """The container id."""
        return self.container_id or self._digest

    @property
    def _digest(self) -> str:
        return hashlib.sha1(
            f"{self.namespace}.{self.name}".encode(), usedforsecurity=False
        ).hexdigest()


@dataclass(frozen=True, slots=True)
class StockNode:
    """One node as the stock plugin was told to set it up.

    Attributes:
        enis: the primary among them.
        exclude_cidrs: ``AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS``.
        service_cidrs: ``AWS_EXTERNAL_SERVICE_CIDRS``.
        external_snat: ``AWS_VPC_K8S_CNI_EXTERNALSNAT``.
        node_port: ``AWS_VPC_CNI_NODE_PORT_SUPPORT``.
        connmark: None for what the plugin chooses with these iptables.
        mtu: bytes, of ENIs and pods.
    """

    enis: tuple[StockEni, ...]
    pods: tuple[StockPod, ...] = ()
    vpc_cidrs: tuple[IPv4Network, ...] = (IPv4Network("10.0.0.0/16"), IPv4Network("100.64.0.0/16"))
    exclude_cidrs: tuple[IPv4Network, ...] = ()
    service_cidrs: tuple[IPv4Network, ...] = ()
    external_snat: bool = False
    node_port: bool = True
    iptables: Iptables = Iptables.NFT
    connmark: Connmark | None = None
    mtu: int = MTU

    @property
    def primary(self) -> StockEni:
        """The primary ENI."""
        return next(e for e in self.enis if e.device == 0)

    @property
    def marks_by(self) -> Connmark:
        """How connections are marked (``pkg/networkutils/nftables_connmark.go``)."""
        if self.connmark is not None:
            return self.connmark
        return Connmark.NFT if self.iptables is Iptables.NFT else Connmark.IPTABLES

    @property
    def unnatted_cidrs(self) -> tuple[tuple[IPv4Network, bool], ...]:
        """CIDRs that are not translated, each with whether it is an exclusion; in chain order.

        Each is inserted at the top of its chain, so that the last one comes first.
        """
        cidrs = [(c, False) for c in self.vpc_cidrs] + [(c, True) for c in self.exclude_cidrs]
        return tuple(reversed(cidrs))


@dataclass(frozen=True, slots=True)
class Step:
    """One program and what it is given to read.

    Attributes:
        netns: name of the namespace it runs in; empty for the node's.
    """

    argv: tuple[str, ...]
    lines: tuple[str, ...] = field(repr=False)
    netns: str = ""


class StockError(Exception):
    """A step failed; carries the program's own words."""


def layout(node: StockNode) -> tuple[Step, ...]:
    """Return all steps that lay out a node, in order."""
    return (*host_steps(node), *eni_steps(node), *pod_steps(node, node.pods))


def host_steps(node: StockNode) -> tuple[Step, ...]:
    """Return what the node itself gets (``SetupHostNetwork``)."""
    settings = (
        # Not the plugin's: the machine image's and kube-proxy's, which a namespace comes without.
        "net.ipv4.ip_forward = 1",
        f"net.ipv4.conf.{node.primary.link}.rp_filter = 2",
        "net.ipv4.tcp_early_demux = 1",
    )
    links = [f"link set {node.primary.link} mtu {node.mtu}"]
    if node.node_port or not node.external_snat:
        links.append(_rule(f"fwmark {MARK:#x}/{MARK:#x} lookup main", FWMARK_PRIORITY))
    links += [_rule(f"to {c} lookup main", SERVICE_CIDR_PRIORITY) for c in node.service_cidrs]
    restore = (f"iptables-{node.iptables}-restore", "--noflush", "--wait")
    steps = [_sysctl(settings), _ip(links), Step(restore, tuple(_iptables(node)))]
    if node.marks_by is Connmark.NFT and not node.external_snat:
        steps.append(Step(("nft", "--file", "-"), tuple(_aws_cni_table(node))))
    return tuple(steps)


def eni_steps(node: StockNode) -> tuple[Step, ...]:
    """Return what each secondary ENI gets (``setupENINetwork``)."""
    lines: list[str] = []
    for eni in (e for e in node.enis if e.device):
        lines += [
            f"link set {eni.link} mtu {node.mtu} up",
            f"address add {eni.address}/{eni.subnet.prefixlen} dev {eni.link}",
            f"route replace {eni.gateway} dev {eni.link} scope link table {eni.table}",
            f"route replace default via {eni.gateway} dev {eni.link} table {eni.table}",
            f"route delete {eni.subnet} dev {eni.link}",
            _rule(f"from {eni.address} lookup {eni.table}", FROM_ENI_PRIORITY),
        ]
    return (_ip(lines),) if lines else ()


def pod_steps(node: StockNode, pods: Sequence[StockPod]) -> tuple[Step, ...]:
    """Return what pods get, on the host and in their own namespaces.

    Source: ``cmd/routed-eni-cni-plugin/driver/driver.go``, ``SetupPodNetwork``.
    """
    if not pods:
        return ()
    tables = {e.device: e.table for e in node.enis}
    links = [
        f"link add {p.veth} address {p.mac} mtu {node.mtu} type veth "
        f"peer name {p.ifname} mtu {node.mtu} netns {p.netns}"
        for p in pods
    ]
    settings = [
        f"net.ipv6.conf.{p.veth}.{name} = {value}"
        for p in pods
        for name, value in (("accept_ra", 0), ("accept_redirects", 1), ("forwarding", 0))
    ]
    routes = []
    for p in pods:
        routes += [
            f"link set {p.veth} up",
            f"route replace {p.address} dev {p.veth} scope link",
            _rule(f"to {p.address} lookup main", TO_POD_PRIORITY),
        ]
        if p.device:
            routes.append(_rule(f"from {p.address} lookup {tables[p.device]}", FROM_POD_PRIORITY))
    return (_ip(links), _sysctl(settings), _ip(routes), *map(_pod_side, pods))


def apply(namespace: str, steps: Iterable[Step]) -> None:
    """Carry out steps in a node's namespace, and those of pods in theirs.

    Raises:
        StockError: one failed; later ones were not begun.
    """
    for step in steps:
        with netns.inside(step.netns or namespace):
            done = subprocess.run(
                step.argv, input="\n".join(step.lines) + "\n", capture_output=True, text=True
            )
        if done.returncode != 0:
            place = step.netns or namespace
            raise StockError(f"{' '.join(step.argv)} in {place}: {done.stderr or done.stdout}")


def checkpoint(pods: Iterable[StockPod], *, allocated_at: int = 1_700_000_000) -> str:
    """Return the daemon's file of allocations (``pkg/ipamd/datastore/data_store.go``).

    Args:
        pods: the pods that have an address.
        allocated_at: when each got it, in seconds since the epoch.
    """
    allocations = [
        {
            "networkName": "aws-cni",
            "containerID": p.sandbox,
            "ifName": p.ifname,
            "ipv4": str(p.address),
            "allocationTimestamp": allocated_at * 1_000_000_000,
            "metadata": {
                "k8sPodNamespace": p.namespace,
                "k8sPodName": p.name,
                "interfacesCount": 1,
            },
        }
        for p in pods
    ]
    return json.dumps({"version": "vpc-cni-ipam/1", "allocations": allocations})


def write_checkpoint(pods: Iterable[StockPod], path: Path = CHECKPOINT) -> None:
    """Write the daemon's file of allocations, making its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(checkpoint(pods))


def _pod_side(pod: StockPod) -> Step:
    lines = [
        f"link set {pod.ifname} up",
        f"address add {pod.address}/32 dev {pod.ifname}",
        f"route replace {POD_GATEWAY} dev {pod.ifname} scope link",
        f"route replace default via {POD_GATEWAY} dev {pod.ifname}",
        f"neighbour add {POD_GATEWAY} lladdr {pod.mac} dev {pod.ifname} nud permanent",
    ]
    return _ip(lines, pod.netns)


def _iptables(node: StockNode) -> Iterator[str]:
    """Say to iptables-restore what ``buildIptablesSNATRules`` and the connmark backend ask for."""
    yield "*nat"
    yield f":{SNAT_CHAIN} - [0:0]"
    if not node.external_snat:
        yield f'-A POSTROUTING -m comment --comment "AWS SNAT CHAIN" -j {SNAT_CHAIN}'
        for cidr, excluded in node.unnatted_cidrs:
            comment = "AWS SNAT CHAIN EXCLUSION" if excluded else "AWS SNAT CHAIN"
            yield f'-A {SNAT_CHAIN} -d {cidr} -m comment --comment "{comment}" -j RETURN'
        yield (
            f'-A {SNAT_CHAIN} ! -o vlan+ -m comment --comment "AWS, SNAT" -m addrtype '
            f"! --dst-type LOCAL -j SNAT --to-source {node.primary.address} --random-fully"
        )
        if node.marks_by is Connmark.IPTABLES:
            yield from _connmark_chain(node)
    yield "COMMIT"
    yield "*mangle"
    rule = '-A PREROUTING -m comment --comment "AWS, primary ENI"'
    if node.node_port:
        yield (
            f"{rule} -i {node.primary.link} -m addrtype --dst-type LOCAL --limit-iface-in "
            f"-j CONNMARK --set-mark {MARK:#x}/{MARK:#x}"
        )
    if node.node_port or not node.external_snat:
        yield f"{rule} -i {VETH_PREFIX}+ -j CONNMARK --restore-mark --mask {MARK:#x}"
    if node.node_port:
        yield f"{rule} -i vlan+ -j CONNMARK --restore-mark --mask {MARK:#x}"
    yield "COMMIT"


def _connmark_chain(node: StockNode) -> Iterator[str]:
    """The mark by iptables (``pkg/networkutils/iptables_connmark.go``)."""
    yield f":{CONNMARK_CHAIN} - [0:0]"
    yield (
        f"-A PREROUTING -i {VETH_PREFIX}+ "
        f'-m comment --comment "AWS, outbound connections" -j {CONNMARK_CHAIN}'
    )
    yield (
        '-A PREROUTING -m comment --comment "AWS, CONNMARK" '
        f"-j CONNMARK --restore-mark --mask {MARK:#x}"
    )
    for cidr, _ in node.unnatted_cidrs:
        yield (
            f'-A {CONNMARK_CHAIN} -d {cidr} -m comment --comment "AWS CONNMARK CHAIN" -j RETURN'
        )
    yield (
        f'-A {CONNMARK_CHAIN} -m comment --comment "AWS, CONNMARK" '
        f"-j CONNMARK --set-xmark {MARK:#x}/{MARK:#x}"
    )


def _aws_cni_table(node: StockNode) -> Iterator[str]:
    """The mark by nftables (``pkg/networkutils/nftables_connmark.go``)."""
    yield "table ip aws-cni {"
    yield "chain snat-mark {"
    for cidr, _ in node.unnatted_cidrs:
        yield f"counter ip daddr {cidr} return"
    yield f"counter ct mark set ct mark or {MARK:#x}"
    yield "}"
    yield "chain nat-prerouting {"
    yield "type nat hook prerouting priority -90; policy accept;"
    yield "fib daddr type local return"
    yield f'iifname "{VETH_PREFIX}*" counter jump snat-mark'
    yield f"counter meta mark set ct mark and {MARK:#x}"
    yield "}"
    yield "}"


def _rule(what: str, priority: int) -> str:
    return f"rule add {what} priority {priority} protocol {RULE_PROTOCOL}"


def _ip(lines: Sequence[str], where: str = "") -> Step:
    return Step(("ip", "-batch", "-"), tuple(lines), where)


def _sysctl(lines: Sequence[str]) -> Step:
    """Set what exists of these: without IPv6 there is none of it, as the plugin knows too."""
    return Step(("sysctl", "--quiet", "--ignore", "--load=-"), tuple(lines))
