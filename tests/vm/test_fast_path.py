"""The fast path with packets, on a kernel that has flowtables.

A node of two ENIs is converged by the product itself, with what is beyond its ENIs in a namespace
of its own. A packet is seen to pass the rulesets by where a chain ahead of all others counts none.
"""

from __future__ import annotations

import json
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from builders import SUBNET, attachment, document, eni, key, mac, node
from conftest import namespace

from lab import netns
from reconciler.core.attachment import Attachment, IntentState, netns_identity
from reconciler.core.datapath import FLOWS
from reconciler.domains.fast_path import FlowLink, FlowTable
from reconciler.engine.plan import Change, Verb
from reconciler.ipam.cloud import Cloud, Limits
from reconciler.node.environment import Environment
from reconciler.node.pass_result import PassResult
from reconciler.node.passes import LocalNode
from reconciler.targets.nftables.target import Nft
from reconciler.targets.state.directory import StateDirectory

pytestmark = pytest.mark.kernel

VPC_HOST, EXCLUDED, INTERNET = "10.0.255.10", "198.51.100.10", "203.0.113.10"
HOSTS = (VPC_HOST, EXCLUDED, INTERNET)
GATEWAY = SUBNET[1]
ENIS = tuple(eni(i) for i in range(2))
AUTO = {"fastPath": "auto"}
PATIENCE_S = 30


@dataclass
class Talk:
    """An open connection.

    Attributes:
        seen: the client's address, as the server sees it.
        port: the server's.
    """

    client: socket.socket
    server: socket.socket
    seen: str
    port: int

    def go_on(self, times: int = 5) -> None:
        """Send a byte each way, again and again."""
        for _ in range(times):
            for one, other in ((self.client, self.server), (self.server, self.client)):
                one.sendall(b"?")
                assert other.recv(1) == b"?"


class Place:
    """The node, two pods that run, one on each ENI, and what is beyond."""

    def __init__(self, undo: ExitStack, root: Path) -> None:
        self.host, self.beyond = (undo.enter_context(namespace(n)) for n in ("node", "beyond"))
        self.names = [undo.enter_context(namespace(f"pod{i}")) for i in range(3)]
        self._wire()
        self.state = StateDirectory(root)
        self.state.prepare()
        self.state.remember(node(), Cloud(ENIS, Limits(2, 10), {}))
        self.pods = [self._bound(i) for i in range(2)]
        assert not self.state.apply([Change(Verb.CREATE, p, "it is there") for p in self.pods])
        for pod in self.pods:
            self._lead_to(pod, int(pod.eni_id[-1]))
        with netns.inside(self.host):
            self.nft = Nft()
            self.flows = self.nft.flows
            self.node = LocalNode(self.state, Environment(nft=self.nft))
        self.document = document(
            datapath=AUTO, snat={"mode": "node", "excludeCIDRs": ["198.51.100.0/24"]}
        )

    def _bound(self, number: int) -> Attachment:
        path = netns.path(self.names[number])
        return attachment(number, number, netns_identity(str(path), path.stat().st_ino))

    def _wire(self) -> None:
        run(
            self.beyond,
            *(f"ip address add {host}/32 dev lo" for host in HOSTS),
            *(
                f"ip link add w{i} address 02:bb:00:00:00:0{i} type veth peer name eth{i} "
                f"address {mac(i)} netns {self.host}"
                for i in range(2)
            ),
            *(f"ip link set w{i} up" for i in range(2)),
            *(f"sysctl -qw net.ipv4.conf.w{i}.rp_filter=0" for i in range(2)),
            f"ip route add {ENIS[0].primary} dev w0 src {VPC_HOST}",
            f"ip neighbour add {ENIS[0].primary} lladdr {mac(0)} dev w0",
        )
        run(
            self.host,
            "ip link set eth0 up",
            f"ip address add {ENIS[0].primary}/24 dev eth0",
            f"ip route add default via {GATEWAY} dev eth0",
            *(
                f"ip neighbour add {GATEWAY} lladdr 02:bb:00:00:00:0{i} dev eth{i} nud permanent"
                for i in range(2)
            ),
        )

    def _lead_to(self, pod: Attachment, device: int) -> None:
        (own,) = pod.addresses
        run(
            self.beyond,
            f"ip route add {own} dev w{device} src {VPC_HOST}",
            f"ip neighbour add {own} lladdr {mac(device)} dev w{device}",
        )

    def full_pass(self) -> PassResult:
        with netns.inside(self.host):
            return self.node.after.run(self.node.kernel_pass(self.document))

    def ask(self, number: int, state: IntentState) -> PassResult:
        """Start or end a pod as its runtime does."""
        path = netns.path(self.names[number])
        container = key(number).container_id
        body = {
            "version": 1,
            "containerID": container,
            "ifname": "eth0",
            "state": state,
            "netns": str(path),
            "netnsInode": path.stat().st_ino,
        }
        (self.state.intents / f"{container}:eth0.json").write_text(json.dumps(body))
        with netns.inside(self.host):
            result = self.node.pods_pass((key(number),))
            self.node.after.fast_path.follow(result)
        return result

    def own(self, number: int) -> str:
        return str(self.pods[number].addresses[0])

    @contextmanager
    def talk(self, client: str, server: str, address: str) -> Iterator[Talk]:
        with netns.inside(server):
            listener = socket.create_server((address, 0))
        with closing(listener):
            port = listener.getsockname()[1]
            with netns.inside(client):
                one = socket.create_connection((address, port), timeout=PATIENCE_S)
            with closing(one):
                listener.settimeout(PATIENCE_S)
                other, (seen, _) = listener.accept()
                with closing(other):
                    other.settimeout(PATIENCE_S)
                    yield Talk(one, other, seen, port)

    def is_bypassed(self, talk: Talk) -> bool:
        """Whether no packet of what follows comes to any chain, in either direction."""
        load(
            self.host,
            "table inet seen { chain each { type filter hook prerouting priority -500; "
            f"tcp dport {talk.port} counter; "
            f"tcp sport {talk.port} counter; }}; }}",
        )
        talk.go_on(20)
        told = run(self.host, "nft -j list chain inet seen each")
        run(self.host, "nft delete table inet seen")
        rules = [o["rule"]["expr"] for o in json.loads(told)["nftables"] if "rule" in o]
        packets = [e["counter"]["packets"] for expr in rules for e in expr if "counter" in e]
        assert len(packets) == 2
        assert sum(packets) == 0 or min(packets) >= 20, packets
        return sum(packets) == 0

    def connections(self) -> list[str]:
        with netns.inside(self.host):
            return Path("/proc/thread-self/net/nf_conntrack").read_text().splitlines()

    def is_offloaded(self, port: int) -> bool:
        lines = [line for line in self.connections() if f"dport={port} " in line]
        assert lines
        return any("[OFFLOAD]" in line for line in lines)

    def refused(self) -> int:
        with netns.inside(self.host):
            return self.nft.count()["spoofed"]

    def there(self) -> frozenset[Any]:
        with netns.inside(self.host):
            return self.flows.observe()


