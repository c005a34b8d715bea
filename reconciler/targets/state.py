"""The state directory: intents, attachments and cooling addresses, one JSON file each.

Written as temporary file, fsync, rename, fsync of the directory, so that a record is there whole
or not at all. ``/run`` is the right place: a reboot ends every pod, so it should end every intent.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import stat
import time
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import IO, Any, TypeVar

from reconciler.core.attachment import (
    Attachment,
    AttachmentKey,
    Cooling,
    Intent,
    IntentState,
    netns_inode,
    netns_path,
)
from reconciler.core.call import Creation
from reconciler.core.cloud import Cloud
from reconciler.core.datapath import IpAddress
from reconciler.core.facts import Node
from reconciler.core.plan import Change, Verb
from reconciler.core.records import BY_KEY, Records, SetAside
from reconciler.core.release import Quarantine
from reconciler.errors import ApplyError, LockedError, ObserveError, StateError
from reconciler.targets.look import decode_look, encode_look

DEFAULT = Path("/run/node-network")
"""Where the CNI executable looks as well, unless its configuration says otherwise."""

VERSION = 1
"""Schema of the records."""

LOOK = "look.json"
"""The last look at EC2."""

Record = Intent | Attachment | Cooling | Quarantine | Creation
Version = tuple[int, int, int]
"""Inode, time of modification in nanoseconds, size in bytes."""

MAX_RECORD_BYTES = 65536
"""Of one record; ours have a tenth of it at most."""

ASIDE = ".aside"
"""How the name of an intent ends that is being removed."""

WRITING_S = 60.0
"""Seconds after which nobody is still writing a temporary file."""

UNREADABLE = (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError)

IsAlive = Callable[[str, int], bool]
"""Whether the path of a namespace still leads to it, by its inode; 0 if that is not known."""

R = TypeVar("R", Intent, Attachment, Cooling, Quarantine, Creation)

SET_ASIDE = "unreadable"
"""Directory of records that could not be read; nobody but people take anything out of it."""

ADDRESS = re.compile(r"[0-9a-f.:]{7,39}", re.IGNORECASE)
"""What may be an address in a torn record."""

KINDS = ("intents", "attachments", "cooling", "quarantine", "creations")
"""Directories of records, one for each kind."""


class StateDirectory:
    """The records below one directory, and the lock that makes one reconciler its only writer."""

    def __init__(self, root: Path = DEFAULT) -> None:
        self.root = root
        self._lock: int | None = None
        self._parsed: dict[str, dict[str, tuple[Version, Any]]] = {}
        self._unreadable: dict[str, str] = {}
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
                (self.root / kind).mkdir(parents=True, exist_ok=True, mode=0o700)
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
        path = self.root / "lock"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            cure = "run as root" if error.errno == errno.EACCES else "see to the directory"
            raise StateError(f"cannot open {path}: {error.strerror}; {cure}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
            os.close(fd)
            raise LockedError(
                f"process {holder or '?'} already reconciles this node ({self.root}); it applies "
                "what differs by itself: use 'node-network diff' or 'node-network status'"
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        self._lock = fd
        for path in self.intents.glob(f".*{ASIDE}"):
            path.unlink()  # whoever was killed over it had nothing left to do for it

    def observe(self, desired: Iterable[object] = ()) -> Records:
        """Read all records, each kind in key order; a missing directory holds none.

        What cannot be understood is left out and named. An intent comes from outside, and no
        address hangs on it. A record of ours is set aside: what the kernel has of it explains it
        again, and the addresses that can still be made out in it are named with it.

        Raises:
            ObserveError: it is no directory, or another record exists and the disk does not give
                it. Nothing is planned then: an address without its witness must not be given to
                somebody else.
        """
        del desired
        try:
            if self.root.exists() and not self.root.is_dir():
                raise ObserveError(f"state directory {self.root}", "it is no directory")
        except PermissionError as error:
            why = f"{error.strerror}; run as root"
            raise ObserveError(f"state directory {self.root}", why) from error
        is_alive = cache(_is_alive)  # an intent and its attachment ask for the same
        return Records(
            intents=self._intents(None, is_alive),
            attachments=self._load("attachments", _parse_attachment, None, is_alive),
            cooling=self._load("cooling", _parse_cooling),
            quarantined=self._load("quarantine", _parse_quarantine),
            creations=self._load("creations", _parse_creation),
            unreadable=tuple(self._unreadable[name] for name in sorted(self._unreadable)),
            set_aside=self._read_set_aside(),
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
        is_alive = cache(_is_alive)
        intents = self._intents(names, is_alive)
        attachments = self._load("attachments", _parse_attachment, names, is_alive)
        return Records(
            intents=_updated(before.intents, keys, intents),
            attachments=_updated(before.attachments, keys, attachments),
            cooling=self._load("cooling", _parse_cooling),
            quarantined=self._load("quarantine", _parse_quarantine),
            creations=self._load("creations", _parse_creation),
            unreadable=tuple(self._unreadable[name] for name in sorted(self._unreadable)),
            set_aside=self._read_set_aside(),
        )

    def apply(self, actions: Sequence[Change[Record]]) -> tuple[ApplyError, ...]:
        """Write and unlink records, in order.

        The first failure stops the rest: later actions rely on the records of earlier ones.
        """
        for position, action in enumerate(actions):
            path = self._path(action.object)
            try:
                seen = action.was or action.object
                if action.verb is Verb.DELETE:
                    self._remove(path, seen)
                else:
                    if isinstance(seen, Intent):
                        self._check_unchanged(path, seen)
                    body = _encode(action.object)
                    write_atomically(path, _foreign_fields(path, body) | body)
            except OSError as error:
                return tuple(
                    ApplyError.from_errno(
                        str(a), error.errno or 0, f"{path}: {error.strerror}", error
                    )
                    for a in actions[position:]
                )
        return ()

    def take_over(self, release: Mapping[str, Any]) -> None:
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
            self._handed_over[intent.key] = intent.attempt

    def sweep(self) -> None:
        """Remove what killed writers have left half-written."""
        oldest = time.time() - WRITING_S
        for path in self.root.glob("*/.*.tmp"):
            with suppress(OSError):  # its writer was only slow, or the disk is read-only
                if path.stat().st_mtime < oldest:
                    path.unlink()

    def record(self, creation: Creation) -> None:
        """Write down an ENI's creation before EC2 is asked.

        Raises:
            OSError: it cannot be written.
        """
        write_atomically(self._path(creation), _encode(creation))

    def forget(self, creation: Creation) -> None:
        """Take out a creation that has certainly not happened."""
        self._path(creation).unlink(missing_ok=True)

    def remember(self, node: Node, cloud: Cloud) -> None:
        """Keep a look at EC2, so that a restart does not have to wait for the next one.

        Raises:
            StateError: it cannot be written.
        """
        try:
            write_atomically(self.root / LOOK, {"version": VERSION} | encode_look(node, cloud))
        except OSError as error:
            raise StateError(f"cannot write {self.root / LOOK}: {error.strerror}") from error

    def recall(self) -> tuple[Node, Cloud] | None:
        """Return the last look that was kept; None if there is none that can be read.

        It is a cache: the next look replaces it, whatever it holds.
        """
        try:
            body = json.loads((self.root / LOOK).read_text())
            _check_version(body)
            return decode_look(body)
        except (OSError, ValueError, KeyError, TypeError):
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
            path.unlink(missing_ok=True)
        _sync_directory(path.parent)

    def _check_unchanged(self, path: Path, seen: Intent) -> None:
        """Refuse to replace an intent that the executable has replaced since it was seen.

        Raises:
            OSError: it has; the next look will see what it is now.
        """
        try:
            now = self._as_told(_parse_intent(json.loads(path.read_bytes())))
        except (FileNotFoundError, ValueError, KeyError, TypeError, OverflowError):
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
        directory = self.root / kind
        known = self._parsed.get(kind, {})
        parsed: dict[str, tuple[Version, R]] = {}
        unreadable: dict[str, str] = {}
        names = self._list(directory) if (everything := names is None) else list(names)
        for name in names:
            path = f"{directory}/{name}"
            try:
                version = _version(path)
                before = known.get(name)
                if before is not None and before[0] == version:
                    parsed[name] = (version, _again(before[1], is_alive or _is_alive))
                else:
                    with open(path) as f:  # noqa: PTH123 - there are hundreds
                        parsed[name] = (version, parse(_decode(f, name)))
            except FileNotFoundError:
                continue  # unlinked since the directory was listed
            except UNREADABLE as error:
                if kind == "intents":
                    unreadable[name] = f"{path}: {type(error).__name__}: {error}"
                elif isinstance(error, OSError):
                    raise ObserveError(
                        f"record {path}", f"{type(error).__name__}: {error}"
                    ) from error
                else:
                    self._set_aside(kind, name)
        if kind == "intents":
            others = {} if everything else self._unreadable.keys() - names
            self._unreadable = {n: self._unreadable[n] for n in others} | unreadable
        # Another thread may have read meanwhile; what it has parsed is then parsed once more.
        self._parsed[kind] = parsed if everything else known | parsed
        return tuple(sorted((record for _, record in parsed.values()), key=BY_KEY))

    def _set_aside(self, kind: str, name: str) -> None:
        """Put a record that cannot be read where it is kept and not planned on.

        Only whoever holds the lock does: others just leave it out.

        Raises:
            ObserveError: it cannot be moved.
        """
        if self._lock is None:
            return
        source, target = self.root / kind / name, self.root / SET_ASIDE / f"{kind}-{name}"
        try:
            target.parent.mkdir(mode=0o700, exist_ok=True)
            os.utime(source)  # from now on it is set aside
            source.rename(target)
            _sync_directory(target.parent)
        except OSError as error:
            raise ObserveError(f"record {source}", f"it cannot be set aside: {error}") from error

    def _read_set_aside(self) -> tuple[SetAside, ...]:
        directory = self.root / SET_ASIDE
        found = []
        for name in sorted(self._list(directory)):
            path = directory / name
            with suppress(OSError):  # people take them away
                text = f"{path.stem} {path.read_bytes()[:MAX_RECORD_BYTES].decode('latin-1')}"
                addresses = frozenset(_addresses(text))
                found.append(SetAside(str(path), path.stat().st_mtime, addresses))
        return tuple(found)

    def _list(self, directory: Path) -> list[str]:
        try:
            return [name for name in os.listdir(directory) if name.endswith(".json")]  # noqa: PTH208 - there are hundreds
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ObserveError(f"{directory}", str(error)) from error

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


def _addresses(text: str) -> Iterator[IpAddress]:
    for word in ADDRESS.findall(text):
        with suppress(ValueError):
            yield ip_address(word)


def write_atomically(path: Path, content: dict[str, Any]) -> None:
    """Replace a file so that a crash leaves the old content or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w") as f:
            json.dump(content, f, sort_keys=True)
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
        case Cooling():
            body = {"address": str(record.address), "until": record.until}
        case Quarantine():
            body = {"network": str(record.network), "since": record.since}
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


