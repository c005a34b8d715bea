"""When EC2 is asked again what sources stand for.

All nodes of an account share its request limits. So the sources are asked for as seldom as the
ENIs are (``reconcile.ec2Resync``), not by all nodes at the same time, and sooner only if something
is open: a source that was never answered, or what the last look lacked.
"""

from __future__ import annotations

from collections.abc import Iterable

from reconciler.egress.source import APART_S, Source
from reconciler.engine.backoff import Delays

CONFIRM_S = 60.0
"""Seconds after a look that lacked something until the one that may agree."""

JITTER = 0.2
"""Of the time between two looks: nodes that were started together do not ask together."""

FAILED_S = Delays(15.0, 300.0, jitter=0.5)
"""After a look of which a part failed, whatever the cause: no pod waits for it."""


def ask_after_s(sources: Iterable[Source], failures: int, resync_s: float, chance: float) -> float:
    """Return seconds until the next look.

    Args:
        sources: those that the document names, as the last look has left them.
        failures: looks in a row of which a part failed.
        resync_s: the document's ``reconcile.ec2Resync``.
        chance: a random number from 0 to 1.
    """
    sources = tuple(sources)
    spread = 1 - JITTER * chance
    waits = [resync_s * spread]
    if any(s.failure for s in sources):
        waits.append(FAILED_S.after(failures, chance))
    if any(s.missed for s in sources):
        waits.append(CONFIRM_S * spread)
    return max(min(waits), APART_S)
