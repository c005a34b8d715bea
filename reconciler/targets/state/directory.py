"""The state directory: intents, attachments and cooling addresses, one JSON file each.

Written as temporary file, fsync, rename, fsync of the directory, so that a record is there whole
or not at all. ``/run`` is the right place: a reboot ends every pod, so it should end every intent.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import stat
import threading
import time
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache, partial
from ipaddress import ip_address, ip_network
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from reconciler.core.attachment import (
    MAX_POD_ADDRESSES,
    Attachment,
    AttachmentKey,
    Cooling,
    Intent,
    IntentState,
    netns_inode,
    netns_path,
)
from reconciler.core.datapath import IpAddress
from reconciler.core.facts import Node
from reconciler.engine.finding import Finding
from reconciler.engine.plan import Change, Verb
from reconciler.errors import ApplyError, LockedError, ObserveError, StateError
from reconciler.ipam.cloud import Cloud
from reconciler.ipam.ec2_action import Creation
from reconciler.ipam.records import BY_KEY, WITHHELD_S, Records, SetAside
from reconciler.ipam.release import Quarantine
from reconciler.targets.netlink.namespaces import Place, own_namespace
from reconciler.targets.state.clock import Clock, boot_id, clock_offset, seconds_of, shift
from reconciler.targets.state.observation import (
    MAX_OBSERVATION_BYTES,
    decode_observation,
    encode_observation,
)

log = logging.getLogger(__name__)

DEFAULT = Path("/run/node-network")
"""Where the CNI executable looks as well, unless its configuration says otherwise."""

VERSION = 1
"""Schema of the records."""

LOOK = "look.json"
"""The last observation of EC2."""

Record = Intent | Attachment | Cooling | Quarantine | Creation
OurRecord = Attachment | Cooling | Quarantine | Creation
Version = tuple[int, int, int]
"""Inode, time of modification in nanoseconds, size in bytes."""

MAX_RECORD_BYTES = 65536
"""Of one record; ours have a tenth of it at most. What is larger is not read."""

MAX_RECORDS = 10_000
"""Files of one kind that are looked at: more than ten times the pods of the largest node. Whoever
else puts files into these directories makes nothing slower than that."""

MAX_SET_ASIDE = 1000
"""Records that are put aside, and whose content is searched for addresses. Beyond it they stay
where they are, and only their names say what they were about."""

MAX_UNREADABLE = 20
"""Intents that cannot be understood, each named; the others are counted."""

MAX_TEXT = 4096
"""Characters of one text in a record: PATH_MAX, and more than any name Kubernetes allows."""

OURS = ("attachments", "cooling", "quarantine", "creations")
"""Kinds of records that nobody but the reconciler writes."""

SECOND = "second"
"""Directory of the second names of records."""

TWICE = ("cooling", "quarantine")
"""Kinds of records that have one: nothing but them says that an address waits, so that one that is
lost while no process runs would end that."""

OUT_OF_MEANS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""What fails for this process, or this host, and says nothing about the file."""

ASIDE = ".aside"
"""How the name of an intent ends that is being removed."""

WRITING_S = 60.0
"""Seconds after which nobody is still writing a temporary file."""

UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
    MemoryError,
)
"""What reading a record may raise, whatever is in its place."""

IsAlive = Callable[[str, int], bool]
"""Whether the path of a namespace still leads to it, by its inode; 0 if that is not known."""

R = TypeVar("R", Intent, Attachment, Cooling, Quarantine, Creation)

SET_ASIDE = "unreadable"
"""Directory of records that could not be read; only people take anything out of it."""

RELEASED = ".released"
"""How the name of such a record ends once the pod it was about has ended."""

ADDRESS = re.compile(r"[0-9a-f.:]{7,39}", re.IGNORECASE)
"""What may be an address in a torn record."""

KINDS = ("intents", "attachments", "cooling", "quarantine", "creations")
"""Directories of records, one for each kind."""


