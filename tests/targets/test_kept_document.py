"""The last good document on disk: whatever else is in its place is no document."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from reconciler.errors import StateError
from reconciler.targets.state.kept_document import MAX_KEPT_BYTES, Kept, KeptDocument
from schemas.load import MAX_BYTES

GOOD = Kept("kind: NodeNetwork\n", 7, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))


@pytest.fixture
def kept(tmp_path: Path) -> KeptDocument:
    made = KeptDocument(tmp_path / "var" / "kept")
    assert made.recall() is None, "nothing was kept yet"
    made.keep(GOOD)
    assert again(made) == GOOD
    return made


def again(kept: KeptDocument) -> Kept | None:
    """What another process finds."""
    return KeptDocument(kept.path.parent).recall()


def test_only_its_owner_may_read_it_and_nothing_is_left_beside_it(kept: KeptDocument) -> None:
    assert kept.path.stat().st_mode & 0o777 == 0o600
    assert kept.path.parent.stat().st_mode & 0o777 == 0o700
    assert list(kept.path.parent.iterdir()) == [kept.path]


def test_the_largest_document_is_kept_whatever_is_in_it(kept: KeptDocument) -> None:
    for text in ("\n" * MAX_BYTES, "\N{LATIN SMALL LETTER E WITH ACUTE}" * (MAX_BYTES // 2)):
        kept.keep(large := replace(GOOD, text=text))
        assert again(kept) == large


def change(**others: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | others))

    return write


def become(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def put(path: Path) -> None:
        path.unlink()
        make(path)

    return put


def link(path: Path) -> None:
    """Point to another file, as good as ours."""
    other = path.with_name("other")
    path.rename(other)
    path.symlink_to(other)


HOSTILE: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: path.write_bytes(b""),
    "huge": lambda path: os.truncate(path, MAX_KEPT_BYTES + 1),
    "no text": lambda path: path.write_bytes(b"\xff" * 100),
    "nested": lambda path: path.write_text("[" * 100_000),
    "a list": lambda path: path.write_text("[]"),
    "another version's": change(version=2),
    "document no text": change(document={}),
    "generation no number": change(generation=True),
    "generation below one": change(generation=0),
    "generation beyond counting": change(generation=1 << 53),
    "time no text": change(accepted=1.0),
    "time no time": change(accepted="yesterday"),
    "time without zone": change(accepted="2026-01-02T03:04:05"),
    "time beyond time": change(accepted="0001-01-01T00:00:00+14:00"),
    "symlink": link,
    "fifo": become(os.mkfifo),
    "directory": become(lambda path: path.mkdir()),
    "of another user": lambda path: os.chown(path, 65534, -1),
    "writable by its group": lambda path: path.chmod(0o620),
    "writable by all": lambda path: path.chmod(0o602),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_anything_else_in_its_place_is_no_document(kept: KeptDocument, what: str) -> None:
    HOSTILE[what](kept.path)
    with pytest.raises(StateError, match="the last good document cannot be read: "):
        again(kept)
    if what == "directory":
        with pytest.raises(StateError, match=f"cannot write {kept.path}"):
            kept.keep(GOOD)
        kept.path.rmdir()
    kept.keep(GOOD)
    assert again(kept) == GOOD, "it is put back"


def test_it_is_written_only_if_it_is_not_there(kept: KeptDocument) -> None:
    other = KeptDocument(kept.path.parent)
    assert other.recall() == GOOD
    before = kept.path.stat()
    for one in (kept, other):
        one.keep(GOOD)
    assert os.path.samestat(before, kept.path.stat())
    kept.path.unlink()
    kept.keep(GOOD)
    assert again(kept) == GOOD


def test_a_disk_that_takes_nothing_leaves_the_one_before(
    kept: KeptDocument, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        with pytest.raises(StateError, match="No space left on device"):
            kept.keep(replace(GOOD, generation=8))
    assert again(kept) == GOOD
    assert list(kept.path.parent.iterdir()) == [kept.path]
