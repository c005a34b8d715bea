"""One reason is one word: CNI error, condition, metric, Node, command and page say the same.

======================  =================  ================  ================  ===================
reason                  CNI error          condition         metric label      browser's page
======================  =================  ================  ================  ===================
subnet full, ENI limit  AddressesExhausted its own           conditions'       conditions
throttled, denied       names it           its own           conditions'       conditions
cooling, quarantined    counted in it      counted in it     addresses' state  pool by state
daemon starting         its own            the Node's        requests' result  head: no pod starts
document refused        none: pods are     its own           conditions'       conditions, document
                        served by the
                        last good one
======================  =================  ================  ================  ===================

``explain condition`` and the reference page know each. What the browser draws of the status is
seen in ``scenarios/test_page.py``.
"""

from __future__ import annotations

import re
import threading
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from builders import SUBNET, attachment, document, eni, inputs, intent, key
from daemon.test_document import BAD, GOOD, Node

from cni import protocol
from reconciler.cli.explain_condition import explained
from reconciler.cli.screen import PIPE, Screen
from reconciler.cluster import report
from reconciler.core.attachment import Cooling
from reconciler.daemon import gauges, overview, status, telemetry
from reconciler.daemon.duty import Conditions
from reconciler.daemon.requests import Requests
from reconciler.daemon.server import refuse_for
from reconciler.daemon.telemetry import exposition
from reconciler.daemon.triggers import Triggers
from reconciler.diagnostics.reasons import catalogue
from reconciler.domains import attachment_issues
from reconciler.domains import eni as pool
from reconciler.engine.converge import Outcome
from reconciler.errors import Issue
from reconciler.ipam.allocation import Supply
from reconciler.ipam.budget import CallBackoffs
from reconciler.ipam.cloud import Cloud, Limits, Subnet
from reconciler.ipam.pool_status import Ec2Inputs
from reconciler.ipam.records import Records
from reconciler.ipam.release import Quarantine
from reconciler.node.pass_result import PassResult

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reference/conditions.md").read_text()
BROWSER = (ROOT / "reconciler/daemon/page.html").read_text()
NOW = datetime(2026, 1, 1, tzinfo=UTC)

HELD = Records(
    attachments=(attachment(1),),
    cooling=(Cooling(ip_address("10.0.1.13"), 99.0),),
    quarantined=(Quarantine(ip_network("10.0.1.11/32"), 1.0),),
)
"""A node whose ENI has three addresses, none of them free."""

FULL = Cloud(
    (eni(0, 3),), Limits(3, 10), {"subnet-a": Subnet("subnet-a", "us-east-1a", SUBNET, 0)}
)


def refused(code: str) -> tuple[Issue, ...]:
    """What the pool says after a call has failed."""
    backoffs = CallBackoffs().after_failure(
        "CreateNetworkInterface", code, "no", now=0.0, chance=1.0
    )
    roomy = {"subnet-a": Subnet("subnet-a", "us-east-1a", SUBNET, 200, 12)}
    cloud = Cloud((eni(0, 9),), Limits(3, 10), roomy)
    return planned(cloud, ec2=Ec2Inputs(backoffs=backoffs, nonce="n"))


def planned(cloud: Cloud = FULL, **fields: Any) -> tuple[Issue, ...]:
    """What the pool says of a node that needs eighteen addresses."""
    wanted = document(warmPool={"addresses": {"warm": 0, "minimum": 18}})
    desired = pool.desire(inputs(1, document=wanted, **fields))
    return pool.plan(desired, cloud).refusals


POOL = {
    "SubnetExhausted": planned(),
    "PoolLimitReached": planned(Cloud((eni(0, 3),), Limits(1, 4), {})),
    "RequestLimitExceeded": refused("RequestLimitExceeded"),
    "UnauthorizedOperation": refused("UnauthorizedOperation"),
}
"""Why the pool does not grow: subnet full, ENI limit, throttled, denied."""


