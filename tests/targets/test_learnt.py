"""Neighbours that the kernel has learnt: which are looked at, and that it asks for them again."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from conftest import namespace
from waiting import until

from lab import netns
from reconciler.domains.neighbour import Learnt
from reconciler.targets.netlink.learnt import LearntNeighbours

pytestmark = pytest.mark.kernel

MAC, OTHER, WRONG = "02:aa:00:00:00:01", "02:aa:00:00:00:02", "02:aa:00:00:00:99"
VPC = [ip_network("10.0.0.0/16"), ip_network("2001:db8::/56")]


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    """A node with an ENI, and a link of another kind; behind both somebody answers."""
    with namespace("host") as node, namespace("far") as far:
        for name, mac in (("eth0", MAC), ("eth1", OTHER)):
            run(node, f"ip link add {name} address {mac} type veth peer {name} netns {far}")
            run(node, f"ip link set {name} up")
            run(far, f"ip link set {name} up")
        run(node, "ip address add 10.0.1.10/24 dev eth0")
        run(node, "ip address add 10.0.5.10/24 dev eth1")
        run(far, "ip address add 10.0.1.20/24 dev eth0")
        # What is asked for in vain is soon known. What is reachable stays so, as if traffic
        # confirmed it. The far end never asks, by which it would tell: in a VPC nobody hears it.
        for where, setting, value in (
            (node, "retrans_time_ms", 50),
            (node, "base_reachable_time_ms", 3_600_000),
            (far, "delay_first_probe_time", 1000),
        ):
            with netns.inside(where):
                Path(f"/proc/sys/net/ipv4/neigh/eth0/{setting}").write_text(str(value))
        yield node


def run(where: str, command: str) -> str:
    argv = ["nsenter", f"--net={netns.path(where)}", *command.split()]
    return subprocess.run(argv, capture_output=True, check=True, text=True).stdout


def reaches(host: str) -> bool:
    """Whether the far end answers: it refuses the connection."""
    with netns.inside(host):
        connection = socket.socket()
    with connection:
        connection.settimeout(0.5)
        try:
            connection.connect(("10.0.1.20", 1))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def index(host: str, name: str = "eth0") -> int:
    with netns.inside(host):
        return socket.if_nametoindex(name)


def look(host: str) -> set[str]:
    with netns.inside(host):
        seen = LearntNeighbours().observe({MAC}, VPC)
    return {f"{one.address} {one.device}" for one in seen}


def test_what_somebody_has_put_there_and_other_links_are_left_out(host: str) -> None:
    for address, words in (
        ("10.0.1.31", "nud reachable"),
        ("10.0.1.32", "nud stale"),
        ("2001:db8::34", "nud stale"),
        ("2001:db8::35", "nud stale router"),
        ("10.0.1.36", "nud permanent"),
        ("10.0.1.37", "nud noarp"),
        ("10.0.1.38", "nud failed"),
        ("10.0.1.39", "nud stale extern_learn"),
        ("10.9.1.40", "nud stale"),
    ):
        run(host, f"ip neighbour replace {address} lladdr {WRONG} dev eth0 {words}")
    run(host, f"ip neighbour replace 10.0.5.41 lladdr {WRONG} dev eth1 nud reachable")
    try:
        assert look(host) == {f"{a} eth0" for a in ("10.0.1.31", "10.0.1.32")} | {
            "2001:db8::34 eth0"
        }
    finally:
        run(host, "ip neighbour flush all nud all")


def test_an_entry_that_is_wrong_is_right_once_it_was_asked_for_and_a_right_one_stays(
    host: str,
) -> None:
    """Until it is answered, packets go where they went; nobody else's packets are held up."""
    assert reaches(host)
    before = run(host, "ip neighbour show 10.0.1.20")
    one = Learnt(index(host), "eth0", ip_address("10.0.1.20"))
    with netns.inside(host):
        assert LearntNeighbours().ask_again([one]) == ()
    until(lambda: "REACHABLE" in run(host, "ip neighbour show 10.0.1.20"), "an answer")
    assert run(host, "ip neighbour show 10.0.1.20").split()[:5] == before.split()[:5]
    run(host, f"ip neighbour replace 10.0.1.20 lladdr {WRONG} dev eth0 nud reachable")
    assert not reaches(host)
    with netns.inside(host):
        assert LearntNeighbours().ask_again([one]) == ()
    until(lambda: reaches(host), "another MAC", patience_s=10)
    assert WRONG not in run(host, "ip neighbour show 10.0.1.20")


def test_what_is_gone_by_now_is_no_failure(host: str) -> None:
    nobody = [Learnt(i, "eth0", ip_address("10.0.1.77")) for i in (index(host), 9999)]
    with netns.inside(host):
        assert LearntNeighbours().ask_again(nobody) == ()
        assert not [n for n in LearntNeighbours().observe({MAC}, VPC) if n in nobody]
