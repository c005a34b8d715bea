"""What ``diff`` prints, on stored observations: terminals of two widths, a pipe, JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import click
import pytest
from builders import document, eni, inputs
from jsonschema import Draft202012Validator

from reconciler.cli import report, report_json, screen
from reconciler.cli.screen import PIPE, Screen
from reconciler.diagnostics import meaning
from reconciler.diagnostics.meaning import Shift, find_shifts, tell_shifts
from reconciler.domains import nat
from reconciler.engine.converge import Outcome
from reconciler.engine.plan import Plan
from reconciler.errors import Issue, ObserveError
from reconciler.ipam.cloud import Cloud
from reconciler.ipam.ec2_action import AssignAddresses

SCHEMA = json.loads((Path(__file__).parents[2] / "schemas/diff.schema.json").read_text())


def planned(before: dict[str, Any], after: dict[str, Any]) -> Plan:
    """What a change of the SNAT policy comes to in nftables."""
    held, wanted = (nat.desire(inputs(1, document=document(snat=s))) for s in (before, after))
    return nat.plan(wanted, held)


PEER = planned({}, {"excludeCIDRs": ["10.100.0.0/16"]})
GROWTH = AssignAddresses("eni-0", "subnet-a", "pool holds 24 of 26 addresses", count=2)
FULL = Issue(
    "pool of i-1", "PoolLimitReached", "99 addresses wanted, 27 held: 3 ENIs x 9 = 27; lower "
    "warmPool.addresses.minimum",
)  # fmt: skip
OUTCOMES = {
    "eni": Outcome(None, Cloud((eni(0),), None, {}), Plan((GROWTH,)), Plan((GROWTH,), (FULL,))),
    "nat": Outcome(plan=PEER, remaining=PEER),
    "forward": Outcome(errors=(ObserveError("iptables", "it is locked"),)),
}

PIPED = """\
+ address     aws ec2 assign-private-ip-addresses --network-interface-id eni-0 \
--secondary-private-ip-address-count 2  # pool holds 24 of 26 addresses \
[EC2: AssignPrivateIpAddresses]
+ nft-element nft add element inet node_network no_snat_ipv4 { 10.100.0.0/16 }  # missing
! pool of i-1: PoolLimitReached: 99 addresses wanted, 27 held: 3 ENIs x 9 = 27; \
lower warmPool.addresses.minimum
? forward: cannot read iptables: it is locked; nothing is changed until it can be read
"""

AT_60 = """\
eni: 1 to add
  + aws ec2 assign-private-ip-addresses
      --network-interface-id eni-0
      --secondary-private-ip-address-count 2
    # pool holds 24 of 26 addresses [EC2:
      AssignPrivateIpAddresses]

nat: 1 to add
  + nft add element inet node_network no_snat_ipv4 {
      10.100.0.0/16 }

! pool of i-1: PoolLimitReached: 99 addresses wanted, 27
  held: 3 ENIs x 9 = 27; lower warmPool.addresses.minimum
? forward: cannot read iptables: it is locked; nothing is
  changed until it can be read
"""

AT_120 = """\
eni: 1 to add
  + aws ec2 assign-private-ip-addresses --network-interface-id eni-0 --secondary-private-ip-address-count 2
    # pool holds 24 of 26 addresses [EC2: AssignPrivateIpAddresses]

nat: 1 to add
  + nft add element inet node_network no_snat_ipv4 { 10.100.0.0/16 }

