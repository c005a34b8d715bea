"""The document's rules in the ruleset, walked packet by packet as nftables would."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

from builders import SUBNET, VPC, attachment, document, eni, inputs
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.datapath import IpAddress
from reconciler.domains import nat
from reconciler.domains.inputs import Inputs
from reconciler.domains.nat_identities import OF_PODS
from reconciler.domains.nat_objects import NftChain, NftElement, NftLink, NftSet
from reconciler.ipam.identity import EgressIdentity
from reconciler.ipam.pool_status import Ec2Inputs

NODE = SUBNET[10]
PEER, PARTNER, ELSEWHERE = "10.100.0.9", "192.0.2.7", "203.0.113.9"
PAY = EgressIdentity("pay-a", "", (SUBNET[59],), "eni-2")

RULES = [
    {"namespace": "out", "to": ["10.100.0.0/16"], "as": "pod"},
    {"namespace": "pay-*", "to": ["10.100.0.0/16"], "as": "dedicated"},
    {"namespace": "*", "to": ["192.0.2.0/24", "10.0.9.0/24"], "as": "node"},
]


def node(*pods: str, rules: Any = RULES, held: Any = (PAY,), **more: Any) -> Inputs:
    """Three ENIs, of which the pods are on the second."""
    bound = tuple(
        attachment(n, 1, pod=f"{ns}/p{n}", address=SUBNET[100 + n]) for n, ns in enumerate(pods)
    )
    here = document(snat={"rules": rules}, **more)
    return inputs(3, bound, document=here, ec2=Ec2Inputs(identities=held))


@dataclass
class Walk:
    """One first packet on its way through the chains of a hook, in their order."""

    source: IpAddress
    destination: IpAddress
    device: str = ""
    mark: int = 0
    connection: int = 0
    translations: list[str] = field(default_factory=list)
    refused: str = ""


class Ruleset:
    """What is desired of a node, to be walked."""

    def __init__(self, now: Inputs) -> None:
        objects = nat.desire(now)
        self.chains = {o.name: o for o in objects if isinstance(o, NftChain)}
        self.sets = {o.name: o for o in objects if isinstance(o, NftSet)}
        self.elements: dict[str, list[NftElement]] = {}
        self.links = {(o.set, o.address): o for o in objects if isinstance(o, NftLink)}
        for o in objects:
            if isinstance(o, NftElement):
                self.elements.setdefault(o.set, []).append(o)

    def find(self, name: str, address: IpAddress) -> NftElement | None:
        assert name in self.sets, name
        return next((e for e in self.elements.get(name, ()) if e.first <= address <= e.last), None)

    def lead(self, name: str, source: IpAddress) -> str:
        """Return the chain that a verdict map names; what is sent comes by its pod's link."""
        found = self.links.get((name, source)) or self.find(name, source)
        return found.goto if found else ""

    def walk(self, chain: str, packet: Walk) -> str:
        """Return accept, drop or return; a chain's end is a return."""
        for rule in self.chains[chain].rules:
            for statement in json.loads(rule):
                ((kind, what),) = statement.items()
                verdict = self.apply(kind, what, packet)
                if verdict == "next rule":
                    break
                if verdict:
                    return verdict
        return "return"

    def apply(self, kind: str, what: Any, packet: Walk) -> str:
        """Return a verdict, that the rule does not match, or "" to go on with it."""
        match kind:
            case "match":
                return "" if self.matches(what, packet) else "next rule"
            case "accept" | "drop" | "return":
                return kind
            case "goto":
                return self.walk(what["target"], packet)
            case "jump":
                verdict = self.walk(what["target"], packet)
                return "" if verdict == "return" else verdict
            case "vmap":
                goto = self.lead(what["data"][1:], packet.source)
                return self.walk(goto, packet) if goto else "next rule"
            case "mangle":
                bits = what["value"]["|"][1] if "|" in what["value"] else 0
                packet.connection, packet.mark = (
                    (bits, packet.mark) if "ct" in what["key"] else (packet.connection, bits)
                )
            case "snat":
                return self.translate(what["addr"], packet)
            case "reject":
                packet.refused = str(what)
                return "drop"
            case "counter":
                pass
            case _:
                raise AssertionError(kind)
        return ""

    def translate(self, to: Any, packet: Walk) -> str:
        if isinstance(to, dict):
            if (found := self.find(to["map"]["data"][1:], packet.source)) is None:
                return "next rule"
            to = str(found.value)
        packet.translations.append(to)
        return "accept"

    def matches(self, what: Any, packet: Walk) -> bool:
        left, right = what["left"], what["right"]
        if "ct" in left:
            return bool(what["op"] == "!")  # it is a first packet: not confirmed
        if "&" in left:
            return (packet.connection == right) is (what["op"] == "==")
        if "fib" in left:
            return bool(right == "eth0")  # by the default route of table main
        if "meta" in left:
            known = {"oifname": packet.device, "iifgroup": "", "l4proto": "tcp"}
            return bool(known[left["meta"]["key"]] == right)
        field_, family = left["payload"]["field"], left["payload"]["protocol"]
        address = packet.source if field_ == "saddr" else packet.destination
        if (family == "ip") is not isinstance(address, IPv4Address):
            return False
        if isinstance(right, dict):
            prefix = right["prefix"]
            inside = address in ip_network(f"{prefix['addr']}/{prefix['len']}")
        else:
            inside = self.find(right[1:], address) is not None
        return inside is (what["op"] == "==")

    def send(self, source: IpAddress, destination: str) -> Walk:
        """Send a pod's first packet through the hooks; it leaves as its mark says."""
        packet = Walk(source, ip_address(destination))
        assert self.walk("guard", packet) == "return"
        if self.walk("route_mark", packet) == "drop":
            assert packet.refused
            return packet
        packet.device = {0x80: "eth0", 1: "eth1", 2: "eth2"}[packet.mark]
        if self.walk("source_nat", packet) == "drop":
            packet.refused = "dropped"
        return packet

    def seen(self, number: int, destination: str) -> tuple[str, str]:
        """Whose address is seen, and the link; or that it was refused, or dropped."""
        packet = self.send(SUBNET[100 + number], destination)
        if packet.refused:
            return "dropped" if packet.refused == "dropped" else "refused", ""
        return (*packet.translations, str(packet.source))[0], packet.device


