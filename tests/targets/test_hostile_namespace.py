"""What others put into a namespace, a pod's or the host's, in masses or without end."""

from __future__ import annotations

import os
import subprocess
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from builders import attachment
from conftest import namespace
from drift_injection import run
from hostility import loop
from targets.hostile_node import MANY, Node, a_node, batch, routes

from lab import netns
from reconciler.core.attachment import MAX_POD_ADDRESSES
from reconciler.core.datapath import MAIN_TABLE
from reconciler.domains import link, route, rule
from reconciler.domains.address import LinkAddress
from reconciler.domains.link import EniLink, PodLink, Veth
from reconciler.domains.route import Route
from reconciler.domains.rule import Rule
from reconciler.engine.plan import Change, Verb
from reconciler.errors import ObserveError
from reconciler.targets import remains
from reconciler.targets.netlink import decode, message, queries, rtnetlink, tables
from reconciler.targets.netlink import read as kernel
from reconciler.targets.netlink.entries import MAX_FOREIGN_RULES, MAX_IN_PLACE
from reconciler.targets.netlink.message import Bounds
from reconciler.targets.netlink.rtnetlink import How, Rtnetlink
from reconciler.targets.netlink.tables import ADDRESSES, LINKS, RULES
from reconciler.targets.stock_plugin import StockPluginTarget

pytestmark = pytest.mark.kernel


@pytest.fixture
def node() -> Iterator[Node]:
    with a_node() as made:
        yield made


def test_a_pods_own_routes_are_not_read_while_ours_are_there(node: Node) -> None:
    batch(node.pods[0], routes(MANY, "eth0", ""))
    seen = node.target.observe(node.wanted)
    assert node.wanted <= seen
    assert not seen.unread_places
    assert len(seen) < len(node.wanted) + 10


def test_a_pod_that_cannot_be_read_within_its_bounds_fails_alone(node: Node) -> None:
    batch(node.pods[0], routes(MANY, "eth0", ""))
    run(node.pods[0], "ip route delete default")  # who stands in its place is among thousands
    tracemalloc.start()
    try:
        seen = node.target.observe(node.wanted)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 << 20
    (unread,) = seen.unread_places.values()
    assert unread.netns == str(netns.path(node.pods[0]))
    assert unread.why.startswith("its routes: ")
    assert node.of(1) | node.on_host() <= seen
    assert node.target.observe_inside(node.wanted).unread_places.keys() == {unread.netns}
    at = node.target.observe_at(node.wanted)
    assert at.unread_places.keys() == {unread.netns}
    assert node.of(1) <= at


def test_links_that_a_pod_makes_are_not_read(node: Node) -> None:
    batch(node.pods[0], [f"link add v{n} type veth peer name w{n}" for n in range(200)])
    seen = node.target.observe(node.wanted)
    assert node.wanted <= seen
    assert len([o for o in seen if isinstance(o, PodLink)]) == 2


@pytest.mark.parametrize(
    "commands",
    [
        ("address add 192.0.2.9/32 dev eth0", "address delete 192.0.2.9/32 dev eth0"),
        ("address add 192.0.2.9/32 dev lo", "address delete 192.0.2.9/32 dev lo"),
        ("route add 192.0.2.0/24 dev eth0", "route delete 192.0.2.0/24 dev eth0"),
        ("link add v0 type veth peer name v1", "link delete v0"),
    ],
)
def test_a_pod_that_changes_its_namespace_without_end_is_read_all_the_same(
    node: Node, commands: tuple[str, str]
) -> None:
    with loop(node.pods[0], *commands):
        for _ in range(30):
            seen = node.target.observe(node.wanted)
            assert node.of(1) | node.on_host() <= seen
            assert not seen.unread_kinds
            assert not seen.unread_places
            assert node.of(0) <= seen


@pytest.mark.parametrize("what", ["a pipe", "a file", "nothing", "a directory", "a loop"])
def test_whatever_stands_in_a_namespaces_path_concerns_that_pod_alone(
    node: Node, tmp_path: Path, what: str
) -> None:
    place = tmp_path / "netns"
    match what:
        case "a pipe":
            os.mkfifo(place)
        case "a file":
            place.write_text("x")
        case "a directory":
            place.mkdir()
        case "a loop":
            place.symlink_to(place)
    lost = PodLink(str(place), "eth0", "", 0)
    seen = node.target.observe([*node.wanted, lost])
    assert seen.unread_places.keys() == {str(place)}
    assert node.wanted <= seen


