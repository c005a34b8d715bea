"""Reads the document in a thread of its own.

No pod waits for a file system that hangs, or for a document that takes seconds to parse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from reconciler.daemon.triggers import Triggers
from reconciler.targets.files.mount import is_mounted_alone
from schemas.document import NodeNetwork
from schemas.load import DocumentError, load, read


@dataclass(frozen=True, slots=True)
class Reading:
    """What one look at the document has found.

    Attributes:
        text: as it stands in the file; "" if that could not be read.
        document: what it says; None if it is refused.
        refused: why it is.
        fixed: its mount never shows another content.
    """

    text: str
    document: NodeNetwork | None = None
    refused: DocumentError | None = None
    fixed: bool = False

    def is_like(self, other: Reading | None) -> bool:
        """Whether it says the same."""
        return other is not None and (self.text, str(self.refused), self.fixed) == (
            other.text,
            str(other.refused),
            other.fixed,
        )


class Reader:
    """Reads one document, again and again.

    Args:
        path: the document.
        tell: called when a reading says something new.

    Attributes:
        hints: mark something here to have it read.
    """

    def __init__(self, path: Path, tell: Callable[[], None]) -> None:
        self.hints = Triggers()
        self._path = path
        self._tell = tell
        self._last: Reading | None = None
        """Written by the thread that reads."""
        self._taken: Reading | None = None
        """Written by the thread that takes."""

    def look(self) -> Reading:
        """Read it; what was read before is not parsed again, however often it is refused."""
        fixed = is_mounted_alone(self._path)
        try:
            text = read(self._path)
        except DocumentError as error:
            return Reading("", refused=error, fixed=fixed)
        last = self._last
        if last is not None and last.text == text:
            return Reading(text, last.document, last.refused, fixed)
        try:
            return Reading(text, load(text, str(self._path)), fixed=fixed)
        except DocumentError as error:
            return Reading(text, refused=error, fixed=fixed)

    def look_first(self) -> Reading:
        """Read it before anything else is done."""
        self._last = self._taken = self.look()
        return self._last

    def look_again(self) -> None:
        """Read it, and tell if there is something new."""
        reading = self.look()
        if not reading.is_like(self._last):
            self._last = reading
            self._tell()

    def take(self) -> Reading | None:
        """Return the last reading if it was not taken yet."""
        last = self._last
        if last is self._taken:
            return None
        self._taken = last
        return last
