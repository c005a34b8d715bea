"""The document: read in a thread of its own, and the last valid one in force.

No pod waits for a file system that hangs, or for a document that takes seconds to parse. While a
newer document is refused, the last good one stays, across restarts too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from reconciler.daemon import telemetry
from reconciler.daemon.duty import Conditions
from reconciler.daemon.triggers import Triggers
from reconciler.engine.backoff import Delays
from reconciler.errors import Issue, StateError
from reconciler.targets.files.bounded import is_mounted_alone
from reconciler.targets.state.kept_document import Kept, KeptDocument
from schemas.apart import Documents, Here
from schemas.document import NodeNetwork
from schemas.file import read
from schemas.problem import DocumentError, Problem, UncheckedError
from schemas.settings import Setting

log = logging.getLogger(__name__)

NEVER_CHANGES = (
    "it is a mount of its own, as subPath makes it: a ConfigMap's next version never arrives "
    "here, and neither does a file that an editor renames into its place; mount the whole "
    "ConfigMap as a directory, without subPath, and restart this reconciler"
)

KEPT = "kept document"  # the domain of conditions about it

IGNORED = "it counts as none, and is replaced by the document in force"

NOT_KEPT = (
    "while the file is refused, a restart would go by an older document, or not start; it is "
    "tried again"
)

RETRY_S = Delays(30.0, 1800.0)
"""Of a document that could not be checked. Whatever it is that takes so long or so much memory,
each attempt costs it again."""

MOST_PROBLEMS, LONGEST = 20, 500
"""Problems of a refused document that are told, and characters of each; ``validate`` tells all."""


class Unchecked(NamedTuple):
    """A text that could not be checked, how often in a row, and until when it is left alone."""

    text: str
    failures: int
    until: float
    refused: UncheckedError


@dataclass(frozen=True, slots=True)
class Reading:
    """What one look at the document has found."""

    text: str | None = None  # as it stands in the file; None if that could not be read
    document: NodeNetwork | None = None  # what it says; None if it is refused
    refused: DocumentError | None = None  # why it is
    fixed: bool = False  # its mount never shows another content

    @property
    def said(self) -> tuple[str | None, str, bool]:
        """What tells two readings apart."""
        return self.text, str(self.refused), self.fixed


class Reader:
    """Reads one document, again and again.

    Args:
        tell: called when a reading says something new.
        documents: checks what was read; by default in this process.
        prepare: called with a valid document, before anybody is told of it; as ``Known.prepare``.

    Attributes:
        hints: mark something here to have it read.
        documents: what checks it.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        path: Path,
        tell: Callable[[], None],
        documents: Documents | None = None,
        prepare: Callable[[NodeNetwork], None] = lambda _: None,
    ) -> None:
        self.hints = Triggers()
        self.documents = documents or Here()
        self.clock = time.monotonic
        self._path, self._tell, self._prepare = path, tell, prepare
        self._unchecked: Unchecked | None = None
        self._last = self._taken = Reading()

    def look(self) -> Reading:
        """Read it; what was read before is not parsed again, however often it is refused."""
        fixed = is_mounted_alone(self._path)
        last, text = self._last, None
        try:
            text = read(self._path)
            if text == last.text:
                return replace(last, fixed=fixed)
            waits = self._unchecked
            if waits and waits.text == text and self.clock() < waits.until:
                return Reading(refused=waits.refused, fixed=fixed)
            document = self.documents.load(text, str(self._path))
            self._prepare(document)
            return Reading(text, document, fixed=fixed)
        except UncheckedError as error:
            assert text is not None
            return Reading(refused=self._put_off(text, error), fixed=fixed)
        except DocumentError as error:
            return Reading(text, refused=error, fixed=fixed)

    def _put_off(self, text: str, error: UncheckedError) -> UncheckedError:
        """Leave a text that could not be checked alone for a while; return what is said of it."""
        before = self._unchecked
        failures = before.failures + 1 if before and before.text == text else 1
        delay_s = RETRY_S.after(failures)
        after = f", but not before {delay_s:.0f} s have passed or the text has changed"
        told = [replace(p, message=p.message + after) for p in error.problems]
        refused = UncheckedError(told)
        self._unchecked = Unchecked(text, failures, self.clock() + delay_s, refused)
        return refused

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
    kept: Kept | None = None  # its text, and which one it is; likewise
    refused: str | None = None

    @property
    def generation(self) -> int:
        """How many documents were accepted on this node so far, by this process or before it."""
        return self.kept.generation if self.kept else 0

    @property
    def accepted_at(self) -> str:
        """When it was accepted; "" if there is none."""
        return self.kept.accepted_at.isoformat(timespec="seconds") if self.kept else ""


@dataclass(frozen=True, slots=True)
class Described:
    """What a document sets, and what of it is in force here.

    ``of``: its text, and the node as overrides match it. ``failure``: why that is not known, and
    is not found out again before ``until``.
    """

    of: tuple[str, Mapping[str, str]] | None = None
    settings: tuple[Setting, ...] = ()
    failure: str = ""
    until: float = 0.0


