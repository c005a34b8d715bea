"""Pure functions that know their last answer (decision 18)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Remembered:
    """A pure function of frozen arguments that does not work out its last answer again.

    Several threads may call it: what is remembered is one value, and looked at once in each call.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._last: tuple[tuple[Any, ...], Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        """Return what the function returns; raise what it raises."""
        last = self._last
        if last is None or last[0] != arguments:
            last = self._last = arguments, self._function(*arguments)
        return last[1]
