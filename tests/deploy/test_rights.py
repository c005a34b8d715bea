"""Each right that the chart's ClusterRole grants is needed.

A daemon tells an API server that grants what the rules say: the Node's condition, the start-up
taint, Events. Then again with one verb on one resource less, and what needs it must be missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from daemon.test_cluster import KEY, Told
from deploy.programs import program

from reconciler.errors import Issue

render = program("render.py")

MADE = {
    m["kind"]: m
    for m in yaml.safe_load_all(
        render.render({"document": {"kubernetes": {"report": True, "startupTaint": KEY}}})
    )
    if m
}
RULES: list[dict[str, Any]] = MADE["ClusterRole"]["rules"]

ALL = {"condition", "no taint", "Event on the Node", "Event on the Pod"}

NEEDED_FOR = {
    "get nodes": {"condition", "no taint", "Event on the Node"},
    "patch nodes/status": {"condition"},
    "patch nodes": {"no taint"},
    "create events": {"Event on the Node", "Event on the Pod"},
}
"""What is missing without each right; docs/cluster.md says so too."""


def rights() -> list[tuple[str, str, str]]:
    """Return each group, verb and resource of the rules."""
    return [
        (group, verb, resource)
        for rule in RULES
        for group in rule["apiGroups"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
    ]


def ruled(granted: list[tuple[str, str, str]]) -> list[dict[str, Any]]:
    return [{"apiGroups": [g], "verbs": [v], "resources": [r]} for g, v, r in granted]


def tell(directory: Path, rules: list[dict[str, Any]]) -> tuple[set[str], str]:
    """Return what a cluster with these rules has been told, and what was said of rights."""
    told = Told(directory)
    told.objects.rules = rules
    told.house.work()
    told.agent.parts.conditions.note("eni", [Issue("assign", "Throttled", "EC2 says wait")])
    told.agent.reporter.refusals.note("team/web", "u-2", Issue("intent", "NoRoom", "it is full"))
    told.wait(90)
    objects = told.objects
    shown = {f"Event on the {event['involvedObject']['kind']}" for event in objects.events}
    shown |= {"condition"} if objects.condition else set()
    shown |= set() if objects.node["spec"]["taints"] else {"no taint"}
    return shown, told.conditions().get("ClusterDenied", "")


def test_with_all_rights_all_is_told(tmp_path: Path) -> None:
    assert tell(tmp_path, RULES) == (ALL, "")


@pytest.mark.parametrize("right", rights(), ids=" ".join)
def test_without_a_right_what_needs_it_is_missing_and_the_right_is_named(
    right: tuple[str, str, str], tmp_path: Path
) -> None:
    group, verb, resource = right
    assert group == "", "the core group"
    shown, denied = tell(tmp_path, ruled([r for r in rights() if r != right]))
    assert shown == ALL - NEEDED_FOR[f"{verb} {resource}"]
    assert f"no right to {verb} {resource}," in denied


def test_the_rights_are_those_of_the_daemonsets_account() -> None:
    (subject,) = MADE["ClusterRoleBinding"]["subjects"]
    pod = MADE["DaemonSet"]["spec"]["template"]["spec"]
    assert MADE["ClusterRoleBinding"]["roleRef"]["name"] == MADE["ClusterRole"]["metadata"]["name"]
    assert subject["kind"] == "ServiceAccount"
    assert subject["name"] == MADE["ServiceAccount"]["metadata"]["name"]
    assert subject["name"] == pod["serviceAccountName"]
