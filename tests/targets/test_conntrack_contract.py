"""What the conntrack target promises, of the real kernel and of the fake alike."""

from __future__ import annotations

import errno
import socket
import subprocess
import tracemalloc
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any
from unittest.mock import Mock

import pytest
from conftest import namespace
from fakes import FakeConntrack

from lab import flows, netns
from reconciler.domains import conntrack
from reconciler.domains.conntrack import ConntrackFlush, Flow, OpenTo
from reconciler.engine.converge import Domain, converge
from reconciler.engine.plan import Change, Verb
from reconciler.targets import conntrack as targets_conntrack
from reconciler.targets.conntrack import Conntrack
from reconciler.targets.netlink.message import attributes
from reconciler.targets.netlink.nfnetlink import Channel

ONE, OTHER, QUIET = (ip_address(f"127.0.0.{n}") for n in (2, 3, 4))
SIX = ip_address("::1")


def connect(source: str, target: str, kind: int) -> None:
    """One connection that conntrack sees, left open in its table."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with socket.socket(family, kind) as server:
        server.bind((target, 0))
        if kind == socket.SOCK_STREAM:
            server.listen()
        with socket.socket(family, kind) as client:
            client.bind((source, 0))
            client.connect(server.getsockname())
            client.send(b"x")


@pytest.fixture(params=["fake", pytest.param("kernel", marks=pytest.mark.kernel)])
def target(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Connections between ONE and OTHER, none of QUIET."""
    if request.param == "fake":
        yield FakeConntrack({ONE, OTHER, SIX})
        return
    with namespace("ct") as name, netns.inside(name):
        hook = "type filter hook output priority 0"
        rules = f"table inet t {{ chain c {{ {hook}; ct state new accept; }}; }}"
        subprocess.run(["nft", rules], check=True, capture_output=True)
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            connect(str(ONE), str(OTHER), kind)
            connect(str(SIX), str(SIX), kind)
        yield Conntrack()


def seen(target: Any, *addresses: Any) -> set[Any]:
    return {f.address for f in target.observe([ConntrackFlush(frozenset(addresses))])}


def test_connections_are_seen_by_either_end(target: Any) -> None:
    assert seen(target, ONE, OTHER, QUIET) == {ONE, OTHER}
    assert seen(target, QUIET) == set()
    assert seen(target) == set()


def test_all_connections_of_an_address_end_and_no_others(target: Any) -> None:
    if isinstance(target, Conntrack):
        connect(str(QUIET), str(QUIET), socket.SOCK_DGRAM)
    assert target.apply([Change(Verb.DELETE, Flow(ONE), "test")]) == ()
    assert seen(target, ONE) == set()
    if isinstance(target, Conntrack):
        assert seen(target, QUIET) == {QUIET}


def test_ending_what_has_ended_is_done(target: Any) -> None:
    gone = [Change(Verb.DELETE, Flow(a), "test") for a in (ONE, QUIET)]
    assert target.apply(gone) == ()
    assert target.apply(gone) == ()


def test_one_converge_silences_what_rests(target: Any) -> None:
    silence = ConntrackFlush(frozenset({ONE, QUIET}))
    domain = Domain("conntrack", lambda _: silence, conntrack.plan, target)
    assert converge([domain], None)["conntrack"].settled


def test_connections_of_ipv6_are_seen_and_ended_too(target: Any) -> None:
    assert seen(target, SIX, QUIET) == {SIX}
    assert target.apply([Change(Verb.DELETE, Flow(SIX), "test")]) == ()
    assert seen(target, SIX, ONE) == {ONE}


def test_pods_connections_to_destinations_are_counted_by_whether_they_are_translated(
    target: Any,
) -> None:
    def asked(pod: Any, first: Any, last: Any, *, translated: bool) -> OpenTo:
        return OpenTo(frozenset({pod}), ((first, last),), translated)

    plain = asked(ONE, ONE, OTHER, translated=False)
    none = asked(QUIET, ONE, OTHER, translated=False)
    assert target.count([plain, none]) == (2, 0) or isinstance(target, FakeConntrack)
    assert target.count([]) == ()
    if isinstance(target, Conntrack):
        others = [
            asked(ONE, ONE, OTHER, translated=True),
            asked(ONE, ONE, ONE, translated=False),
            asked(SIX, ONE, OTHER, translated=False),
        ]
        assert target.count(others) == (0, 0, 0)