def test_the_first_rule_that_matches_decides_before_the_policy() -> None:
    ruleset = Ruleset(node("pay-a", "out", "web"))
    own = [str(SUBNET[100 + n]) for n in range(3)]
    assert ruleset.seen(0, PEER) == ("10.0.1.59", "eth2")
    assert ruleset.seen(1, PEER) == (own[1], "eth1")
    assert ruleset.seen(2, PEER) == (str(NODE), "eth0")  # no rule: the document's policy
    for number in range(3):
        assert ruleset.seen(number, PARTNER) == (str(NODE), "eth0")
        assert ruleset.seen(number, ELSEWHERE) == (str(NODE), "eth0")
        assert ruleset.seen(number, "10.0.9.7") == (str(NODE), "eth0")  # said to be, in the VPC
        assert ruleset.seen(number, "10.0.8.7") == (own[number], "eth1")


def test_rules_come_before_the_policies_of_groups_and_of_mode_external() -> None:
    groups = [{"name": "pay", "match": {"namespace": "pay-*"}, "snat": {"mode": "external"}}]
    now = node("pay-a", podGroups=groups, held=(replace(PAY, group="pay", eni_id="eni-1"),))
    enis = (eni(0), eni(1, group="pay", secondaries=60), eni(2))
    ruleset = Ruleset(replace(now, enis=enis))
    assert ruleset.seen(0, PEER) == ("10.0.1.59", "eth1")
    assert ruleset.seen(0, PARTNER) == (str(NODE), "eth0")
    assert ruleset.seen(0, ELSEWHERE) == (str(SUBNET[100]), "eth1")


def test_without_its_address_a_namespace_is_refused_and_no_other() -> None:
    for held in ((), (replace(PAY, addresses=(SUBNET[9],)),), (replace(PAY, eni_id="eni-7"),)):
        ruleset = Ruleset(node("pay-a", "out", held=held))
        assert ruleset.seen(0, PEER) == ("refused", "")
        assert ruleset.seen(0, PARTNER) == (str(NODE), "eth0")
        assert ruleset.seen(1, PEER) == (str(SUBNET[101]), "eth1")


def test_an_eni_whose_link_is_not_here_serves_no_namespace() -> None:
    now = node("pay-a")
    links = {mac: name for mac, name in now.links.items() if name != "eth2"}
    assert Ruleset(replace(now, links=links)).seen(0, PEER) == ("refused", "")


