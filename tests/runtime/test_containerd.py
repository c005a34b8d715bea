"""containerd, driven through CRI as kubelet drives it, on a node of the lab."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from runtime.cri import Cri
from runtime.host import CNI_CACHE, IMAGE, Host, host, make_image
from waiting import until

from lab.traffic import Receiver, probe

TYPES = {"node1": "m5.xlarge"}
"""Node 1 has room for 30 pods."""

RECONCILE = "reconcile: {ec2Resync: 10s, resync: 5s}\n"
"""EC2's answers are confirmed by a look, and metadata is read, within a test's time."""

pytestmark = [pytest.mark.lab, pytest.mark.runtime]

COUNT = 30
INTERNET = "198.51.100.10"
SHIM_SOCKETS = Path("/run/containerd/s")
"""containerd has no setting for it."""


class Containerd:
    """One containerd, with everything of its own in the host's directory."""

    def __init__(self, cluster: Any, plugins: Path, where: Host) -> None:
        self._cluster = cluster
        self._directory = where.directory
        self.socket = where.directory / "c.sock"
        networks = where.directory / "net"
        networks.mkdir()
        ours = {"type": "node-network", "stateDir": str(cluster.state("node1"))}
        conflist = {"cniVersion": "1.0.0", "name": "node-network", "plugins": [ours]}
        (networks / "10-node-network.conflist").write_text(json.dumps(conflist))
        (where.directory / "config.toml").write_text(f"""
version = 2
root = "{where.directory}/root"
state = "{where.directory}/state"
[grpc]
address = "{self.socket}"
[plugins."io.containerd.internal.v1.opt"]
path = "{where.directory}/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{networks}"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
Root = "{where.directory}/runc"
""")
        self.start()
        archive = str(make_image(where.directory))
        ctr = ["ctr", "-a", str(self.socket), "-n", "k8s.io", "images", "import", archive]
        subprocess.run(ctr, check=True, capture_output=True)

    def start(self) -> None:
        """Start it and wait until it is ready for pods."""
        with (self._directory / "log").open("a") as log:
            self._process = self._cluster.lab.start(
                "node1",
                ["containerd", "-c", str(self._directory / "config.toml")],
                stdout=log,
                stderr=log,
            )
        with Cri(self.socket) as cri:
            until(cri.is_ready, self.log)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it; its shims and their pods live on."""
        self._process.send_signal(number)
        self._process.wait(timeout=20)

    def log(self) -> str:
        return (self._directory / "log").read_text()[-3000:]


@pytest.fixture(scope="module")
def where() -> Iterator[Host]:
    sockets = set(SHIM_SOCKETS.glob("*"))
    try:
        with host() as made:
            yield made
    finally:
        # Shims that were killed could not remove theirs.
        for path in set(SHIM_SOCKETS.glob("*")) - sockets:
            if is_deserted(path):
                path.unlink(missing_ok=True)


def is_deserted(path: Path) -> bool:
    """Whether nobody listens at a socket."""
    with socket.socket(socket.AF_UNIX) as s:
        return s.connect_ex(str(path)) == errno.ECONNREFUSED


@pytest.fixture(scope="module")
def containerd(cluster: Any, plugins: Path, where: Host) -> Iterator[Containerd]:
    made = Containerd(cluster, plugins, where)
    yield made
    made.stop()


@pytest.fixture
def cri(containerd: Containerd) -> Iterator[Cri]:
    with Cri(containerd.socket) as made:
        yield made


def leftovers(cluster: Any, where: Host) -> dict[str, Any]:
    """What is still there of any sandbox, by kind."""
    programs = {}
    for pid in where.processes():
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        programs[pid] = os.fsdecode(words[0])
    found = {
        "records": [k for k in ("intents", "attachments") if cluster.records(k)],
        "veths": [x for x in cluster.ip("-o", "link").splitlines() if "node-network:" in x],
        "routes": cluster.ip("route", "show", "table", "512").splitlines(),
        "processes": {k: v for k, v in programs.items() if not v.endswith("containerd")},
        "mounts": where.mounts(),
        "cgroups": where.containers(),
    }
    return {kind: what for kind, what in found.items() if what}


def end(cri: Cri, sandbox: str) -> None:
    cri.stop(sandbox)
    cri.remove(sandbox)


def test_thirty_pods_at_once_come_talk_and_go(
    cluster: Any, containerd: Containerd, cri: Cri, where: Host
) -> None:
    sockets = set(SHIM_SOCKETS.glob("*"))
    with ThreadPoolExecutor(COUNT) as workers:
        ids = list(workers.map(lambda n: cri.run(f"pod{n}", where.cgroup), range(COUNT)))
    told = {each: cri.address(each) for each in ids}
    assert len(set(told.values())) == COUNT
    records = {r["containerID"]: r for r in cluster.records("attachments")}
    assert {each: r["addresses"] for each, r in records.items()} == {
        each: [own] for each, own in told.items()
    }
    assert {r["pod"] for r in records.values()} == {f"default/pod{n}" for n in range(COUNT)}
    assert len({r["eniID"] for r in records.values()}) > 1
    intents = {r["containerID"]: r["netns"] for r in cluster.records("intents")}

    with ExitStack() as stack:
        far = stack.enter_context(cluster.pods(1, "node2"))[0]
        for each in (intents[ids[0]], far.namespace, cluster.lab.names.namespace("internet")):
            stack.enter_context(Receiver(each))

        def talk(each: str) -> list[str]:
            targets = (told[ids[0]], far.address, INTERNET)
            return [probe(intents[each], to).source for to in targets]

        with ThreadPoolExecutor(4) as workers:
            seen = dict(zip(ids, workers.map(talk, ids), strict=True))
        assert seen == {each: [own, own, "10.0.1.10"] for each, own in told.items()}

    with ThreadPoolExecutor(COUNT) as workers:
        list(workers.map(lambda each: end(cri, each), ids))
    assert cri.sandboxes() == {}
    until(lambda: not leftovers(cluster, where), lambda: str(leftovers(cluster, where)))
    until(lambda: not cluster.records("cooling"), "cooldown")
    ruleset = cluster.lab.run("node1", ["nft", "list", "ruleset"]).stdout
    assert [own for own in told.values() if f" {own} " in ruleset] == []
    until(lambda: cluster.diff().stdout == "", cluster.log, patience_s=60)
    assert set(SHIM_SOCKETS.glob("*")) <= sockets
    assert [p for p in CNI_CACHE.glob("*") if any(each in p.name for each in ids)] == []


KILLS = int(os.environ.get("KILLS", "3"))
SEED = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 10**6)


class Kubelet:
    """What kubelet believes and does when its runtime dies under it.

    Attributes:
        living: sandboxes by the names of their pods.
    """

    def __init__(self, containerd: Containerd, cgroup: str) -> None:
        self._containerd = containerd
        self._cgroup = cgroup
        self._numbers = iter(range(100_000))
        self.living: dict[str, str] = {}
        self.forgotten = 0

    def start(self) -> tuple[str, str]:
        """Start a pod; return its name and its sandbox, "" for none."""
        name = f"kill{next(self._numbers)}"
        with Cri(self._containerd.socket) as cri:
            try:
                return name, cri.run(name, self._cgroup)
            except grpc.RpcError:
                return name, ""

    def end(self, sandbox: str) -> None:
        """End a sandbox, or try to."""
        with Cri(self._containerd.socket) as cri, suppress(grpc.RpcError):
            end(cri, sandbox)

    def clear_up(self) -> None:
        """End what it did not ask for, or has asked to end, as far as the runtime knows of it."""
        with Cri(self._containerd.socket) as cri:
            for each in cri.sandboxes().keys() - self.living.values():
                remove_torn_results(each)
                end(cri, each)


def remove_torn_results(sandbox: str) -> None:
    """Do what an operator has to do if containerd died while it kept a result.

    libcni writes it in place, and of half a file it says "unexpected end of JSON input" for ever.
    """
    for path in CNI_CACHE.glob(f"*{sandbox}*"):
        try:
            json.loads(path.read_text())
        except ValueError:
            path.unlink()


def test_a_result_that_containerd_has_half_written_is_removed_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "CNI_CACHE", tmp_path)
    for name, text in (("n-a1-eth0", ""), ("n-a2-eth0", "{}"), ("n-b1-eth0", '{"kind')):
        (tmp_path / name).write_text(text)
    remove_torn_results("a1")
    remove_torn_results("a2")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["n-a2-eth0", "n-b1-eth0"]


@pytest.mark.timeout(60 + KILLS * 20)
def test_if_containerd_is_killed_the_living_work_and_the_dead_hold_nothing(
    cluster: Any, containerd: Containerd, where: Host
) -> None:
    """It is killed when some ADDs have been recorded and others have not.

    Debian's containerd knows such sandboxes afterwards, as not ready, and kubelet ends them. It
    may leave their namespaces mounted, which is of no concern to us.
    """
    print(f"SEED={SEED}")  # noqa: T201 - shown if the test fails
    chance = random.Random(SEED)
    kubelet = Kubelet(containerd, where.cgroup)
    kubelet.living |= dict(kubelet.start() for _ in range(3))
    with ThreadPoolExecutor(8) as workers:
        for _ in range(KILLS):
            going = kubelet.living.pop(chance.choice(sorted(kubelet.living)))
            known = {r["containerID"] for r in cluster.records("intents")}
            enough = chance.randint(1, 4)
            starts = [workers.submit(kubelet.start) for _ in range(4)]
            ends = workers.submit(kubelet.end, going)
            while len({r["containerID"] for r in cluster.records("intents")} - known) < enough:
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.1))
            containerd.stop(signal.SIGKILL)
            ends.result()
            containerd.start()
            kubelet.living |= {name: each for name, each in (f.result() for f in starts) if each}
            kubelet.clear_up()
            kubelet.living |= dict([kubelet.start()])
    with Cri(containerd.socket) as cri:
        assert cri.sandboxes().keys() == set(kubelet.living.values())
        told = {each: cri.address(each) for each in kubelet.living.values()}

    def strangers() -> dict[str, Any]:
        """What is held by others than the living, by kind."""
        kinds = ("intents", "attachments")
        found = {k: {r["containerID"] for r in cluster.records(k)} ^ told.keys() for k in kinds}
        links = [x for x in cluster.ip("-o", "link").splitlines() if "node-network:" in x]
        found["veths"] = {x for x in links if not any(each in x for each in told)}
        return {kind: what for kind, what in found.items() if what}

    until(lambda: not strangers(), lambda: str(strangers()))
    assert len(set(told.values())) == len(told) >= 3
    records = {r["containerID"]: r for r in cluster.records("attachments")}
    with Receiver(cluster.lab.names.namespace("vpchost")):
        for each, own in told.items():
            assert records[each]["addresses"] == [own]
            namespace = records[each]["netns"].partition("@")[0]
            assert probe(namespace, "10.0.9.10").source == own
    until(lambda: not cluster.records("cooling"), "cooldown")
    until(lambda: cluster.diff().stdout == "", cluster.log, patience_s=60)
    with Cri(containerd.socket) as cri:
        for each in told:
            end(cri, each)
