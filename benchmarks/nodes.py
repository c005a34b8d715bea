"""Nodes to measure pods on: a lab's, each with the reconciler that ships, and hosts of peers.

All keep their records on a tmpfs, as ``/run`` is on a host.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from benchmarks import shipped
from lab import lifecycle, netns
from lab.ec2_client import open_ec2
from lab.lifecycle import EXECUTABLE, Lab
from lab.topology import STATE
from reconciler.daemon.client import ask

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import TagTypeDef

PLUGINS = Path("/usr/lib/cni")
NODE_PASSES = ("pods", "full", "audit")
"""Passes over the kernel, as the metric names them."""

MANY = int(os.environ.get("BENCH_PODS", "250"))
"""Pods that are there already, where there are many; a short trial has fewer."""

STRAND = os.environ.get("BENCH_STRAND", "")
LAB = f"bench{zlib.crc32(str(shipped.ROOT).encode()) & 0xFFFF:04x}{STRAND}"
"""Name of the lab: another tree, and what goes on at the same time, measures in another one."""

WORKERS = 4
AT_ONCE = 100
ROOM = 32
"""Addresses beyond those that are asked for."""

MOST = MANY + AT_ONCE + ROOM
"""Addresses that are enough for all."""

SETTLE_LIMIT_S = 90.0
TYPE = "m5.4xlarge"
DOCUMENT = """\
apiVersion: node-network/v1alpha1
kind: NodeNetwork
warmPool: {{addresses: {{warm: 16, minimum: {minimum}}}, cooldown: {cooldown}}}
eni: {{allocate: prefixes, subnetTags: {{role: crowds}}}}
"""
"""Addresses are there before pods ask, and need no rest: EC2 is not what is measured."""

WIDE = {"us-east-1a": "100.64.16.0/20", "us-east-1b": "100.64.32.0/20"}
"""Subnets that hold more pods than the lab's own, by zone."""

Call = Callable[[str, str, str], None]
"""Runs an executable once: verb, container, namespace. Raises a ``CallError`` if that fails."""


class CallError(Exception):
    """An executable ended with an error; what it said."""


@contextmanager
def node(minimum: int = MOST) -> Iterator[tuple[Lab, int]]:
    """A lab with a reconciler on one large node, and that one's process."""
    with nodes({"node1": minimum}) as (lab, pids):
        yield lab, pids["node1"]


@contextmanager
def nodes(
    minima: Mapping[str, int],
    cooldown: str = "0s",
    earlier: Mapping[str, Sequence[str]] = MappingProxyType({}),
    name: str = LAB,
) -> Iterator[tuple[Lab, dict[str, int]]]:
    """A lab with a reconciler on each of some large nodes, and their processes.

    Args:
        minima: addresses that a node shall have, by its name.
        cooldown: of addresses; those of a pod that has left can be given out again at once.
        earlier: the command of a node that runs another release, by its name.
        name: of the lab.
    """
    clear(name)
    with tempfile.TemporaryDirectory(prefix="node-network-bench-") as directory:
        lab = lifecycle.up(name, types=dict.fromkeys(minima, TYPE))
        try:
            _widen(lab)
            with ExitStack() as stack:
                pids = {}
                for node, minimum in minima.items():
                    config = Path(directory) / f"{node}.yaml"
                    config.write_text(DOCUMENT.format(minimum=minimum, cooldown=cooldown))
                    stack.enter_context(tmpfs(lab.names.node_state(node)))
                    command = earlier.get(node) or shipped.command()
                    pids[node] = stack.enter_context(reconciler(lab, node, config, command)).pid
                for node in minima:
                    settle(lab, node)
                yield lab, pids
        finally:
            lifecycle.down(name)


def _widen(lab: Lab) -> None:
    with netns.inside(lab.names.namespace("vpchost")):
        client = open_ec2()
        (vpc,) = {s["VpcId"] for s in client.describe_subnets()["Subnets"] if s.get("Tags")}
        for zone, cidr in WIDE.items():
            made = client.create_subnet(VpcId=vpc, CidrBlock=cidr, AvailabilityZone=zone)
            tags: list[TagTypeDef] = [{"Key": "role", "Value": "crowds"}]
            client.create_tags(Resources=[made["Subnet"]["SubnetId"]], Tags=tags)


