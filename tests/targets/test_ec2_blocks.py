"""Free blocks of subnets, and reservations: asked about only where prefixes depend on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from answers import Scripted, answers, interface
from targets.test_ec2_look import look, subnets, target, wanted

from reconciler.domains import eni as domain
from reconciler.ipam import pool_plan
from reconciler.ipam.budget import CallBackoffs
from reconciler.ipam.ec2_action import AssignAddresses, AssignPrefixes
from reconciler.targets.ec2.caller import Ec2CallError
from reconciler.targets.ec2.calls import PAGE_SIZE
from reconciler.targets.ec2.subnets import MAX_NEIGHBOURS
from reconciler.targets.ec2.target import Ec2


def refused(ec2: Ec2, caller: Any) -> Ec2:
    """Let EC2 refuse a block of the subnet once, so that blocks are counted there."""
    caller.refuses = "InsufficientCidrBlocks"
    (failure,) = ec2.apply([AssignPrefixes("eni-0", "subnet-a", "test", count=1)])
    assert failure.reason == caller.refuses
    caller.refuses = ""
    return ec2


def test_blocks_are_counted_only_where_ec2_has_refused_one() -> None:
    """Counting looks at every ENI in the subnet, of all nodes; EC2 refuses for nothing."""
    caller = Scripted(answers())
    desired = domain.desire(wanted(90, eni={"allocate": "prefixes"}))
    ec2 = target(caller)
    most = ec2.observe([desired]).subnets["subnet-a"].blocks
    assert most
    before = caller.asked["describe_network_interfaces"]
    assert before == 1, "what is attached here, and nothing else"
    refused(ec2, caller)
    assert ec2.drain()[0] == (), "it is planned anew at once, on what is counted"
    ec2.observe([desired])
    attached, free, counting = 1, 1, 1
    after = caller.asked["describe_network_interfaces"]
    assert after - before == attached + free + counting
    refused(ec2, caller)
    ((failure,), _) = ec2.drain()
    assert failure.scope == "prefixes:subnet-a"


RESERVATIONS = "get_subnet_cidr_reservations"


def with_little(told: dict[str, Any], free: int = 5, **cidrs: str) -> dict[str, Any]:
    """Leave few addresses free in the subnet, and reserve some by type."""
    subnets(told)[0]["AvailableIpAddressCount"] = free
    found = [{"ReservationType": kind, "Cidr": cidr} for kind, cidr in cidrs.items()]
    told[RESERVATIONS] = {"SubnetIpv4CidrReservations": found, "SubnetIpv6CidrReservations": []}
    return told


def test_reservations_are_asked_for_only_where_prefixes_may_depend_on_them() -> None:
    told = with_little(answers(), prefix="10.0.1.128/25")
    for free, parts, times in ((5, {"allocate": "prefixes"}, 1), (5, {}, 0)):
        caller = Scripted(with_little(answers(), free, prefix="10.0.1.128/25"))
        target(caller).observe([domain.desire(wanted(90, eni=parts))])
        assert caller.asked[RESERVATIONS] == times
    told["describe_subnets"]["Subnets"][0] |= {
        "CidrBlock": "10.0.0.0/20",
        "AvailableIpAddressCount": 3000,
    }
    caller = Scripted(told)
    desired = domain.desire(wanted(90, eni={"allocate": "prefixes"}))
    ec2 = target(caller)
    ec2.observe([desired])
    assert caller.asked[RESERVATIONS] == 0, "more is free than this node could want"
    (subnet,) = refused(ec2, caller).observe([desired]).subnets.values()
    assert (caller.asked[RESERVATIONS], subnet.blocks_apart) == (1, True), "EC2 has refused one"


@pytest.mark.parametrize(
    "answer",
    [
        {"ReservationType": "prefix", "Cidr": "10.0.1.128/99"},
        {"ReservationType": "other", "Cidr": "10.0.1.128/25"},
        {"ReservationType": "prefix"},
    ],
)
def test_reservations_that_cannot_be_read_are_not_known(answer: dict[str, str]) -> None:
    told = with_little(answers())
    told[RESERVATIONS]["SubnetIpv4CidrReservations"] = [answer]
    cloud, _ = look(told, 90, eni={"allocate": "prefixes"})
    (subnet,) = cloud.subnets.values()
    assert "cannot be read" in subnet.reservations_unknown
    assert not subnet.blocks_apart


def test_without_the_right_to_ask_for_reservations_a_full_subnet_says_so() -> None:
    """Nothing else changes: the subnet is used as if it had none, and the call has a backoff."""

    class Denied(Scripted):
        def __call__(self, operation: str, method: str, arguments: dict[str, Any]) -> Any:
            if method == RESERVATIONS:
                self.asked[method] += 1
                raise Ec2CallError(operation, "UnauthorizedOperation", "test", refused=True)
            return super().__call__(operation, method, arguments)

    caller = Denied(with_little(answers(), 0))
    ec2 = target(caller)
    now = wanted(200, eni={"allocate": "prefixes"})
    plan = domain.plan(domain.desire(now), ec2.observe([domain.desire(now)]))
    (issue,) = [r for r in plan.refusals if r.reason == "SubnetExhausted"]
    assert "allow ec2:GetSubnetCidrReservations to the node's role" in issue.message
    ((failure, *_), _) = ec2.drain()
    resting = CallBackoffs().after_failure(
        failure.scope, failure.code, failure.message, now=now.clock, chance=1.0
    )
    now = replace(now, ec2=replace(now.ec2, backoffs=resting))
    before = caller.asked[RESERVATIONS]
    ec2.suppose(ec2.told())
    cloud = ec2.observe([domain.desire(now)])
    assert caller.asked[RESERVATIONS] == before
    assert "UnauthorizedOperation" in cloud.subnets["subnet-a"].reservations_unknown


def test_more_enis_in_a_subnet_than_can_be_counted_leave_its_blocks_unknown() -> None:
    """A page more for each 100 of them would use up the node's budget of calls for the look."""

    class Crowded(Scripted):
        def __call__(self, operation: str, method: str, arguments: dict[str, Any]) -> Any:
            answer = super().__call__(operation, method, arguments)
            if "subnet-id" not in str(arguments.get("Filters")) or method == "describe_subnets":
                return answer
            return answer | {"NextToken": f"t{sum(self.asked.values())}"}

    caller = Crowded(answers())
    desired = domain.desire(wanted(90, eni={"allocate": "prefixes"}))
    cloud = refused(target(caller), caller).observe([desired])
    assert caller.asked["describe_network_interfaces"] <= MAX_NEIGHBOURS // PAGE_SIZE + 2
    assert cloud.subnets["subnet-a"].blocks is None
    plan = domain.plan(desired, cloud)
    told = next(r for r in plan.refusals if r.reason == "AnswerUnreadable")
    assert (told.subject, "does not end" in told.message) == ("subnet subnet-a", True)
    # Single addresses stand in, and nothing that is held is exchanged for them.
    assert [a for a in plan.actions if isinstance(a, AssignAddresses)]
    assert pool_plan.quarantine(desired, cloud) == frozenset()


def test_an_eni_of_others_that_cannot_be_read_leaves_its_subnet_s_blocks_unknown() -> None:
    told = answers()
    told["describe_network_interfaces"]["NetworkInterfaces"].append(
        interface(3, Ipv4Prefixes=[{"Ipv4Prefix": "0.0.0.0/0"}])
    )
    caller = Scripted(told)
    desired = domain.desire(wanted(30, eni={"allocate": "prefixes"}))
    cloud = refused(target(caller), caller).observe([desired])
    assert cloud.subnets["subnet-a"].blocks is None
