"""Pod groups in the document."""

from __future__ import annotations

from typing import Any

import pytest
from builders import document

from schemas.check import resolve
from schemas.group import group_of
from schemas.load import DocumentError, load

HEAD = "apiVersion: node-network/v1alpha1\nkind: NodeNetwork\n"
NODE = {"instance_type": "m5.large", "zone": "us-east-1a", "node_name": "ip-10-0-1-10"}


def group(name: str, **match: str) -> dict[str, Any]:
    return {"name": name, "match": match}


def test_the_first_group_that_matches_a_pod_is_its_group() -> None:
    found = document(
        podGroups=[
            group("front", namespace="pay-*", pod="front-*"),
            group("pay", namespace="pay-*"),
            group("jobs", pod="job-?"),
        ]
    ).pod_groups
    names = ["pay-eu/front-1", "pay-eu/back", "web/job-1", "web/job-10", "PAY-eu/x", ""]
    assert [group_of(n, found) for n in names] == ["front", "pay", "jobs", "", "", ""]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[{name: pay}]", "podGroups[0].match: missing"),
        ("[{match: {pod: a}}]", "podGroups[0].name: missing"),
        ("[{name: Pay, match: {pod: a}}]", "1 to 63 lower-case letters"),
        ("[{name: a, match: {}}]", "give namespace or pod"),
        (
            "[{name: a, match: {pod: a}}, {name: a, match: {pod: b}}]",
            "podGroups[1].name: a stands twice",
        ),
        (
            "[{name: a, match: {pod: a}, subnets: [subnet-1], subnetTags: {a: b}}]",
            "podGroups[0].subnetTags: subnets names the subnets already",
        ),
        (
            "[{name: a, match: {pod: a}, snat: {mode: external, excludeCIDRs: [10.1.0.0/16]}}]",
            "podGroups[0].snat.excludeCIDRs: has no effect in mode external",
        ),
        (
            '[{name: a, match: {pod: a}, snat: {excludeCIDRs: ["2001:db8::/32"]}}]',
            "podGroups[0].snat.excludeCIDRs[0]: 2001:db8::/32 is IPv6",
        ),
        ("[{name: a, match: {pod: a}, snat: {ports: random}}]", "ports: unknown key"),
        ("[{name: a, match: {pod: a}}]\neni: {max: 1}", "eni.max 1 leaves no ENI for them"),
        (f"[{', '.join(f'{{name: g{n}, match: {{pod: a}}}}' for n in range(17))}]", "16"),
    ],
)
def test_what_is_wrong_with_a_group_is_named_there(text: str, said: str) -> None:
    with pytest.raises(DocumentError) as refused:
        load(f"{HEAD}podGroups: {text}\n", "f.yaml")
    assert said in str(refused.value)


def test_an_override_replaces_all_groups() -> None:
    changed = document(
        podGroups=[group("a", pod="a")],
        overrides=[{"match": {"zone": "*a"}, "set": {"podGroups": [group("b", pod="b")]}}],
    )
    assert [g.name for g in resolve(changed, **NODE).pod_groups] == ["b"]
