"""When EC2 is observed again."""

from __future__ import annotations

from typing import Any

import pytest
from builders import eni, mac

from reconciler.ipam.cloud import Cloud, arrived
from reconciler.ipam.pace import Left, held_by_mac, is_changing, observe_after_s

RESYNC_S = 1800.0


@pytest.mark.parametrize(
    ("left", "seconds"),
    [
        ({}, RESYNC_S),
        ({"unfinished": True, "times": 1}, 1.0),
        ({"changing": True, "times": 1}, 5.0),
        ({"changing": True, "times": 4}, 40.0),
        ({"changing": True, "times": 100_000}, RESYNC_S),
        ({"behind": True}, 30.0),
        ({"missing": True}, 30.0),
        ({"disagreeing": True}, 300.0),
        ({"short": True}, 300.0),
        ({"waiting": True}, RESYNC_S),
        ({"short": True, "waiting": True}, 60.0),
    ],
    ids=str,
)
def test_a_look_is_due_after_what_the_last_one_has_left_open(
    left: dict[str, Any], seconds: float
) -> None:
    assert observe_after_s(Left(**left), RESYNC_S) == seconds
    assert observe_after_s(Left(**left), 10.0) == min(seconds, 10.0), "ec2Resync is the longest"


def test_an_attachment_is_done_once_its_link_is_there() -> None:
    cloud = Cloud((eni(0, 2), eni(1, 2, status="attaching")), None, {})
    links = {mac(0)}
    assert is_changing(cloud, links)
    assert arrived(cloud, links) is cloud
    here = arrived(cloud, links | {mac(1)})
    assert [e.status for e in here.enis] == ["attached", "attached"]
    assert not is_changing(here, links | {mac(1)})
    assert {m for m, _ in held_by_mac(cloud)} == links
    assert {m for m, _ in held_by_mac(here)} == links | {mac(1)}
