"""What an observation of EC2 makes of an instance: whose ENI is which, and what cannot serve."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from answers import MACS, Scripted, answers, interface, merged
from builders import document, inputs, node

from reconciler.diagnostics.explain import explain_pool
from reconciler.domains import eni as domain
from reconciler.domains.inputs import Inputs
from reconciler.errors import ObserveError
from reconciler.ipam import pool_plan
from reconciler.ipam.budget import CallBackoffs
from reconciler.ipam.cloud import Cloud, Limits, OtherCard
from reconciler.ipam.ec2_action import AddEni
from reconciler.ipam.pool_status import find_pool_status
from reconciler.targets.ec2.caller import Ec2CallError
from reconciler.targets.ec2.calls import PAGE_SIZE
from reconciler.targets.ec2.subnets import MAX_SUBNETS
from reconciler.targets.ec2.target import MAX_ENIS, Ec2
from reconciler.targets.state.observation import decode_observation, encode_observation


class Journal:
    def record(self, creation: Any) -> None:
        pass

    def forget(self, creation: Any) -> None:
        pass


def wanted(minimum: int = 0, **parts: Any) -> Inputs:
    warm = {"addresses": {"warm": 0, "minimum": minimum, "surplus": 0}}
    return inputs(0, document=document(warmPool=warm, **parts), node=node(primary_mac=MACS[0]))


def target(caller: Any) -> Ec2:
    return Ec2("i-1", "us-east-1", Journal(), caller=caller)


def look(told: dict[str, Any], minimum: int = 0, **parts: Any) -> tuple[Cloud, Any]:
    """One look at such answers, and what is planned on it."""
    desired = domain.desire(wanted(minimum, **parts))
    cloud = target(Scripted(told)).observe([desired])
    return cloud, domain.plan(desired, cloud)


def enis(told: dict[str, Any]) -> list[Any]:
    return told["describe_network_interfaces"]["NetworkInterfaces"]  # type: ignore[no-any-return]


def subnets(told: dict[str, Any]) -> list[Any]:
    return told["describe_subnets"]["Subnets"]  # type: ignore[no-any-return]


def efa_only(**attachment: Any) -> dict[str, Any]:
    """As EC2 shows it: no address, and on each further card there may be one at index 0."""
    where = interface(3)["Attachment"] | {"DeviceIndex": 0, "NetworkCardIndex": 1} | attachment
    fields = {"InterfaceType": "efa-only", "Attachment": where, "TagSet": []}
    body = interface(3, PrivateIpAddresses=[], **fields)
    del body["PrivateIpAddress"]
    return body


@pytest.mark.parametrize("first", [True, False])
def test_the_primary_eni_is_the_one_that_metadata_names(first: bool) -> None:
    told = answers()
    enis(told).insert(0 if first else 2, efa_only())
    cloud, plan = look(told, 30)
    assert cloud.primary is not None
    assert cloud.primary.eni_id == "eni-0"
    assert {e.eni_id for e in cloud.enis} == {"eni-0", "eni-1"}
    assert "eni-3" not in str([str(a) for a in plan.actions])


def test_device_index_0_alone_makes_no_eni_ours() -> None:
    told = answers()
    enis(told).append(efa_only(NetworkCardIndex=0))
    cloud, _ = look(told)
    (efa,) = [e for e in cloud.enis if e.eni_id == "eni-3"]
    assert (efa.owned, efa.is_primary) == (False, False)


def test_an_eni_on_another_card_takes_no_place_on_the_first() -> None:
    told = answers()
    enis(told).append(efa_only())
    (info,) = told["describe_instance_types"]["InstanceTypes"]
    info["NetworkInfo"] |= {
        "MaximumNetworkInterfaces": 6,
        "NetworkCards": [
            {"NetworkCardIndex": 1, "MaximumNetworkInterfaces": 3},
            {"NetworkCardIndex": 0, "MaximumNetworkInterfaces": 3},
        ],
    }
    theirs = {"DeviceIndex": 2, "NetworkCardIndex": 1}
    more = [{"PrivateIpAddress": "10.0.1.91"}]
    enis(told).append(
        interface(2, more=more, TagSet=[], Attachment=interface(2)["Attachment"] | theirs)
    )
    cloud, plan = look(told, 60)
    assert cloud.limits == Limits(3, 10)
    assert cloud.other_cards == (
        OtherCard("eni-3", 1, 0, "efa-only"),
        OtherCard("eni-2", 1, 2, "interface"),
    )
    assert "10.0.1.91" not in {str(a) for e in cloud.enis for a in e.pod_addresses}
    (creation,) = [a.creation for a in plan.actions if isinstance(a, AddEni)]
    assert creation.device_index == 2


@pytest.mark.parametrize("index", [None, "1", 1 << 20])
def test_what_cannot_be_read_of_an_eni_on_another_card_is_not_shown_and_nothing_else(
    index: object,
) -> None:
    told = answers()
    enis(told).append(efa_only(DeviceIndex=index) | {"InterfaceType": ["?"]})
    cloud, _ = look(told)
    assert (cloud.other_cards, cloud.unread) == ((OtherCard("eni-3", 1, None, ""),), ())


def test_an_eni_with_our_tag_on_another_card_is_named_and_kept() -> None:
    told = answers()
    enis(told)[1]["Attachment"]["NetworkCardIndex"] = 1
    cloud, plan = look(told)
    assert [e.eni_id for e in cloud.enis] == ["eni-0"]
    assert [(r.subject, r.reason) for r in plan.refusals] == [("eni eni-1", "AnswerUnreadable")]


@pytest.mark.parametrize("kind", ["trunk", "branch", "natGateway", "another"])
def test_an_eni_of_a_kind_that_cannot_serve_is_never_ours(kind: str) -> None:
    told = answers()
    enis(told)[1]["InterfaceType"] = kind
    cloud, _ = look(told)
    assert [(e.eni_id, e.owned) for e in cloud.enis] == [("eni-0", True), ("eni-1", False)]


def test_the_vpc_is_the_primary_s_and_not_the_first_interface_s() -> None:
    """ENIs of other VPCs can be attached (EC2 user guide, "Multi-VPC ENI attachments")."""
    told = answers()
    enis(told).insert(0, interface(2, VpcId="vpc-2", SubnetId="subnet-z", TagSet=[]))
    other = {"SubnetId": "subnet-z", "VpcId": "vpc-2", "AvailableIpAddressCount": 200}
    subnets(told).append(merged(subnets(told)[0], other))
    caller = Scripted(told)
    desired = domain.desire(wanted(90, eni={"subnetTags": {"pods": "yes"}}))
    cloud = target(caller).observe([desired])
    asked = [f for f in caller.filters if f["Name"] == "vpc-id"]
    assert asked == [{"Name": "vpc-id", "Values": ["vpc-1"]}]
    # And even what is listed by name goes to no other VPC.
    named = domain.desire(wanted(90, eni={"subnets": ["subnet-z", "subnet-a"]}))
    for pool in (desired, named):
        plan = domain.plan(pool, replace(cloud, limits=Limits(4, 30)))
        made = [a.creation.subnet_id for a in plan.actions if isinstance(a, AddEni)]
        assert made == ["subnet-a"]


def ipv6_only(told: dict[str, Any], number: int = 2) -> None:
    """An ENI in a subnet of IPv6 alone: neither has a field of IPv4."""
    body = interface(number, SubnetId="subnet-6", PrivateIpAddresses=[])
    del body["PrivateIpAddress"]
    enis(told).append(body)
    native = merged(subnets(told)[0], {"SubnetId": "subnet-6", "CidrBlock": None})
    subnets(told).append(native | {"Ipv6Native": True, "AvailableIpAddressCount": 0})


@pytest.mark.parametrize("allocate", ["addresses", "prefixes"])
def test_an_eni_and_a_subnet_of_ipv6_alone_are_seen_and_serve_nobody(allocate: str) -> None:
    told = answers()
    ipv6_only(told)
    (info,) = told["describe_instance_types"]["InstanceTypes"]
    info["NetworkInfo"]["NetworkCards"][0]["MaximumNetworkInterfaces"] = 4
    named = {"subnets": ["subnet-6", "subnet-a"], "allocate": allocate}
    cloud, plan = look(told, 70, eni=named)
    assert [(e.eni_id, e.owned) for e in cloud.enis][2] == ("eni-2", False)
    assert cloud.subnets["subnet-6"].families == ("ipv6",)
    assert cloud.unread == ()
    made = [a.creation.subnet_id for a in plan.actions if isinstance(a, AddEni)]
    assert set(made) <= {"subnet-a"}
    cloud, plan = look(told, 70, eni=named, families=["ipv6"])
    assert not [a for a in plan.actions if "subnet-6" in str(a)]


def test_a_primary_eni_of_ipv6_alone_is_said_to_be_the_trouble() -> None:
    told = answers()
    del enis(told)[0]["PrivateIpAddress"]
    enis(told)[0]["PrivateIpAddresses"] = []
    cloud, plan = look(told)
    assert cloud.primary is None
    assert plan.actions == ()
    assert {r.reason for r in plan.refusals} == {"PrimaryEniUnknown", "AnswerUnreadable"}
    assert "which a node needs" in " ".join(r.message for r in plan.refusals)


def test_a_look_without_the_primary_eni_changes_nothing_and_says_so() -> None:
    told = answers()
    del enis(told)[0]
    for parts in ({}, {"eni": {"allocate": "prefixes"}}, {"eni": {"subnetTags": {"a": "b"}}}):
        for minimum in (0, 30):
            cloud, plan = look(told, minimum, **parts)
            desired = domain.desire(wanted(minimum, **parts))
            assert pool_plan.quarantine(desired, cloud) == frozenset()
            assert plan.actions == ()
            assert [r.reason for r in plan.refusals] == ["PrimaryEniUnknown"]


def test_two_enis_with_one_mac_are_both_left_alone() -> None:
    told = answers()
    enis(told).append(interface(2, MacAddress=MACS[1]))
    cloud, plan = look(told)
    assert [e.eni_id for e in cloud.enis] == ["eni-0"]
    assert {u.name for u in cloud.unread} == {"eni-1", "eni-2"}
    assert "02:aa:00:00:00:01" in plan.refusals[0].message


# -- limits of the type -------------------------------------------------------------------


class Failing(Scripted):
    """Refuses DescribeInstanceTypes."""

    code = "InvalidInstanceType"

    def __call__(self, operation: str, method: str, arguments: dict[str, Any]) -> Any:
        if method == "describe_instance_types" and self.code:
            self.asked[method] += 1
            raise Ec2CallError(operation, self.code, "no", refused=True)
        return super().__call__(operation, method, arguments)


@pytest.mark.parametrize("code", ["InvalidInstanceType", "UnauthorizedOperation", "AnswerLost"])
def test_a_type_that_ec2_did_not_know_is_asked_for_again_one_day(code: str) -> None:
    caller = Failing(answers())
    caller.code = code
    pool = domain.desire(wanted(90))
    whole_enis = document(warmPool={"enis": {"warm": 0}})
    by_enis = domain.desire(replace(wanted(), document=whole_enis))
    now, asked = 0.0, []
    backoffs = CallBackoffs({})
    ec2 = Ec2("i-1", "us-east-1", Journal(), clock=lambda: now, caller=caller)
    for _ in range(24 * 12):
        pool = replace(pool, clock=now, ec2=replace(pool.ec2, backoffs=backoffs))
        before = caller.asked["describe_instance_types"]
        cloud = ec2.observe([pool])
        if caller.asked["describe_instance_types"] > before:
            asked.append(now)
        # Nothing else of the look suffers, and nothing is given back on it.
        assert cloud.limits is None
        assert len(cloud.enis) == 2
        assert pool_plan.quarantine(pool, cloud) == frozenset()
        assert pool_plan.quarantine(by_enis, cloud) == frozenset()
        plan = domain.plan(pool, cloud)
        assert "InstanceTypeUnknown" in {r.reason for r in plan.refusals}
        for f in ec2.drain()[0]:
            backoffs = backoffs.after_failure(f.scope, f.code, f.message, now=now, chance=1.0)
        now += 300.0
    assert len(asked) >= 24  # within a day
    assert code != "InvalidInstanceType" or len(asked) <= 40
    caller.code, now = "", now + 3600.0
    assert ec2.observe([replace(pool, clock=now)]).limits == Limits(3, 10)


# -- lists without an end -----------------------------------------------------------------


class Endless(Scripted):
    """Has always one page more."""

    def __init__(self, told: dict[str, Any], method: str, *, fresh: bool) -> None:
        super().__init__(told)
        self._method, self._fresh = method, fresh

    def __call__(self, operation: str, method: str, arguments: dict[str, Any]) -> Any:
        answer = super().__call__(operation, method, arguments)
        if method != self._method:
            return answer
        return answer | {"NextToken": f"t{self.asked[method] if self._fresh else 0}"}


@pytest.mark.parametrize("fresh", [True, False], ids=["new-tokens", "one-token"])
def test_a_list_of_enis_that_does_not_end_is_no_look(fresh: bool) -> None:
    method = "describe_network_interfaces"
    caller = Endless(answers(), method, fresh=fresh)
    with pytest.raises(ObserveError, match="does not end") as caught:
        target(caller).observe([domain.desire(wanted())])
    assert caught.value.reason == "AnswerTooLong"
    assert caller.asked[method] <= MAX_ENIS // PAGE_SIZE


def test_a_list_of_subnets_that_does_not_end_is_as_good_as_what_it_had() -> None:
    caller = Endless(answers(), "describe_subnets", fresh=True)
    cloud = target(caller).observe([domain.desire(wanted())])
    assert [e.eni_id for e in cloud.enis] == ["eni-0", "eni-1"]
    assert caller.asked["describe_subnets"] <= MAX_SUBNETS // PAGE_SIZE
    plan = domain.plan(domain.desire(wanted()), cloud)
    assert "does not end" in plan.refusals[0].message


def test_a_vpc_full_of_subnets_and_tags_is_a_small_look() -> None:
    """Of a subnet's tags only those of the selector are kept."""
    told = answers()
    tags = [{"Key": f"{n:03}" + "k" * 120, "Value": "v" * 256} for n in range(50)]
    pods = {"Key": "pods", "Value": "yes"}

    class Pages(Scripted):
        def __call__(self, operation: str, method: str, arguments: dict[str, Any]) -> Any:
            answer = super().__call__(operation, method, arguments)
            if "pods" not in str(arguments.get("Filters")):
                return answer
            page = int(arguments.get("NextToken", "0"))
            found = [
                merged(subnets(told)[0], {"SubnetId": f"subnet-{page}-{n}", "Tags": [*tags, pods]})
                for n in range(PAGE_SIZE)
            ]
            return {"Subnets": found} | ({"NextToken": str(page + 1)} if page < 4 else {})

    desired = domain.desire(wanted(90, eni={"subnetTags": {"pods": "yes"}}))
    cloud = target(Pages(told)).observe([desired])
    assert len(cloud.subnets) == 501
    body = encode_observation(wanted().node, cloud)
    assert len(json.dumps(body)) < 1 << 18
    assert body["subnets"]
    plan = domain.plan(desired, cloud)
    assert [a.creation.subnet_id for a in plan.actions if isinstance(a, AddEni)]
    assert all(len(str(a)) + len(a.reason) < 4000 for a in plan.actions)


