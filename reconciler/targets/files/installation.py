"""Files of ours on the host: the CNI executable, the configuration that names it, what removes it.

Each is written beside its place and renamed into it, so that a runtime reads the old one or the
new one, starts the old one or the new one, and a crash leaves no half of either.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from reconciler.core.facts import NOWHERE, Installation
from reconciler.domains import boot_rule
from reconciler.domains.boot_rule import BootRule
from reconciler.domains.conflist import (
    NAME,
    SUFFIXES,
    Conflist,
    OtherConf,
    Plugins,
    normal,
    words_of,
)
from reconciler.domains.executable import Executable
from reconciler.engine.plan import Change, Verb
from reconciler.errors import ApplyError, ObserveError
from reconciler.targets.files.bounded import printable, replace_file
from schemas.cni import TYPE

INTERIM = frozenset(f".{name}.tmp" for name in (NAME, TYPE, boot_rule.NAME))
"""Names that our files have before they are renamed into place: with none of the endings that
runtimes look for, and always the same, so that what a killed process has left is used up by the
next."""

MAX_CONF_BYTES = 1 << 20
"""What is longer is no configuration; a document may not be longer either."""

CHUNK_BYTES = 1 << 20

CURES = {
    errno.EROFS: "mount the directory writable",
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EACCES: "run as root",
    errno.EPERM: "run as root, and see lsattr for a file that may not be replaced",
    errno.EISDIR: "remove the directory of that name",
    errno.ENOTDIR: "remove the file that has a directory's name",
}
"""What to do when a file cannot be written."""

Installed = Conflist | Executable | BootRule
Seen = Conflist | OtherConf | Plugins | Executable | BootRule


class HostDirectories:
    """The runtime's two directories on the host, and the one of what is removed at a boot.

    Attributes:
        places: what belongs where; nothing, if the operator installs by other means.
    """

    def __init__(self, places: Installation = NOWHERE) -> None:
        self.places = places
        self._compared: tuple[object, bool] | None = None

    def observe(self, desired: Iterable[Installed]) -> frozenset[Seen]:
        """Read our files, and who else has some there."""
        del desired
        found: set[Seen] = set()
        if self.places.bin_dir:
            found |= set(self._programs(Path(self.places.bin_dir)))
        if self.places.conf_dir:
            found |= set(self._configurations(Path(self.places.conf_dir)))
        if self.places.tmpfiles_dir:
            found |= set(self._boot_rules(Path(self.places.tmpfiles_dir)))
        return frozenset(found)

    def apply(self, actions: Sequence[Change[Installed]]) -> tuple[ApplyError, ...]:
        """Write, or remove, each file.

        The first failure stops the rest: a configuration relies on the executable it names, and
        what removes it at a boot comes last.
        """
        for position, action in enumerate(actions):
            obj = action.object
            path, mode = Path(obj.path), int(obj.mode, 8)
            try:
                if action.verb is Verb.DELETE:
                    _interim(path).unlink(missing_ok=True)
                    path.unlink(missing_ok=True)
                elif isinstance(obj, Executable):
                    with Path(obj.copy_of).open("rb") as source:
                        _put(path, iter(lambda: source.read(CHUNK_BYTES), b""), mode)
                else:
                    _put(path, [obj.text.encode()], mode)
            except OSError as error:
                cure = CURES.get(error.errno or 0, "see to the directory")
                message = f"{path}: {error.strerror}; {cure}"
                return tuple(
                    ApplyError.from_errno(str(a), error, message) for a in actions[position:]
                )
        return ()

    def _programs(self, directory: Path) -> Iterator[Seen]:
        yield Plugins(str(directory), frozenset(_list(directory)))
        path, source = directory / TYPE, Path(self.places.program)
        with _opened(source) as shipped, _opened(path) as there:
            if shipped is None:
                raise ObserveError(
                    f"the CNI executable {source}",
                    "there is none; name the one to install by --cni-executable",
                )
            if there is not None:
                copy_of = str(source) if self._is_same(shipped, there) else ""
                yield Executable(str(path), copy_of, _mode(there))

    def _is_same(self, shipped: BinaryIO, there: BinaryIO) -> bool:
        stamps = (_stamp(shipped), _stamp(there))
        if self._compared is None or self._compared[0] != stamps:
            self._compared = (stamps, _have_equal_content(shipped, there))
        return self._compared[1]

    def _configurations(self, directory: Path) -> Iterator[Seen]:
        for name in _list(directory):
            path = directory / name
            if name == NAME:
                with _opened(path) as file:
                    if file is not None:
                        yield Conflist(str(path), _normal(file), _mode(file))
            elif name.endswith(SUFFIXES) and not path.is_dir():
                yield OtherConf(printable(name), _words(path))

    def _boot_rules(self, directory: Path) -> Iterator[Seen]:
        path = directory / boot_rule.NAME
        try:
            with _opened(path) as file:
                if file is not None:
                    text = file.read(MAX_CONF_BYTES).decode(errors="replace")
                    removes = f"{self.places.conf_dir}/{NAME}"
                    yield boot_rule.read(str(path), text, removes, _mode(file))
        except ObserveError:
            # Nothing else depends on it, so nothing else fails with it.
            yield BootRule(str(path), "", "")


def _list(directory: Path) -> list[str]:
    """Name what is in a directory; one that is missing holds nothing."""
    try:
        return sorted(entry.name for entry in directory.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unreadable(directory, error) from error


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO | None]:
    """Open a file to read it; None if there is none."""
    try:
        # A pipe would make us wait for its writer.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        raise _unreadable(path, error) from error
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.close(fd)
        raise ObserveError(str(path), "it is a directory; remove it")
    with os.fdopen(fd, "rb") as file:
        try:
            yield file
        except OSError as error:
            raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> ObserveError:
    cure = CURES.get(error.errno or 0, "remove it if it is broken")
    return ObserveError(str(path), f"{error.strerror}; {cure}")


def _stamp(file: BinaryIO) -> tuple[int, ...]:
    """Return what changes whenever a file does (inode(7)): it has eight megabytes."""
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _mode(file: BinaryIO) -> str:
    return f"{stat.S_IMODE(os.fstat(file.fileno()).st_mode):04o}"


def _have_equal_content(one: BinaryIO, other: BinaryIO) -> bool:
    while (chunk := one.read(CHUNK_BYTES)) == other.read(CHUNK_BYTES):
        if not chunk:
            return True
    return False


def _normal(file: BinaryIO) -> str:
    """Return a configuration in its normal form; "" if it is none."""
    text = file.read(MAX_CONF_BYTES + 1)
    if len(text) > MAX_CONF_BYTES:
        return ""
    try:
        return normal(text.decode())
    except ValueError:
        return ""


def _words(path: Path) -> frozenset[str]:
    """Return the texts in another owner's configuration; none if it cannot be read."""
    try:
        with _opened(path) as file:
            return words_of(file.read(MAX_CONF_BYTES).decode()) if file else frozenset()
    except (ObserveError, UnicodeDecodeError):
        return frozenset()


def _put(path: Path, chunks: Iterable[bytes], mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, _interim(path), chunks, mode)


def _interim(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")
