"""A node's life with pod groups: from the first pod of a group to the end of its ENI."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from builders import document, intent
from fake_cloud import follow_attachments
from hypothesis import given
from hypothesis import strategies as st
from simulation import Simulation

PARTS: dict[str, Any] = {
    "warmPool": {"addresses": {"warm": 0, "minimum": 2, "surplus": 2}, "cooldown": "0s"}
}
PAY = {"name": "pay", "match": {"namespace": "pay"}}
WEB = {"name": "web", "match": {"namespace": "web"}}
LATE = {"name": "late", "match": {"namespace": "late"}}


class Sim(Simulation):
    """A node whose links come with attachments, and whose pods have names."""

    def __init__(self, *groups: Any, **parts: Any) -> None:
        super().__init__(**PARTS | parts, podGroups=list(groups))
        self.links: set[str] = set()

    def edit(self, *groups: Any, **parts: Any) -> None:
        self.document = document(**PARTS | parts, podGroups=list(groups))

    def start_named(self, number: int, namespace: str) -> None:
        self.netlink.namespaces.add(f"/run/netns/pod{number}@{number}")
        self.state.put(intent(number, pod=f"{namespace}/pod{number}"))

    def settle(self, turns: int = 4, seconds: float = 100.0) -> None:
        for _ in range(turns):
            self.turn(0.0)
            self.links = follow_attachments(self.netlink, self.ec2, self.links)
            self.ec2.settle()
            self.now += seconds

    @property
    def enis(self) -> list[tuple[int | None, str]]:
        return [(e.device_index, e.group) for e in self.ec2.enis]

    @property
    def groups(self) -> dict[str, str]:
        """The group of the ENI that holds each pod's address, by pod."""
        attachments = self.state.observe().attachments
        return {
            a.pod: next(e.group for e in self.ec2.enis if e.holds(own))
            for a in attachments
            for own in a.vpc_addresses
        }


@pytest.fixture(params=["addresses", "prefixes"])
def sim(request: pytest.FixtureRequest) -> Iterator[Sim]:
    yield Sim(PAY, WEB, LATE, eni={"allocate": request.param})


def test_pods_of_groups_are_on_enis_of_their_own_and_another_process_knows(sim: Sim) -> None:
    for number, namespace in enumerate(("pay", "web", "default", "pay")):
        sim.start_named(number, namespace)
    sim.settle(8)
    expected = {"pay/pod0": "pay", "pay/pod3": "pay", "web/pod1": "web", "default/pod2": ""}
    assert sim.groups == expected
    assert sorted(sim.enis) == [(0, ""), (1, "pay"), (2, "web")]
    calls = dict(sim.ec2.calls)
    sim.start()
    sim.settle()
    assert sim.groups == expected
    changing = ("Create", "Attach", "Assign", "Unassign", "Detach", "Delete", "Modify")
    more = {c: n - calls.get(c, 0) for c, n in sim.ec2.calls.items() if c.startswith(changing)}
    assert not any(more.values())


def test_a_group_without_pods_makes_room_for_one_whose_pods_wait(sim: Sim) -> None:
    sim.start_named(1, "pay")
    sim.start_named(2, "web")
    sim.settle(8)
    sim.start_named(3, "late")
    sim.settle()
    assert "late/pod3" not in sim.groups
    assert sim.refusals["PoolLimitReached"]
    sim.end_pod(1)
    sim.settle(12)
    assert sim.groups == {"web/pod2": "web", "late/pod3": "late"}
    assert sorted(g for _, g in sim.enis) == ["", "late", "web"]


def test_the_eni_of_a_group_that_is_no_more_goes_with_its_last_pod(sim: Sim) -> None:
    sim.start_named(1, "pay")
    sim.settle(8)
    sim.edit(WEB)
    sim.start_named(2, "pay")
    sim.settle(8)
    assert sim.groups == {"pay/pod1": "pay", "pay/pod2": ""}
    assert sim.refusals["GroupGone"]
    sim.end_pod(1)
    sim.settle(12)
    assert sim.enis == [(0, "")]
    assert sim.groups == {"pay/pod2": ""}


@pytest.mark.parametrize("families", [["ipv6"], ["ipv4", "ipv6"]])
def test_groups_have_ipv6_prefixes_of_their_own(families: list[str]) -> None:
    sim = Sim(PAY, families=families)
    sim.start_named(1, "pay")
    sim.start_named(2, "default")
    sim.settle(8)
    assert sim.groups == {"pay/pod1": "pay", "default/pod2": ""}


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("start"), st.sampled_from(["pay", "web", "late", "default"])),
        st.tuples(st.just("end"), st.integers(0, 20)),
        st.tuples(st.just("edit"), st.lists(st.sampled_from([0, 1, 2]), unique=True)),
        st.tuples(st.just("settle"), st.integers(1, 6)),
        st.tuples(st.just("restart"), st.none()),
    ),
    max_size=20,
)


@given(STEPS, st.sampled_from(["addresses", "prefixes"]))
def test_whatever_comes_a_pod_keeps_its_address_and_is_bound_in_its_group(
    steps: list[Any], allocate: str
) -> None:
    every = (PAY, WEB, LATE)
    sim = Sim(*every, eni={"allocate": allocate})
    running: dict[int, str] = {}
    bound: dict[str, str] = {}
    names = {g["name"] for g in every}
    for number, (what, which) in enumerate(steps):
        if what == "start":
            running[number] = which
            sim.start_named(number, which)
        elif what == "end" and which in running:
            bound.pop(f"{running.pop(which)}/pod{which}", None)
            sim.end_pod(which)
        elif what == "edit":
            sim.edit(*(every[n] for n in which), eni={"allocate": allocate})
            names = {every[n]["name"] for n in which}
        elif what == "settle":
            sim.settle(which)
        elif what == "restart":
            sim.start()
        sim.settle(1)
        now = sim.groups  # an address that no ENI holds is a failure there
        for pod, group in bound.items():
            assert now[pod] == group
        for pod in now.keys() - bound.keys():
            own = pod.partition("/")[0]
            if int(pod.partition("pod")[2]) in running:
                assert now[pod] == (own if own in names else "")
                bound[pod] = now[pod]
    assert len([e for e in sim.ec2.enis if e.device_index is not None]) <= 3
    held = [a.vpc_addresses for a in sim.state.observe().attachments]
    assert len(set(held)) == len(held)
    sim.edit(eni={"allocate": allocate})
    sim.settle(12)
    waiting = {f"{ns}/pod{n}" for n, ns in running.items()} - sim.groups.keys()
    assert not waiting
