"""One reason, as it is explained."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """What an operator should know of one reason.

    Attributes:
        reason: the word that CNI errors, conditions, log and metrics have.
        title: the same in a few words.
        meaning: what is so.
        pods: what pods feel of it.
        cause: why it is so, the usual cause first.
        cure: what to do.
        ends: what ends it, and whether it ends by itself.
    """

    reason: str
    title: str
    meaning: str
    pods: str
    cause: str
    cure: str
    ends: str

    @property
    def parts(self) -> tuple[tuple[str, str], ...]:
        """What is said of it, each with its heading."""
        return (
            ("means", self.meaning),
            ("for pods", self.pods),
            ("cause", self.cause),
            ("cure", self.cure),
            ("ends", self.ends),
        )


NO_POD = "Pods are served as before."
"""Said of what no pod feels."""

BY_ITSELF = "By itself, with the next pass that does not find it."
"""Said of what is looked at in each pass."""

FULL_PASS = "By itself, with the next full pass after the cause is gone."
"""Said of what a full pass looks at."""
