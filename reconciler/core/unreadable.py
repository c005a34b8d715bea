"""Pods' namespaces that could not be read: the backoff of each, and its condition.

A pod chooses what is in its namespace. One that fills it, or changes it without end, costs the
node one bounded read now and then, and other pods nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from reconciler.core.attachment import Attachment, AttachmentKey
from reconciler.engine.backoff import Delays
from reconciler.engine.issue import Issue

BACKOFF_S = Delays(1.0, 60.0)
"""Until such a namespace is read again: that of a pod that is starting may be unreadable for a
moment, and its ADD waits."""

MAX_NAMED = 20
"""Pods that get a condition each; all others are counted in one more."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The failed reads of one namespace.

    Attributes:
        why: the last one failed.
        times: in a row.
        until: monotonic seconds until which it is left alone.
    """

    why: str
    times: int
    until: float


@dataclass(frozen=True, slots=True)
class Unread:
    """All of them, by attachment."""

    known: Mapping[AttachmentKey, Failure] = field(default_factory=dict)

    def unreadable(self, now: float) -> frozenset[AttachmentKey]:
        """Return those that are left alone for now; ``now`` in monotonic seconds."""
        return frozenset(key for key, f in self.known.items() if f.until > now)

    def after(
        self,
        looked: Iterable[AttachmentKey],
        failed: Mapping[AttachmentKey, str],
        now: float,
    ) -> Unread:
        """Take over what was read.

        Args:
            looked: whose namespaces were read.
            failed: why reading failed, for some of them.
            now: monotonic seconds.
        """
        known = {k: f for k, f in self.known.items() if k not in frozenset(looked)}
        for key, why in failed.items():
            times = self.known[key].times + 1 if key in self.known else 1
            known[key] = Failure(why, times, now + BACKOFF_S.after(times))
        return Unread(known)

    def among(self, keys: Iterable[AttachmentKey]) -> Unread:
        """Forget the others, whose pods are gone."""
        keys = frozenset(keys)
        return Unread({k: f for k, f in self.known.items() if k in keys})

    def findings(self, attachments: Iterable[Attachment]) -> Iterator[Issue]:
        """Name their pods, and what follows."""
        pods = {a.key: a for a in attachments}
        unread = [(pods[k], f) for k, f in sorted(self.known.items()) if k in pods]
        for pod, failure in unread[:MAX_NAMED]:
            yield Issue(
                f"pod {pod.pod or pod.key}",
                "NamespaceUnreadable",
                f"its namespace {pod.netns} cannot be read: {failure.why}; nothing in there is "
                "compared or changed, and all that the host has of it is kept; it is looked at "
                f"again at least every {BACKOFF_S.longest:.0f} s",
            )
        if len(unread) > MAX_NAMED:
            more = f"{len(unread) - MAX_NAMED} more cannot be read either"
            yield Issue("pods", "NamespaceUnreadable", more)
