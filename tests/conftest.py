"""What tests share: builders of documents and inputs, and namespaces that always go away."""

from __future__ import annotations

import gc
import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from hypothesis import HealthCheck, settings
from pyroute2 import IPRoute
from werkzeug.serving import make_server

sys.path.insert(0, str(Path(__file__).parent))  # for fakes, builders and strategies

import cgroup
from fork_server import ForkServer

from lab import lifecycle, netns
from lab.ec2 import Cloud
from lab.faults import Faults
from lab.server import IMAGE
from lab.topology import SUBNETS
from lab.wire import NoWire
from reconciler.targets.netlink.ruleset import Nfnetlink

# Programs are started by the hundred here, and each would compile all it imports: an eighth of
# its start. Some containers set this for images' sake.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

settings.register_profile(
    "suite",
    deadline=None,  # two busy cores say nothing about the code
    max_examples=int(os.environ.get("EXAMPLES", "40")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("suite")


RUN = os.environ.setdefault("NODE_NETWORK_TEST_RUN", secrets.token_hex(2))
"""Part of every name this run gives away; workers inherit it."""


def lab_name(letter: str) -> str:
    """Return a name for a lab that nobody else has."""
    return f"{letter}{RUN}{secrets.token_hex(3)}"


fork_server = ForkServer()
"""Where labs come from that are not themselves what a test is about."""


LONGEST = ("test_pool.py", "test_neighbour.py", "test_takeover.py", "test_privileges.py")
"""Files that take minutes, because they wait for EC2's times or fill a node with pods."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long, lest one worker be left alone with it at the end."""
    items.sort(
        key=lambda item: (
            not item.path.name.endswith(LONGEST),
            item.get_closest_marker("lab") is None,
        )
    )


def pytest_collection_finish() -> None:
    """Look for garbage in what tests make, and not in moto and thousands of tests again and again.

    That has been a third of what a test process did; to look as often as Python does by itself,
    a fifteenth of the rest.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def pytest_configure(config: pytest.Config) -> None:
    """End on SIGTERM as on Ctrl-C, so that fixtures clean up."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove what an interrupted worker could not."""
    if hasattr(config, "workerinput"):
        return
    for lab in lifecycle.labs():
        if lab[1:].startswith(RUN):
            lifecycle.down(lab)
    for name in netns.names(f"nnt-{RUN}-"):
        netns.remove(name)
    cgroup.remove_left(RUN)


@contextmanager
def namespace(hint: str = "t") -> Iterator[str]:
    """A network namespace of a name that no other test has."""
    name = f"nnt-{RUN}-{hint}-{secrets.token_hex(3)}"
    netns.make(name)
    try:
        yield name
    finally:
        netns.remove(name)


def plug(mac: str, name: str, far: str) -> None:
    """What attaching an ENI does: a link appears, down, with its own MAC."""
    with netns.path(far).open() as other, IPRoute() as ip:
        peer = {"ifname": f"x{name}", "net_ns_fd": other.fileno()}
        ip.link("add", ifname=name, kind="veth", address=mac, mtu=1500, peer=peer)
    with netns.inside(far), IPRoute() as ip:
        ip.link("set", index=ip.link_lookup(ifname=f"x{name}")[0], state="up")


@pytest.fixture
def home() -> Iterator[str]:
    """Run the test's thread inside a namespace of its own."""
    Nfnetlink._ours.clear()  # by inode, which the kernel gives to another namespace later
    with namespace("home") as name, netns.inside(name):
        yield name


@pytest.fixture
def pod() -> Iterator[str]:
    """Path of another namespace, for a pod."""
    with namespace("pod") as name:
        yield str(netns.path(name))


@dataclass
class Ec2World:
    """EC2 over HTTP, with one m5.large in a VPC of the lab's shape; no packets."""

    cloud: Cloud
    client: Any
    vpc_id: str
    subnets: dict[str, str]
    instance_id: str


@pytest.fixture(scope="session")
def ec2_server() -> Iterator[tuple[Cloud, str]]:
    """One EC2 per test process: moto's classes are replaced for good."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    cloud = Cloud(wire=NoWire(), faults=Faults())
    server = make_server("127.0.0.1", 0, cloud.app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield cloud, f"http://127.0.0.1:{server.port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def ec2(ec2_server: tuple[Cloud, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Ec2World]:
    """A VPC, and the SDK's own environment pointing at it."""
    cloud, endpoint = ec2_server
    monkeypatch.setenv("AWS_ENDPOINT_URL_EC2", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    cloud.reset()
    client = boto3.client(
        "ec2", region_name="us-east-1", config=Config(retries={"total_max_attempts": 1})
    )
    vpc_id = client.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    client.associate_vpc_cidr_block(VpcId=vpc_id, CidrBlock="100.64.0.0/16")
    subnets = {
        s.name: client.create_subnet(VpcId=vpc_id, CidrBlock=str(s.cidr), AvailabilityZone=s.zone)[
            "Subnet"
        ]["SubnetId"]
        for s in SUBNETS
    }
    primary = {"DeviceIndex": 0, "SubnetId": subnets["nodes-a"], "PrivateIpAddress": "10.0.1.10"}
    made = client.run_instances(
        ImageId=IMAGE, InstanceType="m5.large", MinCount=1, MaxCount=1, NetworkInterfaces=[primary]
    )
    cloud.faults.reset_calls()
    yield Ec2World(cloud, client, vpc_id, subnets, made["Instances"][0]["InstanceId"])
    cloud.faults.clear()
    client.close()