! pool of i-1: PoolLimitReached: 99 addresses wanted, 27 held: 3 ENIs x 9 = 27; lower warmPool.addresses.minimum
? forward: cannot read iptables: it is locked; nothing is changed until it can be read
"""  # noqa: E501 - as wide as it is shown


@pytest.mark.parametrize(
    ("where", "shown"),
    [(PIPE, PIPED), (Screen(60), AT_60), (Screen(120), AT_120)],
    ids=["pipe", "60", "120"],
)
def test_a_plan_is_shown_as_wide_as_there_is_room(where: Screen, shown: str) -> None:
    assert report.as_text(OUTCOMES, where) == shown
    assert all(len(line) <= where.width for line in shown.splitlines() if where.width)


def test_colours_are_all_that_a_coloured_terminal_adds() -> None:
    shown = report.as_text(OUTCOMES, Screen(60, colour=True))
    assert shown != AT_60
    assert click.unstyle(shown) == AT_60


def test_a_longer_word_has_a_line_of_its_own_and_is_not_broken() -> None:
    word = "eni-" + "0" * 80
    assert list(Screen(60).wrap(f"the ENI {word} is there", "", "  ")) == [
        "the ENI",
        f"  {word}",
        "  is there",
    ]


class _Stream:
    def __init__(self, *, terminal: bool) -> None:
        self.isatty = lambda: terminal

    def fileno(self) -> int:
        return -1  # no terminal knows how wide this is


@pytest.mark.parametrize(
    ("terminal", "environ", "expected"),
    [
        (False, {}, PIPE),
        (True, {}, Screen(screen.USUAL, colour=True)),
        (True, {"NO_COLOR": "1"}, Screen(screen.USUAL)),
        (True, {"NO_COLOR": ""}, Screen(screen.USUAL, colour=True)),
        (True, {"TERM": "dumb"}, Screen(screen.USUAL)),
    ],
)
def test_what_a_stream_leads_to(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, environ: dict[str, str], expected: Screen
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    stream: Any = _Stream(terminal=terminal)
    assert screen.screen_of(stream) == expected


def test_the_json_is_as_its_schema_says_and_has_each_object_before_and_after() -> None:
    body = json.loads(report_json.as_json(OUTCOMES, (FULL,), ("a sentence",)))
    Draft202012Validator(SCHEMA).validate(body)
    assert body["formatVersion"] == 1
    assert body["summary"] == {"create": 2, "update": 0, "delete": 0, "refused": 1}
    assert body["calls"] == {"AssignPrivateIpAddresses": 1}
    assert body["meanings"] == ["a sentence"]
    growth, element = body["actions"]
    assert (growth["after"], growth["before"]["eni_id"]) == (None, "eni-0")
    assert growth["arguments"]["count"] == 2
    assert (element["before"], element["arguments"]) == (None, None)
    assert element["after"] == {
        "set": "no_snat_ipv4",
        "first": "10.100.0.0",
        "last": "10.100.255.255",
        "goto": "",
        "value": None,
        "why": "",
    }


def test_what_is_changed_or_deleted_is_shown_as_it_was() -> None:
    plan = planned({"ports": "fully-random"}, {"ports": "sequential"})
    gone = planned({"excludeCIDRs": ["10.100.0.0/16"]}, {})
    both = {"nat": Outcome(plan=plan), "more": Outcome(plan=gone)}
    changed, deleted = json.loads(report_json.as_json(both))["actions"]
    assert changed["verb"] == "update"
    assert changed["before"]["name"] == changed["after"]["name"] == "source_nat"
    assert changed["before"]["rules"] != changed["after"]["rules"]
    assert (deleted["after"], deleted["before"]["first"]) == (None, "10.100.0.0")


@pytest.mark.parametrize(
    ("outcome", "lax", "strict"),
    [
        (Outcome(), 0, 0),
        (Outcome(plan=Plan(refusals=(FULL,)), remaining=Plan(refusals=(FULL,))), 0, 1),
        (Outcome(plan=PEER), 1, 1),
        (Outcome(plan=PEER, errors=(ObserveError("x", "y"),)), 2, 2),
    ],
    ids=["in sync", "refused", "differs", "error"],
)
def test_what_is_refused_is_no_difference_unless_one_asks(
    outcome: Outcome, lax: int, strict: int
) -> None:
    for is_strict, code in ((False, lax), (True, strict)):
        assert report.exit_code({"nat": outcome}, strict=is_strict) == code
    is_noted = "1 refused" in report.refused({"nat": outcome})
    assert is_noted is bool(outcome.remaining.refusals)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({}, {}, []),
        (
            {},
            {"excludeCIDRs": ["10.100.0.0/16"]},
            ["10.100.0.0/16 will see pod addresses, no longer the node's address"],
        ),
        (
            {"excludeCIDRs": ["10.100.0.0/16", "10.102.0.0/16"]},
            {"excludeCIDRs": ["10.100.0.0/15"]},
            [
                "10.101.0.0/16 will see pod addresses, no longer the node's address",
                "10.102.0.0/16 will see the node's address, no longer pod addresses",
            ],
        ),
        (
            {},
            {"mode": "external"},
            [
                "every destination but 10.0.0.0/16 and 100.64.0.0/16 will see pod addresses, no "
                "longer the node's address"
            ],
        ),
        (
            {"excludeCIDRs": [f"198.51.{n}.0/24" for n in range(0, 10, 2)]},
            {},
            [
                "198.51.0.0/24, 198.51.2.0/24, 198.51.4.0/24 and 2 more will see the node's "
                "address, no longer pod addresses"
            ],
        ),
    ],
)
def test_who_will_see_what_is_said_in_a_sentence(
    before: dict[str, Any], after: dict[str, Any], said: list[str]
) -> None:
    assert list(tell_shifts(find_shifts(planned(before, after).actions), {})) == said


def test_rules_decide_before_any_policy_and_a_change_of_them_is_said() -> None:
    rule = {"namespace": "pay-*", "to": ["203.0.113.0/24"], "as": "node"}
    other = rule | {"as": "pod"}
    assert not meaning.changes_rules(PEER.actions)
    for before, after in (({}, [rule]), ([rule], [other]), ([rule], {})):
        plan = planned({"rules": before or []}, {"rules": after or []})
        assert meaning.changes_rules(plan.actions)
    whole = nat.plan(nat.desire(inputs(1, document=document(snat={"rules": [rule]}))), ())
    assert not meaning.changes_rules(whole.actions)
    (said,) = tell_shifts(find_shifts(PEER.actions), {}, ruled=True)
    assert said.endswith("no longer the node's address, where none of snat.rules decides")


def test_a_new_table_changes_what_no_one_has_seen() -> None:
    assert find_shifts(nat.plan(nat.desire(inputs(1)), ()).actions) == ()


def test_connections_that_stay_are_counted() -> None:
    shift = Shift("pay", True, ((ip_address("10.100.0.1"), ip_address("10.100.0.1")),))
    assert list(tell_shifts((shift, replace(shift, own=False)), {shift: 37})) == [
        "pods of group pay: 10.100.0.1 will see pod addresses, no longer the node's address; 37 "
        "open connections keep the node's address",
        "pods of group pay: 10.100.0.1 will see the node's address, no longer pod addresses",
    ]
    assert "1 open connection keeps the node's" in next(tell_shifts((shift,), {shift: 1}))
