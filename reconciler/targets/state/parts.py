"""What the state directory and the last good document take up on the disk, to remove it.

Only names that are ours go: whatever else is in these directories stays, and they with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from reconciler.engine.plan import Change, Key, Verb
from reconciler.errors import ApplyError, ObserveError
from reconciler.targets.state.codec import KINDS
from reconciler.targets.state.directory import LOCK, LOOK, SOURCES, OwnedDirectory
from reconciler.targets.state.kept_document import KeptDocument
from reconciler.targets.state.kept_identities import KeptIdentities
from reconciler.targets.state.kind_records import SECOND
from reconciler.targets.state.set_aside import SET_ASIDE


@dataclass(frozen=True, slots=True)
class StatePart:
    """A file, or a directory with the files in it."""

    kind: ClassVar[str] = "state"
    path: str
    is_directory: bool = False

    @property
    def key(self) -> Key:
        return (self.path,)

    def command(self, verb: Verb) -> str:
        """``rm``; none is ever made by this."""
        del verb
        return f"rm {'-r ' if self.is_directory else ''}{self.path}"


class StateParts:
    """The parts below a state directory, and of the directory of the last good document.

    While nothing is removed, no lock is needed to look.
    """

    def __init__(self, root: Path, kept: Path) -> None:
        state = OwnedDirectory(root)
        directories = (*(kind.directory for kind in KINDS), SECOND, SET_ASIDE)
        self._directories = [root / name for name in directories]
        # The lock last: it keeps others out until then.
        observations = (root / LOOK, root / SOURCES)
        both = (KeptDocument(kept).path, KeptIdentities(kept).path)
        self._files = [*both, state.socket, *observations, root / LOCK]
        self._roots = list(dict.fromkeys((root, kept)))

    def observe(self, desired: Iterable[StatePart] = ()) -> frozenset[StatePart]:
        """Name the parts that are there.

        Raises:
            ObserveError: a directory cannot be searched.
        """
        del desired
        return frozenset(self._parts())

    def _parts(self) -> Iterator[StatePart]:
        try:
            for path in self._directories:
                if path.is_dir():
                    yield StatePart(str(path), is_directory=True)
            yield from (StatePart(str(p)) for p in self._files if p.exists() or p.is_symlink())
        except OSError as error:
            raise ObserveError(str(error.filename), str(error.strerror)) from error

    def apply(self, actions: Sequence[Change[StatePart]]) -> tuple[ApplyError, ...]:
        """Remove parts, and then the directories that have become empty."""
        failures = []
        last = [str(p) for p in self._files]
        for action in sorted(actions, key=lambda a: (a.key[0] in last, a.key[0] == last[-1])):
            path = Path(action.object.path)
            try:
                if action.object.is_directory:
                    for each in path.iterdir():
                        if not each.is_dir():
                            each.unlink(missing_ok=True)
                    path.rmdir()
                else:
                    path.unlink(missing_ok=True)
            except OSError as error:
                failures.append(ApplyError.from_errno(str(action), error))
        for directory in self._roots:
            with suppress(OSError):  # somebody else's files are in it, or it is a mount
                directory.rmdir()
        return tuple(failures)