def is_drawn(conditions: Conditions, word: str) -> bool:
    """Whether the browser's page has a word: it draws conditions' reasons out of the status."""
    told = overview.describe_conditions(conditions.all(), NOW.timestamp())
    return "c => [c.reason," in BROWSER and word in {c["reason"] for c in told}


def is_everywhere(word: str) -> None:
    """Whether the command and the page have a word, and the latter in one title."""
    rows = list(explained(word, (), NOW))
    assert rows[0][1].split(":")[0] == word
    assert PAGE.count(f"\n### {word}\n") == 1


@pytest.mark.parametrize("word", POOL)
def test_what_keeps_the_pool_from_growing_is_the_same_word_everywhere(word: str) -> None:
    conditions = Conditions()
    conditions.note("eni", POOL[word])
    assert word in {c["reason"] for c in conditions.all()}
    assert f'reason="{word}"' in exposition()
    assert is_drawn(conditions, word)
    # A pod that waits is told of it.
    waits = attachment_issues.exhausted(intent(2), Supply(FULL.enis), HELD)
    requests = Requests(Triggers(), conditions, threading.Event())
    outcomes = {"attachment": Outcome(observed=HELD)}
    requests.publish(PassResult(outcomes, 0.0, HELD, inputs(), waiting={key(2): waits}), 0.0)
    told = requests.await_attachment(key(2), 0.0)
    assert isinstance(told, Issue)
    assert f"the pool cannot grow: {word}: " in str(refuse_for(told)["msg"])
    # And the cluster, if pods wait for long.
    reading = report.Reading(conditions.issues(), has_converged=True, waiting_s=60.0)
    assert word in {i.reason for i in reading.told}
    is_everywhere(word)


@pytest.mark.parametrize("word", ["cooling", "quarantined"])
def test_what_an_address_is_instead_of_free_is_the_same_word_everywhere(word: str) -> None:
    waits = attachment_issues.exhausted(intent(2), Supply(FULL.enis), HELD)
    assert f"1 {word}" in str(refuse_for(waits)["msg"])
    conditions = Conditions()
    conditions.note("attachment", [waits])
    assert f"1 {word}" in " ".join(conditions.texts("attachment"))
    assert is_drawn(conditions, waits.reason)
    assert "Object.entries(status.pool)" in BROWSER
    counted = status.count_addresses(HELD, FULL, ())
    assert counted[word] == 1
    read = {gauges.ADDRESSES: gauges.count_addresses(HELD, FULL, inputs())}
    assert re.search(rf'node_network_addresses{{.*state="{word}".*}} 1.0', exposition(read))
    is_everywhere(word)
    is_everywhere(waits.reason)


def test_a_reconciler_that_starts_says_so_in_the_same_word_everywhere() -> None:
    def nothing(_: str) -> list[str]:
        return []

    obstacle = status.find_obstacle(status.Progress(), None, nothing, 0.0)
    assert obstacle is not None
    answer = refuse_for(obstacle, protocol.NOT_AVAILABLE)
    assert (answer["code"], answer["reason"]) == (protocol.NOT_AVAILABLE, "Starting")
    requests = Requests(Triggers(), Conditions(), threading.Event())
    told = requests.await_attachment(key(1), 0.0)
    assert isinstance(told, Issue)
    assert str(refuse_for(told)["msg"]).startswith("Starting: ")
    assert refuse_for(told)["code"] == protocol.TRY_AGAIN
    assert report.describe(report.Reading(obstacle=obstacle)).reason == "Starting"
    telemetry.count_request("add", str(refuse_for(told)["reason"]), 0.1)
    assert 'result="Starting",verb="add"' in exposition()
    assert "${stop.reason}: ${stop.message}" in BROWSER
    is_everywhere("Starting")
    is_everywhere(protocol.NOT_RUNNING)
    # What is known to be in the way is no start any more.
    failing = status.find_obstacle(status.Progress(), None, lambda _: ["Denied: no"], 0.0)
    assert failing == Issue("node", "NotAvailable", "Denied: no; Denied: no")


