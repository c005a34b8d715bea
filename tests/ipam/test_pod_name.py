"""Whose it is that a text is about."""

from __future__ import annotations

import pytest
from builders import attachment, intent
from hypothesis import given
from hypothesis import strategies as st

from reconciler.errors import Issue
from reconciler.ipam.pod_name import MOST_PODS, PodNames
from reconciler.ipam.records import Records

WEB = attachment(1, pod="team/web")
DB = attachment(2, pod="team/db")
RECORDS = Records(
    intents=(intent(3, pod="team/job"), intent(4)), attachments=(WEB, DB, attachment(5))
)
NAMES = PodNames.of(RECORDS)


@pytest.mark.parametrize(
    "subject",
    [
        f"ip link add {WEB.veth} type veth",
        f"nsenter --net={WEB.netns} ip link set eth0 up",
        f"ip rule add from {WEB.addresses[0]} lookup 101",
        f"ip route add {WEB.addresses[0]}/32 dev {WEB.veth}",
        f"nft add element inet node_network pods {{ {WEB.addresses[0]} : accept }}",
        f"attachment {WEB.key}",
        f"attachments/{WEB.key.container_id}:eth0.json",
        f"namespace {WEB.netns}@{17}",
    ],
)
def test_a_subject_that_calls_a_pod_by_anything_else_gets_its_name(subject: str) -> None:
    named = NAMES.complete(Issue(subject, "EEXIST", f"{subject}: it is there"))
    assert named.subject == f"{subject} (pod team/web)"
    assert named.message == f"{subject}: it is there", "a command in it can still be typed"


def test_an_intent_has_the_name_that_the_runtime_gave() -> None:
    named = NAMES.complete(Issue(f"intent {intent(3).key}", "NetnsGone", "x"))
    assert named.subject.endswith("(pod team/job)")


def test_another_pod_in_a_message_is_named_where_it_is_mentioned() -> None:
    issue = Issue(f"intent {WEB.key} of pod team/web", "NetnsTaken", f"it has {DB.key}, {DB.key}.")
    named = NAMES.complete(issue)
    assert named.subject == issue.subject
    assert named.message == f"it has {DB.key} (pod team/db), {DB.key}."


@pytest.mark.parametrize(
    "text", ["pod team/web: link", "node", f"attachment {attachment(5).key}", "", "10.9.9.9", "/"]
)
def test_what_is_named_already_or_of_no_pod_stays_as_it_is(text: str) -> None:
    issue = Issue(text, "Reason", text)
    assert NAMES.complete(issue) is issue


def test_what_is_about_all_pods_names_a_few() -> None:
    many = tuple(attachment(n, pod=f"team/p{n}") for n in range(9))
    text = " ".join(a.veth for a in many)
    named = PodNames.of(Records(attachments=many)).complete(Issue(text, "EPERM", "no"))
    assert named.subject.count("team/p") == MOST_PODS


@given(st.text(), st.text())
def test_no_text_is_too_much(subject: str, message: str) -> None:
    named = NAMES.complete(Issue(subject, "Reason", message))
    assert named.subject.startswith(subject)
