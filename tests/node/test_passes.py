"""The whole node in one process, on a clock that a test moves: hours in a second."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from ipaddress import ip_network
from typing import Any

import pytest
from builders import SUBNET, document, eni, intent, key, node
from fake_cloud import FakeEc2
from fakes import (
    CrashError,
    FakeState,
)
from simulation import Simulation

from reconciler.core.attachment import Cooling, Intent
from reconciler.core.datapath import host_network
from reconciler.diagnostics.stock_objects import Sighting, StockRoute, StockRule
from reconciler.domains.link import PodLink, Veth
from reconciler.domains.route import Route
from reconciler.domains.rule import Rule
from reconciler.domains.sysctl import Sysctl
from reconciler.engine.converge import Observed, actions_of
from reconciler.engine.plan import Change, Verb
from reconciler.errors import Issue, NotReadyError, ObserveError
from reconciler.ipam.cloud import Cloud, Limits, Unread
from reconciler.ipam.records import SetAside
from reconciler.ipam.release import RELEASED_WAIT_S
from reconciler.node.pass_result import PassResult

HOUR_S = 3600.0


def in_a_small_subnet(end: int, limits: Limits, clock: Callable[[], float]) -> FakeEc2:
    """Return EC2 whose subnet has no free address from number ``end`` on."""
    taken = {SUBNET[i] for i in range(end, 255)}
    return FakeEc2([eni(0, 0, primary=SUBNET[10])], limits, SUBNET, taken, clock=clock)


@pytest.mark.parametrize("source", ["EC2", "IMDS"])
def test_46_hours_of_a_short_list_release_nothing_and_are_one_condition(source: str) -> None:
    """amazon-vpc-cni-k8s #3824, to the hour."""
    pool = {"prefixes": {"warm": 1}, "cooldown": "0s"}
    sim = Simulation(warmPool=pool, eni={"allocate": "prefixes"})
    for number in range(40):
        sim.start_pod(number)
    for _ in range(3):
        sim.turn()
    (only,) = sim.ec2.enis
    assert len(only.prefixes) == 4
    if source == "EC2":
        sim.ec2.hidden = {only.prefixes[1]}
    else:
        sim.imds.empty = True
    for number in range(38):
        sim.end_pod(number)
    sim.turn()
    sim.refusals.clear()
    for _ in range(46 * 12):
        sim.turn()
        assert set(only.prefixes) <= set(sim.ec2.enis[0].prefixes)
    assert "UnassignPrivateIpAddresses" not in sim.ec2.log
    assert set(sim.refusals) == {"SourcesDisagree"}
    sim.ec2.hidden, sim.imds.empty = set(), False
    for _ in range(3):
        sim.turn()
    assert len(sim.ec2.enis[0].prefixes) <= 3
    living = {own for a in sim.state.observe().attachments for own in a.addresses}
    assert living <= sim.ec2.holds()


@pytest.mark.parametrize("which", range(6))
@pytest.mark.parametrize(
    "witness", ["a record", "a route", "a rest", "a connection", "a torn record"]
)
def test_what_any_one_witness_says_is_used_is_not_given_back(witness: str, which: int) -> None:
    """Each alone: a pod just bound has no route yet, a lost record still has one, and so on."""
    sim = Simulation(warmPool={"addresses": {"warm": 2, "surplus": 0}, "cooldown": "10s"})
    for number in range(6):
        sim.start_pod(number)
    for _ in range(3):
        sim.turn(1.0)
    held = sim.state.observe().attachments
    assert len(held) == 6
    (own,) = held[which].addresses
    kernel = [
        o
        for o in sim.netlink.observe([])
        if witness != "a route"
        or not (
            (isinstance(o, Veth) and o.name == held[which].veth)
            or (isinstance(o, Route) and o.destination == host_network(own))
        )
    ]
    state: list[Any] = [*held, *(intent(number) for number in range(6))]
    sim.netlink.apply([Change(Verb.DELETE, o, "test") for o in kernel])
    sim.state.apply([Change(Verb.DELETE, o, "test") for o in state])
    match witness:
        case "a record":
            sim.state.apply([Change(Verb.CREATE, held[which], "test")])
        case "a rest":
            rest = Cooling(own, sim.now + HOUR_S)
            sim.state.apply([Change(Verb.CREATE, rest, "test")])
        case "a torn record":
            torn = SetAside("/run/x/a.json", sim.now + HOUR_S, frozenset({own}))
            sim.state.observe = partial(_with_torn, sim.state.observe, torn)  # type: ignore[method-assign]
        case "a connection":
            sim.conntrack.addresses = {own}
            sim.conntrack.apply = lambda _: ()  # type: ignore[method-assign]
    for _ in range(8):
        sim.turn_pool()
        sim.now += 300.0
    assert len(sim.ec2.holds()) < 8, "what nobody uses goes"
    assert own in sim.ec2.holds()


