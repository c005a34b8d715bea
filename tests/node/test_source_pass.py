"""The pass over sources: asked once for all ENIs, and kept for the next process."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from builders import document, eni
from simulation import Simulation

from reconciler.domains.nat_objects import NftElement
from reconciler.egress.source import APART_S, Entry, Look
from reconciler.errors import NotReadyError
from reconciler.node import views
from reconciler.node.source_pass import SourcePass

ONE_LINE = {"excludeCIDRs": ["@peering"]}


class Sim(Simulation):
    """A node whose document names sources."""

    def __init__(self, **snat: Any) -> None:
        super().__init__(snat=snat)

    def start(self) -> None:
        super().start()
        node = self.node
        self.sources = SourcePass(self.state, node.environment, node.known, node.pool)

    def answer(self, *networks: str, name: str = "@peering") -> None:
        entries = tuple(Entry(ip_network(n), "pcx-1", "shared") for n in networks)
        self.ec2.sources.answers[name] = Look(entries)

    def look(self, *, at_once: bool = False) -> bool:
        return self.sources.run(self.document, at_once=at_once)

    def excluded(self) -> set[str]:
        """Run a pass over the kernel; return what sees pods beside the VPC."""
        self.node.kernel_pass(self.document)
        found = self.environment.nft.observe()
        vpc = {"10.0.0.0/16", "100.64.0.0/16"}
        return {
            o.text for o in found if isinstance(o, NftElement) and o.set == "no_snat_ipv4"
        } - vpc


@pytest.fixture
def sim() -> Sim:
    made = Sim(**ONE_LINE)
    made.answer("10.100.0.0/16")
    made.node.pool.run(made.document)
    return made


def test_what_a_source_stands_for_is_excluded_after_one_look(sim: Sim) -> None:
    assert sim.excluded() == set()
    assert sim.look()
    assert sim.excluded() == {"10.100.0.0/16"}
    assert not sim.look(), "it is not due"
    assert len(sim.ec2.sources.asked) == 1


def test_it_is_asked_again_when_it_is_due_or_a_person_asks_or_an_eni_is_elsewhere(
    sim: Sim,
) -> None:
    sim.look()
    sim.now += sim.sources.due_s - 1
    sim.look()
    assert len(sim.ec2.sources.asked) == 1
    sim.now += 1
    sim.look()
    sim.look(at_once=True)
    assert len(sim.ec2.sources.asked) == 3
    cloud = sim.node.known.observation()
    sim.node.known.see(replace(cloud, enis=(*cloud.enis, eni(1, subnet_id="subnet-b"))))
    sim.look()
    assert sim.ec2.sources.asked[-1].subnet_ids == {"subnet-a", "subnet-b"}


def test_before_the_vpc_is_known_nothing_is_asked() -> None:
    fresh = Sim(**ONE_LINE)
    with pytest.raises(NotReadyError):
        fresh.look()
    assert fresh.ec2.sources.asked == []


def test_a_restart_excludes_what_was_excluded_whatever_ec2_says(sim: Sim) -> None:
    sim.look()
    sim.ec2.sources.answers.clear()  # denied from now on
    sim.start()
    assert sim.excluded() == {"10.100.0.0/16"}
    sim.node.pool.run(sim.document)
    sim.look()
    assert sim.excluded() == {"10.100.0.0/16"}
    issues, _ = sim.sources.find_issues(sim.document)
    assert [i.reason for i in issues] == ["UnauthorizedOperation"]


def test_what_is_withdrawn_goes_when_two_looks_agree_also_over_a_restart(sim: Sim) -> None:
    sim.look()
    sim.answer()
    sim.now += 100.0
    sim.look(at_once=True)
    assert sim.excluded() == {"10.100.0.0/16"}
    assert sim.sources.due_s <= 60.0, "it is confirmed soon"
    sim.start()
    sim.now += APART_S
    sim.node.pool.run(sim.document)
    sim.look()
    assert sim.excluded() == set()


def test_a_source_in_place_of_a_cidr_takes_nothing_away_before_it_is_known() -> None:
    sim = Sim(excludeCIDRs=["10.0.0.0/8"])
    sim.node.pool.run(sim.document)
    sim.look()
    before = sim.excluded()
    sim.document = document(snat=ONE_LINE)
    sim.start()
    assert sim.excluded() == before
    sim.node.pool.run(sim.document)
    sim.look()  # denied
    assert sim.excluded() == before
    sim.answer("10.100.0.0/16")
    sim.look(at_once=True)
    assert sim.excluded() == {"10.100.0.0/16"}


def test_of_another_vpc_nothing_is_believed(sim: Sim) -> None:
    sim.look()
    known = sim.node.known.egress
    sim.node.known.learn(type(known)("vpc-0", known.sources, known.former))
    sim.ec2.sources.answers.clear()
    sim.look(at_once=True)
    assert sim.excluded() == set()


def test_without_a_source_ec2_is_not_asked() -> None:
    sim = Sim(excludeCIDRs=["10.0.0.0/8"])
    sim.node.pool.run(sim.document)
    sim.look(at_once=True)
    assert sim.ec2.sources.asked == []
    assert sim.sources.due_s == float("inf")


def test_in_mode_frozen_ec2_is_not_asked_and_what_is_known_stays(sim: Sim) -> None:
    sim.look()
    sim.answer()
    sim.document = document(snat=ONE_LINE, ec2={"mode": "frozen"})
    for _ in range(2):
        sim.now += 3600.0
        sim.look(at_once=True)
    assert len(sim.ec2.sources.asked) == 1
    assert sim.excluded() == {"10.100.0.0/16"}


def test_diff_shows_the_element_with_its_source_and_keeps_nothing(sim: Sim) -> None:
    outcomes = views.diff(sim.node, sim.document)
    reasons = {str(a): a.reason for a in outcomes["nat"].plan.actions}
    added = "nft add element inet node_network no_snat_ipv4 { 10.100.0.0/16 }"
    assert reasons[added] == 'missing: @peering pcx-1, "shared"'
    assert sim.state.recall_egress().sources == ()


def test_diff_and_apply_say_what_the_role_lacks(sim: Sim) -> None:
    sim.ec2.sources.answers.clear()
    for look in (
        lambda: views.diff(sim.node, sim.document)["egress"],
        lambda: views.look_at_sources(sim.node, sim.document),
    ):
        (refusal,) = look().remaining.refusals
        assert (refusal.subject, refusal.reason) == (
            "snat source @peering",
            "UnauthorizedOperation",
        )


def test_apply_keeps_what_it_has_learned(sim: Sim) -> None:
    assert views.look_at_sources(sim.node, sim.document).remaining.refusals == ()
    assert sim.excluded() == {"10.100.0.0/16"}
    assert [s.name for s in sim.state.recall_egress().sources] == ["@peering"]


def test_sources_that_only_a_pod_group_names_are_asked_for_and_told_of() -> None:
    sim = Sim()
    groups = [{"name": "pay", "match": {"namespace": "pay"}, "snat": ONE_LINE}]
    sim.document = document(podGroups=groups)
    sim.answer("10.100.0.0/16")
    sim.node.pool.run(sim.document)
    assert {i.subject for i in sim.sources.find_issues(sim.document)[0]} == {
        "snat source @peering"
    }
    assert sim.look()
    assert sim.sources.find_issues(sim.document) == ((), ())
    assert sim.excluded() == set()
    found = sim.environment.nft.observe()
    own = {o.text for o in found if isinstance(o, NftElement) and o.set == "no_snat_ipv4_pay"}
    assert "10.100.0.0/16" in own


def test_an_edit_stays_in_force_until_the_next_ones_source_is_answered() -> None:
    """Two edits within a second: the thread that asks for sources has seen the second alone."""
    sim = Sim(excludeCIDRs=["10.100.0.0/16"])
    sim.node.pool.run(sim.document)
    assert sim.excluded() == {"10.100.0.0/16"}
    sim.document = document(snat=ONE_LINE)
    for _ in range(2):
        assert sim.excluded() == {"10.100.0.0/16"}
    sim.answer("10.101.0.0/16")
    sim.look()
    assert sim.excluded() == {"10.101.0.0/16"}