OPTIONAL = {"macs", "address"}
"""Fields of ours that a record may do without, or had in an earlier release."""


def _foreign_fields(path: Path, body: dict[str, Any]) -> dict[str, Any]:
    """Return what another release, or the executable, has written into a record beside ours."""
    try:
        before = json.loads(path.read_bytes())
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
    netns, inode = str(body.get("netns", "")), int(body.get("netnsInode", 0))
    pod = f"{body.get('podNamespace', '')}/{body.get('podName', '')}".strip("/")
    return Intent(
        key=_parse_key(body),
        state=IntentState(body["state"]),
        netns=netns,
        netns_inode=inode,
        netns_alive=_is_alive(netns, inode),
        pod=pod,
        attempt=str(body.get("attempt", "")),
        trace=str(body.get("traceparent", ""))[3:35],
    )


def _parse_attachment(body: dict[str, Any]) -> Attachment:
    _check_version(body)
    netns = str(body["netns"])
    return Attachment(
        key=_parse_key(body),
        netns=netns,
        netns_alive=_is_alive(netns_path(netns), netns_inode(netns)),
        addresses=_parse_addresses(body),
        eni_id=str(body["eniID"]),
        veth=str(body["veth"]),
        pod=str(body.get("pod", "")),
        kept_macs=_parse_macs(body.get("macs", ("", ""))),
    )