def _with_torn(observe: Any, torn: SetAside, desired: Any = ()) -> Any:
    return replace(observe(desired), set_aside=(torn,))


def test_the_last_look_of_another_instance_is_none() -> None:
    """A disk that was copied with an image has the records of the instance it was made of."""
    sim = Simulation()
    sim.state.remember(node(instance_id="i-another"), Cloud((eni(0), eni(1)), Limits(3, 10), {}))
    sim.start()
    assert sim.node.known.cloud is not None
    sim.node.pool.learn()
    assert sim.node.known.cloud is None
    with pytest.raises(NotReadyError):
        sim.node.kernel_pass(sim.document)
    sim.turn()
    assert [e.eni_id for e in sim.node.known.cloud.enis] == ["eni-0"]


def test_an_address_rests_until_no_connection_is_left() -> None:
    sim = Simulation(warmPool={"addresses": {"warm": 2}, "cooldown": "10s"})
    sim.turn()
    sim.start_pod(1)
    sim.turn(1.0)
    (held,) = sim.state.observe().attachments
    sim.conntrack.addresses = set(held.addresses)
    sim.conntrack.apply = lambda _: ()  # type: ignore[method-assign]  # they will not end
    sim.end_pod(1)
    for _ in range(5):
        sim.turn(20.0)
    assert [c.address for c in sim.state.observe().cooling] == [*held.addresses]
    del sim.conntrack.apply
    sim.turn(1.0)
    sim.turn(1.0)
    assert sim.state.observe().cooling == ()


def test_what_was_released_is_not_bound_again_though_an_old_answer_shows_it() -> None:
    """#3887: the address was given to the next pod, and to another node by EC2."""
    sim = Simulation(warmPool={"addresses": {"warm": 9, "surplus": 0}, "cooldown": "0s"})
    for _ in range(2):
        sim.turn()
    before = set(sim.ec2.enis[0].secondaries)
    sim.document = document(warmPool={"addresses": {"warm": 2, "surplus": 0}, "cooldown": "0s"})
    sim.turn(1.0)
    released = before - set(sim.ec2.enis[0].secondaries)
    assert released
    sim.ec2.restart()  # another process, which was not told
    sim.ec2.lag = 1
    sim.node.pool.run(sim.document)
    for number in range(6):
        sim.start_pod(number)
    sim.node.kernel_pass(sim.document)
    bound = {own for a in sim.state.observe().attachments for own in a.addresses}
    assert bound
    assert not bound & released


@pytest.mark.parametrize("dies", [False, True], ids=["answer heard", "answer lost"])
def test_a_release_that_was_refused_for_an_hour_is_withheld_as_long_as_any_other(
    dies: bool,
) -> None:
    """Its quarantine is old when EC2 takes the addresses; the next observation is older still."""
    sim = Simulation(warmPool={"addresses": {"warm": 9, "surplus": 0}, "cooldown": "0s"})
    for _ in range(2):
        sim.turn()
    before = set(sim.ec2.enis[0].secondaries)
    sim.document = document(warmPool={"addresses": {"warm": 2, "surplus": 0}, "cooldown": "0s"})
    for _ in range(12):
        sim.ec2.fault = ("before", "RequestLimitExceeded")
        sim.turn(300.0)
    assert before == set(sim.ec2.enis[0].secondaries)
    assert sim.state.observe().quarantined
    if dies:
        sim.ec2.fault = ("crash after", "")
        with pytest.raises(CrashError):
            sim.node.pool.run(sim.document)
    else:
        sim.turn(1.0)
        sim.turn(1.0)
    released = before - set(sim.ec2.enis[0].secondaries)
    assert released
    sim.ec2.restart()  # another process, which was not told
    sim.start()
    sim.ec2.lag = 1
    sim.document = document(warmPool={"addresses": {"warm": 9, "surplus": 0}, "cooldown": "0s"})
    for _ in range(4):
        sim.node.pool.run(sim.document)
        for number in range(6):
            sim.start_pod(number)
        sim.node.kernel_pass(sim.document)
        sim.now += 25.0
    bound = {own for a in sim.state.observe().attachments for own in a.addresses}
    assert bound
    assert not bound & released


