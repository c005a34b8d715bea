"""Exclusions derived from the VPC, with packets: peerings, routes and prefix lists that change."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from waiting import until

from lab.pod import Pod
from lab.topology import PEER_CIDR, PEER_HOST
from lab.traffic import Receiver, Stream, probe
from reconciler.egress.source import APART_S

pytestmark = pytest.mark.lab

NODE = "10.0.1.10"
ONE_REFRESH_S = 30.0
"""Seconds, on a busy machine; reconcile.ec2Resync is 10 s here."""

SOURCE_ACTIONS = [
    "DescribeVpcPeeringConnections",
    "DescribeRouteTables",
    "DescribeManagedPrefixLists",
    "GetManagedPrefixListEntries",
]


class Egress:
    """A node whose document excludes sources, a pod on it, and a peer that tells what it sees."""

    def __init__(self, cluster: Any, pod: Pod) -> None:
        self.cluster, self.pod = cluster, pod
        self.made: list[str] = []

    def change(self, what: str, **given: Any) -> str:
        made = str(self.cluster.lab.ask("vpc", what=what, given=given)["id"])
        if what == "peering create":
            self.made.append(made)
        return made

    def faults(self, **switches: Any) -> None:
        self.cluster.lab.ask("faults", clear=True, set=switches)

    def exclude(self, *sources: str) -> None:
        self._edit("excludeCIDRs", f"  excludeCIDRs: {json.dumps(list(sources))}")

    def refresh_every(self, resync: str) -> None:
        """Have EC2 asked so often; if seldom, then only by ``look`` for the next minute."""
        self._edit("ec2Resync", f"reconcile: {{ec2Resync: {resync}}}")

    def _edit(self, word: str, line: str) -> None:
        text = self.cluster.config.read_text()
        before = next(x for x in text.splitlines() if word in x)
        generation = self.cluster.status()["document"]["generation"]
        if before == line:
            return
        fresh = self.cluster.config.with_name("fresh.yaml")
        fresh.write_text(text.replace(before, line))
        fresh.replace(self.cluster.config)
        until(lambda: self.cluster.status()["document"]["generation"] > generation, "the edit")

    def sees_pods(self) -> bool:
        """Whether the peer sees the pod's own address; it always sees one of the two."""
        seen = probe(self.pod.namespace, str(PEER_HOST)).source
        assert seen in {NODE, self.pod.address}
        return seen != NODE

    def source(self, name: str) -> dict[str, Any]:
        found = [s for s in self.cluster.status()["sources"] if s["name"] == name]
        return found[0] if found else {"lookedAt": None}

    def ranges(self, name: str) -> set[str]:
        return {e["cidr"] for e in self.source(name)["shown"]}

    def reasons(self) -> set[str]:
        return {c["reason"] for c in self.cluster.status()["conditions"]}

    def look(self, name: str) -> None:
        """Have the reconciler ask EC2 now, and wait for a full answer."""
        before = self.source(name)["lookedAt"]
        self.retry()
        until(lambda: self.source(name)["lookedAt"] != before, f"a look\n{self.cluster.log()}")

    def look_again(self, name: str) -> None:
        """Have it look once more when the last look is long enough ago to agree with it."""
        looked_at = self.source(name)["lookedAt"]
        until(lambda: time.time() - looked_at > APART_S, "another time")
        self.look(name)

    def retry(self) -> None:
        assert self.cluster.command("node1", "retry").returncode == 0

    def holds_while(self, sources: list[str], reason: str, **switches: Any) -> None:
        """Have EC2 answer wrongly; see the condition, and that nothing else has changed."""
        self.faults(**switches)
        try:
            self.retry()
            until(lambda: reason in self.reasons(), f"{reason}\n{self.cluster.log()}")
            assert self.sees_pods()
            if switches.get("denied"):
                assert f"! snat source {sources[0]}: {reason}" in self.cluster.diff().stdout
        finally:
            self.faults()
        for name in sources:
            self.look(name)
        until(lambda: not self.reasons(), lambda: str(self.cluster.status()["conditions"]))
        assert self.sees_pods()


@pytest.fixture(scope="module")
def egress(make_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Egress]:
    with make_cluster(tmp_path_factory.mktemp("egress")) as cluster:
        text = cluster.config.read_text()
        cluster.config.write_text(text + "reconcile: {ec2Resync: 10s}\n")
        cluster.start("node1")
        with (
            cluster.pods(1) as (pod,),
            Receiver(cluster.lab.names.namespace("peer")),
        ):
            yield Egress(cluster, pod)


