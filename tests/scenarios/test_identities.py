"""Egress identities with packets: whose address a namespace's connections have, and by which ENI.

What must be seen is written down here by hand.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from traffic_matrix import HOSTS, NODE
from waiting import until

from lab import lifecycle
from lab.pod import Pod
from lab.topology import PEER_CIDR, PEER_IPV6_CIDR, PEER_IPV6_HOST
from lab.traffic import Receiver, Stream, probe

pytestmark = pytest.mark.lab

HEAD = """\
apiVersion: node-network/v1alpha1
kind: NodeNetwork
families: [ipv4, ipv6]
eni: {max: 2}
warmPool: {addresses: {warm: 0, minimum: 18, surplus: 0}, cooldown: 1s}
"""
RULES = f"""\
  - {{namespace: out, to: [{HOSTS["peer"][1]}], as: pod}}
  - {{namespace: pay-*, to: [{PEER_CIDR}, "{PEER_IPV6_HOST}"], as: dedicated}}
  - {{namespace: pay-us, to: [{HOSTS["VPC host"][1]}], as: node}}
  - {{namespace: out, to: ["{PEER_IPV6_CIDR}"], as: node}}
  - {{namespace: default, to: ["{PEER_IPV6_CIDR}"], as: pod}}
"""
PEER = HOSTS["peer"][1]

NAMESPACES = {
    "pay-eu, first ENI": "pay-eu",
    "pay-eu, second ENI": "pay-eu",
    "pay-us, second ENI": "pay-us",
    "pay-us, first ENI": "pay-us",
    "out": "out",
    "no rule": "default",
}
SEEN: dict[str, dict[str, str]] = {
    "pay-eu, first ENI": {"peer": "pay-eu", "VPC host": "pod", "internet": "node"},
    "pay-eu, second ENI": {"peer": "pay-eu", "VPC host": "pod", "internet": "node"},
    "pay-us, second ENI": {"peer": "pay-us", "VPC host": "node", "internet": "node"},
    "pay-us, first ENI": {"peer": "pay-us", "VPC host": "node", "internet": "node"},
    "out": {"peer": "pod", "VPC host": "pod", "internet": "node"},
    "no rule": {"peer": "node", "VPC host": "pod", "internet": "node"},
}
"""Of each pod and destination: the pod, the node, or the namespace whose address is seen."""


class Identities:
    """A node of two ENIs with pods of some namespaces, and receivers."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster
        self.rows: dict[str, Pod] = {}
        self.write()

    def add(self, row: str) -> None:
        self.rows[row] = self.cluster.add(pod_namespace=NAMESPACES[row])

    def write(self, rules: str = RULES, more: str = "") -> None:
        """Put a document in force."""
        self.cluster.config.write_text(f"{HEAD}{more}snat:\n  rules:\n{rules}")

    def edit(self, rules: str = RULES, more: str = "") -> None:
        """The same under the running reconciler."""
        generation = self.cluster.status()["document"]["generation"]
        self.write(rules, more)

        def in_force() -> bool:
            document = self.cluster.status()["document"]
            return bool(document["generation"] > generation)

        until(in_force, self.cluster.log)

    @property
    def dedicated(self) -> dict[str, str]:
        """Addresses by namespace, as recorded."""
        found = self.cluster.records("identities")
        return {r["namespace"]: r["addresses"][0] for r in found}

    def device_of(self, address: str) -> int:
        """The ENI that has an address."""
        enis = self.cluster.lab.enis("node1")
        return next(e["device"] for e in enis if address in e["addresses"])

    def devices(self, source: str, destination: str) -> set[int]:
        """Those by which such packets left."""
        devices = {e["id"]: e["device"] for e in self.cluster.lab.enis("node1")}
        flows = [*self.cluster.lab.passed(), *self.cluster.lab.drops()]
        return {
            devices[f["eni"]]
            for f in flows
            if (f["source"], f["destination"]) == (source, destination) and f["eni"] in devices
        }

    def conditions(self) -> str:
        return json.dumps(self.cluster.status()["conditions"])

    def counter(self, name: str) -> str:
        command = ["nft", "list", "counter", "inet", "node_network", name]
        return str(self.cluster.lab.run("node1", command).stdout)

    def count(self) -> tuple[int, int, int]:
        listed = self.cluster.lab.run(
            "node1", ["nft", "-j", "list", "table", "inet", "node_network"]
        ).stdout
        objects = json.loads(listed)["nftables"]
        rules, chains = (sum(kind in o for o in objects) for kind in ("rule", "chain"))
        return rules, chains, len(self.cluster.ip("rule").splitlines())


