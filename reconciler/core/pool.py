"""The pool's arithmetic: how many addresses to hold, and where the missing ones fit.

A target is a function of what is used, never an increment, so a lost or repeated event cannot
make it drift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Demand:
    """What the pool must cover, in addresses.

    Attributes:
        assigned: held by pods.
        cooling: released, not yet to be given out again.
        waiting: intents without an address.
    """

    assigned: int = 0
    cooling: int = 0
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class Growth:
    """How a shortfall is met.

    Attributes:
        assign: addresses to add to an existing ENI, as (position in the given order, count).
        create: secondary addresses of each ENI to create.
        unmet: addresses that no limit leaves room for.
    """

    assign: tuple[tuple[int, int], ...] = ()
    create: tuple[int, ...] = ()
    unmet: int = 0


def target(*, warm: int, minimum: int, demand: Demand) -> int:
    """Return how many pod addresses the node should hold.

    ``max(minimum, assigned + cooling + waiting + warm)``: a cooling address is held but serves
    nobody, so it never counts as warm.
    """
    return max(minimum, demand.assigned + demand.cooling + demand.waiting + warm)


def grow(shortfall: int, *, rooms: Sequence[int], new_enis: int, per_eni: int) -> Growth:
    """Spread a shortfall: existing ENIs first, in order, then as few new ENIs as possible.

    Args:
        shortfall: addresses missing; zero or less asks for nothing.
        rooms: free address slots of each existing ENI.
        new_enis: how many ENIs may still be created.
        per_eni: secondary addresses an ENI of this instance type can hold.
    """
    assign: list[tuple[int, int]] = []
    for position, room in enumerate(rooms):
        count = min(shortfall, room)
        if count > 0:
            assign.append((position, count))
            shortfall -= count
    create: list[int] = []
    while shortfall > 0 and len(create) < new_enis and per_eni > 0:
        create.append(min(shortfall, per_eni))
        shortfall -= create[-1]
    return Growth(tuple(assign), tuple(create), max(shortfall, 0))
