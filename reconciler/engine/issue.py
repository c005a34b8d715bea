"""Issues: what is wrong, or not done, or what another owner has that can hurt us."""

from __future__ import annotations

from dataclasses import dataclass

from reconciler.errors import ReconcilerError


@dataclass(frozen=True, slots=True)
class Issue:
    """One fact that an operator should know of.

    A plan holds it as a refusal (something wanted is not done) or as a finding (nothing is left
    undone, and nothing of it is ours to change). An error becomes one by ``issue_of``.

    Attributes:
        subject: the object, as an operator finds it.
        reason: stable CamelCase word, the same in CNI error, status, log and metric.
        message: what was wanted or why it hurts, with its numbers, and what to do next.
        about: kind and key of the object, if it is one that could not be put in its place.
    """

    subject: str
    reason: str
    message: str
    about: tuple[str, tuple[int | str, ...]] | None = None

    def __str__(self) -> str:
        return f"{self.subject}: {self.reason}: {self.message}"


def issue_of(error: ReconcilerError) -> Issue:
    """Say what an error means for an operator."""
    return Issue(error.subject, error.reason, str(error))
