"""Findings: what others have on the node that can hurt us."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing of another owner, and what it does to us.

    Not a refusal: nothing that is wanted is left undone, and nothing of it is ours to change.

    Attributes:
        subject: the object, as an operator finds it.
        reason: stable CamelCase word.
        message: why it hurts, and what to do.
    """

    subject: str
    reason: str
    message: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.subject}: {self.message}"
