"""Which line of the document a value comes from that is in force on one node."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.document import NodeNetwork
from schemas.override import matches
from schemas.problem import Path, Place, Places, print_path


@dataclass(frozen=True, slots=True)
class Origins:
    """Where values that are in force on one node stand.

    ``overrides``: positions of those that match the node; a later one counts more.
    """

    places: Places
    overrides: tuple[int, ...] = ()

    @classmethod
    def on(
        cls,
        places: Places,
        document: NodeNetwork,
        *,
        instance_type: str,
        zone: str,
        node_name: str,
    ) -> Origins:
        """Return those of a document on a node; ``document`` has its overrides yet."""
        node = {"instance_type": instance_type, "zone": zone, "node_name": node_name}
        found = (n for n, o in enumerate(document.overrides) if matches(o.match, **node))
        return cls(places, tuple(found))

    def of(self, *path: str | int) -> str:
        """Name a setting by its keys, and its line; or say that the document does not have it."""
        for position in reversed(self.overrides):
            if place := self._place(("overrides", position, "set", *path)):
                return f"{print_path(path)} (line {place[0]}, in overrides[{position}])"
        if place := self._place(path):
            return f"{print_path(path)} (line {place[0]})"
        return f"{print_path(path)} (by default)"

    def _place(self, path: Path) -> Place | None:
        return self.places.keys.get(path) or self.places.values.get(path)
