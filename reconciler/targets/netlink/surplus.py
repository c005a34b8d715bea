"""Limits on what others may add: desired entries are read, and the first ones of the others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator

from reconciler.engine.observed import Observed
from reconciler.targets.netlink.decode import KernelObject
from reconciler.targets.netlink.message import HEADER
from reconciler.targets.netlink.tables import AF

MAX_SURPLUS = 1000
"""Routes, and rules, that carry our protocol number and that nothing desires, in one look. They
are removed, so the next observation shows the next ones. If another program adds 80,000, reading
all of them would exhaust the daemon's memory, again after each restart; and pods would wait while
they are removed."""

MAX_IN_PLACE = 8
"""Routes, or rules, that may stand in one place of ours before the others count as surplus: some
of what tells them apart is looked at only when they are decoded."""

MAX_SURPLUS_LINKS = 8
"""The same of links: to delete a pair takes the kernel some 10 ms."""

MAX_FOREIGN_RULES = 1000
"""Other owners' ``ip rule``s that are looked at, of each family, the first ones first: the kernel
tells them by priority, and what can hurt pods has to come before ours."""


class Surplus:
    """Takes entries in the places of desired objects, and the first ones of all others.

    Args:
        limit: how many of the others it takes.
        place_of: the place of an entry.
        wanted: the places of desired objects.

    Attributes:
        left_out: how many it did not take.
    """

    def __init__(
        self,
        limit: int,
        place_of: Callable[[bytes], Hashable] = lambda _: None,
        wanted: Collection[Hashable] = (),
    ) -> None:
        self._limit = self._room = limit
        self._place_of = place_of
        self._left = dict.fromkeys(wanted, MAX_IN_PLACE)
        self._taken: set[bytes] = set()
        self._first = b""
        self.left_out = 0

    def __call__(self, entry: bytes) -> bool:
        """Whether this one is taken; what was taken once is taken again, as dumps are repeated."""
        body = entry[HEADER.size :]
        if body in self._taken:
            if body == self._first:
                self.left_out = 0
            return True
        place = self._place_of(entry)
        if self._left.get(place):
            self._left[place] -= 1
        elif self._room:
            self._room -= 1
        else:
            self.left_out += 1
            return False
        self._first = self._first or body
        self._taken.add(body)
        return True

    def among(self, kind: type[KernelObject], objects: Iterable[KernelObject]) -> Observed:
        """Return what was made of those that were taken, and say so if there are more."""
        if not self.left_out:
            return Observed(objects)
        why = (
            f"{self._limit + self.left_out} {kind.kind}s are stamped as ours and nothing needs "
            f"them; they are removed, {self._limit} with each look; find out who adds them"
        )
        return Observed(objects, cut_kinds={kind: why})


class FirstRules:
    """Takes the first rules of other owners, ``MAX_FOREIGN_RULES`` of each family."""

    def __init__(self) -> None:
        self._by_family = {number: Surplus(MAX_FOREIGN_RULES) for number in AF.values()}

    def __call__(self, rule: bytes) -> bool:
        """Whether this one is taken."""
        return self._by_family[rule[HEADER.size]](rule)

    def unread(self) -> Iterator[tuple[str, str]]:
        """Name the families of which there are more, and say why they are not read."""
        for name, number in AF.items():
            if left_out := self._by_family[number].left_out:
                count = MAX_FOREIGN_RULES + left_out
                why = (
                    f"there are {count}, and the first {MAX_FOREIGN_RULES} are read; what the "
                    f"other {left_out} do to pods' packets is not known; find out who adds them"
                )
                yield f"ip rules of others, {name}", why
