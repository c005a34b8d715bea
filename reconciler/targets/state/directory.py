"""The state directory: intents, attachments and addresses that wait, one JSON file each.

Written as temporary file, fsync, rename, fsync of the directory, so that a record is there whole
or not at all. ``/run`` is the right place: a reboot ends every pod, so it should end every intent.
"""

from __future__ import annotations

import errno
import json
import logging
import threading
import time
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from reconciler.core.attachment import Attachment, AttachmentKey, Cooling, Intent
from reconciler.core.facts import Node
from reconciler.egress.destinations import NO_EGRESS, Egress
from reconciler.engine.plan import Change, Verb
from reconciler.errors import ApplyError, Issue, ObserveError, StateError
from reconciler.ipam.cloud import Cloud
from reconciler.ipam.ec2_action import Creation
from reconciler.ipam.identity import EgressIdentity
from reconciler.ipam.records import BY_KEY, Records, SetAside
from reconciler.ipam.release import Quarantine
from reconciler.targets.files.bounded import read_file
from reconciler.targets.state import codec, observation
from reconciler.targets.state import record_file as disk
from reconciler.targets.state.kept_identities import KeptIdentities
from reconciler.targets.state.kind_records import SECOND, IntentRecords, OurRecords
from reconciler.targets.state.record_file import IsAlive, Lock
from reconciler.targets.state.set_aside import SET_ASIDE, SetAsideRecords

log = logging.getLogger(__name__)

DEFAULT = Path("/run/node-network")
"""Where the CNI executable looks as well, unless its configuration says otherwise."""

WRITING_S = 60.0
"""Seconds after which no process is still writing a temporary file."""

LOCK = "lock"

LOOK = "look.json"
"""The last observation of EC2."""

SOURCES = "sources.json"
"""What was last known of the document's sources."""

T = TypeVar("T")
B = TypeVar("B", Intent, Attachment)


class OwnedDirectory:
    """A directory with one directory for each kind of record, and at most one writer.

    ``intents`` is where the executable writes, ``socket`` where the reconciler answers it.
    ``keep``: what must outlive a boot is there as well; by default in the directory itself.
    """

    def __init__(self, root: Path, keep: Path | None = None) -> None:
        self.root = root
        self.kept = KeptIdentities(keep or root)
        self.intents = root / codec.INTENTS.directory
        self.socket = root / "node-network.sock"
        self._lock = Lock(root / LOCK)

    def prepare(self) -> None:
        """Make the directories, readable by root only."""
        try:
            for kind in codec.KINDS:
                path = self.root / kind.directory
                path.mkdir(parents=True, exist_ok=True, mode=0o700)
                if path.stat().st_mode & 0o077:
                    with suppress(OSError):  # a read-only disk does not keep pods from starting
                        path.chmod(0o700)
            for name in (SET_ASIDE, SECOND):
                with suppress(OSError):  # what cannot be read then stays where it is
                    (self.root / name).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            cure = "run as root" if error.errno == errno.EACCES else "free or remount it"
            raise StateError(f"cannot make {self.root}: {error.strerror}; {cure}") from error

    def lock(self) -> None:
        """Become this directory's only writer, until the process ends."""
        self._lock.take(
            f"already reconciles this node ({self.root}); it applies what differs by itself: use "
            "'node-network diff' or 'node-network status'"
        )

    @property
    def is_own(self) -> bool:
        """Whether the lock's file is still the one that is held here."""
        return self._lock.is_own

    def reclaim(self) -> tuple[Issue, ...]:
        """Make again what others have removed of the directory, its lock included; say what.

        A second reconciler could take a lock whose file is another one than is held here: then a
        LockedError says that the directory is not ours any more.
        """
        if not self._lock.is_held:
            return ()
        directories = (kind.directory for kind in codec.KINDS)
        missing = [name for name in directories if not (self.root / name).is_dir()]
        self.prepare()
        if not self.is_own:
            missing.append("lock")
            self._lock.take(
                f"has taken over {self.root}, which was removed or replaced; it reconciles this "
                "node now, and this process ends"
            )
        not_kept = self.kept.catch_up()
        if not missing:
            return not_kept
        return (
            *not_kept,
            Issue(
                f"state directory {self.root}",
                "DirectoryReplaced",
                f"{', '.join(missing)} were removed by another program and are made again; what "
                "this process knows of the records is written again. Find out who removes them",
            ),
        )

    def sweep(self) -> None:
        """Remove what killed writers have left half-written."""
        oldest = time.time() - WRITING_S
        try:
            left = list(self.root.glob("*/.*.tmp"))
        except OSError as error:
            raise ObserveError(f"state directory {self.root}", disk.why(error)) from error
        for path in left:
            with suppress(OSError):  # its writer was only slow, or the disk is read-only
                if path.stat().st_mtime < oldest:
                    path.unlink()