def run(where: str, *lines: str) -> str:
    """Run commands in a namespace; return what the last one says."""
    out = ""
    with netns.inside(where):
        for line in lines:
            out = subprocess.run(line.split(), check=True, text=True, capture_output=True).stdout
    return out


def forge(where: str, source: str, port: int, to: str, its_port: int) -> None:
    """Send a reset with any address, as a process with NET_RAW can."""
    ip = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 40, 0, 0, 64, socket.IPPROTO_TCP, 0,
        socket.inet_aton(source), socket.inet_aton(to),
    )  # fmt: skip
    tcp = struct.pack("!HHIIBBHHH", port, its_port, 1, 0, 0x50, 0x04, 0, 0, 0)
    with netns.inside(where), socket.socket(socket.AF_INET, socket.SOCK_RAW, 255) as s:
        s.sendto(ip + tcp, (to, 0))


def load(where: str, ruleset: str) -> None:
    """Add to a namespace's ruleset."""
    with netns.inside(where):
        subprocess.run(["nft", "-f", "-"], input=ruleset, check=True, text=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with ExitStack() as undo:
        yield Place(undo, tmp_path_factory.mktemp("node") / "run")


def links(*names: str) -> frozenset[Any]:
    return frozenset({FlowTable(), *map(FlowLink, names)})


def test_one_pass_puts_it_there_and_the_next_one_changes_nothing(place: Place) -> None:
    first = place.full_pass()
    assert not first.findings
    assert first.settled, {n: o.undone for n, o in first.outcomes.items() if not o.settled}
    veths = [p.veth for p in place.pods]
    assert place.there() == links("eth0", "eth1", *veths)
    second = place.full_pass()
    assert second.settled
    assert not second.outcomes["fast-path"].plan.actions


def ways(place: Place) -> dict[str, tuple[str, str, str, str]]:
    """Client, server, address, and what the server sees, by what it is."""
    pods, beyond = place.names, place.beyond
    return {
        "to the VPC": (pods[1], beyond, VPC_HOST, place.own(1)),
        "to an excluded network": (pods[1], beyond, EXCLUDED, place.own(1)),
        "to the internet": (pods[1], beyond, INTERNET, str(ENIS[0].primary)),
        "from the VPC": (beyond, pods[1], place.own(1), VPC_HOST),
        "from the primary's pod": (pods[0], beyond, VPC_HOST, place.own(0)),
        "to a neighbour": (pods[0], pods[1], place.own(1), place.own(0)),
    }


@pytest.mark.parametrize(
    "way",
    [
        "to the VPC",
        "to an excluded network",
        "to the internet",
        "from the VPC",
        "from the primary's pod",
        "to a neighbour",
    ],
)
def test_an_open_connection_passes_the_rulesets_by(place: Place, way: str) -> None:
    client, server, address, seen = ways(place)[way]
    with place.talk(client, server, address) as talk:
        assert talk.seen == seen
        talk.go_on()
        assert place.is_offloaded(talk.port)
        assert place.is_bypassed(talk)


def test_a_forged_packet_is_in_no_flow(place: Place) -> None:
    """One neighbour sends with the address and the ports of another's open connection."""
    with place.talk(place.names[1], place.beyond, VPC_HOST) as talk:
        talk.go_on()
        assert place.is_offloaded(talk.port)
        port = talk.client.getsockname()[1]
        for count, (sender, source) in enumerate(((0, 1), (1, 0))):
            before = place.refused()
            forge(place.names[sender], place.own(source), port, VPC_HOST, talk.port)
            assert place.refused() == before + 1, count
        assert place.is_bypassed(talk)


def test_datagrams_take_the_long_way(place: Place) -> None:
    with ExitStack() as undo:
        ends = []
        for where, own in ((place.names[1], place.own(1)), (place.beyond, VPC_HOST)):
            with netns.inside(where):
                end = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            end.bind((own, 0))
            end.settimeout(PATIENCE_S)
            ends.append(end)
        pod, far = ends
        for _ in range(3):
            pod.sendto(b"?", far.getsockname())
            assert far.recvfrom(1)[1] == pod.getsockname()
            far.sendto(b"?", pod.getsockname())
            pod.recv(1)
        assert not place.is_offloaded(far.getsockname()[1])


def test_it_goes_while_another_looks_at_each_packet_and_comes_back(place: Place) -> None:
    with place.talk(place.names[1], place.beyond, VPC_HOST) as talk:
        talk.go_on()
        assert place.is_bypassed(talk)
        rules = (
            "table inet firewall { chain f { type filter hook forward priority 0; counter; }; }"
        )
        load(place.host, rules)
        result = place.full_pass()
        assert {f.reason for f in result.findings or ()} == {"FastPathHeld"}
        assert place.there() == frozenset()
        assert not place.is_bypassed(talk)
        run(place.host, "nft delete table inet firewall")
        assert not place.full_pass().findings
        talk.go_on()
        assert place.is_bypassed(talk)


def test_it_goes_while_tc_does_something_to_a_pods_packets(place: Place) -> None:
    veth = place.pods[1].veth
    run(place.host, f"tc qdisc add dev {veth} clsact")
    (found,) = place.full_pass().findings or ()
    assert (found.reason, found.subject) == ("FastPathHeld", f"link {veth}")
    assert place.there() == frozenset()
    run(place.host, f"tc qdisc delete dev {veth} clsact")
    assert not place.full_pass().findings
    assert FlowTable() in place.there()


def test_a_link_that_is_gone_keeps_no_other_out(place: Place) -> None:
    veth = FlowLink(place.pods[1].veth)
    with netns.inside(place.host):
        assert not place.flows.apply([Change(Verb.DELETE, veth, "test")])
        assert veth not in place.flows.observe()
        new = [Change(Verb.CREATE, link, "test") for link in (FlowLink("nnnone"), veth)]
        assert not place.flows.apply(new)
        assert veth in place.flows.observe()


def test_what_is_not_as_written_is_made_anew(place: Place) -> None:
    run(place.host, f"nft add rule inet {FLOWS} through counter")
    result = place.full_pass()
    assert FlowTable() in place.there()
    assert result.outcomes["fast-path"].settled


def test_a_pod_that_starts_is_in_it_and_cuts_nothing(place: Place) -> None:
    with place.talk(place.names[1], place.beyond, INTERNET) as talk:
        talk.go_on()
        result = place.ask(2, IntentState.WANTED)
        (pod,) = result.done.values()
        assert FlowLink(pod.veth) in place.there()
        talk.go_on()
        assert place.is_bypassed(talk)
    assert place.ask(2, IntentState.RELEASED).served
    assert FlowLink(pod.veth) not in place.there()


def test_with_the_document_it_goes_and_no_connection_ends(place: Place) -> None:
    on = place.document
    with place.talk(place.names[1], place.beyond, INTERNET) as talk:
        talk.go_on()
        place.document = on.model_copy(update={"datapath": document().datapath})
        assert place.full_pass().settled
        assert place.there() == frozenset()
        assert not place.is_bypassed(talk)
        place.document = on
        assert place.full_pass().settled
        talk.go_on()
        assert place.is_bypassed(talk)


def test_with_a_pod_end_its_flows(place: Place) -> None:
    own, veth = place.own(1), place.pods[1].veth
    with place.talk(place.names[1], place.beyond, INTERNET) as talk:
        talk.go_on()
        assert place.is_offloaded(talk.port)
        place.ask(1, IntentState.RELEASED)
        assert FlowLink(veth) not in place.there()
        mine = [line for line in place.connections() if f"={own} " in line]
        assert not [line for line in mine if "[OFFLOAD]" in line]
        place.full_pass()
        assert not [line for line in place.connections() if f"={own} " in line]
        assert place.there() == links("eth0", "eth1", place.pods[0].veth)
