"""What takes no full pass: addresses that cool, and what the kernel tells of our own changes."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from builders import intent
from daemon import test_surprise
from daemon.test_surprise import House

from reconciler.core.attachment import AttachmentKey, Cooling, IntentState
from reconciler.daemon import ledger, schedule
from reconciler.daemon.ledger import Ledger, Notifications
from reconciler.diagnostics.foreign import ForeignRule
from reconciler.node import visits
from reconciler.targets.expected import RTM_DELRULE, RTM_NEWRULE, Verdict
from reconciler.targets.netlink import message, tables

COOLDOWN = frozenset({"cooldown"})


@pytest.fixture
def house(tmp_path: Path) -> House:
    """A node with a pod, all in its place."""
    made = House(tmp_path)
    made.begin_pod()
    made.work()
    made.work()
    assert made.agent.status()["attachments"]
    return made


def end_pod(house: House) -> None:
    key = intent(1).key
    house.state.put(replace(intent(1), state=IntentState.RELEASED))
    house.agent.parts.hints.wait(0)
    house.agent.parts.pods.release(key)
    assert house.agent.kernel.pods_pass()


def cooling(house: House) -> list[Cooling]:
    return [r for r in house.state._records.values() if isinstance(r, Cooling)]


def test_an_address_cools_and_is_free_again_without_a_full_pass(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = house.agent.kernel
    monkeypatch.setattr(kernel, "_due_s", lambda hints: -1.0 if hints else 60.0)
    end_pod(house)
    (record,) = cooling(house)
    assert "cooldown" in house.agent.parts.hints.wait(0), "its connections are to end"
    house.conntrack.addresses.add(record.address)
    monkeypatch.setattr(house.netlink, "observe", lambda *_: pytest.fail("a look at everything"))
    assert not kernel._do_lightly(COOLDOWN)
    assert record.address not in house.conntrack.addresses
    assert cooling(house) == [record]
    assert house.agent.status()["cooling"] == [str(record.address)]
    house.now = record.until + 1
    house.agent.parts.pool_hints.wait(0)
    assert not kernel._do_lightly(COOLDOWN)
    assert not cooling(house)
    assert house.agent.status()["cooling"] == []
    assert kernel._do_lightly(frozenset()) == frozenset()


def test_an_address_that_begins_to_cool_in_a_full_pass_is_looked_after_too(house: House) -> None:
    house.state.put(replace(intent(1), state=IntentState.RELEASED))
    for _ in range(3):
        house.agent.parts.hints.wait(0)
        house.agent.kernel.full_pass(audit=False)
        if cooling(house):
            break
    assert "cooldown" in house.agent.parts.hints.wait(0)


def test_a_node_is_settled_as_soon_as_its_pods_are_served_without_a_full_pass(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(4):
        house.work()
    assert house.agent.status()["settled"]
    monkeypatch.setattr(house.agent.kernel, "full_pass", lambda **_: pytest.fail("a full pass"))
    house.begin_pod()
    late = intent(house._pods)
    house.agent.parts.requests._asked[late.key] = time.monotonic()
    for _ in range(2):
        house.agent.kernel.pods_pass()
        house.agent.pool.run_pass(0)
    assert late.key in {a.key for a in house.state.observe().living}
    assert house.agent.status()["settled"]


def rule_message(*, is_gone: bool = False) -> bytes:
    """What the kernel tells of somebody's ``ip rule``."""
    attributes = (("FRA_PRIORITY", 77), ("FRA_PROTOCOL", 4))
    entry = tables.pack_entry(tables.RULES, {"family": 2}, attributes)
    kind = RTM_DELRULE if is_gone else RTM_NEWRULE
    return message.HEADER.pack(message.HEADER.size + len(entry), kind, 0, 0, 0) + entry


