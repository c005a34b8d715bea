"""The state directory: intents, attachments and addresses that wait, one JSON file each.

Written as temporary file, fsync, rename, fsync of the directory, so that a record is there whole
or not at all. ``/run`` is the right place: a reboot ends every pod, so it should end every intent.
"""

from __future__ import annotations

import json
import logging
import threading
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from reconciler.core.attachment import Attachment, AttachmentKey, Cooling, Intent
from reconciler.core.facts import Node
from reconciler.engine.plan import Change, Verb
from reconciler.errors import ApplyError, ObserveError, StateError
from reconciler.ipam.cloud import Cloud
from reconciler.ipam.ec2_action import Creation
from reconciler.ipam.records import BY_KEY, Records, SetAside
from reconciler.ipam.release import Quarantine
from reconciler.targets.files.bounded import read_file
from reconciler.targets.netlink.namespaces import own_namespace
from reconciler.targets.state.clock import Clock, boot_id, clock_offset
from reconciler.targets.state.codec import (
    ATTACHMENTS,
    COOLING,
    CREATIONS,
    QUARANTINE,
    VERSION,
    Record,
    check_version,
    key_stem,
)
from reconciler.targets.state.intent_records import IntentRecords
from reconciler.targets.state.kind_records import IsAlive, OurRecords, is_alive
from reconciler.targets.state.observation import (
    MAX_OBSERVATION_BYTES,
    decode_observation,
    encode_observation,
)
from reconciler.targets.state.ownership import OwnedDirectory
from reconciler.targets.state.record_file import (
    MAX_RECORDS,
    UNREADABLE,
    Json,
    why,
    write_atomically,
)
from reconciler.targets.state.set_aside import SetAsideRecords

log = logging.getLogger(__name__)

DEFAULT = Path("/run/node-network")
"""Where the CNI executable looks as well, unless its configuration says otherwise."""

LOOK = "look.json"
"""The last observation of EC2."""


