"""The life of an attachment: its states, what may happen in each, who causes it, what is recorded.

``LIFE`` is the whole of it. The attachment domain acts only where a row allows it, and a test
walks every row and finds no other. What is not a row changes nothing: a second ADD for the same
sandbox, a DEL repeated.

An address that is given always has a witness: the attachment's record, then its cooldown's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from reconciler.core.attachment import Attachment, AttachmentKey, Intent, IntentState
from reconciler.ipam.records import Records, SetAside


class State(StrEnum):
    """Where one attachment is; derived from its records, never stored.

    Attributes:
        NONE: nothing is recorded.
        WANTED: its intent waits for an address.
        UNREADABLE: likewise, but its record cannot be read, so its pod may have an address.
        BOUND: its record is on disk, and its objects are made.
        READY: all of its objects were seen in place, and its ADD is answered.
        REPLACED: bound to a sandbox that has ended, and wanted for a later one.
        RELEASED: given back, and its objects are removed.
        WITHDRAWN: given back, and nothing is bound.
    """

    NONE = "none"
    WANTED = "wanted"
    UNREADABLE = "unreadable"
    BOUND = "bound"
    READY = "ready"
    REPLACED = "replaced"
    RELEASED = "released"
    WITHDRAWN = "withdrawn"


class Event(StrEnum):
    """What happens to an attachment."""

    ADD = "ADD"
    ADD_LATER = "ADD of a later sandbox"
    DEL = "DEL"
    BIND = "an address is free"
    FINISH = "all objects are in place"
    BEGIN_AGAIN = "its link is gone"
    EXPIRE = "its namespace is gone, without a DEL"
    CLEAR = "no object of it is left"
    FORGET = "nothing is bound"
    ADOPT = "a take-over finds it"
    REBUILD = "the kernel has it, and no record does"
    TEAR = "its record cannot be read"


class Cause(StrEnum):
    """Who may cause an event."""

    RUNTIME = "runtime"
    PASS = "kernel pass"
    MIGRATION = "migration"
    LOSS = "lost state"


@dataclass(frozen=True, slots=True)
class Transition:
    """One row.

    ``after``: one of these follows; which, the records say. ``writes``: which records are removed
    (-) or written (+ for a new one, ~ for a new content), in this order, as far as there is
    something to write.
    """

    before: tuple[State, ...]
    event: Event
    after: tuple[State, ...]
    cause: Cause
    writes: str


NONE, WANTED, UNREADABLE, BOUND, READY, REPLACED, RELEASED, WITHDRAWN = State

LIFE = (
    Transition((NONE, WITHDRAWN), Event.ADD, (WANTED, UNREADABLE), Cause.RUNTIME, "~intent"),
    Transition((RELEASED, REPLACED), Event.ADD, (BOUND, READY), Cause.RUNTIME, "~intent"),
    Transition((BOUND, READY, RELEASED), Event.ADD_LATER, (REPLACED,), Cause.RUNTIME, "~intent"),
    Transition((NONE, WANTED, UNREADABLE), Event.DEL, (WITHDRAWN,), Cause.RUNTIME, "~intent"),
    Transition((BOUND, READY, REPLACED), Event.DEL, (RELEASED,), Cause.RUNTIME, "~intent"),
    Transition((WANTED,), Event.BIND, (BOUND,), Cause.PASS, "+attachment"),
    Transition((BOUND,), Event.FINISH, (READY,), Cause.PASS, "~attachment"),
    Transition((READY,), Event.BEGIN_AGAIN, (BOUND,), Cause.PASS, "~attachment"),
    Transition((WANTED, UNREADABLE), Event.EXPIRE, (WITHDRAWN,), Cause.PASS, "~intent"),
    Transition((BOUND, READY), Event.EXPIRE, (RELEASED,), Cause.PASS, "~intent"),
    Transition(
        (RELEASED,),
        Event.CLEAR,
        (NONE,),
        Cause.PASS,
        "+cooling -attachment -unreadable-record -intent",
    ),
    Transition((REPLACED,), Event.CLEAR, (WANTED, UNREADABLE), Cause.PASS, "+cooling -attachment"),
    Transition(
        (WITHDRAWN,), Event.FORGET, (NONE,), Cause.PASS, "+cooling -unreadable-record -intent"
    ),
    Transition((NONE,), Event.ADOPT, (BOUND,), Cause.MIGRATION, "+attachment ~intent"),
    Transition(
        (WANTED, UNREADABLE), Event.ADOPT, (BOUND, REPLACED), Cause.MIGRATION, "+attachment"
    ),
    Transition((NONE, WANTED, UNREADABLE), Event.REBUILD, (READY,), Cause.LOSS, "+attachment"),
    Transition((WITHDRAWN,), Event.REBUILD, (RELEASED,), Cause.LOSS, "+attachment"),
    Transition((BOUND, READY), Event.TEAR, (UNREADABLE, NONE), Cause.LOSS, ""),
    Transition((REPLACED,), Event.TEAR, (UNREADABLE,), Cause.LOSS, ""),
    Transition((RELEASED,), Event.TEAR, (WITHDRAWN,), Cause.LOSS, ""),
)
"""Every transition there is."""

BEFORE = {e: tuple(s for t in LIFE if t.event is e for s in t.before) for e in Event}
"""The states in which an event may happen."""


@dataclass(frozen=True, slots=True)
class Pod:
    """One attachment as its records show it."""

    key: AttachmentKey
    state: State
    intent: Intent | None
    attachment: Attachment | None
    torn: SetAside | None

    @property
    def netns_alive(self) -> bool:
        """Whether the namespace that is asked for, or else the one it is bound to, is there."""
        source = self.intent or self.attachment
        return source is not None and source.netns_alive


Pods = Mapping[State, list[Pod]]
"""By state, each in key order."""


def state_of(
    intent: Intent | None, attachment: Attachment | None, *, torn: bool, superseded: bool
) -> State:
    """Derive the state of one attachment.

    ``torn``: a record of it cannot be read. ``superseded``: the intent is of a later sandbox.
    """
    if intent is not None and intent.state is IntentState.RELEASED:
        return WITHDRAWN if attachment is None else RELEASED
    if attachment is not None:
        if superseded:
            return REPLACED
        return BOUND if attachment.unfinished else READY
    if intent is None:
        return NONE
    return UNREADABLE if torn else WANTED


def pods_of(records: Records) -> Pods:
    """Say where each attachment is that has an intent or a record."""
    intents = {i.key: i for i in records.intents}
    bound = {a.key: a for a in records.attachments}
    torn, superseded = records.undecided, records.superseded
    pods: dict[State, list[Pod]] = {state: [] for state in State}
    for key in sorted(intents.keys() | bound.keys()):
        intent, attachment, record = intents.get(key), bound.get(key), torn.get(key)
        state = state_of(intent, attachment, torn=record is not None, superseded=key in superseded)
        pods[state].append(Pod(key, state, intent, attachment, record))
    return pods


def may(pods: Pods, event: Event) -> list[Pod]:
    """Return the attachments to which an event may happen."""
    return [pod for state in BEFORE[event] for pod in pods[state]]
