"""What is the pod's own, and what is only known by its link, on a clock that a test moves."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from builders import SUBNET, attachment, document, eni, inputs, intent, key
from fakes import CrashError
from node.test_passes import Simulation

from reconciler.core.attachment import IntentState
from reconciler.daemon.agent import Agent
from reconciler.daemon.status import count_addresses
from reconciler.domains import attachment as domain
from reconciler.domains.address import LinkAddress
from reconciler.domains.link import PodLink, Veth
from reconciler.domains.neighbour import Neighbour
from reconciler.domains.route import Route
from reconciler.domains.rule import Rule
from reconciler.engine.backoff import Backoffs
from reconciler.engine.converge import Observed, actions_of
from reconciler.engine.plan import Verb
from reconciler.errors import Issue, ObserveError
from reconciler.ipam.records import Records, believe
from reconciler.node import views, visits
from reconciler.node.pass_result import Inspect, PassResult

POD = "/run/netns/pod1@1"
INSIDE = (LinkAddress, Route, Neighbour, PodLink)


def inspected(
    sim: Simulation, result: PassResult, *, is_regular: bool = False
) -> tuple[Issue, ...]:
    """What is said of all pods' namespaces after a pass."""
    result = replace(result, inspect=Inspect.SOME if is_regular else Inspect.ALL)
    found = sim.node.after.inspection.run(result, Backoffs()).pods
    assert found is not None
    return found


