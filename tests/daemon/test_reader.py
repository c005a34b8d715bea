"""Reading the document beside the loops: what is new is told once, and parsed once."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from unittest.mock import Mock

import pytest

from reconciler.daemon import document as reader
from reconciler.daemon.document import InForce, Reader
from reconciler.daemon.duty import Conditions
from reconciler.daemon.triggers import Triggers
from reconciler.targets.state.kept_document import KeptDocument
from schemas.document import NodeNetwork
from schemas.problem import Problem, UncheckedError

GOOD = "apiVersion: node-network/v1alpha1\nkind: NodeNetwork\n"
BAD = GOOD + "snat: 1\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "node-network.yaml"
    path.write_text(GOOD)
    return path


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def reading(path: Path, told: list[str]) -> Reader:
    made = Reader(path, lambda: told.append("news"))
    assert made.look_first().document is not None
    return made


def test_what_is_new_is_told_and_taken_once(reading: Reader, path: Path, told: list[str]) -> None:
    reading.look_again()
    assert (told, reading.take()) == ([], None)
    path.write_text(BAD)
    for _ in range(2):
        reading.look_again()
    assert told == ["news"]
    taken = reading.take()
    assert taken is not None
    assert "snat" in str(taken.refused)
    assert reading.take() is None
    path.write_text(GOOD)
    reading.look_again()
    taken = reading.take()
    assert taken is not None
    assert taken.document is not None


def test_a_refused_document_is_not_parsed_again_while_it_stays_the_same(
    reading: Reader, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []
    real = reading.documents.load

    def load(text: str, source: str) -> NodeNetwork:
        parsed.append(text)
        return real(text, source)

    monkeypatch.setattr(reading.documents, "load", load)
    path.write_text(BAD)
    for _ in range(3):
        reading.look_again()
    assert parsed == [BAD]


def test_what_could_not_be_checked_is_checked_again_less_and_less_often(
    reading: Reader, path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its text is the same, and nothing is known of it; what is known of it costs a minute."""
    now, asked = 0.0, []
    monkeypatch.setattr(reading, "clock", lambda: now)

    def fail(text: str, source: str) -> NodeNetwork:
        asked.append(now)
        raise UncheckedError([Problem(source, 0, 0, "", "not checked")])

    path.write_text(f"{GOOD}maxPods: 7\n")
    with monkeypatch.context() as patch:
        patch.setattr(reading.documents, "load", fail)
        for seconds in range(0, 7200, 10):
            now = float(seconds)
            reading.look_again()
        assert asked == [0, 30, 90, 210, 450, 930, 1890, 3690, 5490]
        path.write_text(f"{GOOD}maxPods: 8\n")
        reading.look_again()
        assert asked[9:] == [7190], "it is another text"
    taken = reading.take()
    assert taken is not None
    assert (taken.text, taken.document) == (None, None)
    assert "not before 30 s have passed" in str(taken.refused)
    assert len(told) == 8, "it says something new only of another wait"
    path.write_text(f"{GOOD}maxPods: 7\n")
    reading.look_again()
    taken = reading.take()
    assert taken is not None
    assert taken.document is not None
    assert taken.document.max_pods == 7


def test_a_fifo_in_the_documents_place_is_refused_and_its_end_is_followed(
    reading: Reader, path: Path
) -> None:
    path.unlink()
    os.mkfifo(path)
    reading.look_again()
    taken = reading.take()
    assert taken is not None
    assert "it is a FIFO" in str(taken.refused)
    path.unlink()
    path.write_text(GOOD)
    reading.look_again()
    taken = reading.take()
    assert taken is not None
    assert taken.document is not None


def test_a_reading_that_hangs_holds_nobody_else(
    reading: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever takes is another thread: it finds what there was before, at once."""
    hanging, goes_on = threading.Event(), threading.Event()

    def read(path: Path) -> str:
        hanging.set()
        goes_on.wait()
        return BAD

    monkeypatch.setattr(reader, "read", read)
    thread = threading.Thread(target=reading.look_again)
    thread.start()
    try:
        assert hanging.wait(15)
        assert reading.take() is None
    finally:
        goes_on.set()
        thread.join()
    assert reading.take() is not None


def test_an_empty_document_is_not_taken_for_one_that_could_not_be_read(
    reading: Reader, path: Path
) -> None:
    path.unlink()
    reading.look_again()
    path.write_text("")
    reading.look_again()
    taken = reading.take()
    assert taken is not None
    assert "cannot be read" not in str(taken.refused)


def test_what_a_document_sets_is_found_out_once_for_who_asks(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hints, node = Triggers(), {"instance_type": "m5.large", "zone": "a", "node_name": "n"}
    in_force = InForce(path, KeptDocument(tmp_path), hints, Conditions(), lambda: 0.0)
    in_force.take_first()
    in_force.describe_wanted()
    assert in_force.find_settings(node) is None, "nobody had asked"
    with monkeypatch.context() as patch:
        failure = UncheckedError([Problem("settings", 0, 0, "", "not checked")])
        patch.setattr(in_force.reader.documents, "describe", Mock(side_effect=failure))
        in_force.describe_wanted()
        failed = in_force.find_settings(node)
    assert failed is not None
    assert (failed.settings, failed.failure) == ((), "settings: not checked")
    in_force.describe_wanted()
    assert in_force.find_settings(node) is failed, "not asked again at once"
    monkeypatch.setattr(in_force.reader, "clock", lambda: failed.until)
    in_force.describe_wanted()
    found = in_force.find_settings(node)
    assert found is not None
    assert [s.name for s in found.settings] == ["apiVersion", "kind"]
    monkeypatch.setattr(in_force.reader.documents, "describe", Mock(side_effect=AssertionError))
    in_force.describe_wanted()
    assert in_force.find_settings({**node, "zone": "b"}) is None
