"""What is wrong: issues, and every exception; an exception's class says who has to act.

A wrong document is ``schemas.problem.DocumentError``: it is raised below this layer.
Library exceptions end at the doors in ``targets``: each is translated once, with its cause. What
passes a door untranslated becomes an ``InternalError`` at the next ``boundary``.
"""

from __future__ import annotations

import errno
import traceback
from collections.abc import Hashable
from dataclasses import dataclass, field

FOREIGN_TEXT = 256  # characters kept of the text of an exception that is not ours

FRAMES = 24
"""Innermost frames kept of an unexpected exception's traceback: an endless recursion has 1,000."""


@dataclass(frozen=True, slots=True)
class Issue:
    """One fact that an operator should know of.

    A plan holds it as a refusal (something wanted is not done) or as a finding (nothing is left
    undone, and nothing of it is ours to change). Each error has one.

    Attributes:
        subject: the object, as an operator finds it.
        reason: stable CamelCase word, the same in CNI error, status, log and metric.
        message: what was wanted or why it hurts, with its numbers, and what to do next.
        about: kind and key of the object, if it is one that could not be put in its place.
        for_all: no pod gets its objects meanwhile: something is not known, or does not work.
    """

    subject: str
    reason: str
    message: str
    about: tuple[str, tuple[int | str, ...]] | None = None
    for_all: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        return f"{self.subject}: {self.reason}: {self.message}"


class ReconcilerError(Exception):
    """Anything the reconciler reports on purpose.

    Attributes:
        subject: what it is about, as conditions name it.
        reason: stable CamelCase word: by default the class's name without "Error".
        of_one_pod: it says nothing of any other pod than its own.
    """

    subject = "node"
    reason = "Reconciler"
    of_one_pod = False

    def __init_subclass__(cls) -> None:
        """Derive the reason of a class that does not name one."""
        if "reason" not in cls.__dict__:
            cls.reason = cls.__name__.removesuffix("Error")

    @property
    def issue(self) -> Issue:
        """What it means for an operator."""
        return Issue(self.subject, self.reason, str(self), for_all=not self.of_one_pod)


class NotReadyError(ReconcilerError):
    """A fact that planning needs is not known yet: wait, nothing is wrong."""


class ObserveError(ReconcilerError):
    """A target could not be read: nothing may be deleted on it.

    An empty observation is a value; a failed one is this exception, and no plan is made from it.
    """

    def __init__(self, what: str, why: str, *, reason: str = "Observe") -> None:
        super().__init__(f"cannot read {what}: {why}; nothing is changed until it can be read")
        self.subject = self.what = what
        self.why = why
        self.reason = reason


class NamespaceError(ObserveError):
    """A pod's namespace is gone or could not be read; all others are looked at without it."""

    of_one_pod = True

    def __init__(self, netns: str, why: str) -> None:
        super().__init__(f"the pod in {netns}", why, reason="Namespace")
        self.netns = netns


class ApplyError(ReconcilerError):
    """One action failed: the next round plans it again.

    Attributes:
        action: the action as the command an operator would type.
        reason: an errno name, an EC2 error code.
        retryable: false when only a change of the document, the host or EC2 can help.
    """

    of_one_pod = True

    def __init__(self, action: str, reason: str, message: str, *, retryable: bool = True) -> None:
        seldom = "only a change helps, so it is tried seldom"
        outlook = "it is tried again" if retryable else seldom
        super().__init__(f"{action}: {reason}: {message}; {outlook}")
        self.subject = self.action = action
        self.reason = reason
        self.message = message
        self.retryable = retryable

    @classmethod
    def from_errno(cls, action: str, cause: OSError, message: str = "") -> ApplyError:
        """Translate what the kernel answered; the reason is the errno's name."""
        reason = errno.errorcode.get(cause.errno or 0, f"errno {cause.errno or 0}")
        failure = cls(action, reason, message or cause.strerror or str(cause))
        failure.__cause__ = cause
        return failure

    @classmethod
    def from_surprise(cls, action: str, cause: InternalError) -> ApplyError:
        """Say that an action failed in a way that no code expects; ``cause`` has the traceback."""
        failure = cls(action, cause.reason, str(cause))
        failure.__cause__ = cause
        return failure


