"""Pod groups with packets: two namespaces on ENIs of their own, each with an SNAT policy.

What must be seen is written down here by hand, as in the matrix of one group.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import rulesets
import services
from traffic_matrix import HOSTS, NODE
from waiting import until

from lab import pod as lab_pod
from lab.pod import Pod, PodError
from lab.topology import PEER_CIDR
from lab.traffic import PORT, Receiver, probe

pytestmark = pytest.mark.lab

NAMESPACES = {"no group": "default", "pay": "pay-eu", "out": "out"}
DEVICES = {"no group": 0}
TRANSLATED = {"no group": {"peer", "internet"}, "pay": {"internet"}, "out": set[str]()}
"""Of each row the destinations that see the node."""

HEAD = """\
apiVersion: node-network/v1alpha1
kind: NodeNetwork
warmPool: {addresses: {warm: 0, minimum: 2, surplus: 4}, cooldown: 2s}
"""
GROUPS = """\
podGroups:
- name: pay
  match: {{namespace: pay-*}}
  subnetTags: {{role: pods}}
  securityGroups: [{pay}]
  snat: {{excludeCIDRs: [{peer}]}}
- name: out
  match: {{namespace: out}}
  subnets: [{hosts}]
  securityGroups: [{out}]
  snat: {{mode: external}}
- name: late
  match: {{namespace: late}}
"""


class Groups:
    """A node of three ENIs with pods of two groups and of none, and receivers everywhere."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster
        self.subnets = {
            tags["Name"]: s["SubnetId"]
            for s in cluster.aws("describe_subnets")["Subnets"]
            if (tags := {t["Key"]: t["Value"] for t in s.get("Tags", ())}).get("Name")
        }
        (vpc, *_) = {s["VpcId"] for s in cluster.aws("describe_subnets")["Subnets"] if s["Tags"]}
        self.security = {
            name: cluster.aws(
                "create_security_group", GroupName=name, Description=name, VpcId=vpc
            )["GroupId"]
            for name in ("pay", "out")
        }
        self.rows: dict[str, Pod] = {}
        cluster.config.write_text(HEAD + self.groups)

    @property
    def groups(self) -> str:
        return GROUPS.format(hosts=self.subnets["hosts"], peer=PEER_CIDR, **self.security)

    def add(self, row: str, **options: Any) -> Pod:
        made: Pod = self.cluster.add(pod_namespace=NAMESPACES[row], **options)
        return made

    def address(self, target: str) -> str:
        return HOSTS[target][1] if target in HOSTS else self.rows[target].address

    def flows(self, kind: str, source: str, destination: str) -> set[str]:
        """ENIs by which such packets left."""
        return {
            f["eni"]
            for f in getattr(self.cluster.lab, kind)()
            if (f["source"], f["destination"]) == (source, destination)
        }

    def eni(self, row: str) -> dict[str, Any]:
        """What EC2 says of a pod's ENI."""
        own = next(
            e["id"]
            for e in self.cluster.lab.enis("node1")
            if self.rows[row].address in e["addresses"]
        )
        (found,) = self.cluster.aws("describe_network_interfaces", NetworkInterfaceIds=[own])[
            "NetworkInterfaces"
        ]
        return dict(found)

    def conditions(self) -> str:
        return json.dumps(self.cluster.status()["conditions"])


@pytest.fixture(scope="module")
def groups(make_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Groups]:
    with ExitStack() as stack:
        cluster = stack.enter_context(make_cluster(tmp_path_factory.mktemp("groups")))
        cluster.least = 2
        made = Groups(cluster)
        cluster.start("node1")
        cluster.start("node2")
        for row in NAMESPACES:
            made.rows[row] = made.add(row)
        made.rows["far"] = cluster.add("node2")
        for name in HOSTS.values():
            stack.enter_context(Receiver(cluster.lab.names.namespace(name[0])))
        for one in made.rows.values():
            stack.enter_context(Receiver(one.namespace))
        node = cluster.lab.names.namespace("node1")
        stack.enter_context(rulesets.loaded(node, kube_proxy(made)))
        yield made


SERVICES = {"far": 12, "VPC host": 13, "peer": 14, "internet": 15}
NODE_PORTS = {"no group": 30080, "pay": 30081, "out": 30082}


def kube_proxy(made: Groups) -> rulesets.Ruleset:
    """Services with endpoints everywhere, and a NodePort for each row."""
    known = [
        services.Service(
            f"default/{target.replace(' ', '-')}:tcp",
            f"172.20.0.{number}",
            80,
            (services.Endpoint(made.address(target), PORT),),
        )
        for target, number in SERVICES.items()
    ]
    known += [
        services.Service(
            f"default/np-{row.replace(' ', '-')}:tcp",
            f"172.20.0.{number}",
            80,
            (services.Endpoint(made.rows[row].address, PORT, local=True),),
            node_port=port,
            local=True,
        )
        for number, (row, port) in enumerate(NODE_PORTS.items(), 50)
    ]
    addresses = ", ".join(e["primary"] for e in made.cluster.lab.enis("node1"))
    return services.kube_proxy("nftables", tuple(known), node=addresses)


def test_each_group_has_an_eni_in_its_subnet_with_its_security_groups(groups: Groups) -> None:
    seen = {row: groups.eni(row) for row in NAMESPACES}
    assert len({e["NetworkInterfaceId"] for e in seen.values()}) == 3
    assert seen["no group"]["Attachment"]["DeviceIndex"] == 0
    assert seen["pay"]["SubnetId"] == groups.subnets["pods-a"]
    assert seen["out"]["SubnetId"] == groups.subnets["hosts"]
    for row in ("pay", "out"):
        assert [g["GroupId"] for g in seen[row]["Groups"]] == [groups.security[row]]
        tags = {t["Key"]: t["Value"] for t in seen[row]["TagSet"]}
        assert tags["node-network/group"] == row