@pytest.fixture(scope="module")
def identities(make_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with ExitStack() as stack:
        cluster = stack.enter_context(make_cluster(tmp_path_factory.mktemp("identities")))
        cluster.least = 18
        made = Identities(cluster)
        cluster.start()
        early = cluster.add()
        made.add("pay-eu, first ENI")
        cluster.delete(early)  # a lower address is free: what is lost would come back as another
        held = {e["device"]: e["addresses"] for e in cluster.lab.enis("node1")}
        made.edit(more=f"reservedAddresses: [{', '.join(held[0])}]\n")
        until(lambda: cluster.status()["settled"], cluster.log)
        made.add("pay-eu, second ENI")
        made.add("pay-us, second ENI")
        made.edit()
        for row in ("pay-us, first ENI", "out", "no rule"):
            made.add(row)
        for name in HOSTS.values():
            stack.enter_context(Receiver(cluster.lab.names.namespace(name[0])))
        # Not by the files: the reconciler counts what it has seen of them.
        until(lambda: not cluster.status()["cooling"] and cluster.is_settled(), cluster.log)
        yield made


def test_each_namespace_has_an_address_that_no_pod_has(identities: Identities) -> None:
    found = identities.dedicated
    assert set(found) == {"pay-eu", "pay-us"}
    addresses = {one.address for one in identities.rows.values()}
    assert len({*found.values(), *addresses}) == 8
    # Of each namespace a pod is on another ENI than its address: what follows sees it.
    for namespace, device in (("pay-eu", 0), ("pay-us", 1)):
        assert identities.device_of(found[namespace]) == device
        for place, where in (("first", 0), ("second", 1)):
            pod = identities.rows[f"{namespace}, {place} ENI"]
            assert identities.device_of(pod.address) == where
    status = identities.cluster.status()
    assert status["pool"]["dedicated"] == 4  # one of each family
    assert status["pool"]["allocatable"] + 6 + 2 == 18
    shown = identities.cluster.command("node1", "status").stdout
    assert f"namespace pay-eu: {found['pay-eu']} " in shown
    assert identities.cluster.diff().stdout == ""


@pytest.mark.parametrize("target", ["peer", "VPC host", "internet"])
@pytest.mark.parametrize("row", SEEN)
def test_a_connection_is_seen_as_the_first_rule_says(
    identities: Identities, row: str, target: str
) -> None:
    identities.cluster.lab.ask("forget")
    own, whose = identities.rows[row].address, SEEN[row][target]
    source = {"pod": own, "node": NODE}.get(whose) or identities.dedicated[whose]
    address = HOSTS[target][1]
    seen = probe(identities.rows[row].namespace, address)
    assert seen.source == source, (seen, identities.cluster.lab.drops(), identities.cluster.log())
    assert identities.devices(source, address) == {identities.device_of(source)}
    traced = identities.cluster.trace(own, address)
    assert str(traced.planned.source) == source
    assert traced.planned.device == identities.device_of(source)
    assert traced.differences == traced.planned.troubles == ()


def test_over_ipv6_the_rules_hold_as_well(identities: Identities) -> None:
    identities.cluster.lab.ask("forget")
    (node,) = [e["ipv6"][0] for e in identities.cluster.lab.enis("node1") if e["device"] == 0]
    pays = {r["namespace"]: r["addresses"][1] for r in identities.cluster.records("identities")}
    rows = identities.rows
    seen = {row: probe(one.namespace, str(PEER_IPV6_HOST)).source for row, one in rows.items()}
    assert seen == {
        "pay-eu, first ENI": pays["pay-eu"],
        "pay-eu, second ENI": pays["pay-eu"],
        "pay-us, second ENI": pays["pay-us"],
        "pay-us, first ENI": pays["pay-us"],
        "out": node,
        "no rule": rows["no rule"].addresses[1],
    }
    assert identities.devices(pays["pay-us"], str(PEER_IPV6_HOST)) == {1}
    for row in ("pay-us, first ENI", "out"):
        traced = identities.cluster.trace(rows[row].addresses[1], str(PEER_IPV6_HOST))
        assert str(traced.planned.source) == seen[row]
        assert traced.differences == traced.planned.troubles == ()


def test_rules_are_as_many_for_six_pods_as_for_sixteen(identities: Identities) -> None:
    before = identities.count()
    more = [identities.cluster.add(pod_namespace="pay-eu") for _ in range(10)]
    try:
        assert identities.count() == before
        assert probe(more[-1].namespace, PEER).source == identities.dedicated["pay-eu"]
    finally:
        for one in more:
            identities.cluster.delete(one)
        until(lambda: not identities.cluster.records("cooling"), "cooldown")


def test_a_killed_reconciler_changes_no_address_and_cuts_no_connection(
    identities: Identities,
) -> None:
    before = identities.dedicated
    own = identities.rows["pay-eu, second ENI"].namespace
    with Stream(own, PEER) as stream:
        identities.cluster.stop(number=signal.SIGKILL)
        assert stream.exchange("while it is gone")
        assert probe(own, PEER).source == before["pay-eu"]
        identities.cluster.start()
        assert stream.exchange("with another")
    assert identities.dedicated == before
    assert probe(own, PEER).source == before["pay-eu"]


LATE = f"  - {{namespace: default, to: [{PEER_CIDR}], as: dedicated}}\n"


def test_a_namespace_without_an_address_is_refused_and_others_go_on(
    identities: Identities,
) -> None:
    """Not under another address: at once, and with the cure, until there is one."""
    late, other = (identities.rows[row].namespace for row in ("no rule", "pay-eu, first ENI"))
    before = identities.dedicated
    reserved = "reservedAddresses: [0.0.0.0/0]\n"
    identities.edit(RULES + LATE, reserved)
    try:
        until(lambda: "IdentityMissing" in identities.conditions(), identities.conditions)
        asked = time.monotonic()
        seen = probe(late, PEER)
        assert seen.source == ""
        assert "refused" in seen.failure
        assert time.monotonic() - asked < 1
        assert "packets 0 " not in identities.counter("unidentified")
        assert probe(late, HOSTS["internet"][1]).source == NODE
        assert probe(other, PEER).source == before["pay-eu"]
        traced = identities.cluster.trace(identities.rows["no rule"].address, PEER)
        assert "has no dedicated address" in traced.planned.troubles[0]
        assert "egress identity of namespace default" in identities.conditions()
        identities.edit(RULES + LATE)
        until(lambda: "default" in identities.dedicated, identities.conditions)
        until(identities.cluster.is_settled, identities.cluster.log)
        assert probe(late, PEER).source == identities.dedicated["default"]
    finally:
        identities.edit()
    until(identities.cluster.is_settled, identities.cluster.log)


def test_a_rule_that_is_removed_leaves_connections_and_then_the_address(
    identities: Identities,
) -> None:
    own = identities.rows["pay-us, second ENI"].namespace
    address = identities.dedicated["pay-us"]
    with Stream(own, PEER) as stream:
        identities.edit(RULES.replace("pay-*", "pay-eu"))
        until(lambda: "pay-us" not in identities.dedicated, identities.cluster.log)
        until(lambda: probe(own, PEER).source == NODE, "the document's policy")
        time.sleep(1.1)  # the cooldown is over, and the connection is not
        assert stream.exchange("as it began")
        cooling = identities.cluster.records("cooling")
        assert (address, True) in [(c["address"], c["spares"]) for c in cooling]
    identities.edit()
    until(lambda: "pay-us" in identities.dedicated, identities.cluster.log)
    assert identities.dedicated["pay-us"] != address  # what cools is given to none


def test_after_a_reboot_a_namespace_has_the_same_address(identities: Identities) -> None:
    """Its pods come last, and what they had is the first that is free."""
    cluster, before = identities.cluster, identities.dedicated
    lifecycle.reboot(cluster.lab, "node1")
    cluster.stop()
    assert cluster.records("identities") == []
    cluster.launch()
    until(cluster.answers, "an answer")
    others = [cluster.add(pod_namespace="default") for _ in range(9)]
    assert identities.dedicated == before
    assert {one.address for one in others}.isdisjoint(before.values())
    for namespace, address in before.items():
        again = cluster.add(pod_namespace=namespace)
        assert probe(again.namespace, PEER).source == address
