"""Labs for tests: a whole one per worker, and a fabric without EC2 per test."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network

import pytest
from conftest import fork_server, lab_name
from waiting import until

from lab import lifecycle, netns
from lab.ec2_client import open_ec2
from lab.fabric import Fabric
from lab.topology import INSTANCES, SUBNETS, Names
from lab.wire import EniView


class HandMadeVpc:
    """A fabric that a test drives itself, in EC2's place."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self._made = 0
        for part in lifecycle.PARTS:
            netns.make(self.ns(part))
        with self.inside("vpc"):
            self.fabric = Fabric(names)
            self.fabric.build()

    def ns(self, part: str) -> str:
        return self.names.namespace(part)

    def inside(self, part: str):
        return netns.inside(self.ns(part))

    def eni(self, node: str, device: int, *addresses: str, subnet: str = "", **changes) -> EniView:
        """Describe an ENI; the subnet is the instance's own unless it is named."""
        self._made += 1
        subnet = subnet or next(i.subnet for i in INSTANCES if i.name == node)
        cidr = next(s.cidr for s in SUBNETS if s.name == subnet)
        held = tuple(map(IPv4Address, addresses))
        facts = {
            "eni_id": f"eni-0{self._made:016x}",
            "mac": f"02:00:00:00:00:{self._made:02x}",
            "subnet_id": subnet,
            "subnet_cidr": cidr,
            "vpc_id": "vpc-1",
            "availability_zone": "us-east-1a",
            "owner_id": "123456789012",
            "description": "",
            "status": "attached",
            "primary": held[0],
            "addresses": held,
            "prefixes": (),
            "ipv6_addresses": (),
            "ipv6_prefixes": (),
            "groups": (),
            "tags": (),
            "source_dest_check": True,
            "instance_id": f"i-{node}",
            "device_index": device,
        }
        return EniView(**(facts | changes))

    def plug(self, node: str, device: int, *addresses: str, **changes) -> EniView:
        eni = self.eni(node, device, *addresses, **changes)
        with self.inside("vpc"), self.fabric.launching(node):
            self.fabric.plug(eni)
        self.settle()
        return eni

    def settle(self) -> None:
        """Wait until every link that has a carrier carries.

        Linux activates a link's queues, and calls it up, some time after its carrier came
        (net/core/link_watch.c); until then what it is given to send is lost.
        """
        until(lambda: not self._waiting(), lambda: f"{self._waiting()} up")

    def _waiting(self) -> list[str]:
        links = json.loads(self.ip("vpc", "-j", "link"))
        return [
            k["ifname"] for k in links if "LOWER_UP" in k["flags"] and k["operstate"] == "DOWN"
        ]

    def unplug(self, eni: EniView) -> None:
        with self.inside("vpc"):
            self.fabric.unplug(eni)

    def readdress(self, eni: EniView) -> None:
        with self.inside("vpc"):
            self.fabric.readdress(eni)

    def ip(self, part: str, *words: str) -> str:
        """Run ``ip`` in a part and return what it printed."""
        return self.run(part, "ip", *words)

    def run(self, part: str, *argv: str) -> str:
        """Run a command in a part and return what it printed.

        Not by "ip -n": that remounts the root, which a chroot's is not for it to do.
        """
        command = ["nsenter", f"--net={netns.path(self.ns(part))}", *argv]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="session", autouse=True)
def root():
    if os.geteuid() != 0:
        pytest.skip("needs root: makes network namespaces")


@pytest.fixture
def name():
    """A lab's name that nobody else uses; whatever carries it is gone afterwards."""
    chosen = lab_name("t")
    yield chosen
    lifecycle.down(chosen)


@pytest.fixture
def vpc(name):
    return HandMadeVpc(Names(name))


@pytest.fixture(scope="session")
def lab():
    """One whole lab for all tests of this worker; each takes care of what it changes."""
    handle = lifecycle.up(lab_name("s"), start=fork_server.start)
    yield handle
    lifecycle.down(handle.names.lab)


@contextmanager
def client_on(lab, node):
    """A client that speaks to the lab's EC2 from a node, as a reconciler does."""
    with netns.inside(lab.names.namespace(node)):
        client = open_ec2()
        yield client
        client.close()


@pytest.fixture
def on():
    """``client_on``, for labs and nodes of a test's own."""
    return client_on


@pytest.fixture
def client(lab):
    with client_on(lab, "node1") as client:
        yield client


@pytest.fixture
def prefix():
    return IPv4Network("10.0.1.32/28")