def test_ipv6_has_an_address_of_the_prefix_the_nodes_or_none() -> None:
    prefix = ip_network("2001:db8:1:0:7::/80")
    rules = [
        {"namespace": "pay-*", "to": ["2001:db8:9::/48"], "as": "dedicated"},
        {"namespace": "*", "to": ["2001:db8:8::/48"], "as": "node"},
    ]
    own, host = ip_address("2001:db8:1:0:7::5"), ip_address("2001:db8:1::10")
    now = node("pay-a", rules=rules, families=["ipv6"])
    now = replace(now, attachments=(attachment(0, 1, pod="pay-a/x", addresses=(own,)),))
    for is_known, seen in ((True, "2001:db8:1:0:7::9"), (False, "")):
        held = (EgressIdentity("pay-a", "", (ip_address("2001:db8:1:0:7::9"),), "eni-1"),)
        hosts = (host,) if is_known else ()
        enis = (eni(0, host_addresses=hosts), eni(1, ipv6_prefixes=(prefix,)), eni(2))
        here = replace(now, enis=enis, ec2=Ec2Inputs(identities=held if is_known else ()))
        packet = Ruleset(here).send(own, "2001:db8:9::1")
        assert ("".join(packet.translations), bool(packet.refused)) == (seen, not is_known)
        packet = Ruleset(here).send(own, "2001:db8:8::1")
        expected = ([str(host)], False) if is_known else ([], True)
        assert (packet.translations, bool(packet.refused)) == expected
        assert Ruleset(here).send(own, "2001:db8:7::1").translations == []


def chains(now: Inputs) -> set[NftChain]:
    return {o for o in nat.desire(now) if isinstance(o, NftChain)}


def test_chains_and_rules_are_the_same_for_one_pod_and_for_twenty_of_any_namespaces() -> None:
    one = chains(node("pay-a"))
    assert one == chains(node(*(f"pay-{n % 5}" for n in range(20))))
    assert one == chains(node(held=()))


def test_a_document_without_rules_has_none_of_it() -> None:
    with_none = nat.desire(node("pay-a", rules=[], held=()))
    assert with_none == nat.desire(replace(node("pay-a", rules=[])))
    names = {getattr(o, "name", getattr(o, "set", "")) for o in with_none}
    assert not [n for n in names if "ruled" in n or "dedicated" in n or n.startswith("to_")]


def test_what_is_of_a_pod_is_known_by_its_set() -> None:
    """So that pods whose data a domain cannot digest keep what they have."""
    sets = {o.set for o in nat.desire_pods(node("pay-a", "pay-b")) if isinstance(o, NftElement)}
    ruled = {n for n in sets if n.startswith(("ruled", "dedicated", "from"))}
    assert len(ruled) == 5
    assert ruled <= OF_PODS


TARGETS = ["10.100.0.0/16", "192.0.2.0/24", "0.0.0.0/0", "10.0.9.0/24", "10.0.0.0/8"]
NAMESPACES = ["pay-a", "pay-b", "out", "web"]


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "namespace": st.sampled_from(["pay-*", "*", "out", "pay-a"]),
                "to": st.lists(st.sampled_from(TARGETS), min_size=1, max_size=2),
                "as": st.sampled_from(["pod", "node", "dedicated"]),
            }
        ),
        max_size=4,
    ),
    st.sets(st.sampled_from(NAMESPACES)),
    st.sampled_from([{}, {"mode": "external"}, {"excludeCIDRs": ["192.0.2.0/24"]}]),
)
def test_each_connection_is_translated_once_at_most_and_as_its_first_rule_says(
    rules: list[dict[str, Any]], served: set[str], policy: dict[str, Any]
) -> None:
    held = tuple(
        EgressIdentity(ns, "", (SUBNET[51 + n],), "eni-2")
        for n, ns in enumerate(NAMESPACES)
        if ns in served
    )
    now = node(*NAMESPACES, rules=rules, held=held)
    ruleset = Ruleset(replace(now, document=document(snat={"rules": rules} | policy)))
    own = {i.namespace: str(i.addresses[0]) for i in held}
    for number, namespace in enumerate(NAMESPACES):
        for target in (PEER, PARTNER, ELSEWHERE, "10.0.9.7", "10.0.8.7", "169.254.169.254"):
            packet = ruleset.send(SUBNET[100 + number], target)
            assert len(packet.translations) <= 1
            word = first(rules, namespace, target)
            seen = ruleset.seen(number, target)
            if word == "dedicated":
                expected = (own[namespace], "eth2") if namespace in own else ("refused", "")
            elif word == "node" or (not word and is_translated(policy, target)):
                expected = (str(NODE), "eth0")
            else:
                expected = (str(SUBNET[100 + number]), "eth1")
            assert seen == expected, (namespace, target, word)


def first(rules: list[dict[str, Any]], namespace: str, target: str) -> str:
    """What the first rule that matches says, in other words than the code's."""
    address = ip_address(target)
    for rule in rules:
        for text in rule["to"] if fnmatchcase(namespace, rule["namespace"]) else ():
            network = ip_network(text)
            local = any(address in n for n in (*VPC, ip_network("169.254.0.0/16")))
            if address in network and (not local or network.prefixlen >= 16):
                return str(rule["as"])
    return ""


def is_translated(policy: dict[str, Any], target: str) -> bool:
    if policy.get("mode") == "external" or ip_address(target) in VPC[0]:
        return False
    return not (policy.get("excludeCIDRs") and target == PARTNER)
