"""What a target showed of the world, and what it could not read.

A failed observation is never an empty one. But what could not be read is often one pod's
namespace, or one of the kernel's tables, and that is no reason to leave everything else as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from reconciler.errors import NamespaceError, ObserveError


class Observed(frozenset[Any]):
    """Objects that were seen.

    Attributes:
        unread_kinds: classes of objects that could not be read at all, and why.
        unread_places: pods' namespaces that could not be, by identity, and why.
        cut_kinds: classes of objects of which more were there than are shown, and what was left
            out. All that is desired is shown if it is there; but what is not shown, and not
            desired, may be there.
    """

    unread_kinds: Mapping[type, ObserveError]
    unread_places: Mapping[str, NamespaceError]
    cut_kinds: Mapping[type[Any], str]

    def __new__(
        cls,
        objects: Iterable[Any] = (),
        *,
        unread_kinds: Mapping[type, ObserveError] | None = None,
        unread_places: Mapping[str, NamespaceError] | None = None,
        cut_kinds: Mapping[type[Any], str] | None = None,
    ) -> Observed:
        """Keep all."""
        made = super().__new__(cls, objects)
        made.unread_kinds = unread_kinds or {}
        made.unread_places = unread_places or {}
        made.cut_kinds = cut_kinds or {}
        return made

    def with_these(self, others: Iterable[Any]) -> Observed:
        """Return both together; what could not be read, in either."""
        more = others if isinstance(others, Observed) else Observed()
        return Observed(
            self.union(others),
            unread_kinds={**self.unread_kinds, **more.unread_kinds},
            unread_places={**self.unread_places, **more.unread_places},
            cut_kinds={**self.cut_kinds, **more.cut_kinds},
        )


def unread_places(observed: Any) -> Mapping[str, NamespaceError]:
    """Return the pods' namespaces that a look could not read."""
    return observed.unread_places if isinstance(observed, Observed) else {}


def cut_kinds(observed: Any) -> Mapping[type[Any], str]:
    """Return the kinds of which a look has not shown all, and what it left out."""
    return observed.cut_kinds if isinstance(observed, Observed) else {}


def why_unread(observed: Any, kinds: tuple[type, ...]) -> ObserveError | None:
    """Say why objects of some kinds could not be read; None if they could."""
    if not isinstance(observed, Observed):
        return None
    return next((e for k, e in observed.unread_kinds.items() if k in kinds), None)


def readable(desired: Any, observed: Any) -> Any:
    """Leave out of what is desired all that is in namespaces that could not be read."""
    places = unread_places(observed)
    if not places or not isinstance(desired, frozenset):
        return desired
    return frozenset(o for o in desired if getattr(o, "netns", "") not in places)