class House(Simulation):
    """A node with one pod that was answered."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.start_pod(1)
        self.turn()
        self.turn()
        (self.pod,) = self.state.observe().attachments
        assert self.objects(inside=True)

    def objects(self, *kinds: type, inside: bool) -> dict[Any, Any]:
        """What the kernel has of pods, in their namespaces or on the host."""
        return {
            identity: o
            for identity, o in self.netlink._objects.items()
            if isinstance(o, kinds or object)
            and (getattr(o, "netns", "") != "") is inside
            and (inside or self.pod.veth in (getattr(o, "device", ""), getattr(o, "name", "")))
        }

    def take_away(self, *kinds: type, inside: bool) -> int:
        """Somebody removes objects, but links, which are shut down."""
        gone = self.objects(*kinds, inside=inside)
        for identity, o in gone.items():
            if isinstance(o, PodLink | Veth):
                self.netlink._objects[identity] = replace(o, up=False)
            else:
                del self.netlink._objects[identity]
        return len(gone)

    def look(self, *, audit: bool = True) -> Any:
        self.now += 10.0
        return self.node.kernel_pass(self.document, audit=audit)

    def findings(self) -> dict[str, str]:
        return {f.reason: f.message for f in inspected(self, self.look())}


@pytest.mark.parametrize("kind", INSIDE)
@pytest.mark.parametrize("again", [False, True], ids=["running", "restarted"])
def test_after_add_was_answered_nothing_in_the_pods_namespace_is_put_back(
    kind: type, *, again: bool
) -> None:
    house = House()
    before = house.objects(inside=True)
    assert house.take_away(kind, inside=True)
    changed = house.objects(inside=True)
    if again:
        house.start()
        house.turn_pool()
    for audit in (True, False, True):
        result = house.look(audit=audit)
        assert actions_of(result.outcomes) == []
        assert result.settled
    assert house.objects(inside=True) == changed != before
    assert [str(a) for _, a in actions_of(views.diff(house.node, house.document))] == []
    assert "pod1/eth0" in house.findings()["ChangedByPod"]


def test_a_regular_audit_looks_into_some_pods_and_every_one_has_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(visits, "SHARE", 2)
    house = House()
    for number in range(2, 8):
        house.start_pod(number)
        house.turn()
    house.take_away(LinkAddress, inside=True)
    result = house.look()
    # One cannot be read: it is tried each time, and holds no other up.
    house.netlink.namespaces.discard(POD)
    known: list[int] = []
    for _ in range(4):
        house.now += 100.0
        told = {f.reason: f.message for f in inspected(house, result, is_regular=True)}
        assert "NamespaceUnreadable" in told
        known.append(told["ChangedByPod"].count("/eth0"))
    assert known == [1, 3, 5, 6]


@pytest.mark.parametrize("kind", INSIDE)
def test_the_document_may_ask_for_it(kind: type) -> None:
    house = House(pods={"repair": "all"})
    before = house.objects(inside=True)
    assert house.take_away(kind, inside=True)
    house.look()
    assert house.objects(inside=True) == before
    assert house.findings() == {}


@pytest.mark.parametrize("kind", [Route, Neighbour, Veth])
def test_what_the_host_has_of_the_pod_is_put_back_all_the_same(kind: type) -> None:
    house = House()
    house.take_away(LinkAddress, inside=True)
    inside, before = house.objects(inside=True), house.objects(inside=False)
    assert house.take_away(kind, inside=False)
    house.look(audit=False)
    assert house.objects(inside=False) == before
    assert house.objects(inside=True) == inside


def test_a_link_that_is_gone_is_made_anew_and_filled() -> None:
    house = House()
    before = house.objects(inside=True)
    (veth,) = house.objects(Veth, inside=False).values()
    house.netlink._remove(veth)
    assert not house.objects(inside=True)
    house.look(audit=False)
    assert house.objects(inside=True) == before


@pytest.mark.parametrize("kind", [LinkAddress, Route, Neighbour])
def test_a_crash_while_a_link_is_made_anew_leaves_nothing_half_done(kind: type) -> None:
    """The link is there again, and what belongs into the pod is not: the record must say so."""
    house = House()
    before = house.objects(inside=True)
    (veth,) = house.objects(Veth, inside=False).values()
    house.netlink._remove(veth)
    dying(house, kind)
    with pytest.raises(CrashError):
        house.look()
    house.start()
    house.turn_pool()
    house.look()
    assert house.objects(inside=True) == before


@pytest.mark.parametrize("whole", [True, False], ids=["full pass", "pass for pods"])
@pytest.mark.parametrize("kind", [PodLink, LinkAddress, Route, Neighbour])
def test_a_crash_between_binding_and_answer_leaves_an_add_that_is_finished_later(
    kind: type, *, whole: bool
) -> None:
    sim = Simulation()
    sim.turn()
    sim.start_pod(1)
    dying(sim, kind)
    with pytest.raises(CrashError):
        if whole:
            sim.node.kernel_pass(sim.document)
        else:
            sim.node.pods_pass(frozenset({key(1)}))
    (bound,) = sim.state.observe().attachments
    assert bound.unfinished
    sim.start()
    sim.turn_pool()
    result = sim.node.kernel_pass(sim.document, audit=False)
    assert result.done.keys() == {key(1)}
    (bound,) = sim.state.observe().attachments
    assert not bound.unfinished
    assert {type(o) for o in sim.netlink._objects.values() if getattr(o, "netns", "")} == {*INSIDE}


def dying(sim: Simulation, kind: type) -> None:
    """Let the process die at its first action inside a pod of some kind."""
    apply = sim.netlink.apply

    def die(actions: Any) -> Any:
        for action in actions:
            if isinstance(action.object, kind) and action.object.netns:
                sim.netlink.apply = apply  # type: ignore[method-assign]
                raise CrashError
            apply([action])
        return ()

    sim.netlink.apply = die  # type: ignore[method-assign,assignment]


@pytest.mark.parametrize("whole", [True, False], ids=["full pass", "pass for pods"])
def test_that_an_add_is_finished_is_on_record_before_it_is_answered(*, whole: bool) -> None:
    sim = Simulation()
    sim.turn()
    sim.start_pod(1)
    if whole:
        result = sim.node.kernel_pass(sim.document)
    else:
        result = sim.node.pods_pass(frozenset({key(1)}))
    assert result.done.keys() == {key(1)}
    (bound,) = sim.state.observe().attachments
    assert not bound.unfinished


@pytest.mark.parametrize("finished", [True, False])
def test_a_restarted_daemon_knows_which_adds_were_answered(
    tmp_path: Path, *, finished: bool
) -> None:
    """Who was told comes to no second answer; who was not is told when it asks again."""
    house = House()
    house.state.put(replace(intent(1), attempt="first"))
    house.state.put(replace(house.pod, unfinished=not finished))
    agent = Agent(tmp_path / "none.yaml", house.state, house.node.environment, events=False)
    agent._recall_answered()
    assert agent.parts.requests.was_answered(key(1), "first") is finished


def test_an_add_that_comes_again_is_given_everything_again() -> None:
    house = House()
    before = house.objects(inside=True)
    house.take_away(LinkAddress, Route, inside=True)
    house.node.pods_pass(frozenset({key(1)}))
    assert house.objects(inside=True) == before


# -- namespaces that cannot be read -------------------------------------------------------


def test_a_pod_that_cannot_be_read_is_named_and_holds_up_no_other() -> None:
    house = House()
    house.start_pod(2)
    house.netlink.namespaces.discard(POD)
    result = house.look()
    assert result.done.keys() == {key(2)}
    assert result.settled
    found = {(f.subject, f.reason) for f in inspected(house, result)}
    assert found == {("pod pod1/eth0", "NamespaceUnreadable")}
    assert house.objects(inside=False), "what the host has of it is kept"
    house.netlink.namespaces.add(POD)
    house.now += 100.0
    assert house.findings() == {}


def test_in_a_namespace_that_cannot_be_read_nothing_is_planned() -> None:
    """Not to be able to look is not to see nothing."""
    house = House(pods={"repair": "all"})
    inside = house.objects(inside=True)
    house.netlink.namespaces.discard(POD)
    result = house.look()
    assert actions_of(result.outcomes) == []
    assert house.objects(inside=True) == inside
    assert house.findings().keys() == {"NamespaceUnreadable"}


@pytest.mark.parametrize("kind", [Route, LinkAddress, Neighbour, Rule])
def test_a_table_that_cannot_be_read_fails_its_domain_alone(kind: type) -> None:
    house = House(pods={"repair": "all"})
    observe = house.netlink.observe
    house.take_away(Route, Neighbour, LinkAddress, inside=False)
    for identity, o in list(house.netlink._objects.items()):
        if isinstance(o, Rule):
            del house.netlink._objects[identity]

    def partly(desired: Any) -> Observed:
        seen = observe(desired)
        kept = [o for o in seen if not isinstance(o, kind)]
        return Observed(
            kept, unread_kinds={kind: ObserveError(f"the {kind.kind}s", "they change")}
        )

    house.netlink.observe = partly  # type: ignore[method-assign]
    outcomes = house.look().outcomes
    failed = {name for name, o in outcomes.items() if o.errors}
    assert failed == {kind.kind}  # a domain has its kind's name
    done = {a.kind for _, a in actions_of(outcomes)}
    assert kind.kind not in done
    assert done | {kind.kind} >= {"route", "neighbour", "rule"}
    house.netlink.observe = observe  # type: ignore[method-assign]
    house.look()
    assert house.look().settled


def test_a_released_pod_keeps_its_address_while_a_look_does_not_show_all_that_is_there() -> None:
    """Its link or route may be among what was not shown, and another pod be given its address."""
    house = House()
    observe = house.netlink.observe
    hidden = {o for o in observe([]) if isinstance(o, Route | Veth)}
    (bound,) = house.state.observe().attachments
    house.end_pod(1)

    def partly(desired: Any) -> Observed:
        return Observed(observe(desired) - hidden, cut_kinds={Route: "999 routes"})

    house.netlink.observe = partly  # type: ignore[method-assign]
    for _ in range(3):
        result = house.look()
        assert house.state.observe().attachments == (bound,)
    assert [f.reason for f in result.outcomes["route"].remaining.refusals] == ["TooMany"]
    house.netlink.observe = observe  # type: ignore[method-assign]
    house.look()
    assert house.state.observe().attachments == ()


def test_an_add_whose_namespace_cannot_be_read_rests_and_is_finished_when_it_can_be() -> None:
    sim = Simulation()
    sim.turn()
    sim.state.put(intent(1))
    looks: list[int] = []
    observe = sim.netlink.observe

    def counting(desired: Any) -> Any:
        desired = list(desired)
        looks.append(sum(isinstance(o, PodLink) for o in desired))
        return observe(desired)

    sim.netlink.observe = counting  # type: ignore[method-assign]
    for _ in range(20):
        result = sim.node.kernel_pass(sim.document, audit=False)
        assert result.done == {}
        sim.now += 0.5
    assert 3 <= sum(looks) <= 8, "each look is a bounded one, and they become seldom"
    assert sim.node.visits.readable_at(result.inputs)
    sim.netlink.namespaces.add(POD)
    sim.now += 100.0
    assert sim.node.kernel_pass(sim.document, audit=False).done.keys() == {key(1)}


def test_check_says_that_a_namespace_cannot_be_read() -> None:
    house = House()
    house.netlink.namespaces.discard(POD)
    verdict = house.node.check(key(1))
    assert verdict.reason == "NamespaceUnreadable"  # type: ignore[union-attr]


# -- addresses on the host ----------------------------------------------------------------


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_an_address_that_is_on_a_host_link_is_given_to_no_pod(family: str) -> None:
    block = ip_network("2001:db8:1:0:7::/80")
    (first, *_), enis = eni(0).secondaries, (eni(0, 9, ipv6_prefixes=(block,)),)
    own = first if family == "ipv4" else block[1]
    wanted = Records(tuple(intent(n) for n in range(3)))
    doc = document(families=[family])
    free = domain.plan(domain.desire(inputs(1, document=doc, enis=enis)), wanted)
    assert own in given(free)
    where = {ip_network(own): "it is on br0"}
    plan = domain.plan(domain.desire(inputs(1, document=doc, enis=enis, occupied=where)), wanted)
    assert len(given(plan)) == 3
    assert own not in given(plan)
    (said,) = [r for r in plan.refusals if r.reason == "AddressOnHost"]
    assert (said.subject, "br0" in said.message) == (f"address {own}", True)


def test_a_route_of_table_local_keeps_all_that_it_covers_from_pods() -> None:
    where = {ip_network("10.0.1.0/28"): "a route of type local in table local"}
    plan = domain.plan(
        domain.desire(inputs(1, occupied=where)), Records(tuple(intent(n) for n in range(9)))
    )
    assert given(plan)
    assert not [a for a in given(plan) if a in ip_network("10.0.1.0/28")]


def test_a_running_pod_whose_address_is_on_the_host_is_named() -> None:
    pod = attachment(1)
    records = Records((intent(1),), (pod,))
    where = {ip_network(pod.addresses[0]): "it is on eth0"}
    plan = domain.plan(
        domain.desire(inputs(1, (pod,), linked=frozenset({pod.key}), occupied=where)), records
    )
    (said,) = plan.refusals
    assert pod.pod in said.message or str(pod.key) in said.message
    assert plan.actions == ()


def given(plan: Any) -> set[Any]:
    return {
        own
        for a in plan.actions
        if a.verb is Verb.CREATE and a.kind == "attachment"
        for own in a.object.addresses
    }


def test_status_diff_and_audit_name_an_address_on_the_host_and_the_pool_makes_up_for_it() -> None:
    sim = Simulation(warmPool={"addresses": {"warm": 2, "surplus": 0}, "cooldown": "0s"})
    sim.turn()
    held = set(sim.ec2.enis[0].secondaries)
    assert len(held) == 2
    for own in held:
        sim.netlink.replace(LinkAddress("", "br0", own, 32))
    result = sim.node.kernel_pass(sim.document)
    conditions = result.outcomes["attachment"].remaining.refusals
    assert {r.reason for r in conditions} == {"AddressOnHost"}
    found = {f.reason for f in views.audit(sim.node, sim.document)}
    assert "AddressOnHost" in found
    assert any(
        r.reason == "AddressOnHost"
        for r in views.diff(sim.node, sim.document)["attachment"].plan.refusals
    )
    sim.turn()
    assert len(sim.ec2.enis[0].secondaries) == 4, "two are as good as gone"
    sim.start_pod(1)
    for _ in range(3):
        sim.turn()
    (bound,) = sim.state.observe().attachments
    assert not held & set(bound.addresses)
    assert held <= set(sim.ec2.enis[0].secondaries), "somebody uses them"


# -- links without a record ---------------------------------------------------------------


class Lost(House):
    """The record and the route of a pod are gone; its link is not."""

    def __init__(self, *, neighbour: bool = False) -> None:
        super().__init__(warmPool={"addresses": {"warm": 4}, "cooldown": "0s"})
        (self.own,) = self.pod.addresses
        self.take_away(Route, inside=False)
        if not neighbour:
            self.take_away(Neighbour, inside=False)
        self.state._records.clear()
        self.start()
        self.turn_pool()

    def bound(self) -> dict[Any, Any]:
        return {a.key: a.addresses for a in self.state.observe().attachments}


@pytest.mark.parametrize("witness", ["the host's neighbour", "the pod's link"])
@pytest.mark.parametrize("asked", [True, False], ids=["with an intent", "without"])
def test_a_pod_without_record_and_route_is_known_by_what_else_says_its_address(
    witness: str, *, asked: bool
) -> None:
    lost = Lost(neighbour=witness == "the host's neighbour")
    if witness == "the host's neighbour":
        lost.take_away(LinkAddress, inside=True)
    if asked:
        lost.state.put(intent(1))
    lost.start_pod(2)
    lost.turn()
    lost.turn()
    assert lost.bound()[key(1)] == (lost.own,)
    assert lost.own not in lost.bound()[key(2)]
    assert lost.objects(Veth, inside=False)


@pytest.mark.parametrize("what", ["nothing", "two that could be", "another pod's"])
def test_until_a_links_address_is_known_nothing_is_given_and_the_link_stays(what: str) -> None:
    lost = Lost()
    lost.take_away(LinkAddress, inside=True)
    others = [a for a in lost.ec2.enis[0].secondaries if a != lost.own]
    shown = {
        "nothing": [],
        "two that could be": [lost.own, others[0]],
        "another pod's": [others[0]],
    }
    for own in shown[what]:
        lost.netlink.replace(LinkAddress(POD, "eth0", own, 32))
    if what == "another pod's":
        lost.state.put(attachment(7, addresses=(others[0],), netns=""))
    lost.state.put(intent(1))
    lost.start_pod(2)
    for _ in range(3):
        result = lost.look()
        lost.turn_pool()
    assert lost.bound().keys() <= {key(7)}
    reasons = {r.subject: r.reason for r in result.outcomes["attachment"].remaining.refusals}
    assert reasons[f"intent {key(2)}"] == "AddressesUnknown"
    assert reasons[f"link {lost.pod.veth}"] == "AddressUnknown"
    assert lost.objects(Veth, inside=False), "no running pod is cut on doubt"
    assert lost.own in lost.ec2.enis[0].secondaries, "nothing is given back either"


def test_a_del_ends_a_link_whose_address_is_not_known() -> None:
    lost = Lost()
    lost.take_away(LinkAddress, inside=True)
    lost.state.put(intent(1, IntentState.RELEASED))
    lost.start_pod(2)
    lost.turn()
    lost.turn()
    assert not lost.objects(Veth, inside=False)
    assert lost.bound().keys() == {key(2)}


def test_what_a_pod_says_of_its_address_counts_only_if_it_can_be_no_other() -> None:
    one, other = SUBNET[11], SUBNET[12]
    enis = (eni(0),)
    stranger, local = ip_address("192.0.2.9"), ip_address("169.254.172.1")
    assert believe([one], enis, ()) == (one,)
    assert believe([stranger, one, local], enis, ()) == (one, local)
    assert believe([one, other], enis, ()) == ()
    assert believe([one, other], enis, {one}) == (other,)
    assert believe([one], enis, {one}) == ()
    assert believe([stranger], enis, ()) == ()
    assert believe([local], enis, ()) == ()


def test_an_address_on_the_host_is_not_given_back_to_ec2() -> None:
    """Somebody uses it; EC2 would drop their packets."""
    sim = Simulation(warmPool={"addresses": {"warm": 4, "surplus": 0}, "cooldown": "0s"})
    sim.turn()
    taken = set(sorted(sim.ec2.enis[0].secondaries)[-2:])
    for own in taken:
        sim.netlink.replace(LinkAddress("", "br0", own, 32))
    sim.document = document(warmPool={"addresses": {"warm": 0, "surplus": 0}, "cooldown": "0s"})
    for _ in range(4):
        sim.turn()
    assert set(sim.ec2.enis[0].secondaries) == taken


def test_an_exhausted_pool_says_how_many_addresses_are_on_the_host() -> None:
    where = dict.fromkeys((ip_network(a) for a in eni(0).secondaries[:2]), "it is on br0")
    wanted = Records(tuple(intent(n) for n in range(9)))
    plan = domain.plan(domain.desire(inputs(1, occupied=where)), wanted)
    exhausted = [r.message for r in plan.refusals if r.reason == "AddressesExhausted"]
    assert exhausted
    assert all("9 held" in text and "2 on the host" in text for text in exhausted)
    house = House()

    def count_free() -> int:
        occupied = house.look().inputs.host.occupied
        return count_addresses(house.state.observe(), house.node.known.cloud, occupied)[
            "allocatable"
        ]

    free = count_free()
    (unused, *_) = set(house.ec2.enis[0].secondaries) - set(house.pod.addresses)
    house.netlink.replace(LinkAddress("", "br0", unused, 32))
    assert count_free() == free - 1
