"""Intents and releases in the state directory: the executable writes them, and so may others."""

from __future__ import annotations

import errno
import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import document, inputs, intent
from targets.test_state_contract import directory, nothing_more, put

from reconciler.core.attachment import IntentState
from reconciler.domains import attachment as attachment_domain
from reconciler.engine.plan import Change, Verb
from reconciler.ipam.records import Records
from reconciler.targets.state import record_file
from reconciler.targets.state.directory import StateDirectory
from reconciler.targets.state.kind_records import IntentRecords

WANTED: dict[str, Any] = {
    "version": 1,
    "state": "wanted",
    "containerID": "a",
    "ifname": "b",
    "netns": "/x",
    "netnsInode": 3,
    "attempt": "one",
}


def write_intent(directory: StateDirectory, **fields: Any) -> Path:
    path = directory.intents / "a:b.json"
    path.write_text(json.dumps(WANTED | fields))
    return path


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[" * 100_000,
        "\0",
        "null",
        json.dumps(WANTED | {"netnsInode": float("inf")}),
        json.dumps(WANTED | {"netns": "/\0"}),
        json.dumps(WANTED | {"state": ["wanted"]}),
        json.dumps(WANTED | {"containerID": "another"}),
        json.dumps(WANTED | {"padding": "x" * 100_000}),
    ],
    ids=lambda text: text[:40].strip("\0"),
)
def test_an_intent_that_cannot_be_understood_is_named_and_keeps_nobody_else_waiting(
    tmp_path: Path, content: str
) -> None:
    state = directory(tmp_path)
    put(state, intent(1))
    path = state.intents / "a:b.json"
    path.write_text(content)
    records = state.observe()
    assert [i.key for i in records.intents] == [intent(1).key]
    (named,) = records.unreadable
    assert named.startswith(f"{path}: ")
    again = state.observe_at({intent(1).key}, records)
    assert again.unreadable == (named,)
    write_intent(state)
    assert state.observe().unreadable == ()


def test_a_name_that_is_no_file_makes_nobody_wait(tmp_path: Path) -> None:
    state = directory(tmp_path)
    os.mkfifo(state.intents / "a:b.json")
    assert len(state.observe().unreadable) == 1


def test_an_intent_that_was_replaced_meanwhile_is_neither_forgotten_nor_changed(
    tmp_path: Path,
) -> None:
    """A container is started again as soon as its DEL was recorded."""
    state = directory(tmp_path)
    path = write_intent(state, state="released")
    (seen,) = state.observe().intents
    write_intent(state, attempt="two")
    for change in (
        Change(Verb.DELETE, seen, "done"),
        Change(Verb.UPDATE, replace(seen, netns="/y"), "test", seen),
    ):
        (failure,) = state.apply([change])
        assert "meanwhile" in str(failure)
    assert json.loads(path.read_text())["attempt"] == "two"


