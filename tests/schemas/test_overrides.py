"""Faults in overrides: each is named where the override says it."""
# ruff: noqa: E501 - one case a line reads best

from __future__ import annotations

import pytest
from document_strategies import HEAD as HEAD_TREE
from document_strategies import documents
from hypothesis import given

from schemas import value
from schemas.document import NodeNetwork
from schemas.load import DocumentError, dump, load

HEAD = "apiVersion: node-network/v1alpha1\nkind: NodeNetwork\n"


def problems(body: str) -> list[str]:
    with pytest.raises(DocumentError) as caught:
        load(HEAD + body, "f.yaml")
    return [str(p) for p in caught.value.problems]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("3", "overrides[0]: must be a mapping of keys"),
        ("{match: {zone: a}}", "overrides[0].set: missing; it is required"),
        ("{set: {}}", "overrides[0].match: missing; it is required"),
        ("{match: {zone: a}, set: {}, also: 1}", "overrides[0].also: unknown key; known here: match, set"),
        ("{match: {zone: a}, set: {}, patch: {}}", "overrides[0].patch: unknown key; did you mean 'match'?"),
        # match
        ("{match: {}, set: {}}", "overrides[0].match: matches nothing in particular; give instanceType, zone or nodeName"),
        ("{match: {zone: }, set: {}}", "overrides[0].match.zone: empty; remove the key, or give it a value"),
        ("{match: {zone: ''}, set: {}}", "overrides[0].match.zone: empty; remove the key, or give it a value"),
        ("{match: {zone: 1}, set: {}}", "overrides[0].match.zone: must be text; put 1 in quotes"),
        ("{match: {zones: a}, set: {}}", "overrides[0].match.zones: unknown key; did you mean 'zone'?"),
        ("{match: {instance_type: a}, set: {}}", "overrides[0].match.instance_type: unknown key; did you mean 'instanceType'?"),
        # set
        ("{match: {zone: a}, set: }", "overrides[0].set: must be a mapping of keys"),
        ("{match: {zone: a}, set: text}", "overrides[0].set: must be a mapping of keys"),
        ("{match: {zone: a}, set: [a]}", "overrides[0].set: must be a mapping of keys"),
        ("{match: {zone: a}, set: {kind: NodeNetwork}}", "overrides[0].set.kind: belongs to the whole document; remove it here"),
        ("{match: {zone: a}, set: {apiVersion: x}}", "overrides[0].set.apiVersion: belongs to the whole document; remove it here"),
        ("{match: {zone: a}, set: {overrides: []}}", "overrides[0].set.overrides: belongs to the whole document; remove it here"),
        ("{match: {zone: a}, set: {colour: 1}}", "overrides[0].set.colour: unknown key; did you mean 'cluster'?"),
        ("{match: {zone: a}, set: {x: 1}}", "overrides[0].set.x: unknown key; known here: cluster, maxPods, warmPool, eni, snat, routing, datapath, pods, cni, reconcile, ec2, kubernetes, families, egressFamilies, reservedAddresses, podGroups, instanceTypes, takeOver"),
        ("{match: {zone: a}, set: {max_pods: 1}}", "overrides[0].set.max_pods: unknown key; did you mean 'maxPods'?"),
        ("{match: {zone: a}, set: {x: }}", "overrides[0].set.x: unknown key; known here: cluster, maxPods, warmPool, eni, snat, routing, datapath, pods, cni, reconcile, ec2, kubernetes, families, egressFamilies, reservedAddresses, podGroups, instanceTypes, takeOver"),
        ("{match: {zone: a}, set: {warmPool: {warm: 1}}}", "overrides[0].set.warmPool.warm: unknown key; did you mean 'addresses.warm' or 'enis.warm' or 'prefixes.warm'?"),
        ("{match: {zone: a}, set: {warmPool: {enis: , colour: }}}", "overrides[0].set.warmPool.colour: unknown key; known here: addresses, enis, prefixes, cooldown"),
        ("{match: {zone: a}, set: {eni: 1}}", "overrides[0].set.eni: must be a mapping of keys"),
        ("{match: {zone: a}, set: {eni: {mtu: 100}}}", "overrides[0].set.eni.mtu: 100: must be at least 1280"),
        ("{match: {zone: a}, set: {eni: {subnets: [subnet-1, x]}}}", "overrides[0].set.eni.subnets[1]: 'x': must be a subnet id like subnet-0123abcd"),
        ("{match: {zone: a}, set: {warmPool: {cooldown: 2h}}}", "overrides[0].set.warmPool.cooldown: must be from 0s to 1h"),
        ("{match: {zone: a}, set: {snat: {excludeCIDRs: [10.1.2.3/33]}}}", "overrides[0].set.snat.excludeCIDRs[0]: '10.1.2.3/33' is no CIDR; write it as 10.1.0.0/16"),
        ("{match: {zone: a}, set: {instanceTypes: {m5.large: {enis: 1}}}}", "overrides[0].set.instanceTypes[m5.large].addressesPerEni: missing; it is required"),
        ("{match: {zone: a}, set: {instanceTypes: {m5: {enis: 1, addressesPerEni: 2}}}}", "overrides[0].set.instanceTypes.m5: 'm5': must be an instance type like m5.large"),
        # keys of the override that do not agree with each other
        ("{match: {zone: a}, set: {warmPool: {addresses: {}, enis: {}}}}", "overrides[0].set.warmPool.enis: addresses and enis are given, but one strategy decides; remove all but one"),
        ("{match: {zone: a}, set: {warmPool: {prefixes: {}}}}", "overrides[0].set.warmPool.prefixes: counts /28 prefixes, but eni.allocate is addresses; set it to prefixes, or choose addresses or enis here"),
        ("{match: {zone: a}, set: {eni: {max: 1, usePrimary: false}}}", "overrides[0].set.eni.usePrimary: false with max 1 leaves no ENI for pods; raise max or use it"),
        ("{match: {zone: a}, set: {eni: {subnets: [subnet-1], subnetTags: {a: b}}}}", "overrides[0].set.eni.subnetTags: subnets names the subnets already; remove subnets or subnetTags"),
    ],
)  # fmt: skip
def test_a_fault_in_an_override_is_named_there(override: str, expected: str) -> None:
    found = problems(f"overrides: [{override}]\n")
    assert [p.partition(" ")[2] for p in found] == [expected]


