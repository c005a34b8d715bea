"""Pools of pod groups: who gets the instance's ENIs, and what becomes of those of no group."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from typing import Any

from builders import SUBNET, attachment, document, eni, inputs, intent
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.attachment import Cooling
from reconciler.core.datapath import host_network
from reconciler.domains import attachment as attachment_domain
from reconciler.domains import eni as domain
from reconciler.ipam import pool_groups
from reconciler.ipam.cloud import GROUP_TAG, Cloud, Limits, Subnet
from reconciler.ipam.ec2_action import AddEni, AttachEni, DetachEni, SetSecurityGroups
from reconciler.ipam.pool import Demand
from reconciler.ipam.pool_status import NO_EC2, Pool
from reconciler.ipam.records import Records
from schemas.document import NodeNetwork

PODS = ip_network("100.64.1.0/24")
PAY = {
    "name": "pay",
    "match": {"namespace": "pay-*"},
    "subnets": ["subnet-b"],
    "securityGroups": ["sg-7"],
}
WEB = {"name": "web", "match": {"namespace": "web", "pod": "front-*"}}
LIMITS = Limits(3, 10)
NONE_WARM = {"addresses": {"warm": 0, "minimum": 0, "surplus": 0}}


def groups(*given: dict[str, Any], **parts: Any) -> NodeNetwork:
    return document(**{"podGroups": list(given), "warmPool": NONE_WARM} | parts)


def look(*enis: Any, limits: Limits = LIMITS) -> Cloud:
    homes = (("subnet-a", SUBNET), ("subnet-b", PODS))
    subnets = {name: Subnet(name, "us-east-1a", cidr, 200) for name, cidr in homes}
    return Cloud(enis, limits, subnets)


def pool(
    wanted: NodeNetwork,
    *,
    waiting: dict[str, int] | None = None,
    demands: dict[str, Demand] | None = None,
    total: Demand | None = None,
    **ec2: Any,
) -> Pool:
    """The pool of a node where so many pods of groups wait."""
    demands = demands or {name: Demand(waiting=n) for name, n in (waiting or {}).items()}
    total = total or Demand(waiting=sum(d.waiting for d in demands.values()))
    known = replace(NO_EC2, nonce="n", demands=demands, **ec2)
    return domain.desire(inputs(1, document=wanted, ec2=known, now=1000.0, demand=total))


def of_group(number: int, name: str, secondaries: int = 2, **fields: Any) -> Any:
    """An ENI of a group, in the second subnet."""
    first = 20 * number
    values = {
        "group": name,
        "subnet_id": "subnet-b",
        "subnet_cidr": PODS,
        "primary": PODS[first],
        "secondaries": tuple(PODS[first + 1 + i] for i in range(secondaries)),
        "security_groups": ("sg-7",),
    }
    return replace(eni(number), **(values | fields))


def test_a_pod_of_a_group_waits_for_an_eni_in_the_groups_subnet_with_its_security_groups() -> None:
    plan = domain.plan(pool(groups(PAY, WEB), waiting={"pay": 1}), look(eni(0, 9)))
    (action,) = plan.actions
    assert isinstance(action, AddEni)
    made = action.creation
    assert (made.subnet_id, made.security_groups, made.addresses) == ("subnet-b", ("sg-7",), 3)
    assert dict(made.tags)[GROUP_TAG] == made.group == "pay"
    assert plan.refusals == ()


def test_what_a_group_does_not_say_is_the_documents() -> None:
    wanted = groups(WEB, eni={"subnets": ["subnet-b"], "securityGroups": ["sg-8"]})
    (action,) = domain.plan(pool(wanted, waiting={"web": 1}), look(eni(0, 9))).actions
    assert isinstance(action, AddEni)
    assert (action.creation.subnet_id, action.creation.security_groups) == ("subnet-b", ("sg-8",))


def test_a_group_holds_what_its_warm_pool_says_before_a_pod_asks() -> None:
    ahead = PAY | {"warmPool": {"addresses": {"warm": 2, "surplus": 0}}}
    (action,) = domain.plan(pool(groups(ahead)), look(eni(0, 9))).actions
    assert isinstance(action, AddEni)
    assert action.creation.addresses == 2
    assert domain.plan(pool(groups(PAY)), look(eni(0, 0))).actions == ()


def test_groups_share_the_instances_enis_and_the_one_without_is_told_the_arithmetic() -> None:
    third = WEB | {"name": "third"}
    wanted = pool(groups(PAY, WEB, third), waiting={"pay": 1, "web": 1, "third": 1})
    plan = domain.plan(wanted, look(eni(0, 9)))
    made = {
        a.creation.group: a.creation.device_index for a in plan.actions if isinstance(a, AddEni)
    }
    assert made == {"pay": 1, "web": 2}
    (refusal,) = plan.refusals
    assert (refusal.subject, refusal.reason) == ("group third of i-1", "PoolLimitReached")
    assert refusal.message == (
        "for group third 3 addresses wanted, 0 held, 3 cannot be had: m5.large allows (3 ENIs - 2 "
        "of other groups - the primary) x 9 = 0; use a larger instance type, or run pods of fewer "
        "groups here"
    )


def test_a_group_that_has_no_room_leaves_the_others_as_they_were() -> None:
    """Those of no group still grow on what they have."""
    demands = {"pay": Demand(waiting=1)}
    total = Demand(assigned=9, waiting=2)
    wanted = pool(groups(PAY), demands=demands, total=total)
    plan = domain.plan(wanted, look(eni(0, 9), eni(1, 0), eni(2, 0)))
    assert [a.kind for a in plan.actions] == ["address"]
    (refusal,) = plan.refusals
    assert "(3 ENIs - 2 of other groups - the primary) x 9 = 0" in refusal.message


def test_pods_of_no_group_are_told_which_enis_are_of_groups() -> None:
    total = Demand(assigned=9, waiting=1)
    there = look(eni(0, 9), of_group(1, "pay"), of_group(2, "web"))
    plan = domain.plan(pool(groups(PAY, WEB), total=total, demands={"pay": Demand()}), there)
    assert "(3 ENIs - 2 of other groups) x 9 = 9" in plan.refusals[0].message


def test_a_pod_that_waits_comes_before_what_is_held_for_later() -> None:
    greedy = groups(PAY, warmPool={"enis": {"warm": 2}})
    plan = domain.plan(pool(greedy, waiting={"pay": 1}), look(eni(0, 9), limits=Limits(2, 10)))
    (action,) = plan.actions
    assert isinstance(action, AddEni)
    assert action.creation.group == "pay"


def test_the_eni_of_a_group_that_is_no_more_gives_no_address_and_goes_when_it_is_empty() -> None:
    there = look(eni(0, 9), eni(1, 2, group="gone"))
    wanted = pool(groups(PAY))
    leaving = pool_groups.quarantine(wanted, there)
    assert {host_network(a) for a in there.enis[1].secondaries} <= leaving
    later = replace(wanted, ec2=replace(wanted.ec2, quarantined=leaving))
    assert "eni-1" in {
        a.eni_id for a in domain.plan(later, there).actions if isinstance(a, DetachEni)
    }
    used = frozenset(there.enis[1].secondaries[:1])
    held = pool(groups(PAY), total=Demand(assigned=1), used=used)
    plan = domain.plan(held, there)
    assert [r.reason for r in plan.refusals] == ["GroupGone"]
    assert not [a for a in plan.actions if isinstance(a, DetachEni)]


def test_an_eni_in_another_subnet_than_its_groups_gives_no_more_addresses() -> None:
    there = look(eni(0, 9), of_group(1, "pay", subnet_id="subnet-a", subnet_cidr=SUBNET))
    leaving = pool_groups.quarantine(pool(groups(PAY)), there)
    assert {host_network(a) for a in there.enis[1].secondaries} <= leaving


def test_security_groups_follow_the_group_and_those_of_no_group_the_primary() -> None:
    there = look(eni(0, 9), eni(1, 2), of_group(2, "pay", security_groups=("sg-6",)))
    plan = domain.plan(pool(groups(PAY)), there)
    changes = {a.eni_id: a for a in plan.actions if isinstance(a, SetSecurityGroups)}
    assert changes["eni-2"].security_groups == ("sg-7",)
    assert "group pay names" in changes["eni-2"].reason
    assert "eni-1" not in changes


def test_what_a_group_has_is_counted_where_the_address_is() -> None:
    """Cooling by the ENI that holds it, bound by the ENI, waiting by the name."""
    enis = (eni(0, 9), of_group(1, "pay", 5))
    wanted = groups(PAY, WEB)
    records = Records(
        intents=(
            intent(1, pod="pay-a/x"),
            intent(2, pod="default/x"),
            intent(3, pod="web/front-1"),
            intent(4, pod="web/back-1"),
            intent(5),
        ),
        attachments=(attachment(1, 1, address=PODS[21], pod="moved/x"), attachment(2, 0)),
        cooling=(Cooling(PODS[22], 9.0), Cooling(SUBNET[18], 9.0)),
    )
    whole = pool_groups.demand_of(records, wanted)
    assert (whole.assigned, whole.cooling, whole.waiting) == (2, 2, 3)
    assert whole.waiting_in == (("web", 1),)
    found = pool_groups.demands(records, whole, wanted, enis, {PODS[23]})
    assert found == {"pay": Demand(2, 1, 0), "web": Demand(0, 0, 1)}


def test_without_groups_there_is_one_pool_and_the_demand_is_that_of_the_records() -> None:
    wanted = pool(document())
    assert pool_groups.pools(wanted, look(eni(0))) == (wanted,)
    records = Records(intents=(intent(1, pod="pay-a/x"),))
    assert pool_groups.demand_of(records, document()) is records.demand


def test_a_group_without_pods_gives_its_eni_to_one_whose_pods_wait() -> None:
    other, third = PAY | {"name": "other"}, PAY | {"name": "third"}
    there = look(eni(0, 0), of_group(1, "pay"), of_group(2, "other"))
    used = frozenset(there.enis[2].secondaries)
    demands = {"other": Demand(assigned=2)}
    idle = pool(groups(PAY, other), demands=demands, total=Demand(assigned=2), used=used)
    assert pool_groups.quarantine(idle, there) == frozenset()
    demands["third"] = Demand(waiting=1)
    total = Demand(assigned=2, waiting=1)
    wanted = pool(groups(PAY, other, third), demands=demands, total=total, used=used)
    leaving = pool_groups.quarantine(wanted, there)
    assert leaving == {host_network(a) for a in there.enis[1].secondaries}
    later = replace(wanted, ec2=replace(wanted.ec2, quarantined=leaving))
    plan = domain.plan(later, there)
    assert [a.eni_id for a in plan.actions if isinstance(a, DetachEni)] == ["eni-1"]


def test_max_pods_bounds_all_groups_together() -> None:
    ahead = PAY | {"warmPool": {"addresses": {"warm": 8}}}
    wanted = groups(ahead, maxPods=10)
    demands = {"pay": Demand(assigned=1)}
    wanted_pool = pool(wanted, demands=demands, total=Demand(assigned=8))
    pools = pool_groups.pools(wanted_pool, look(eni(0)))
    assert {p.group: p.document.max_pods for p in pools} == {"": 9, "pay": 3}


def test_a_pod_gets_an_address_of_its_groups_enis_alone() -> None:
    enis = (eni(0, 1), of_group(1, "pay", 1), of_group(2, "gone", 5))
    given = inputs(3, enis=enis, document=groups(PAY, WEB))
    records = Records(
        intents=(
            intent(1, pod="pay-a/x"),
            intent(2, pod="pay-b/x"),
            intent(3, pod="default/x"),
            intent(4, pod="default/y"),
            intent(5, pod="web/front-1"),
        )
    )
    plan = attachment_domain.plan(attachment_domain.desire(given), records)
    bound = {a.object.pod: a.object.addresses for a in plan.actions}  # type: ignore[union-attr]
    assert bound == {"pay-a/x": (PODS[21],), "default/x": (SUBNET[11],)}
    told = {r.subject.rpartition(" ")[2]: r.message for r in plan.refusals}
    assert "1 held on 1 ENIs of group pay, 0 assigned" in told["pay-b/x"]
    assert "1 held on 1 ENIs, " in told["default/y"]
    assert "no ENI of group web yet" in told["web/front-1"]


def test_a_pod_that_runs_stays_where_it_is_when_groups_change_and_is_named() -> None:
    enis = (eni(0, 9), of_group(1, "pay", 1))
    pods = (attachment(1, 1, address=PODS[21], pod="moved/x"), attachment(2, 0, pod="pay-a/x"))
    intents = tuple(intent(n, pod=p.pod) for n, p in enumerate(pods, 1))
    given = inputs(2, pods, enis=enis, document=groups(PAY))
    plan = attachment_domain.plan(
        attachment_domain.desire(given), Records(intents=intents, attachments=pods)
    )
    (told,) = plan.refusals
    assert told.reason == "GroupChanged"
    assert "moved/x (eni-1 of pay), pay-a/x (eni-0 of no group)" in told.message


@given(
    st.lists(st.sampled_from(["pay", "web", "third"]), max_size=6),
    st.integers(1, 5),
    st.lists(st.sampled_from(["", "pay", "web", "gone"]), max_size=3),
    st.integers(0, 2),
)
def test_no_more_enis_are_made_than_there_is_room_for(
    waiting: list[str], most: int, there: list[str], loose: int
) -> None:
    wanted = groups(PAY, WEB, WEB | {"name": "third"}, warmPool={"enis": {"warm": 1}})
    counts = {name: waiting.count(name) for name in ("pay", "web", "third")}
    enis = [of_group(n, name, 1) for n, name in enumerate(there, 1)]
    enis += [
        of_group(
            5 + n,
            "pay",
            1,
            device_index=None,
            status="available",
            eni_id=f"eni-{9 + n}",
            attachment_id=None,
        )
        for n in range(loose)
    ]
    plan = domain.plan(
        pool(wanted, waiting=counts), look(eni(0, 9), *enis, limits=Limits(most, 10))
    )
    made = [a.creation.device_index for a in plan.actions if isinstance(a, AddEni)]
    made += [a.device_index for a in plan.actions if isinstance(a, AttachEni)]
    assert len(made) <= max(most - 1 - len(there), 0)
    assert len({*made, *range(len(there) + 1)}) == len(made) + len(there) + 1
