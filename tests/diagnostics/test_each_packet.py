"""What looks at each packet that is forwarded, and so keeps the fast path off."""

from __future__ import annotations

import pytest

from reconciler.diagnostics.each_packet import judge
from reconciler.diagnostics.foreign import Foreign
from reconciler.diagnostics.ruleset import (
    BaseChain,
    ChainId,
    Load,
    Rule,
    Ruleset,
    Unclear,
    Verdict,
    Within,
)

ACCEPT = (Load("iifname", 0, 16, 8), Within(8, b"nn", b"nn"), Verdict("accept"))
KUBE = (Unclear("counter"), Verdict("jump", "KUBE-FORWARD"))
DOCKER = (Verdict("jump", "DOCKER-USER"),)
COUNTS = (Unclear("counter"),)


def others(
    *rules: Rule, hook: str = "forward", kind: str = "filter", unread: bool = False
) -> Foreign:
    name = ChainId("nft", "ip", "filter", "FORWARD")
    return Foreign(
        ruleset=Ruleset((BaseChain(name, hook, kind),), {name: None if unread else rules})
    )


@pytest.mark.parametrize(
    "harmless",
    [
        others(),
        others(KUBE, ACCEPT),
        others(DOCKER, hook="input"),
        others(COUNTS, hook="output"),
        others(COUNTS, hook="postrouting", kind="nat"),
    ],
)
def test_first_packets_and_those_of_the_host_are_no_reason(harmless: Foreign) -> None:
    assert judge(harmless, ()) == ()


@pytest.mark.parametrize("hook", ["prerouting", "forward", "postrouting", "ingress", "egress"])
@pytest.mark.parametrize("rule", [DOCKER, COUNTS, (Verdict("drop"),), (*KUBE, *DOCKER)])
def test_any_other_rule_is_one(hook: str, rule: Rule) -> None:
    (found,) = judge(others(KUBE, rule, hook=hook), ())
    assert (found.subject, found.reason) == ("chain ip filter FORWARD", "FastPathHeld")


def test_what_is_not_known_is_one() -> None:
    assert [i.reason for i in judge(None, ())] == ["FastPathHeld"]
    assert [i.reason for i in judge(others(unread=True), ())] == ["FastPathHeld"]
    (found,) = judge(Foreign(unread=(("iptables", "it failed"),)), ())
    assert (found.subject, found.message) == ("iptables", "it was not looked at: it failed")


def test_queues_that_links_have_by_default_are_none_and_others_are_named_once() -> None:
    plain = [("eth0", "mq"), ("eth0", "fq_codel"), ("nn1", "noqueue")]
    assert judge(Foreign(), plain) == ()
    shaped = [("nn2", "tbf"), ("nn1", "tbf"), ("nn1", "clsact")]
    assert [i.subject for i in judge(Foreign(), [*plain, *shaped])] == [
        "link nn1",
        "link nn1 and 1 more",
    ]