def test_pods_that_come_after_a_release_get_at_once_what_ec2_gives_again() -> None:
    """EC2 picks the lowest free addresses: those that were given back a moment ago."""
    only = in_a_small_subnet(20, Limits(1, 10), lambda: sim.now)
    pool = {"warm": 6, "surplus": 0}
    sim = Simulation(only, warmPool={"addresses": pool, "cooldown": "0s"})
    sim.turn(1.0)
    sim.turn(100.0)
    given_before = set(only.enis[0].secondaries)
    sim.document = document(warmPool={"addresses": pool | {"warm": 0}, "cooldown": "0s"})
    for _ in range(3):
        sim.turn(1.0)
    assert only.enis[0].secondaries == ()
    for number in range(4):
        sim.start_pod(number)
    for _ in range(3):
        sim.turn(1.0)
    bound = {own for a in sim.state.observe().attachments for own in a.addresses}
    assert len(bound) == 4
    assert bound <= given_before
    assert not {q.network for q in sim.state.observe().quarantined} & set(map(host_network, bound))


def test_no_address_that_a_new_eni_was_created_with_stays_in_quarantine() -> None:
    only = in_a_small_subnet(22, Limits(2, 5), lambda: sim.now)
    pool = {"warm": 8, "surplus": 0}
    sim = Simulation(only, warmPool={"addresses": pool, "cooldown": "0s"})

    def turn(seconds: float) -> None:
        sim.turn(seconds)
        for each in only.enis[1:]:
            if each.status == "attaching":
                sim.netlink.plug(each.mac, "eth1")
            if each.status == "detaching":
                sim.netlink.unplug(each.mac)
        only.settle()

    for _ in range(3):
        turn(100.0)
    assert len(only.enis) == 2
    sim.document = document(warmPool={"addresses": pool | {"warm": 0}, "cooldown": "0s"})
    for _ in range(8):
        turn(1.0)
    assert len(only.enis) == 1
    for number in range(7):
        sim.start_pod(number)
    for _ in range(2):
        turn(1.0)
    _, created = only.enis
    given = {host_network(a) for a in created.secondaries}
    assert len(given) == 3
    assert not given & {q.network for q in sim.state.observe().quarantined}


def test_what_ec2_gives_again_serves_pods_when_it_may_and_is_not_released_for_ever() -> None:
    """A subnet has nothing but what was just released, so EC2 gives exactly that again."""
    only = in_a_small_subnet(20, Limits(1, 10), lambda: sim.now)
    pool = {"warm": 6, "surplus": 0}
    sim = Simulation(only, warmPool={"addresses": pool, "cooldown": "0s"})
    sim.turn(1.0)
    sim.turn(100.0)
    sim.document = document(warmPool={"addresses": pool | {"warm": 0}, "cooldown": "0s"})
    for _ in range(3):
        sim.turn(1.0)
    assert only.enis[0].secondaries == ()
    before = Counter(only.calls)
    for number in range(4):
        sim.start_pod(number)
    for _ in range(int(RELEASED_WAIT_S) + 5):
        sim.turn(1.0)
    assert len(sim.state.observe().attachments) == 4
    spent = Counter(only.calls) - before
    changes = {name: n for name, n in spent.items() if not name.startswith("Describe")}
    assert sum(changes.values()) <= 4, changes


def test_a_subnet_given_to_prefixes_falls_back_and_returns() -> None:
    taken = {SUBNET[i] for i in range(16, 255, 16)}
    state = FakeState()
    only = eni(0, 0, primary=SUBNET[10])
    fragmented = FakeEc2([only], Limits(3, 10), SUBNET, taken, journal=state)
    parts = {"warmPool": {"addresses": {"warm": 5}}, "eni": {"allocate": "prefixes"}}
    sim = Simulation(fragmented, **parts)
    for _ in range(3):
        sim.turn()
    assert sim.ec2.enis[0].prefixes == ()
    assert len(sim.ec2.enis[0].secondaries) >= 5
    sim.ec2._taken.clear()
    for _ in range(4):
        sim.turn()
    assert [p.prefixlen for p in sim.ec2.enis[0].prefixes] == [28]
    assert sim.ec2.enis[0].prefixes[0].subnet_of(ip_network("10.0.1.0/24"))
    assert sim.ec2.enis[0].secondaries == ()