@pytest.mark.parametrize(
    ("body", "changes", "expected"),
    [
        ("eni: {max: 1}\n", "eni: {usePrimary: false}", "8:23: overrides[0].set.eni.usePrimary: false with max 1 leaves no ENI for pods; raise max or use it"),
        ("eni: {usePrimary: false}\n", "eni: {max: 1}", "8:10: overrides[0].set.eni: usePrimary: false with max 1 leaves no ENI for pods; raise max or use it (it is set for all nodes; set it here too)"),
        ("pods: {mtu: 9001}\n", "eni: {mtu: 1500}", "8:5: overrides[0].set: pods.mtu: 9001 does not fit into eni.mtu 1500; a pod's packets would be fragmented or dropped; lower pods.mtu (it is set for all nodes; set it here too)"),
        ("eni: {mtu: 1500}\n", "eni: {mtu: 1400}\n    pods: {mtu: 1500}", "9:17: overrides[0].set.pods.mtu: 1500 does not fit into eni.mtu 1400; a pod's packets would be fragmented or dropped; lower pods.mtu"),
        ("snat: {excludeCIDRs: [192.0.2.0/24]}\n", "snat: {mode: external}", "8:11: overrides[0].set.snat: excludeCIDRs: has no effect in mode external, where nothing is translated; remove it, or choose mode node (it is set for all nodes; set it here too)"),
    ],
)  # fmt: skip
def test_an_override_that_disagrees_with_the_rest_of_the_document_is_named(
    body: str, changes: str, expected: str
) -> None:
    found = problems(f"{body}overrides:\n- match:\n    zone: a\n  set:\n    {changes}\n")
    assert found == [f"f.yaml:{expected}"]


