"""Waiting for a condition, in place of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_S = 60.0
"""Seconds; far beyond what anything takes, also on a busy machine, so that only what never happens
fails."""


def until(
    holds: Callable[[], T],
    what: str | Callable[[], str] = "it",
    *,
    patience_s: float = PATIENCE_S,
) -> T:
    """Wait until something holds, and return it.

    Args:
        holds: what is asked, again and again.
        what: how to call it when it does not come; asked only then if it is a function.
        patience_s: seconds to wait.
    """
    deadline = time.monotonic() + patience_s
    while not (found := holds()):
        if time.monotonic() > deadline:
            name = what if isinstance(what, str) else what()
            raise AssertionError(f"{name}: not within {patience_s:g} s")
        time.sleep(0.01)
    return found