class StateDirectory(OwnedDirectory):
    """The records below one directory; nothing is read or made yet.

    The holder of the lock knows every record of ours, because no other process writes them. A
    record that is not on disk any more, or cannot be read, is therefore not gone: what is known of
    it counts until the reconciler itself removes it, and is told as unwritten until it is on disk.
    ``offset`` returns seconds from boot's clock to the wall clock's; it changes with a step.
    """

    def __init__(
        self,
        root: Path = DEFAULT,
        keep: Path | None = None,
        *,
        offset: Callable[[], float] = disk.clock_offset,
    ) -> None:
        super().__init__(root, keep)
        self._clock = clock = disk.Clock(offset)
        self._memory = threading.RLock()
        self._aside = SetAsideRecords(root)
        self._intents = IntentRecords(root, clock)
        ours = root, clock, self._lock, self._aside
        self._attachments = OurRecords(codec.ATTACHMENTS, *ours)
        self._ours: dict[type, OurRecords[Any]] = {
            Attachment: self._attachments,
            Cooling: OurRecords(codec.COOLING, *ours),
            Quarantine: OurRecords(codec.QUARANTINE, *ours),
            Creation: OurRecords(codec.CREATIONS, *ours),
            EgressIdentity: OurRecords(codec.IDENTITIES, *ours),
        }

    def lock(self) -> None:
        """Become this directory's only writer, and take up what an earlier one has left."""
        super().lock()
        self._intents.sweep()
        for records in self._ours.values():
            records.recall_second()
        self._ours[EgressIdentity].hold(self.kept.recall())

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
        alive = disk.remembered_life()
        with self._memory:
            intents = self._intents.load(alive)
            return self._with_others(intents, self._attachments.load(alive), alive)

    def observe_at(self, keys: Collection[AttachmentKey], before: Records) -> Records:
        """Read these attachments' records.

        Of all others what was read before is still true, and of what is no pod's what this process
        knows: it writes that itself.
        """
        names = sorted(map(codec.key_name, keys))
        alive = disk.remembered_life()
        with self._memory:
            intents = _updated(before.intents, keys, self._intents.load(alive, names))
            found = self._attachments.load(alive, names)
            attachments = _updated(before.attachments, keys, found)
            seen = self._with_others(intents, attachments, alive, again=False)
        # The same one knows already what follows from it.
        return before if before.is_like(seen) else seen

    def _with_others(
        self,
        intents: tuple[Intent, ...],
        attachments: tuple[Attachment, ...],
        alive: IsAlive,
        *,
        again: bool = True,
    ) -> Records:
        """Add the records that are no pod's; their times move with a clock that was set."""
        ours = self._ours.values()
        if delta := self._clock.follow():
            log.warning("the clock was set", extra={"seconds": round(delta, 1)})
            self._aside.follow_clock(delta)
            for records in ours:
                records.follow_clock(delta)
        counts = {one.directory: one.count for one in (self._intents, *ours)}
        counts[self._aside.directory] = self._aside.count
        of: dict[type, tuple[Any, ...]] = {
            kind: one.load(alive) if again else one.recall(alive)
            for kind, one in self._ours.items()
            if kind is not Attachment
        }
        return Records(
            intents=intents,
            attachments=attachments,
            cooling=of[Cooling],
            quarantined=of[Quarantine],
            creations=of[Creation],
            identities=of[EgressIdentity],
            unreadable=self._intents.unreadable,
            set_aside=self._aside.read() if again else self._aside.recall(),
            unwritten=frozenset(identity for records in ours for identity in records.unwritten),
            crowded=tuple(
                (path, f"{count} files, of which {disk.MAX_RECORDS} are looked at")
                for path, count in sorted(counts.items())
                if count > disk.MAX_RECORDS
            ),
        )

    def hold(self, attachments: Iterable[Attachment]) -> None:
        """Count attachments that only the kernel shows, until they are written or gone."""
        with self._memory:
            self._attachments.hold(attachments)

    def apply(self, actions: Sequence[Change[codec.Record | SetAside]]) -> tuple[ApplyError, ...]:
        """Write and unlink records, in order.

        What fails stops the later actions on the same attachment or address, because they rely on
        it, and no others.
        """
        failures: list[ApplyError] = []
        stopped: dict[object, ApplyError] = {}
        going = {a.object for a in actions if a.verb is Verb.DELETE}
        changed = [o for a in actions if isinstance(o := a.object, EgressIdentity)]
        if changed:  # known to the next boot before a pod can use it
            with self._memory:
                self.kept.expect(i for i in changed if i not in going)
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
        if changed:
            with self._memory:
                self.kept.keep(self._ours[EgressIdentity].load(disk.remembered_life()))
        return tuple(failures)

    def _records(self, record: object) -> Any:  # each takes its own kind only
        """Return what changes records like this one."""
        if isinstance(record, SetAside):
            return self._aside
        return self._ours.get(type(record), self._intents)

    def hand_over(self, release: codec.Json) -> None:
        """Take a release that the executable could not write down.

        It is written here if that is possible, or else remembered: until the intent goes, until
        another ADD replaces it, or until this process ends. After that the end of the pod's
        namespace says the same.

        Raises:
            ValueError, KeyError, TypeError: it is no release.
        """
        intent = self._intents.release_of(release)
        try:
            disk.write_atomically(self._intents.path(intent), release)
        except OSError:
            with self._memory:  # another thread may be looking, and would lose or miss it
                self._intents.keep(intent)

    def record(self, creation: Creation) -> None:
        """Write down an ENI's creation before EC2 is asked. Raises an OSError."""
        with self._memory:
            self._ours[Creation].write(creation)

    def forget(self, creation: Creation) -> None:
        """Take out a creation that has certainly not happened."""
        with self._memory:
            self._ours[Creation].remove(creation)

    def remember(self, node: Node, cloud: Cloud) -> None:
        """Keep an observation of EC2, so that a restart does not have to wait for one."""
        _write_observation(self.root / LOOK, observation.encode_observation(node, cloud))

    def recall(self) -> tuple[Node, Cloud] | None:
        """Return the last observation that was kept; None if there is none that can be read.

        It is a cache: the next observation replaces it, whatever it holds.
        """
        return _read_observation(self.root / LOOK, observation.decode_observation)

    def remember_egress(self, egress: Egress) -> None:
        """Keep what is known of sources, so that a restart excludes what it has excluded."""
        _write_observation(self.root / SOURCES, observation.encode_egress(egress))

    def recall_egress(self) -> Egress:
        """Return what was kept of sources; nothing if it cannot be read."""
        return _read_observation(self.root / SOURCES, observation.decode_egress) or NO_EGRESS