def test_more_subnets_than_the_document_may_name_in_one_filter_are_asked_for_in_parts() -> None:
    """EC2 takes 200 values for a filter, and refuses the whole look for one more."""
    caller = Scripted(answers())
    names = [f"subnet-{n:03}" for n in range(450)] + ["subnet-a"]
    target(caller).observe([domain.desire(wanted(0, eni={"subnets": names}))])
    asked = [f["Values"] for f in caller.filters if f["Name"] == "subnet-id"]
    assert [len(values) for values in asked] == [200, 200, 51]


def test_a_thousand_free_enis_with_our_tag_take_no_look_away() -> None:
    """Somebody made them: those beyond the bound are left out, and nothing is given back."""

    class Many(Scripted):
        def __call__(self, operation: str, method: str, arguments: dict[str, Any]) -> Any:
            answer = super().__call__(operation, method, arguments)
            if "available" not in str(arguments.get("Filters")):
                return answer
            free = interface(2, Attachment=None, Status="available")
            return {
                "NetworkInterfaces": [free] * PAGE_SIZE,
                "NextToken": f"{sum(self.asked.values())}",
            }

    desired = domain.desire(wanted())
    ec2 = target(Many(answers()))
    ec2.know("m5.large", Limits(3, 10))  # or else they are the next observation's
    cloud = ec2.observe([desired])
    assert [e.eni_id for e in cloud.enis if e.device_index is not None] == ["eni-0", "eni-1"]
    assert cloud.unread_enis
    plan = domain.plan(desired, cloud)
    assert plan.actions == ()
    assert "AnswerUnreadable" in {r.reason for r in plan.refusals}


