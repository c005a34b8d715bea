"""What the conntrack target promises, of the real kernel and of the fake alike."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest
from conftest import namespace
from fakes import FakeConntrack

from lab import netns
from reconciler.core.plan import Change, Verb
from reconciler.domains import conntrack
from reconciler.domains.conntrack import Flow, Silence
from reconciler.engine import Domain, converge
from reconciler.targets.conntrack import Conntrack

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
    return {f.address for f in target.observe([Silence(frozenset(addresses))])}


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
    silence = Silence(frozenset({ONE, QUIET}))
    domain = Domain("conntrack", lambda _: silence, conntrack.plan, target)
    assert converge([domain], None)["conntrack"].settled


def test_connections_of_ipv6_are_seen_and_ended_too(target: Any) -> None:
    assert seen(target, SIX, QUIET) == {SIX}
    assert target.apply([Change(Verb.DELETE, Flow(SIX), "test")]) == ()
    assert seen(target, SIX, ONE) == {ONE}
