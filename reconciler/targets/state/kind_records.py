"""The records of one kind: what is on disk, what this process knows, and how it is changed."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Generic

from reconciler.core.attachment import AttachmentKey, Intent, IntentState
from reconciler.errors import ObserveError
from reconciler.ipam.records import BY_KEY, Identity
from reconciler.targets.files.bounded import printable, sync_directory
from reconciler.targets.state import record_file as disk
from reconciler.targets.state.codec import INTENTS, Json, Kind, R, check_version
from reconciler.targets.state.record_file import (
    OUT_OF_MEANS,
    UNREADABLE,
    Clock,
    IsAlive,
    Lock,
    Version,
)
from reconciler.targets.state.set_aside import SetAsideRecords

SECOND = "second"
"""Directory of the second names of records."""

MAX_UNREADABLE = 20
"""Intents that cannot be understood, each named; the others are counted."""

ASIDE = ".aside"
"""How the name of an intent ends that is being removed."""

Parsed = dict[str, tuple[Version, R]]
"""Records that were read, by their files' names."""

Broken = dict[str, tuple[Version, str]]
"""Why files could not be read, by their names."""


class KindRecords(Generic[R]):
    """The files of one kind of record; those that have not changed are not parsed again."""

    def __init__(self, kind: Kind[R], root: Path, clock: Clock) -> None:
        self.kind = kind
        self.directory = f"{root}/{kind.directory}"
        self.count = 0
        self._root = root
        self._clock = clock
        self._parsed: Parsed[R] = {}
        self._broken: Broken = {}

    def load(self, is_alive: IsAlive, names: Collection[str] | None = None) -> tuple[R, ...]:
        """Read all records, or those of these names, in key order."""
        parsed, broken = self._read(names, is_alive)
        if names is None:
            self._parsed, self._broken = parsed, broken
        else:
            others = {n: b for n, b in self._broken.items() if n not in names}
            self._parsed, self._broken = self._parsed | parsed, others | broken
        return tuple(sorted((record for _, record in parsed.values()), key=BY_KEY))

    def write(self, record: R, was: R | None = None) -> None:
        """Write a record; it may be a change of what was seen. Raises an OSError."""
        del was
        path = self.path(record)
        try:
            before = disk.read_record(path)
        except OSError:
            before = b""
        stamp = self._clock.stamp() if self.kind.times else {}
        disk.write_atomically(path, self.kind.body(record, before) | stamp)

    def path(self, record: R) -> Path:
        """Return where a record is, or would be."""
        return Path(self.directory, self.kind.name(record))

    def _list(self) -> list[str]:
        """List the directory; what is known, and what is called like a record, comes first."""
        self.count = 0
        names, self.count = disk.list_records(
            self.directory, lambda n: (n not in self._parsed, not self.kind.is_plausible(n), n)
        )
        return names

    def _read(self, names: Collection[str] | None, is_alive: IsAlive) -> tuple[Parsed[R], Broken]:
        """Read these files, or all; those that do not exist any more are left out."""
        parsed: Parsed[R] = {}
        broken: Broken = {}
        try:
            asked = self._list() if names is None else names
        except OSError as error:
            raise ObserveError(self.directory, str(error)) from error
        for name in asked:
            path, version = f"{self.directory}/{name}", disk.NO_FILE
            try:
                version = disk.version_of(path)
                if (failed := self._broken.get(name)) is not None and failed[0] == version:
                    broken[name] = failed
                    continue
                known = self._parsed.get(name)
                record = known[1] if known and known[0] == version else self._decode(path, name)
                parsed[name] = (version, disk.with_life(record, is_alive))
            except FileNotFoundError:
                continue
            except UNREADABLE as error:
                if isinstance(error, MemoryError) or getattr(error, "errno", 0) in OUT_OF_MEANS:
                    raise ObserveError(f"record {printable(path)}", disk.why(error)) from error
                broken[name] = (version, disk.why(error))
        return parsed, broken

    def _decode(self, path: str, name: str) -> R:
        record, body = self.kind.decode(disk.read_record(path), name)
        return self.kind.shift(record, self._clock.set_since(body))


