"""Nodes to forward packets: ours, the stock plugin's stand-in, and one that only routes.

Each has namespaces of its own: the node's, one for all that is beyond its ENIs, and one per pod.
Ours is made by the product itself: records in a state directory, a remembered look at EC2, and one
kernel pass, as after a restart.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

from benchmarks import release
from benchmarks.burst import Sink
from lab import netns, stock
from lab.stock import Iptables, StockEni, StockNode, StockPod
from lab.topology import Names
from reconciler.core.attachment import Attachment, AttachmentKey, netns_identity, veth_name
from reconciler.core.facts import Eni, Node
from reconciler.engine.plan import Change, Verb
from reconciler.ipam.cloud import Cloud, Limits
from reconciler.node.environment import Environment
from reconciler.node.passes import LocalNode
from reconciler.targets.state.directory import StateDirectory
from schemas.document import NodeNetwork

ENIS = 15
"""As many as an instance has at most (of one card): our rules are one per ENI, so their worst."""

PER_ENI = 50
VPC = IPv4Network("10.0.0.0/16")
SUBNET = IPv4Network("10.0.0.0/18")
GATEWAY = SUBNET.network_address + 1
VPC_HOST = IPv4Address("10.0.255.10")
MTU = 9001

NETLINK_NETFILTER = 12
NLMSGHDR_BYTES = 16
FLUSH = struct.pack("=IHHII", 20, 1 << 8 | 2, 1 | 4, 0, 0) + bytes(4)
"""Of ctnetlink: IPCTNL_MSG_CT_DELETE of everything, to be acknowledged."""


@dataclass(frozen=True, slots=True)
class Spot:
    """One pod's place.

    Attributes:
        netns: name of its namespace.
    """

    number: int
    device: int
    address: IPv4Address
    netns: str


class Testbed:
    """One node with what is around it.

    Attributes:
        label: whose it is; "bare" has no plugin at all.
        pods: in the order in which they came; measurements are of the last one.
    """

    def __init__(
        self, names: Names, label: str, pods: int, exclude: Sequence[IPv4Network] = ()
    ) -> None:
        self.label = label
        self.exclude = tuple(exclude)
        self._names = names
        stem = f"{label}-{pods}-{len(exclude)}"
        self.node, self.beyond = (names.namespace(f"{stem}-{part}") for part in ("node", "vpc"))
        self.pods = [_spot(i, pods, names.namespace(f"pod-{stem}-{i}")) for i in range(pods)]
        _ip([f"netns add {n}" for n in (self.node, self.beyond, *(p.netns for p in self.pods))])
        self._wire()

    @property
    def last(self) -> Spot:
        """The pod that came last, on the last ENI."""
        return self.pods[-1]

    @property
    def primary(self) -> IPv4Address:
        """What the internet sees."""
        return _primary(0)

    def ready(self) -> None:
        """Let the last pod be reached from beyond, and count what arrives on either side."""
        device = 0 if self.label == "bare" else self.last.device
        with netns.inside(self.beyond):
            _ip(
                [
                    f"route add {self.last.address} dev w{device} src {VPC_HOST}",
                    f"neighbour add {self.last.address} lladdr {_mac(device)} dev w{device}",
                ]
            )
        self.outside = Sink(self.beyond, [f"w{i}" for i in range(ENIS)])
        self.inside = Sink(self.last.netns, ["eth0"])
        with netns.inside(self.node):
            self._conntrack = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)

    def forget_connections(self) -> None:
        """Empty the node's connection table."""
        self._conntrack.send(FLUSH)
        error = struct.unpack_from("=i", self._conntrack.recv(4096), NLMSGHDR_BYTES)[0]
        if error:
            raise OSError(-error, f"{self.node}: conntrack was not flushed")

    def carried(self) -> dict[str, int]:
        """Return how many packets each ENI has sent, by the name of its link on the node."""
        with netns.inside(self.beyond):
            lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
        fields = [line.replace(":", " ").split() for line in lines]
        return {f[0].replace("w", "eth"): int(f[2]) for f in fields if f[0].startswith("w")}

    @property
    def tracked(self) -> int:
        """How many connections the node has."""
        with netns.inside(self.node):
            return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())

    def connections(self) -> list[tuple[str, str]]:
        """Return, for each connection of the node, the source and destination of its answers."""
        with netns.inside(self.node), NFCTSocket() as ct:
            answers = [e.get_attr("CTA_TUPLE_REPLY").get_attr("CTA_TUPLE_IP") for e in ct.dump()]
        return [(a.get_attr("CTA_IP_V4_SRC"), a.get_attr("CTA_IP_V4_DST")) for a in answers]

    def close(self) -> None:
        """Close what is open; the namespaces are taken down all at once."""
        self._conntrack.close()

    def _wire(self) -> None:
        """Give the node its ENIs, the first as its DHCP client configures it."""
        lines = ["link set lo up", f"address add {VPC_HOST}/32 dev lo"]
        for i in range(ENIS):
            lines += [
                f"link add w{i} mtu {MTU} address {_mac(i, 0xBB)} type veth "
                f"peer name eth{i} mtu {MTU} address {_mac(i)} netns {self.node}",
                f"link set w{i} up",
            ]
        with netns.inside(self.beyond):
            _ip(lines)
        first = _primary(0)
        lines = ["link set lo up", "link set eth0 up"]
        lines += [f"address add {first}/{SUBNET.prefixlen} dev eth0"]
        lines += [f"route add default via {GATEWAY} dev eth0"]
        # Nobody beyond answers ARP: everything that comes there is dropped.
        lines += [
            f"neighbour add {GATEWAY} lladdr {_mac(i, 0xBB)} dev eth{i} nud permanent"
            for i in range(ENIS)
        ]
        with netns.inside(self.node):
            _ip(lines)