def test_a_condition_of_many_unread_objects_is_short() -> None:
    told = answers()
    told["describe_network_interfaces"]["NetworkInterfaces"] += [{"MacAddress": "x"}] * 90
    _, plan = look(told)
    unread = [r for r in plan.refusals if r.reason == "AnswerUnreadable"]
    assert len(unread) == 8
    assert "82 more" in unread[0].message


# -- what cannot be read is there ---------------------------------------------------------


def surplus(told: dict[str, Any], **fields: Any) -> tuple[Any, Cloud]:
    """A pool with 50 addresses where 0 are wanted, and all of the second ENI's quarantined."""
    networks = [*map(ip_network, ("10.0.1.48/28", "10.0.1.64/28", "10.0.1.31", "10.0.1.32"))]
    quarantined = frozenset((*networks, ip_network("2001:db8:1:0:1::/80")))
    now = wanted()
    desired = domain.desire(replace(now, ec2=replace(now.ec2, quarantined=quarantined)))
    return desired, target(Scripted(told)).observe([desired])


@pytest.mark.parametrize("known", [True, False], ids=["by-id", "not-even-an-id"])
def test_while_an_eni_cannot_be_read_nothing_is_given_back(known: bool) -> None:
    told = answers()
    enis(told)[0]["Ipv4Prefixes"] = [{"Ipv4Prefix": "10.0.1.48/28"}]
    enis(told).append(interface(2, TagSet=[]))
    desired, cloud = surplus(told)
    assert {type(a).__name__ for a in domain.plan(desired, cloud).actions} == {
        "ReleasePrefixes",
        "DetachEni",
    }
    enis(told)[2] |= {"Groups": "x"} | ({} if known else {"NetworkInterfaceId": 3})
    desired, cloud = surplus(told)
    assert domain.plan(desired, cloud).actions == ()
    assert pool_plan.quarantine(desired, cloud) <= desired.ec2.quarantined