def test_a_pass_for_some_pods_leaves_nothing_to_do_for_them_and_touches_no_other() -> None:
    sim = Simulation(warmPool={"addresses": {"warm": 6}, "cooldown": "0s"})
    for _ in range(2):
        sim.turn()
    for number in (1, 2, 3):
        sim.start_pod(number)
    result = sim.node.pods_pass(frozenset({key(1), key(2)}))
    assert result.done.keys() == {key(1), key(2)}
    assert {a.key for a in sim.state.observe().attachments} == {key(1), key(2)}
    sim.end_pod(1)
    # Somebody breaks the second one; who only serves the first neither sees nor mends it.
    veth = sim.netlink.links().pods[key(2)]
    (route,) = (o for o in sim.netlink.observe([]) if isinstance(o, Route) and o.device == veth)
    sim.netlink.apply([Change(Verb.DELETE, route, "test")])
    sim.node.pods_pass(frozenset({key(1)}))
    assert key(1) not in sim.netlink.links().pods
    assert key(1) not in {a.key for a in sim.state.observe().attachments}
    assert route not in sim.netlink.observe([])
    sim.node.kernel_pass(sim.document, audit=False)
    assert route in sim.netlink.observe([])
    assert sim.node.kernel_pass(sim.document).settled


def test_a_pod_may_get_the_inode_of_a_namespace_whose_del_no_pass_has_come_to() -> None:
    """The kernel uses inodes again; a pass for the new pod alone reads who had this one."""
    sim = Simulation()
    sim.turn()
    sim.start_pod(1)
    sim.turn()
    (old,) = sim.state.observe().attachments
    sim.end_pod(1)
    sim.netlink.namespaces.add("/run/netns/later@1")
    new = intent(2, netns="/run/netns/later", netns_inode=1)
    sim.state.put(new)
    first = sim.node.pods_pass([new.key])
    assert (first.done, first.waiting, first.settled) == ({}, {}, False)
    assert sim.node.pods_pass([new.key]).done.keys() == {new.key}
    (bound,) = sim.state.observe().attachments
    assert not set(bound.addresses) & set(old.addresses)


def test_a_link_that_was_removed_is_whole_again_without_an_audit() -> None:
    """A new pair has a pod's end without address and routes, and nothing in there tells."""
    sim = Simulation()
    sim.turn()
    sim.start_pod(1)
    sim.turn(1.0)
    inside = PodLink("/run/netns/pod1@1", "eth0", "", 0)
    before = sim.netlink.observe([inside])
    veth = next(o for o in before if isinstance(o, Veth))
    sim.netlink.apply([Change(Verb.DELETE, veth, "test")])
    result = sim.node.kernel_pass(sim.document, audit=False)
    assert sim.netlink.observe([inside]) == before
    assert {a.kind for _, a in actions_of(result.outcomes)} > {"veth", "address", "route"}


def test_nobody_is_served_before_everything_was_looked_at() -> None:
    sim = Simulation()
    sim.start_pod(1)
    with pytest.raises(NotReadyError):
        sim.node.pods_pass(frozenset({key(1)}))


def started_again(sim: Simulation) -> Intent:
    """The container of pod 1 in another namespace, wanted before its DEL was worked off."""
    sim.netlink.lose_namespace("/run/netns/pod1@1")
    sim.netlink.namespaces.add("/run/netns/later@2")
    (old,) = sim.state.observe().attachments
    sim.state.put(replace(old, netns_alive=False))
    new = intent(1, netns="/run/netns/later", netns_inode=2)
    sim.state.put(new)
    return new


