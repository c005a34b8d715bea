"""The last good document, kept where a reboot leaves it: what a start falls back on.

One JSON file of root's, with the document as it was written, its generation, and when it was
accepted. Whatever is wrong with it makes it no document: it is never half believed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reconciler.errors import StateError
from reconciler.targets.files.bounded import read_file, replace_file
from reconciler.targets.state import codec
from reconciler.targets.state.record_file import NO_FILE, UNREADABLE, Version, why

NAME = "document.json"

MAX_KEPT_BYTES = 4 << 20
"""Bytes of the file. A document has 1 MiB at most (``schemas.load.MAX_BYTES``); as JSON a newline
takes two bytes, and two bytes of UTF-8 take six."""

MOST_GENERATIONS = 1 << 53
"""Generations are below this: a metric is a double, which counts exactly so far."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A document that was accepted.

    Attributes:
        text: as it was written.
        generation: how many documents were accepted on this node so far, this one included.
        accepted_at: when; with a time zone.
    """

    text: str
    generation: int
    accepted_at: datetime


class KeptDocument:
    """The file in a directory; its one writer is the reconciler that holds the node's lock."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / NAME
        self._written: tuple[Kept | None, Version] = (None, NO_FILE)

    def recall(self) -> Kept | None:
        """Return what is kept; None if there is nothing.

        Raises:
            StateError: it cannot be read, is no regular file, is too large, may be written by
                others than this process's user, or holds no document of this release's format.
        """
        try:
            kept = _decode(read_file(self.path, MAX_KEPT_BYTES, follow=False, own=True))
        except FileNotFoundError:
            return None
        except UNREADABLE as error:
            raise StateError(f"the last good document cannot be read: {why(error)}") from error
        self._written = (kept, self._version())
        return kept

    def keep(self, kept: Kept) -> None:
        """Put a document there, unless it is there already as this process has seen it.

        A crash leaves the one before it.

        Raises:
            StateError: it cannot be written.
        """
        if (kept, self._version()) == self._written:
            return
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            interim = self.path.with_name(f".{self.path.name}.tmp")
            replace_file(self.path, interim, [_encode(kept)], 0o600)
        except OSError as error:
            raise StateError(f"cannot write {self.path}: {error.strerror}") from error
        self._written = (kept, self._version())

    def _version(self) -> Version:
        """Tell the file that is there from every other, and from itself with another owner."""
        try:
            found = self.path.lstat()
        except OSError:
            return NO_FILE
        return found.st_ino, found.st_ctime_ns, found.st_size


def _encode(kept: Kept) -> bytes:
    body = {
        "version": codec.VERSION,
        "generation": kept.generation,
        "accepted": kept.accepted_at.isoformat(timespec="seconds"),
        "document": kept.text,
    }
    return json.dumps(body, indent=1).encode()


def _decode(content: bytes) -> Kept:
    """Read what ``_encode`` has written; what it raises is one of ``UNREADABLE``."""
    body: Any = json.loads(content)
    codec.check_version(body)
    text, generation = body["document"], body["generation"]
    if not isinstance(text, str):
        raise TypeError("its document is no text")
    if type(generation) is not int or not 0 < generation < MOST_GENERATIONS:
        raise ValueError(f"generation {generation!r}")
    accepted_at = datetime.fromisoformat(body["accepted"])
    if accepted_at.tzinfo is None:
        raise ValueError(f"the time {body['accepted']!r} has no zone")
    return Kept(text, generation, accepted_at.astimezone(UTC))
