"""What of the state directory an uninstallation removes."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.engine.plan import compare
from reconciler.targets.state.directory import StateDirectory
from reconciler.targets.state.parts import StateParts


@pytest.fixture
def parts(tmp_path: Path) -> StateParts:
    state = StateDirectory(tmp_path / "state")
    state.prepare()
    state.lock()
    (state.intents / "one-eth0.json").write_text("no intent at all")
    (state.root / "look.json").touch()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/document.json").touch()
    return StateParts(state.root, tmp_path / "kept")


def test_both_directories_go_with_all_that_is_ours(parts: StateParts, tmp_path: Path) -> None:
    assert parts.apply(compare((), parts.observe()).actions) == ()  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    assert parts.observe() == frozenset()


def test_what_others_have_there_stays(parts: StateParts, tmp_path: Path) -> None:
    theirs = [tmp_path / "state/log", tmp_path / "kept/notes", tmp_path / "state/intents/deeper"]
    theirs[2].mkdir()
    for path in (*theirs[:2], theirs[2] / "file"):
        path.touch()
    failures = parts.apply(compare((), parts.observe()).actions)  # type: ignore[arg-type]
    assert all(path.exists() for path in theirs)
    assert [f.action for f in failures] == [f"rm -r {tmp_path}/state/intents"]
    assert {p.name for p in (tmp_path / "state").iterdir()} == {"log", "intents"}