class StateDirectory:
    """The records below one directory, and the lock that makes one reconciler its only writer.

    Whoever holds the lock knows every record of ours, because nobody else writes them. A record
    that is not on disk any more, or cannot be read, is therefore not gone: what is known of it
    counts until the reconciler itself removes it, and is told as unwritten until it is on disk.
    """

    def __init__(self, root: Path = DEFAULT, *, offset: Callable[[], float] | None = None) -> None:
        """Know of the directory; nothing is read or made yet.

        Args:
            root: where it is.
            offset: returns seconds from boot's clock to the wall clock's; it changes with a step.
        """
        self.root = root
        self._clock = Clock(boot_id(), offset or clock_offset)
        self._lock: int | None = None
        self._parsed: dict[str, dict[str, tuple[Version, Any]]] = {}
        self._broken: dict[str, dict[str, tuple[Version, str]]] = {}
        self._unreadable: dict[str, str] = {}
        self._memory = threading.RLock()
        self._known: dict[str, dict[str, Any]] = {kind: {} for kind in OURS}
        self._unwritten: dict[str, set[str]] = {kind: set() for kind in OURS}
        self._overruled: dict[tuple[str, str], Version | None] = {}
        self._left: dict[str, SetAside] = {}
        self._crowded: dict[str, int] = {}
        self._aside: dict[str, tuple[Version, SetAside]] = {}
        self._moved = 0
        self._handed_over: dict[AttachmentKey, str] = {}

    @property
    def intents(self) -> Path:
        """Directory that the CNI executable writes to."""
        return self.root / "intents"

    @property
    def socket(self) -> Path:
        """Where the reconciler answers the CNI executable and the command line."""
        return self.root / "node-network.sock"

    def prepare(self) -> None:
        """Make the directories, readable by root only.

        Raises:
            StateError: the file system refuses.
        """
        try:
            for kind in KINDS:
                path = self.root / kind
                path.mkdir(parents=True, exist_ok=True, mode=0o700)
                if path.stat().st_mode & 0o077:
                    with suppress(OSError):  # a read-only disk does not keep pods from starting
                        path.chmod(0o700)
            for name in (SET_ASIDE, SECOND):
                with suppress(OSError):  # what cannot be read then stays where it is
                    (self.root / name).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            cure = "run as root" if error.errno == errno.EACCES else "free or remount it"
            why = f"{error.strerror}; {cure}"
            raise StateError(f"cannot make {self.root}: {why}") from error

    def lock(self) -> None:
        """Become this directory's only writer, until the process ends.

        Raises:
            LockedError: another process is.
            StateError: the lock's file cannot be opened.
        """
        try:
            self._lock = self._take_lock()
        except BlockingIOError as error:
            raise LockedError(
                f"process {error.strerror} already reconciles this node ({self.root}); it applies "
                "what differs by itself: use 'node-network diff' or 'node-network status'"
            ) from error
        for path in self.intents.glob(f".*{ASIDE}"):
            with suppress(OSError):  # a read-only disk: the next process comes back to it
                path.unlink()  # whoever was killed over it had nothing left to do for it
        self._recall_second()

    def _recall_second(self) -> None:
        """Know what records say whose first name was lost, from their second."""
        shifted = self._clock.shifted
        parsers: tuple[Callable[[dict[str, Any]], Any], ...] = (_parse_cooling, _parse_quarantine)
        for kind, parse in zip(TWICE, parsers, strict=True):
            for path in islice((self.root / SECOND).glob(f"{kind}-*.json"), MAX_RECORDS):
                name = path.name.removeprefix(f"{kind}-")
                try:
                    body = _decode(str(path), name)
                    self._known[kind][name] = shifted(parse(body), body)
                except UNREADABLE:
                    self._known_by_name(kind, name, time.time())

    def _take_lock(self) -> int:
        """Return the descriptor that holds the lock's file.

        Raises:
            BlockingIOError: another process has it; its text is that process's number.
            StateError: the file cannot be opened.
        """
        path = self.root / "lock"
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            fd = os.open(path, flags, 0o600)
        except OSError as error:
            cure = "run as root" if error.errno == errno.EACCES else "see to the directory"
            raise StateError(f"cannot open {path}: {error.strerror}; {cure}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "?"
            os.close(fd)
            raise BlockingIOError(errno.EAGAIN, holder) from error
        with suppress(OSError):  # a full disk: who holds it is not told then
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode(), 0)
        return fd

    @property
    def is_own(self) -> bool:
        """Whether the lock's file is still the one that is held here."""
        return self._lock is None or _is_same(self._lock, self.root / "lock")

    def reclaim(self) -> tuple[Finding, ...]:
        """Make again what others have removed of the directory, its lock included.

        A second reconciler could take a lock whose file is another one than is held here.

        Returns:
            What was made again.

        Raises:
            LockedError: another process has locked the directory since: it is not ours any more.
            StateError: the file system refuses.
        """
        if self._lock is None:
            return ()
        missing = [k for k in KINDS if not (self.root / k).is_dir()]
        self.prepare()
        if not self.is_own:
            missing.append("lock")
            try:
                fd = self._take_lock()
            except BlockingIOError as error:
                raise LockedError(
                    f"process {error.strerror} has taken over {self.root}, which was removed or "
                    "replaced; it reconciles this node now, and this process ends"
                ) from error
            before, self._lock = self._lock, fd
            os.close(before)
        if not missing:
            return ()
        return (
            Finding(
                f"state directory {self.root}",
                "DirectoryReplaced",
                f"{', '.join(missing)} were removed by another program and are made again; what "
                "this process knows of the records is written again. Find out who removes them",
            ),
        )

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
            why = f"{error.strerror}; run as root"
            raise ObserveError(f"state directory {self.root}", why) from error
        is_alive = cache(
            partial(_is_alive, own=own_namespace())
        )  # an intent and its attachment ask for the same
        with self._memory:
            intents = self._intents(None, is_alive)
            return self._with_others(
                intents, self._load("attachments", _parse_attachment, None, is_alive)
            )

    def observe_at(self, keys: Collection[AttachmentKey], before: Records) -> Records:
        """Read the records of these attachments, and those that are no pod's.

        Args:
            keys: of the intents and attachments to read again.
            before: what was last read; of all others it is still true.

        Raises:
            ObserveError: as for ``observe``.
        """
        names = sorted(map(_file_name, keys))
        is_alive = cache(partial(_is_alive, own=own_namespace()))
        with self._memory:
            intents = self._intents(names, is_alive)
            attachments = self._load("attachments", _parse_attachment, names, is_alive)
            return self._with_others(
                _updated(before.intents, keys, intents),
                _updated(before.attachments, keys, attachments),
            )

    def _with_others(
        self, intents: tuple[Intent, ...], attachments: tuple[Attachment, ...]
    ) -> Records:
        """Add the records that are no pod's."""
        self._follow_clock()
        shifted = self._clock.shifted
        cooling = self._load("cooling", lambda body: shifted(_parse_cooling(body), body))
        quarantined = self._load("quarantine", lambda body: shifted(_parse_quarantine(body), body))
        creations = self._load("creations", lambda body: shifted(_parse_creation(body), body))
        ours: dict[str, tuple[OurRecord, ...]] = {
            "attachments": attachments,
            "cooling": cooling,
            "quarantine": quarantined,
            "creations": creations,
        }
        unwritten = {
            (record.kind, record.key)
            for kind, names in self._unwritten.items()
            if names
            for record in ours[kind]
            if self._path(record).name in names
        }
        return Records(
            intents=intents,
            attachments=attachments,
            cooling=cooling,
            quarantined=quarantined,
            creations=creations,
            unreadable=self._name_unreadable(),
            crowded=tuple(
                (f"{self.root / kind}", f"{count} files, of which {MAX_RECORDS} are looked at")
                for kind, count in sorted(self._crowded.items())
            ),
            set_aside=self._read_set_aside(),
            unwritten=frozenset(unwritten),
        )

    def _follow_clock(self) -> None:
        """Move what is known with the clock, if it was set, so that nothing waits another time."""
        delta = self._clock.follow()
        if not delta:
            return
        log.warning("the clock was set", extra={"seconds": round(delta, 1)})
        for kind in ("cooling", "quarantine", "creations"):
            parsed, known = self._parsed.get(kind, {}), self._known[kind]
            self._parsed[kind] = {n: (v, shift(r, delta)) for n, (v, r) in parsed.items()}
            self._known[kind] = {n: shift(r, delta) for n, r in known.items()}
        self._aside = {
            n: (v, replace(r, since=r.since + delta)) for n, (v, r) in self._aside.items()
        }
        self._left = {p: replace(r, since=r.since + delta) for p, r in self._left.items()}

    def hold(self, attachments: Iterable[Attachment]) -> None:
        """Know attachments that only the kernel remembers, until they are written and removed.

        Whoever does not hold the lock forgets them with the next ones: another process may write
        and remove them meanwhile.
        """
        with self._memory:
            known = self._known["attachments"]
            if self._lock is None:
                known.clear()
            for attachment in attachments:
                known.setdefault(self._path(attachment).name, attachment)

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
            elif (refused := self._carry_out(action)) is None:
                continue
            else:
                failure = refused
            failures.append(failure)
            stopped |= dict.fromkeys(subjects, failure)
        return tuple(failures)

    def _carry_out(self, action: Change[Record | SetAside]) -> ApplyError | None:
        if isinstance(action.object, SetAside):
            return self._put_away(action)
        path, seen = self._path(action.object), action.was or action.object
        assert not isinstance(seen, SetAside)
        try:
            if action.verb is Verb.DELETE:
                self._remove(path, seen)
            else:
                if isinstance(seen, Intent):
                    self._check_unchanged(path, seen)
                self._write(path, action.object)
        except OSError as error:
            if action.verb is Verb.UPDATE:
                self._overrule(path, action.object)
            why = f"{path}: {error.strerror}"
            return ApplyError.from_errno(str(action), error.errno or 0, why, error)
        return None

    def _put_away(self, action: Change[Any]) -> ApplyError | None:
        """Keep a record that could not be read for people, and plan on it no more."""
        path = action.object.path
        try:
            with suppress(FileNotFoundError):
                os.rename(path, f"{path}{RELEASED}")  # noqa: PTH104 - it may have any name
        except OSError as error:
            why = f"{path}: {error.strerror}"
            return ApplyError.from_errno(str(action), error.errno or 0, why, error)
        with self._memory:
            self._left.pop(path, None)
        return None

    def _write(self, path: Path, record: Record) -> None:
        body = _encode(record)
        if isinstance(record, Cooling | Quarantine | Creation):
            body["clock"] = self._clock.stamp()
        kind, name = path.parent.name, path.name
        with self._memory:
            write_atomically(path, _foreign_fields(path, body) | body)
            if kind in TWICE:
                with suppress(OSError):  # it has its first name, which is what counts
                    self._second(path).unlink(missing_ok=True)
                    os.link(path, self._second(path))
            if kind in OURS:
                if self._lock is None:
                    self._known[kind].pop(name, None)
                else:
                    self._known[kind][name] = record
                self._unwritten[kind].discard(name)
                self._overruled.pop((kind, name), None)
                self._left.pop(str(path), None)

    def _second(self, path: Path) -> Path:
        return self.root / SECOND / f"{path.parent.name}-{path.name}"

    def _overrule(self, path: Path, record: Record) -> None:
        """Count with a change of ours that the disk has not taken, until it takes it."""
        kind, name = path.parent.name, path.name
        if kind not in OURS or self._lock is None:
            return
        with self._memory:
            try:
                version: Version | None = _version(str(path))
            except (OSError, ValueError):
                version = None
            self._known[kind][name] = record
            self._overruled[kind, name] = version

    def hand_over(self, release: Mapping[str, Any]) -> None:
        """Take a release that the executable could not write down.

        It is written here if that is possible, or else remembered: until the intent goes, until
        another ADD replaces it, or until this process ends. After that the end of the pod's
        namespace says the same.

        Raises:
            ValueError, KeyError, TypeError: it is no release.
        """
        intent = _parse_intent(dict(release))
        if intent.state is not IntentState.RELEASED:
            raise ValueError("it is no release")
        path = self._path(intent)
        if path.parent != self.intents:
            raise ValueError("it names no attachment")
        try:
            write_atomically(path, dict(release))
        except OSError:
            with self._memory:  # another thread may be looking, and would lose or miss it
                self._handed_over[intent.key] = intent.attempt

    def sweep(self) -> None:
        """Remove what killed writers have left half-written.

        Raises:
            ObserveError: the directory cannot be listed.
        """
        oldest = time.time() - WRITING_S
        try:
            left = list(self.root.glob("*/.*.tmp"))
        except OSError as error:
            raise ObserveError(f"state directory {self.root}", _why(error)) from error
        for path in left:
            with suppress(OSError):  # its writer was only slow, or the disk is read-only
                if path.stat().st_mtime < oldest:
                    path.unlink()

    def record(self, creation: Creation) -> None:
        """Write down an ENI's creation before EC2 is asked.

        Raises:
            OSError: it cannot be written.
        """
        self._write(self._path(creation), creation)

    def forget(self, creation: Creation) -> None:
        """Take out a creation that has certainly not happened."""
        with self._memory:
            self._path(creation).unlink(missing_ok=True)
            self._known["creations"].pop(self._path(creation).name, None)

    def remember(self, node: Node, cloud: Cloud) -> None:
        """Keep an observation of EC2, so that a restart does not have to wait for the next one.

        Raises:
            StateError: it cannot be written.
        """
        try:
            write_atomically(
                self.root / LOOK, {"version": VERSION} | encode_observation(node, cloud)
            )
        except OSError as error:
            raise StateError(f"cannot write {self.root / LOOK}: {error.strerror}") from error

    def recall(self) -> tuple[Node, Cloud] | None:
        """Return the last observation that was kept; None if there is none that can be read.

        It is a cache: the next observation replaces it, whatever it holds.
        """
        try:
            body = json.loads(_read(str(self.root / LOOK), limit=MAX_OBSERVATION_BYTES))
            _check_version(body)
            return decode_observation(body)
        except FileNotFoundError:
            return None
        except UNREADABLE as error:
            why = _why(error)
            log.warning(
                "the last observation of EC2 cannot be read; another is made", extra={"why": why}
            )
            return None

    def _intents(self, names: Iterable[str] | None, is_alive: IsAlive) -> tuple[Intent, ...]:
        """Read intents, and what was said of them without being written."""
        intents = self._load("intents", _parse_intent, names, is_alive)
        if not self._handed_over:
            return intents
        if names is None:
            present = {i.key for i in intents}
            self._handed_over = {k: a for k, a in self._handed_over.items() if k in present}
        return tuple(map(self._as_told, intents))

    def _as_told(self, intent: Intent) -> Intent:
        if self._handed_over.get(intent.key) == intent.attempt:
            return replace(intent, state=IntentState.RELEASED)
        return intent

    def _remove(self, path: Path, seen: Record) -> None:
        """Unlink a record, unless it is an intent that the executable has replaced.

        An intent is looked at in a place where nobody else writes: between a look at its own place
        and the unlink, a container may be started again.

        Raises:
            OSError: it was replaced, and stays; or the disk refuses.
        """
        if isinstance(seen, Intent):
            aside = path.with_name(f".{path.name}{ASIDE}")
            with suppress(FileNotFoundError):
                path.rename(aside)
                try:
                    self._check_unchanged(aside, seen)
                except OSError:
                    with suppress(FileExistsError):  # one that is newer still counts
                        os.link(aside, path)
                    raise
                finally:
                    aside.unlink()
        else:
            with self._memory:
                self._second(path).unlink(missing_ok=True)
                path.unlink(missing_ok=True)
                self._known[path.parent.name].pop(path.name, None)
                self._unwritten[path.parent.name].discard(path.name)
                self._overruled.pop((path.parent.name, path.name), None)
        with suppress(FileNotFoundError):
            _sync_directory(path.parent)

    def _check_unchanged(self, path: Path, seen: Intent) -> None:
        """Refuse to replace an intent that the executable has replaced since it was seen.

        Raises:
            OSError: it has; the next observation will see what it is now.
        """
        try:
            now = self._as_told(_parse_intent(json.loads(_read(str(path)))))
        except FileNotFoundError:
            return
        except UNREADABLE:
            return
        if replace(now, netns_alive=seen.netns_alive) != seen:
            raise OSError(errno.EAGAIN, "it was replaced meanwhile")

    def _load(
        self,
        kind: str,
        parse: Callable[[dict[str, Any]], R],
        names: Iterable[str] | None = None,
        is_alive: IsAlive | None = None,
    ) -> tuple[R, ...]:
        """Read all records of a kind, or those of these names; parse only what has changed."""
        before = self._parsed.get(kind, {})
        everything = names is None
        names = self._list(kind) if names is None else list(names)
        parsed: dict[str, tuple[Version, R]] = {}
        broken: dict[str, tuple[Version, str]] = {}
        alive = is_alive or _is_alive
        for name in names:
            try:
                version = _version(f"{self.root}/{kind}/{name}")
                if (earlier := before.get(name)) is not None and earlier[0] == version:
                    parsed[name] = (version, _again(earlier[1], alive))
                elif (known := self._broken.get(kind, {}).get(name)) and known[0] == version:
                    broken[name] = known
                else:
                    self._look_at(kind, name, version, parse, parsed, broken)
            except FileNotFoundError:
                continue  # unlinked since the directory was listed
            except UNREADABLE as error:
                _raise_for_means(f"{self.root}/{kind}/{name}", error)
                broken[name] = (NO_FILE, _why(error))
        self._keep_broken(kind, names, broken, everything=everything)
        if kind in OURS:
            self._recall_lost(kind, names, parsed, alive, everything=everything)
        self._parsed[kind] = parsed if everything else before | parsed
        return tuple(sorted((record for _, record in parsed.values()), key=BY_KEY))

    def _look_at(
        self,
        kind: str,
        name: str,
        version: Version,
        parse: Callable[[dict[str, Any]], R],
        parsed: dict[str, tuple[Version, R]],
        broken: dict[str, tuple[Version, str]],
    ) -> None:
        """Read one file.

        Raises:
            FileNotFoundError: it is gone.
            ObserveError: this process has not the means to read it.
        """
        path = f"{self.root}/{kind}/{name}"
        try:
            parsed[name] = (version, parse(_decode(path, name)))
        except FileNotFoundError:
            raise
        except UNREADABLE as error:
            _raise_for_means(path, error)
            broken[name] = (version, _why(error))

    def _keep_broken(
        self,
        kind: str,
        names: Collection[str],
        broken: dict[str, tuple[Version, str]],
        *,
        everything: bool,
    ) -> None:
        """Name what could not be read; put aside what is ours of it."""
        if kind in OURS:
            for name in names if self._left else ():
                if name not in broken:
                    self._left.pop(f"{self.root}/{kind}/{name}", None)
            for name in list(broken):
                if self._set_aside(kind, name, broken[name][1]):
                    del broken[name]
        known = {} if everything else self._broken.get(kind, {})
        self._broken[kind] = {n: why for n, why in known.items() if n not in names} | broken
        if kind == "intents":
            self._unreadable = {
                name: f"{_printable(f'{self.root}/{kind}/{name}')}: {why}"
                for name, (_, why) in self._broken[kind].items()
            }

    def _recall_lost(
        self,
        kind: str,
        names: Collection[str],
        parsed: dict[str, tuple[Version, R]],
        is_alive: IsAlive,
        *,
        everything: bool,
    ) -> None:
        """Add what is known and not on disk, or newer than what is there."""
        known = self._known[kind]
        if self._lock is not None:
            for (of, name), version in list(self._overruled.items()):
                if of == kind and name in parsed and parsed[name][0] != version:
                    del self._overruled[of, name]  # somebody has written it since: that counts
            if kind == "attachments":  # but for what a pod runs with, which no edit changes
                self._overruled |= {
                    (kind, name): version
                    for name, (version, record) in parsed.items()
                    if known.get(name, record) != record
                }
            known |= {
                name: record
                for name, (_, record) in parsed.items()
                if (kind, name) not in self._overruled
            }
        asked = known.keys() if everything else known.keys() & set(names)
        lost = {n for n in asked if n not in parsed or (kind, n) in self._overruled}
        for name in lost:
            parsed[name] = (NO_FILE, _again(known[name], is_alive))
        others = set() if everything else self._unwritten[kind] - set(names)
        self._unwritten[kind] = others | lost

    def _set_aside(self, kind: str, name: str, why: str) -> bool:
        """Put a record that cannot be read where it is kept and not planned on.

        Only whoever holds the lock moves it. What cannot be moved is planned on as little, and
        named where it is. What its name says of it is known from now on.

        Returns:
            Whether it was moved.
        """
        source = f"{self.root}/{kind}/{name}"
        since = time.time()
        self._known_by_name(kind, name, since)
        target = f"{self.root}/{SET_ASIDE}/{kind}-{name}"
        if self._lock is not None and self._moved < MAX_SET_ASIDE:
            try:
                os.makedirs(f"{self.root}/{SET_ASIDE}", mode=0o700, exist_ok=True)  # noqa: PTH103
                os.rename(source, target)  # noqa: PTH104
                os.utime(target, follow_symlinks=False)  # from now on it is set aside
                _sync_directory(self.root / SET_ASIDE)
            except OSError as error:
                why = f"{why}; and it cannot be moved: {error.strerror}"
            else:
                self._moved += 1
                self._left.pop(source, None)
                return True
        if source not in self._left:
            addresses = frozenset(_addresses(f"{name.removesuffix('.json')} {_glimpse(source)}"))
            record = SetAside(source, since, addresses, _attachment_of(f"{kind}-{name}"))
            self._left[source] = record
            log.warning("a record cannot be read", extra={"path": _printable(source), "why": why})
        return False

    def _known_by_name(self, kind: str, name: str, since: float) -> None:
        """Know of a record what its name says, if nothing else is known of it.

        It counts from now: that is the longest it can have to wait.
        """
        if self._lock is None or name in self._known.get(kind, {}):
            return
        with suppress(ValueError):
            address, _, length = name.removesuffix(".json").partition("-")
            if kind == "cooling":
                self._known[kind][name] = Cooling(ip_address(address), since + WITHHELD_S)
            elif kind == "quarantine":
                network = ip_network(f"{address}/{length}")
                self._known[kind][name] = Quarantine(network, since, asked=since)

    def _read_set_aside(self) -> tuple[SetAside, ...]:
        """Describe what is set aside; what has not changed is not read again."""
        found: dict[str, tuple[Version, SetAside]] = {}
        names: list[str] = []
        with suppress(ObserveError):  # no address hangs on it that its records' names do not say
            names = sorted(self._list(SET_ASIDE))
        for name in names:
            path = f"{self.root}/{SET_ASIDE}/{name}"
            with suppress(OSError):  # people take them away
                status = os.lstat(path)
                version = (status.st_ino, status.st_mtime_ns, status.st_size)
                known = self._aside.get(name)
                if known is None or known[0] != version:
                    text = name.removesuffix(".json")
                    if len(found) < MAX_SET_ASIDE:
                        text += f" {_glimpse(path)}"
                    # A file of the future, by a clock that was set back, counts from now.
                    since = min(status.st_mtime, time.time())
                    aside = SetAside(
                        path, since, frozenset(_addresses(text)), _attachment_of(name)
                    )
                    known = (version, aside)
                found[name] = known
        self._aside, self._moved = found, len(found)
        left = {p: r for p, r in self._left.items() if os.path.lexists(p)}
        self._left = left
        return (*(record for _, record in found.values()), *left.values())

    def _name_unreadable(self) -> tuple[str, ...]:
        """Name intents that cannot be understood: some of them, and how many there are."""
        names = sorted(self._unreadable)
        found = [self._unreadable[name] for name in names[:MAX_UNREADABLE]]
        if (more := len(names) - MAX_UNREADABLE) > 0:
            found.append(f"{self.intents}: {more} more cannot be understood")
        return tuple(found)

    def _list(self, kind: str) -> list[str]:
        """List a directory's records, not more than are looked at; known ones come first."""
        directory = self.root / kind
        try:
            names = [name for name in os.listdir(directory) if name.endswith(".json")]  # noqa: PTH208 - there are hundreds
        except FileNotFoundError:
            names = []
        except OSError as error:
            # What this process has read once it knows, whatever is in the directory's place.
            was_read = self._lock is not None and kind in OURS and kind in self._parsed
            if not was_read or error.errno in OUT_OF_MEANS:
                raise ObserveError(f"{directory}", str(error)) from error
            names = []
        self._crowded.pop(kind, None)
        if len(names) > MAX_RECORDS:
            self._crowded[kind] = len(names)
            known = self._parsed.get(kind, {})
            names.sort(key=lambda name: (name not in known, not _is_plausible(kind, name), name))
            del names[MAX_RECORDS:]
        return names

    def _path(self, record: Record) -> Path:
        match record:
            case Intent(key):
                return self.intents / _file_name(key)
            case Attachment(key):
                return self.root / "attachments" / _file_name(key)
            case Cooling(address):
                return self.root / "cooling" / f"{address}.json"
            case Quarantine(network):
                name = f"{network.network_address}-{network.prefixlen}.json"
                return self.root / "quarantine" / name
            case Creation(token):
                return self.root / "creations" / f"{token}.json"


