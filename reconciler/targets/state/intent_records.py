"""Intents: the executable writes them, at any time; some releases it can only hand over."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from reconciler.core.attachment import AttachmentKey, Intent, IntentState
from reconciler.targets.files.bounded import sync_directory
from reconciler.targets.state.clock import Clock
from reconciler.targets.state.codec import INTENTS, check_version
from reconciler.targets.state.kind_records import IsAlive, KindRecords
from reconciler.targets.state.record_file import (
    UNREADABLE,
    Json,
    printable,
    read_record,
)

MAX_UNREADABLE = 20
"""Intents that cannot be understood, each named; the others are counted."""

ASIDE = ".aside"
"""How the name of an intent ends that is being removed."""


class IntentRecords(KindRecords[Intent]):
    """The intents, and the releases that were handed over and could not be written."""

    def __init__(self, root: Path, clock: Clock) -> None:
        super().__init__(INTENTS, root, clock)
        self._handed_over: dict[AttachmentKey, str] = {}

    @property
    def unreadable(self) -> tuple[str, ...]:
        """Name those that cannot be understood: some of them, and how many there are."""
        found = [
            f"{printable(f'{self.listing.path}/{name}')}: {self._broken[name][1]}"
            for name in sorted(self._broken)[:MAX_UNREADABLE]
        ]
        if (more := len(self._broken) - MAX_UNREADABLE) > 0:
            found.append(f"{self.listing.path}: {more} more cannot be understood")
        return tuple(found)

    def load(self, is_alive: IsAlive, names: Collection[str] | None = None) -> tuple[Intent, ...]:
        """Read intents, and what was said of them without being written."""
        intents = super().load(is_alive, names)
        if not self._handed_over:
            return intents
        if names is None:
            present = {i.key for i in intents}
            self._handed_over = {k: a for k, a in self._handed_over.items() if k in present}
        return tuple(map(self._as_told, intents))

    def release_of(self, body: Json) -> Intent:
        """Read a release that the executable hands over; needs no lock.

        Raises:
            ValueError, KeyError, TypeError: it is no release.
        """
        check_version(body)
        intent = self.kind.parse(body)
        if intent.state is not IntentState.RELEASED:
            raise ValueError("it is no release")
        if self.path(intent).parent != Path(self.listing.path):
            raise ValueError("it names no attachment")
        return intent

    def keep(self, release: Intent) -> None:
        """Remember a release that cannot be written."""
        self._handed_over[release.key] = release.attempt

    def write(self, record: Intent, was: Intent | None) -> None:
        """Write an intent, unless the executable has replaced it."""
        self._check_unchanged(self.path(record), was or record)
        super().write(record, was)

    def remove(self, record: Intent) -> None:
        """Remove an intent, unless the executable has replaced it since it was seen.

        It is looked at in a place where no other process writes: between a look at its own place
        and the unlink, a container may be started again.

        Raises:
            OSError: it was replaced, and stays; or the disk refuses.
        """
        path = self.path(record)
        aside = path.with_name(f".{path.name}{ASIDE}")
        with suppress(FileNotFoundError):
            path.rename(aside)
            try:
                self._check_unchanged(aside, record)
            except OSError:
                with suppress(FileExistsError):  # one that is newer still counts
                    os.link(aside, path)
                raise
            finally:
                aside.unlink()
        with suppress(FileNotFoundError):
            sync_directory(path.parent)

    def sweep(self) -> None:
        """Remove what a killed process was removing: it had nothing left to do for it."""
        for path in Path(self.listing.path).glob(f".*{ASIDE}"):
            with suppress(OSError):  # a read-only disk: the next process comes back to it
                path.unlink()

    def _as_told(self, intent: Intent) -> Intent:
        if self._handed_over.get(intent.key) == intent.attempt:
            return replace(intent, state=IntentState.RELEASED)
        return intent

    def _check_unchanged(self, path: Path, seen: Intent) -> None:
        """Refuse to replace an intent that the executable has replaced since it was seen.

        Raises:
            OSError: it has; the next observation will see what it is now.
        """
        try:
            body = json.loads(read_record(path))
            check_version(body)
            now = self._as_told(self.kind.parse(body))
        except UNREADABLE:  # what does not exist, or is no intent, was not written by it
            return
        if replace(now, netns_alive=seen.netns_alive) != seen:
            raise OSError(errno.EAGAIN, "it was replaced meanwhile")
