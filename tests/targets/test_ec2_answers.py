"""Whatever EC2 answers, in any field that is read: one object at most is left out, visibly.

The answers are made from the SDK's own model of EC2, and the fields that are read are found by
reading them, so a field that is read tomorrow is tried without a line more here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from answers import MACS, Path, Scripted, answers, model
from builders import SUBNET, attachment, document, inputs, node
from fake_cloud import FakeEc2, FakeImds
from fakes import FakeConntrack, FakeState

from reconciler.core.attachment import MAX_POD_ADDRESSES
from reconciler.domains import eni as domain
from reconciler.domains.inputs import Inputs
from reconciler.engine.converge import Outcome
from reconciler.errors import ApplyError, ObserveError
from reconciler.ipam.budget import CallBackoffs
from reconciler.ipam.cloud import INSTANCE_TAG, Cloud, Limits, retain
from reconciler.ipam.ec2_action import (
    AddEni,
    AssignAddresses,
    AssignPrefixes,
    AttachEni,
    Creation,
    DelegatePrefix,
)
from reconciler.ipam.release import unit_networks
from reconciler.ipam.sources import CONFIRM_S, Disagreements
from reconciler.node.gathering import complete
from reconciler.node.pool_controller import Given, PoolController
from reconciler.node.pool_schedule import PoolSchedule, Sources
from reconciler.targets.ec2.target import Ec2
from reconciler.targets.state.observation import decode_observation, encode_observation

RELEASING = {
    "unassign_private_ip_addresses",
    "detach_network_interface",
    "delete_network_interface",
}
MOST_TEXT = 1000
"""Characters of a condition; EC2's and metadata's own part of it is a fraction."""


class Absent:
    """Stands for no such field."""


MUTATIONS: dict[str, Callable[[], Any]] = {
    "absent": Absent,
    "null": lambda: None,
    "empty text": str,
    "empty list": list,
    "empty object": dict,
    "text": lambda: "x",
    "number": lambda: 7,
    "zero": lambda: 0,
    "negative": lambda: -1,
    "fraction": lambda: 1.5,
    "infinite": lambda: float("inf"),
    "true": lambda: True,
    "false": lambda: False,
    "list of null": lambda: [None],
    "list of text": lambda: ["x"],
    "list of empty objects": lambda: [{}],
    "object": lambda: {"x": "y"},
    "nested": lambda: nested(500),
    "huge number": lambda: 10**400,
    "huge text": lambda: "x" * (1 << 20),
    "huge list": lambda: [{}] * 100_000,
    "not ascii": lambda: "né\u0000\n\u202e\x1b[31m",
    "lone surrogate": lambda: "\ud800",
    "everything": lambda: "0.0.0.0/0",
    "everything of ipv6": lambda: "::/0",
    "another address": lambda: "203.0.113.7",
    "another mac": lambda: MACS[3],
}


def nested(depth: int) -> Any:
    found: Any = "x"
    for _ in range(depth):
        found = [found]
    return found


# -- a pool, and what is answered to it ----------------------------------------------------


class Journal:
    def record(self, creation: Creation) -> None:
        pass

    def forget(self, creation: Creation) -> None:
        pass


USED = tuple(map(ip_address, ("10.0.1.31", "10.0.1.32", "10.0.1.65", "10.0.1.49")))
ROUTED = {f"nn{a}": (a,) for a in USED}
"""All three pods have their routes."""

PODS = tuple(
    attachment(n, addresses=(a,), eni_id="eni-0" if n == 3 else "eni-1")
    for n, a in enumerate(USED)
)


def wanted(**parts: Any) -> Inputs:
    warm = {"addresses": {"warm": 0, "minimum": 34, "surplus": 0}}
    chosen = document(
        warmPool=warm,
        families=["ipv4", "ipv6"],
        eni={"allocate": "prefixes", "subnetTags": {"pods": "yes"}} | parts,
    )
    return inputs(0, document=chosen, node=node(primary_mac=MACS[0]))


class Life:
    """A pool that stands where it should, until an answer changes."""

    def __init__(self) -> None:
        self.now = 1e9
        self.caller = Scripted(answers())
        self.target = Ec2(
            "i-1", "us-east-1", Journal(), clock=lambda: self.now, caller=self.caller
        )
        state = FakeState()
        for pod in PODS:
            state.put(pod)
        self.controller = PoolController(
            state=state,
            ec2=self.target,
            imds=FakeImds(node(), FakeEc2([], Limits(3, 10), SUBNET)),
            conntrack=FakeConntrack(),
            binding=nullcontext(),
            schedule=PoolSchedule(lambda: self.now),
            sources=Sources(lambda: self.now),
            now=lambda: self.now,
            chance=lambda: 0.0,
        )
        self.document, self.metadata = wanted(), metadata()
        self.before = self.look()
        assert isinstance(self.before.observed, Cloud)
        assert self.before.settled, self.before.remaining
        self._expected = self.controller.sources.expected

    def begin_anew(self) -> None:
        """All was well a moment ago, and neither limits nor subnets have been asked for yet."""
        self.controller.sources.disagreements = Disagreements()
        self.controller.schedule.calls = CallBackoffs()
        self.controller.sources.expected = self._expected
        self.target._limits.clear()
        self.target._subnets._described = None
        self.caller.asked.clear()

    def look(self) -> Outcome:
        given = Given(self.document, self.controller.state.observe(), ROUTED)
        return self.controller.run(given, self.metadata)


def metadata() -> frozenset[Any]:
    bodies = answers()["describe_network_interfaces"]["NetworkInterfaces"]
    found = {
        (b["MacAddress"], ip_network(a["PrivateIpAddress"]))
        for b in bodies
        for a in b["PrivateIpAddresses"][1:]
    }
    for b in bodies:
        found |= {(b["MacAddress"], ip_network(p["Ipv4Prefix"])) for p in b["Ipv4Prefixes"]}
        found |= {(b["MacAddress"], ip_network(p["Ipv6Prefix"])) for p in b["Ipv6Prefixes"]}
    return frozenset(found)


def fields_read() -> set[Path]:
    """Every field that a look reads, of the first object of each kind."""
    life = Life()
    life.target = Ec2("i-1", "us-east-1", Journal(), caller=life.caller)
    life.controller.ec2 = life.target
    life.caller.track = True
    life.look()
    return life.caller.touched


def fields_of(method: str) -> list[Path]:
    """Fields of an answer that are read; of lists in an ENI, those of the first two entries."""
    found = {p for p in fields_read() if p[0] == method}
    inner = {p for p in found if all(i <= 1 for i in p[3:] if isinstance(i, int))}
    return sorted(inner, key=str)


def changed(path: Path, value: Any) -> dict[str, Any]:
    """The answers with one field changed."""
    told = answers()
    spot: Any = told
    for part in path[:-1]:
        spot = spot[part]
    if isinstance(value, Absent):
        spot.pop(path[-1], None)
    else:
        spot[path[-1]] = value
    return told


def texts(outcome: Outcome) -> Iterator[str]:
    for refusal in outcome.remaining.refusals:
        yield from (refusal.subject, refusal.reason, refusal.message)
    yield from map(str, outcome.errors)
    yield from map(str, outcome.remaining.actions)


def shown(cloud: Cloud) -> set[Any]:
    return {(e.eni_id, n) for e in cloud.enis if e.serves_pods for n in unit_networks(e)}


def check(life: Life, outcome: Outcome, what: str) -> None:
    """What holds whatever was answered."""
    assert not RELEASING & life.caller.asked.keys(), f"{what}: something was given back"
    assert all(isinstance(e, ObserveError | ApplyError) for e in outcome.errors), what
    reasons = {r.reason for r in outcome.remaining.refusals}
    assert "AddressLost" not in reasons, f"{what}: metadata has it, or it cannot be read"
    for text in texts(outcome):
        assert len(text) <= MOST_TEXT, f"{what}: {len(text)} characters"
        assert text.isprintable(), f"{what}: {text!r}"
    if not isinstance(outcome.observed, Cloud):
        assert outcome.errors, what
        return
    before = life.before.observed
    assert isinstance(before, Cloud)
    if shown(before) - shown(outcome.observed):
        visible = (
            outcome.remaining.refusals or outcome.errors or life.controller.sources.disagreements
        )
        assert visible, f"{what}: it vanished and nothing says so"
    kept = retain(before, outcome.observed, MACS)
    assert {"eni-0", "eni-1"} <= {e.eni_id for e in kept.enis}, f"{what}: pods lost their ENI"
    assert sum(len(e.pod_addresses) for e in kept.enis) < 10_000, what
    body = json.dumps(encode_observation(wanted().node, kept))
    assert len(body) < 1 << 18, what
    decode_observation(json.loads(body))


@pytest.mark.parametrize(
    "method", ["describe_network_interfaces", "describe_subnets", "describe_instance_types"]
)
def test_no_field_of_a_look_can_end_it_or_have_anything_given_back(method: str) -> None:
    paths = fields_of(method)
    assert len(paths) >= 5
    life = Life()
    for path in paths:
        for name, make in MUTATIONS.items():
            life.begin_anew()
            life.caller.told = changed(path, make())
            what = f"{'.'.join(map(str, path))} {name}"
            life.now += 1.0
            check(life, outcome := life.look(), what)
            if outcome.observed != life.before.observed:
                life.now += CONFIRM_S + 1.0  # after which what no source shows is lost
                check(life, life.look(), what)


def test_every_field_that_is_read_exists() -> None:
    operations = {
        "describe_network_interfaces": "DescribeNetworkInterfaces",
        "describe_subnets": "DescribeSubnets",
        "describe_instance_types": "DescribeInstanceTypes",
        "get_subnet_cidr_reservations": "GetSubnetCidrReservations",
    }
    for path in fields_read():
        shape = model().operation_model(operations[str(path[0])]).output_shape
        for part in path[1:]:
            shape = shape.member if isinstance(part, int) else shape.members[part]


ACTIONS: dict[str, Any] = {
    "create_network_interface": AddEni(
        "i-1",
        Creation(
            token="t",
            device_index=2,
            subnet_id="subnet-a",
            security_groups=("sg-1",),
            addresses=1,
            prefixes=0,
            tags=((INSTANCE_TAG, "i-1"),),
            at=1e9,
        ),
        "test",
    ),
    "attach_network_interface": AttachEni("eni-2", "i-1", 2, "test"),
    "assign_private_ip_addresses": AssignAddresses("eni-1", "subnet-a", "test", 1),
    "assign_ipv6_addresses": DelegatePrefix("eni-1", "subnet-a", "test"),
}


@pytest.mark.parametrize("method", ACTIONS)
def test_no_field_of_an_answer_to_a_change_can_end_it(method: str) -> None:
    caller = Scripted(answers())
    caller.track = True
    target = Ec2("i-1", "us-east-1", Journal(), caller=caller)
    assert target.apply([ACTIONS[method]]) == ()
    paths = [p for p in caller.touched if p[0] == method]
    assert paths
    for path in sorted(paths, key=str):
        for name, make in MUTATIONS.items():
            caller = Scripted(changed(path, make()))
            target = Ec2("i-1", "us-east-1", Journal(), caller=caller)
            failures = target.apply([ACTIONS[method]])
            what = f"{'.'.join(map(str, path))} {name}"
            assert all(isinstance(f, ApplyError) for f in failures), what
            assert all(len(str(f)) <= MOST_TEXT and str(f).isprintable() for f in failures), what
            caller.told = answers()
            cloud = target.observe([domain.desire(wanted())])
            assert all(len(e.pod_addresses) < 1000 for e in cloud.enis), what


def test_an_answer_to_a_change_that_cannot_be_read_may_have_happened() -> None:
    caller = Scripted(answers() | {"assign_private_ip_addresses": {"AssignedIpv4Prefixes": 3}})
    target = Ec2("i-1", "us-east-1", Journal(), caller=caller)
    (failure,) = target.apply([AssignPrefixes("eni-1", "subnet-a", "test", 1)])
    assert failure.reason == "AnswerLost"
    assert failure.retryable


def test_an_eni_that_ec2_leaves_out_is_not_lost_while_metadata_shows_it() -> None:
    life = Life()
    life.caller.told["describe_network_interfaces"]["NetworkInterfaces"].pop()
    for later in (1.0, 40.0, 200.0):
        life.now += later
        check(life, life.look(), "an ENI is left out")
    assert {n for _, n in life.controller.sources.disagreements.missing}
    assert not life.controller.sources.disagreements.lost


def test_nothing_is_lost_while_metadata_cannot_be_read() -> None:
    life = Life()
    ours = life.caller.told["describe_network_interfaces"]["NetworkInterfaces"][1]
    ours["PrivateIpAddresses"] = ours["PrivateIpAddresses"][:1]
    for witness, lost in ((None, 0), (frozenset(), 2)):
        life.metadata = witness
        for later in (1.0, 40.0):
            life.now += later
            life.look()
        assert len(life.controller.sources.disagreements.lost) == lost


def test_while_routes_without_end_lead_to_one_link_every_address_counts_as_used() -> None:
    """Any of them may be a pod's then, so none is given back."""
    life = Life()
    enis = life.before.observed.enis
    ours = {a for e in enis if e.serves_pods for a in e.pod_addresses}
    for count, is_endless in ((1, False), (MAX_POD_ADDRESSES + 1, True)):
        routes = {"nnother": tuple(ip_address("192.0.2.1") + n for n in range(count))}
        after = complete(life.document, life.controller.state.observe(), routes, enis)
        assert (ours <= after.ec2.used) is is_endless
