"""Checks of a node, judged from what was read; and which EC2 actions a document needs."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from builders import document, eni, node

from deploy.iam_policy import policy
from reconciler.cli.doctor import told
from reconciler.cli.screen import PIPE, Screen
from reconciler.diagnostics import doctor, rights
from reconciler.diagnostics.doctor import Check, Host, State
from reconciler.errors import Issue

WELL = Host(
    release="6.1.100-foo",
    capabilities=(1 << 12) | (1 << 21),
    settings={
        doctor.FORWARDING: "1",
        doctor.NO_IPV6: "0",
        doctor.FLOWS: "10",
        doctor.MOST_FLOWS: "100",
        doctor.INSTANCES: "1024",
    },
    is_writable=True,
)


def judged(host: Host, *families: str) -> dict[str, Check]:
    """The checks that are not ok, by name."""
    found = doctor.judge_host(host, families or ("ipv4", "ipv6"))
    return {c.name: c for c in found if c.state is not State.OK}


def test_a_host_that_has_everything_is_well() -> None:
    assert judged(WELL) == {}
    names = [c.name for c in doctor.judge_host(WELL, ["ipv4"])]
    assert names == [
        *("kernel", "capabilities", "nftables", "rules and routes", "settings", "conntrack"),
    ]


def setting(name: str, value: str) -> dict[str, str]:
    return {**WELL.settings, name: value}


@pytest.mark.parametrize(
    ("fields", "name", "state", "text"),
    [
        ({"release": "5.1.9"}, "kernel", State.FAIL, "no nat chains in tables of family inet"),
        ({"release": "5.4.0"}, "kernel", State.WARN, "cooldowns read all of conntrack before 5.8"),
        ({"release": "strange"}, "kernel", State.SKIPPED, "'strange' is no release"),
        ({"capabilities": 1 << 12}, "capabilities", State.FAIL, "CAP_SYS_ADMIN missing"),
        ({"capabilities": None}, "capabilities", State.SKIPPED, "/proc/self/status has none"),
        ({"unread": {"nftables": "EPERM"}}, "nftables", State.FAIL, "cannot be read: EPERM"),
        (
            {"settings": setting(doctor.FORWARDING, "0"), "is_writable": False},
            "settings",
            State.FAIL,
            "net/ipv4/ip_forward is 0, and cannot be written here",
        ),
        (
            {"settings": setting(doctor.NO_IPV6, "1")},
            "settings",
            State.FAIL,
            "disable_ipv6 is 1, and families has ipv6",
        ),
        (
            {"settings": setting(doctor.INSTANCES, "128")},
            "settings",
            State.WARN,
            "max_user_instances is 128",
        ),
        (
            {"settings": setting(doctor.FLOWS, "81")},
            "conntrack",
            State.WARN,
            "81 of 100 entries",
        ),
        (
            {"settings": setting(doctor.FLOWS, "x" * 999)},
            "conntrack",
            State.SKIPPED,
            "is not there yet",
        ),
    ],
)
def test_what_a_host_lacks_is_said_with_a_cure(
    fields: dict[str, Any], name: str, state: State, text: str
) -> None:
    (check,) = judged(replace(WELL, **fields)).values()
    assert (check.name, check.state) == (name, state)
    assert text in check.text
    assert bool(check.cure) == (state is not State.SKIPPED)


def test_forwarding_that_is_off_is_well_where_the_reconciler_may_set_it() -> None:
    assert judged(replace(WELL, settings=setting(doctor.FORWARDING, "0"))) == {}
    without_ipv6 = replace(WELL, settings=setting(doctor.NO_IPV6, "1"))
    assert judged(without_ipv6, "ipv4") == {}


def test_links_that_are_too_small_for_what_pods_send_are_named() -> None:
    (check,) = doctor.judge_mtu({"eth0": 1500, "eth1": 9001}, 9001, 9001)
    assert check.text == "link eth0 has 1500 bytes, and pods send 9001"
    (check,) = doctor.judge_mtu({"eth0": 1500}, 9001, 1500)
    assert (check.state, check.text) == (State.OK, "pods send 1500 bytes: eth0 1500")
    assert list(doctor.judge_mtu({}, 9001, 9001)) == []


def test_the_exit_status_is_that_of_the_worst_check() -> None:
    checks = [Check("a", s, "b") for s in (State.OK, State.SKIPPED, State.WARN, State.FAIL)]
    assert [doctor.exit_status(checks[:n]) for n in range(5)] == [0, 0, 0, 1, 2]


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"snat": {"excludeCIDRs": ["@peering", "pl-0123456789abcdef0"]}},
        {"snat": {"onlyCIDRs": ["@routes"]}},
        {"eni": {"allocate": "prefixes"}},
        {"takeOver": "amazon-vpc-cni"},
        {"families": ["ipv4", "ipv6"]},
        {"overrides": [{"match": {"zone": "a"}, "set": {"families": ["ipv6"]}}]},
        {"overrides": [{"match": {"zone": "a"}, "set": {"eni": {"allocate": "prefixes"}}}]},
        {
            "podGroups": [
                {"name": "a", "match": {"pod": "a"}, "snat": {"excludeCIDRs": ["@transit"]}}
            ]
        },
    ],
)
def test_the_actions_that_are_checked_are_those_of_the_policy(parts: dict[str, Any]) -> None:
    wanted = document(**parts)
    allowed = {a for s in policy(wanted)["Statement"] for a in s["Action"]}
    assert allowed == {f"ec2:{a}" for a in rights.needed(wanted)}
    asked = list(rights.questions(wanted, node(), (eni(0), eni(1))))
    own = {"CreateTags"}  # EC2 asks for it with CreateNetworkInterface
    assert {q.action for q in asked} == rights.needed(wanted) - own
    changes = {q.action for q in asked if isinstance(q, rights.Question) and q.is_dry}
    assert changes == {a for a in rights.CHANGE if "Addresses" not in a} - own


def test_what_only_ipv6_needs_is_no_matter_without_it() -> None:
    assert rights.IPV6 not in rights.needed(document())
    assert rights.IPV6 not in json.dumps(policy(document()))
    assert rights.IPV6 in json.dumps(policy(document(families=["ipv6"])))


def test_changes_are_asked_about_of_our_own_enis_alone() -> None:
    asked = rights.questions(document(), node(), (eni(0), eni(1)))
    by_action = {q.action: q for q in asked}
    modify = by_action["ModifyNetworkInterfaceAttribute"]
    assert isinstance(modify, rights.Question)
    assert modify.arguments["Groups"] == list(eni(1).security_groups)
    # Of another owner's ENI nothing is asked.
    asked = rights.questions(document(), node(), (eni(0), eni(1, owned=False)))
    unasked = {q.action for q in asked if isinstance(q, rights.Unasked)}
    assert unasked - set(rights.NO_DRY_RUN) == {
        *("AttachNetworkInterface", "ModifyNetworkInterfaceAttribute"),
        *("DetachNetworkInterface", "DeleteNetworkInterface"),
    }


def test_what_a_condition_has_said_is_not_said_again_unless_it_is_worse() -> None:
    issue = Issue("pool of i-1", "PoolLimitReached", "99 addresses wanted, 27 held")
    later = Issue("pool of i-1", "PoolLimitReached", "98 addresses wanted, 27 held")
    other = replace(issue, subject="pool of i-1, group a")
    first = doctor.from_issue("condition", issue)
    again = [doctor.from_issue("pool", i) for i in (later, other)]
    well = Check("kernel", State.OK, "Linux 6.1")
    assert list(doctor.once([first, well, *again, well])) == [first, well, again[1], well]
    worse = doctor.from_issue("node", issue, State.FAIL)
    assert list(doctor.once([first, worse, again[0]])) == [first, worse]


DENIED = doctor.judge_right("CreateNetworkInterface", "no", is_allowed=False, reads=False)
FULL = doctor.from_issue("subnet", Issue("subnet a", "SubnetExhausted", "no address\x1b is free"))

NARROW = """\
FAIL  ec2:CreateNetworkInterface: no; allow
      ec2:CreateNetworkInterface to the node's role (python
      deploy/iam_policy.py DOCUMENT prints all)