def _is_plausible(kind: str, name: str) -> bool:
    """Whether a file is called as a record of its kind would be."""
    stem = name.removesuffix(".json")
    if kind in ("intents", "attachments"):
        return ":" in stem
    with suppress(ValueError):
        return kind == "creations" or bool(ip_address(stem.partition("-")[0]))
    return False


def _is_same(fd: int, path: Path) -> bool:
    """Whether a path still leads to an open file."""
    try:
        there, held = path.lstat(), os.fstat(fd)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)


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


def _attachment_of(name: str) -> AttachmentKey | None:
    """Return whose attachment a record that was set aside is, by its name."""
    kind, _, rest = name.partition("-")
    container_id, colon, ifname = rest.removesuffix(".json").rpartition(":")
    if kind != "attachments" or not colon:
        return None
    return AttachmentKey(_printable(container_id), _printable(ifname))


def _printable(text: str) -> str:
    """Return a file's name as it can be printed: it need not be UTF-8."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _why(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:MAX_WHY]


def _raise_for_means(path: str, error: BaseException) -> None:
    """Tell what this process lacks from what is wrong with a file.

    Raises:
        ObserveError: it lacks file descriptors or memory.
    """
    if isinstance(error, MemoryError) or getattr(error, "errno", None) in OUT_OF_MEANS:
        raise ObserveError(f"record {_printable(path)}", _why(error)) from error


def _glimpse(path: str) -> str:
    """Return what can be read of a file that is no record, to search it for addresses."""
    try:
        return _read(path, cut=True).decode("latin-1")
    except (OSError, ValueError):
        return ""


def _read(path: str, *, cut: bool = False, limit: int = MAX_RECORD_BYTES) -> bytes:
    """Read a record's file, and nothing else that may stand in its place.

    A FIFO would be waited for, and a link leads elsewhere.

    Args:
        path: of the file.
        cut: return its beginning if it is too large.
        limit: bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no file, or too large.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("it is no file")
        content = os.read(fd, limit + 1)
    finally:
        os.close(fd)
    if len(content) > limit and not cut:
        raise ValueError(f"it has more than {limit} bytes")
    return content[:limit]


