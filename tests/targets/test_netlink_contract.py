"""What the netlink target promises, of the real kernel and of the fake alike."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from builders import attachment, inputs
from conftest import namespace, plug
from fakes import FakeNetlink
from pyroute2 import IPRoute

from lab import netns
from reconciler.domains import address, link, neighbour, route, rule
from reconciler.domains.address import LinkAddress
from reconciler.domains.link import EniLink, PodLink, Veth
from reconciler.domains.neighbour import Neighbour
from reconciler.domains.route import Route
from reconciler.domains.rule import Rule
from reconciler.engine.converge import Observed
from reconciler.engine.plan import Change, Plan, Verb
from reconciler.targets.netlink.target import Netlink

ENI_MAC = "02:aa:00:00:00:01"
HOST_MAC = "02:00:00:00:00:01"
POD_MAC = "02:00:00:00:00:02"
KERNEL = (link, address, neighbour, route, rule)


@dataclass
class World:
    """A host with two ENIs, and a pod's namespace."""

    target: Any
    pod: str
    is_real: bool

    def put(self, *objects: Any) -> None:
        actions = [Change(Verb.CREATE, o, "test") for o in objects]
        assert self.target.apply(actions) == ()

    def remove(self, *objects: Any) -> tuple[Any, ...]:
        return self.target.apply([Change(Verb.DELETE, o, "test") for o in objects])

    def see(self, *desired: Any) -> frozenset[Any]:
        return self.target.observe([*desired, PodLink(self.pod, "eth0", "", 0)])

    def veth(self) -> tuple[Veth, PodLink]:
        alias = "node-network:pod/eth0"
        host = Veth("nnveth", HOST_MAC, 9001, alias, True, True, 20048, self.pod, "eth0", POD_MAC)
        return host, PodLink(self.pod, "eth0", POD_MAC, 9001, True, "nnveth")