def test_an_eni_that_cannot_be_read_takes_a_place_and_its_index() -> None:
    told = answers()
    (info,) = told["describe_instance_types"]["InstanceTypes"]
    info["NetworkInfo"]["NetworkCards"][0]["MaximumNetworkInterfaces"] = 4
    enis(told)[1]["Groups"] = "x"
    _, plan = look(told, 40)
    made = [a.creation.device_index for a in plan.actions if isinstance(a, AddEni)]
    assert made == [2, 3]
    enis(told).append(interface(2) | {"Groups": "x"})
    enis(told).append(interface(3) | {"Groups": "x"})
    _, plan = look(told, 900)
    assert not [a for a in plan.actions if isinstance(a, AddEni)]


def test_a_look_of_an_earlier_release_knows_its_primary_by_the_mac() -> None:
    cloud, _ = look(answers())
    body = json.loads(json.dumps(encode_observation(wanted().node, cloud)))
    for entry in body["enis"]:
        del entry["is_primary"]
    for entry in body["subnets"]:
        del entry["vpc_id"]
    _, known = decode_observation(body)
    assert [e.is_primary for e in known.enis] == [True, False]


def test_what_gc_cannot_read_or_sees_in_use_it_leaves_alone() -> None:
    class Free(Scripted):
        def __call__(self, operation: str, method: str, arguments: dict[str, Any]) -> Any:
            free = {"Attachment": None, "Status": "available"}
            bodies = [
                interface(1, **free),
                interface(2, **free) | {"TagSet": 3},
                interface(3, **free) | {"Status": "in-use"},
            ]
            return {"NetworkInterfaces": bodies, "NextToken": f"t{len(self.filters)}"}

    found = target(Free({})).leaked({"a": "b"})
    assert {e.eni_id for e in found} == {"eni-1"}


