"""What EC2 (the lab's, over HTTP) says of rights: nothing is changed by asking."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from builders import document
from targets.test_ec2_contract import World, over_http

from reconciler.diagnostics.rights import Question, questions
from reconciler.targets.ec2.caller import Ec2CallError, InProcess
from reconciler.targets.ec2.calls import Calls
from reconciler.targets.ec2.rights import MetadataOptions, Right, Rights

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture
def world(ec2: Any) -> World:
    made = over_http(ec2)
    made.reach(12)
    return made


def ask(world: World, rights: Rights) -> dict[str, Right]:
    facts, enis = world.now.node, world.target.told().enis
    asked = [q for q in questions(document(), facts, enis) if isinstance(q, Question)]
    return {r.action: r for r in rights.ask(asked)}


def http() -> Rights:
    return Rights(Calls(InProcess("us-east-1"), lambda: 0.0))


def test_what_the_policy_allows_is_allowed_and_nothing_is_done(ec2: Any, world: World) -> None:
    ec2.cloud.faults.set(policy=json.loads((DEPLOY / "iam-policy.json").read_text())["Statement"])
    before = ec2.client.describe_network_interfaces()["NetworkInterfaces"]
    found = ask(world, http())
    assert {a for a, r in found.items() if r.is_allowed is not True} == set()
    assert "DeleteNetworkInterface" in found
    assert ec2.client.describe_network_interfaces()["NetworkInterfaces"] == before


@pytest.mark.parametrize("action", ["CreateNetworkInterface", "DescribeInstanceTypes"])
def test_an_action_that_is_denied_is_the_only_one(ec2: Any, world: World, action: str) -> None:
    ec2.cloud.faults.set(denied=[action])
    found = ask(world, http())
    denied = {a: r for a, r in found.items() if r.is_allowed is False}
    assert list(denied) == [action]
    assert denied[action].why.startswith("UnauthorizedOperation: ")


def test_an_answer_that_is_neither_is_said(ec2: Any, world: World) -> None:
    ec2.cloud.faults.set(throttle={"CreateNetworkInterface": [0, 0]})
    found = ask(world, http())["CreateNetworkInterface"]
    assert found.is_allowed is None
    assert found.why.startswith("RequestLimitExceeded: ")


def test_where_dry_runs_are_not_honoured_no_change_is_asked_about(world: World) -> None:
    asked: list[str] = []

    def naive(action: str, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
        asked.append(action)
        return {}

    found = ask(world, Rights(Calls(naive, lambda: 0.0)))
    assert {a for a in asked if not a.startswith("Describe")} == set()
    assert found["DeleteNetworkInterface"].is_allowed is None
    assert "does not honour DryRun" in found["DeleteNetworkInterface"].why


def test_how_metadata_may_be_asked_is_told_or_why_not(ec2: Any) -> None:
    told = http().metadata_options(ec2.instance_id)
    assert isinstance(told, MetadataOptions)
    ec2.cloud.faults.set(denied=["DescribeInstances"])
    assert str(http().metadata_options(ec2.instance_id)).startswith("UnauthorizedOperation: ")

    def odd(action: str, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
        return {"Reservations": [{"Instances": "none"}]}

    assert (
        Rights(Calls(odd, lambda: 0.0)).metadata_options("i-1") == "EC2's answer does not have it"
    )

    def lost(action: str, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
        raise Ec2CallError(action, "AnswerLost", "gone")

    assert Rights(Calls(lost, lambda: 0.0)).metadata_options("i-1") == "AnswerLost: gone"
