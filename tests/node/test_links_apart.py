"""Links of pods that are gone, deleted beside the passes: an address is held until they are."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

import pytest
from builders import intent, key
from node.test_passes import Simulation
from waiting import until

from reconciler.core.attachment import IntentState
from reconciler.domains.link import Veth
from reconciler.engine.converge import Outcome
from reconciler.engine.plan import Change, Plan, Verb
from reconciler.targets.netlink.message import KernelError
from reconciler.targets.netlink.removals import Removals

PARTS = {"warmPool": {"addresses": {"warm": 2}, "cooldown": "0s"}}


@pytest.fixture
def sim() -> Simulation:
    """A node with one pod whose DEL has come, and a thread that deletes links."""
    made = Simulation(**PARTS)
    made.turn()
    made.start_pod(1)
    made.turn(1.0)
    made.netlink.removals.apart = True
    made.state.put(intent(1, IntentState.RELEASED))
    return made


def bound(sim: Simulation) -> set[str]:
    return {a.key.container_id for a in sim.state.observe().attachments}


def links(sim: Simulation) -> set[str]:
    return {o.name for o in sim.netlink._objects.values() if isinstance(o, Veth)}


@pytest.mark.parametrize("alone", [False, True], ids=["everything", "this pod alone"])
def test_an_address_is_held_until_its_link_was_seen_gone(sim: Simulation, alone: bool) -> None:
    def turn() -> None:
        nonlocal result
        if alone:
            result = sim.node.pods_pass([key(1)])
        else:
            result = sim.node.kernel_pass(sim.document, audit=False)

    result = sim.node.pods_pass([])
    (name,) = links(sim)
    for _ in range(2):
        turn()
        assert (links(sim), bound(sim)) == ({name}, {"pod1"})
        assert result.leaving == {key(1): name}
        assert result.served
        assert not result.settled
        assert not result.outcomes["link"].errors
        assert not result.outcomes["link"].reverted
    assert sim.netlink.removals.turn()
    assert (links(sim), bound(sim)) == (set(), {"pod1"})
    turn()
    assert (result.leaving, result.settled, bound(sim)) == ({}, True, set())


def test_what_could_not_be_deleted_apart_is_deleted_by_the_next_pass(
    sim: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise KernelError(errno.EBUSY)

    monkeypatch.setattr(sim.netlink.removals, "_delete", refuse)
    sim.node.pods_pass([key(1)])
    sim.netlink.removals.turn()
    assert (len(links(sim)), bound(sim)) == (1, {"pod1"})
    assert sim.netlink.removals.names == frozenset()
    result = sim.node.pods_pass([key(1)])
    assert (result.settled, links(sim), bound(sim)) == (True, set(), set())


def test_a_link_is_deleted_by_what_it_is_and_not_by_its_name(sim: Simulation) -> None:
    sim.node.pods_pass([key(1)])
    sim.netlink.lose_namespace("/run/netns/pod1@1")  # and the link with it
    sim.node.pods_pass([key(1)])
    assert bound(sim) == set(), "it was seen gone, whoever has done it"
    assert sim.netlink.removals.turn()
    assert sim.node.kernel_pass(sim.document).settled


def raise_it(_: int) -> None:
    raise ValueError("no code expects it")


def say_gone(_: int) -> None:
    raise KernelError(errno.ENODEV)


@pytest.mark.parametrize("delete", [raise_it, say_gone, lambda _: None])
def test_whatever_a_deletion_raises_ends_no_thread_and_no_wait(
    delete: Callable[[int], None],
) -> None:
    removals = Removals(delete)
    assert not removals.take(7, "nn7"), "nobody takes turns"
    removals.apart = True
    assert removals.take(7, "nn7")
    assert removals.names == {"nn7"}
    removals.wait()
    assert removals.turn()
    assert removals.names == frozenset()
    assert removals.take(7, "nn7") is (delete is not raise_it)
    assert removals.take(7, "nn7"), "whoever asked has heard the error"


def test_a_turn_deletes_all_that_were_taken_though_one_fails() -> None:
    asked: list[int] = []

    def refuse_one(index: int) -> None:
        asked.append(index)
        if index == 8:
            raise KernelError(errno.EBUSY)

    removals = Removals(refuse_one)
    removals.apart = True
    for index in (7, 8, 9):
        assert removals.take(index, f"nn{index}")
    assert removals.turn()
    assert (asked, removals.names) == ([7, 8, 9], frozenset())
    assert not removals.turn()


def test_who_waits_for_links_is_woken_by_one_and_by_the_end() -> None:
    removals = Removals(lambda _: None)
    removals.apart = True
    for wake in (lambda: removals.take(7, "nn7"), removals.stop):
        thread = threading.Thread(target=removals.wait, daemon=True)
        thread.start()
        until(lambda: removals._changed._waiters, "the wait")
        wake()
        thread.join(15)
        assert not thread.is_alive()
        removals.turn()


def test_what_is_left_to_do_beside_a_deletion_is_more_than_to_wait() -> None:
    one, other = (
        Change(Verb.DELETE, Veth(name, "02:00:00:00:00:01", 9001, "ours"), "its pod is gone")
        for name in ("nn1", "nn2")
    )
    assert Outcome(remaining=Plan(begun=(one,))).is_under_way
    assert not Outcome(remaining=Plan((other,), begun=(one,))).is_under_way
