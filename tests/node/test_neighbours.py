"""What the kernel has learnt of others in the VPC is asked for again, once a minute."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import pytest
from builders import eni, node
from fakes import FakeLearnt

from reconciler.domains.neighbour import ASK_S, MAX_ASKED, Learnt, choose_to_ask
from reconciler.errors import ApplyError
from reconciler.node.neighbours import NeighboursAgain


def learnt(*addresses: str) -> list[Learnt]:
    return [Learnt(2, "eth0", ip_address(a)) for a in addresses]


class House:
    """Neighbours of a node with two ENIs, one of them another's."""

    def __init__(self, *addresses: str) -> None:
        self.now = 1000.0
        self.kernel = FakeLearnt(*learnt(*addresses))
        foreign = replace(eni(1, 3), owned=False)
        self.known: Any = SimpleNamespace(
            facts=node(), cloud=SimpleNamespace(enis=(eni(0, 3), foreign))
        )
        self.again = NeighboursAgain(self.kernel, self.known, lambda: self.now)

    def turn(self, after: float = 0.0) -> list[str]:
        """Return who is asked for."""
        self.now += after
        self.kernel.asked.clear()
        self.again.turn()
        return [str(one.address) for one in self.kernel.asked]


def test_each_is_asked_for_once_a_minute_and_a_new_one_with_the_next_turn() -> None:
    house = House("10.0.1.20", "10.0.1.21")
    assert house.turn() == ["10.0.1.20", "10.0.1.21"]
    assert house.turn(10) == []
    house.kernel.seen.update(learnt("10.0.1.22"))
    assert house.turn(10) == ["10.0.1.22"]
    assert house.turn(ASK_S - 20) == ["10.0.1.20", "10.0.1.21"]
    assert house.turn(20) == ["10.0.1.22"]


def test_on_enis_of_ours_only_and_neither_routers_nor_who_is_outside_of_the_vpc() -> None:
    house = House("10.0.1.1", "10.0.1.20", "192.0.2.1", "fe80::1")
    assert house.turn() == ["10.0.1.20"]
    assert house.kernel.macs == {eni(0, 3).mac}


def test_nothing_is_looked_at_before_it_is_known_which_enis_there_are() -> None:
    house = House("10.0.1.20")
    house.known.cloud = None
    assert (house.turn(), house.kernel.macs) == ([], set())


def test_one_that_was_forgotten_meanwhile_is_new() -> None:
    house = House("10.0.1.20")
    house.turn()
    (gone,) = house.kernel.seen
    house.kernel.seen.clear()
    house.turn(10)
    house.kernel.seen.add(gone)
    assert house.turn(10) == ["10.0.1.20"]


def test_what_the_kernel_refuses_is_raised_and_not_tried_again_at_once() -> None:
    house = House("10.0.1.20")
    house.kernel.refuses = ApplyError("ip neighbour change", "EPERM", "test")
    with pytest.raises(ApplyError):
        house.turn()
    house.kernel.refuses = None
    assert house.turn(10) == []
    assert house.turn(ASK_S) == ["10.0.1.20"]


def test_of_many_those_that_were_never_asked_for_come_first_then_the_oldest() -> None:
    many = learnt(*(f"10.0.{n // 200}.{n % 200 + 10}" for n in range(MAX_ASKED + 40)))
    asked = {one: float(number) for number, one in enumerate(reversed(many[40:]))}
    due = choose_to_ask(many, asked, now=10_000.0)
    assert len(due) == MAX_ASKED
    assert set(due[:40]) == set(many[:40])
    assert due[40:] == tuple(reversed(many))[: MAX_ASKED - 40]