@pytest.fixture(params=["fake", pytest.param("kernel", marks=pytest.mark.kernel)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "fake":
        fake = FakeNetlink(namespaces={"/run/netns/pod"})
        for index in (0, 1):
            fake.plug(f"02:aa:00:00:00:0{index}", f"eth{index}")
        yield World(fake, "/run/netns/pod", is_real=False)
        return
    with (
        namespace("home") as home,
        namespace("pod") as pod,
        namespace("vpc") as vpc,
        netns.inside(home),
    ):
        for index in (0, 1):
            plug(f"02:aa:00:00:00:0{index}", f"eth{index}", vpc)
        yield World(Netlink(), str(netns.path(pod)), is_real=True)


def test_an_eni_link_is_found_by_mac_and_brought_up(world: World) -> None:
    assert world.target.links().names[ENI_MAC] == "eth1"
    wanted = EniLink(ENI_MAC, "eth1", 9001, up=True)
    world.put(wanted)
    assert wanted in world.see(wanted)


def test_a_veth_pair_is_made_whole_and_seen_from_both_ends(world: World) -> None:
    host, pod = world.veth()
    world.put(host, pod)
    assert {host, pod} <= world.see()
    seen = next(o for o in world.see() if isinstance(o, PodLink))
    assert (seen.mac, seen.mtu, seen.up) == (POD_MAC, 9001, True)


@pytest.mark.parametrize("accepted", [True, False])
def test_a_pods_link_accepts_the_hosts_own_addresses_as_it_is_told(
    world: World, accepted: bool
) -> None:
    made, pod = world.veth()
    told = replace(made, accept_local=accepted)
    world.put(made, pod)
    world.target.apply([Change(Verb.UPDATE, told, "test", made)])
    assert told in world.see()
    world.put(pod)
    assert told in world.see()  # other settings leave it as it is


def test_a_pods_link_tells_whose_it_is_and_its_route_which_address_it_has(world: World) -> None:
    host, pod = world.veth()
    world.put(host, pod, Route("", 512, ip_network("10.0.1.9/32"), "nnveth"))
    links = world.target.links()
    assert links.pods == {("pod", "eth0"): "nnveth"}
    assert "nnveth" not in links.names.values()
    assert world.target.pod_addresses() == {"nnveth": (ip_address("10.0.1.9"),)}


def test_a_pair_that_exists_is_not_made_again(world: World) -> None:
    host, pod = world.veth()
    world.put(host, pod)
    (failure,) = world.target.apply([Change(Verb.CREATE, host, "again")])
    assert failure.reason == "EEXIST"


def test_a_pod_whose_namespace_is_gone_is_named_and_fails_alone(world: World) -> None:
    host, _ = world.veth()
    lost = replace(host, pod_netns="/run/netns/nnt-no-such")
    eni = EniLink(ENI_MAC, "eth1", 9001)
    failures = world.target.apply(
        [Change(Verb.CREATE, lost, "test"), Change(Verb.UPDATE, eni, "test", eni)]
    )
    assert [f.reason for f in failures] == ["ENOENT"]
    # Not to be able to look is not to see nothing: the pod may live on behind another path.
    seen = world.see(eni, PodLink("/run/netns/nnt-no-such", "eth0", "", 0))
    assert eni in seen
    assert isinstance(seen, Observed)
    (unread,) = seen.unread_places.values()
    assert unread.netns == "/run/netns/nnt-no-such"


def test_deleting_the_host_end_takes_everything_of_the_pod_with_it(world: World) -> None:
    host, pod = world.veth()
    gateway = ip_address("169.254.1.1")
    extras = [
        LinkAddress(world.pod, "eth0", ip_address("10.0.1.9"), 32),
        Neighbour(world.pod, "eth0", gateway, HOST_MAC),
        Route("", 512, ip_network("10.0.1.9/32"), "nnveth"),
        Route(world.pod, 254, ip_network("169.254.1.1/32"), "eth0"),
    ]
    world.put(host, pod, *extras)
    assert set(extras) <= world.see(*extras)
    assert world.remove(host) == ()
    assert not {host, pod, *extras} & world.see(*extras)


def test_deleting_what_is_gone_is_done(world: World) -> None:
    host, pod = world.veth()
    assert (
        world.remove(
            host,
            Route("", 512, ip_network("10.0.1.9/32"), "eth0"),
            Rule("ipv4", 1537, 1537, 1, 0xFF),
        )
        == ()
    )
    assert pod not in world.see()


def test_addresses_come_without_a_connected_route(world: World) -> None:
    wanted = LinkAddress("", "eth1", ip_address("10.0.1.14"), 24)
    world.put(EniLink(ENI_MAC, "eth1", 9001), wanted)
    assert wanted in world.see(wanted)
    if world.is_real:
        assert ip("route", "show", "dev", "eth1") == ""


def test_an_address_whose_connected_route_somebody_removed_is_as_desired(world: World) -> None:
    """To set the flag, the address would have to go, and with it every route over the link."""
    if not world.is_real:
        pytest.skip("the fake has no flags: it keeps addresses as they were put")
    world.put(EniLink(ENI_MAC, "eth1", 9001))
    wanted = LinkAddress("", "eth1", ip_address("10.0.1.14"), 24)
    ip("address", "add", "10.0.1.14/24", "dev", "eth1")
    assert replace(wanted, connected_route=True) in world.see(wanted)
    ip("route", "delete", "10.0.1.0/24", "dev", "eth1")
    assert wanted in world.see(wanted)
    # A /32 never has one, whatever its flags: that of a pod of the stock plugin's.
    ip("address", "add", "10.0.1.15/32", "dev", "eth1")
    other = LinkAddress("", "eth1", ip_address("10.0.1.15"), 32)
    assert other in world.see(wanted, other)


def test_routes_are_seen_as_they_were_written(world: World) -> None:
    world.put(EniLink(ENI_MAC, "eth1", 9001), LinkAddress("", "eth1", ip_address("10.0.1.14"), 24))
    wanted = [
        Route("", 1537, ip_network("10.0.1.1/32"), "eth1"),
        Route("", 1537, ip_network("0.0.0.0/0"), "eth1", ip_address("10.0.1.1")),
        Route("", 512, ip_network("10.0.1.77/32"), "eth1"),
    ]
    world.put(*wanted)
    assert set(wanted) <= world.see()
    assert world.remove(*reversed(wanted)) == ()
    assert not set(wanted) & world.see()


def test_a_source_is_seen_as_it_was_written_and_must_be_an_address_of_the_namespace(
    world: World,
) -> None:
    host, pod = world.veth()
    gateway, own = ip_address("169.254.1.1"), ip_address("10.0.1.9")
    next_hop = Route(world.pod, 254, ip_network("169.254.1.1/32"), "eth0")
    default = Route(world.pod, 254, ip_network("0.0.0.0/0"), "eth0", gateway, source=own)
    world.put(host, pod, next_hop)
    (failure,) = world.target.apply([Change(Verb.CREATE, default, "test")])
    assert failure.reason == "EINVAL"
    world.put(LinkAddress(world.pod, "eth0", own, 32), replace(default, source=None))
    seen = [o for o in world.see() if isinstance(o, Route)]
    (change,) = route.plan([next_hop, default], seen).actions
    assert change.verb is Verb.UPDATE, "a pod keeps its way out meanwhile"
    assert world.target.apply([change]) == ()
    assert {next_hop, default} <= world.see()
    assert replace(default, source=None) not in world.see()


def test_a_gateway_that_cannot_be_reached_is_refused_by_name(world: World) -> None:
    world.put(EniLink(ENI_MAC, "eth1", 9001))
    lost = Route("", 1537, ip_network("0.0.0.0/0"), "eth1", ip_address("10.0.1.1"))
    (failure,) = world.target.apply([Change(Verb.CREATE, lost, "test")])
    assert failure.reason == "ENETUNREACH"


def test_a_route_over_a_missing_link_is_refused_by_name(world: World) -> None:
    lost = Route("", 512, ip_network("10.0.1.9/32"), "nnlost")
    (failure,) = world.target.apply([Change(Verb.CREATE, lost, "test")])
    assert failure.reason == "ENODEV"


def test_rules_are_seen_as_they_were_written_and_are_no_doubles(world: World) -> None:
    wanted = [
        Rule("ipv4", 512, 512),
        Rule("ipv4", 1024, 254, 0x80, 0xFF),
        Rule("ipv4", 1537, 1537, 1, 0xFF),
        Rule("ipv4", 32765, 1537, source=ip_network("10.0.1.14/32")),
        Rule("ipv6", 512, 512),
    ]
    world.put(*wanted)
    world.put(*wanted)
    assert {o for o in world.see() if isinstance(o, Rule) and o.protocol == 201} == set(wanted)
    assert world.remove(*wanted) == ()
    assert not set(wanted) & world.see()


def test_everything_a_node_desires_comes_back_as_it_was_written(world: World) -> None:
    """Byte for byte of meaning, over all domains at once."""
    one = attachment(1, 1, netns=world.pod)
    now = inputs(2, (one,))
    for module in (link, address, neighbour, route, rule):
        wanted = module.desire(now)
        kinds = {type(o) for o in wanted}
        seen = [o for o in world.target.observe(wanted) if type(o) in kinds]
        assert world.target.apply(module.plan(wanted, seen).actions) == ()
    for module in (link, address, neighbour, route, rule):
        assert module.desire(now) <= see_all(world, now)


def converged(world: World) -> Any:
    """Bring a node with one pod to what is desired; return its inputs."""
    now = inputs(2, (attachment(1, 1, netns=world.pod),))
    for module in KERNEL:
        assert world.target.apply(plan(world, module, now).actions) == ()
    return now


def see_all(world: World, now: Any) -> frozenset[Any]:
    return world.target.observe([o for module in KERNEL for o in module.desire(now)])


def plan(world: World, module: Any, now: Any) -> Plan:
    wanted = module.desire(now)
    kinds = {EniLink, Veth, PodLink} if module is link else {type(o) for o in wanted}
    seen = see_all(world, now)
    planned: Plan = module.plan(wanted, [o for o in seen if type(o) in kinds])
    return planned


def test_a_link_that_stands_in_the_place_of_a_pods_is_refused_and_left_alone(world: World) -> None:
    if world.is_real:
        inside(world, "link", "add", "eth0", "type", "veth", "peer", "name", "far0")
    else:
        world.put(Veth("far", HOST_MAC, 1500, "other", True, False, 0, world.pod, "eth0", POD_MAC))
        seen = next(o for o in world.see() if isinstance(o, PodLink))
        world.target.replace(replace(seen, veth=""))
    before = {o for o in world.see() if isinstance(o, PodLink) and o.name == "eth0"}
    now = inputs(2, (attachment(1, 1, netns=world.pod),))
    planned = plan(world, link, now)
    assert [r.reason for r in planned.refusals] == ["ForeignObject"]
    (failure,) = world.target.apply(planned.actions)
    assert failure.reason == "EEXIST"
    assert before == {o for o in world.see() if isinstance(o, PodLink) and o.name == "eth0"}


@pytest.mark.kernel
@pytest.mark.parametrize("world", ["kernel"], indirect=True)
def test_what_others_put_into_a_pods_namespace_is_in_no_plan(world: World) -> None:
    """A second interface, a tunnel of the pod's own, an address or neighbour beside ours."""
    now = converged(world)
    inside(world, "link", "add", "net1", "type", "veth", "peer", "name", "net2")
    inside(world, "link", "set", "net1", "up", "address", "02:cc:00:00:00:03")
    inside(world, "address", "add", "192.0.2.9/24", "dev", "net1")
    inside(world, "address", "add", "192.0.2.10/32", "dev", "eth0")
    for device in ("net1", "eth0"):
        words = ("neighbour", "add", "192.0.2.1", "lladdr", "02:cc:00:00:00:04", "dev", device)
        inside(world, *words)
    inside(world, "route", "add", "203.0.113.0/24", "dev", "net1", "proto", "static")
    assert [plan(world, module, now) for module in KERNEL] == [Plan()] * len(KERNEL)


def test_a_pods_neighbours_are_shown_only_where_they_are_asked_for(world: World) -> None:
    """The kernel has one table for all namespaces: a dump in each pod would read it every time."""
    wanted = Neighbour(world.pod, "eth0", ip_address("169.254.1.1"), HOST_MAC)
    other = Neighbour(world.pod, "eth0", ip_address("192.0.2.1"), HOST_MAC)
    world.put(*world.veth(), wanted, other)
    assert {o for o in world.see(wanted) if isinstance(o, Neighbour)} == {wanted}
    changed = replace(wanted, mac=POD_MAC)
    world.target.apply([Change(Verb.UPDATE, changed, "by somebody", wanted)])
    assert {o for o in world.see(wanted) if isinstance(o, Neighbour)} == {changed}
    world.remove(changed)
    assert not [o for o in world.see(wanted) if isinstance(o, Neighbour)]


@pytest.mark.kernel
def test_routes_of_other_owners_are_not_shown_unless_in_the_way(home: str, pod: str) -> None:
    plug(ENI_MAC, "eth1", Path(pod).name)
    ip("link", "set", "eth1", "up")
    ip("route", "add", "10.7.0.0/16", "dev", "eth1", "proto", "static")
    ip("route", "add", "10.0.1.9/32", "dev", "eth1", "table", "512", "proto", "static")
    mine = Route("", 512, ip_network("10.0.1.9/32"), "eth1")
    target = Netlink()
    assert not [o for o in target.observe([]) if isinstance(o, Route)]
    (foreign,) = [o for o in target.observe([mine]) if isinstance(o, Route)]
    assert not route.is_owned(foreign)
    assert [r.reason for r in route.plan([mine], [foreign]).refusals] == ["ForeignObject"]


@pytest.mark.kernel
@pytest.mark.parametrize("world", ["kernel"], indirect=True)
@pytest.mark.parametrize("veth", ["", "n0d7763386da", "cali0d7763386da"])
def test_a_link_that_has_not_got_its_alias_yet_is_ours_all_the_same(
    world: World, veth: str
) -> None:
    """A crash can come between making a link and naming it."""
    one = attachment(1, netns=world.pod)
    one = replace(one, veth=veth or one.veth)
    (host,) = [o for o in link.desire(inputs(1, (one,))) if isinstance(o, Veth)]
    ip("link", "add", host.name, "address", host.mac, "type", "veth", "peer", "name", "x0")
    assert host.name not in world.target.links().names.values()
    seen = [o for o in world.target.observe([]) if isinstance(o, Veth)]
    assert [(o.name, o.alias) for o in seen] == [(host.name, "")]
    assert [a.verb for a in link.plan([host], seen).actions] == [Verb.UPDATE]
    assert [a.verb for a in link.plan([], seen).actions] == [Verb.DELETE]


def inside(world: World, *words: str) -> None:
    argv = ["nsenter", f"--net={world.pod}", "ip", *words]
    subprocess.run(argv, check=True, capture_output=True)


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


# -- IPv6 ---------------------------------------------------------------------------------

OWN = ip_address("2001:db8:1:0:7::9")
GATEWAY = ip_address("fe80::1")
ROUTER = ip_address("fe80:ec2::1")
EVERYTHING = ip_network("::/0")


def ipv6_objects(world: World) -> list[Any]:
    host, pod = world.veth()
    return [
        EniLink(ENI_MAC, "eth1", 9001, up=True),
        host,
        pod,
        LinkAddress(world.pod, "eth0", OWN, 128),
        LinkAddress(world.pod, "eth0", ip_address("169.254.172.1"), 32),
        Neighbour(world.pod, "eth0", GATEWAY, HOST_MAC),
        Neighbour("", "nnveth", OWN, POD_MAC),
        Route(world.pod, 254, EVERYTHING, "eth0", GATEWAY, 1024),
        Route("", 512, ip_network(f"{OWN}/128"), "nnveth", metric=1024),
        Route("", 1537, EVERYTHING, "eth1", ROUTER, 1024),
        Rule("ipv6", 512, 512),
        Rule("ipv6", 1024, 254, 0x80, 0xFF),
    ]


def test_ipv6_objects_come_back_as_they_were_written_and_go_again(world: World) -> None:
    wanted = ipv6_objects(world)
    world.put(*wanted)
    assert set(wanted) <= world.see(*wanted)
    assert world.target.pod_addresses() == {"nnveth": (OWN,)}
    gone = [o for o in wanted if isinstance(o, LinkAddress | Neighbour | Route | Rule)]
    assert world.remove(*reversed(gone)) == ()
    assert not set(gone) & world.see(*wanted)
    assert world.remove(*reversed(gone)) == ()


def test_a_pod_with_both_families_has_both_addresses_behind_one_link(world: World) -> None:
    world.put(*ipv6_objects(world), Route("", 512, ip_network("10.0.1.9/32"), "nnveth"))
    assert world.target.pod_addresses() == {"nnveth": (ip_address("10.0.1.9"), OWN)}


@pytest.mark.kernel
def test_an_ipv6_address_is_the_pods_at_once(world: World) -> None:
    """Duplicate address detection would keep it from being used for a second or two."""
    if not world.is_real:
        pytest.skip("the fake detects nothing")
    world.put(*ipv6_objects(world))
    with netns.inside(Path(world.pod).name), IPRoute() as ip:
        (found,) = [a for a in ip.get_addr(family=10) if a.get("address") == str(OWN)]
    tentative, nodad = 0x40, 0x02
    assert found.get("flags") & (tentative | nodad) == nodad


def test_a_changed_ipv6_gateway_and_neighbour_are_put_right_in_place(world: World) -> None:
    wanted = ipv6_objects(world)
    world.put(*wanted)
    other = ip_address("fe80::2")
    changed = [
        Route(world.pod, 254, EVERYTHING, "eth0", other, 1024),
        Neighbour("", "nnveth", OWN, "02:00:00:00:00:09"),
    ]
    world.put(*changed)
    assert set(changed) <= world.see(*wanted)
    for module, kind in ((neighbour, Neighbour), (route, Route)):
        want = [o for o in wanted if isinstance(o, kind)]
        seen = [o for o in world.see(*wanted) if isinstance(o, kind)]
        plan = module.plan(want, seen)
        assert [a.verb for a in plan.actions] == [Verb.UPDATE]
        assert world.target.apply(plan.actions) == ()
    assert set(wanted) <= world.see(*wanted)


def test_a_look_at_places_shows_what_stands_in_them_and_nothing_of_other_pods(
    world: World,
) -> None:
    host, pod = world.veth()
    other = replace(host, name="nnother", alias="node-network:other/eth0", pod_name="eth7")
    mine = [
        host,
        pod,
        LinkAddress(world.pod, "eth0", ip_address("10.0.1.9"), 32),
        Neighbour(world.pod, "eth0", ip_address("169.254.1.1"), HOST_MAC),
        Neighbour("", "nnveth", ip_address("10.0.1.9"), POD_MAC),
        Route(world.pod, 254, ip_network("169.254.1.1/32"), "eth0"),
        Route("", 512, ip_network("10.0.1.9/32"), "nnveth"),
    ]
    theirs = [
        other,
        Neighbour("", "nnother", ip_address("10.0.1.9"), POD_MAC),
        Neighbour("", "nnveth", ip_address("10.0.1.10"), POD_MAC),
        Route("", 512, ip_network("10.0.1.10/32"), "nnother"),
    ]
    world.put(*mine, *theirs)
    # One route is asked for by the packet that would take it.
    world.put(Rule("ipv4", 512, 512))
    assert set(mine) <= world.target.observe_at(mine)
    assert not set(theirs) & world.target.observe_at(mine)
    world.remove(mine[-1])
    assert set(mine) - world.target.observe_at(mine) == {mine[-1]}
    world.remove(host)
    assert not set(mine) & world.target.observe_at(mine)


@pytest.mark.parametrize("version", [4, 6])
def test_a_look_at_places_shows_the_route_to_a_pod_of_either_family(
    world: World, version: int
) -> None:
    host, pod = world.veth()
    wanted = {
        4: Route("", 512, ip_network("10.0.1.9/32"), "nnveth"),
        6: Route("", 512, ip_network("2001:db8::9/128"), "nnveth", metric=1024),
    }[version]
    world.put(host, pod, Rule(f"ipv{version}", 512, 512), wanted)
    assert wanted in world.target.observe_at([host, wanted])


def test_a_route_that_leads_elsewhere_is_shown_as_it_is(world: World) -> None:
    host, pod = world.veth()
    wanted = Route("", 512, ip_network("10.0.1.9/32"), "nnveth")
    wrong = replace(wanted, device="eth1")
    world.put(host, pod, EniLink(ENI_MAC, "eth1", 9001), Rule("ipv4", 512, 512), wrong)
    (seen,) = (o for o in world.target.observe_at([host, wanted]) if isinstance(o, Route))
    assert seen != wanted
    assert seen.key == wanted.key


@pytest.mark.kernel
def test_what_was_decoded_before_is_never_shown_in_place_of_what_is_there(home: str) -> None:
    """The memory is asked by the bytes of an entry, so whatever changes is decoded anew."""
    del home
    with namespace("vpc") as vpc:
        plug(ENI_MAC, "eth1", vpc)
        target = Netlink()
        for number in range(3):
            ip("link", "set", "eth1", "mtu", str(1400 + number))
            ip("link", "set", "eth1", "up" if number % 2 else "down")
            ip("route", "replace", "10.0.9.0/24", "dev", "lo", "proto", "201", "metric", "7")
            ip("link", "set", "lo", "up")
            now = EniLink(ENI_MAC, "eth1", 1400 + number, bool(number % 2), group=0)
            assert target.observe([now]) == Netlink().observe([now])
            assert now in target.observe([now])


@pytest.mark.kernel
@pytest.mark.parametrize("what", ["tos 8", "mtu 600"])
def test_a_route_of_ours_that_somebody_narrowed_or_bent_is_another_one_and_is_put_right(
    what: str,
) -> None:
    wanted = Route("", 512, ip_network("10.0.1.9/32"), "eth0")
    with namespace("home") as home, namespace("vpc") as vpc, netns.inside(home):
        plug("02:aa:00:00:00:00", "eth0", vpc)
        target = Netlink()
        target.apply([Change(Verb.UPDATE, EniLink("02:aa:00:00:00:00", "eth0", 1500), "test")])
        words = f"ip route add 10.0.1.9/32 dev eth0 table 512 proto 201 {what}"
        subprocess.run(words.split(), check=True)
        made = route.plan([wanted], [o for o in target.observe([wanted]) if isinstance(o, Route)])
        assert made.actions
        assert target.apply(made.actions) == ()
        left = [o for o in target.observe([wanted]) if isinstance(o, Route)]
        assert [r for r in left if r.table == 512] == [wanted]


def test_a_pods_link_that_was_renamed_gets_its_name_back_and_the_pod_keeps_its_end(
    world: World,
) -> None:
    host, pod = world.veth()
    wanted = {host, pod}
    world.put(host, pod)
    inside = LinkAddress(world.pod, "eth0", ip_address("10.0.1.9"), 32)
    world.put(inside)
    moved = replace(host, name="nnother")
    assert world.target.apply([Change(Verb.UPDATE, moved, "somebody else", host)]) == ()
    seen = world.see(*wanted, inside)
    assert moved in seen
    plan = link.plan(wanted, [o for o in seen if isinstance(o, Veth | PodLink)])
    assert [str(a) for a in plan.actions if a.verb is not Verb.UPDATE] == []
    assert world.target.apply(plan.actions) == ()
    assert {host, pod, inside} <= world.see(*wanted, inside)
    assert world.target.links().pods == {("pod", "eth0"): "nnveth"}


def test_a_pods_link_that_is_deleted_apart_shows_until_it_is_gone(world: World) -> None:
    removals, (host, pod) = world.target.removals, world.veth()
    removals.apart = True
    world.put(host)
    lower = replace(host, mtu=1400)
    assert world.target.apply([Change(Verb.UPDATE, lower, "test", host)]) == ()
    assert removals.names == frozenset(), "what changes does not go"
    assert world.remove(host) == ()
    assert {host.key, pod.key} <= {o.key for o in world.see(host)}
    assert removals.names == {"nnveth"}
    assert removals.turn()
    assert not {host.key, pod.key} & {o.key for o in world.see(host)}
    assert removals.names == frozenset()
    assert world.remove(host) == (), "what is gone already is no failure"
    removals.turn()
    # One that is to be made anew is gone first.
    world.put(host)
    again = [Change(Verb.DELETE, host, "test"), Change(Verb.CREATE, host, "test")]
    assert world.target.apply(again) == ()
    assert not removals.turn()
    assert {host.key, pod.key} <= {o.key for o in world.see(host)}


@pytest.mark.kernel
def test_what_has_the_name_of_a_link_by_the_time_it_is_deleted_stays(home: str, pod: str) -> None:
    target = Netlink()
    target.removals.apart = True
    world = World(target, pod, is_real=True)
    host, _ = world.veth()
    world.put(host)
    world.remove(host)
    ip("link", "set", "nnveth", "down")
    ip("link", "set", "nnveth", "name", "former")
    ip("link", "add", "nnveth", "type", "veth", "peer", "name", "theirs")
    assert target.removals.turn()
    shown = ip("link", "show")
    assert ("former" in shown, "nnveth" in shown) == (False, True)