class InForce:
    """Keeps the document in force.

    Args:
        kept: where it is kept for the next start.
        hints: hears "document" when the file says something new.
        now: seconds since the epoch.
        documents: checks what was read; by default in this process.
        prepare: as of ``Reader``.
    """

    def __init__(
        self,
        path: Path,
        kept: KeptDocument,
        hints: Triggers,
        conditions: Conditions,
        now: Callable[[], float],
        documents: Documents | None = None,
        prepare: Callable[[NodeNetwork], None] = lambda _: None,
    ) -> None:
        self.path = path
        self.reader = Reader(path, lambda: hints.mark("document"), documents, prepare)
        self.accepted = Accepted()
        self._kept, self._conditions, self._now = kept, conditions, now
        self._wanted = self._described = Described()

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
        """Accept the document in the file; if it is refused, the last good one that was kept.

        Raises:
            DocumentError: the file's is refused, and none is kept, or that one cannot be used
                either: then it says what is wrong with both.
        """
        reading = self.reader.look_first()
        try:
            kept, unusable = self._kept.recall(), ""
        except StateError as error:
            kept, unusable = None, str(error)
            ignored = Issue(str(self._kept.path), "KeptDocumentIgnored", f"{error}; {IGNORED}")
            self._conditions.note(KEPT, [ignored])
        if reading.refused:
            self._fall_back(reading.refused, kept, unusable)
        else:
            self.accepted = Accepted(kept=kept)
        self._accept(reading)

    def take(self) -> bool:
        """Take over a document that was read since; return whether it says something new."""
        reading = self.reader.take()
        return reading is not None and self._accept(reading)

    def keep(self) -> None:
        """Keep the document in force for the next start; a disk that does not is a condition.

        Called by the reader's thread: no pod waits for that disk.
        """
        if (kept := self.accepted.kept) is None:
            return
        issues = []
        try:
            self._kept.keep(kept)
        except StateError as error:
            issues.append(Issue(str(self._kept.path), "DocumentNotKept", f"{error}; {NOT_KEPT}"))
        self._conditions.note(KEPT, issues)

    def find_settings(self, node: Mapping[str, str]) -> Described | None:
        """Return what the document in force sets; None if that is being found out.

        By another process, and only for somebody who asks: ``describe_wanted`` has it started.
        """
        kept = self.accepted.kept
        of = (kept.text if kept else "", node)
        described = self._described
        if described.of == of and not described.failure:
            return described
        self._wanted = Described(of)
        self.reader.hints.mark("settings")
        return described if described.of == of else None

    def describe_wanted(self) -> None:
        """Find out what somebody has asked for, in the reader's thread."""
        of, known, clock = self._wanted.of, self._described, self.reader.clock
        if of is None or (of == known.of and (not known.failure or clock() < known.until)):
            return
        try:
            self._described = Described(of, self.reader.documents.describe(*of))
        except DocumentError as error:
            until = clock() + RETRY_S.first
            self._described = Described(of, failure=str(error), until=until)

    def _fall_back(self, refused: DocumentError, kept: Kept | None, unusable: str) -> None:
        """Put the document in force that is kept, if there is one that can be used."""
        if kept is None:
            also = [Problem(str(self._kept.path), 0, 0, "", unusable)] if unusable else []
            raise DocumentError([*refused.problems, *also])
        try:
            source = f"the last good document, in {self._kept.path}"
            document = self.reader.documents.load(kept.text, source)
        except DocumentError as error:
            raise DocumentError([*refused.problems, *error.problems]) from error
        self.accepted = Accepted(document, kept)
        started = {"kept": self._kept.path, "generation": kept.generation}
        log.error("started by the last good document: the file is refused", extra=started)

    def _accept(self, reading: Reading) -> bool:
        fixed = Issue(str(self.path), "DocumentNeverChanges", NEVER_CHANGES)
        self._conditions.note("mount", [fixed] if reading.fixed else [])
        before, kept = self.accepted, self.accepted.kept
        telemetry.DOCUMENT_REFUSED.set(reading.refused is not None)
        telemetry.DOCUMENT_GENERATION.set(before.generation)
        if reading.refused:
            self.accepted = replace(before, refused=self._refuse(reading.refused, before))
            return False
        self._conditions.note("document", [])
        assert reading.text is not None
        if kept is None or kept.text != reading.text:
            now = datetime.fromtimestamp(self._now(), UTC)
            kept = Kept(reading.text, before.generation + 1, now.replace(microsecond=0))
        elif before.document is not None:
            self.accepted = replace(before, refused=None)
            return False  # an invalid edit that was taken back changes nothing
        self.accepted = Accepted(reading.document, kept)
        telemetry.DOCUMENT_GENERATION.set(kept.generation)
        log.info("document accepted", extra={"generation": kept.generation})
        self.reader.hints.mark("keep")
        return True

    def _refuse(self, error: DocumentError, before: Accepted) -> str:
        """Say what is wrong, in the log only if that is new; return it."""
        said = "\n".join(_cut(str(p)) for p in error.problems[:MOST_PROBLEMS])
        if (more := len(error.problems) - MOST_PROBLEMS) > 0:
            said += f"\nand {more} more"
        if said != before.refused:
            for problem in said.splitlines():
                log.error("document refused, the last good one stays", extra={"problem": problem})
        message = (
            f"{said}; the last good one stays in force: generation {before.generation}, accepted "
            f"{before.accepted_at}"
        )
        refusal = Issue(str(self.path), "DocumentRefused", message)
        self._conditions.note("document", [refusal], is_logged=True)
        return said


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
