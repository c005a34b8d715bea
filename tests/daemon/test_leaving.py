"""Pods whose links a thread deletes: each is looked at again once its link is gone, no sooner.

Nothing but these hints says so before the next full pass. The daemon is that of the surprises,
without threads.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import intent, key
from daemon.test_surprise import House, begun

from reconciler.core.attachment import Attachment, AttachmentKey, IntentState
from reconciler.daemon.kernel_loop import BATCH


class Leaving:
    """Two pods run; which ones each pass looks at is noted."""

    def __init__(self, house: House, patch: pytest.MonkeyPatch) -> None:
        self.house, self.agent = house, house.agent
        self.removals = house.netlink.removals
        self.looked: list[tuple[AttachmentKey, ...]] = []
        house.begin_pod()
        house.work()
        self.agent.parts.requests._asked.clear()  # no thread waits for their answers here
        self.removals.apart = True
        serve = self.agent.kernel._serve

        def note(keys: tuple[AttachmentKey, ...]) -> bool:
            self.looked.append(keys)
            return serve(keys)

        patch.setattr(self.agent.kernel, "_serve", note)

    def release(self, number: int) -> None:
        self.house.state.put(intent(number, IntentState.RELEASED))
        self.agent.parts.pods.release(key(number))

    def serve(self) -> list[tuple[AttachmentKey, ...]]:
        self.looked.clear()
        assert self.agent.kernel.pods_pass()
        return list(self.looked)

    def bound(self) -> set[AttachmentKey]:
        return {k for kind, k in self.house.state._records if kind == Attachment.kind}


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Leaving:
    return Leaving(begun(tmp_path, monkeypatch), monkeypatch)


def test_it_is_not_looked_at_while_its_link_is_going_and_once_when_that_is_gone(
    node: Leaving,
) -> None:
    node.release(1)
    assert node.serve() == [(key(1),)]
    assert node.serve() == []
    assert node.bound() == {key(1), key(2)}
    node.removals.turn()
    assert node.serve() == [(key(1),)]
    assert node.bound() == {key(2)}
    assert node.serve() == []


def test_two_that_leave_one_after_the_other_are_both_remembered(node: Leaving) -> None:
    for number in (1, 2):
        node.release(number)
        assert node.serve() == [(key(number),)]
    node.removals.turn()
    assert node.serve() == [(key(1), key(2))]
    assert node.bound() == set()


def test_one_whose_link_is_gone_waits_for_no_other(node: Leaving) -> None:
    node.release(1)
    node.serve()
    node.removals.turn()
    node.release(2)
    assert node.serve() == [(key(1), key(2))]
    assert node.bound() == {key(2)}
    assert node.serve() == []


def test_what_a_full_pass_has_begun_to_delete_is_looked_at_when_it_is_gone(
    node: Leaving,
) -> None:
    node.house.state.put(intent(1, IntentState.RELEASED))
    node.agent.kernel.full_pass(audit=False)
    assert node.serve() == []
    node.removals.turn()
    assert node.serve() == [(key(1),)]
    assert node.bound() == {key(2)}


def test_what_could_not_be_deleted_is_looked_at_again(
    node: Leaving, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError

    monkeypatch.setattr(node.removals, "_delete", refuse)
    node.release(1)
    node.serve()
    node.removals.turn()
    assert node.serve() == [(key(1),)]
    assert node.bound() == {key(2)}


def test_it_is_looked_at_once_though_pods_are_served_in_several_parts(node: Leaving) -> None:
    node.release(1)
    node.serve()
    node.removals.turn()
    for number in range(3, 3 + BATCH + 1):
        node.agent.parts.requests._asked[key(number)] = 0.0
    node.looked.clear()
    node.agent.kernel.pods_pass()
    assert len(node.looked) == 2
    assert [key(1) in part for part in node.looked] == [True, False]
