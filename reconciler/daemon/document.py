"""The document in force: the last valid one, kept while a newer one is refused."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from reconciler.daemon.conditions import Conditions
from reconciler.daemon.reader import Reader, Reading
from reconciler.daemon.triggers import Triggers
from reconciler.engine.converge import Outcome
from reconciler.engine.issue import Issue
from reconciler.engine.plan import Plan
from schemas.document import NodeNetwork
from schemas.load import DocumentError

log = logging.getLogger(__name__)

NEVER_CHANGES = (
    "it is a mount of its own, as subPath makes it: a ConfigMap's next version never arrives "
    "here, and neither does a file that an editor renames into its place; mount the whole "
    "ConfigMap as a directory, without subPath, and restart this reconciler"
)

MOST_PROBLEMS = 20
"""Of a refused document that are told; ``validate`` tells all."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """What is in force.

    Attributes:
        document: None until there was a valid one.
        text: it was read from.
        generation: how many documents were accepted so far.
        refused: what is wrong with the file as it is now; None if it is this document.
    """

    document: NodeNetwork | None = None
    text: str = ""
    generation: int = 0
    refused: str | None = None


class InForce:
    """Keeps the document in force.

    Args:
        path: the file that holds the desired state.
        hints: hears "document" when the file says something new.
        conditions: told of what is wrong with it.

    Attributes:
        accepted: replaced as a whole, by the kernel loop.
        reader: reads the file.
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
        """Take over a document that was read since; return whether it says something new.

        If it is invalid, the last good one stays.
        """
        reading = self.reader.take()
        return reading is not None and self._accept(reading)

    def _accept(self, reading: Reading) -> bool:
        fixed = Issue(str(self.path), "DocumentNeverChanges", NEVER_CHANGES)
        self._conditions.note("mount", [fixed] if reading.fixed else [])
        before = self.accepted
        if reading.refused:
            self.accepted = replace(before, refused=self._refuse(reading.refused, before.refused))
            return False
        self._conditions.report("document", Outcome())
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
        outcome = Outcome(remaining=Plan(refusals=(refusal,)))
        self._conditions.report("document", outcome, is_logged=True)
        return said