def test_unknown_keys_are_named_at_the_key_and_faults_at_the_value() -> None:
    body = "overrides:\n- match: {zone: a}\n  set:\n    eni:\n      colour: 1\n      mtu: 100\n"
    assert [p.rpartition(": ")[0] for p in problems(body)] == [
        "f.yaml:7:7: overrides[0].set.eni.colour: unknown key; known here",
        "f.yaml:8:12: overrides[0].set.eni.mtu: 100",
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ("{eni: {mtu: 0x10}, pods: {mtu: 1}}", ["eni.mtu: YAML reads 0x10 as the number 16; write plain digits", "pods.mtu: 1: must be at least 576"]),
        ("{warmPool: {prefixes: {}}, eni: {allocate: no}}", ["eni.allocate: YAML reads no as a boolean; put the word in quotes if it is meant"]),
        ("{warmPool: {enis: no}}", ["warmPool.enis: YAML reads no as a boolean; put the word in quotes if it is meant"]),
        ("{eni: {tags: {a: no, b: 1}}}", ["eni.tags: tag 'b': names and values are text; put 1 in quotes", "eni.tags.a: YAML reads no as a boolean; put the word in quotes if it is meant"]),
        ("{eni: {tags: !!set {a}}}", ["eni.tags: the tag tag:yaml.org,2002:set is not supported"]),
        ("{eni: {<<: {mtu: 1}, colour: 1}}", ["eni: merge keys are not supported; write the values out", "eni.colour: unknown key; known here: max, mtu, tags, allocate, usePrimary, subnets, subnetTags, excludeSubnetTags, subnetOrder, securityGroups"]),
        ("{reconcile: {resync: 1ms, ec2Resync: 1ms}}", ["reconcile.resync: must be from 1s to 1h", "reconcile.ec2Resync: must be from 10s to 1h"]),
        ("{snat: {excludeCIDRs: ['2001:db8::/32', '2001:db8:1::/48']}}", ["snat.excludeCIDRs[0]: 2001:db8::/32 is IPv6, but families has none of that version; remove it", "snat.excludeCIDRs[1]: 2001:db8:1::/48 is IPv6, but families has none of that version; remove it"]),
        ("{eni: {tags: {aws:x: y, z: 1}}}", ["eni.tags: tag 'aws:x': names that begin with aws: are Amazon's own", "eni.tags: tag 'z': names and values are text; put 1 in quotes"]),
        ("{kind: a, overrides: []}", ["kind: belongs to the whole document; remove it here", "overrides: belongs to the whole document; remove it here"]),
        ("{warmPool: {addresses: {}, enis: {}, cooldown: 2h}}", ["warmPool.enis: addresses and enis are given, but one strategy decides; remove all but one", "warmPool.cooldown: must be from 0s to 1h"]),
    ],
)  # fmt: skip
def test_all_faults_of_an_override_are_named_and_none_that_follow_from_them(
    changes: str, expected: list[str]
) -> None:
    found = problems(f"overrides: [{{match: {{zone: a}}, set: {changes}}}]\n")
    assert sorted(p.partition(" overrides[0].set.")[2] for p in found) == sorted(expected)


def test_a_tag_of_the_document_is_no_fault_of_an_override_that_adds_another() -> None:
    body = "eni: {tags: {a: 1}}\noverrides: [{match: {zone: a}, set: {eni: {tags: {b: 2}}}}]\n"
    assert [p.partition(" ")[2].partition("': ")[0] for p in problems(body)] == [
        "eni.tags: tag 'a",
        "overrides[0].set.eni.tags: tag 'b",
    ]


def test_what_yaml_spoils_in_the_document_is_not_repeated_for_its_overrides() -> None:
    body = (
        "eni: {mtu: 0x10, max: 010, tags: {a: no}}\n"
        "overrides:\n"
        "- {match: {zone: a}, set: {eni: {usePrimary: false, tags: {b: c}}}}\n"
        "- {match: {zone: b}, set: {eni: {mtu: 1, max: 1}}}\n"
    )
    assert [p.split(": ")[1] for p in problems(body)] == [
        "eni.mtu",
        "eni.max",
        "eni.tags.a",
        "overrides[1].set.eni.mtu",
    ]


def test_a_fault_of_the_document_is_not_repeated_for_each_override() -> None:
    body = (
        "kond: 1\n"
        "eni: {max: 1, usePrimary: false}\n"
        "overrides:\n"
        "- {match: {zone: a}, set: {eni: {mtu: 1500}}}\n"
        "- {match: {zone: b}, set: {kund: 1, eni: {max: 2}}}\n"
    )
    assert [p.split(": ")[1] for p in problems(body)] == [
        "kond",
        "eni.usePrimary",
        "overrides[1].set.kund",
    ]


