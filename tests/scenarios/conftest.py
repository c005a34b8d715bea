"""A whole lab with reconcilers running, one for each test file."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from conftest import fork_server, lab_name
from fork_server import Forked
from waiting import until

from lab import lifecycle, netns, pod
from lab.ec2_client import open_ec2
from lab.lifecycle import Lab
from lab.pod import Pod
from reconciler.daemon.client import ask
from reconciler.diagnostics.trace import Query, find_pod
from reconciler.errors import UnansweredError
from reconciler.node.passes import LocalNode
from reconciler.node.views import Traced, follow
from reconciler.targets.state.directory import StateDirectory
from schemas.load import load

PROGRAM = [sys.executable, "-m", "reconciler"]

DOCUMENT = """\
apiVersion: node-network/v1alpha1
kind: NodeNetwork
warmPool: {addresses: {warm: 2, minimum: 24, surplus: 0}, cooldown: 2s}
snat:
  mode: node
  excludeCIDRs: []
"""


class Cluster:
    """A lab, its document, and the reconcilers that are running."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab = lab
        self.config = directory / "node-network.yaml"
        self.config.write_text(DOCUMENT)
        self.least = 24
        self.prefix: Sequence[str] = ()
        """Words before the command that starts a reconciler; without, it is forked."""
        self._running: dict[str, subprocess.Popen[str] | Forked] = {}
        self._numbers = iter(range(10_000))

    def command(self, node: str, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run node-network on a node."""
        return fork_server.run(self.lab, node, argv)

    def diff(
        self, node: str = "node1", config: Path | None = None, *more: str
    ) -> subprocess.CompletedProcess[str]:
        return self.command(node, "diff", "-f", str(config or self.config), *more)

    def start(self, node: str = "node1") -> None:
        """Start a reconciler and wait until the node is as the document says."""
        self.launch(node)
        until(lambda: self.answers(node), "an answer")
        until(lambda: self.is_settled(node), lambda: f"{node} settled\n{self.log(node)}")

    def launch(self, node: str = "node1", *more: str) -> None:
        """Start a reconciler."""
        log = self.lab.names.node_state(node) / "log"
        words = ["run", "-f", str(self.config), *more]
        if not self.prefix:
            self._running[node] = fork_server.launch(self.lab, node, words, log)
            return
        with log.open("a") as stderr:
            argv = [*self.prefix, *PROGRAM, *words]
            self._running[node] = self.lab.start(node, argv, stderr=stderr)

    def answers(self, node: str = "node1") -> bool:
        """Whether a reconciler is there; a socket alone may be left by a killed one."""
        try:
            return bool(self.status(node))
        except UnansweredError:
            return False

    def process(self, node: str = "node1") -> subprocess.Popen[str] | Forked:
        """Return the reconciler that was started last."""
        return self._running[node]

    def stop(self, node: str = "node1", number: int = signal.SIGTERM) -> None:
        process = self._running.pop(node)
        process.send_signal(number)
        process.wait(timeout=20)

    @contextmanager
    def still(self, node: str = "node1") -> Iterator[None]:
        """Have the reconciler do nothing meanwhile, as if all of this were one moment to it."""
        process = self.process(node)
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    def stop_all(self) -> None:
        for node in list(self._running):
            self.stop(node)

    def is_settled(self, node: str = "node1") -> bool:
        """Whether the reconciler holds the document, the whole pool included."""
        status = self.status(node)
        held = sum(e["addresses"] for e in status["enis"] if e["status"] == "attached")
        return bool(status["settled"]) and held >= self.least and not status["conditions"]

    def status(self, node: str = "node1") -> dict[str, Any]:
        body: dict[str, Any] = ask(self.socket(node), {"do": "status"})["status"]
        return body

    def socket(self, node: str = "node1") -> Path:
        return self.state(node) / "node-network.sock"

    def state(self, node: str = "node1") -> Path:
        return self.lab.names.node_state(node)

    def records(self, kind: str, node: str = "node1") -> list[dict[str, Any]]:
        found = []
        for path in sorted((self.state(node) / kind).glob("*.json")):
            with suppress(FileNotFoundError):  # removed since the directory was listed
                found.append(json.loads(path.read_text()))
        return found

    def logged(self, node: str = "node1") -> str:
        """Return the whole log. A thread of its own writes it: what has happened may come yet."""
        return (self.state(node) / "log").read_text()

    def log(self, node: str = "node1") -> str:
        path = self.state(node) / "log"
        return "\n".join(path.read_text().splitlines()[-15:]) if path.exists() else ""

    def drift(self, node: str = "node1") -> float:
        """Count what was put right."""
        lines = self.status(node)["metrics"].splitlines()
        start = "node_network_drift_repaired_total{"
        return sum(float(x.rpartition(" ")[2]) for x in lines if x.startswith(start))

    def ruleset(self, node: str = "node1") -> str:
        """Return the ruleset without what the node holds, which is the same whoever has it."""
        text = self.lab.run(node, ["nft", "-s", "list", "ruleset"]).stdout
        return re.sub(r"\tset held_ipv[46] \{.*?\n\t\}\n", "", text, flags=re.DOTALL)

    def add(self, node: str = "node1", **options: Any) -> Pod:
        return pod.add(self.lab, node, f"p{next(self._numbers)}", **options)

    def delete(self, one: Pod) -> None:
        pod.delete(self.lab, one.node, one.name)
        until(lambda: not self.holds(one), "the release")

    def holds(self, one: Pod) -> bool:
        container = f"{self.lab.names.lab}-{one.name}"
        kinds = ("attachments", "intents")
        return any(r["containerID"] == container for k in kinds for r in self.records(k, one.node))

    @contextmanager
    def pods(self, count: int, node: str = "node1") -> Iterator[list[Pod]]:
        """Some pods, gone afterwards with their cooldown over."""
        made: list[Pod] = []
        with ThreadPoolExecutor(4) as workers:
            try:
                started = [workers.submit(self.add, node) for _ in range(count)]
                made.extend(future.result() for future in started)
                yield made
            finally:
                left = [one for one in made if netns.path(one.namespace).exists()]
                list(workers.map(self.delete, left))
        until(lambda: not self.records("cooling", node), "cooldown")

    def trace(self, pod: str, peer: str, *, node: str = "node1", **more: Any) -> Traced:
        """Trace a connection, in this process; ``pod`` is an address, or host."""
        document = load(self.config.read_text(), str(self.config))
        words = {k: v if isinstance(v, int) else ip_address(v) for k, v in more.items()}
        with netns.inside(self.lab.names.namespace(node)):
            (traced,) = follow(
                LocalNode(StateDirectory(self.state(node))),
                document,
                lambda inputs: [
                    Query(find_pod(inputs.attachments, pod), ip_address(peer), **words)
                ],
            )
        return traced

    def aws(self, method: str, **arguments: Any) -> Any:
        """Call EC2 as somebody else of the same account."""
        with netns.inside(self.lab.names.namespace("vpchost")):
            client = open_ec2()
            try:
                return getattr(client, method)(**arguments)
            finally:
                client.close()

    def ip(self, *words: str, node: str = "node1") -> str:
        done = self.lab.run(node, ["ip", *words])
        assert done.returncode == 0, done.stderr
        return str(done.stdout)


@contextmanager
def _make_cluster(directory: Path, *nodes: str, **options: Any) -> Iterator[Cluster]:
    """A lab with reconcilers on some nodes."""
    made = lifecycle.up(lab_name("n"), start=fork_server.start, **options)
    cluster = Cluster(made, directory)
    try:
        for node in nodes:
            cluster.start(node)
        yield cluster
    finally:
        cluster.stop_all()
        lifecycle.down(made.names.lab)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes with reconcilers; a test leaves it as it found it."""
    with _make_cluster(tmp_path_factory.mktemp("cluster"), "node1", "node2") as made:
        yield made


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[Cluster]:
    """A lab of the test's own, with no reconciler running yet."""
    with _make_cluster(tmp_path) as made:
        yield made


@pytest.fixture(scope="session")
def make_cluster() -> Any:
    """Make a lab of the test's own, of another shape."""
    return _make_cluster