class WatchError(ReconcilerError):
    """Something cannot be watched: what happens there is seen later, and nothing else is lost."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(
            f"cannot watch {what}: {why}; changes there are seen by the clock, every "
            "reconcile.resync, and it is tried again"
        )
        self.subject = self.what = what


class StateError(ReconcilerError):
    """The state directory, or a record in it, cannot be used: the operator must act."""


class InternalError(ReconcilerError):
    """What no code expected: a bug of ours, please report it. Only this one thing fails by it.

    Attributes:
        what: what was done, from a small fixed set of texts.
        place: file, line and function that raised, and the exception's type: which failure it is.
        trace: the traceback, as text: an exception would keep all that its frames hold.
    """

    reason = "InternalError"

    def __init__(self, what: str, cause: BaseException) -> None:
        frames = traceback.extract_tb(cause.__traceback__)[-FRAMES:]
        at = frames[-1] if frames else None
        where = f"{at.filename.rpartition('/')[2]}:{at.lineno} {at.name}" if at else "?"
        # Of another's making, it may fail even at saying what it is; this survives that.
        said = "".join(traceback.format_exception_only(cause)).strip()[:FOREIGN_TEXT]
        super().__init__(
            f"{what} failed in a way that node-network does not know: {said}, at {where}; it is "
            "tried again, and everything else goes on. Please report it with its traceback, which "
            "is in the log"
        )
        self.subject = self.what = what
        self.place = f"{where} {type(cause).__name__}"
        self.trace = "".join(traceback.format_list(frames)) + said


class PodError(ReconcilerError):
    """One pod's data makes a domain raise what no code expects: it is left out of that domain."""

    of_one_pod = True
    reason = InternalError.reason

    def __init__(self, key: Hashable, pod: str, cause: InternalError) -> None:
        super().__init__(
            f"pod {pod} is left out, and what the node has of it is kept as it is: {cause}"
        )
        self.key = key
        self.subject = f"pod {pod}"
        self.__cause__ = cause


class boundary:  # noqa: N801 - it is used as a function is, a hundred times for each pod
    """Turn whatever is raised, unless it is ours already, into an ``InternalError``.

    The only place that catches everything. Around it is ``except ReconcilerError``, by whoever
    knows what may go on without it.

    Args:
        what: is done; it stands in the condition and in the metric.
    """

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, ReconcilerError):
            raise InternalError(self._what, error) from error


class ConflictError(ReconcilerError):
    """Overrides that match this node make a document that is invalid together."""


class UnknownPodError(ReconcilerError):
    """No pod, or more than one, is called so: name another."""

    def __init__(self, text: str, known: list[str]) -> None:
        listed = ", ".join(known[:8]) or "none"
        more = f" and {len(known) - 8} more" if len(known) > 8 else ""
        super().__init__(
            f"pod {text}: none, or more than one, is called so here ({listed}{more}); "
            "give namespace/name, an address, a container ID, or host"
        )


class LockedError(ReconcilerError):
    """Another process already reconciles this node."""


class UnansweredError(ReconcilerError):
    """No reconciler answers on the socket, or the answer is a refusal."""


class ClusterError(ReconcilerError):
    """The API server was not told something; no pod waits for that.

    Attributes:
        status: of HTTP; 0 if there was no answer that can be understood.
    """

    def __init__(self, what: str, why: str, *, reason: str, status: int = 0) -> None:
        super().__init__(f"{what}: {why}; pods are served all the same, and it is tried again")
        self.subject = "the API server"
        self.reason = reason
        self.status = status