warn  subnet: SubnetExhausted: subnet a: no address is free;
      Free addresses in the subnet, name further subnets in
      eni.subnets (or the pod group's), or lower warmPool on
      all nodes of the subnet.
"""

WIDE = [
    "FAIL  ec2:CreateNetworkInterface: no; allow ec2:CreateNetworkInterface to the node's role "
    "(python deploy/iam_policy.py",
    "      DOCUMENT prints all)",
    "warn  subnet: SubnetExhausted: subnet a: no address is free; Free addresses in the subnet, "
    "name further subnets in",
    "      eni.subnets (or the pod group's), or lower warmPool on all nodes of the subnet.",
]


@pytest.mark.parametrize(("width", "said"), [(60, NARROW.splitlines()), (120, WIDE)])
def test_a_check_is_wrapped_between_words(width: int, said: list[str]) -> None:
    screen = Screen(width)
    assert [line for c in (DENIED, FULL) for line in told(c, screen)] == said


def test_in_a_pipe_a_check_is_one_line_and_on_a_terminal_its_state_has_a_colour() -> None:
    (line,) = told(FULL, PIPE)
    assert line.startswith("warn  subnet: SubnetExhausted: subnet a: no address is free; Free")
    (first, *_) = told(DENIED, Screen(120, colour=True))
    assert first.startswith("\x1b[31mFAIL  \x1b[0mec2:")


def test_sources_of_rules_for_namespaces_need_their_actions() -> None:
    rule = {"namespace": "a", "to": ["@peering", "pl-0123456789abcdef0"], "as": "pod"}
    more = rights.needed(document(snat={"rules": [rule]})) - rights.needed(document())
    assert more == {
        *("DescribeVpcPeeringConnections", "DescribeManagedPrefixLists"),
        "GetManagedPrefixListEntries",
    }