class OurRecords(KindRecords[R]):
    """Records of which the holder of the lock is the only writer.

    What is known of one counts until this process removes it. While it is not on disk, or older
    there, it is *unwritten*. What cannot be read is set aside.
    """

    def __init__(
        self, kind: Kind[R], root: Path, clock: Clock, lock: Lock, aside: SetAsideRecords
    ) -> None:
        super().__init__(kind, root, clock)
        self._lock = lock
        self._aside = aside
        self._known: dict[str, R] = {}
        self._unwritten: set[str] = set()
        self._overruled: dict[str, Version | None] = {}
        self._was_read = False

    @property
    def unwritten(self) -> Iterator[Identity]:
        """Identities of the records that count and are not on disk."""
        return ((r.kind, r.key) for _, r in (self._parsed[name] for name in self._unwritten))

    def recall(self, is_alive: IsAlive) -> tuple[R, ...]:
        """Return all that count, in key order: without a look, if this process is their writer."""
        if not (self._lock.is_held and self._was_read):
            return self.load(is_alive)
        return tuple(sorted(self._known.values(), key=BY_KEY))

    def hold(self, records: Iterable[R]) -> None:
        """Count records that only the kernel shows, until they are written or gone.

        Without the lock they are forgotten with the next ones: another process may write and
        remove them meanwhile.
        """
        if not self._lock.is_held:
            self._known.clear()
        for record in records:
            self._known.setdefault(self.kind.name(record), record)

    def recall_second(self) -> None:
        """Read records whose first file was lost from their second one."""
        if not self.kind.has_second_name:
            return
        start = f"{self.kind.directory}-"
        for path in islice((self._root / SECOND).glob(f"{start}*.json"), disk.MAX_RECORDS):
            name = path.name.removeprefix(start)
            try:
                self._known[name] = self._decode(str(path), name)
            except UNREADABLE:
                self._guess(name)

    def write(self, record: R, was: R | None = None) -> None:
        """Write a record. A change that the disk does not take counts until it takes it."""
        path = self.path(record)
        name = path.name
        try:
            super().write(record, was)
        except OSError:
            if was is not None and self._lock.is_held:
                self._known[name], self._overruled[name] = record, None
                with suppress(OSError, ValueError):
                    self._overruled[name] = disk.version_of(str(path))
            raise
        if self.kind.has_second_name:
            with suppress(OSError):  # it has its first name, which is what counts
                self._second(name).unlink(missing_ok=True)
                os.link(path, self._second(name))
        self._forget(name)
        self._aside.forgive(str(path))
        if self._lock.is_held:
            self._known[name] = record

    def remove(self, record: R) -> None:
        """Remove a record; one that does not exist is removed already. Raises an OSError."""
        path = self.path(record)
        self._second(path.name).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        self._forget(path.name)
        with suppress(FileNotFoundError):
            sync_directory(path.parent)

    def follow_clock(self, delta: float) -> None:
        """Move the times of what is known with the clock."""
        shift = self.kind.shift
        self._parsed = {n: (v, shift(r, delta)) for n, (v, r) in self._parsed.items()}
        self._known = {n: shift(r, delta) for n, r in self._known.items()}

    def _forget(self, name: str) -> None:
        self._known.pop(name, None)
        self._unwritten.discard(name)
        self._overruled.pop(name, None)

    def _second(self, name: str) -> Path:
        return self._root / SECOND / f"{self.kind.directory}-{name}"

    def _list(self) -> list[str]:
        """List the directory; or nothing, if all that was in it is known anyway."""
        try:
            return super()._list()
        except OSError as error:
            if self._lock.is_held and self._was_read and error.errno not in OUT_OF_MEANS:
                return []
            raise

    def _read(self, names: Collection[str] | None, is_alive: IsAlive) -> tuple[Parsed[R], Broken]:
        """Set aside what cannot be read; add what is known and not on disk, or newer than it."""
        parsed, broken = super()._read(names, is_alive)
        self._was_read = True
        for name in parsed if self._aside.left else ():
            self._aside.forgive(f"{self.directory}/{name}")
        for name, (_, reason) in list(broken.items()):
            self._guess(name)
            if self._aside.add(self.kind, name, reason, is_ours=self._lock.is_held):
                del broken[name]
        if self._lock.is_held:
            self._learn(parsed)
        asked = self._known.keys() & (self._known.keys() if names is None else set(names))
        lost = {name for name in asked if name not in parsed or name in self._overruled}
        for name in lost:
            parsed[name] = (disk.NO_FILE, disk.with_life(self._known[name], is_alive))
        self._unwritten = (set() if names is None else self._unwritten - set(names)) | lost
        return parsed, broken

    def _learn(self, parsed: Parsed[R]) -> None:
        """Take over what is on disk, except where what this process knows counts more."""
        for name, version in list(self._overruled.items()):
            if name in parsed and parsed[name][0] != version:
                del self._overruled[name]  # another program has written it since: that counts
        if not self.kind.is_edited:
            self._overruled |= {
                name: version
                for name, (version, record) in parsed.items()
                if self._known.get(name, record) != record
            }
        self._known |= {
            name: record for name, (_, record) in parsed.items() if name not in self._overruled
        }

    def _guess(self, name: str) -> None:
        """Take over what a record's name says, if nothing else is known of it."""
        record = self.kind.guessed(name, time.time())
        if self._lock.is_held and record is not None:
            self._known.setdefault(name, record)