def test_a_document_that_is_refused_is_the_same_word_everywhere(tmp_path: Path) -> None:
    """No ADD is refused for it: pods are served by the last good one."""
    node = Node(tmp_path)
    node.boot(GOOD)
    node.edit(BAD)
    assert list(node.told()) == ["DocumentRefused"]
    assert 'domain="document",reason="DocumentRefused"' in exposition()
    assert is_drawn(node.conditions, "DocumentRefused")
    reading = report.Reading(node.conditions.issues(), has_converged=True)
    assert report.describe(reading).reason == "DocumentRefused"
    is_everywhere("DocumentRefused")


def test_every_entry_is_whole_and_on_one_line() -> None:
    for reason, entry in catalogue.BY_REASON.items():
        for heading, text in entry.parts:
            assert text.endswith("."), (reason, heading)
            assert "\n" not in text
            assert "  " not in text
        assert not entry.title.endswith(".")


def test_words_that_are_no_reason_are_answered_with_what_was_meant() -> None:
    assert catalogue.find("Nonsense") is None
    assert catalogue.alike("AddresExhausted")[0] == "AddressesExhausted"
    assert catalogue.find("subnetexhausted") is catalogue.BY_REASON["SubnetExhausted"]
    assert catalogue.find("ENOSPC") is catalogue.find("errno 5")
    assert catalogue.find("InvalidSubnetID.NotFound") is catalogue.find("InvalidGroup.InUse")
    assert catalogue.find("x" * 10_000) is None


def test_a_condition_that_holds_is_shown_with_its_age_and_words_of_others_are_explained() -> None:
    since = "2025-12-31T22:57:55+00:00"
    body = {"reason": "SubnetExhausted", "subject": "subnet a", "text": "none", "since": since}
    rows = list(explained("subnetexhausted", [body] * 9, NOW))
    assert rows[-2] == ("now", f"subnet a: none (since {since}, 1 h 2 min ago)")
    assert rows[-1] == ("now", "and 1 more of this reason")
    other = body | {"reason": "SomethingNew", "since": "?"}
    assert list(explained("SomethingNew", (), NOW)) == []
    rows = list(explained("SomethingNew", [other], NOW))
    assert rows[0] == ("reason", "SomethingNew: EC2 has refused a call")
    assert rows[-1][1].endswith("an unknown time ago)")


NARROW = """\
reason    cooling: The address waits after its pod
means     Its pod has ended. It is given to another one when
          warmPool.cooldown is over and conntrack has no
          entry of it.
for pods  A pod waits for it only if no other address is
          free.
cause     A pod ended; others may still send to it.
cure      Lower warmPool.cooldown only if clients do not
          keep trying an address that is gone.
ends      By itself, when the time is over and no connection
          of it is left.
now       no condition of this reason
"""

WIDE = [
    "reason    cooling: The address waits after its pod",
    "means     Its pod has ended. It is given to another one when warmPool.cooldown is over and "
    "conntrack has no entry of it.",
    "for pods  A pod waits for it only if no other address is free.",
    "cause     A pod ended; others may still send to it.",
    "cure      Lower warmPool.cooldown only if clients do not keep trying an address "
    "that is gone.",
    "ends      By itself, when the time is over and no connection of it is left.",
    "now       no condition of this reason",
]


@pytest.mark.parametrize(("width", "said"), [(60, NARROW.splitlines()), (120, WIDE), (0, WIDE)])
def test_an_explanation_is_wrapped_between_words(width: int, said: list[str]) -> None:
    assert list(Screen(width).table(explained("cooling", (), NOW))) == said


def test_in_a_pipe_each_heading_is_one_line_and_nothing_is_sent_to_the_terminal() -> None:
    hostile = {"reason": "Refused", "subject": "\x1b[2J", "text": "a\nb", "since": "?"}
    lines = list(PIPE.table(explained("Refused", [hostile], NOW)))
    assert len(lines) == 7
    assert lines[-1] == "now       [2J: a b (since ?, an unknown time ago)"
