"""``node-network trace`` as an operator runs it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import rulesets
import services

from lab import netns
from lab.pod import Pod
from lab.topology import PEER_CIDR, PEER_HOST
from lab.traffic import PORT, Receiver, probe
from reconciler.targets.nftables.foreign_chains import MAX_RULES

pytestmark = pytest.mark.lab

NODE, VPC_HOST = "10.0.1.10", "10.0.9.10"


@pytest.fixture
def one(idle: Any) -> Iterator[Pod]:
    """A pod on a node whose reconciler has stopped: what is broken stays broken."""
    idle.start()
    made = idle.add()
    idle.stop()
    yield made


@pytest.fixture(scope="module")
def still(
    tmp_path_factory: pytest.TempPathFactory, make_cluster: Any
) -> Iterator[tuple[Any, Pod]]:
    """The same, for tests that break nothing of ours and clear up after themselves."""
    with make_cluster(tmp_path_factory.mktemp("still"), "node1") as made:
        pod = made.add()
        made.stop("node1")
        yield made, pod


def trace(cluster: Any, *words: str) -> Any:
    return cluster.command("node1", "trace", "-f", str(cluster.config), *words)


def test_it_answers_why_a_peer_sees_the_node_and_what_an_exclusion_would_do(
    idle: Any, one: Pod
) -> None:
    done = trace(idle, "default/" + one.name, str(PEER_HOST))
    assert done.returncode == 0, done.stderr
    assert f"{PEER_HOST} sees the node: not in no_snat_ipv4, beyond the VPC" in done.stdout
    assert f"source {one.address} becomes {NODE}" in done.stdout
    assert done.stdout.endswith("the kernel agrees with every step\n")
    with Receiver(idle.lab.names.namespace("peer")):
        assert probe(one.namespace, str(PEER_HOST)).source == NODE
    text = idle.config.read_text()
    idle.config.write_text(text.replace("[]", f"[{PEER_CIDR}]"))
    edited = trace(idle, one.name, str(PEER_HOST))
    # The node does not have it yet, and is said to differ.
    assert edited.returncode == 1
    assert f"by snat.excludeCIDRs {PEER_CIDR}" in edited.stdout
    assert "! request: the node differs from the document" in edited.stdout


def test_a_foreign_rule_that_takes_the_pods_packets_is_found_by_asking_the_kernel(
    idle: Any, one: Pod
) -> None:
    idle.ip("route", "add", "blackhole", "default", "table", "300")
    idle.ip("rule", "add", "priority", "300", "to", VPC_HOST, "lookup", "300")
    done = trace(idle, one.address, VPC_HOST)
    assert done.returncode == 1
    assert f"! ip route get {VPC_HOST} from {one.address} iif nn" in done.stdout
    assert "the kernel says 'Invalid argument'" in done.stdout


def test_a_lost_object_is_named_and_the_kernels_answer_with_it(idle: Any, one: Pod) -> None:
    idle.ip("rule", "delete", "priority", "512")
    done = trace(idle, one.address, VPC_HOST, "-o", "json")
    assert done.returncode == 1
    (traced,) = json.loads(done.stdout)["traces"]
    assert any("rule 512: lookup 512" in text for text in traced["differences"])
    assert traced["source"] == one.address


@pytest.mark.parametrize("mode", ["nftables", "iptables"])
def test_every_endpoint_of_a_service_is_traced(idle: Any, one: Pod, mode: services.Mode) -> None:
    ends = (services.Endpoint(VPC_HOST, PORT), services.Endpoint(str(PEER_HOST), PORT))
    known = (
        services.Service("default/web:tcp", "172.20.0.10", 80, ends),
        *services.padding(30),
    )
    node = idle.lab.names.namespace("node1")
    with rulesets.loaded(node, services.kube_proxy(mode, known, node=NODE)):
        done = trace(idle, one.address, "172.20.0.10", "--port", "80", "-o", "json")
    traces = json.loads(done.stdout)["traces"]
    assert [t["source"] for t in traces] == [one.address, NODE]
    assert done.returncode == 0


NFT = """table inet guard {{
  chain shut {{ {verdict}; }}
  chain base {{ type {hook} priority 5; policy accept; {match} jump shut; }}
}}
"""


@contextmanager
def guarded(cluster: Any, hook: str, verdict: str, match: str = "") -> Iterator[None]:
    text = NFT.format(hook=hook, verdict=verdict, match=match)
    ruleset = rulesets.Ruleset("guard", nft=text, tables=("inet guard",))
    with rulesets.loaded(cluster.lab.names.namespace("node1"), ruleset):
        yield


AGREES = "the kernel agrees with every step"


FORWARD, INPUT = "filter hook forward", "filter hook input"
DROPS = "{} drops or rejects it at hook"


@pytest.mark.parametrize(
    ("hook", "verdict", "match", "peer", "said"),
    [
        (FORWARD, "drop", "", VPC_HOST, f"request: {DROPS} forward"),
        (FORWARD, "reject", 'oifname "nn*"', f"from {VPC_HOST}", f"request: {DROPS} forward"),
        (FORWARD, "drop", "ct state established", VPC_HOST, f"reply: {DROPS} forward"),
        (INPUT, "drop", 'iifname "nn*"', NODE, f"request: {DROPS} input"),
        ("nat hook postrouting", "masquerade", "", VPC_HOST, "request: {} translates its source"),
        ("nat hook prerouting", "dnat ip to 192.0.2.1", "", VPC_HOST, "{} translates its dest"),
        ("filter hook prerouting", "drop", "", VPC_HOST, f"request: {DROPS} prerouting"),
        (FORWARD, "drop", "tcp dport 25", VPC_HOST, "{} may drop or reject it at hook forward"),
        (FORWARD, "drop", "tcp dport 25", VPC_HOST, "it asks for the protocol, the port"),
        ('filter hook ingress device "eth0"', "drop", "", VPC_HOST, f"reply: {DROPS} ingress"),
        (FORWARD, "drop", "meta cpu 0", VPC_HOST, "request: {} may drop or reject it"),
    ],
)
def test_what_other_owners_chains_do_to_it_is_named(
    still: Any, hook: str, verdict: str, match: str, peer: str, said: str
) -> None:
    cluster, one = still
    address, inbound = peer.removeprefix("from "), peer.startswith("from ")
    with guarded(cluster, hook, verdict, match):
        traced = cluster.trace(one.address, address, inbound=inbound)
    wanted = said.format("rule 1 of chain inet guard shut")
    assert any(wanted in text for text in traced.obstacles), traced.obstacles
    assert cluster.trace(one.address, address, inbound=inbound).obstacles == ()


@pytest.mark.parametrize(
    ("hook", "verdict"), [(FORWARD, "drop"), ("nat hook postrouting", "masquerade")]
)
def test_it_never_agrees_with_what_others_do_against_it(
    still: Any, hook: str, verdict: str
) -> None:
    cluster, one = still
    with guarded(cluster, hook, verdict):
        done = trace(cluster, one.address, VPC_HOST)
    assert done.returncode == 1
    assert AGREES not in done.stdout
    assert "! request: rule 1 of chain inet guard shut" in done.stdout


def test_a_rule_for_one_port_is_named_because_the_kernel_is_not_asked_about_ports(
    still: Any,
) -> None:
    cluster, one = still
    rule = ["priority", "100", "ipproto", "tcp", "dport", "9", "prohibit"]
    cluster.ip("rule", "add", *rule)
    try:
        traced = cluster.trace(one.address, VPC_HOST, protocol=6, port=9)
    finally:
        cluster.ip("rule", "delete", *rule)
    assert traced.obstacles == (
        "ip rule 100 selects by FRA_DPORT_RANGE, FRA_IP_PROTO, which the kernel was not asked "
        "about: it may take this connection elsewhere",
    )


@pytest.mark.parametrize(
    ("priority", "statement", "peer", "said"),
    [
        (-300, "notrack", str(PEER_HOST), "it out of connection tracking (notrack)"),
        (-300, "notrack", VPC_HOST, ""),  # nothing is translated there
        (0, "notrack", str(PEER_HOST), ""),  # conntrack has seen it: the kernel does nothing then
        (
            0,
            "meta mark set 0x55",
            str(PEER_HOST),
            "sets bits of the packet's mark to 0x55 that are 0x80",
        ),
        (0, "meta mark set mark or 0x4000", str(PEER_HOST), ""),
        (0, "ip daddr set 192.0.2.9", str(PEER_HOST), "writes another address or port into it"),
    ],
)
def test_what_others_do_to_its_mark_and_its_tracking_is_named(
    still: Any, priority: int, statement: str, peer: str, said: str
) -> None:
    cluster, one = still
    text = f"""table inet guard {{
      chain base {{ type filter hook prerouting priority {priority}; {statement}; }}
    }}
    """
    ruleset = rulesets.Ruleset("guard", nft=text, tables=("inet guard",))
    with rulesets.loaded(cluster.lab.names.namespace("node1"), ruleset):
        found = cluster.trace(one.address, peer).obstacles
    assert any(said in text for text in found) if said else found == (), found


def test_a_pod_without_its_own_route_is_not_agreed_with(still: Any) -> None:
    cluster, one = still
    inside = ["nsenter", f"--net={netns.path(one.namespace)}", "ip", "route"]
    subprocess.run([*inside, "delete", "default"], check=True)
    try:
        (said,) = cluster.trace(one.address, VPC_HOST).differences
    finally:
        route = ["default", "via", "169.254.1.1", "dev", "eth0", "src", one.address, "onlink"]
        subprocess.run([*inside, "add", *route], check=True)
    assert "in the pod, ip route get 10.0.9.10: the kernel says 'Network is unreachable'" in said
    assert cluster.trace(one.address, VPC_HOST).differences == ()


def test_chains_of_iptables_are_followed_in_both_backends(still: Any) -> None:
    idle, one = still
    node = idle.lab.names.namespace("node1")
    for backend in ("nft", "legacy"):
        with rulesets.loaded(node, rulesets.docker(backend=backend)):  # type: ignore[arg-type]
            done = trace(idle, one.address, VPC_HOST)
            assert done.returncode == 1
            assert "the policy of chain ip filter FORWARD" in done.stdout
        assert AGREES in trace(idle, one.address, VPC_HOST).stdout


def test_the_port_that_is_named_decides_about_a_rule_that_asks_for_it(
    still: Any,
) -> None:
    idle, one = still
    with guarded(idle, "filter hook forward", "drop", "tcp dport 25"):
        mail = trace(idle, one.address, VPC_HOST, "--port", "25")
        web = trace(idle, one.address, VPC_HOST, "--port", "80")
    assert "drops or rejects it at hook forward" in mail.stdout
    assert (mail.returncode, web.returncode) == (1, 0)


def test_a_ruleset_that_is_too_large_is_said_not_to_have_been_looked_at(
    still: Any,
) -> None:
    idle, one = still
    rules = "\n".join(f"ip saddr 192.0.2.{n % 256} accept" for n in range(MAX_RULES + 1))
    with guarded(idle, "filter hook forward", rules):
        done = trace(idle, one.address, VPC_HOST)
    assert done.returncode == 1
    assert "chain inet guard shut was not looked at" in done.stdout
    assert AGREES not in done.stdout


def test_what_is_no_pod_or_no_address_is_said_with_what_there_is(idle: Any, one: Pod) -> None:
    done = trace(idle, "nobody", VPC_HOST)
    assert done.returncode == 2
    assert f"default/{one.name}" in done.stderr
    for address in ("example.org", "224.0.0.1", "0.0.0.0", "127.0.0.1", "255.255.255.255", "::"):
        done = trace(idle, one.name, address)
        assert done.returncode == 2, address
        assert "Traceback" not in done.stderr
    mapped = trace(idle, one.name, f"::ffff:{VPC_HOST}")
    assert mapped.stdout == trace(idle, one.name, VPC_HOST).stdout
    assert "nothing of this leaves the pod" in trace(idle, one.name, one.address).stdout
    assert trace(idle, one.name, VPC_HOST, "--at", NODE).returncode == 2