class IntentRecords(KindRecords[Intent]):
    """The intents, which the executable writes; some releases it can only hand over."""

    def __init__(self, root: Path, clock: Clock) -> None:
        super().__init__(INTENTS, root, clock)
        self._handed_over: dict[AttachmentKey, str] = {}

    @property
    def unreadable(self) -> tuple[str, ...]:
        """Name those that cannot be understood: some of them, and how many there are."""
        found = [
            f"{printable(f'{self.directory}/{name}')}: {self._broken[name][1]}"
            for name in sorted(self._broken)[:MAX_UNREADABLE]
        ]
        if (more := len(self._broken) - MAX_UNREADABLE) > 0:
            found.append(f"{self.directory}: {more} more cannot be understood")
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
        """Read a release that the executable hands over; needs no lock."""
        check_version(body)
        intent = self.kind.parse(body)
        if intent.state is not IntentState.RELEASED:
            raise ValueError("it is no release")
        if self.path(intent).parent != Path(self.directory):
            raise ValueError("it names no attachment")
        return intent

    def keep(self, release: Intent) -> None:
        """Remember a release that cannot be written."""
        self._handed_over[release.key] = release.attempt

    def write(self, record: Intent, was: Intent | None = None) -> None:
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
        for path in Path(self.directory).glob(f".*{ASIDE}"):
            with suppress(OSError):  # a read-only disk: the next process comes back to it
                path.unlink()

    def _as_told(self, intent: Intent) -> Intent:
        if self._handed_over.get(intent.key) == intent.attempt:
            return replace(intent, state=IntentState.RELEASED)
        return intent

    def _check_unchanged(self, path: Path, seen: Intent) -> None:
        """Raise an OSError if the executable has replaced an intent since it was seen."""
        try:
            body = json.loads(disk.read_record(path))
            check_version(body)
            now = self._as_told(self.kind.parse(body))
        except UNREADABLE:  # what does not exist, or is no intent, was not written by it
            return
        if replace(now, netns_alive=seen.netns_alive) != seen:
            raise OSError(errno.EAGAIN, "it was replaced meanwhile")
