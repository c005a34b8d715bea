"""podman with its CNI backend, on a node of the lab."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from runtime.host import CNI_CACHE, IMAGE, Host, host, make_image
from waiting import until

from lab import netns
from lab.traffic import Receiver, probe

TYPES = {"node1": "m5.xlarge"}
"""Node 1 has room for 30 pods."""

RECONCILE = "reconcile: {ec2Resync: 10s, resync: 5s}\n"
"""EC2's answers are confirmed by a look, and metadata is read, within a test's time."""

pytestmark = [pytest.mark.lab, pytest.mark.runtime]

COUNT = 16
"""More than one ENI's addresses; ``test_containerd`` fills the node, and podman starts slowly."""

INTERNET = "198.51.100.10"


class Podman:
    """One podman, with its storage in the host's directory."""

    def __init__(self, cluster: Any, plugins: Path, where: Host) -> None:
        self._cluster = cluster
        self._where = where
        directory = where.directory
        networks = directory / "net"
        networks.mkdir()
        ours = {"type": "node-network", "stateDir": str(cluster.state("node1"))}
        conflist = {"cniVersion": "1.0.0", "name": "node-network", "plugins": [ours]}
        (networks / "10-node-network.conflist").write_text(json.dumps(conflist))
        # runc, because crun refuses a cgroup v1 with controllers in a v2 beside it.
        (directory / "containers.conf").write_text(f"""
[containers]
cgroupns = "host"
log_driver = "k8s-file"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[network]
network_backend = "cni"
cni_plugin_dirs = ["{plugins}"]
network_config_dir = "{networks}"
default_network = "node-network"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = "{directory}/tmp"
static_dir = "{directory}/static"
volume_path = "{directory}/volumes"
""")
        self("load", "-i", str(make_image(directory)))

    def __call__(self, *words: str) -> str:
        """Run one command on node 1; return what it printed."""
        directory = self._where.directory
        roots = ["--root", f"{directory}/root", "--runroot", f"{directory}/run"]
        argv = ["podman", *roots, "--storage-driver", "vfs", *words]
        done = subprocess.run(
            self._cluster.lab.command("node1", argv),
            env=os.environ | {"CONTAINERS_CONF": f"{directory}/containers.conf"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"podman {words[0]}: {done.stderr}"
        return done.stdout.strip()

    def run(self, name: str) -> str:
        """Start a container; return its ID."""
        parent = f"/{self._where.cgroup}"
        return self("run", "-d", "--pull=never", "--cgroup-parent", parent, "--name", name, IMAGE)

    def networks(self) -> dict[str, tuple[str, str]]:
        """Return each running container's address and the name of its namespace, by ID."""
        containers = json.loads(self("inspect", *self("ps", "-q").split()))
        found = {}
        for each in containers:
            settings = each["NetworkSettings"]
            own = settings["Networks"]["node-network"]["IPAddress"]
            found[each["Id"]] = (own, Path(settings["SandboxKey"]).name)
        return found


@pytest.fixture(scope="module")
def where() -> Iterator[Host]:
    with host() as made:
        yield made


@pytest.fixture(scope="module")
def podman(cluster: Any, plugins: Path, where: Host) -> Iterator[Podman]:
    made = Podman(cluster, plugins, where)
    yield made
    asked = {Path(r["netns"]).name for r in cluster.records("intents")}
    try:
        made("rm", "-af", "-t", "0")
    finally:
        for name in asked:
            netns.remove(name)


def leftovers(cluster: Any, where: Host) -> dict[str, Any]:
    """What is still there of any container, by kind."""
    found = {
        "records": [k for k in ("intents", "attachments") if cluster.records(k)],
        "veths": [x for x in cluster.ip("-o", "link").splitlines() if "node-network:" in x],
        "routes": cluster.ip("route", "show", "table", "512").splitlines(),
        "processes": where.processes(),
        "mounts": [m for m in where.mounts() if not m.endswith("/root/vfs")],
        "cgroups": where.containers(),
    }
    return {kind: what for kind, what in found.items() if what}


def test_sixteen_containers_at_once_come_talk_and_go(
    cluster: Any, podman: Podman, where: Host
) -> None:
    with ThreadPoolExecutor(6) as workers:
        ids = list(workers.map(podman.run, [f"c{n}" for n in range(COUNT)]))
    networks = podman.networks()
    assert sorted(networks) == sorted(ids)
    addresses = {own for own, _ in networks.values()}
    assert len(addresses) == COUNT
    recorded = {r["containerID"]: r["addresses"] for r in cluster.records("attachments")}
    assert recorded == {each: [own] for each, (own, _) in networks.items()}
    assert len({a["eni"] for a in cluster.status()["attachments"]}) > 1

    with ExitStack() as stack:
        far = stack.enter_context(cluster.pods(1, "node2"))[0]
        first, namespace = networks[ids[0]]
        receivers = [namespace, far.namespace, cluster.lab.names.namespace("internet")]
        for each in receivers:
            stack.enter_context(Receiver(each))

        def talk(each: str) -> list[str]:
            _, inside = networks[each]
            return [probe(inside, to).source for to in (first, far.address, INTERNET)]

        with ThreadPoolExecutor(4) as workers:
            seen = dict(zip(ids, workers.map(talk, ids), strict=True))
        assert seen == {e: [own, own, "10.0.1.10"] for e, (own, _) in networks.items()}

    podman("rm", "-af", "-t", "0")
    until(lambda: not leftovers(cluster, where), lambda: str(leftovers(cluster, where)))
    until(lambda: not cluster.records("cooling"), "cooldown")
    ruleset = cluster.lab.run("node1", ["nft", "list", "ruleset"]).stdout
    assert [own for own in addresses if f" {own} " in ruleset] == []
    assert {name for _, name in networks.values()}.isdisjoint(netns.names("netns-"))
    until(lambda: cluster.diff().stdout == "", cluster.log, patience_s=60)
    assert [p for p in CNI_CACHE.glob("*") if any(each in p.name for each in ids)] == []


def test_a_restart_is_the_same_container_in_a_new_namespace(
    cluster: Any, podman: Podman, where: Host
) -> None:
    """DEL and, at once, ADD of the same ID."""
    one = podman.run("again")
    (before,) = podman.networks().values()
    for _ in range(3):
        podman("restart", "-t", "0", "again")
        ((known, after),) = podman.networks().items()
        assert known == one
        assert after[1] != before[1]
        with Receiver(after[1]):
            assert probe(cluster.lab.names.namespace("vpchost"), after[0]).source == "10.0.9.10"
        before = after
    podman("rm", "-f", "-t", "0", "again")
    until(lambda: not leftovers(cluster, where), lambda: str(leftovers(cluster, where)))
