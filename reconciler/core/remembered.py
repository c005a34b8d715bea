"""Pure functions that remember their last result (decision 18)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Remembered(Generic[P, R]):
    """A pure function of frozen arguments that does not compute its last result again.

    Several threads may call it: what is remembered is one value, and looked at once in each call.
    """

    def __init__(self, function: Callable[P, R]) -> None:
        self._function = function
        self._last: tuple[object, R] | None = None

    def __call__(self, *arguments: P.args, **named: P.kwargs) -> R:
        """Return what the function returns; raise what it raises."""
        last, asked = self._last, (arguments, named)
        if last is None or last[0] != asked:
            last = self._last = asked, self._function(*arguments, **named)
        return last[1]