@pytest.mark.kernel
def test_a_translated_connection_counts_for_where_it_really_goes(table: None) -> None:
    """After a service's address became an endpoint's, and the pod's the node's."""
    chains = (
        "chain d { type nat hook output priority -100; ip daddr 127.0.0.9 dnat to 127.0.0.3; }; "
        "chain s { type nat hook postrouting priority 100; ip daddr 127.0.0.3 snat to 127.0.0.4; }"
    )
    subprocess.run(["nft", f"table ip t {{ {chains}; }}"], check=True, capture_output=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind((str(ONE), 0))
        client.connect(("127.0.0.9", 9))
        client.send(b"x")
    pods, service = frozenset({ONE}), ip_address("127.0.0.9")
    assert Conntrack().count(
        [
            OpenTo(pods, ((OTHER, OTHER),), translated=True),
            OpenTo(pods, ((service, service),), translated=True),
            OpenTo(pods, ((OTHER, OTHER),), translated=False),
        ]
    ) == (1, 0, 0)


@pytest.mark.kernel
def test_a_large_table_is_not_counted(table: None, monkeypatch: pytest.MonkeyPatch) -> None:
    flows.open_many(POD, 20)
    everything = ((ip_address("0.0.0.0"), ip_address("255.255.255.255")),)
    question = OpenTo(frozenset({POD}), everything, translated=False)
    assert Conntrack().count([question]) is not None
    monkeypatch.setattr(targets_conntrack, "MOST_COUNTED", 19)
    assert Conntrack().count([question]) is None


@pytest.fixture
def table() -> Iterator[None]:
    with namespace("ct") as name, netns.inside(name):
        yield


BY_KERNEL, BY_ENTRY, BY_STREAM = (
    "the kernel filters",
    "it filters looks only",
    "it filters nothing",
)


@pytest.fixture(params=[BY_KERNEL, BY_ENTRY, BY_STREAM])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, table: None) -> Conntrack:
    """Each way to the same end: what kernels before 6.11 and 5.8 make of a filter included."""
    monkeypatch.setattr(targets_conntrack, "FEW_ENTRIES", 0)
    if request.param == BY_ENTRY:
        refusal = OSError(errno.EINVAL, "an incomplete tuple")
        monkeypatch.setattr(targets_conntrack, "_flush", Mock(side_effect=refusal))
    if request.param == BY_STREAM:
        monkeypatch.setattr(targets_conntrack, "_filters", lambda _: iter([b""]))
        monkeypatch.setattr(targets_conntrack, "_flush", Mock(side_effect=AssertionError))
        target = Conntrack()
        target._filters_deletions = False
        return target
    return Conntrack()


POD, NEIGHBOUR, PEER = ip_address("10.0.1.7"), ip_address("10.0.1.8"), ip_address("198.18.0.0")
POD_SIX, NEIGHBOUR_SIX = ip_address("2001:db8::7"), ip_address("2001:db8::8")


@pytest.mark.kernel
def test_every_way_ends_all_connections_of_an_address_and_no_others(way: Conntrack) -> None:
    """Both families, both directions, every zone."""
    for address in (POD, NEIGHBOUR, POD_SIX, NEIGHBOUR_SIX):
        flows.open_many(address, 300)
        flows.open_many(address, 300, incoming=True)
        flows.open_many(address, 3, zone=7)
    assert seen(way, POD, POD_SIX, QUIET) == {POD, POD_SIX}
    assert way.apply([Change(Verb.DELETE, Flow(a), "test") for a in (POD, POD_SIX, QUIET)]) == ()
    assert seen(way, POD, POD_SIX, NEIGHBOUR, NEIGHBOUR_SIX) == {NEIGHBOUR, NEIGHBOUR_SIX}
    assert flows.count() == 2 * 603


@pytest.mark.kernel
def test_both_ends_of_one_connection_are_seen(way: Conntrack) -> None:
    flows.open_many(POD, 1)
    assert seen(way, POD, PEER) == {POD, PEER}


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of everything the kernel tells."""
    told: list[int] = []
    stream = Channel.stream

    def counted(*args: Any, **kwargs: Any) -> Iterator[bytes]:
        for message in stream(*args, **kwargs):
            told.append(len(message))
            yield message

    monkeypatch.setattr(Channel, "stream", counted)
    return told


@pytest.mark.kernel
def test_a_full_table_costs_an_address_without_connections_nothing(
    table: None, messages: list[int]
) -> None:
    flows.open_many(NEIGHBOUR, targets_conntrack.FEW_ENTRIES + 500)
    assert seen(Conntrack(), POD) == set()
    assert Conntrack().apply([Change(Verb.DELETE, Flow(POD), "test")]) == ()
    assert len(messages) == 2, "how many entries there are, twice"


@pytest.mark.kernel
def test_ten_thousand_connections_of_one_pod_are_ended_without_being_read(
    table: None, messages: list[int]
) -> None:
    flows.open_many(POD, 10_000)
    domain = Domain(
        "conntrack", lambda _: ConntrackFlush(frozenset({POD})), conntrack.plan, Conntrack()
    )
    assert converge([domain], None)["conntrack"].settled
    assert flows.count() == 0
    assert len(messages) < 10


@pytest.mark.kernel
def test_no_entry_becomes_an_object(way: Conntrack) -> None:
    """A table of any size takes the memory of one answer of the kernel's."""
    flows.open_many(POD, 5_000)
    tracemalloc.start()
    try:
        assert seen(way, POD, QUIET) == {POD}
        assert way.apply([Change(Verb.DELETE, Flow(POD), "test")]) == ()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert flows.count() == 0
    assert peak < 1 << 20


@pytest.mark.kernel
def test_addresses_that_cool_together_share_one_walk(table: None, messages: list[int]) -> None:
    """Or else a hundred pods that end at once would have the kernel walk its table 400 times."""
    flows.open_many(NEIGHBOUR, 50)
    many = [POD + n for n in range(2, 102)]
    assert seen(Conntrack(), *many) == set()
    assert len(messages) == 50


def test_a_deletion_always_names_an_address() -> None:
    """A kernel that knows no filter would take one without a tuple for "delete everything"."""
    for address in (POD, POD_SIX):
        for body in targets_conntrack._filters(address):
            (kind, content), _ = attributes(body)
            assert kind in (1, 2)
            assert address.packed in content


def test_an_unknown_form_of_an_entry_is_no_guess() -> None:
    message = bytes(16) + bytes([socket.AF_INET]) + bytes(99)
    with pytest.raises(OSError, match="do not come first"):
        targets_conntrack._ends(message)
    with pytest.raises(OSError, match="without two tuples"):
        targets_conntrack._ends(message[:24])
