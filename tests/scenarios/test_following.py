"""Secondary ENIs follow the primary's security groups: on a node, by EC2's own answers."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.lab

CALL = "ModifyNetworkInterfaceAttribute"


def test_enis_follow_a_change_of_the_primarys_groups_which_diff_shows_before(idle: Any) -> None:
    """One call for each ENI, and none after that."""
    assert idle.command("node1", "apply", "-f", str(idle.config)).returncode == 0
    primary, *others = idle.lab.enis("node1")
    assert len(others) == 2
    told = {i["NetworkInterfaceId"]: i for i in describe(idle)}
    vpc = told[primary["id"]]["VpcId"]
    made = idle.aws("create_security_group", GroupName="new", Description="new", VpcId=vpc)
    group = made["GroupId"]
    method = "modify_network_interface_attribute"
    idle.aws(method, NetworkInterfaceId=primary["id"], Groups=[group])

    before = calls(idle)
    shown = idle.diff().stdout
    for one in others:
        assert f"--network-interface-id {one['id']} --groups {group}" in shown
    assert calls(idle) == before, "it was only shown"
    assert idle.command("node1", "apply", "-f", str(idle.config)).returncode == 0
    assert calls(idle) - before == len(others)
    assert all([g["GroupId"] for g in i["Groups"]] == [group] for i in describe(idle, others))
    assert idle.diff().returncode == 0
    assert calls(idle) - before == len(others)


def describe(cluster: Any, enis: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    ids = {"NetworkInterfaceIds": [e["id"] for e in enis]} if enis else {}
    found: list[dict[str, Any]] = cluster.aws("describe_network_interfaces", **ids)[
        "NetworkInterfaces"
    ]
    return found


def calls(cluster: Any) -> int:
    return int(cluster.lab.ask("calls")["calls"].get(CALL, 0))
