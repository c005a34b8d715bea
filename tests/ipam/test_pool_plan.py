"""ENIs: what only examples show well."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from builders import SUBNET, attachment, document, eni, inputs

from reconciler.core.datapath import host_network
from reconciler.domains import eni as domain
from reconciler.domains import nat, route, rule
from reconciler.ipam import pool_plan
from reconciler.ipam.budget import CallBackoffs
from reconciler.ipam.cloud import (
    CLUSTER_TAG,
    CREATION_TAG,
    INSTANCE_TAG,
    Cloud,
    Limits,
    Subnet,
    retain,
)
from reconciler.ipam.ec2_action import (
    AddEni,
    AssignAddresses,
    AssignPrefixes,
    AttachEni,
    DeleteEni,
    DetachEni,
    ReleaseAddresses,
    ReleasePrefixes,
    SetIdleTimeouts,
    SetSecurityGroups,
    TieToInstance,
)
from reconciler.ipam.pool import Demand
from reconciler.ipam.pool_status import NO_EC2, Ec2Inputs, Pool, find_pool_status
from reconciler.ipam.sources import Disagreements

LIMITS = Limits(3, 10)


def cloud(*enis: object, free: int = 200, blocks: int | None = None) -> Cloud:
    subnet = Subnet("subnet-a", "us-east-1a", SUBNET, free, blocks)
    return Cloud(tuple(enis), LIMITS, {"subnet-a": subnet})  # type: ignore[arg-type]


def warm(minimum: int = 0, free: int = 0, surplus: int = 0) -> dict[str, Any]:
    return {"addresses": {"warm": free, "minimum": minimum, "surplus": surplus}}


def pool(total: int, *, ec2: Ec2Inputs = NO_EC2, now: float = 1000.0, **fields: Any) -> Pool:
    parts = {"warmPool": warm(total)} | fields
    wanted = inputs(1, document=document(**parts), ec2=replace(ec2, nonce="n"), now=now)
    return domain.desire(wanted)


def test_demand_counts_at_once() -> None:
    doc = document(warmPool=warm(0, 2))
    wanted = domain.desire(inputs(1, document=doc, demand=Demand(5, 3, 4)))
    assert find_pool_status(wanted, cloud(eni(0, 9))).band.low == 14


def test_tokens_of_one_pass_differ_and_of_the_same_inputs_do_not() -> None:
    def tokens(nonce: str) -> list[str]:
        wanted = pool(27)
        wanted = replace(wanted, ec2=replace(wanted.ec2, nonce=nonce))
        plan = domain.plan(wanted, cloud(eni(0, 9)))
        return [a.creation.token for a in plan.actions if isinstance(a, AddEni)]

    assert tokens("a") == tokens("a")
    assert len({*tokens("a"), *tokens("b")}) == 4
    assert all(len(t) <= 64 for t in tokens("a"))  # EC2's limit for a ClientToken


def test_a_recorded_creation_is_repeated_as_it_was_until_its_eni_is_seen() -> None:
    first = next(a for a in domain.plan(pool(18), cloud(eni(0, 9))).actions)
    assert isinstance(first, AddEni)
    recorded = Ec2Inputs(creations=(first.creation,))
    again = domain.plan(pool(18, ec2=recorded, now=1500.0), cloud(eni(0, 9)))
    assert [a.creation for a in again.actions if isinstance(a, AddEni)] == [first.creation]
    there = eni(1, 9, creation=first.creation.token)
    assert domain.plan(pool(18, ec2=recorded), cloud(eni(0, 9), there)).actions == ()
    done = Ec2Inputs(creations=(replace(first.creation, done=True),))
    assert len(domain.plan(pool(18, ec2=done), cloud(eni(0, 9))).actions) == 1


def test_an_interrupted_creation_is_finished_before_anything_is_made() -> None:
    lost = eni(None, 5, eni_id="eni-lost")
    plan = domain.plan(pool(14), cloud(eni(0, 9), lost))
    assert [type(a) for a in plan.actions] == [AttachEni]


def test_an_eni_that_would_outlive_the_instance_is_tied_to_it() -> None:
    loose = eni(1, 9, delete_on_termination=False)
    plan = domain.plan(pool(18), cloud(eni(0, 9), loose))
    assert [type(a) for a in plan.actions] == [TieToInstance]


def test_foreign_enis_count_against_the_limit_and_are_left_alone() -> None:
    plan = domain.plan(pool(27), cloud(eni(0, 9), eni(1, 0, owned=False)))
    assert [a.key for a in plan.actions] == [(2,)]
    (refusal,) = plan.refusals
    assert refusal.reason == "PoolLimitReached"


def test_the_documents_limit_binds_and_is_named() -> None:
    plan = domain.plan(pool(12, eni={"max": 1}), cloud(eni(0, 9)))
    assert plan.actions == ()
    assert "3 cannot be had: eni.max allows 1 ENIs x 9 = 9" in plan.refusals[0].message


def test_a_subnet_that_is_nearly_full_gives_what_it_has() -> None:
    plan = domain.plan(pool(20), cloud(eni(0, 9), free=5))
    (action,) = plan.actions
    assert isinstance(action, AddEni)
    assert action.creation.addresses == 4
    assert [r.reason for r in plan.refusals] == ["SubnetExhausted"]


def test_a_short_answer_of_ec2_takes_no_pod_down() -> None:
    """A shrinking observation is unknown: the datapath stays, nothing new is bound."""
    before, short = cloud(eni(0, 9), eni(1, 9)), cloud(eni(0, 9))
    links = {e.mac: f"eth{e.device_index}" for e in before.enis}
    kept = retain(before, short, links.keys())
    now, then = inputs(2, enis=kept.enis), inputs(2, enis=before.enis)
    for module in (route, rule):
        assert module.desire(now) == module.desire(then)
    # What is for no pod is refused only where the node holds the address for certain.
    lost = nat.desire(then) - nat.desire(now)
    assert {getattr(o, "set", "") for o in lost} == {"held_ipv4"}
    assert nat.desire(now) <= nat.desire(then)
    assert kept.enis[1].secondaries == ()


def test_an_eni_whose_link_is_gone_too_is_gone() -> None:
    before, short = cloud(eni(0, 9), eni(1, 9)), cloud(eni(0, 9))
    assert retain(before, short, {eni(0).mac}) == short


def test_tags_mark_what_we_make() -> None:
    wanted = pool(10, eni={"tags": {"team": "net"}}, cluster="prod")
    (action,) = domain.plan(wanted, cloud(eni(0, 9))).actions
    assert isinstance(action, AddEni)
    tags = dict(action.creation.tags)
    assert tags.pop(CREATION_TAG) == action.creation.token
    assert tags == {"team": "net", INSTANCE_TAG: "i-1", CLUSTER_TAG: "prod"}


def test_an_eni_that_an_old_answer_shows_as_attaching_keeps_its_place() -> None:
    before = cloud(eni(0), eni(1))
    old = cloud(eni(0), eni(1, 0, status="attaching"))
    kept = retain(before, old, {eni(1).mac})
    assert [(e.eni_id, e.serves_pods, e.secondaries) for e in kept.enis if e.device_index] == [
        ("eni-1", True, ())
    ]
    # Without its link it is as EC2 says.
    assert retain(before, old, set()) == old


# -- giving back --------------------------------------------------------------------------


def quarantined(wanted: Pool, look: Cloud) -> Pool:
    """As after the pass that recorded what shall go."""
    return replace(wanted, ec2=replace(wanted.ec2, quarantined=pool_plan.quarantine(wanted, look)))


def given_back(wanted: Pool, look: Cloud) -> list[Any]:
    return list(domain.plan(quarantined(wanted, look), look).actions)


def test_nothing_is_given_back_before_it_is_quarantined() -> None:
    look = cloud(eni(0, 9))
    assert domain.plan(pool(5), look).actions == ()
    (action,) = given_back(pool(5), look)
    assert isinstance(action, ReleaseAddresses)
    assert action.units == eni(0, 9).secondaries[5:]


def test_what_is_used_stays() -> None:
    used = frozenset(eni(0, 9).secondaries[6:])
    (action,) = given_back(pool(5, ec2=Ec2Inputs(used=used)), cloud(eni(0, 9)))
    assert isinstance(action, ReleaseAddresses)
    assert not used & set(action.units)
    assert len(action.units) == 4


def test_an_eni_that_nobody_needs_goes_whole_the_primary_never() -> None:
    old = eni(1, 9, created_at=0.0)
    actions = given_back(pool(9), cloud(eni(0, 9), old))
    assert [type(a) for a in actions] == [DetachEni]
    assert not [a for a in given_back(pool(0), cloud(eni(0, 9))) if isinstance(a, DetachEni)]


def test_a_young_eni_stays_for_a_minute() -> None:
    young = eni(1, 9, created_at=970.0)
    assert given_back(pool(9), cloud(eni(0, 9), young)) == []


def test_a_detached_eni_of_ours_is_deleted_when_it_is_not_needed() -> None:
    spare = eni(None, 5, eni_id="eni-spare", created_at=0.0)
    assert [type(a) for a in domain.plan(pool(9), cloud(eni(0, 9), spare)).actions] == [DeleteEni]


@pytest.mark.parametrize("kind", ["missing", "unconfirmed"])
def test_while_there_are_doubts_nothing_is_given_back(kind: str) -> None:
    item = {("eni-9", ip_network("10.0.1.77/32")): 990.0}
    disagreements = Disagreements(
        **({"missing": {}, "unconfirmed": {}, "lost": frozenset()} | {kind: item})
    )
    look = cloud(eni(0, 9), eni(None, 3, eni_id="eni-spare", created_at=0.0))
    wanted = pool(5, ec2=Ec2Inputs(disagreements=disagreements))
    assert pool_plan.quarantine(wanted, look) == frozenset()
    ready = replace(
        wanted, ec2=replace(wanted.ec2, quarantined=pool_plan.quarantine(pool(5), look))
    )
    assert domain.plan(ready, look).actions == ()


def test_a_look_that_lacks_what_ec2_has_answered_gives_nothing_back() -> None:
    look = cloud(eni(0, 9), eni(None, 3, eni_id="eni-spare", created_at=0.0))
    wanted = pool(5)
    ready = replace(
        wanted, ec2=replace(wanted.ec2, quarantined=pool_plan.quarantine(wanted, look))
    )
    assert len(domain.plan(ready, look).actions) == 2
    late = replace(look, behind=True)
    assert pool_plan.quarantine(wanted, late) == frozenset()
    assert domain.plan(ready, late).actions == ()


def test_a_disagreement_is_told_once_it_lasts() -> None:
    item = {("eni-9", ip_network("10.0.1.77/32")): 990.0}
    disagreements = Ec2Inputs(disagreements=Disagreements(item, {}, frozenset()))
    assert domain.plan(pool(9, ec2=disagreements), cloud(eni(0, 9))).refusals == ()
    (told,) = domain.plan(
        replace(pool(9, ec2=disagreements), clock=2000.0), cloud(eni(0, 9))
    ).refusals
    assert (told.reason, "for 1010 s" in told.message) == ("SourcesDisagree", True)


def test_a_quarantined_address_comes_back_before_ec2_is_asked_for_more() -> None:
    look = cloud(eni(0, 9))
    leaving = frozenset(map(host_network, eni(0, 9).secondaries[5:]))
    wanted = pool(8, ec2=Ec2Inputs(quarantined=leaving))
    assert len(pool_plan.quarantine(wanted, look)) == 1


# -- prefixes -----------------------------------------------------------------------------

PREFIXES = {"eni": {"allocate": "prefixes"}}


def test_prefixes_are_asked_for_where_the_subnet_has_whole_blocks() -> None:
    (action,) = domain.plan(pool(40, **PREFIXES), cloud(eni(0, 0), blocks=9)).actions
    assert isinstance(action, AssignPrefixes)
    assert action.count == 3


def test_without_whole_blocks_single_addresses_do_and_are_exchanged_when_one_is_free() -> None:
    (action,) = domain.plan(pool(5, **PREFIXES), cloud(eni(0, 0), blocks=0)).actions
    assert isinstance(action, AssignAddresses)
    (then,) = domain.plan(pool(5, **PREFIXES), cloud(eni(0, 5), blocks=1)).actions
    assert isinstance(then, AssignPrefixes)
    both = eni(0, 5, prefixes=(ip_network("10.0.1.64/28"),))
    (last,) = given_back(pool(5, **PREFIXES), cloud(both, blocks=1))
    assert isinstance(last, ReleaseAddresses)
    assert len(last.units) == 5


def test_changing_back_to_single_addresses_gives_free_prefixes_back() -> None:
    block = ip_network("10.0.1.64/28")
    both = eni(0, 5, prefixes=(block,))
    (action,) = given_back(pool(5), cloud(both))
    assert isinstance(action, ReleasePrefixes)
    used = Ec2Inputs(used=frozenset({block[3]}))
    kept = given_back(pool(5, ec2=used), cloud(both))
    assert not [a for a in kept if isinstance(a, ReleasePrefixes)]


def test_a_prefix_from_the_launch_is_used_in_either_mode() -> None:
    launched = eni(0, 0, prefixes=(ip_network("10.0.1.64/28"),))
    plan = domain.plan(pool(5), cloud(launched))
    assert (plan.actions, plan.refusals) == ((), ())
    assert not pool_plan.quarantine(pool(5), cloud(launched))


# -- where ENIs go ------------------------------------------------------------------------


def two_subnets(*enis: object) -> Cloud:
    look = cloud(*enis)
    more = {
        "subnet-p": Subnet("subnet-p", "us-east-1a", SUBNET, 99, tags=(("role", "pods"),)),
        "subnet-q": Subnet("subnet-q", "us-east-1b", SUBNET, 99, tags=(("role", "pods"),)),
    }
    return replace(look, subnets={**look.subnets, **more})


def test_enis_go_to_the_subnets_of_the_document_in_the_nodes_zone() -> None:
    settings = {"subnets": ["subnet-q", "subnet-p"], "usePrimary": False}
    (action,) = domain.plan(pool(5, eni=settings), two_subnets(eni(0, 0))).actions
    assert isinstance(action, AddEni)
    assert action.creation.subnet_id == "subnet-p"
    assert "not subnet-q: in zone us-east-1b, the node is in us-east-1a" in action.reason


def test_a_selector_finds_subnets_by_their_tags() -> None:
    settings = {"subnetTags": {"role": "pods"}, "securityGroups": ["sg-7"]}
    plan = domain.plan(pool(12, eni=settings), two_subnets(eni(0, 9)))
    (action,) = plan.actions
    assert isinstance(action, AddEni)
    assert (action.creation.subnet_id, action.creation.security_groups) == ("subnet-p", ("sg-7",))


def test_a_subnet_whose_tags_exclude_it_gets_no_eni_and_gives_no_more_addresses() -> None:
    settings = {"excludeSubnetTags": {"role": "pods"}, "subnets": ["subnet-p", "subnet-a"]}
    plan = domain.plan(pool(12, eni=settings), two_subnets(eni(0, 9)))
    (action,) = plan.actions
    assert isinstance(action, AddEni)
    assert action.creation.subnet_id == "subnet-a"
    assert "not subnet-p: its tags exclude it" in action.reason
    there = eni(1, 9, subnet_id="subnet-p")
    at = find_pool_status(pool(12, eni=settings), two_subnets(eni(0, 9), there))
    assert at.misplaced == (there,)


def test_the_primary_eni_serves_no_pods_where_its_subnet_is_excluded() -> None:
    look = two_subnets(eni(0, 9, subnet_id="subnet-p"))
    settings = {"excludeSubnetTags": {"role": "pods"}, "subnets": ["subnet-a"]}
    at = find_pool_status(pool(9, eni=settings), look)
    assert at.fitting == frozenset()


def test_the_subnet_with_most_room_is_first_if_that_is_asked_for() -> None:
    settings = {"subnets": ["subnet-p", "subnet-a"], "subnetOrder": "most-free"}
    (action,) = domain.plan(pool(12, eni=settings), two_subnets(eni(0, 9))).actions
    assert isinstance(action, AddEni)
    assert action.creation.subnet_id == "subnet-a"


def test_enis_follow_the_primarys_security_groups_unless_the_document_names_some() -> None:
    enis = eni(0, 9, security_groups=("sg-2", "sg-1")), eni(1, 9), eni(2, 9, owned=False)
    (action,) = domain.plan(pool(18), cloud(*enis)).actions
    assert isinstance(action, SetSecurityGroups)
    assert (action.eni_id, action.security_groups) == (enis[1].eni_id, ("sg-1", "sg-2"))
    assert action.reason == "it has sg-1, the primary ENI has others"
    named = pool(18, eni={"securityGroups": ["sg-1"]})
    assert not domain.plan(named, cloud(*enis)).actions


def test_enis_follow_the_idle_timeouts_that_the_primary_eni_was_given() -> None:
    enis = eni(0, 9, idle_timeouts=(350, 0, 60)), eni(1, 9, idle_timeouts=(350, 180, 0))
    (action,) = domain.plan(pool(18), cloud(*enis)).actions
    assert isinstance(action, SetIdleTimeouts)
    wanted = {"TcpEstablishedTimeout": 350, "UdpStreamTimeout": 180, "UdpTimeout": 60}
    assert (action.eni_id, action.specification) == (enis[1].eni_id, wanted)
    told = "TcpEstablishedTimeout=350,UdpStreamTimeout=180,UdpTimeout=60"
    assert str(action).endswith(f"--connection-tracking-specification {told}")


def test_security_groups_change_in_place_and_subnets_do_not() -> None:
    used = Ec2Inputs(used=frozenset(eni(1, 9).secondaries))
    settings = {"subnets": ["subnet-p"], "securityGroups": ["sg-7"]}
    plan = domain.plan(pool(9, ec2=used, eni=settings), two_subnets(eni(0, 9), eni(1, 9)))
    assert [type(a) for a in plan.actions if isinstance(a, SetSecurityGroups)]
    assert "SubnetImmutable" in [r.reason for r in plan.refusals]


# -- trouble ------------------------------------------------------------------------------


def test_a_denied_action_disables_only_what_needs_it() -> None:
    backoffs = CallBackoffs().after_failure(
        "CreateNetworkInterface", "UnauthorizedOperation", "no", now=0.0, chance=1.0
    )
    plan = domain.plan(pool(18, ec2=Ec2Inputs(backoffs=backoffs)), cloud(eni(0, 2)))
    assert [type(a) for a in plan.actions] == [AssignAddresses]
    (refusal,) = plan.refusals
    assert (refusal.reason, "again in 30 s" in refusal.message) == (
        "UnauthorizedOperation",
        True,
    )


def test_an_address_in_use_that_both_sources_lack_is_lost_and_asked_for_again() -> None:
    pod = attachment(1, 0)
    look = cloud(replace(eni(0, 9), secondaries=eni(0, 9).secondaries[3:]))
    lost = Disagreements({}, {}, frozenset({("eni-0", host_network(pod.addresses[0]))}))
    wanted = replace(pool(0, ec2=Ec2Inputs(disagreements=lost)), attachments=(pod,))
    plan = domain.plan(wanted, look)
    (action,) = [a for a in plan.actions if isinstance(a, AssignAddresses)]
    assert action.units == pod.addresses
    assert "AddressLost" in [r.reason for r in plan.refusals]


def test_an_unknown_instance_type_degrades_and_says_so() -> None:
    look = replace(cloud(eni(0, 2)), limits=None)
    plan = domain.plan(pool(9), look)
    assert plan.actions == ()
    assert [r.reason for r in plan.refusals] == ["InstanceTypeUnknown"]
    named = pool(9, instanceTypes={"m5.large": {"enis": 2, "addressesPerEni": 10}})
    assert [type(a) for a in domain.plan(named, look).actions] == [AssignAddresses]


def test_more_pods_than_the_node_can_serve_is_told_with_the_arithmetic() -> None:
    (told,) = domain.plan(pool(9, maxPods=40), cloud(eni(0, 9))).refusals
    assert told.reason == "MaxPodsTooHigh"
    assert "40 pods are more than m5.large can serve, 29: 3 ENIs x 9 + 2" in told.message


def test_creation_that_helps_nobody_ends() -> None:
    """Attaching that never works must not make ENIs without end (cilium/cilium#15877)."""
    (first,) = domain.plan(pool(18), cloud(eni(0, 9))).actions
    assert isinstance(first, AddEni)
    many = tuple(replace(first.creation, token=f"t{i}", done=True) for i in range(6))
    plan = domain.plan(pool(18, ec2=Ec2Inputs(creations=many)), cloud(eni(0, 9)))
    assert plan.actions == ()
    assert [r.reason for r in plan.refusals] == ["CreationRateReached"]


# -- families -----------------------------------------------------------------------------

BLOCK = ip_network("2001:db8:1:0:7::/80")
OWN = BLOCK[1]
BOTH: dict[str, Any] = {"families": ["ipv4", "ipv6"]}


def dual(*enis: object) -> Cloud:
    subnet = Subnet("subnet-a", "us-east-1a", SUBNET, 200, families=("ipv4", "ipv6"))
    return Cloud(tuple(enis), LIMITS, {"subnet-a": subnet})  # type: ignore[arg-type]


def commands(wanted: Pool, seen: Cloud) -> list[str]:
    return [str(a) for a in domain.plan(wanted, seen).actions]


def test_an_eni_without_a_prefix_is_given_one_and_that_call_is_printed() -> None:
    plan = domain.plan(pool(9, **BOTH), dual(eni(0, 9)))
    assert [str(a) for a in plan.actions] == [
        "aws ec2 assign-ipv6-addresses --network-interface-id eni-0 --ipv6-prefix-count 1"
    ]
    assert plan.actions[0].calls == ("AssignIpv6Addresses",)
    assert commands(pool(9, **BOTH), dual(eni(0, 9, ipv6_prefixes=(BLOCK,)))) == []


def test_a_new_eni_comes_with_its_prefix() -> None:
    (made,) = commands(pool(18, **BOTH), dual(eni(0, 9, ipv6_prefixes=(BLOCK,))))
    assert "--secondary-private-ip-address-count 9 --ipv6-prefix-count 1 " in made


def test_a_node_of_ipv4_asks_for_no_prefix() -> None:
    assert commands(pool(9), dual(eni(0, 9))) == []


def test_a_node_of_ipv6_alone_gives_back_what_it_held_of_ipv4_by_the_usual_proof() -> None:
    v6 = {"families": ["ipv6"]}
    held = eni(0, 3, ipv6_prefixes=(BLOCK,))
    spare = frozenset(map(host_network, held.secondaries[1:]))
    used = Ec2Inputs(used=frozenset(held.secondaries[:1]))
    assert pool_plan.quarantine(pool(9, ec2=used, **v6), dual(held)) == spare
    assert commands(pool(9, ec2=used, **v6), dual(held)) == []
    gone = replace(used, quarantined=spare)
    (release,) = commands(pool(9, ec2=gone, **v6), dual(held))
    assert release.startswith("aws ec2 unassign-private-ip-addresses")


def test_the_eni_whose_prefix_serves_every_pod_stays_when_its_addresses_go() -> None:
    """It was detached for having none left, and attached again because pods need its prefix."""
    v6 = {"families": ["ipv6"], "eni": {"usePrimary": False}}
    held = eni(1, 3, ipv6_prefixes=(BLOCK,))
    units = frozenset(map(host_network, held.secondaries))
    assert pool_plan.quarantine(pool(0, **v6), dual(eni(0, 0), held)) == units
    gone = Ec2Inputs(quarantined=units)
    plan = domain.plan(pool(0, ec2=gone, **v6), dual(eni(0, 0), held))
    assert [type(a) for a in plan.actions] == [ReleaseAddresses]


@pytest.mark.parametrize("used", [True, False])
def test_an_eni_goes_only_if_no_pod_has_an_address_of_its_prefix(used: bool) -> None:
    first, second = eni(0, 9, ipv6_prefixes=(ip_network("2001:db8::/80"),)), eni(1, 1)
    second = replace(second, ipv6_prefixes=(BLOCK,))
    held = Ec2Inputs(used=frozenset({OWN} if used else ()))
    leaving = pool_plan.quarantine(pool(9, ec2=held, **BOTH), dual(first, second))
    units = {host_network(second.secondaries[0])}
    assert leaving == units | (set() if used else {BLOCK})
    plan = domain.plan(
        pool(9, ec2=replace(held, quarantined=leaving), **BOTH), dual(first, second)
    )
    assert [type(a) for a in plan.actions] == [ReleaseAddresses if used else DetachEni]


def test_a_prefix_that_pods_use_and_nobody_shows_is_asked_for_by_name() -> None:
    pod = attachment(1, addresses=(OWN,))
    wanted = pool(0, families=["ipv6"], ec2=Ec2Inputs(used=frozenset({OWN})))
    lost = Disagreements({}, {}, frozenset({("eni-0", BLOCK)}))
    wanted = replace(wanted, ec2=replace(wanted.ec2, disagreements=lost), attachments=(pod,))
    plan = domain.plan(wanted, dual(eni(0, 0)))
    assert [str(a) for a in plan.actions] == [
        f"aws ec2 assign-ipv6-addresses --network-interface-id eni-0 --ipv6-prefixes {BLOCK}"
    ]
    assert [r.reason for r in plan.refusals] == ["AddressLost"]


def test_a_prefix_that_may_still_be_there_is_not_replaced_until_it_is_proved_lost() -> None:
    """It could not be given back: with every stale answer there would be one more."""
    item = ("eni-0", BLOCK)
    wanted = pool(0, families=["ipv6"])
    known = Disagreements({item: 990.0}, {}, frozenset())
    missing = replace(wanted, ec2=replace(wanted.ec2, disagreements=known))
    assert commands(missing, dual(eni(0, 0))) == []
    lost = Disagreements({}, {}, frozenset({item}))
    gone = replace(wanted, ec2=replace(wanted.ec2, disagreements=lost))
    assert len(commands(gone, dual(eni(0, 0)))) == 1