@pytest.mark.parametrize("target", ["near", "far", *HOSTS])
@pytest.mark.parametrize("row", NAMESPACES)
def test_a_connection_from_a_group_is_seen_as_its_policy_says(
    groups: Groups, row: str, target: str
) -> None:
    groups.cluster.lab.ask("forget")
    near = "out" if row == "pay" else "pay"
    address = groups.address(near if target == "near" else target)
    own = groups.rows[row].address
    source = NODE if target in TRANSLATED[row] else own
    works = target != "internet" or source == NODE
    seen = probe(groups.rows[row].namespace, address, timeout_s=5.0 if works else 0.5)
    assert seen.source == (source if works else ""), (seen, groups.cluster.log())
    traced = groups.cluster.trace(own, address)
    assert str(traced.planned.source) == source
    assert traced.differences == ()
    assert traced.planned.troubles == ()
    if target == "near":
        return
    by = groups.eni("no group" if source == NODE else row)["NetworkInterfaceId"]
    assert groups.flows("passed" if works else "drops", source, address) >= {by}


@pytest.mark.parametrize("target", SERVICES)
@pytest.mark.parametrize("row", NAMESPACES)
def test_what_counts_of_a_service_is_where_it_leads(groups: Groups, row: str, target: str) -> None:
    groups.cluster.lab.ask("forget")
    own = groups.rows[row].address
    source = NODE if target in TRANSLATED[row] else own
    works = target != "internet" or source == NODE
    service = f"172.20.0.{SERVICES[target]}"
    seen = probe(groups.rows[row].namespace, service, 80, timeout_s=5.0 if works else 0.5)
    assert seen.source == (source if works else ""), (seen, groups.cluster.lab.drops())
    by = groups.eni("no group" if source == NODE else row)["NetworkInterfaceId"]
    flows = groups.flows("passed" if works else "drops", source, groups.address(target))
    assert flows >= {by}


@pytest.mark.parametrize("client", ["VPC host", "peer"])
@pytest.mark.parametrize("arrival", NAMESPACES)
@pytest.mark.parametrize("row", NAMESPACES)
def test_a_node_port_answers_by_the_eni_that_was_asked(
    groups: Groups, row: str, arrival: str, client: str
) -> None:
    groups.cluster.lab.ask("forget")
    place, source = HOSTS[client]
    eni = groups.eni(arrival)
    entry = eni["PrivateIpAddress"]
    seen = probe(groups.cluster.lab.names.namespace(place), entry, NODE_PORTS[row])
    assert seen.source == source, (seen, groups.cluster.lab.drops())
    assert groups.flows("passed", entry, source) == {eni["NetworkInterfaceId"]}


@pytest.mark.parametrize("client", ["VPC host", "peer"])
@pytest.mark.parametrize("row", NAMESPACES)
def test_a_pod_of_a_group_answers_by_its_own_eni(groups: Groups, row: str, client: str) -> None:
    groups.cluster.lab.ask("forget")
    place, source = HOSTS[client]
    own = groups.rows[row].address
    seen = probe(groups.cluster.lab.names.namespace(place), own)
    assert seen.source == source, (seen, groups.cluster.lab.drops())
    assert groups.flows("passed", own, source) == {groups.eni(row)["NetworkInterfaceId"]}


def test_rules_are_as_many_for_one_pod_of_each_group_as_for_eight(groups: Groups) -> None:
    def count() -> tuple[int, int, int]:
        listed = groups.cluster.lab.run(
            "node1", ["nft", "-j", "list", "table", "inet", "node_network"]
        ).stdout
        objects = json.loads(listed)["nftables"]
        kinds = ["rule" in o for o in objects], ["chain" in o for o in objects]
        return sum(kinds[0]), sum(kinds[1]), len(groups.cluster.ip("rule").splitlines())

    one = count()
    more = [groups.add(row) for row in ("pay", "out") for _ in range(7)]
    try:
        assert count() == one
    finally:
        for pod in more:
            groups.cluster.delete(pod)


def test_a_group_that_gets_no_eni_is_told_the_arithmetic_and_others_go_on(groups: Groups) -> None:
    name = "late1"
    with pytest.raises(PodError) as refused:
        lab_pod.add(groups.cluster.lab, "node1", name, budget_s=4, pod_namespace="late")
    assert "no ENI of group late yet" in str(refused.value)

    def is_told() -> bool:
        told = groups.conditions()
        return "(3 ENIs - 2 of other groups - the primary) x 9 = 0" in told or not told

    until(is_told, groups.conditions)
    others = [groups.add(row) for row in NAMESPACES]
    for one in others:
        groups.cluster.delete(one)
    lab_pod.call(groups.cluster.lab, "node1", name, "DEL")


def test_pods_stay_where_they_are_when_their_group_is_no_more(groups: Groups) -> None:
    """Their addresses are kept, and the document's policy counts; a condition says so."""
    config, own = groups.cluster.config, groups.rows["pay"]
    before = config.read_text()
    peer = HOSTS["peer"][1]
    config.write_text(before.replace("name: pay", "name: paid"))
    try:
        until(lambda: "GroupGone" in groups.conditions(), groups.conditions)
        until(lambda: probe(own.namespace, peer).source == NODE, "the document's policy")
        until(lambda: "GroupChanged" in groups.conditions(), groups.conditions)
        assert groups.rows["pay"].address in {
            a for e in groups.cluster.lab.enis("node1") for a in e["addresses"]
        }
    finally:
        config.write_text(before)
    until(lambda: "GroupGone" not in groups.conditions(), groups.conditions)
    until(lambda: probe(own.namespace, peer).source == own.address, "the group's policy")
