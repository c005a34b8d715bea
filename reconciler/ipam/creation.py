"""Creations: the records with which an interrupted CreateNetworkInterface is repeated, once."""

from __future__ import annotations

from dataclasses import dataclass, replace

from reconciler.engine.plan import Action, Change, Plan, Verb
from reconciler.ipam.records import Records

WINDOW_S = 3600.0
"""Seconds for which a record is kept: creations of that time count against the node's limit."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What EC2 shows of creations.

    Attributes:
        tokens: of every ENI that EC2 shows on this node.
        now: seconds since the epoch.
    """

    tokens: frozenset[str]
    now: float


def plan(desired: Seen, observed: Records) -> Plan:
    """Finish the records of ENIs that were seen; forget those that are old.

    A record from the future was written before the clock was set back. It is dated now, or it
    would forbid creations until the clock has caught up.
    """
    actions: list[Action] = []
    for record in observed.creations:
        if desired.now - record.at >= WINDOW_S:
            actions.append(Change(Verb.DELETE, record, "an hour old"))
        elif record.token in desired.tokens and not record.done:
            done = replace(record, done=True, at=min(record.at, desired.now))
            actions.append(Change(Verb.UPDATE, done, "its ENI was seen", record))
        elif record.at > desired.now:
            moved = replace(record, at=desired.now)
            actions.append(Change(Verb.UPDATE, moved, "the clock was set back", record))
    return Plan(tuple(actions))
