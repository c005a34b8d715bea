"""The datapath, cell by cell: whose address the receiver saw, by which ENI, and what came back.

The expectations are written down here by hand and share nothing with the planner. Every cell is
also traced, and the trace must say what the packets did.
"""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from lab import netns, rulesets, services
from lab.pod import Pod
from lab.topology import INTERNET_CIDR, INTERNET_HOST, PEER_CIDR, PEER_HOST
from lab.traffic import PORT, Receiver, Seen, probe
from reconciler.node import LocalNode, Traced
from reconciler.targets.state import StateDirectory
from reconciler.trace import Query, find_pod
from schemas.load import load

pytestmark = pytest.mark.lab

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
class Bench:
    """A node with pods on two ENIs, kube-proxy and portmap beside it, and receivers everywhere."""

    cluster: Any
    pods: dict[str, Pod]
    policy: str = ""

    def __post_init__(self) -> None:
        self.lab = self.cluster.lab
        self.names = self.lab.names
        self.enis = {e["device"]: e for e in self.lab.enis("node1")}
        with netns.inside(self.names.namespace("node1")):
            self.node = LocalNode(StateDirectory(self.cluster.state()))

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
        config = self.cluster.config
        document = load(config.read_text(), str(config))
        with netns.inside(self.names.namespace("node1")):
            return self.node.trace(
                document,
                lambda inputs: Query(
                    find_pod(inputs.attachments, "host" if row == "host" else self.own(row)),
                    ip_address(peer),
                    **{k: v if isinstance(v, bool) else ip_address(v) for k, v in more.items()},
                ),
            )


