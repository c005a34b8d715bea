"""Watches: what they cannot do, or lose, is a condition and costs latency only."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from reconciler.daemon import duty, triggers
from reconciler.daemon.duty import Conditions, Duties, Watchdog
from reconciler.daemon.ledger import Notifications
from reconciler.daemon.triggers import ChangeAttribution, FileWatch, KernelWatch, Triggers
from reconciler.engine.backoff import Delays
from reconciler.errors import WatchError

IN_ACCESS, IN_CLOSE_WRITE, IN_CLOSE_NOWRITE, IN_OPEN = 0x1, 0x8, 0x10, 0x20  # linux/inotify.h


@pytest.fixture
def marks() -> Triggers:
    return Triggers()


@pytest.fixture
def watch(tmp_path: Path, marks: Triggers) -> Iterator[FileWatch]:
    (tmp_path / "d").mkdir()
    made = FileWatch(tmp_path / "d", marks, "files")
    yield made
    made.stop()


def notices(directory: Path, marks: Triggers) -> bool:
    """Whether a new file is noticed; not what is left of earlier ones."""
    while marks.wait(0.1):
        pass
    (directory / "new").touch()
    (directory / "new").unlink()
    return "files" in marks.wait(5.0)


def test_without_a_free_inotify_instance_a_watch_says_so_and_is_had_once_there_is_one(
    watch: FileWatch, tmp_path: Path, marks: Triggers, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = triggers.Observer

    def refuse() -> Any:
        raise OSError(errno.EMFILE, "inotify instance limit reached")

    monkeypatch.setattr(triggers, "Observer", refuse)
    with pytest.raises(WatchError, match=r"raise fs\.inotify\.max_user_instances"):
        watch.keep()
    monkeypatch.setattr(triggers, "Observer", real)
    watch.keep()
    assert notices(tmp_path / "d", marks)


def masks(directory: Path) -> list[int]:
    """What the kernel tells this process of a directory (proc(5), fdinfo of inotify)."""
    inode, found = f"ino:{directory.stat().st_ino:x}", []
    for path in Path("/proc/self/fdinfo").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            lines = [x for x in path.read_text().splitlines() if inode in x.split()]
            found += [w for x in lines for w in x.split() if w.startswith("mask:")]
    return [int(word.removeprefix("mask:"), 16) for word in found]


def test_who_opens_reads_or_executes_a_file_wakes_no_thread(
    watch: FileWatch, tmp_path: Path
) -> None:
    watch.keep()
    (mask,) = masks(tmp_path / "d")
    assert not mask & (IN_ACCESS | IN_OPEN | IN_CLOSE_NOWRITE)
    assert mask & IN_CLOSE_WRITE


def test_a_directory_that_is_replaced_is_watched_again_and_one_that_is_gone_is_no_trouble(
    watch: FileWatch, tmp_path: Path, marks: Triggers
) -> None:
    directory = tmp_path / "d"
    watch.keep()
    assert notices(directory, marks)
    shutil.rmtree(directory)
    watch.keep()
    directory.mkdir()
    watch.keep()
    assert notices(directory, marks)
    directory.rename(tmp_path / "old")
    directory.mkdir()
    watch.keep()
    assert notices(directory, marks)


def test_a_watch_whose_thread_has_died_is_begun_anew(
    watch: FileWatch, tmp_path: Path, marks: Triggers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("threading.excepthook", lambda _: None)
    watch.keep()
    observer = watch._observer

    def die(*_: object) -> None:
        raise KeyError("event")

    with monkeypatch.context() as broken:
        broken.setattr(triggers._Mark, "on_any_event", die)
        (tmp_path / "d" / "x").touch()
        until(lambda: not observer.is_alive(), "the end of its thread")
    watch.keep()
    assert watch._observer is not observer
    assert notices(tmp_path / "d", marks)


@pytest.mark.kernel
def test_the_kernels_watch_goes_on_when_its_sockets_break_and_when_none_can_be_had(
    marks: Triggers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duty, "BACKOFF_S", Delays(0.001, 0.002))
    monkeypatch.setattr(triggers, "ALIVE_S", 0.01)
    conditions = Conditions()
    dog = Watchdog(lambda _: None)
    real = triggers._rtnetlink
    refused = [OSError(errno.EMFILE, "Too many open files"), KeyError("surprise")]

    def refuse() -> Any:
        raise refused[0]

    monkeypatch.setattr(triggers, "_rtnetlink", refuse)
    watch = KernelWatch(marks, ChangeAttribution(), Duties(conditions, dog), Notifications())
    watch.keep()
    try:
        until(lambda: "Watch" in {c["reason"] for c in conditions.all()})
        refused.pop(0)
        until(lambda: "InternalError" in {c["reason"] for c in conditions.all()})
        monkeypatch.setattr(triggers, "_rtnetlink", real)
        until(lambda: conditions.all() == [])
        assert "kernel" in marks.wait(5.0)
        opened = list(watch._sockets)
        os.close(opened[0].detach())
        until(lambda: watch._sockets and not set(watch._sockets) & set(opened), "new sockets")
        until(lambda: conditions.all() == [])
    finally:
        watch.stop()
    assert dog.stuck is None