def _addresses(text: str) -> Iterator[IpAddress]:
    for word in ADDRESS.findall(text):
        with suppress(ValueError):
            yield ip_address(word)


def write_atomically(path: Path, content: dict[str, Any]) -> None:
    """Replace a file so that a crash leaves the old content or the new one, never half of it."""
    text = json.dumps(content, sort_keys=True)
    # Of this thread alone: two of them may write the same record at once.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with temporary.open("w") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _encode(record: Record) -> dict[str, Any]:
    body: dict[str, Any]
    match record:
        case Attachment():
            body = {
                "containerID": record.key.container_id,
                "ifname": record.key.ifname,
                "netns": record.netns,
                "addresses": [str(a) for a in record.addresses],
                "eniID": record.eni_id,
                "veth": record.veth,
                "pod": record.pod,
            }
            if any(record.kept_macs):
                body["macs"] = list(record.kept_macs)
            if record.unfinished:
                body["unfinished"] = True
        case Cooling():
            body = {"address": str(record.address), "until": record.until}
        case Quarantine():
            body = {
                "network": str(record.network),
                "since": record.since,
                "asked": record.asked,
                "gone": record.gone,
            }
        case Creation():
            body = asdict(record)
        case Intent():
            namespace, _, name = record.pod.rpartition("/")
            body = {
                "containerID": record.key.container_id,
                "ifname": record.key.ifname,
                "state": str(record.state),
                "netns": record.netns,
                "netnsInode": record.netns_inode,
                "podNamespace": namespace,
                "podName": name,
                "attempt": record.attempt,
            }
    return {"version": VERSION} | body