def test_links_of_any_name_are_read(node: Node) -> None:
    """A name is bytes: neither text nor without spaces as far as the kernel is concerned."""
    for where in (node.home, node.pods[0]):
        assert run(where, "ip link add \"$(printf 'v\\377b')\" type veth peer name v1")
    seen = node.target.observe(node.wanted)
    assert node.wanted <= seen
    assert not seen.unread_places
    assert len(node.target.links().names) >= 2


# -- the host -----------------------------------------------------------------------------


def test_routes_of_a_routing_daemon_are_never_kept(node: Node) -> None:
    """As with BGP's: whatever there is of them, in ``main`` or in a table of their own."""
    batch(node.home, routes(MANY, "eth0", "proto bird"))
    batch(node.home, [f"route add 2001:db8:{n:x}::/48 dev lo proto bird" for n in range(2000)])
    node.target.observe(node.wanted)
    tracemalloc.start()
    try:
        seen = node.target.observe(node.wanted)
        pods = node.target.pod_addresses()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert node.wanted <= seen
    assert len(pods) == 2
    assert peak < 2 << 20


def test_a_foreign_route_in_the_place_of_ours_is_found_among_thousands(node: Node) -> None:
    (ours,) = [
        o
        for o in node.on_host()
        if isinstance(o, Route)
        and o.destination.prefixlen == 32
        and o.table == 512
        and o.device == attachment(1, 1).veth
    ]
    run(node.home, f"ip route delete {ours.destination} table 512")
    batch(node.home, routes(3000, "eth0", "table 512 proto static"))
    batch(node.home, [f"route add {ours.destination} dev eth0 table 512 proto static"])
    seen = node.target.observe(node.wanted)
    (there,) = [o for o in seen if isinstance(o, Route) and o.key == ours.key]
    assert (there.device, route.is_owned(there)) == ("eth0", False)
    assert len([o for o in seen if isinstance(o, Route)]) < 30


