"""A node with a hundred pods whose daemon has the manifest's memory and not a byte more."""

from __future__ import annotations

import os
import resource
import secrets
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cgroup import MemoryGroup, manifest_limit
from conftest import RUN
from scenarios.conftest import Cluster, make_cluster
from waiting import until

from lab import netns, pod
from lab.pod import Pod

__all__ = ["make_cluster"]

PODS = 100
ROUNDS = int(os.environ.get("ROUNDS", "5"))
"""ADDs and DELs for each hostile input; ``make soak`` has more."""

WARM_UP = 8
"""The same before anything is measured: until then the interpreter takes memory that it keeps."""

BUDGET_S = 5
"""Seconds of an ADD, but for those in which the loop waits for a processor that others have."""

CEILING_BYTES = 256 << 20
"""The suite runs under no more than this, whatever the manifest says."""

RETURN_S = 45.0
"""Seconds for memory to be given back; it takes the daemon three without work."""

LISTEN = "127.0.0.1:61680"
VPC_HOST, NODE = "10.0.9.10", "10.0.1.10"
CLOSED_PORT = 9

DOCUMENT = """\
apiVersion: node-network/v1alpha1
kind: NodeNetwork
warmPool: {{addresses: {{warm: 16, minimum: 144}}, cooldown: 2s}}
eni: {{allocate: prefixes, subnetTags: {{role: pods}}}}
reconcile: {{resync: 10s}}
snat:
  mode: node
  excludeCIDRs: [{exclude}]
"""


