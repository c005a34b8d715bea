"""Every exception the reconciler raises; the class says who has to act.

::

    ReconcilerError
    ├── NotReadyError    a needed fact is not known yet: wait, nothing is wrong
    ├── ObserveError     the world could not be read: nothing may be deleted on it
    │   └── NamespaceError   one pod's namespace could not be
    ├── ApplyError       one action failed: the next round plans it again
    ├── StateError       the state directory cannot be used: the operator must act
    ├── InternalError    a bug of ours: please report it
    ├── ConflictError    overrides of the document contradict each other on this node
    ├── UnknownPodError  no pod of this node is meant: name another
    ├── LockedError      another reconciler holds this node
    └── UnansweredError  no reconciler runs here, or it refuses to answer

A wrong document is ``schemas.load.DocumentError``: it is raised below this layer.
Library exceptions end at the doors in ``targets``: each is translated once, with its cause.
"""

from __future__ import annotations

import errno


class ReconcilerError(Exception):
    """Anything the reconciler reports on purpose."""


class NotReadyError(ReconcilerError):
    """A fact that planning needs is not known yet."""


class ObserveError(ReconcilerError):
    """The world could not be read.

    An empty observation is a value; a failed one is this exception, and no plan is made from it.
    """

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"cannot read {what}: {why}; nothing is changed until it can be read")
        self.what = what
        self.why = why


class NamespaceError(ObserveError):
    """A pod's namespace is gone or could not be read; all others are looked at without it.

    Attributes:
        netns: its identity.
    """

    def __init__(self, netns: str, why: str) -> None:
        super().__init__(f"the pod in {netns}", why)
        self.netns = netns


class ApplyError(ReconcilerError):
    """One action failed.

    Attributes:
        action: the action as the command an operator would type.
        reason: stable CamelCase word: an errno name, an EC2 error code.
        retryable: false when only a change of the document or of the world can help.
    """

    def __init__(self, action: str, reason: str, message: str, *, retryable: bool = True) -> None:
        outlook = "it is tried again" if retryable else "it is not tried until something changes"
        super().__init__(f"{action}: {reason}: {message}; {outlook}")
        self.action = action
        self.reason = reason
        self.message = message
        self.retryable = retryable

    @classmethod
    def from_errno(cls, action: str, number: int, message: str, cause: Exception) -> ApplyError:
        """Translate what the kernel answered; the reason is the errno's name."""
        failure = cls(action, errno.errorcode.get(number, f"errno {number}"), message)
        failure.__cause__ = cause
        return failure


class StateError(ReconcilerError):
    """The state directory, or a record in it, cannot be used."""


class InternalError(ReconcilerError):
    """A bug of ours ended something; the traceback is in the log."""


class ConflictError(ReconcilerError):
    """Overrides that match this node make a document that is invalid together."""


class UnknownPodError(ReconcilerError):
    """No pod, or more than one, is called so."""

    def __init__(self, text: str, known: list[str]) -> None:
        listed = ", ".join(known[:8]) or "none"
        more = f" and {len(known) - 8} more" if len(known) > 8 else ""
        super().__init__(
            f"pod {text}: not exactly one is called so here ({listed}{more}); "
            "give namespace/name, an address, a container ID, or host"
        )


class LockedError(ReconcilerError):
    """Another process already reconciles this node."""


class UnansweredError(ReconcilerError):
    """Nobody answers on the reconciler's socket, or the answer is a refusal."""
