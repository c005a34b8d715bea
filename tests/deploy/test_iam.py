"""The IAM policies: which calls on which objects they allow.

Evaluated as IAM does for what these policies use (IAM user guide, "Policy evaluation logic" and
"Condition operators"); a call is allowed if each resource that EC2 authorises for it is (service
authorization reference, "Actions, resources, and condition keys for Amazon EC2").
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import pytest
from deploy.programs import DEPLOY

from reconciler.ipam.cloud import INSTANCE_TAG, STOCK_INSTANCE_TAG, STOCK_TAGS

Context = Mapping[str, str | Sequence[str]]

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


def listed(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def holds(operator: str, key: str, wanted: str | Sequence[str], context: Context) -> bool:
    values = context.get(key)
    match operator:
        case "StringEquals":
            return isinstance(values, str) and values in listed(wanted)
        case "StringLike":
            return isinstance(values, str) and any(fnmatchcase(values, w) for w in listed(wanted))
        case "ForAllValues:StringLike":  # true without a value
            each = listed(values or [])
            return all(any(fnmatchcase(v, w) for w in listed(wanted)) for v in each)
        case "Null":
            return (not values) == (wanted == "true")
    raise AssertionError(f"{operator} is not known here")


def allows(statement: dict[str, Any], action: str, resource: str, context: Context) -> bool:
    return (
        statement["Effect"] == "Allow"
        and f"ec2:{action}" in statement["Action"]
        and any(fnmatchcase(resource, r) for r in listed(statement["Resource"]))
        and all(
            holds(operator, key, wanted, context)
            for operator, conditions in statement.get("Condition", {}).items()
            for key, wanted in conditions.items()
        )
    )


def allowed(
    action: str, resources: Mapping[str, Context], files: Sequence[str] = (ALWAYS,)
) -> bool:
    """Whether a call is allowed on all that it names, each with its own context."""
    return all(
        any(allows(s, action, resource, context) for s in statements(*files))
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


def test_a_policy_fits_into_a_managed_policy() -> None:
    """6,144 characters without blanks (IAM quotas)."""
    for file in (ALWAYS, TAKE_OVER):
        assert len("".join((DEPLOY / file).read_text().split())) < 6_144
