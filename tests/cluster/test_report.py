"""What the Node should say, and what makes it so: pure."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from cluster.api_server import NODE, Objects
from hypothesis import given
from hypothesis import strategies as st

from reconciler.cluster import report
from reconciler.cluster.report import NodeCondition, NodeSeen, Reading
from reconciler.errors import Issue

KEY = "node-network/agent-not-ready"
EXHAUSTED = ("attachment", Issue("intent c1/eth0", "AddressesExhausted", "no address is free"))
DENIED = ("eni", Issue("assign", "UnauthorizedOperation", "EC2 denies it"))
FOREIGN = ("foreign", Issue("chain FORWARD", "ForwardingDropped", "its policy is drop"))
WELL = Reading(has_converged=True, in_use=27, held=29)


def test_a_node_that_is_well_says_its_numbers() -> None:
    wanted = NodeCondition("True", "PodsServed", "27 of 29 addresses in use")
    assert report.describe(WELL) == wanted


def test_the_most_important_condition_gives_the_reason_and_pods_that_wait_are_counted() -> None:
    reading = replace(WELL, troubles=(FOREIGN, EXHAUSTED, DENIED), waiting=2)
    condition = report.describe(reading)
    assert condition.reason == "UnauthorizedOperation"
    assert condition.message == (
        "27 of 29 addresses in use, 2 pods wait; assign: EC2 denies it, and 2 more"
    )


def test_pods_that_wait_for_long_make_it_false_and_while_the_pool_grows_they_do_not() -> None:
    waits = replace(WELL, troubles=(EXHAUSTED,), waiting=1, waiting_s=1.0)
    assert report.describe(waits).status == "True"
    waits = replace(waits, waiting_s=report.PATIENCE_S)
    told = report.describe(waits)
    assert (told.status, told.reason) == ("False", "AddressesExhausted")
    told = report.describe(replace(waits, troubles=()))
    assert (told.status, told.reason) == ("False", "PodsWait")


def test_it_is_unknown_until_a_pass_has_succeeded_and_false_once_one_has_failed() -> None:
    obstacle = Issue("node", "NotAvailable", "no ENI is known yet")
    assert report.describe(Reading(obstacle=obstacle)).status == "Unknown"
    assert report.describe(Reading()).status == "Unknown"
    told = report.describe(Reading((DENIED,), obstacle))
    assert (told.status, told.reason) == ("False", "UnauthorizedOperation")
    told = report.describe(replace(WELL, obstacle=obstacle))
    assert (told.status, told.reason) == ("False", "NotAvailable")


def test_what_hinders_the_telling_and_what_pods_do_in_their_own_is_not_told() -> None:
    own = tuple((domain, Issue("x", "Y", "z")) for domain in ("cluster", "pods"))
    assert report.describe(replace(WELL, troubles=own)) == report.describe(WELL)


def test_texts_are_bounded_and_can_be_printed() -> None:
    hostile = ("eni", Issue("x\n" * 1000, "errno 5 \x1b", "y\0" * 10_000))
    told = report.describe(replace(WELL, troubles=(hostile,)))
    assert told.message.isprintable()
    assert len(told.message) <= report.MOST_TEXT
    assert told.reason == "errno5"


TOLD = NodeSeen("u-1", report.describe(WELL), "t", "t")


@pytest.mark.parametrize(
    ("changes", "age_s", "is_due"),
    [
        ({}, 0.0, False),
        ({}, report.HEARTBEAT_S - 1, False),
        ({}, report.HEARTBEAT_S, True),
        ({}, -report.HEARTBEAT_S, True),  # a clock that was ahead
        ({"in_use": 28}, 10.0, False),
        ({"in_use": 28}, report.NUMBERS_S, True),
        ({"troubles": (DENIED,)}, 10.0, False),  # the reason alone
        ({"troubles": (DENIED,)}, report.NUMBERS_S, True),
        ({"waiting_s": report.PATIENCE_S}, 0.0, True),
    ],
)
def test_it_is_told_on_a_change_and_as_a_heartbeat(
    changes: dict[str, Any], age_s: float, is_due: bool
) -> None:
    wanted = report.describe(replace(WELL, **changes))
    assert report.is_due(wanted, TOLD, age_s) is is_due


def test_the_status_keeps_its_time_until_it_changes_and_other_conditions_stay() -> None:
    objects, wanted = Objects(), report.describe(WELL)

    def do(wanted: NodeCondition, now: str) -> dict[str, Any]:
        seen = report.read_node(objects.node, None)
        request = report.tell("node-1", wanted, seen, now)
        path = "/" + "/".join(request.path)
        objects.answer(request.method, path, "", json.loads(request.body))
        return objects.condition

    assert do(wanted, "2026-01-01T00:00:00Z")["status"] == "True"
    later = do(replace(wanted, message="other"), "2026-01-01T00:05:00Z")
    assert later["lastTransitionTime"] == "2026-01-01T00:00:00Z"
    assert later["lastHeartbeatTime"] == "2026-01-01T00:05:00Z"
    changed = do(replace(wanted, status="False"), "2026-01-01T00:06:00Z")
    assert changed["lastTransitionTime"] == "2026-01-01T00:06:00Z"
    assert [c["type"] for c in objects.node["status"]["conditions"]] == ["Ready", report.TYPE]


def test_only_the_start_up_taint_is_removed_and_only_where_it_still_is() -> None:
    objects = Objects()
    ours = [{"key": KEY, "effect": e} for e in ("NoSchedule", "NoExecute")]
    other = {"key": "other", "effect": "NoSchedule"}
    objects.node["spec"]["taints"] = [ours[0], other, ours[1]]
    request = report.untaint("node-1", report.read_node(objects.node, KEY))
    objects.node["spec"]["taints"] = [other, *ours]  # somebody was faster
    path = "/" + "/".join(request.path)
    assert objects.answer(request.method, path, "", json.loads(request.body))[0] == 422
    assert objects.node["spec"]["taints"] == [other, *ours]
    request = report.untaint("node-1", report.read_node(objects.node, KEY))
    objects.answer(request.method, path, "", json.loads(request.body))
    assert objects.node["spec"]["taints"] == [other]
    assert report.read_node(objects.node, None).taints == ()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["type", "key", "uid", "taints"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.fixed_dictionaries({k: values | st.just(v) for k, v in NODE.items()}))
def test_whatever_is_answered_is_read_or_refused(body: dict[str, Any]) -> None:
    try:
        seen = report.read_node(body, KEY)
    except ValueError:
        return
    json.loads(report.untaint("n", seen).body)
    json.loads(report.tell("n", report.describe(WELL), seen, "t").body)