def test_explain_names_what_could_not_be_read() -> None:
    told = answers()
    enis(told)[1]["Groups"] = "x"
    desired = domain.desire(wanted())
    cloud = target(Scripted(told)).observe([desired])
    lines = explain_pool(desired, find_pool_status(desired, cloud))
    assert [li for li in lines if "eni eni-1" in li and "Groups is 'x'" in li]


def test_what_was_unread_of_a_subnet_is_not_believed_for_hours() -> None:
    caller = Scripted(answers())
    ec2, desired = target(caller), domain.desire(wanted(0, eni={"subnets": ["subnet-a"]}))
    caller.told["describe_subnets"]["Subnets"].append({"SubnetId": "subnet-b"})
    assert [u.name for u in ec2.observe([desired]).unread] == ["subnet-b"]
    caller.told = answers()
    assert ec2.observe([desired]).unread == ()


def test_a_selector_is_asked_about_as_soon_as_the_vpc_is_known() -> None:
    caller = Scripted(answers())
    ec2, desired = target(caller), domain.desire(wanted(0, eni={"subnetTags": {"pods": "yes"}}))
    (primary,) = [e for e in enis(caller.told) if e["NetworkInterfaceId"] == "eni-0"]
    enis(caller.told).remove(primary)
    ec2.observe([desired])
    assert not [f for f in caller.filters if f["Name"] == "vpc-id"]
    enis(caller.told).append(primary)
    ec2.observe([desired])
    assert [f["Values"] for f in caller.filters if f["Name"] == "vpc-id"] == [["vpc-1"]]