MAX_WHY = 200
"""Characters of an error's text in a condition."""

NO_FILE: Version = (0, 0, 0)
"""Of what stands on no disk, or cannot be told from another content."""

OPTIONAL = {"macs", "address", "unfinished"}
"""Fields of ours that a record may do without, or had in an earlier release."""


def _foreign_fields(path: Path, body: dict[str, Any]) -> dict[str, Any]:
    """Return what another release, or the executable, has written into a record beside ours."""
    try:
        before = json.loads(_read(str(path)))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(before, dict):
        return {}
    return {key: value for key, value in before.items() if key not in body.keys() | OPTIONAL}


def _file_name(key: AttachmentKey) -> str:
    """Joined by a colon, which neither part may contain."""
    return f"{key.container_id}:{key.ifname}.json"


def _parse_intent(body: dict[str, Any]) -> Intent:
    _check_version(body)
    netns, inode = _text(body.get("netns", "")), int(body.get("netnsInode", 0))
    pod = f"{_shown(body.get('podNamespace', ''))}/{_shown(body.get('podName', ''))}".strip("/")
    return Intent(
        key=_parse_key(body),
        state=IntentState(body["state"]),
        netns=netns,
        netns_inode=inode,
        netns_alive=_is_alive(netns, inode),
        pod=pod,
        attempt=_shown(body.get("attempt", "")),
        trace=_shown(body.get("traceparent", ""))[3:35],
    )