class StateDirectory(OwnedDirectory):
    """The records below one directory.

    The holder of the lock knows every record of ours, because no other process writes them. A
    record that is not on disk any more, or cannot be read, is therefore not gone: what is known of
    it counts until the reconciler itself removes it, and is told as unwritten until it is on disk.
    """

    def __init__(self, root: Path = DEFAULT, *, offset: Callable[[], float] | None = None) -> None:
        """Know of the directory; nothing is read or made yet.

        Args:
            root: where it is.
            offset: returns seconds from boot's clock to the wall clock's; it changes with a step.
        """
        super().__init__(root)
        self._clock = clock = Clock(boot_id(), offset or clock_offset)
        self._memory = threading.RLock()
        self._aside = SetAsideRecords(root)
        self._intents = IntentRecords(root, clock)
        ours = root, clock, self._lock, self._aside
        self._attachments = OurRecords(ATTACHMENTS, *ours)
        self._ours: dict[type, OurRecords[Any]] = {
            Attachment: self._attachments,
            Cooling: OurRecords(COOLING, *ours),
            Quarantine: OurRecords(QUARANTINE, *ours),
            Creation: OurRecords(CREATIONS, *ours),
        }

    def lock(self) -> None:
        """Become this directory's only writer, until the process ends.

        Raises:
            LockedError: another process is.
            StateError: the lock's file cannot be opened.
        """
        super().lock()
        self._intents.sweep()
        for records in self._ours.values():
            records.recall_second()

    def observe(self, desired: Iterable[object] = ()) -> Records:
        """Read all records, each kind in key order; a missing directory holds none.

        What cannot be understood is left out and named. An intent comes from outside, and no
        address hangs on it. A record of ours is set aside: what this process, or the kernel, knows
        of it explains it again, and the addresses that can still be made out in it are named.

        Raises:
            ObserveError: it is no directory, a directory cannot be listed, or this process has not
                the means to read. Nothing is planned then.
        """
        del desired
        try:
            if self.root.exists() and not self.root.is_dir():
                raise ObserveError(f"state directory {self.root}", "it is no directory")
        except PermissionError as error:
            reason = f"{error.strerror}; run as root"
            raise ObserveError(f"state directory {self.root}", reason) from error
        alive = _remembered_life()
        with self._memory:
            intents = self._intents.load(alive)
            return self._with_others(intents, self._attachments.load(alive), alive)

    def observe_at(self, keys: Collection[AttachmentKey], before: Records) -> Records:
        """Read the records of these attachments, and those that are no pod's.

        Args:
            keys: of the intents and attachments to read again.
            before: what was last read; of all others it is still true.

        Raises:
            ObserveError: as for ``observe``.
        """
        names = sorted(f"{key_stem(key)}.json" for key in keys)
        alive = _remembered_life()
        with self._memory:
            intents = self._intents.load(alive, names)
            attachments = self._attachments.load(alive, names)
            return self._with_others(
                _updated(before.intents, keys, intents),
                _updated(before.attachments, keys, attachments),
                alive,
            )

    def _with_others(
        self, intents: tuple[Intent, ...], attachments: tuple[Attachment, ...], alive: IsAlive
    ) -> Records:
        """Add the records that are no pod's; their times move with a clock that was set."""
        if delta := self._clock.follow():
            log.warning("the clock was set", extra={"seconds": round(delta, 1)})
            for records in self._ours.values():
                records.follow_clock(delta)
            self._aside.follow_clock(delta)
        listings = [self._intents.listing, self._aside.listing]
        listings += [records.listing for records in self._ours.values()]
        return Records(
            intents=intents,
            attachments=attachments,
            cooling=self._ours[Cooling].load(alive),
            quarantined=self._ours[Quarantine].load(alive),
            creations=self._ours[Creation].load(alive),
            unreadable=self._intents.unreadable,
            set_aside=self._aside.read(),
            unwritten=frozenset(i for records in self._ours.values() for i in records.unwritten),
            crowded=tuple(
                (listing.path, f"{listing.count} files, of which {MAX_RECORDS} are looked at")
                for listing in sorted(listings, key=lambda one: one.path)
                if listing.is_crowded
            ),
        )

    def hold(self, attachments: Iterable[Attachment]) -> None:
        """Know attachments that only the kernel remembers, until they are written and removed.

        Without the lock they are forgotten with the next ones: another process may write and
        remove them meanwhile.
        """
        with self._memory:
            self._attachments.hold(attachments)

    def apply(self, actions: Sequence[Change[Record | SetAside]]) -> tuple[ApplyError, ...]:
        """Write and unlink records, in order.

        What fails stops the later actions on the same attachment or address, because they rely on
        it, and no others.
        """
        failures: list[ApplyError] = []
        stopped: dict[object, ApplyError] = {}
        for action in actions:
            subjects = _subjects(action.object)
            if earlier := next((stopped[s] for s in subjects if s in stopped), None):
                failure = ApplyError(str(action), earlier.reason, earlier.message)
            else:
                records = self._records(action.object)
                try:
                    with self._memory:
                        if action.verb is Verb.DELETE:
                            records.remove(action.object)
                        else:
                            records.write(action.object, action.was)
                    continue
                except OSError as error:
                    text = f"{records.path(action.object)}: {error.strerror}"
                    failure = ApplyError.from_errno(str(action), error, text)
            failures.append(failure)
            stopped |= dict.fromkeys(subjects, failure)
        return tuple(failures)

    def _records(self, record: object) -> Any:
        """Return what changes records like this one."""
        if isinstance(record, SetAside):
            return self._aside
        return self._ours.get(type(record), self._intents)

    def hand_over(self, release: Json) -> None:
        """Take a release that the executable could not write down.

        It is written here if that is possible, or else remembered: until the intent goes, until
        another ADD replaces it, or until this process ends. After that the end of the pod's
        namespace says the same.

        Raises:
            ValueError, KeyError, TypeError: it is no release.
        """
        intent = self._intents.release_of(release)
        try:
            write_atomically(self._intents.path(intent), release)
        except OSError:
            with self._memory:  # another thread may be looking, and would lose or miss it
                self._intents.keep(intent)

    def record(self, creation: Creation) -> None:
        """Write down an ENI's creation before EC2 is asked.

        Raises:
            OSError: it cannot be written.
        """
        with self._memory:
            self._ours[Creation].write(creation)

    def forget(self, creation: Creation) -> None:
        """Take out a creation that has certainly not happened."""
        with self._memory:
            self._ours[Creation].remove(creation)

    def remember(self, node: Node, cloud: Cloud) -> None:
        """Keep an observation of EC2, so that a restart does not have to wait for the next one.

        Raises:
            StateError: it cannot be written.
        """
        path = self.root / LOOK
        try:
            write_atomically(path, {"version": VERSION} | encode_observation(node, cloud))
        except OSError as error:
            raise StateError(f"cannot write {path}: {error.strerror}") from error

    def recall(self) -> tuple[Node, Cloud] | None:
        """Return the last observation that was kept; None if there is none that can be read.

        It is a cache: the next observation replaces it, whatever it holds.
        """
        try:
            body = json.loads(read_file(self.root / LOOK, MAX_OBSERVATION_BYTES, follow=False))
            check_version(body)
            return decode_observation(body)
        except FileNotFoundError:
            return None
        except UNREADABLE as error:
            log.warning(
                "the last observation of EC2 cannot be read; another is made",
                extra={"why": why(error)},
            )
            return None


def _remembered_life() -> IsAlive:
    """An intent and its attachment ask for the same namespace: look at each once."""
    return cache(partial(is_alive, own=own_namespace()))


def _subjects(record: Record | SetAside) -> tuple[object, ...]:
    """What a record is about: later actions on the same rely on it."""
    match record:
        case Attachment():
            return (record.key, *record.addresses)
        case Cooling(address):
            return (address,)
        case SetAside():
            return (record.path,) if record.attachment is None else (record.attachment,)
        case _:
            return (record.key,)


def _updated(
    before: Iterable[Any], keys: Collection[AttachmentKey], now: Iterable[Any]
) -> tuple[Any, ...]:
    """Put what was read of these keys into the place of what was read before."""
    updated = list(before)
    for key in keys:
        place = bisect_left(updated, key, key=BY_KEY)
        if place < len(updated) and updated[place].key == key:
            del updated[place]
    for record in now:
        insort(updated, record, key=BY_KEY)
    return tuple(updated)