@pytest.mark.parametrize(
    ("is_gone", "taking_over"), [(False, False), (True, False), (False, True)]
)
def test_what_others_change_of_their_own_takes_no_full_pass_and_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_gone: bool, taking_over: bool
) -> None:
    """Unless it may be the stock plugin's, that this node takes over from."""
    if not taking_over:
        alone = test_surprise.DOCUMENT.replace("takeOver: amazon-vpc-cni\n", "")
        monkeypatch.setattr(test_surprise, "DOCUMENT", alone)
    house = House(tmp_path)
    for _ in range(2):
        house.work()
    agent, kernel = house.agent, house.agent.kernel
    passes: list[bool] = []
    monkeypatch.setattr(kernel, "full_pass", lambda audit, **_: passes.append(audit) or 60.0)
    monkeypatch.setattr(kernel, "_due_s", lambda hints: 0.0 if hints else 0.01)
    (accepted,) = {r.pattern for r in house.surroundings.rules}
    house.surroundings.rules.clear()
    house.surroundings.seen = replace(
        house.surroundings.seen, rules=(ForeignRule("ipv4", 77, 0, 0, 0, does="drops packets"),)
    )
    kernel._ledger._notifications.hear(rule_message(is_gone=is_gone))
    kernel._hints = frozenset({"kernel"})
    agent.parts.hints.wait(0)
    kernel.turn()
    assert kernel._hints == frozenset()
    assert passes == [False] * taking_over
    if taking_over:
        return
    assert {r.pattern for r in house.surroundings.rules} == {accepted}
    reasons = {c["reason"] for c in agent.parts.conditions.all()}
    assert "RuleBeforeOurs" in reasons
    assert agent.status()["settled"]


def test_every_pods_namespace_is_looked_into_between_two_audits(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        house.begin_pod()
        house.work()
    kernel, parts = house.agent.kernel, house.agent.parts
    living = sorted(a.key for a in house.state.observe().living)
    assert len(living) == 3
    looked: list[AttachmentKey] = []
    for module in (visits, schedule):
        monkeypatch.setattr(module, "SHARE", 1)
    monkeypatch.setattr(kernel, "full_pass", lambda **_: pytest.fail("a full pass"))
    monkeypatch.setattr(kernel, "_due_s", lambda hints: 60.0)
    monkeypatch.setattr(
        parts.node.after.inspection, "_inspect_one", lambda pod, _: looked.append(pod.key) or ""
    )
    every_s = parts.document.resync_s / 3
    for number in range(3):
        for since_s, pods in ((every_s / 2, number), (every_s, number + 1)):
            long_ago = time.monotonic() - since_s
            kernel._schedule = replace(kernel._schedule, share_at=long_ago)
            parts.hints.mark("kernel")  # so that it does not wait
            kernel.turn()
            assert len(looked) == pods
    assert sorted(looked) == living


def test_what_the_records_alone_do_not_say_is_for_a_full_pass(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = house.agent.kernel
    monkeypatch.setattr(kernel, "_due_s", lambda hints: -1.0 if hints else 60.0)
    end_pod(house)

    def unreadable(*_: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(house.state, "observe_at", unreadable)
    assert kernel._do_lightly(COOLDOWN) == COOLDOWN
    assert kernel._do_lightly(frozenset({"kernel"})) == {"kernel"}, "none was heard"


def test_notifications_that_were_lost_or_are_too_many_are_news(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard = Notifications()
    book = Ledger(heard)
    heard.hear(b"")
    assert heard.told() is None, "before the first pass"
    book.begin()
    assert heard.told() == ()
    book.learn({}, settled=True)
    assert book.weigh(0.0) is Verdict.EXPLAINED
    heard.lose()
    assert book.weigh(0.0) is Verdict.NEWS
    book.begin()
    book.learn({}, settled=True)
    monkeypatch.setattr(ledger, "MOST_BYTES", 10)
    heard.hear(b"12345678")
    assert heard.told() == (b"12345678",)
    heard.hear(b"12345678")
    assert heard.told() is None
    book.begin()
    assert book.weigh(0.0) is Verdict.NEWS, "nothing is expected during a pass"


def test_what_was_weighed_is_forgotten_and_what_came_meanwhile_is_not() -> None:
    heard = Notifications()
    heard.begin()
    heard.hear(b"one")
    told = heard.told()
    heard.hear(b"two")
    assert told is not None
    heard.forget(told)
    assert heard.told() == (b"two",)