def test_rules_of_others_are_not_decoded_and_the_first_ones_are_judged(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = MAX_FOREIGN_RULES + 50
    batch(
        node.home,
        [
            f"rule add from 198.18.{n // 256}.{n % 256} lookup main priority {100 + n}"
            for n in range(count)
        ],
    )
    decoded: list[bytes] = []

    def attributes(entry: bytes, position: int = 0) -> Iterator[tuple[int, bytes]]:
        decoded.append(entry)
        return message.attributes(entry, position)

    with monkeypatch.context() as counting:
        counting.setattr(tables, "attributes", attributes)
        assert node.wanted <= node.target.observe(node.wanted)
    assert 0 < len(decoded) < 100
    found = node.target.foreign_rules()
    assert len(found) == MAX_FOREIGN_RULES
    assert found[0].priority == 100
    ((what, why),) = node.target.unread_rules()
    assert what == "ip rules of others, ipv4"
    assert f"there are {count}, and the first {MAX_FOREIGN_RULES} are read" in why
    assert "other 50" in why
    assert node.target.fib().unread == ((what, why),)
    batch(node.home, [f"rule delete priority {100 + n}" for n in range(50)])
    assert len(node.target.foreign_rules()) == MAX_FOREIGN_RULES
    assert node.target.unread_rules() == ()
    assert node.target.fib().unread == ()


@pytest.mark.parametrize(
    "commands",
    [
        ("address add 192.0.2.9/32 dev lo", "address delete 192.0.2.9/32 dev lo"),
        ("rule add priority 77 lookup main", "rule delete priority 77"),
        ("link add v0 type veth peer name v1", "link delete v0"),
        (
            "neighbour add 192.0.2.9 lladdr 02:00:00:00:00:09 dev eth0",
            "neighbour delete 192.0.2.9 dev eth0",
        ),
    ],
)
def test_somebody_who_changes_the_host_without_end_hides_nothing(
    node: Node, commands: tuple[str, str]
) -> None:
    """Enough is there that each table is told in several pieces, between which it changes."""
    batch(
        node.home, [f"rule add from 198.18.{n // 256}.{n % 256} lookup main" for n in range(600)]
    )
    batch(node.home, [f"address add 198.18.{n // 256}.{n % 256}/32 dev lo" for n in range(600)])
    with loop(node.home, *commands):
        for _ in range(20):
            seen = node.target.observe(node.wanted)
            assert not {k: str(e) for k, e in seen.unread_kinds.items() if k is not Rule}
            assert {o for o in node.wanted if not isinstance(o, Rule)} <= seen
            assert node.target.links().pods.keys() == {
                a.key for a in (attachment(1), attachment(2))
            }


@pytest.mark.parametrize("table", [RULES, ADDRESSES])
def test_a_table_that_never_stands_still_fails_alone(
    node: Node, monkeypatch: pytest.MonkeyPatch, table: Any
) -> None:
    kind = {RULES: Rule, ADDRESSES: LinkAddress}[table]
    read = Rtnetlink.read

    def interrupted(self: Any, which: Any, *words: Any, **more: Any) -> Any:
        if which is table and self._bounds is rtnetlink.HOST_BOUNDS:
            raise ObserveError(which.name, "they changed during each of 30 dumps")
        return read(self, which, *words, **more)

    monkeypatch.setattr(Rtnetlink, "read", interrupted)
    seen = node.target.observe(node.wanted)
    assert seen.unread_kinds.keys() == {kind}
    assert {o for o in node.wanted if not isinstance(o, kind) or getattr(o, "netns", "")} <= seen


def test_the_kernel_filters(node: Node) -> None:
    """Without NETLINK_GET_STRICT_CHK it would take no notice of what is asked for."""
    with Rtnetlink() as host:
        (lo,) = host.dump(ADDRESSES, family=2, index=1) or [{"index": 1}]
        assert lo["index"] == 1
        stamped = host.dump(tables.ROUTES, family=2, proto=201)
        assert {m["proto"] for m in stamped} == {201}
        table = host.dump(tables.ROUTES, (("RTA_TABLE", MAIN_TABLE),), family=2)
        assert {m.get("table") for m in table} <= {MAIN_TABLE}


@pytest.mark.parametrize("bounds", [Bounds(100, 5, 60.0), Bounds(1 << 20, 5, 0.0)])
def test_each_bound_ends_a_question(node: Node, bounds: Bounds) -> None:
    with Rtnetlink(bounds) as host, pytest.raises(ObserveError, match=r"MiB|longer than"):
        host.dump(LINKS)


def test_a_dump_that_came_in_one_piece_counts_whatever_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without that, a pod that changes its addresses could keep us from reading one."""
    entry, done = _message(20, 0, bytes(8)), _message(3, 0x10, bytes(4))
    assert _dumped(monkeypatch, [entry, done]) == 1
    with pytest.raises(ObserveError, match="30 dumps"):
        _dumped(monkeypatch, [entry, entry, done] * 30)


def _dumped(monkeypatch: pytest.MonkeyPatch, answers: list[bytes]) -> int:
    left = list(answers)

    class Socket:
        def send(self, request: bytes) -> None:
            self.number = request[8:12]

        def recv(self, size: int) -> bytes:
            assert size
            answer = left.pop(0)
            return answer[:8] + self.number + answer[12:]

    one = Rtnetlink()
    one.close()
    monkeypatch.setattr(one, "_socket", Socket())
    return len(one.read(RULES._replace(takes=None), family=2))


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return message.HEADER.pack(16 + len(body), kind, flags, 0, 0) + body


# -- the host's own addresses, and what is behind a link ----------------------------------

FREE = {ip_address(f"10.0.1.{n}") for n in range(11, 20)}
BLOCK = ip_network("2001:db8:1:0:7::/80")


@pytest.mark.parametrize(
    ("command", "where"),
    [
        ("ip address add 10.0.1.12/24 dev eth0", "10.0.1.12/32"),
        ("ip address add 10.0.1.12/24 dev eth0; ip link set eth0 down", "10.0.1.12/32"),
        ("ip link add br0 type bridge; ip address add 10.0.1.12/32 dev br0", "10.0.1.12/32"),
        ("ip address add 10.0.1.12/32 dev lo", "10.0.1.12/32"),
        ("ip address add 192.0.2.1 peer 10.0.1.12 dev eth0", ""),
        ("ip route add local 10.0.1.12 dev lo", "10.0.1.12/32"),
        ("ip route add local 10.0.1.8/29 dev lo", "10.0.1.8/29"),
        ("ip address add 10.0.1.13/30 dev eth0", "10.0.1.13/32 10.0.1.15/32"),
        ("ip route add blackhole 10.0.1.12 table local", "10.0.1.12/32"),
        ("ip route add prohibit 10.0.1.12 table local", "10.0.1.12/32"),
        ("ip address add 2001:db8:1:0:7::9/64 dev eth0 nodad", "2001:db8:1:0:7::9/128"),
        ("ip route add local 2001:db8:1::/64 dev lo", "2001:db8:1::/64"),
        ("ip route add local 2001:db8:1:0:7::8/126 dev lo", "2001:db8:1:0:7::8/126"),
        ("ip address add 192.0.2.12/24 dev eth0; ip address add fd00::1/64 dev eth0", ""),
        ("ip route add 10.0.1.12 dev eth0", ""),
    ],
)
def test_an_address_for_pods_that_the_host_takes_for_its_own_is_found(
    node: Node, command: str, where: str
) -> None:
    assert node.target.occupied(FREE, [BLOCK]) == {}
    assert run(node.home, command)
    found = node.target.occupied(FREE, [BLOCK])
    # A broadcast address is no host's either; the kernel has made it a route of its own.
    assert {str(n) for n in found} == set(where.split())
    assert all(found.values())


def test_many_addresses_of_the_host_that_are_no_pods_are_never_kept(node: Node) -> None:
    batch(node.home, [f"address add 198.18.{n // 256}.{n % 256}/32 dev lo" for n in range(2000)])
    with loop(node.home, "address add 192.0.2.9/32 dev lo", "address delete 192.0.2.9/32 dev lo"):
        for _ in range(5):
            assert node.target.occupied(FREE, [BLOCK]) == {}
    assert run(node.home, "ip address add 10.0.1.12/32 dev lo")
    with loop(node.home, "address add 192.0.2.9/32 dev lo", "address delete 192.0.2.9/32 dev lo"):
        for _ in range(5):
            assert node.target.occupied(FREE, [BLOCK]).keys() == {ip_network("10.0.1.12/32")}


def test_what_is_behind_a_link_is_told_by_neighbours_and_then_by_the_pods_own_link(
    node: Node,
) -> None:
    """The path of the pod's namespace need not be known."""
    pods = [attachment(n, 1) for n in (1, 2)]
    names = [p.veth for p in pods]
    assert node.target.addresses_behind(names) == {p.veth: p.addresses for p in pods}
    run(node.home, f"ip neighbour flush dev {names[0]} nud permanent")
    assert node.target.addresses_behind(names) == {p.veth: p.addresses for p in pods}
    batch(node.pods[0], [f"address add 198.18.0.{n}/32 dev eth0" for n in range(20)])
    assert len(node.target.addresses_behind(names)[names[0]]) == 21
    run(node.pods[0], "ip address flush dev eth0")
    assert node.target.addresses_behind([names[0], "nnnone"]) == {names[0]: (), "nnnone": ()}


def test_a_changed_mtu_holds_for_both_ends_whatever_the_pod_calls_its_own(node: Node) -> None:
    """What is longer than the receiving end's is dropped without a word."""
    (veth,) = [o for o in node.wanted if isinstance(o, Veth) and o.name == attachment(1).veth]
    assert run(node.pods[0], "ip link set eth0 down; ip link set eth0 name net9")
    smaller = replace(veth, mtu=1400)
    assert node.target.apply([Change(Verb.UPDATE, smaller, "the document", veth)]) == ()
    for where, name in ((node.home, veth.name), (node.pods[0], "net9")):
        assert run(where, f"ip link show {name} | grep -q 'mtu 1400'")


def test_what_others_have_is_no_part_of_what_the_stock_plugin_has_left(
    node: Node, tmp_path: Path
) -> None:
    many = [f"198.18.{n // 256}.{n % 256}" for n in range(3000)]
    assert run(node.home, "ip link add eni0123456789a type veth; ip link set eni0123456789a up")
    batch(node.home, [f"route add {own} dev eth0" for own in many])
    batch(node.home, [f"rule add from {own} lookup main priority 99" for own in many[:1500]])
    batch(
        node.home,
        [
            "route add 10.0.1.70 dev eni0123456789a",
            "route add 10.0.1.71 dev eth0",
            "rule add to 10.0.1.71 lookup main priority 512",
            "route add 10.0.1.1 dev eth1 table 2 scope link",
            "route add 10.0.1.72 dev eth1 table 2 proto static",
            "rule add from 10.0.1.71 lookup 2 priority 1536",
        ],
    )
    seen = StockPluginTarget(tmp_path).glance()
    assert {str(r.destination) for r in seen.routes} == {
        "10.0.1.70/32", "10.0.1.71/32", "10.0.1.1/32"
    }  # fmt: skip
    assert sorted(r.priority for r in seen.rules) == [512, 1536]


def test_a_pipe_among_the_namespaces_does_not_stop_the_search(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "apipe")
    (tmp_path / "pod").symlink_to(netns.path(node.pods[0]))
    batch(node.pods[0], [f"link add v{n} type veth peer name w{n}" for n in range(50)])
    monkeypatch.setattr(remains, "PLACES", (f"{str(tmp_path)[1:]}/*",))
    veth = attachment(1).veth
    found = StockPluginTarget(tmp_path).find_ends([veth])
    assert found.keys() == {veth}
    assert found[veth].name == "eth0"


@pytest.mark.parametrize("error", [KeyError("FRA_X"), ValueError("no address"), TypeError("None")])
def test_an_entry_that_cannot_be_understood_fails_its_domain_alone(
    node: Node, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def surprised(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(decode, "decode_rule", surprised)
    seen = node.target.observe(node.wanted)
    assert seen.unread_kinds.keys() == {Rule}
    assert {o for o in node.wanted if not isinstance(o, Rule)} <= seen


def test_the_mtu_of_a_link_whose_pod_is_not_known_changes_no_link_of_the_host(node: Node) -> None:
    """The other end's index is one of another namespace."""
    (veth,) = [o for o in node.wanted if isinstance(o, Veth) and o.name == attachment(1).veth]
    before = subprocess.run(["ip", "-o", "link"], capture_output=True, check=True).stdout
    change = Change(Verb.UPDATE, replace(veth, mtu=1400, pod_netns=""), "the document", veth)
    assert node.target.apply([change]) == ()
    after = subprocess.run(["ip", "-o", "link"], capture_output=True, check=True).stdout
    changed = set(after.splitlines()) - set(before.splitlines())
    assert [line.split()[1].partition(b"@")[0].decode() for line in changed] == [veth.name]


def test_a_change_is_waited_for_however_long_others_hold_the_kernels_lock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert rtnetlink.CHANGE_BOUNDS.seconds == float("inf")
    monkeypatch.setattr(rtnetlink, "HOST_BOUNDS", Bounds(1, 1, 0.0))
    with namespace("home") as home, netns.inside(home), Rtnetlink(Bounds(1, 1, 0.0)) as host:
        host.change(LINKS, How.SET, (("IFLA_IFNAME", "lo"),), flags=0, change=1)
    assert home


def test_entries_of_ever_new_lengths_are_not_all_remembered(node: Node) -> None:
    """A pod may give its link one more name before each look."""
    with Rtnetlink() as host:
        told = host.read(LINKS)
        for number in range(3000):
            size = 4 + 4 * (number % 1000)
            padding = message.ATTRIBUTE.pack(size, 99) + bytes(size - 4)
            assert tables.comparable(LINKS, told[0] + padding) == told[0]
            longer = told[0] + padding + bytes([4, 0, 98, 0]) * (number // 1000)
            assert len(tables.decode_host(LINKS, [longer])) == 1
    assert [*tables.remembered[LINKS.name]] == [longer]
    assert node.wanted <= node.target.observe(node.wanted)


# -- what carries our stamp and is not ours -----------------------------------------------


def clear_away(node: Node) -> int:
    """Remove what is not desired, as the rounds do; return how many looks it took."""
    for looks in range(1, 100):
        seen = node.target.observe(node.wanted)
        assert node.wanted <= seen
        actions = [
            action
            for domain in (link, route, rule)
            for action in domain.plan(
                [o for o in node.wanted if type(o) in OF[domain]],
                [o for o in seen if type(o) in OF[domain]],
            ).actions
        ]
        assert not seen.cut_kinds or actions
        if not actions:
            return looks
        assert node.target.apply(actions) == ()
    pytest.fail("it never ends")


OF: dict[Any, tuple[type, ...]] = {
    link: (EniLink, Veth, PodLink),
    route: (Route,),
    rule: (Rule,),
}


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (Route, "route add 198.18.{n}.1/32 dev eth0 table 512 proto 201"),
        (Route, "route add 2001:db8:{n:x}::/48 dev eth0 table 77 proto 201"),
        (Route, "route append 192.0.2.9/32 via 10.0.9.{n} onlink dev eth0 table 512 proto 201"),
        (Rule, "rule add from 198.18.{n}.0/24 lookup 77 priority 512 protocol 201"),
        (Rule, "rule add iif x{n} lookup 512 priority 512 protocol 201"),
        (
            Veth,
            "link add z{n} type veth peer name y{n}\nlink set z{n} alias node-network:{n}/e",
        ),
    ],
)
def test_what_is_stamped_as_ours_by_others_is_removed_a_part_with_each_look(
    node: Node, monkeypatch: pytest.MonkeyPatch, kind: Any, what: str
) -> None:
    """80,000 such routes, or 40,000 rules, took so much memory that the daemon ended."""
    monkeypatch.setattr(kernel, "MAX_SURPLUS", 30)
    monkeypatch.setattr(kernel, "MAX_SURPLUS_LINKS", 30)
    before = node.target.observe(node.wanted)
    assert not before.cut_kinds
    batch(node.home, [what.format(n=n) for n in range(1, 101)])
    seen = node.target.observe(node.wanted)
    assert seen.cut_kinds.keys() == {kind}
    assert "s are stamped as ours" in seen.cut_kinds[kind]
    assert node.wanted <= seen
    assert len(seen) <= len(before) + 30 + MAX_IN_PLACE
    assert 3 < clear_away(node) < 6
    assert node.target.observe(node.wanted) == before


def test_a_rule_that_selects_more_than_ours_is_removed_and_ours_stays(node: Node) -> None:
    """The kernel deletes the first rule that has what is named: without ``iif`` that is ours."""
    batch(
        node.home,
        [
            "rule add iif eth7 lookup 512 priority 512 protocol 201",
            "rule add not from all lookup 77 priority 512 protocol 201",
            "rule add dport 80 ipproto tcp lookup 512 priority 512 protocol 201",
            "rule add tos 0x10 lookup 512 priority 512 protocol 201",
            "rule add blackhole priority 512 protocol 201",
            "rule add lookup 512 suppress_prefixlength 0 priority 512 protocol 201",
            "rule add to 192.0.2.0/24 lookup 512 priority 512 protocol 201",
        ],
    )
    before = {o for o in node.wanted if isinstance(o, Rule)}
    found = [o for o in node.target.observe(node.wanted) if isinstance(o, Rule)]
    assert len(found) == len(before) + 7
    for action in rule.plan(before, found).actions:
        assert node.target.apply([action]) == ()
        assert before <= node.target.observe(node.wanted), str(action)
    assert before == {o for o in node.target.observe(node.wanted) if isinstance(o, Rule)}


def test_routes_to_one_link_without_end_say_of_no_pod_which_address_it_has(node: Node) -> None:
    one, other = (attachment(n, 1) for n in (1, 2))
    batch(node.home, routes(2000, one.veth, "table 512 proto 201"))
    tracemalloc.start()
    try:
        found = node.target.pod_addresses()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found[other.veth] == other.addresses
    assert len(found[one.veth]) == MAX_POD_ADDRESSES + 1
    assert peak < 1 << 20


def test_addresses_of_others_on_an_enis_link_are_never_kept(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch(node.home, [f"address add 198.18.{n // 256}.{n % 256}/24 dev eth1" for n in range(3000)])
    node.target.observe(node.wanted)
    tracemalloc.start()
    try:
        seen = node.target.observe(node.wanted)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert node.wanted <= seen
    assert peak < 1 << 20


def test_a_link_with_our_alias_is_a_pods_only_if_its_other_end_is_in_one(node: Node) -> None:
    """No address is given while a pod's is unknown; a link that is no pod's keeps none back."""
    before = node.target.links()
    batch(
        node.home,
        [
            "link add z0 type veth peer name z1",
            "link set z0 alias node-network:c9/eth0",
            "link add z2 type bridge",
            "link set z2 alias node-network:c8/eth0",
        ],
    )
    assert node.target.links().pods == before.pods
    seen = [o for o in node.target.observe(node.wanted) if isinstance(o, Veth)]
    assert {o.name for o in seen} == {"z0", *(o.name for o in node.wanted if isinstance(o, Veth))}


def test_links_of_which_no_address_can_be_found_are_asked_about_a_part_at_a_time(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "MAX_UNKNOWN", 2)
    here = attachment(1, 1).veth
    found = node.target.addresses_behind(["none1", here, "none2", "none3", here])
    assert [*found] == ["none1", here, "none2"]