def test_a_part_that_is_no_mapping_is_the_documents_fault_and_not_its_overrides() -> None:
    body = "eni: 3\noverrides: [{match: {zone: a}, set: {eni: {max: 2}}}]\n"
    assert problems(body) == ["f.yaml:3:6: eni: must be a mapping of keys"]


def test_a_fault_that_the_document_has_too_is_named_in_both_places() -> None:
    body = "eni: {mtu: 1}\noverrides: [{match: {zone: a}, set: {eni: {mtu: 1}}}]\n"
    assert [p.split(": ")[1] for p in problems(body)] == ["eni.mtu", "overrides[0].set.eni.mtu"]


def test_all_overrides_are_checked_and_all_faults_named_at_once() -> None:
    body = (
        "overrides:\n"
        "- {match: {zone: a}, set: {eni: {mtu: 1}}}\n"
        "- {match: {}, set: {maxPods: 0}}\n"
    )
    assert [p.split(": ")[1] for p in problems(body)] == [
        "overrides[0].set.eni.mtu",
        "overrides[1].match",
        "overrides[1].set.maxPods",
    ]


def test_an_override_may_use_another_strategy_than_the_document() -> None:
    body = (
        "warmPool: {addresses: {warm: 1}}\n"
        "overrides:\n"
        "- {match: {zone: a}, set: {warmPool: {enis: {warm: 1}}}}\n"
        "- {match: {zone: b}, set: {eni: {allocate: prefixes}, warmPool: {prefixes: {}}}}\n"
    )
    assert len(load(HEAD + body, "f.yaml").overrides) == 2


def test_each_override_is_checked_alone_for_not_all_meet_on_a_node() -> None:
    body = (
        "overrides:\n"
        "- {match: {zone: a}, set: {eni: {max: 1}}}\n"
        "- {match: {zone: b}, set: {eni: {usePrimary: false}}}\n"
    )
    assert len(load(HEAD + body, "f.yaml").overrides) == 2


def test_what_no_yaml_can_say_is_refused_in_python_too() -> None:
    with pytest.raises(ValueError, match="not plain YAML"):
        NodeNetwork.model_validate(
            HEAD_TREE | {"overrides": [{"match": {"zone": "a"}, "set": {"eni": {1, 2}}}]}
        )


@given(documents())
def test_an_override_cannot_be_changed_through_what_it_shows(document: NodeNetwork) -> None:
    before = dump(document)
    for override in document.overrides:
        override.changes.clear()
    assert dump(document) == before


def test_a_cidr_is_read_once_however_many_overrides_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each has the whole document checked: with 8,000 CIDRs and 800 of them, that took 40 s."""
    read: list[str] = []
    real = value.ip_network

    def count(text: str, *, strict: bool) -> value.Network:
        read.append(text)
        return real(text, strict=strict)

    monkeypatch.setattr(value, "ip_network", count)
    value._network.cache_clear()
    cidrs = "".join(f"  - 10.9.{n}.0/24\n" for n in range(200))
    sets = "".join(f"- {{match: {{zone: z{n}}}, set: {{maxPods: {n}}}}}\n" for n in range(1, 20))
    document = load(f"{HEAD}snat:\n  excludeCIDRs:\n{cidrs}overrides:\n{sets}", "x.yaml")
    assert (len(document.overrides), len(read)) == (19, 200)


def test_overrides_are_left_unchecked_while_there_are_more_problems_than_anybody_reads() -> None:
    """Each override may say of every CIDR that it is wrong on its nodes."""
    cidrs = "".join(f"  - 10.9.{n}.0/24\n" for n in range(250))
    sets = "".join(f"- {{match: {{zone: z{n}}}, set: {{families: [ipv6]}}}}\n" for n in range(9))
    with pytest.raises(DocumentError) as refused:
        load(f"{HEAD}snat:\n  excludeCIDRs:\n{cidrs}overrides:\n{sets}", "x.yaml")
    problems = refused.value.problems
    assert {p.path.partition(".set")[0] for p in problems} == {"overrides[0]", "overrides[1]"}
    assert len(problems) == 251
    assert "more than 200 problems come first; mend those" in problems[-1].message
