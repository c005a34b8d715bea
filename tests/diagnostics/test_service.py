"""Where services lead, read off rulesets that kube-proxy's stand-in has written."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
import rulesets
import services
from conftest import namespace
from services import Endpoint, HostPort, Service

from lab import netns
from reconciler.targets.services import Services, endpoints_in_iptables

pytestmark = pytest.mark.kernel

ADDRESS = ip_address("172.20.0.11")
ENDS = (Endpoint("10.0.9.10", 7777), Endpoint("10.0.9.11", 7777, local=True))
KNOWN = (
    Service("default/a:tcp", str(ADDRESS), 80, ENDS, node_port=30080),
    Service("default/b:udp", str(ADDRESS), 80, (Endpoint("10.0.9.12", 53),), protocol="udp"),
    *services.padding(20, node_ports=3),
)


@pytest.fixture
def node() -> Iterator[str]:
    with namespace("svc") as name:
        yield name


def addresses(*texts: str) -> tuple[object, ...]:
    return tuple(map(ip_address, texts))


def test_all_endpoints_of_a_service_are_found_in_nftables(node: str) -> None:
    rulesets.load(node, services.kube_proxy("nftables", KNOWN, node="10.0.1.10"))
    with netns.inside(node):
        target = Services()
        for protocol, port, found in [
            ("tcp", 80, addresses("10.0.9.10", "10.0.9.11")),
            ("udp", 80, addresses("10.0.9.12")),
            ("tcp", 81, ()),
        ]:
            assert target.endpoints(ADDRESS, protocol, port) == found


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_all_endpoints_of_a_service_are_found_in_iptables(
    node: str, backend: rulesets.Backend
) -> None:
    rulesets.load(node, services.kube_proxy("iptables", KNOWN, node="", backend=backend))
    rulesets.load(node, services.portmap([HostPort(8080, "10.0.9.13", 80)], backend=backend))
    with netns.inside(node):
        argv = [f"iptables-{backend}-save", "-t", "nat"]
        saved = subprocess.run(argv, capture_output=True, check=True, text=True).stdout
    lines = saved.splitlines()
    ends = addresses("10.0.9.10", "10.0.9.11")
    assert endpoints_in_iptables(lines, ADDRESS, "tcp", 80) == ends
    assert endpoints_in_iptables(lines, ADDRESS, "udp", 80) == addresses("10.0.9.12")
    assert endpoints_in_iptables(lines, ADDRESS, "tcp", 81) == ()
    node_address = ip_address("10.0.1.10")
    assert endpoints_in_iptables(lines, node_address, "tcp", 30080) == ends
    assert endpoints_in_iptables(lines, node_address, "tcp", 8080) == addresses("10.0.9.13")


def test_a_destination_is_read_with_and_without_a_port() -> None:
    rules = [
        "-A PREROUTING -d 192.0.2.1/32 -j DNAT --to-destination 10.0.0.1",
        "-A PREROUTING ! -d 192.0.2.0/24 -p tcp -j ELSEWHERE",
        "-A PREROUTING -d 192.0.2.2/32 -j DNAT --to-destination 10.0.0.2:53",
    ]
    found = endpoints_in_iptables(rules, ip_address("192.0.2.1"), "tcp", 53)
    assert found == addresses("10.0.0.1")
    six = ["-A PREROUTING -d 2001:db8::1/128 -j DNAT --to-destination [2001:db8::9]:80"]
    found = endpoints_in_iptables(six, ip_address("2001:db8::1"), "tcp", 80)
    assert found == addresses("2001:db8::9")
