"""One observation of a target, and what of it could not be read.

A failed observation is never an empty one. Often only one pod's namespace or one table of the
kernel cannot be read; everything else is still reconciled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from reconciler.errors import NamespaceError, ObserveError


class Observed(frozenset[Any]):
    """Objects that were seen.

    Attributes:
        unread_kinds: classes of objects that could not be read at all, and why.
        unread_places: pods' namespaces that could not be read, by identity, and why.
        cut_kinds: classes of objects of which some were left out, and which. Desired objects are
            never left out.
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
        """Return the union, of what could not be read too."""
        more = others if isinstance(others, Observed) else Observed()
        return Observed(
            self.union(others),
            unread_kinds={**self.unread_kinds, **more.unread_kinds},
            unread_places={**self.unread_places, **more.unread_places},
            cut_kinds={**self.cut_kinds, **more.cut_kinds},
        )


def unread_places(observed: Any) -> Mapping[str, NamespaceError]:
    """Return the pods' namespaces that could not be read."""
    return observed.unread_places if isinstance(observed, Observed) else {}


def cut_kinds(observed: Any) -> Mapping[type[Any], str]:
    """Return the kinds of which some objects were left out, and which."""
    return observed.cut_kinds if isinstance(observed, Observed) else {}


def why_unread(observed: Any, kinds: tuple[type, ...]) -> ObserveError | None:
    """Say why objects of some kinds could not be read; None if they could."""
    if not isinstance(observed, Observed):
        return None
    return next((e for k, e in observed.unread_kinds.items() if k in kinds), None)


def readable(desired: Any, observed: Any) -> Any:
    """Return the desired objects without those in namespaces that could not be read."""
    places = unread_places(observed)
    if not places or not isinstance(desired, frozenset):
        return desired
    return frozenset(o for o in desired if getattr(o, "netns", "") not in places)