def _write_observation(path: Path, body: codec.Json) -> None:
    try:
        disk.write_atomically(path, {"version": codec.VERSION} | body)
    except OSError as error:
        raise StateError(f"cannot write {path}: {error.strerror}") from error


def _read_observation(path: Path, decode: Callable[[codec.Json], T]) -> T | None:
    try:
        body = json.loads(read_file(path, observation.MAX_OBSERVATION_BYTES, follow=False))
        codec.check_version(body)
        return decode(body)
    except FileNotFoundError:
        return None
    except disk.UNREADABLE as error:
        text = "the last observation of EC2 cannot be read; another is made"
        log.warning(text, extra={"file": path.name, "why": disk.why(error)})
        return None


def _subjects(record: codec.Record | SetAside) -> tuple[object, ...]:
    """What a record is about: later actions on the same rely on it."""
    match record:
        case Attachment() | EgressIdentity():
            return (record.key, *record.addresses)
        case Cooling(address):
            return (address,)
        case SetAside():
            return (record.path,) if record.attachment is None else (record.attachment,)
        case _:
            return (record.key,)


def _updated(
    before: Iterable[B], keys: Collection[AttachmentKey], now: Iterable[B]
) -> tuple[B, ...]:
    """Put what was read of these keys into the place of what was read before."""
    updated = list(before)
    for key in keys:
        place = bisect_left(updated, key, key=BY_KEY)
        if place < len(updated) and updated[place].key == key:
            del updated[place]
    for record in now:
        insort(updated, record, key=BY_KEY)
    return tuple(updated)