def _parse_attachment(body: dict[str, Any]) -> Attachment:
    _check_version(body)
    netns = _text(body.get("netns", ""))
    return Attachment(
        key=_parse_key(body),
        netns=netns,
        netns_alive=_is_alive(netns_path(netns), netns_inode(netns)),
        addresses=_parse_addresses(body),
        eni_id=_text(body["eniID"]),
        veth=_text(body["veth"]),
        pod=_shown(body.get("pod", "")),
        kept_macs=_parse_macs(body.get("macs", ("", ""))),
        unfinished=bool(body.get("unfinished", False)),
    )


def _parse_addresses(body: dict[str, Any]) -> tuple[IpAddress, ...]:
    """Read a record's addresses; releases before IPv6 wrote a single one."""
    texts = body["addresses"] if "addresses" in body else [body["address"]]
    if not texts or not isinstance(texts, list):
        raise ValueError("an attachment has at least one address")
    if len(texts) > MAX_POD_ADDRESSES:
        raise ValueError(f"{len(texts)} addresses, of {MAX_POD_ADDRESSES} at most")
    return tuple(ip_address(text) for text in texts)


def _text(value: object) -> str:
    """Return a text of a record.

    Raises:
        ValueError: it is longer than any can be.
    """
    text = str(value)
    if len(text) > MAX_TEXT:
        raise ValueError(f"a text of {len(text)} characters, of {MAX_TEXT} at most")
    return text


