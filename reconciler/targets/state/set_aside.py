"""Records that could not be read: put aside for people, with the addresses found in them."""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from reconciler.ipam.records import SetAside
from reconciler.targets.files.bounded import printable, sync_directory
from reconciler.targets.state.codec import ATTACHMENTS, Kind, addresses_in, named_key
from reconciler.targets.state.record_file import Version, list_records, read_record

log = logging.getLogger(__name__)

SET_ASIDE = "unreadable"
"""Directory of records that could not be read; only people take anything out of it."""

RELEASED = ".released"
"""How the name of such a record ends once the pod it was about has ended."""

MAX_SET_ASIDE = 1000
"""Records that are put aside, and whose content is searched for addresses. Beyond it they stay
where they are, and only their names say what they were about."""


class SetAsideRecords:
    """The directory of records that are set aside, and those left where they were, by path."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.directory = f"{root}/{SET_ASIDE}"
        self.count = 0
        self._known: dict[str, tuple[Version, SetAside]] = {}
        self.left: dict[str, SetAside] = {}
        self._moved = 0
        self._last: tuple[SetAside, ...] | None = None

    def add(self, kind: Kind[Any], name: str, why: str, *, is_ours: bool) -> bool:
        """Move a record that cannot be read aside, if it is ours: it is kept, and not planned on.

        What cannot be moved is planned on as little, and named where it is. Returns which.
        """
        self._last = None
        source = f"{self.root}/{kind.directory}/{name}"
        target = f"{self.directory}/{kind.directory}-{name}"
        if is_ours and self._moved < MAX_SET_ASIDE:
            try:
                os.makedirs(self.directory, mode=0o700, exist_ok=True)  # noqa: PTH103
                os.rename(source, target)  # noqa: PTH104
                os.utime(target, follow_symlinks=False)  # from now on it is set aside
                sync_directory(Path(self.directory))
            except OSError as error:
                why = f"{why}; and it cannot be moved: {error.strerror}"
            else:
                self._moved += 1
                self.left.pop(source, None)
                return True
        if source not in self.left:
            text = f"{name.removesuffix('.json')} {_glimpse(source)}"
            self.left[source] = _described(source, kind.directory, name, text, time.time())
            log.warning("a record cannot be read", extra={"path": printable(source), "why": why})
        return False

    def path(self, record: SetAside) -> str:
        """Return where one is."""
        return record.path

    def remove(self, record: SetAside) -> None:
        """Keep the file for people, and stop planning on it. Raises an OSError."""
        self._last = None
        with suppress(FileNotFoundError):
            os.rename(record.path, f"{record.path}{RELEASED}")  # noqa: PTH104 - it may have any name
        self.left.pop(record.path, None)

    def forgive(self, path: str) -> None:
        """Forget one that was left where it was: it can be read again, or was written anew."""
        if self.left.pop(path, None):
            self._last = None

    def recall(self) -> tuple[SetAside, ...]:
        """Return what was last described, unless something was set aside, or put away, since."""
        return self.read() if self._last is None else self._last

    def read(self) -> tuple[SetAside, ...]:
        """Describe what is set aside."""
        found: dict[str, tuple[Version, SetAside]] = {}
        names: list[str] = []
        self.count = 0
        with suppress(OSError):  # no address hangs on it that its records' names do not say
            names, self.count = list_records(
                self.directory, lambda name: (name not in self._known, name)
            )
        for name in sorted(names):
            path = f"{self.directory}/{name}"
            with suppress(OSError):  # people take them away
                status = os.lstat(path)
                version = (status.st_ino, status.st_mtime_ns, status.st_size)
                known = self._known.get(name)
                if known is None or known[0] != version:
                    text = name.removesuffix(".json")
                    if len(found) < MAX_SET_ASIDE:
                        text += f" {_glimpse(path)}"
                    directory, _, rest = name.partition("-")
                    # A file of the future, by a clock that was set back, counts from now.
                    since = min(status.st_mtime, time.time())
                    known = version, _described(path, directory, rest, text, since)
                found[name] = known
        self._known, self._moved = found, len(found)
        self.left = {p: r for p, r in self.left.items() if os.path.lexists(p)}
        self._last = (*(record for _, record in found.values()), *self.left.values())
        return self._last

    def follow_clock(self, delta: float) -> None:
        """Move the times with the clock."""
        self._last = None
        self._known = {n: (v, _shift(r, delta)) for n, (v, r) in self._known.items()}
        self.left = {p: _shift(r, delta) for p, r in self.left.items()}


def _shift(record: SetAside, delta: float) -> SetAside:
    return replace(record, since=record.since + delta)


def _described(path: str, directory: str, name: str, text: str, since: float) -> SetAside:
    is_attachment = directory == ATTACHMENTS.directory
    key = named_key(name) if is_attachment else None
    return SetAside(path, since, frozenset(addresses_in(text)), key)


def _glimpse(path: str) -> str:
    """Return what can be read of a file that is no record, to search it for addresses."""
    try:
        return read_record(path, cut=True).decode("latin-1")
    except OSError:
        return ""
