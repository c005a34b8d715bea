"""Pods that come and go for ever: the daemon must not grow, and nothing may stay behind.

``make soak`` sets ``CYCLES``; without it there is nothing to run.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from runtime.chain import Chain
from waiting import until

from lab.traffic import Receiver, probe

CYCLES = int(os.environ.get("CYCLES", "0"))
AT_ONCE = 3
PER_CYCLE_S = 1
"""Seconds; many times what one takes."""

GROWTH_BYTES = 3 << 20
"""What the daemon may hold more after the second half than after the first: one page of an
allocator more or less, and far less than a hundred bytes for each of thousands of cycles."""

pytestmark = [
    pytest.mark.lab,
    pytest.mark.runtime,
    pytest.mark.skipif(not CYCLES, reason="only with CYCLES, as make soak sets it"),
]


class Daemon:
    """A reconciler's process, from outside."""

    def __init__(self, cluster: Any) -> None:
        pid = (cluster.state() / "lock").read_text()
        self._proc = Path("/proc") / pid
        self._cluster = cluster

    def resident_bytes(self) -> int:
        pages = int((self._proc / "statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def handles(self) -> dict[str, int]:
        """What must not grow; whoever is just asking has one of each."""
        return {
            "file descriptors": len(list((self._proc / "fd").iterdir())),
            "threads": len(list((self._proc / "task").iterdir())),
        }

    def holdings(self) -> dict[str, Any]:
        """What must be the same after each of them."""
        cluster = self._cluster
        kinds = ("intents", "attachments", "cooling", "quarantine", "creations")
        return {
            "files": sorted(
                p.relative_to(cluster.state()).as_posix()
                for kind in kinds
                for p in (cluster.state() / kind).iterdir()
            ),
            "links": [line.split()[1] for line in cluster.ip("-o", "link").splitlines()],
            "routes": cluster.ip("route", "show", "table", "all", "proto", "201"),
            "rules": cluster.ip("rule"),
            "neighbours": cluster.ip("neighbour", "show", "nud", "permanent"),
            "ruleset": cluster.lab.run("node1", ["nft", "-s", "list", "ruleset"]).stdout,
        }


@pytest.mark.timeout(120 + CYCLES * PER_CYCLE_S)
def test_pods_that_come_and_go_leave_the_daemon_as_it_was(cluster: Any, plugins: Path) -> None:
    text = cluster.config.read_text().replace("cooldown: 2s", "cooldown: 0s")
    cluster.config.write_text(text)
    until(lambda: cluster.status()["document"]["generation"] == 2, "the document")
    chain = Chain(cluster.lab, "node1", plugins, version="1.1.0")

    def cycle(number: int) -> None:
        chain.delete(chain.start(f"c{number}"))

    def settle() -> None:
        until(lambda: not cluster.records("intents") and cluster.is_settled(), cluster.log)

    daemon = Daemon(cluster)
    with ThreadPoolExecutor(AT_ONCE) as workers:
        list(workers.map(cycle, range(max(CYCLES // 10, 20))))  # what is made once, is made
        settle()
        before, handles = daemon.holdings(), daemon.handles()
        bytes_ = [daemon.resident_bytes()]
        for half in range(2):
            numbers = range(CYCLES + half * CYCLES // 2, CYCLES + (half + 1) * CYCLES // 2)
            list(workers.map(cycle, numbers))
            settle()
            bytes_.append(daemon.resident_bytes())
    print("resident bytes:", bytes_)  # noqa: T201 - shown if the test fails, or with -s
    assert daemon.holdings() == before
    until(lambda: all(n <= handles[k] for k, n in daemon.handles().items()), str(handles))
    assert bytes_[2] - bytes_[1] < GROWTH_BYTES
    last = chain.start("last")
    with Receiver(last.namespace):
        seen = probe(cluster.lab.names.namespace("vpchost"), last.address)
    assert seen.source == "10.0.9.10"
    chain.delete(last)