@contextmanager
def reconciler(
    lab: Lab, node: str, config: Path, command: Sequence[str]
) -> Iterator[subprocess.Popen[str]]:
    """Run a reconciler on a node; its log is beside the document."""
    with config.with_suffix(".log").open("a") as log:
        # nsenter becomes the reconciler by exec, and so does env
        process = lab.start(node, [*command, "run", "-f", str(config)], stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


def call_ours(lab: Lab, verb: str, name: str, where: str, *, node: str = "node1") -> None:
    """Run our executable once."""
    config = {
        "cniVersion": "1.0.0",
        "name": "node-network",
        "type": "node-network",
        "stateDir": str(lab.names.node_state(node)),
    }
    _run(lab.names.namespace(node), EXECUTABLE, config, verb, name, where)


def peer(lab: Lab, name: str, stack: ExitStack, *, masquerade: bool = False) -> Call:
    """The reference plugins, on a host of their own."""
    host = lab.names.namespace(f"pod-{name}host")
    netns.make(host)
    data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="node-network-bench-")))
    stack.enter_context(tmpfs(data))
    config = {
        "cniVersion": "1.0.0",
        "name": name,
        "type": "ptp",
        "ipMasq": masquerade,
        "ipam": {
            "type": "host-local",
            "dataDir": str(data),
            "ranges": [[{"subnet": "198.18.0.0/16"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    return partial(_run, host, PLUGINS / "ptp", config)


def _run(
    host: str, program: Path, config: Mapping[str, object], verb: str, name: str, where: str
) -> None:
    """Run an executable once on a host, as a runtime does that runs there."""
    environment = {
        "PATH": os.environ["PATH"],
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": name,
        "CNI_NETNS": str(netns.path(where)),
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(PLUGINS),
    }
    with netns.inside(host):
        done = subprocess.run(
            [str(program)],
            input=json.dumps(config),
            env=environment,
            text=True,
            check=False,
            capture_output=True,
        )
    if done.returncode != 0:
        raise CallError(f"{program.name} {verb} {name}: {done.stdout}{done.stderr}")


def clear(name: str) -> None:
    """Remove what a run that was killed has left of a lab."""
    state = f"{STATE / name}/"
    places = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for place in places:
        if f"{place}/".startswith(state):
            subprocess.run(["umount", "-l", place], check=True)
    lifecycle.down(name)


@contextmanager
def tmpfs(directory: Path) -> Iterator[None]:
    """Mount a directory of its own there."""
    subprocess.run(["mount", "-t", "tmpfs", "node-network", str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def status(lab: Lab, node: str = "node1") -> dict[str, Any]:
    """Ask a node how it is."""
    answer = ask(lab.names.node_state(node) / "node-network.sock", {"do": "status"})
    body: dict[str, Any] = answer["status"]
    return body


def await_listener(lab: Lab, node: str = "node1") -> None:
    """Wait until a node's reconciler takes questions: its socket is there a moment before."""
    path = lab.names.node_state(node) / "node-network.sock"
    deadline = time.monotonic() + SETTLE_LIMIT_S
    while time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
            connection.connect(str(path))
            return
        time.sleep(0.002)
    raise TimeoutError(f"no process listens at {path}")


def settle(lab: Lab, node: str = "node1") -> None:
    """Wait until a node is as it should be, with addresses for all that is to come."""
    await_listener(lab, node)
    deadline = time.monotonic() + SETTLE_LIMIT_S
    while True:
        now = status(lab, node)
        if now["settled"] and now["pool"].get("allocatable", 0) >= AT_ONCE:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{node} did not settle")
        time.sleep(0.1)


def crowd(lab: Lab, stem: str, call: Call, numbers: range) -> None:
    """Let pods come that stay, as ``c`` and their number, in namespaces called by the stem."""

    def come(number: int) -> None:
        where = lab.names.namespace(f"pod-{stem}{number}")
        netns.make(where)
        call("ADD", f"c{number}", where)

    with ThreadPoolExecutor(WORKERS) as workers:
        list(workers.map(come, numbers))


def burst(lab: Lab, stem: str, call: Call, number: int = AT_ONCE) -> list[float]:
    """Let pods come all at once, and go; return the seconds until each had come."""
    places = [lab.names.namespace(f"pod-{stem}{i}") for i in range(number)]
    make(places)

    def come(which: int) -> float:
        call("ADD", f"b{which}", places[which])
        return time.perf_counter() - began

    with ThreadPoolExecutor(number) as workers:
        began = time.perf_counter()
        each = list(workers.map(come, range(number)))
    for which, where in enumerate(places):
        call("DEL", f"b{which}", where)
        netns.remove(where)
    return each


def make(places: Iterable[str]) -> None:
    """Make namespaces, some at a time: nothing is measured meanwhile."""
    with ThreadPoolExecutor(WORKERS) as workers:
        list(workers.map(netns.make, places))


def remove(places: Iterable[str]) -> None:
    """Remove them likewise."""
    with ThreadPoolExecutor(WORKERS) as workers:
        list(workers.map(netns.remove, places))


def await_end(where: str) -> None:
    """Wait until a namespace has no interface of a pod's any more."""
    deadline = time.monotonic() + SETTLE_LIMIT_S
    with netns.inside(where):
        while any(name == "eth0" for _, name in socket.if_nameindex()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the pod in {where} does not end")
            time.sleep(0.001)
