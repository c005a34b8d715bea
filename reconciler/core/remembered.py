"""Pure functions that remember their last result (decision 18)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

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


class RememberedWhileAsked(Generic[P, R]):
    """A pure function of frozen arguments that remembers the results that passes ask for.

    It may be asked for several in each pass: one for each group or rule of a document. What none
    has asked for since the last full pass but one is forgotten, so nothing of a former document
    stays: what 10,000 CIDRs lead to takes 15 MiB. Arguments are compared and not hashed, because
    most are the same objects. Several threads may call it: what is remembered is one value, and
    looked at once in each call. If two replace it at once, one result is computed again.
    """

    def __init__(self, function: Callable[P, R]) -> None:
        self._function = function
        # asked for since the last full pass, and before it
        self._known: tuple[tuple[tuple[object, R], ...], ...] = (), ()
        _while_asked.append(self)

    def __call__(self, *arguments: P.args, **named: P.kwargs) -> R:
        """Return what the function returns; raise what it raises."""
        asked, (lately, before) = (arguments, named), self._known
        for known, result in lately:
            if known == asked:
                return result
        found = next((entry for entry in before if entry[0] == asked), None)
        entry = found or (asked, self._function(*arguments, **named))
        self._known = (*lately, entry), before
        return entry[1]

    def end_pass(self) -> None:
        """Forget what was not asked for since this was called before."""
        self._known = (), self._known[0]


_while_asked: list[RememberedWhileAsked[Any, Any]] = []


def forget_unasked() -> None:
    """Forget what no full pass asks for any more; called after each."""
    for function in _while_asked:
        function.end_pass()