def _shown(value: object) -> str:
    """Return a text that is shown, hashed and written again.

    A runtime may say anything in CNI_ARGS, bytes that are not UTF-8 as well; Python has these as
    lone surrogates, and JSON may spell such: neither can be encoded.
    """
    return _text(value).encode(errors="backslashreplace").decode()


def _parse_macs(body: Any) -> tuple[str, str]:
    host, pod = body
    return str(host), str(pod)


def _parse_cooling(body: dict[str, Any]) -> Cooling:
    _check_version(body)
    return Cooling(ip_address(body["address"]), seconds_of(body["until"]))


def _parse_quarantine(body: dict[str, Any]) -> Quarantine:
    _check_version(body)
    since = seconds_of(body["since"])
    # Releases that did not write it down may have asked at any time since then.
    asked, gone = seconds_of(body.get("asked", since)), seconds_of(body.get("gone", 0.0))
    return Quarantine(ip_network(body["network"]), since, asked, gone)


def _parse_creation(body: dict[str, Any]) -> Creation:
    _check_version(body)
    return Creation(
        token=str(body["token"]),
        device_index=int(body["device_index"]),
        subnet_id=str(body["subnet_id"]),
        security_groups=tuple(body["security_groups"]),
        addresses=int(body["addresses"]),
        prefixes=int(body["prefixes"]),
        tags=tuple((key, value) for key, value in body["tags"]),
        at=seconds_of(body["at"]),
        done=bool(body.get("done", False)),
        ipv6_prefixes=int(body.get("ipv6_prefixes", 0)),
    )


