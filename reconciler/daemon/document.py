"""The document: read in a thread of its own, and the last valid one in force.

No pod waits for a file system that hangs, or for a document that takes seconds to parse. While a
newer document is refused, the last good one stays.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from reconciler.daemon.duty import Conditions
from reconciler.daemon.triggers import Triggers
from reconciler.errors import Issue
from reconciler.targets.files.bounded import is_mounted_alone
from schemas.document import NodeNetwork
from schemas.load import DocumentError, load, read

log = logging.getLogger(__name__)

NEVER_CHANGES = (
    "it is a mount of its own, as subPath makes it: a ConfigMap's next version never arrives "
    "here, and neither does a file that an editor renames into its place; mount the whole "
    "ConfigMap as a directory, without subPath, and restart this reconciler"
)

MOST_PROBLEMS = 20  # of a refused document that are told; ``validate`` tells all


@dataclass(frozen=True, slots=True)
class Reading:
    """What one look at the document has found."""

    text: str | None = None  # as it stands in the file; None if that could not be read
    document: NodeNetwork | None = None  # what it says; None if it is refused
    refused: DocumentError | None = None  # why it is
    fixed: bool = False  # its mount never shows another content

    @property
    def said(self) -> tuple[str | None, str, bool]:
        """What makes it another reading."""
        return self.text, str(self.refused), self.fixed


class Reader:
    """Reads one document, again and again.

    Args:
        tell: called when a reading says something new.

    Attributes:
        hints: mark something here to have it read.
    """

    def __init__(self, path: Path, tell: Callable[[], None]) -> None:
        self.hints = Triggers()
        self._path, self._tell = path, tell
        self._last = self._taken = Reading()

    def look(self) -> Reading:
        """Read it; what was read before is not parsed again, however often it is refused."""
        fixed = is_mounted_alone(self._path)
        last, text = self._last, None
        try:
            text = read(self._path)
            if text == last.text:
                return replace(last, fixed=fixed)
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
        if reading.said != self._last.said:
            self._last = reading
            self._tell()

    def take(self) -> Reading | None:
        """Return the last reading if it was not taken yet."""
        last = self._last
        if last is self._taken:
            return None
        self._taken = last
        return last


@dataclass(frozen=True, slots=True)
class Accepted:
    """What is in force.

    Attributes:
        refused: what is wrong with the file as it is now; None if it is this document.
    """

    document: NodeNetwork | None = None  # None until there was a valid one
    text: str | None = None  # it was read from
    generation: int = 0  # how many documents were accepted so far
    refused: str | None = None


class InForce:
    """Keeps the document in force.

    Args:
        hints: hears "document" when the file says something new.
    """

    def __init__(self, path: Path, hints: Triggers, conditions: Conditions) -> None:
        self.path = path
        self.reader = Reader(path, lambda: hints.mark("document"))
        self.accepted = Accepted()
        self._conditions = conditions

    @property
    def current(self) -> NodeNetwork:
        """The document in force; there is one before any loop starts."""
        document = self.accepted.document
        assert document is not None
        return document

    @property
    def resync_s(self) -> float:
        """Seconds between passes that no hint asks for."""
        return self.current.reconcile.resync.total_seconds()

    def take_first(self) -> None:
        """Read and accept the first document.

        Raises:
            DocumentError: it is invalid.
        """
        reading = self.reader.look_first()
        if reading.refused:
            raise reading.refused
        self._accept(reading)

    def take(self) -> bool:
        """Take over a document that was read since; return whether it says something new."""
        reading = self.reader.take()
        return reading is not None and self._accept(reading)

    def _accept(self, reading: Reading) -> bool:
        fixed = Issue(str(self.path), "DocumentNeverChanges", NEVER_CHANGES)
        self._conditions.note("mount", [fixed] if reading.fixed else [])
        before = self.accepted
        if reading.refused:
            self.accepted = replace(before, refused=self._refuse(reading.refused, before.refused))
            return False
        self._conditions.note("document", [])
        if reading.text == before.text:
            self.accepted = replace(before, refused=None)
            return False  # an invalid edit that was taken back changes nothing
        self.accepted = Accepted(reading.document, reading.text, before.generation + 1)
        log.info("document accepted", extra={"generation": before.generation + 1})
        return True

    def _refuse(self, error: DocumentError, said_before: str | None) -> str:
        """Say what is wrong, in the log only if that is new; return it."""
        said = "\n".join(map(str, error.problems[:MOST_PROBLEMS]))
        if (more := len(error.problems) - MOST_PROBLEMS) > 0:
            said += f"\nand {more} more"
        if said != said_before:
            for problem in said.splitlines():
                log.error("document refused, the last good one stays", extra={"problem": problem})
        message = f"{said}; the last good one stays in force"
        refusal = Issue(str(self.path), "DocumentRefused", message)
        self._conditions.note("document", [refusal], is_logged=True)
        return said
