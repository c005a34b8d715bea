"""What the loops of one daemon work with."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from reconciler.daemon.conditions import Conditions
from reconciler.daemon.document import InForce
from reconciler.daemon.drift import DriftTracker
from reconciler.daemon.duty import Duties
from reconciler.daemon.requests import Checks, PodHints, Requests
from reconciler.daemon.triggers import Triggers
from reconciler.daemon.watchdog import Watchdog
from reconciler.node.passes import LocalNode


@dataclass(frozen=True, slots=True)
class Parts:
    """Each part guards its own fields, so that any thread may call it.

    Attributes:
        hints: wakes the kernel loop.
        pool_hints: wakes the pool loop.
        stopping: set when the daemon ends.
    """

    node: LocalNode
    document: InForce
    requests: Requests
    checks: Checks
    pods: PodHints
    conditions: Conditions
    watchdog: Watchdog
    duties: Duties
    drift: DriftTracker
    hints: Triggers
    pool_hints: Triggers
    stopping: threading.Event