@pytest.mark.parametrize("alone", [False, True], ids=["everything", "this pod alone"])
def test_a_container_that_is_started_again_gets_all_of_it_anew(alone: bool) -> None:
    """Never a half of each: the former address rests, and the new pair is whole."""
    sim = Simulation()
    sim.turn()
    sim.start_pod(1)
    sim.turn()
    (old,) = sim.state.observe().attachments
    new = started_again(sim)

    def turn() -> PassResult:
        if alone:
            return sim.node.pods_pass(frozenset({new.key}))
        return sim.node.kernel_pass(sim.document)

    first = turn()
    assert first.done == {}, "nothing of the new sandbox is in place yet"
    assert not first.settled, "and so nobody may rest"
    second = turn()
    (bound,) = sim.state.observe().attachments
    assert second.done == {new.key: bound}
    assert bound.netns == "/run/netns/later@2"
    assert bound.addresses != old.addresses
    assert [c.address for c in sim.state.observe().cooling] == [*old.addresses]
    assert turn().settled


@pytest.mark.parametrize("alone", [False, True], ids=["everything", "this pod alone"])
def test_a_link_of_another_owner_in_the_pod_is_told_at_once(alone: bool) -> None:
    sim = Simulation()
    sim.turn()
    sim.start_pod(1)
    netns = "/run/netns/pod1@1"
    sim.netlink.replace(PodLink(netns, "eth0", "02:00:00:00:00:09", 1500))
    key = intent(1).key
    keys = frozenset({key})
    seen = sim.node.pods_pass(keys) if alone else sim.node.kernel_pass(sim.document)
    assert seen.done == {}
    assert seen.waiting[key].reason == "InterfaceExists"
    theirs = {o for o in sim.netlink._objects.values() if getattr(o, "netns", "") == netns}
    assert {o.kind for o in theirs} == {PodLink.kind}, "nothing of ours beside their link"


def test_a_check_changes_nothing_and_names_the_first_that_differs() -> None:
    sim = Simulation()
    key = intent(1).key
    with pytest.raises(NotReadyError):
        sim.node.check(key)
    sim.turn()
    assert isinstance(missing := sim.node.check(key), Issue)
    assert missing.reason == "NotAttached"
    sim.start_pod(1)
    sim.turn()
    (bound,) = sim.state.observe().attachments
    assert sim.node.check(key) == bound
    sim.netlink.lose_namespace("/run/netns/pod1@1")
    sim.netlink.namespaces.add("/run/netns/pod1@1")
    for _ in range(2):
        assert isinstance(found := sim.node.check(key), Issue)
        assert (found.reason, found.subject) == ("Differs", f"veth {bound.veth}")
    sim.state.put(replace(bound, netns_alive=False))
    assert isinstance(gone := sim.node.check(key), Issue)
    assert gone.subject == "namespace /run/netns/pod1@1"


def test_an_attachment_whose_intent_is_lost_is_released_once_its_pod_is_gone_for_certain() -> None:
    sim = Simulation(warmPool={"addresses": {"warm": 2}, "cooldown": "0s"})
    sim.turn(1.0)
    sim.start_pod(1)
    sim.turn(1.0)
    (held,) = sim.state.observe().attachments
    sim.state.apply([Change(Verb.DELETE, intent(1), "somebody has cleaned up")])
    sim.turn(60.0)
    assert sim.state.observe().attachments == (held,), "its pod runs"
    sim.netlink.lose_namespace("/run/netns/pod1@1")
    sim.state.put(replace(held, netns_alive=False))
    sim.turn(5.0)
    assert sim.state.observe().attachments != (), "not on a moment's absence"
    sim.turn(6.0)
    sim.turn(1.0)
    records = sim.state.observe()
    assert (records.attachments, records.intents) == ((), ())


def test_an_address_of_the_stock_plugins_pod_is_not_given_while_another_is_released() -> None:
    """The release comes after a second observation at the records, which binds as well."""
    first = replace(eni(0, 3, primary=SUBNET[10]))
    sim = Simulation(FakeEc2([first], Limits(1, 4), SUBNET))
    taken = host_network(first.secondaries[0])
    sim.remains.sighting = Sighting(
        rules=(StockRule(512, 254, destination=taken),),
        routes=(StockRoute(254, taken, "eni0123456789a"),),
    )
    sim.start_pod(1)
    sim.start_pod(2)
    sim.turn()
    sim.end_pod(1)
    sim.start_pod(3)
    sim.turn()
    bound = {own: a.key for a in sim.state.observe().attachments for own in a.addresses}
    assert bound == {first.secondaries[2]: key(2)}