def test_one_line_replaces_the_range_that_was_typed_by_hand(egress: Egress) -> None:
    cluster = egress.cluster
    egress.exclude("10.0.0.0/8")
    until(egress.sees_pods, "the peer seeing pods, by the CIDR of old")
    peering = egress.change("peering create", cidr=str(PEER_CIDR), tag="shared-services")
    planned = cluster.config.with_name("planned.yaml")
    planned.write_text(cluster.config.read_text().replace('["10.0.0.0/8"]', '["@peering"]'))
    shown = cluster.diff("node1", planned).stdout
    assert f'{{ {PEER_CIDR} }}  # missing: @peering {peering}, "shared-services"' in shown
    assert "delete element inet node_network no_snat_ipv4 { 10.0.0.0/8 }" in shown
    with Stream(egress.pod.namespace, str(PEER_HOST)) as old:
        egress.exclude("@peering")
        until(lambda: egress.source("@peering")["lookedAt"] is not None, "the first look")
        assert egress.sees_pods()
        argv = ["trace", "-f", str(cluster.config), egress.pod.address, str(PEER_HOST)]
        why = f'by snat.excludeCIDRs @peering {peering}, "shared-services" {PEER_CIDR}'
        assert why in cluster.command("node1", *argv).stdout
        assert old.exchange("still here")


def test_a_peering_is_created_while_pods_talk_and_deleted(egress: Egress) -> None:
    egress.refresh_every("10s")
    egress.exclude("@peering")
    until(lambda: egress.source("@peering")["lookedAt"] is not None, "the first look")
    for peering in egress.made:
        egress.change("peering delete", peering=peering)
    until(lambda: not egress.sees_pods(), "no peering", patience_s=4 * ONE_REFRESH_S)
    with Stream(egress.pod.namespace, str(PEER_HOST)) as old:
        assert old.source == NODE
        made = egress.change("peering create", cidr=str(PEER_CIDR), tag="shared-services")
        shown = egress.cluster.diff().stdout
        # The daemon may have seen it first: then nothing is left to be shown.
        assert f'@peering {made}, "shared-services"' in shown or egress.ranges("@peering")
        until(egress.sees_pods, "one refresh", patience_s=ONE_REFRESH_S)
        with Stream(egress.pod.namespace, str(PEER_HOST)) as young:
            assert young.source == egress.pod.address
            egress.refresh_every("1h")
            egress.look("@peering")
            egress.holds_while(["@peering"], "UnauthorizedOperation", denied=SOURCE_ACTIONS)
            egress.holds_while(["@peering"], "RequestLimitExceeded", throttle={"*": [0, 0]})
            egress.holds_while(["@peering"], "SourceShrinks", emptyEc2=SOURCE_ACTIONS)
            egress.change("peering create", cidr="10.101.0.0/16", tag="another")
            egress.look("@peering")
            assert {"10.101.0.0/16", str(PEER_CIDR)} <= egress.ranges("@peering")
            egress.holds_while(["@peering"], "SourceShrinks", shortEc2=SOURCE_ACTIONS)
            assert {"10.101.0.0/16", str(PEER_CIDR)} <= egress.ranges("@peering")
            egress.change("peering delete", peering=made)
            egress.look("@peering")
            assert egress.sees_pods(), "one look is not two"
            until(lambda: "SourceShrinks" in egress.reasons(), "the condition")
            # Its own look may be the second one already.
            shown = egress.cluster.diff()
            assert str(PEER_CIDR) in shown.stderr + shown.stdout
            egress.look_again("@peering")
            until(lambda: not egress.sees_pods(), "the node's address after the second look")
            assert old.exchange("still here")
            assert young.exchange("still here")
    assert egress.cluster.lab.drops() == []


def test_a_route_to_a_transit_gateway_and_a_prefix_list_come_and_go(egress: Egress) -> None:
    egress.refresh_every("1h")
    made = egress.change("prefix-list create", cidrs=["192.0.2.0/24"], tag="office")
    egress.exclude("@transit", made)
    until(lambda: egress.source(made)["lookedAt"] is not None, "the first look")
    until(lambda: not egress.sees_pods(), "only what is named now")
    entry, route = {"prefix_list": made, "cidr": str(PEER_CIDR)}, {"cidr": str(PEER_CIDR)}
    empty = {made: "PrefixListNotFound", "@transit": "AnswerShort"}
    for come, go, given, source in (
        ("prefix-list add", "prefix-list remove", entry, made),
        ("route add", "route delete", route, "@transit"),
    ):
        with Stream(egress.pod.namespace, str(PEER_HOST)) as old:
            assert old.source == NODE
            egress.change(come, **given, **({"via": "tgw"} if source == "@transit" else {}))
            shown = egress.cluster.diff().stdout
            assert f"{{ {PEER_CIDR} }}  # missing: {source}" in shown
            assert not egress.sees_pods(), "it was only shown"
            egress.look(source)
            until(egress.sees_pods, f"{come} is known")
            assert str(PEER_CIDR) in egress.ranges(source)
            with Stream(egress.pod.namespace, str(PEER_HOST)) as young:
                assert young.source == egress.pod.address
                egress.holds_while([source], "UnauthorizedOperation", denied=SOURCE_ACTIONS)
                egress.holds_while([source], "RequestLimitExceeded", throttle={"*": [0, 0]})
                egress.holds_while([source], empty[source], emptyEc2=SOURCE_ACTIONS)
                egress.change(go, **given)
                egress.look(source)
                assert egress.sees_pods(), "one look is not two"
                egress.look_again(source)
                until(lambda: not egress.sees_pods(), f"the node's address after {go}")
                assert old.exchange("still here")
                assert young.exchange("still here")
