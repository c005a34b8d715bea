"""Why the pool is not as it should be: the right reason, the right numbers, what to do."""

from __future__ import annotations

from typing import Any

from builders import SUBNET, document, eni, inputs

from reconciler.diagnostics.explain import explain_pool
from reconciler.domains import eni as domain
from reconciler.errors import Issue
from reconciler.ipam.budget import CallBackoffs
from reconciler.ipam.cloud import Cloud, Limits, Subnet
from reconciler.ipam.pool import Demand
from reconciler.ipam.pool_status import Ec2Inputs, Pool, find_pool_status

LIMITS = Limits(3, 10)


def wanted(minimum: int, demand: Demand = Demand(), **parts: Any) -> Pool:  # noqa: B008 - frozen
    warm = {"addresses": {"warm": 0, "minimum": minimum, "surplus": 0}}
    return domain.desire(
        inputs(1, document=document(warmPool=warm, **parts), demand=demand, now=1000.0)
    )


def subnet(name: str = "subnet-a", zone: str = "us-east-1a", free: int = 200) -> Subnet:
    return Subnet(name, zone, SUBNET, free, free // 16)


def cloud(*enis: Any, subnets: tuple[Subnet, ...] = (subnet(),)) -> Cloud:
    return Cloud(enis, LIMITS, {s.subnet_id: s for s in subnets})


def refusals(desired: Pool, observed: Cloud) -> dict[str, Issue]:
    return {r.reason: r for r in domain.plan(desired, observed).refusals}


def test_the_verdict_of_a_pool_that_exchanges_adds_up() -> None:
    """24 were held, 21 of them single ones in free slots: "24 < 24: grow by 21" is no sum."""
    desired = wanted(24, eni={"allocate": "prefixes"})
    observed = cloud(eni(0, 9), eni(1, 9), eni(2, 6))
    at = find_pool_status(desired, observed)
    assert (at.stock.held, at.shortfall) == (24, 24)
    assert explain_pool(desired, at)[-1] == "so: 24 - 24 to be exchanged = 0 < 24: grow by 24"
    reasons = {a.reason for a in domain.plan(desired, observed).actions}
    assert all(r.startswith("pool holds 0 of 24 addresses besides 24") for r in reasons), reasons


def test_the_verdict_of_a_pool_that_only_grows_is_as_short_as_it_was() -> None:
    desired = wanted(24)
    at = find_pool_status(desired, cloud(eni(0, 3)))
    assert explain_pool(desired, at)[-1] == "so: 3 < 24: grow by 21"


def test_what_a_type_allows_leaves_the_primary_out_where_pods_may_not_use_it() -> None:
    desired = wanted(27, eni={"usePrimary": False})
    told = refusals(desired, cloud(eni(0, 0), eni(1, 9), eni(2, 9)))["PoolLimitReached"]
    assert "m5.large allows (3 ENIs - the primary) x 9 = 18" in told.message


def test_what_a_type_allows_counts_prefixes_by_their_addresses() -> None:
    desired = wanted(999, eni={"allocate": "prefixes"})
    blocks = list(SUBNET.subnets(new_prefix=28))[:9]
    full = [eni(i, 0, prefixes=tuple(blocks)) for i in range(3)]
    told = refusals(desired, cloud(*full))["PoolLimitReached"]
    assert "m5.large allows 3 ENIs x 9 x 16 = 432" in told.message


def test_single_addresses_in_the_slots_that_prefixes_need_are_said_to_be_there() -> None:
    """Else "27 held, 40 cannot be had: 3 ENIs x 9 x 16 = 432; lower warmPool" is told."""
    desired = wanted(40, eni={"allocate": "prefixes"})
    full = cloud(eni(0, 9), eni(1, 9), eni(2, 9))
    told = refusals(desired, full)["PoolLimitReached"].message
    assert "40 addresses wanted, 27 held (27 of them to be exchanged" in told
    assert "= 432; but 27 single addresses take slots that prefixes need" in told
    assert "warmPool" not in told


def test_where_the_limit_of_enis_binds_no_other_zone_s_subnet_is_blamed() -> None:
    both = (subnet(), subnet("subnet-b", "us-east-1b"))
    desired = wanted(40, eni={"subnets": ["subnet-a", "subnet-b"]})
    full = [eni(i, 9) for i in range(3)]
    assert list(refusals(desired, cloud(*full, subnets=both))) == ["PoolLimitReached"]
    # Where there is room for an ENI and no subnet for it, the subnets are the reason.
    away = wanted(40, eni={"subnets": ["subnet-b"]})
    assert "PoolLimitReached" not in refusals(away, cloud(eni(0, 9), subnets=both))
    assert "SubnetRejected" in refusals(away, cloud(eni(0, 9), subnets=both))


def test_where_a_full_subnet_binds_the_limit_of_enis_is_not_blamed() -> None:
    desired = wanted(27)
    observed = cloud(eni(0, 9), eni(1, 9), eni(2, 5), subnets=(subnet(free=0),))
    assert list(refusals(desired, observed)) == ["SubnetExhausted"]
    # Both bind: four slots are left, and ten are missing.
    more = refusals(wanted(33), observed)
    assert set(more) == {"SubnetExhausted", "PoolLimitReached"}


def test_lowering_the_warm_pool_is_advised_only_where_it_helps() -> None:
    full = [eni(i, 9) for i in range(3)]
    idle = refusals(wanted(40, Demand(20)), cloud(*full))["PoolLimitReached"]
    assert "lower warmPool" in idle.message
    busy = refusals(wanted(0, Demand(27, 0, 3)), cloud(*full))["PoolLimitReached"]
    assert "warmPool" not in busy.message
    assert "larger instance type" in busy.message
    by_document = refusals(wanted(0, Demand(9, 0, 3), eni={"max": 1}), cloud(eni(0, 9)))
    assert "raise eni.max" in by_document["PoolLimitReached"].message


def test_addresses_in_the_wrong_subnet_are_said_to_be_there() -> None:
    both = (subnet(), subnet("subnet-b"))
    desired = wanted(24, Demand(18), eni={"subnets": ["subnet-b"]})
    observed = cloud(eni(0, 0), eni(1, 9), eni(2, 9), subnets=both)
    told = refusals(desired, observed)["PoolLimitReached"]
    assert "18 held (18 of them on 2 ENIs in subnet-a, not to be used)" in told.message
    assert "drain the node" in told.message


def test_addresses_on_a_primary_that_pods_may_not_use_are_said_to_be_there() -> None:
    desired = wanted(27, Demand(18), eni={"usePrimary": False})
    told = refusals(desired, cloud(eni(0, 4), eni(1, 9), eni(2, 9)))["PoolLimitReached"]
    assert "22 held (4 of them on the primary ENI, not to be used)" in told.message


def test_a_denied_call_is_named_with_what_the_role_needs() -> None:
    backoffs = CallBackoffs().after_failure(
        "CreateNetworkInterface", "UnauthorizedOperation", "no", now=0.0, chance=1.0
    )
    desired = domain.desire(
        inputs(
            1,
            document=document(warmPool={"addresses": {"warm": 0, "minimum": 18}}),
            ec2=Ec2Inputs(backoffs=backoffs, nonce="n"),
        )
    )
    told = refusals(desired, cloud(eni(0, 9)))["UnauthorizedOperation"]
    assert "CreateNetworkInterface denied: no" in told.message
    assert "allow ec2:CreateNetworkInterface to the node's role" in told.message


def test_hundreds_of_rejected_subnets_are_a_few_conditions() -> None:
    many = [
        Subnet(f"subnet-{n:03}", "us-east-1b", SUBNET, 9, tags=(("k", "v"),)) for n in range(400)
    ]
    desired = wanted(24, eni={"subnetTags": {"k": "v"}})
    found = domain.plan(desired, cloud(eni(0, 9), subnets=(subnet(), *many))).refusals
    assert len(found) == 8
    assert "392 more subnets" in found[0].message