@pytest.mark.parametrize("trouble", ["no primary", "a pod's ENI cannot be read"])
def test_a_first_look_that_lacks_what_pods_need_is_none(trouble: str) -> None:
    """The daemon starts without a look of before: no route of a running pod goes for it."""
    sim = Simulation(warmPool={"addresses": {"warm": 0, "minimum": 12, "surplus": 0}})
    for _ in range(3):
        sim.turn()
    sim.netlink.plug(sim.ec2.enis[1].mac, "eth1")
    for number in range(12):
        sim.start_pod(number)
    sim.turn(1.0)
    pods = sim.state.observe().attachments
    assert {a.eni_id for a in pods} == {e.eni_id for e in sim.ec2.enis}
    before = sim.netlink.observe(())
    whole = sim.ec2.observe
    first, second = sim.ec2.enis

    def partly(desired: Any = ()) -> Any:
        cloud = whole(desired)
        if trouble == "no primary":
            return replace(cloud, enis=tuple(e for e in cloud.enis if not e.is_primary))
        left = tuple(e for e in cloud.enis if e.is_primary)
        return replace(cloud, enis=left, unread=(Unread("eni", second.eni_id, "test"),))

    sim.ec2.observe = partly  # type: ignore[method-assign]
    sim.state._look = None
    sim.start()
    for _ in range(3):
        sim.node.pool.run(sim.document)
        with suppress(NotReadyError):
            sim.node.kernel_pass(sim.document)
        sim.now += 60.0
    assert sim.netlink.observe(()) == before
    del sim.ec2.observe
    sim.turn(1.0)
    assert sim.netlink.observe(()) == before
    assert first.eni_id in {e.eni_id for e in sim.node.known.cloud.enis}


@pytest.mark.parametrize("look", [0, 1])
@pytest.mark.parametrize("is_told", [True, False], ids=["by a DEL", "without a DEL"])
def test_a_pod_that_leaves_during_a_pass_is_not_rebuilt_and_raises_no_alarm(
    look: int, is_told: bool
) -> None:
    """The pass has read that it is wanted; then its namespace goes, and the link with it."""
    sim = Simulation(warmPool={"addresses": {"warm": 3}}, pods={"repair": "all"})
    for number in (1, 2):
        sim.start_pod(number)
    sim.turn()
    sim.turn()
    sim.netlink._objects = {
        k: o for k, o in sim.netlink._objects.items() if not isinstance(o, Rule)
    }  # so that there is a second observation
    looks = iter(range(99))
    observe = sim.netlink.observe

    def leave(desired: Any) -> Any:
        if next(looks) == look:
            if is_told:
                sim.end_pod(1)
            else:
                sim.netlink.lose_namespace("/run/netns/pod1@1")
                (record,) = [a for a in sim.state.observe().attachments if a.key == key(1)]
                sim.state.put(replace(record, netns_alive=False))
        return observe(desired)

    sim.netlink.observe = leave  # type: ignore[method-assign]
    result = sim.node.kernel_pass(sim.document)
    assert next(looks) > look
    assert [e for o in result.outcomes.values() for e in o.errors] == []
    made = [str(a) for _, a in actions_of(result.outcomes) if a.kind != Rule.kind]
    assert made == []
    assert {a.key for a in result.records.living} >= {key(2)}


def test_a_link_that_somebody_took_from_a_pod_that_stays_is_made_anew() -> None:
    sim = Simulation(warmPool={"addresses": {"warm": 3}})
    sim.start_pod(1)
    sim.turn()
    (veth,) = [o for o in sim.netlink._objects.values() if isinstance(o, Veth)]
    sim.netlink._remove(veth)
    sim.turn()
    assert veth in sim.netlink._objects.values()


def test_settings_of_the_host_that_cannot_be_read_are_not_taken_for_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sim = Simulation()
    sim.turn()
    why = ObserveError("the host's sysctls", "Input/output error")
    unread = Observed(unread_kinds={Sysctl: why})
    monkeypatch.setattr(sim.environment.sysctl, "observe", lambda _: unread)
    outcomes = sim.node.kernel_pass(sim.document).outcomes
    for name in ("sysctl", "source-check"):
        assert outcomes[name].errors == (why,)
        assert outcomes[name].plan.actions == ()