def test_an_intent_that_is_replaced_while_it_is_removed_is_there_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at the file, and then the unlink, would take what was put there in between."""
    state = directory(tmp_path)
    path = write_intent(state, state="released")
    (seen,) = state.observe().intents
    check = IntentRecords._check_unchanged

    def replaced_after(self: IntentRecords, where: Path, intent: Any) -> None:
        check(self, where, intent)
        write_intent(state, attempt="two")

    monkeypatch.setattr(IntentRecords, "_check_unchanged", replaced_after)
    state.apply([Change(Verb.DELETE, seen, "done")])
    assert json.loads(path.read_text())["attempt"] == "two"
    assert [p.name for p in state.intents.iterdir()] == [path.name]


def test_what_a_killed_reconciler_had_put_aside_is_gone_with_the_next_one(tmp_path: Path) -> None:
    state = directory(tmp_path)
    (state.intents / ".a:b.json.aside").write_text("{}")
    state.lock()
    assert not list(state.intents.iterdir())


def test_a_release_that_could_not_be_written_is_written_or_remembered(tmp_path: Path) -> None:
    state = directory(tmp_path)
    path = write_intent(state)
    released = WANTED | {"state": "released"}
    (wanted,) = state.observe().intents
    with nothing_more():
        state.hand_over(released)
    assert json.loads(path.read_text())["state"] == "wanted"
    (told,) = state.observe().intents
    assert told.state is IntentState.RELEASED
    assert state.observe_at({told.key}, Records((wanted,))).intents == (told,)
    assert state.apply([Change(Verb.DELETE, told, "done")]) == ()
    assert not path.exists()
    write_intent(state, attempt="two")
    assert state.observe().intents[0].state is IntentState.WANTED, "another ADD is another wish"
    state.hand_over(released | {"attempt": "two"})
    assert json.loads(path.read_text())["state"] == "released"


def test_releases_that_are_handed_over_while_others_look_are_neither_lost_nor_in_their_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look walks what was handed over; a release that comes in between waits for its end."""
    state = directory(tmp_path)
    write_intent(state)
    (wanted,) = state.observe().intents
    with nothing_more():
        state.hand_over(WANTED | {"state": "released"})
    late = WANTED | {"state": "released", "containerID": "late"}
    (state.intents / "late:b.json").write_text(json.dumps(WANTED | {"containerID": "late"}))
    comes: list[threading.Thread] = []

    class Walked(dict[Any, Any]):
        def items(self) -> Any:
            for item in list(super().items()):
                yield item
                if not comes:
                    comes.append(threading.Thread(target=state.hand_over, args=(late,)))
                    comes[0].start()
                    comes[0].join(0.2)

    monkeypatch.setattr(record_file, "write_atomically", refuse)
    state._intents._handed_over = Walked(state._intents._handed_over)
    state.observe()
    comes[0].join()
    assert {i.state for i in state.observe().intents} == {IntentState.RELEASED}
    assert {i.key.container_id for i in state.observe().intents} == {
        wanted.key.container_id,
        "late",
    }


def refuse(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


ODD = ["\udcff", "\ud800", "a\udfff\ud800b"]


@pytest.mark.parametrize("odd", ODD)
def test_a_lone_surrogate_in_a_pods_name_is_spelt_out_wherever_it_goes(
    tmp_path: Path, odd: str
) -> None:
    """It has ended the daemon: the link's name is a hash of the pod's, and a hash is of bytes."""
    state = directory(tmp_path)
    told = {"podNamespace": "n", "podName": odd, "attempt": odd, "traceparent": f"00-{odd}"}
    write_intent(state, netns=str(tmp_path), netnsInode=tmp_path.stat().st_ino, **told)
    records = state.observe()
    (read,) = records.intents
    assert read.pod.startswith("n/")
    for text in (read.pod, read.attempt, read.trace):
        text.encode()
    desired = attachment_domain.desire(inputs(2, document=document(pods={"vethName": "pod"})))
    plan = attachment_domain.plan(desired, records)
    assert state.apply(plan.actions) == ()
    (bound,) = state.observe().attachments
    assert bound.pod == read.pod


@pytest.mark.parametrize("odd", ODD)
def test_a_key_that_no_kernel_could_be_told_concerns_its_own_intent_alone(
    tmp_path: Path, odd: str
) -> None:
    state = directory(tmp_path)
    write_intent(state)
    body = json.dumps(WANTED | {"containerID": odd})
    name = f"{odd}:b.json" if odd == "\udcff" else "x:b.json"  # a file's name can be so, or not
    (state.intents / name).write_text(body)
    records = state.observe()
    assert [i.key.container_id for i in records.intents] == [WANTED["containerID"]]
    (told,) = records.unreadable
    told.encode()


@pytest.mark.parametrize(
    "release",
    [
        {},
        [],
        "x",
        WANTED,
        WANTED | {"state": "released", "containerID": "../../x"},
        WANTED | {"state": "released", "ifname": "../x"},
    ],
)
def test_what_is_no_release_is_not_taken_over(tmp_path: Path, release: Any) -> None:
    state = directory(tmp_path)
    with pytest.raises((ValueError, KeyError, TypeError)):
        state.hand_over(release)
    assert list(tmp_path.rglob("*.json")) == []


def test_what_killed_writers_left_is_swept_and_what_is_being_written_is_not(
    tmp_path: Path,
) -> None:
    state = directory(tmp_path)
    left, fresh = state.intents / ".a:b.json.1.tmp", state.intents / ".a:b.json.2.tmp"
    for path in (left, fresh):
        path.write_text("{")
    os.utime(left, (1, 1))
    kept = write_intent(state)
    os.utime(kept, (1, 1))
    state.sweep()
    assert not left.exists()
    assert fresh.exists()
    assert kept.exists()
