"""Waiting for a condition, in place of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

OFTEN_S, SELDOM_S = 0.01, 0.1
"""Seconds between two looks: the first, and the longest. Most looks have a daemon compute its
whole status; every 10 ms of a minute, that would be what the machine mostly does."""

PATIENCE_S = 60.0
"""Seconds; far beyond what anything takes, also on a busy machine, so that only what never happens
fails."""


def until(
    holds: Callable[[], T],
    what: str | Callable[[], str] = "it",
    *,
    patience_s: float = PATIENCE_S,
) -> T:
    """Wait until something holds, and return it. Looks the less often the longer it takes.

    It looks for half of the time at most: some looks are commands.

    Args:
        holds: what is asked, again and again.
        what: how to call it when it does not come; asked only then if it is a function.
        patience_s: seconds to wait.
    """
    began = looked = time.monotonic()
    while not (found := holds()):
        now = time.monotonic()
        waited, took = now - began, now - looked
        if waited > patience_s:
            name = what if isinstance(what, str) else what()
            raise AssertionError(f"{name}: not within {patience_s:g} s")
        time.sleep(max(min(max(OFTEN_S, waited / 10), SELDOM_S), took))
        looked = time.monotonic()
    return found
