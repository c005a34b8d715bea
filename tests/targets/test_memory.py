"""What the targets remember of an earlier observation is never shown in place of what is there."""

from __future__ import annotations

import random
from ipaddress import ip_address
from typing import Any

import pytest
from builders import attachment, document, eni, inputs
from conftest import namespace, plug
from drift_injection import FOREIGN, HOST, IN_POD, POD_ON_HOST, run
from waiting import until

from lab import netns
from reconciler.core.remembered import Remembered
from reconciler.domains import address, link, nat, neighbour, route, rule
from reconciler.domains.inputs import Inputs
from reconciler.domains.link import EniLink
from reconciler.engine.converge import Domain, converge
from reconciler.engine.plan import Change, Verb
from reconciler.targets.netlink import tables
from reconciler.targets.netlink.target import Netlink
from reconciler.targets.nftables.target import Nft

pytestmark = pytest.mark.kernel

ADDRESS = "10.0.1.50"


def everything(now: Inputs) -> list[Any]:
    """What an observation of the kernel is asked for."""
    return [o for d in (link, address, neighbour, route, rule) for o in d.desire(now)]


def put(target: Netlink, now: Inputs) -> None:
    for domain in (link, address, neighbour, route, rule):
        target.apply([Change(Verb.CREATE, o, "test") for o in domain.desire(now)])


@pytest.mark.parametrize("seed", range(3))
def test_after_any_damage_a_look_shows_what_one_without_memory_shows(seed: int) -> None:
    """Each is looked at by the same targets, of which some answers were remembered."""
    damage = random.Random(seed).sample(
        [
            *((False, command) for command in [*HOST, *POD_ON_HOST, *(c for c, _ in FOREIGN)]),
            *((True, command) for command in IN_POD),
        ],
        k=len(HOST) + len(POD_ON_HOST) + len(FOREIGN) + len(IN_POD),
    )
    with (
        namespace("home") as home,
        namespace("pod") as pod,
        namespace("vpc") as vpc,
        netns.inside(home),
    ):
        for one in (eni(0), eni(1)):
            plug(one.mac, f"eth{one.device_index}", vpc)
        only = attachment(1, 1, address=ip_address(ADDRESS), netns=str(netns.path(pod)))
        now = inputs(2, (only,), document=document())
        netlink, nft = Netlink(), Nft()
        rules = Domain("nat", nat.desire, nat.plan, nft)
        done = 0
        for inside, command in damage:
            put(netlink, now)  # what the damage before has taken
            converge([rules], now)
            for _ in range(2):  # the second one remembers
                netlink.observe(everything(now))
                nft.observe(nat.desire(now))
            where = pod if inside else home
            done += run(where, command.format(address=ADDRESS, veth=only.veth))
            assert netlink.observe(everything(now)) == Netlink().observe(everything(now)), command
            assert netlink.links() == Netlink().links(), command
            assert nft.observe(nat.desire(now)) == Nft().observe(nat.desire(now)), command
    assert done > len(damage) // 2


def test_traffic_and_its_neighbours_make_no_look_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counters, ages and what ARP has learned are no part of what is compared."""
    with (
        namespace("home") as home,
        namespace("vpc") as vpc,
        netns.inside(home),
    ):
        plug(eni(0).mac, "eth0", vpc)
        run(home, "ip address add 192.0.2.1/24 dev eth0; ip link set eth0 up")
        run(vpc, "ip address add 192.0.2.2/24 dev xeth0")
        # The kernel notes a carrier some time after it is there (net/core/link_watch.c).
        until(lambda: run(home, "ip link show eth0 | grep -q 'state UP'"), "eth0 to be up")
        target = Netlink()
        wanted = [EniLink(eni(0).mac, "eth0", 1500)]
        before = target.observe(wanted)
        decoded = []
        monkeypatch.setattr(tables, "attributes", lambda *of: decoded.append(of) or ())
        assert run(home, "bash -c 'echo > /dev/udp/192.0.2.2/9'")
        until(lambda: run(home, "ip neighbour show dev eth0 | grep -q lladdr"), "ARP's answer")
        assert target.observe(wanted) == before
        assert not decoded


def test_a_ruleset_that_nobody_has_changed_is_not_listed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with namespace("nft") as home, netns.inside(home):
        target = Nft()
        now = inputs(1, document=document())
        converge([Domain("nat", nat.desire, nat.plan, target)], now)
        seen = target.observe(nat.desire(now))
        monkeypatch.setattr(
            "reconciler.targets.nftables.table.Reader.read", lambda *_: pytest.fail("read")
        )
        assert target.observe(nat.desire(now)) is seen


def test_a_target_looks_at_its_own_namespace_wherever_the_thread_is() -> None:
    with namespace("mine") as mine, namespace("other") as other:
        with netns.inside(mine):
            target = Nft()
            assert target.observe() == frozenset()
            run(mine, "nft add table inet node_network")
        with netns.inside(other):
            assert target.observe() != frozenset()
            assert target.kernel.generation() != Nft().kernel.generation()


def test_what_has_changed_is_decided_anew_and_nothing_else() -> None:
    asked: list[tuple[int, ...]] = []

    def add(*numbers: int) -> int:
        asked.append(numbers)
        return sum(numbers)

    remembered = Remembered(add)
    assert [remembered(1, 2), remembered(1, 2), remembered(2, 2), remembered(1, 2)] == [3, 3, 4, 3]
    assert asked == [(1, 2), (2, 2), (1, 2)]
