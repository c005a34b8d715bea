"""Each contradiction by itself is named; a healthy node has none."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from builders import SUBNET, attachment, eni, intent

from reconciler.core.attachment import Cooling, IntentState
from reconciler.diagnostics.audit import CREATION_S, contradictions
from reconciler.ipam.cloud import Cloud, Limits, Unread
from reconciler.ipam.ec2_action import Creation
from reconciler.ipam.leak import GRACE_S
from reconciler.ipam.records import Records
from reconciler.ipam.release import Quarantine

NOW = 10_000.0
HEALTHY = Records(
    intents=(intent(1), intent(2)),
    attachments=(attachment(1), attachment(2)),
    cooling=(Cooling(ip_address("10.0.1.99"), NOW + 9),),
    quarantined=(Quarantine(ip_network("10.0.1.240/28"), NOW),),
)
CREATION = Creation("t", 2, "subnet-a", ("sg-1",), 3, 0, (), NOW)
CLOUD = Cloud((eni(0), eni(1)), Limits(3, 10), {})
(FIRST,) = attachment(1).addresses

RECORDS = {
    "AssignedTwice": replace(
        HEALTHY,
        intents=(*HEALTHY.intents, intent(3)),
        attachments=(*HEALTHY.attachments, attachment(3, addresses=(FIRST,))),
    ),
    "AssignedAndCooling": replace(HEALTHY, cooling=(Cooling(FIRST, NOW + 9),)),
    "AssignedAndQuarantined": replace(
        HEALTHY, quarantined=(Quarantine(ip_network(f"{FIRST}/32"), NOW),)
    ),
    "NotServed": replace(HEALTHY, intents=(*HEALTHY.intents, intent(3))),
    "NotForgotten": replace(HEALTHY, intents=(*HEALTHY.intents, intent(3, IntentState.RELEASED))),
    "WantedByNobody": replace(
        HEALTHY, attachments=(*HEALTHY.attachments, attachment(3, netns_alive=False))
    ),
    "NeverFinished": replace(HEALTHY, creations=(replace(CREATION, at=NOW - CREATION_S - 1),)),
    "RecordLost": replace(HEALTHY, unwritten=frozenset({("attachment", attachment(1).key)})),
    "AddressLost": replace(
        HEALTHY, attachments=(attachment(1), attachment(2, addresses=(SUBNET[200],)))
    ),
}
OLD = NOW - GRACE_S - 1
LOST = eni(None, eni_id="eni-lost", created_at=OLD, creation="t")
CLOUDS = {
    "Leaked": replace(CLOUD, enis=(*CLOUD.enis, LOST)),
    "LimitExceeded": replace(CLOUD, limits=Limits(1, 10)),
    "AddressElsewhere": replace(
        CLOUD, enis=(eni(0, 0), replace(eni(1, 0), secondaries=eni(0).secondaries))
    ),
}


def reasons(records: Records, cloud: Cloud | None) -> set[str]:
    return {f.reason for f in contradictions(records, cloud, NOW)}


def test_a_healthy_node_has_none() -> None:
    assert contradictions(HEALTHY, CLOUD, NOW) == ()


@pytest.mark.parametrize("reason", RECORDS)
def test_records_that_contradict_are_named(reason: str) -> None:
    assert reasons(RECORDS[reason], CLOUD) == {reason}


@pytest.mark.parametrize("reason", CLOUDS)
def test_enis_that_contradict_are_named(reason: str) -> None:
    assert reasons(HEALTHY, CLOUDS[reason]) == {reason}


def test_an_eni_with_more_addresses_than_its_type_takes_is_named() -> None:
    (found,) = contradictions(HEALTHY, replace(CLOUD, limits=Limits(3, 9), enis=(eni(0),)), NOW)
    assert (found.subject, found.message[:17]) == ("ENI eni-0", "10 addresses of 9")


@pytest.mark.parametrize(
    ("records", "cloud"),
    [
        # What is being done disagrees with nothing.
        (replace(HEALTHY, creations=(CREATION,)), CLOUDS["Leaked"]),
        (HEALTHY, replace(CLOUD, enis=(*CLOUD.enis, replace(LOST, created_at=NOW - 1)))),
        (HEALTHY, replace(CLOUD, enis=(*CLOUD.enis, replace(LOST, owned=False)))),
        (replace(HEALTHY, intents=(*HEALTHY.intents, intent(3, netns_alive=False))), CLOUD),
        (
            replace(
                HEALTHY,
                intents=(intent(1, IntentState.RELEASED), intent(2)),
                cooling=(Cooling(FIRST, NOW + 9),),
            ),
            CLOUD,
        ),
        (RECORDS["AddressLost"], None),
        # Rebuilt from the kernel while no ENI was known to hold its address.
        (replace(HEALTHY, attachments=(attachment(1), attachment(2, eni_id=""))), CLOUD),
    ],
    ids=["recorded", "fresh", "another's", "dead", "released", "without EC2", "rebuilt"],
)
def test_what_is_on_its_way_is_none(records: Records, cloud: Cloud | None) -> None:
    assert contradictions(records, cloud, NOW) == ()


@pytest.mark.parametrize("name", ["eni-0", ""], ids=["by-id", "not-even-an-id"])
def test_a_pod_of_an_eni_that_cannot_be_read_is_not_said_to_be_lost(name: str) -> None:
    cloud = replace(CLOUD, enis=(eni(1),), unread=(Unread("eni", name, "test"),))
    assert {f.reason for f in contradictions(HEALTHY, cloud, NOW)} == {"AddressUnknown"}
    gone = replace(cloud, unread=())
    assert {f.reason for f in contradictions(HEALTHY, gone, NOW)} == {"AddressLost"}