def _parse_key(body: dict[str, Any]) -> AttachmentKey:
    key = AttachmentKey(str(body["containerID"]), str(body["ifname"]))
    str(key).encode()  # it goes to the kernel; raises a ValueError if it never could
    return key


def _check_version(body: object) -> None:
    if not isinstance(body, dict) or body.get("version") != VERSION:
        raise ValueError(f"no record of schema version {VERSION}, the one this release reads")


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


def _decode(path: str, name: str) -> Any:
    """Read a record; its name must be the one of what it is about.

    Raises:
        OSError, ValueError, RecursionError: it cannot be read, or is no JSON.
    """
    body = json.loads(_read(path))
    if isinstance(body, dict):
        container_id, colon, ifname = name.removesuffix(".json").rpartition(":")
        if colon:
            body = {"containerID": container_id, "ifname": ifname} | body
        if "containerID" in body and _file_name(_parse_key(body)) != name:
            raise ValueError("it is about another attachment than its name says")
    return body


def _version(path: str) -> Version:
    """Tell one content of a file from every other.

    Raises:
        OSError: it is not there.
        ValueError: it is no file.
    """
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no file")
    return found.st_ino, found.st_mtime_ns, found.st_size


def _again(record: R, is_alive: IsAlive) -> R:
    """Look again whether a record's namespace is there: that is not in its file."""
    match record:
        case Intent():
            alive = is_alive(record.netns, record.netns_inode)
        case Attachment():
            alive = is_alive(netns_path(record.netns), netns_inode(record.netns))
        case _:
            return record
    return record if alive is record.netns_alive else replace(record, netns_alive=alive)


def _is_alive(netns: str, inode: int, own: Place | None = None) -> bool:
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