class Neighbourhood:
    """The node, its pods, and what must hold whatever somebody else does on it."""

    def __init__(self, cluster: Cluster, group: MemoryGroup) -> None:
        self.cluster = cluster
        self.group = group
        self.pods: list[Pod] = []
        self.pid = 0

    @property
    def node(self) -> str:
        """Name of the node's namespace."""
        return self.cluster.lab.names.namespace("node1")

    def launch(self) -> None:
        """Start the daemon in its group, and wait until the node is as the document says."""
        self.cluster.launch("node1", "--listen", LISTEN)
        until(lambda: self.cluster.answers(), "an answer")
        self.pid = self.cluster.process().pid  # nsenter has become the daemon by exec
        assert self.group.holds(self.pid), "the daemon is not under the limit"
        self.await_rest()

    def fill(self) -> None:
        """Start the pods that are to live through it all, and let the daemon come to rest."""
        with ThreadPoolExecutor(4) as workers:
            self.pods = list(workers.map(lambda _: self.cluster.add(), range(PODS)))
        self.serve(WARM_UP)

    def serve(self, rounds: int = ROUNDS) -> None:
        """Let pods come and go one by one, each within the budget."""
        for _ in range(rounds):
            one = self.add_in_time()
            assert self.reaches(one), f"{one.address} was answered and has no network"
            self.delete(one)

    def add_in_time(self) -> Pod:
        """Start a pod within the budget."""
        began_s, waited_s = time.monotonic(), self.waited_s
        one = self.cluster.add()
        took_s = time.monotonic() - began_s
        assert took_s - (self.waited_s - waited_s) <= BUDGET_S, f"ADD took {took_s:.1f} s"
        return one

    @property
    def waited_s(self) -> float:
        """How long the loop that serves pods could run and had no processor (sched-stats.rst)."""
        schedstat = Path(f"/proc/{self.pid}/task/{self.pid}/schedstat")  # it is the main thread
        return int(schedstat.read_text().split()[1]) / 1e9

    def delete(self, one: Pod) -> None:
        """End a pod, and wait until nothing of it is left."""
        pod.delete(one.lab, one.node, one.name)
        until(lambda: f"default/{one.name}" not in self.status_of_pods(), "the release")

    def status_of_pods(self) -> dict[str, Any]:
        """Return what the daemon says of each pod, by its name."""
        return {a["pod"]: a for a in self.cluster.status()["attachments"]}

    @contextmanager
    def lives_through(self) -> Iterator[None]:
        """Check that what happens inside costs the node nothing that lasts."""
        self.await_rest()
        before_bytes, before_links, kills = self.anonymous_bytes, self.links(), self.group.kills
        assert all(before_links.values()), "each pod has a link"
        yield
        assert self.group.kills == kills, "the kernel has killed somebody for memory"
        assert self.cluster.process().poll() is None, f"the daemon ended\n{self.cluster.log()}"
        assert self.group.holds(self.pid)
        links = self.links()
        cut = [a for a, index in before_links.items() if links.get(a) != index]
        assert cut == [], "links of running pods were removed"
        with ThreadPoolExecutor(8) as workers:
            reached = list(workers.map(self.reaches, self.pods))
        lost = [p.address for p, ok in zip(self.pods, reached, strict=True) if not ok]
        assert lost == [], "running pods have lost their network"
        self.await_rest()
        allowed = before_bytes * 1.1
        until(
            lambda: self.anonymous_bytes <= allowed,
            lambda: (
                f"memory back within 10 %: {before_bytes >> 10} KiB before, "
                f"{self.anonymous_bytes >> 10} KiB after, peak {self.group.peak_bytes >> 20} MiB"
            ),
            patience_s=RETURN_S,
        )

    def await_rest(self) -> None:
        """Wait until the node is as the document says and nothing is wrong with it."""
        until(
            lambda: self.cluster.is_settled() and not self.cluster.status()["cooling"],
            lambda: f"{self.cluster.status()['conditions']}\n{self.cluster.log()}",
            patience_s=RETURN_S,
        )

    def complains_of(self, text: str) -> bool:
        """Whether a condition has some text."""
        return any(text in c["text"] for c in self.cluster.status()["conditions"])

    def links(self) -> dict[str, int]:
        """Return the index of each pod's link on the host; that of one made anew is another."""
        told = self.status_of_pods()
        with netns.inside(self.node):
            indices = {name: index for index, name in socket.if_nameindex()}
        veths = {p.address: told.get(f"default/{p.name}", {}).get("veth", "") for p in self.pods}
        return {address: indices.get(veth, 0) for address, veth in veths.items()}

    def reaches(self, one: Pod) -> bool:
        """Whether a pod's packets go out by its ENI and come back: a closed port refuses."""
        with netns.inside(one.namespace), socket.socket() as s:
            s.settimeout(3)
            return s.connect_ex((VPC_HOST, CLOSED_PORT)) == REFUSED

    @property
    def anonymous_bytes(self) -> int:
        """What the daemon's own memory is; the process that asks EC2 comes and goes beside it."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(x.split()[1]) << 10 for x in lines if x.startswith("RssAnon"))

    @contextmanager
    def document(self, exclude: str) -> Iterator[None]:
        """Have the document exclude some CIDRs; what it said before is restored."""
        before = self.cluster.config.read_text()
        self.cluster.config.write_text(DOCUMENT.format(exclude=exclude))
        try:
            yield
        finally:
            self.cluster.config.write_text(before)

    @contextmanager
    def few_descriptors(self, count: int) -> Iterator[None]:
        """Let the daemon have so many open files, while this is entered."""
        _, hard = before = resource.prlimit(self.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (count, hard))
        try:
            yield
        finally:
            resource.prlimit(self.pid, resource.RLIMIT_NOFILE, before)


REFUSED = 111  # ECONNREFUSED


@pytest.fixture(scope="module")
def populated(
    tmp_path_factory: pytest.TempPathFactory, make_cluster: Any
) -> Iterator[Neighbourhood]:
    """One node for a module's tests; each leaves it as it found it."""
    limit = min(manifest_limit(), CEILING_BYTES)
    directory = tmp_path_factory.mktemp("hostile")
    with (
        MemoryGroup(f"{RUN}-{secrets.token_hex(3)}", limit) as group,
        make_cluster(directory, types={"node1": "m5.4xlarge"}) as cluster,
    ):
        cluster.config.write_text(DOCUMENT.format(exclude=""))
        cluster.least, cluster.prefix = 144, group.prefix
        made = Neighbourhood(cluster, group)
        try:
            made.launch()
            made.fill()
            yield made
        finally:
            cluster.process().kill()  # it may hang in what a failed test did to it


@pytest.fixture
def neighbourhood(populated: Neighbourhood) -> Neighbourhood:
    """The node with its daemon running, whatever became of that in another test."""
    if populated.cluster.process().poll() is not None:
        populated.launch()
        populated.serve(WARM_UP)
    return populated