def bare(names: Names) -> Testbed:
    """A node that forwards for one pod and does nothing else."""
    bed = Testbed(names, "bare", 1)
    pod = bed.last
    with netns.inside(bed.node):
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        _ip(
            [
                f"link add pod mtu {MTU} type veth peer name eth0 mtu {MTU} netns {pod.netns}",
                "link set pod up",
                f"route add {pod.address} dev pod",
            ]
        )
        with IPRoute() as ip:
            mac = ip.get_links(ifname="pod")[0].get("address")
    with netns.inside(pod.netns):
        _ip(
            [
                "link set eth0 up",
                f"address add {pod.address}/32 dev eth0",
                "route add 169.254.1.1 dev eth0 scope link",
                "route add default via 169.254.1.1 dev eth0",
                f"neighbour add 169.254.1.1 lladdr {mac} dev eth0 nud permanent",
            ]
        )
    bed.ready()
    return bed


def by_stock(
    names: Names, pods: int, exclude: Sequence[IPv4Network], iptables: Iptables = Iptables.NFT
) -> Testbed:
    """A node as the stock plugin lays it out."""
    bed = Testbed(names, f"stock-{iptables}", pods, exclude)
    node = StockNode(
        enis=tuple(StockEni(i, f"eth{i}", _primary(i), SUBNET) for i in range(ENIS)),
        pods=tuple(
            StockPod("default", f"p{p.number}", p.address, p.netns, p.device) for p in bed.pods
        ),
        vpc_cidrs=(VPC,),
        exclude_cidrs=bed.exclude,
        iptables=iptables,
    )
    stock.apply(bed.node, stock.layout(node))
    bed.ready()
    return bed


def by_us(names: Names, pods: int, exclude: Sequence[IPv4Network]) -> Testbed:
    """A node as our reconciler converges it.

    Raises:
        RuntimeError: it did not.
    """
    bed = Testbed(names, "ours", pods, exclude)
    state = StateDirectory(names.state / bed.node)
    state.prepare()
    state.remember(_facts(), Cloud(tuple(map(_eni, range(ENIS))), Limits(ENIS, PER_ENI), {}))
    changes = [Change(Verb.CREATE, _attachment(p), "the pod is there") for p in bed.pods]
    if errors := state.apply(changes):
        raise RuntimeError(str(errors))
    document = NodeNetwork.model_validate(document_of(bed))
    with netns.inside(bed.node):
        done = LocalNode(state, Environment()).kernel_pass(document)
    if not done.settled or len(done.done) != pods:
        left = {n: [str(a) for a in o.remaining.actions][:3] for n, o in done.outcomes.items()}
        raise RuntimeError(f"{bed.node} did not converge: {left}")
    bed.ready()
    return bed


def document_of(bed: Testbed) -> dict[str, object]:
    """Return the document that our node goes by."""
    return {
        "apiVersion": "node-network/v1alpha1",
        "kind": "NodeNetwork",
        "snat": {"mode": "node", "excludeCIDRs": [str(c) for c in bed.exclude]},
        "warmPool": {"cooldown": "0s"},
    }


def by_earlier(names: Names, place: Path, pods: int, exclude: Sequence[IPv4Network]) -> Testbed:
    """A node as an earlier release converges it, from the directory that it was unpacked into.

    ``names`` is a lab of its own, because that release calls its node as this one does.
    """
    bed = Testbed(names, "ours", pods, exclude)
    program = Path(__file__).with_name("earlier_node.py")
    words = [names.lab, str(pods), *map(str, exclude)]
    subprocess.run(
        [sys.executable, program, *words], env=os.environ | release.environment(place), check=True
    )
    bed.ready()
    return bed


def _spot(number: int, pods: int, where: str) -> Spot:
    """Spread pods over ENIs so that the last pod is on the last ENI."""
    device = (number - pods) % ENIS
    return Spot(number, device, _primary(device) + 1 + number // ENIS, where)


def _attachment(spot: Spot) -> Attachment:
    key = AttachmentKey(f"p{spot.number}", "eth0")
    path = netns.path(spot.netns)
    where = netns_identity(str(path), path.stat().st_ino)
    return Attachment(key, where, (spot.address,), f"eni-{spot.device}", veth_name("nn", key))


def _facts() -> Node:
    return Node("i-1", "m5.24xlarge", "us-east-1a", _mac(0), (VPC,))


def _eni(device: int) -> Eni:
    first = _primary(device)
    return Eni(
        eni_id=f"eni-{device}",
        mac=_mac(device),
        device_index=device,
        status="attached",
        subnet_id="subnet-a",
        subnet_cidr=SUBNET,
        primary=first,
        secondaries=tuple(first + 1 + i for i in range(PER_ENI - 1)),
        security_groups=("sg-1",),
        attachment_id=f"eni-attach-{device}",
        is_primary=device == 0,
    )


def _primary(device: int) -> IPv4Address:
    return SUBNET.network_address + 256 * (device + 1) + 10


def _mac(device: int, kind: int = 0xAA) -> str:
    return f"02:{kind:02x}:00:00:00:{device:02x}"


def _ip(lines: Sequence[str]) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines) + "\n", text=True, check=True)
