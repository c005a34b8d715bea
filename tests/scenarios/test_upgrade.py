"""An earlier release, this one, the earlier one again, this one: pods do not notice.

The earlier release is taken from the repository's history: 787f3aa, or what UPGRADE_FROM names.
Its daemon runs in the same Python; the CNI executable is this release's all the time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from lab import pod
from lab.pod import PodError
from lab.traffic import Receiver, Stream, probe

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[2]
EARLIER = os.environ.get("UPGRADE_FROM", "787f3aa")
INTERNET, VPC_HOST = "198.51.100.10", "10.0.9.10"
PODS = 30
PACE_S = 0.2
"""Seconds between two pods that come and go."""

DOCUMENT = """\
apiVersion: node-network/v1alpha1
kind: NodeNetwork
warmPool: {addresses: {warm: 2, minimum: 40, surplus: 0}, cooldown: 2s}
reconcile: {resync: 2s}
"""


@pytest.fixture
def earlier(tmp_path: Path) -> Sequence[str]:
    """The words before a command that have it run the earlier release."""
    git = ["git", "-C", str(ROOT)]
    known = subprocess.run([*git, "cat-file", "-e", f"{EARLIER}^{{commit}}"], capture_output=True)
    if known.returncode:
        pytest.skip(f"{EARLIER} is not in this checkout's history")
    place = tmp_path / "earlier"
    place.mkdir()
    product = [*git, "archive", EARLIER, "reconciler", "cni", "schemas"]
    packed = subprocess.run(product, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", str(place)], input=packed, check=True)
    words = ["env", "PYTHONSAFEPATH=1", f"PYTHONPATH={place}"]
    ask = [*words, sys.executable, "-c", "import reconciler; print(reconciler.__file__)"]
    told = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
    assert Path(told.strip()).is_relative_to(place)
    return words


SHIPPED = ("env",)
"""Words before this release's command: a process of its own, as on a node."""

NOT_HELD = ("pydantic_core", "_yaml", "_asyncio")
"""Libraries of which a daemon at rest has nothing in its memory."""


def maps_of(pid: int) -> str:
    """Return what a process has mapped."""
    return Path(f"/proc/{pid}/maps").read_text()


class Others:
    """Pods that come and go, one after the other, as kubelet has them."""

    def __init__(self, cluster: Any, taken: set[str]) -> None:
        self._cluster, self._taken = cluster, taken
        self._ended = threading.Event()
        self._served = 0

    def go(self) -> None:
        """Serve them until told to end."""
        while not self._ended.wait(PACE_S):
            try:
                one = self._cluster.add()
            except PodError as error:  # between two daemons; a new sandbox tries again
                assert error.error["code"] == 11, error
                continue
            assert one.address not in self._taken, "given twice"
            assert probe(one.namespace, VPC_HOST).source == one.address
            pod.delete(one.lab, one.node, one.name)
            self._served += 1

    @contextmanager
    def coming(self) -> Iterator[Others]:
        """Have them come meanwhile; whatever went wrong with one is raised."""
        self._ended.clear()
        with ThreadPoolExecutor(1) as worker:
            self._work = worker.submit(self.go)
            try:
                yield self
            finally:
                self._ended.set()
        self._work.result()

    def await_some(self) -> None:
        """Wait until a pod that has begun after now was served."""
        enough = self._served + 2
        until(lambda: self._served >= enough or self._work.done(), "two pods")


@pytest.fixture
def cluster(make_cluster: Any, tmp_path: Path) -> Iterator[Any]:
    with make_cluster(tmp_path, types={"node1": "m5.xlarge"}) as made:
        made.config.write_text(DOCUMENT)
        made.least = 40
        yield made


def test_upgrade_downgrade_and_upgrade_cut_and_renumber_no_pod(
    cluster: Any, earlier: Sequence[str]
) -> None:
    cluster.prefix = earlier
    cluster.start()
    with ThreadPoolExecutor(4) as workers:
        pods = list(workers.map(lambda _: cluster.add(), range(PODS)))
    with ExitStack() as after:
        addresses = {one.address for one in pods}
        assert len(addresses) == PODS
        streams = []
        for place, peer in (("internet", INTERNET), ("vpchost", VPC_HOST)):
            after.enter_context(Receiver(cluster.lab.names.namespace(place)))
            streams += [
                (one.name, peer, after.enter_context(Stream(one.namespace, peer)))
                for one in pods[::3]
            ]
        others = Others(cluster, addresses)
        for release in (SHIPPED, earlier, SHIPPED):
            with others.coming():
                others.await_some()
                cluster.stop()
                cluster.prefix = release
                cluster.launch()
                others.await_some()
            until(lambda: cluster.status()["settled"], cluster.log)
            cut = [(name, peer) for name, peer, stream in streams if not stream.exchange("there")]
            assert cut == []
        assert {p for p in NOT_HELD if p in maps_of(cluster.process().pid)} == set()
        until(lambda: not cluster.records("cooling"), "cooldown")
        assert {a for r in cluster.records("attachments") for a in r["addresses"]} == addresses
        for one in pods:
            assert probe(one.namespace, VPC_HOST).source == one.address
    # Of a pod that is gone, the last packets of its connections may still be under way.
    lost = [d for d in cluster.lab.drops() if {d["source"], d["destination"]} & addresses]
    assert lost == []
    # What has cooled down may be more than the pool is to hold: given back, it is no difference.
    until(lambda: cluster.diff().returncode == 0, lambda: cluster.diff().stdout)
    audit = cluster.command("node1", "audit", "-f", str(cluster.config), "--apart", "0.5")
    assert (audit.returncode, audit.stdout) == (0, ""), audit.stderr
