"""``apply --confirm``: what was applied stays only if somebody says so."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
from builders import document
from daemon.test_surprise import DOCUMENT, House
from waiting import until

from reconciler.cli import apply
from reconciler.cli.apply import Earlier, Wait, Work
from reconciler.cli.confirm import NAME, Question, confirm
from reconciler.cli.report import exit_code
from reconciler.core.datapath import IpAddress
from reconciler.domains.nat_objects import NftElement
from reconciler.errors import ApplyError, StateError
from reconciler.targets.state.kept_document import Kept, KeptDocument
from schemas.load import load

OLD = load(DOCUMENT, "old")
NEW = OLD.model_copy(update={"snat": document(snat={"excludeCIDRs": ["192.0.2.0/24"]}).snat})
LONG, SHORT = timedelta(seconds=30), timedelta(milliseconds=50)


class Place:
    """A node on which the old document was applied."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.house = House(directory)
        self.house.begin_pod()
        self.house.work()
        self.work = Work(self.house.agent.parts.node)

    def excluded(self) -> set[IpAddress]:
        found = self.house.nft._objects
        values = found.values() if isinstance(found, dict) else found
        return {
            o.first for o in values if isinstance(o, NftElement) and o.set.startswith("no_snat")
        }

    def has_new(self) -> bool:
        return "192.0.2.0" in map(str, self.excluded())

    def apply(self, wait: timedelta) -> tuple[Any, bool]:
        return apply._try(
            self.work, NEW, Earlier(OLD, "the old one"), wait, Question(self.directory)
        )


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@contextmanager
def meanwhile(when: Callable[[], object], do: Callable[[], object]) -> Iterator[None]:
    """Do something in another thread, once it is time."""

    def act() -> None:
        until(when, "the time for it")
        do()

    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_what_is_not_confirmed_goes_back_when_the_time_is_over(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes, has_gone_back = place.apply(SHORT)
    assert has_gone_back
    assert exit_code(outcomes, remaining=True) == 0
    assert not place.has_new()
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "nft add" in line], "it was applied first"
    assert "going back to the old one: it was not confirmed within 50ms" in said
    assert said[-1] == "gone back to the old one"
    assert not (place.directory / NAME).exists()


def test_what_is_confirmed_elsewhere_stays(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    with meanwhile((place.directory / NAME).exists, lambda: confirm(place.directory)):
        _, has_gone_back = place.apply(LONG)
    assert not has_gone_back
    assert place.has_new()
    assert capsys.readouterr().err.splitlines()[-1] == "confirmed"
    with pytest.raises(StateError, match=r"nothing in .* waits to be confirmed$"):
        confirm(place.directory)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_is_impatient_goes_back_at_once(place: Place, number: int) -> None:
    before = signal.getsignal(number)
    is_ready = lambda: signal.getsignal(number) is not before  # noqa: E731
    with meanwhile(is_ready, lambda: os.kill(os.getpid(), number)):
        _, has_gone_back = place.apply(LONG)
    assert has_gone_back
    assert not place.has_new()
    assert signal.getsignal(number) is before


def test_what_fails_goes_back_at_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    real = place.house.nft.apply

    def refuse_new(actions: Any) -> Any:
        if any("192.0.2.0" in str(a) for a in actions):
            return tuple(ApplyError(str(a), "EINVAL", "no") for a in actions)
        return real(actions)

    monkeypatch.setattr(place.house.nft, "apply", refuse_new)
    _, has_gone_back = place.apply(LONG)
    assert has_gone_back
    assert not place.has_new()


def test_a_surprise_goes_back_too_and_is_not_swallowed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> bool:
        raise BrokenPipeError

    monkeypatch.setattr(Question, "wait", fail)
    with pytest.raises(BrokenPipeError):
        place.apply(LONG)
    assert not place.has_new()


@pytest.mark.parametrize(
    ("typed", "stays"), [(b"\n", True), (b"yes\n", True), (b"no", False), (b"", False)]
)
def test_enter_confirms_and_the_end_of_a_terminal_does_not(
    tmp_path: Path, typed: bytes, stays: bool
) -> None:
    read, write = os.pipe()
    os.write(write, typed)
    os.close(write)
    try:
        assert Question(tmp_path).wait(0.05, read) is stays
    finally:
        os.close(read)
    assert not (tmp_path / NAME).exists()


def test_what_was_typed_before_it_was_asked_is_no_answer(tmp_path: Path) -> None:
    ours, terminal = os.openpty()
    try:
        os.write(ours, b"\n")
        assert not Question(tmp_path).wait(0.05, terminal)
        question = Question(tmp_path)
        with meanwhile(lambda: True, lambda: press_until_gone(ours, tmp_path / NAME)):
            assert question.wait(30, terminal)
    finally:
        os.close(ours)
        os.close(terminal)


def press_until_gone(keyboard: int, path: Path) -> None:
    """Press Enter again and again: the first may come before it is asked."""

    def is_gone() -> bool:
        os.write(keyboard, b"\n")
        return not path.exists()

    until(is_gone, "the answer")


def test_a_question_of_a_process_that_was_killed_is_none(tmp_path: Path) -> None:
    (tmp_path / NAME).touch()
    with pytest.raises(StateError, match="was killed, and the node stays as it left it"):
        confirm(tmp_path)
    (tmp_path / NAME).touch()
    first = Question(tmp_path)  # it takes the file over
    with pytest.raises(StateError, match="cannot make"):
        Question(tmp_path)
    assert first.close()


def test_there_is_something_to_go_back_to_before_anything_is_changed(tmp_path: Path) -> None:
    kept = KeptDocument(tmp_path)
    with pytest.raises(StateError, match=r"nothing to go back to.*name one by --back-to"):
        apply._find_earlier(None, kept)
    kept.keep(Kept(DOCUMENT, 7, datetime(2026, 11, 30, tzinfo=UTC)))
    found = apply._find_earlier(None, kept)
    assert (found.document, found.name) == (OLD, "generation 7, accepted 2026-11-30 00:00:00Z")
    (tmp_path / "other.yaml").write_text(DOCUMENT)
    assert apply._find_earlier(tmp_path / "other.yaml", kept).name == f"{tmp_path}/other.yaml"


def test_what_was_applied_is_kept_as_the_daemon_keeps_it(tmp_path: Path) -> None:
    kept = KeptDocument(tmp_path)
    apply._keep(kept, "a: 1\n", 0.0)
    apply._keep(kept, "a: 1\n", 9.0)
    assert kept.recall() == Kept("a: 1\n", 1, datetime(1970, 1, 1, tzinfo=UTC))
    apply._keep(kept, "a: 2\n", 9.0)
    assert (last := kept.recall()) is not None
    assert (last.text, last.generation) == ("a: 2\n", 2)


@pytest.mark.parametrize(("text", "seconds"), [("60s", 60), ("5m", 300), ("1h", 3600)])
def test_a_wait_is_written_as_in_the_document(text: str, seconds: int) -> None:
    assert Wait().convert(text, None, None) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["60", "0s", "2h", "x"])
def test_what_is_no_wait_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Wait().convert(text, None, None)