@pytest.fixture(scope="module")
def bench(make_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with make_cluster(tmp_path_factory.mktemp("matrix")) as cluster, ExitStack() as stack:
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
        made = Bench(cluster, pods)
        for place in [*(h[0] for h in HOSTS.values()), "node1"]:
            stack.enter_context(Receiver(cluster.lab.names.namespace(place)))
        for one in pods.values():
            stack.enter_context(Receiver(one.namespace))
        for ruleset in neighbours(made):
            stack.enter_context(rulesets.loaded(node, ruleset))
        yield made


def neighbours(bench: Bench) -> list[rulesets.Ruleset]:
    """kube-proxy in its nftables mode, and portmap."""
    known = [
        services.Service(
            f"default/{target.replace(' ', '-')}:tcp",
            f"172.20.0.{number}",
            80,
            (services.Endpoint(bench.address(target), PORT, local=target == "near"),),
        )
        for target, number in SERVICES.items()
    ]
    known += [
        services.Service(
            f"default/np-{row}:tcp",
            f"172.20.0.{number}",
            80,
            (services.Endpoint(bench.own(row), PORT, local=row != "far"),),
            node_port=port,
            local=row != "far",
        )
        for number, (row, port) in enumerate(NODE_PORTS.items(), 50)
    ]
    ports = [
        services.HostPort(port, bench.own(row), PORT, container_id=row)
        for row, port in HOST_PORTS.items()
    ]
    # NodePorts are served on the node's addresses, those of secondary ENIs included.
    addresses = ", ".join(e["primary"] for e in bench.enis.values())
    padded = (*known, *services.padding(100))
    return [
        services.kube_proxy("nftables", padded, node=addresses),
        services.portmap(ports),
    ]


@pytest.fixture(scope="module", params=POLICIES)
def policy(bench: Bench, request: pytest.FixtureRequest) -> Bench:
    """The bench under one SNAT policy."""
    cluster = bench.cluster
    generation = cluster.status()["document"]["generation"]
    text = f"{HEAD}snat: {POLICIES[request.param][0]}\n"
    if cluster.config.read_text() != text:
        fresh = cluster.config.with_name("fresh.yaml")
        fresh.write_text(text)
        fresh.replace(cluster.config)

        def in_force() -> bool:
            newer: bool = cluster.status()["document"]["generation"] > generation
            return newer and cluster.diff().returncode == 0

        until(in_force, lambda: f"{request.param} in force\n{cluster.log()}")
    bench.policy = request.param
    return bench


def outgoing(bench: Bench, row: str, target: str) -> tuple[str, int | None]:
    """The source that must be seen, and the ENI that must be used; None if it stays."""
    own, device = bench.own(row), DEVICES.get(row, 0)
    if target in ("near",):
        return own, None
    if target in bench.translated or row == "host":
        return NODE, 0
    return own, device


def check_outgoing(
    bench: Bench, row: str, target: str, seen: Seen, destination: str, traced: Traced
) -> None:
    """Compare packets and trace with what must be."""
    source, device = outgoing(bench, row, target)
    # The gateway has no public address for a pod's: without translation there is no way out.
    works = target != "internet" or source == NODE
    assert seen.source == (source if works else ""), (seen, bench.lab.drops())
    assert bool(bench.flows("drops", source, destination)) is not works
    assert not (works and bench.lab.drops())
    left = bench.flows("passed", source, destination)
    assert (set(left) or {None}) == {device}
    assert str(traced.planned.source) == source
    assert traced.planned.device == device
    assert traced.planned.troubles == ()
    assert traced.differences == ()
    assert bool(traced.planned.hints) is not works


ROWS = ["primary", "secondary", "host"]
TARGETS = ["near", "far", *HOSTS]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("row", ROWS)
def test_connection_from(policy: Bench, row: str, target: str) -> None:
    policy.lab.ask("forget")
    address = policy.address(target)
    seen = probe(policy.where(row), address, timeout_s=0.7)
    check_outgoing(policy, row, target, seen, address, policy.trace(row, address))


@pytest.mark.parametrize("target", SERVICES)
@pytest.mark.parametrize("row", ROWS)
def test_service_address_from(policy: Bench, row: str, target: str) -> None:
    """What counts is where the service leads, not its own address, which is beyond the VPC."""
    policy.lab.ask("forget")
    service, address = f"172.20.0.{SERVICES[target]}", policy.address(target)
    seen = probe(policy.where(row), service, 80, timeout_s=0.7)
    traced = policy.trace(row, service, endpoint=address)
    check_outgoing(policy, row, target, seen, address, traced)


@pytest.mark.parametrize("row", ROWS)
def test_instance_metadata_from(policy: Bench, row: str) -> None:
    policy.lab.ask("forget")
    with netns.inside(policy.where(row)):
        connection = http.client.HTTPConnection(IMDS, timeout=2)
        connection.connect()
    connection.request("GET", "/latest/meta-data/instance-id")
    with connection.getresponse() as response:
        assert response.status == 401  # it wants a token: it answered
    connection.close()
    source, device = outgoing(policy, row, "imds")
    assert set(policy.flows("passed", source, IMDS)) == {device}
    assert policy.lab.drops() == []
    traced = policy.trace(row, IMDS)
    assert (str(traced.planned.source), traced.planned.device) == (source, device)
    assert traced.differences == traced.planned.troubles == ()


def check_incoming(
    bench: Bench, row: str, client: str, seen: Seen, answers: tuple[str, int], traced: Traced
) -> None:
    """The pod saw the client, and the answer left by the ENI that the request came by."""
    source = HOSTS[client][1]
    assert seen.source == source, (seen, bench.lab.drops())
    assert bench.lab.drops() == []
    address, device = answers
    assert set(bench.flows("passed", address, source)) == {device}
    assert traced.planned.device == device
    assert traced.differences == traced.planned.troubles == ()


@pytest.mark.parametrize("client", ["VPC host", "second CIDR", "peer"])
@pytest.mark.parametrize("row", DEVICES)
def test_connection_straight_to(policy: Bench, row: str, client: str) -> None:
    policy.lab.ask("forget")
    place, source = HOSTS[client]
    seen = probe(policy.names.namespace(place), policy.own(row))
    traced = policy.trace(row, source, inbound=True)
    check_incoming(policy, row, client, seen, (policy.own(row), DEVICES[row]), traced)


ARRIVALS = [
    (client, arrival)
    for client in HOSTS
    for arrival in DEVICES
    if (client, arrival) != ("internet", "secondary")  # no public address there
]


@pytest.mark.parametrize(("client", "arrival"), ARRIVALS)
@pytest.mark.parametrize("row", DEVICES)
@pytest.mark.parametrize("ports", [NODE_PORTS, HOST_PORTS], ids=["NodePort", "hostPort"])
def test_connection_to_a_port_of_the_node_for(
    policy: Bench, ports: dict[str, int], row: str, client: str, arrival: str
) -> None:
    """Whatever ENI the pod is on, it is answered by the ENI that the node was reached by."""
    policy.lab.ask("forget")
    place, source = HOSTS[client]
    entry = policy.entry(arrival)
    seen = probe(policy.names.namespace(place), entry, ports[row])
    traced = policy.trace(row, source, inbound=True, at=entry)
    check_incoming(policy, row, client, seen, (entry, DEVICES[arrival]), traced)


@pytest.mark.parametrize(("client", "arrival"), ARRIVALS)
def test_connection_to_a_node_port_whose_pod_is_elsewhere(
    policy: Bench, client: str, arrival: str
) -> None:
    """It is sent on by the ENI it came by, with that ENI's address, and answered likewise."""
    policy.lab.ask("forget")
    place, source = HOSTS[client]
    entry = policy.entry(arrival)
    seen = probe(policy.names.namespace(place), entry, NODE_PORTS["far"])
    assert seen.source == entry, (seen, policy.lab.drops())
    assert policy.lab.drops() == []
    for destination in (policy.own("far"), source):
        assert set(policy.flows("passed", entry, destination)) == {DEVICES[arrival]}


@pytest.mark.parametrize("client", ["VPC host", "peer", "internet"])
def test_connection_to_the_host_itself(policy: Bench, client: str) -> None:
    policy.lab.ask("forget")
    place, source = HOSTS[client]
    seen = probe(policy.names.namespace(place), NODE)
    traced = policy.trace("host", source, inbound=True)
    check_incoming(policy, "host", client, seen, (NODE, 0), traced)
