"""Whose the state directory is: its directories, and the lock of its only writer."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

from reconciler.engine.issue import Issue
from reconciler.errors import LockedError, ObserveError, StateError
from reconciler.targets.state.codec import INTENTS, KINDS
from reconciler.targets.state.record_file import is_same, why
from reconciler.targets.state.set_aside import SET_ASIDE

SECOND = "second"
"""Directory of the second names of records."""

WRITING_S = 60.0
"""Seconds after which no process is still writing a temporary file."""


class Lock:
    """A locked file, whose text is the number of the process that holds it.

    Attributes:
        fd: the descriptor that holds it; None until it is taken.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.fd: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether this process holds it."""
        return self.fd is not None

    @property
    def is_own(self) -> bool:
        """Whether the file is still the one that is held here, if any is."""
        fd = self.fd
        return fd is None or is_same(fd, self._path)

    def take(self) -> None:
        """Lock the file that is there now, and let go of an earlier one.

        Raises:
            BlockingIOError: another process has it; its text is that process's number.
            StateError: the file cannot be opened.
        """
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            fd = os.open(self._path, flags, 0o600)
        except OSError as error:
            cure = "run as root" if error.errno == errno.EACCES else "see to the directory"
            raise StateError(f"cannot open {self._path}: {error.strerror}; {cure}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "?"
            os.close(fd)
            raise BlockingIOError(errno.EAGAIN, holder) from error
        with suppress(OSError):  # a full disk: who holds it is not told then
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode(), 0)
        before, self.fd = self.fd, fd
        if before is not None:
            os.close(before)


class OwnedDirectory:
    """A directory with one directory for each kind of record, and at most one writer.

    Attributes:
        root: where it is.
        intents: the directory that the CNI executable writes to.
        socket: where the reconciler answers the CNI executable and the command line.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.intents = root / INTENTS.directory
        self.socket = root / "node-network.sock"
        self._lock = Lock(root / "lock")

    def prepare(self) -> None:
        """Make the directories, readable by root only.

        Raises:
            StateError: the file system refuses.
        """
        try:
            for kind in KINDS:
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
        """Become this directory's only writer, until the process ends.

        Raises:
            LockedError: another process is.
            StateError: the lock's file cannot be opened.
        """
        try:
            self._lock.take()
        except BlockingIOError as error:
            raise LockedError(
                f"process {error.strerror} already reconciles this node ({self.root}); it applies "
                "what differs by itself: use 'node-network diff' or 'node-network status'"
            ) from error

    @property
    def is_own(self) -> bool:
        """Whether the lock's file is still the one that is held here."""
        return self._lock.is_own

    def reclaim(self) -> tuple[Issue, ...]:
        """Make again what others have removed of the directory, its lock included.

        A second reconciler could take a lock whose file is another one than is held here.

        Returns:
            What was made again.

        Raises:
            LockedError: another process has locked the directory since: it is not ours any more.
            StateError: the file system refuses.
        """
        if not self._lock.is_held:
            return ()
        directories = (kind.directory for kind in KINDS)
        missing = [name for name in directories if not (self.root / name).is_dir()]
        self.prepare()
        if not self.is_own:
            missing.append("lock")
            try:
                self._lock.take()
            except BlockingIOError as error:
                raise LockedError(
                    f"process {error.strerror} has taken over {self.root}, which was removed or "
                    "replaced; it reconciles this node now, and this process ends"
                ) from error
        if not missing:
            return ()
        return (
            Issue(
                f"state directory {self.root}",
                "DirectoryReplaced",
                f"{', '.join(missing)} were removed by another program and are made again; what "
                "this process knows of the records is written again. Find out who removes them",
            ),
        )

    def sweep(self) -> None:
        """Remove what killed writers have left half-written.

        Raises:
            ObserveError: the directory cannot be listed.
        """
        oldest = time.time() - WRITING_S
        try:
            left = list(self.root.glob("*/.*.tmp"))
        except OSError as error:
            raise ObserveError(f"state directory {self.root}", why(error)) from error
        for path in left:
            with suppress(OSError):  # its writer was only slow, or the disk is read-only
                if path.stat().st_mtime < oldest:
                    path.unlink()
