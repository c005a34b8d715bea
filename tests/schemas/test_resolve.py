"""From the document of all nodes to one node's: what matches, what is merged, who wins."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest
from document_strategies import HEAD, NODE, documents, patches
from hypothesis import assume, given

from schemas.check import ALTERNATIVES, merge, resolve
from schemas.document import NodeNetwork
from schemas.load import DocumentError, dump, load
from schemas.override import Match, matches
from schemas.pool import AddressTarget, EniTarget

EVERYWHERE = {"nodeName": "*"}


def resolved(base: dict[str, Any], *changes: dict[str, Any]) -> NodeNetwork:
    """A document on a node where all these overrides match."""
    overrides = [{"match": EVERYWHERE, "set": c} for c in changes]
    document = NodeNetwork.model_validate(HEAD | base | {"overrides": overrides})
    return resolve(document, **NODE)


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ({"instanceType": "m5.large"}, True),
        ({"instanceType": "m5.*"}, True),
        ({"instanceType": "m5"}, False),
        ({"instanceType": "M5.*"}, False),
        ({"instanceType": "m5.larg[!e]"}, False),
        ({"instanceType": "[mc]5.larg?"}, True),
        ({"zone": "us-east-1a"}, True),
        ({"zone": "*b"}, False),
        ({"nodeName": "ip-10-0-*"}, True),
        ({"nodeName": "10-0-1-10"}, False),
        ({"instanceType": "m5.*", "zone": "us-*", "nodeName": "ip-*"}, True),
        ({"instanceType": "m5.*", "zone": "*b"}, False),
        ({"zone": "*a", "nodeName": "x"}, False),
        ({"instanceType": "c5.*", "nodeName": "ip-*"}, False),
    ],
    ids=str,
)
def test_all_given_patterns_must_match_whole_and_case_counts(
    match: dict[str, str], expected: bool
) -> None:
    assert matches(Match.model_validate(match), **NODE) is expected


def test_the_last_override_that_matches_has_the_last_word() -> None:
    node = resolved({"maxPods": 1}, {"maxPods": 2, "cluster": "a"}, {"maxPods": 3})
    assert (node.max_pods, node.cluster) == (3, "a")


def test_an_override_that_does_not_match_changes_nothing() -> None:
    base = {"maxPods": 1, "overrides": [{"match": {"zone": "*b"}, "set": {"maxPods": 2}}]}
    assert resolve(NodeNetwork.model_validate(HEAD | base), **NODE).max_pods == 1


def test_mappings_are_merged_and_lists_are_replaced() -> None:
    base = {
        "eni": {"mtu": 1500, "tags": {"a": "1", "b": "1"}, "securityGroups": ["sg-1", "sg-2"]},
        "instanceTypes": {"m5.large": {"enis": 3, "addressesPerEni": 10}},
        "snat": {"excludeCIDRs": ["192.0.2.0/24"]},
    }
    node = resolved(
        base,
        {
            "eni": {"tags": {"b": "2", "c": "2"}, "securityGroups": ["sg-3"]},
            "instanceTypes": {"m5.large": {"enis": 2}},
            "snat": {"excludeCIDRs": ["198.51.100.0/24"]},
        },
    )
    assert node.eni.mtu == 1500
    assert dict(node.eni.tags) == {"a": "1", "b": "2", "c": "2"}
    assert node.eni.security_groups == ("sg-3",)
    limits = dict(node.instance_types)["m5.large"]
    assert (limits.enis, limits.addresses_per_eni) == (2, 10)
    assert node.snat.exclude_cidrs == (ip_network("198.51.100.0/24"),)


def test_null_brings_the_default_back() -> None:
    base = {
        "maxPods": 1,
        "eni": {"mtu": 1500, "max": 2, "tags": {"a": "1", "b": "1"}},
        "warmPool": {"addresses": {"warm": 1}, "cooldown": "1s"},
    }
    node = resolved(
        base, {"maxPods": None, "warmPool": None, "eni": {"mtu": None, "tags": {"a": None}}}
    )
    assert node.max_pods is None
    assert (node.eni.mtu, node.eni.max, dict(node.eni.tags)) == (9001, 2, {"b": "1"})
    assert node.warm_pool == NodeNetwork.model_validate(HEAD).warm_pool


def test_the_same_strategy_is_merged_and_another_takes_its_place() -> None:
    base = {"warmPool": {"addresses": {"warm": 1, "minimum": 24}, "cooldown": "1s"}}
    same = resolved(base, {"warmPool": {"addresses": {"warm": 2}}}).warm_pool
    assert same.strategy == AddressTarget(warm=2, minimum=24)
    other = resolved(base, {"warmPool": {"enis": {}}}).warm_pool
    assert other.strategy == EniTarget(warm=1)
    assert other.cooldown == same.cooldown
    back = resolved(
        base, {"warmPool": {"enis": {}}}, {"warmPool": {"addresses": {"surplus": 2}}}
    ).warm_pool
    assert back.strategy == AddressTarget(warm=4, minimum=0, surplus=2)


def test_null_for_a_strategy_leaves_another_in_force() -> None:
    enis = {"warmPool": {"enis": {"warm": 2}}}
    assert resolved(enis, {"warmPool": {"addresses": None}}).warm_pool.strategy == EniTarget(
        warm=2
    )
    assert resolved(enis, {"warmPool": {"enis": None}}).warm_pool.strategy == AddressTarget()


def test_naming_subnets_takes_the_place_of_selecting_them_and_the_reverse() -> None:
    by_tag = resolved({"eni": {"subnets": ["subnet-1"]}}, {"eni": {"subnetTags": {"a": "b"}}}).eni
    assert (by_tag.subnets, dict(by_tag.subnet_tags)) == ((), {"a": "b"})
    by_name = resolved({"eni": {"subnetTags": {"a": "b"}}}, {"eni": {"subnets": ["subnet-1"]}}).eni
    assert (by_name.subnets, by_name.subnet_tags) == (("subnet-1",), ())


def test_a_tag_that_is_called_like_a_strategy_drops_no_other_tag() -> None:
    node = resolved({"eni": {"tags": {"addresses": "x"}}}, {"eni": {"tags": {"enis": "y"}}})
    assert dict(node.eni.tags) == {"addresses": "x", "enis": "y"}


def test_overrides_that_contradict_each_other_are_refused_on_the_node_where_they_meet() -> None:
    body = dump(NodeNetwork.model_validate(HEAD | {"maxPods": 5})).replace(
        "overrides: []",
        "overrides:\n"
        "- {match: {zone: us-*}, set: {eni: {max: 1}}}\n"
        "- {match: {zone: eu-*}, set: {maxPods: 1}}\n"
        "- {match: {nodeName: ip-*}, set: {eni: {usePrimary: false}}}\n",
    )
    document = load(body, "f.yaml")
    assert resolve(document, **NODE | {"node_name": "other"}).eni.max == 1
    with pytest.raises(DocumentError) as caught:
        resolve(document, **NODE)
    assert str(caught.value) == (
        "node ip-10-0-1-10 (m5.large, us-east-1a): eni: usePrimary: false with max 1 leaves no "
        "ENI for pods; raise max or use it; this comes of overrides[0] with overrides[2]"
    )


def test_all_that_is_wrong_on_a_node_is_named_at_once() -> None:
    document = NodeNetwork.model_validate(
        HEAD
        | {
            "overrides": [
                {
                    "match": EVERYWHERE,
                    "set": {"pods": {"mtu": 1500}, "warmPool": {"prefixes": {}}},
                },
                {"match": EVERYWHERE, "set": {"eni": {"mtu": 1400}}},
            ]
        }
    )
    with pytest.raises(DocumentError) as caught:
        resolve(document, **NODE)
    assert [p.message.split(": ")[0] for p in caught.value.problems] == [
        "pods.mtu",
        "warmPool.prefixes",
    ]


def test_alternatives_are_keys_that_the_document_has() -> None:
    for path, keys in ALTERNATIVES.items():
        (section,) = path
        fields = NodeNetwork.model_fields
        (part,) = [f.default for f in fields.values() if f.alias == section]
        assert set(keys) <= {f.alias for f in type(part).model_fields.values()}


@given(patches(), patches())
def test_merging_changes_neither_side_and_twice_is_once(
    base: dict[str, Any], changes: dict[str, Any]
) -> None:
    before = repr((base, changes))
    once = merge(base, changes)
    assert merge(once, changes) == once
    assert repr((base, changes)) == before


@given(documents())
def test_a_resolved_document_has_no_overrides_and_resolves_to_itself(
    document: NodeNetwork,
) -> None:
    try:
        node = resolve(document, **NODE)
    except DocumentError:
        assume(False)
    assert node.overrides == ()
    assert resolve(node, **NODE) == node
    assert load(dump(node), "f.yaml") == node


@given(documents())
def test_where_no_override_matches_the_document_is_as_it_stands(document: NodeNetwork) -> None:
    elsewhere = {"instance_type": "t4g.nano", "zone": "eu-west-1c", "node_name": "nobody"}
    assume(not any(matches(o.match, **elsewhere) for o in document.overrides))
    assert resolve(document, **elsewhere) == document.model_copy(update={"overrides": ()})


@given(documents())
def test_every_override_that_was_loaded_resolves_on_its_own(document: NodeNetwork) -> None:
    for override in document.overrides:
        everywhere = override.model_copy(update={"match": Match(zone="*")})
        alone = document.model_copy(update={"overrides": (everywhere,)})
        assert load(dump(alone), "f.yaml") == alone
        resolve(alone, **NODE)


@given(documents(overrides=False), patches())
def test_an_override_is_accepted_at_load_exactly_if_it_can_be_resolved(
    document: NodeNetwork, changes: dict[str, Any]
) -> None:
    tree = document.model_dump(mode="json")
    tree["overrides"] = [{"match": EVERYWHERE, "set": changes}]
    whole = NodeNetwork.model_validate(tree)
    try:
        resolve(whole, **NODE)
    except DocumentError:
        with pytest.raises(DocumentError):
            load(dump(whole), "f.yaml")
    else:
        assert load(dump(whole), "f.yaml") == whole


def test_a_document_whose_overrides_are_for_other_nodes_is_not_validated_again() -> None:
    """10,000 CIDRs would take a tenth of a second in the loop that serves pods, and be copied."""
    other = {"match": {"zone": "elsewhere"}, "set": {"eni": {"mtu": 1400}}}
    given = NodeNetwork.model_validate(
        HEAD | {"snat": {"excludeCIDRs": ["172.16.0.0/16"]}, "overrides": [other]}
    )
    found = resolve(given, **NODE)
    assert found == given.model_copy(update={"overrides": ()})
    assert found.snat is given.snat
