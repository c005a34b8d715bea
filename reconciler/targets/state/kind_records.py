"""The records of one kind: what is on disk, what this process knows, and how it is changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Generic

from reconciler.core.attachment import Attachment, Intent, netns_inode, netns_path
from reconciler.errors import ObserveError
from reconciler.ipam.records import BY_KEY, Identity
from reconciler.targets.files.bounded import sync_directory
from reconciler.targets.netlink.namespaces import Place, own_namespace
from reconciler.targets.state.clock import Clock, shift
from reconciler.targets.state.codec import Kind, R
from reconciler.targets.state.ownership import SECOND, Lock
from reconciler.targets.state.record_file import (
    MAX_RECORDS,
    NO_FILE,
    OUT_OF_MEANS,
    UNREADABLE,
    Listing,
    Version,
    raise_for_means,
    read_record,
    version_of,
    why,
    write_atomically,
)
from reconciler.targets.state.set_aside import SetAsideRecords

IsAlive = Callable[[str, int], bool]
"""Whether the path of a namespace still leads to it, by its inode; 0 if that is not known."""

Parsed = dict[str, tuple[Version, R]]
"""Records that were read, by their files' names."""

Broken = dict[str, tuple[Version, str]]
"""Why files could not be read, by their names."""


class KindRecords(Generic[R]):
    """The files of one kind of record; those that have not changed are not parsed again.

    Args:
        kind: how they are called and written.
        root: the state directory.
        clock: moves the times of what was written before the clock was set.
    """

    def __init__(self, kind: Kind[R], root: Path, clock: Clock) -> None:
        self.kind = kind
        self.listing = Listing(f"{root}/{kind.directory}")
        self._root = root
        self._clock = clock
        self._parsed: Parsed[R] = {}
        self._broken: Broken = {}

    def load(self, is_alive: IsAlive, names: Collection[str] | None = None) -> tuple[R, ...]:
        """Read all records, or those of these names, in key order.

        Raises:
            ObserveError: the directory cannot be listed, or this process has not the means.
        """
        parsed, broken = self._read(names, is_alive)
        if names is None:
            self._parsed, self._broken = parsed, broken
        else:
            others = {n: b for n, b in self._broken.items() if n not in names}
            self._parsed, self._broken = self._parsed | parsed, others | broken
        return tuple(sorted((record for _, record in parsed.values()), key=BY_KEY))

    def write(self, record: R, was: R | None) -> None:
        """Write a record.

        Args:
            record: to write.
            was: what it replaces, if it is a change of what was seen.

        Raises:
            OSError: it cannot be written.
        """
        del was
        path = self.path(record)
        try:
            before = read_record(path)
        except OSError:
            before = b""
        write_atomically(path, self.kind.body(record, before) | self._clock.stamp(record))

    def path(self, record: R) -> Path:
        """Return where a record is, or would be."""
        return Path(self.listing.path, self.kind.name(record))

    def _list(self) -> list[str]:
        """List the directory; what is known, and what is called like a record, comes first."""
        return self.listing.names(
            lambda n: (n not in self._parsed, not self.kind.is_plausible(n), n)
        )

    def _read(self, names: Collection[str] | None, is_alive: IsAlive) -> tuple[Parsed[R], Broken]:
        """Read these files, or all; those that do not exist any more are left out."""
        parsed: Parsed[R] = {}
        broken: Broken = {}
        try:
            asked = self._list() if names is None else names
        except OSError as error:
            raise ObserveError(self.listing.path, str(error)) from error
        for name in asked:
            path, version = f"{self.listing.path}/{name}", NO_FILE
            try:
                version = version_of(path)
                if (failed := self._broken.get(name)) is not None and failed[0] == version:
                    broken[name] = failed
                    continue
                earlier = self._parsed.get(name)
                is_unchanged = earlier is not None and earlier[0] == version
                record = earlier[1] if earlier and is_unchanged else self._decode(path, name)
                parsed[name] = (version, with_life(record, is_alive))
            except FileNotFoundError:
                continue
            except UNREADABLE as error:
                raise_for_means(path, error)
                broken[name] = (version, why(error))
        return parsed, broken

    def _decode(self, path: str, name: str) -> R:
        record, body = self.kind.decode(read_record(path), name)
        return self._clock.shifted(record, body)


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

    def hold(self, records: Iterable[R]) -> None:
        """Know records that only the kernel remembers, until they are written and removed.

        Without the lock they are forgotten with the next ones: another process may write and
        remove them meanwhile.
        """
        if not self._lock.is_held:
            self._known.clear()
        for record in records:
            self._known.setdefault(self.kind.name(record), record)

    def recall_second(self) -> None:
        """Know what records say whose first name was lost, from their second."""
        if not self.kind.has_second_name:
            return
        start = f"{self.kind.directory}-"
        for path in islice((self._root / SECOND).glob(f"{start}*.json"), MAX_RECORDS):
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
                    self._overruled[name] = version_of(str(path))
            raise
        if self.kind.has_second_name:
            with suppress(OSError):  # it has its first name, which is what counts
                self._second(name).unlink(missing_ok=True)
                os.link(path, self._second(name))
        self._forget(name)
        self._aside.forget(str(path))
        if self._lock.is_held:
            self._known[name] = record

    def remove(self, record: R) -> None:
        """Remove a record; one that does not exist is removed already.

        Raises:
            OSError: the disk refuses.
        """
        path = self.path(record)
        self._second(path.name).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        self._forget(path.name)
        with suppress(FileNotFoundError):
            sync_directory(path.parent)

    def follow_clock(self, delta: float) -> None:
        """Move the times of what is known with the clock."""
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
            self._aside.forget(f"{self.listing.path}/{name}")
        for name, (_, reason) in list(broken.items()):
            self._guess(name)
            if self._aside.add(self.kind, name, reason, is_ours=self._lock.is_held):
                del broken[name]
        if self._lock.is_held:
            self._learn(parsed)
        asked = self._known.keys() & (self._known.keys() if names is None else set(names))
        lost = {name for name in asked if name not in parsed or name in self._overruled}
        for name in lost:
            parsed[name] = (NO_FILE, with_life(self._known[name], is_alive))
        self._unwritten = (set() if names is None else self._unwritten - set(names)) | lost
        return parsed, broken

    def _learn(self, parsed: Parsed[R]) -> None:
        """Know what is on disk, but for what counts more than it."""
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
        """Know of a record what its name says, if nothing else is known of it."""
        record = self.kind.guessed(name, time.time())
        if self._lock.is_held and record is not None:
            self._known.setdefault(name, record)


def with_life(record: R, is_alive: IsAlive) -> R:
    """Say whether a record's namespace is there: that is not in its file."""
    if isinstance(record, Intent):
        alive = is_alive(record.netns, record.netns_inode)
        return record if alive is record.netns_alive else replace(record, netns_alive=alive)
    if isinstance(record, Attachment):
        alive = is_alive(netns_path(record.netns), netns_inode(record.netns))
        return record if alive is record.netns_alive else replace(record, netns_alive=alive)
    return record


def is_alive(netns: str, inode: int, own: Place | None = None) -> bool:
    """Whether the path still leads to the namespace it led to; a path can be reused.

    Never if it leads to our own, which is the host's: a record without an inode may be of a path
    like /proc/7/ns/net whose process has ended. The host would lose its own network.
    """
    if not netns:
        return False
    try:
        found = os.stat(netns)  # noqa: PTH116 - there are hundreds
    except OSError as error:
        return error.errno in OUT_OF_MEANS  # nothing is released on that
    return inode in (0, found.st_ino) and (found.st_dev, found.st_ino) != (own or own_namespace())
