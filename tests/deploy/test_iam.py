"""The IAM policies: which calls on which objects they allow.

That each action is needed is seen in test_iam_actions.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from builders import document
from deploy.programs import DEPLOY

from deploy.iam_policy import policy
from lab.ec2.policy import Ask, Context, is_allowed
from reconciler.ipam.cloud import INSTANCE_TAG, STOCK_INSTANCE_TAG, STOCK_TAGS

ENI, INSTANCE, SUBNET, GROUP = (
    f"arn:aws:ec2:eu-central-1:123456789012:{what}"
    for what in (
        "network-interface/eni-1",
        "instance/i-1",
        "subnet/subnet-1",
        "security-group/sg-1",
    )
)
OURS = {f"ec2:ResourceTag/{INSTANCE_TAG}": "i-1"}
THE_STOCK_PLUGINS = {f"ec2:ResourceTag/{STOCK_INSTANCE_TAG}": "i-1"}

ALWAYS = "iam-policy.json"
TAKE_OVER = "iam-policy-take-over.json"


def statements(*files: str) -> list[dict[str, Any]]:
    return [s for f in files for s in json.loads((DEPLOY / f).read_text())["Statement"]]


def allowed(
    action: str, resources: Mapping[str, Context], files: Sequence[str] = (ALWAYS,)
) -> bool:
    """Whether a call is allowed on all that it names, each with its own context."""
    return all(
        is_allowed(statements(*files), Ask(action, resource, context))
        for resource, context in resources.items()
    )


@pytest.mark.parametrize(
    ("action", "others"),
    [
        ("DeleteNetworkInterface", {}),
        ("DetachNetworkInterface", {INSTANCE: {}}),
        ("AttachNetworkInterface", {INSTANCE: {}}),
        ("ModifyNetworkInterfaceAttribute", {INSTANCE: {}}),
        ("ModifyNetworkInterfaceAttribute", {GROUP: {}}),
    ],
)
def test_only_what_has_our_tag_is_changed(action: str, others: dict[str, Context]) -> None:
    assert allowed(action, {ENI: OURS, **others})
    for foreign in ({}, THE_STOCK_PLUGINS, {f"ec2:ResourceTag/{INSTANCE_TAG}": ""}):
        assert not allowed(action, {ENI: foreign, **others})
        assert not allowed(action, {ENI: foreign, **others}, (ALWAYS, TAKE_OVER))


def test_an_eni_is_created_with_our_tag_only() -> None:
    where: dict[str, Context] = {SUBNET: {}, GROUP: {}}
    tagged = {f"aws:RequestTag/{INSTANCE_TAG}": "i-1"}
    assert allowed("CreateNetworkInterface", {ENI: tagged, **where})
    assert not allowed("CreateNetworkInterface", {ENI: {}, **where})


def test_tags_are_given_to_what_is_being_created_and_taken_from_nothing() -> None:
    assert allowed("CreateTags", {ENI: {"ec2:CreateAction": "CreateNetworkInterface"}})
    assert not allowed("CreateTags", {ENI: {}})
    assert not allowed("CreateTags", {ENI: OURS})
    assert not allowed("CreateTags", {INSTANCE: {"ec2:CreateAction": "CreateNetworkInterface"}})
    assert not allowed("DeleteTags", {ENI: OURS})


def test_a_take_over_tags_what_has_the_stock_plugins_tag_and_removes_those_tags() -> None:
    both = (ALWAYS, TAKE_OVER)
    assert allowed("CreateTags", {ENI: THE_STOCK_PLUGINS}, both)
    assert not allowed("CreateTags", {ENI: {}}, both)
    adopted = {**OURS, **THE_STOCK_PLUGINS}
    keys = [STOCK_INSTANCE_TAG, *(k for k in STOCK_TAGS if not k.endswith("/"))]
    assert allowed("DeleteTags", {ENI: {**adopted, "aws:TagKeys": keys}}, both)
    # Not yet tagged as ours; a tag of others; no key named, which removes all of them.
    assert not allowed("DeleteTags", {ENI: {**THE_STOCK_PLUGINS, "aws:TagKeys": keys}}, both)
    more = {**adopted, "aws:TagKeys": [*keys, "Name"]}
    assert not allowed("DeleteTags", {ENI: more}, both)
    assert not allowed("DeleteTags", {ENI: adopted}, both)


def test_addresses_of_the_primary_are_ours_too() -> None:
    for action in (
        "AssignPrivateIpAddresses",
        "UnassignPrivateIpAddresses",
        "AssignIpv6Addresses",
    ):
        assert allowed(action, {ENI: {}})


@pytest.mark.parametrize(
    ("more", "actions"),
    [
        ({}, set()),
        (
            {
                "podGroups": [
                    {"name": "a", "match": {"pod": "a"}, "snat": {"excludeCIDRs": ["@peering"]}}
                ]
            },
            {"DescribeVpcPeeringConnections"},
        ),
        ({"snat": {"excludeCIDRs": ["@peering"]}}, {"DescribeVpcPeeringConnections"}),
        ({"eni": {"allocate": "prefixes"}}, {"GetSubnetCidrReservations"}),
        (
            {"overrides": [{"match": {"zone": "a"}, "set": {"eni": {"allocate": "prefixes"}}}]},
            {"GetSubnetCidrReservations"},
        ),
        (
            {"snat": {"rules": [{"namespace": "a", "to": ["@peering"], "as": "dedicated"}]}},
            {"DescribeVpcPeeringConnections"},
        ),
        (
            {"snat": {"onlyCIDRs": ["10.0.0.0/8", "@onprem"]}},
            {
                "DescribeRouteTables",
                "DescribeManagedPrefixLists",
                "GetManagedPrefixListEntries",
            },
        ),
        (
            {
                "overrides": [
                    {"match": {"zone": "a"}, "set": {"snat": {"excludeCIDRs": ["pl-0a1b2c3d"]}}}
                ]
            },
            {"DescribeManagedPrefixLists", "GetManagedPrefixListEntries"},
        ),
    ],
)
def test_a_document_gets_the_actions_that_its_sources_need_and_no_others(
    more: dict[str, Any], actions: set[str]
) -> None:
    def granted(policy: dict[str, Any]) -> set[str]:
        return {a for s in policy["Statement"] for a in s["Action"]}

    base = granted({"Statement": statements(ALWAYS)})
    made = policy(document(**more))
    assert granted(made) - base == {f"ec2:{a}" for a in actions}
    assert len(json.dumps(made, separators=(",", ":"))) < 6_144


def test_a_policy_fits_into_a_managed_policy() -> None:
    """6,144 characters without blanks (IAM quotas)."""
    for file in (ALWAYS, TAKE_OVER):
        assert len("".join((DEPLOY / file).read_text().split())) < 6_144