def _parse_addresses(body: dict[str, Any]) -> tuple[IpAddress, ...]:
    """Read a record's addresses; releases before IPv6 wrote a single one."""
    texts = body["addresses"] if "addresses" in body else [body["address"]]
    if not texts or not isinstance(texts, list):
        raise ValueError("an attachment has at least one address")
    return tuple(ip_address(text) for text in texts)


def _parse_macs(body: Any) -> tuple[str, str]:
    host, pod = body
    return str(host), str(pod)


def _parse_cooling(body: dict[str, Any]) -> Cooling:
    _check_version(body)
    return Cooling(ip_address(body["address"]), float(body["until"]))


def _parse_quarantine(body: dict[str, Any]) -> Quarantine:
    _check_version(body)
    return Quarantine(ip_network(body["network"]), float(body["since"]))


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
        at=float(body["at"]),
        done=bool(body["done"]),
        ipv6_prefixes=int(body.get("ipv6_prefixes", 0)),
    )


def _parse_key(body: dict[str, Any]) -> AttachmentKey:
    return AttachmentKey(str(body["containerID"]), str(body["ifname"]))


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


def _decode(file: IO[str], name: str) -> Any:
    """Read a record; its name must be the one of what it is about."""
    body = json.loads(file.read(MAX_RECORD_BYTES))
    if isinstance(body, dict) and "containerID" in body and _file_name(_parse_key(body)) != name:
        raise ValueError("it is about another attachment than its name says")
    return body


def _version(path: str) -> Version:
    """Tell one content of a file from every other."""
    found = os.stat(path)  # noqa: PTH116 - there are hundreds
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


def _is_alive(netns: str, inode: int) -> bool:
    """Whether the path still leads to the namespace it led to; a path can be reused."""
    if not netns:
        return False
    try:
        found = os.stat(netns).st_ino  # noqa: PTH116 - there are hundreds
    except OSError:
        return False
    return inode in (0, found)
