"""A node where every kind of traffic crosses, for tests of whose address is seen and by which ENI.

Pods on the primary and on a secondary ENI, kube-proxy and portmap beside us, receivers everywhere,
and reverse-path filtering as strict as a host can have it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rulesets
import services
from waiting import until

from lab import netns
from lab.pod import Pod
from lab.topology import INTERNET_CIDR, INTERNET_HOST, PEER_CIDR, PEER_HOST
from lab.traffic import PORT, Receiver, Seen
from reconciler.node.views import Traced

NODE = "10.0.1.10"
HOSTS = {
    "VPC host": ("vpchost", "10.0.9.10"),
    "second CIDR": ("second", "100.64.2.10"),
    "peer": ("peer", str(PEER_HOST)),
    "internet": ("internet", str(INTERNET_HOST)),
}
IMDS = "169.254.169.254"

HEAD = """\
apiVersion: node-network/v1alpha1
kind: NodeNetwork
warmPool: {addresses: {warm: 2, minimum: 24, surplus: 0}, cooldown: 2s}
"""
POLICIES: dict[str, tuple[str, set[str]]] = {
    "node": ("{mode: node}", {"peer", "internet", "imds"}),
    "node, peer excluded": (f"{{excludeCIDRs: [{PEER_CIDR}]}}", {"internet", "imds"}),
    "external": ("{mode: external}", set()),
    "only the peer": (f"{{onlyCIDRs: [{PEER_CIDR}]}}", {"peer"}),
    "all but the peer": (
        f"{{onlyCIDRs: [0.0.0.0/0], excludeCIDRs: [{PEER_CIDR}], ports: sequential}}",
        {"internet", "imds"},
    ),
    "only the internet": (f"{{onlyCIDRs: [{INTERNET_CIDR}], ports: random}}", {"internet"}),
}
"""By name: snat in the document, and the destinations that see the node."""

SERVICES = {"near": 11, "far": 12, "VPC host": 13, "peer": 14, "internet": 15}
NODE_PORTS = {"primary": 30080, "secondary": 30081, "far": 30082}
HOST_PORTS = {"primary": 8080, "secondary": 8081}
DEVICES = {"primary": 0, "secondary": 1}


@dataclass
class TrafficMatrix:
    """A node with pods on two ENIs, kube-proxy and portmap beside it, and receivers everywhere."""

    cluster: Any
    pods: dict[str, Pod]
    policy: str = "node"

    def __post_init__(self) -> None:
        self.lab = self.cluster.lab
        self.names = self.lab.names
        self.enis = {e["device"]: e for e in self.lab.enis("node1")}

    @property
    def translated(self) -> set[str]:
        return POLICIES[self.policy][1]

    def where(self, row: str) -> str:
        """Namespace of a row of the matrix."""
        return self.names.namespace("node1") if row == "host" else self.pods[row].namespace

    def own(self, row: str) -> str:
        return NODE if row == "host" else self.pods[row].address

    def address(self, target: str) -> str:
        if target in HOSTS:
            return HOSTS[target][1]
        return self.pods[target].address

    def entry(self, arrival: str) -> str:
        """The node's own address on an ENI."""
        address: str = self.enis[DEVICES[arrival]]["primary"]
        return address

    def flows(self, kind: str, source: str, destination: str) -> list[int]:
        """Devices of this node by which such packets left."""
        devices = {e["id"]: device for device, e in self.enis.items()}
        return [
            devices[f["eni"]]
            for f in getattr(self.lab, kind)()
            if (f["source"], f["destination"]) == (source, destination) and f["eni"] in devices
        ]

    def trace(self, row: str, peer: str, **more: Any) -> Traced:
        traced: Traced = self.cluster.trace(
            "host" if row == "host" else self.own(row), peer, **more
        )
        return traced

    def evidence(self, seen: Seen) -> str:
        """What a probe saw, what the fabric dropped, and what the kernel and the daemon say."""
        node = self.names.namespace("node1")
        table = subprocess.run(
            ["ip", "netns", "exec", node, "nft", "list", "table", "inet", "node_network"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        return "\n".join(
            [str(seen), *map(str, self.lab.drops()), table, self.cluster.log()[-4000:]]
        )

    def switch(self, policy: str) -> None:
        """Put another policy in force, by an edit under the running reconciler."""
        self.policy = policy
        config = self.cluster.config
        text = f"{HEAD}snat: {POLICIES[policy][0]}\n"
        if config.read_text() == text:
            return
        generation = self.cluster.status()["document"]["generation"]
        fresh = config.with_name("fresh.yaml")
        fresh.write_text(text)
        fresh.replace(config)

        def in_force() -> bool:
            status = self.cluster.status()
            newer: bool = status["document"]["generation"] > generation and status["settled"]
            peers = (HOSTS["peer"][1], HOSTS["internet"][1])
            return newer and not any(self.trace("primary", p).differences for p in peers)

        until(in_force, lambda: f"{policy} in force\n{self.cluster.log()}")


@contextmanager
def traffic_matrix(cluster: Any) -> Iterator[TrafficMatrix]:
    """Start reconcilers, pods, receivers and neighbours on a lab that has none yet."""
    with ExitStack() as stack:
        node = cluster.lab.names.namespace("node1")
        # As strict as a host can be: what the datapath needs loosened, it must loosen itself.
        with netns.inside(node):
            for name in ("all", "default", "eth0"):
                Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text("1")
        cluster.start("node1")
        cluster.start("node2")
        near = stack.enter_context(cluster.pods(11))
        (far,) = stack.enter_context(cluster.pods(1, "node2"))
        by_device: dict[int, list[Pod]] = {}
        for one in near:
            by_device.setdefault(one.device, []).append(one)
        pods = {"primary": by_device[0][0], "secondary": by_device[1][0], "far": far}
        pods["near"] = by_device[1][1]
        made = TrafficMatrix(cluster, pods)
        for place in [*(h[0] for h in HOSTS.values()), "node1"]:
            stack.enter_context(Receiver(cluster.lab.names.namespace(place)))
        for one in pods.values():
            stack.enter_context(Receiver(one.namespace))
        for ruleset in neighbours(made):
            stack.enter_context(rulesets.loaded(node, ruleset))
        yield made


def neighbours(made: TrafficMatrix) -> list[rulesets.Ruleset]:
    """kube-proxy in its nftables mode, and portmap."""
    known = [
        services.Service(
            f"default/{target.replace(' ', '-')}:tcp",
            f"172.20.0.{number}",
            80,
            (services.Endpoint(made.address(target), PORT, local=target == "near"),),
        )
        for target, number in SERVICES.items()
    ]
    known += [
        services.Service(
            f"default/np-{row}:tcp",
            f"172.20.0.{number}",
            80,
            (services.Endpoint(made.own(row), PORT, local=row != "far"),),
            node_port=port,
            local=row != "far",
        )
        for number, (row, port) in enumerate(NODE_PORTS.items(), 50)
    ]
    ports = [
        services.HostPort(port, made.own(row), PORT, container_id=row)
        for row, port in HOST_PORTS.items()
    ]
    # NodePorts are served on the node's addresses, those of secondary ENIs included.
    addresses = ", ".join(e["primary"] for e in made.enis.values())
    padded = (*known, *services.padding(100))
    return [
        services.kube_proxy("nftables", padded, node=addresses),
        services.portmap(ports),
    ]
