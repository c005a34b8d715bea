"""What lives through a file of tests: connections, jobs each minute, and a look at memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from e2e.disturbance import connections, cut
from e2e.network import CONTAINER, SPEC, Memory, Network, group_of, memory_of
from waiting import until

from lab.traffic import Stream

SPACE = "minutely"
JOBS = f"/apis/batch/v1/namespaces/{SPACE}/jobs"
CRON_JOBS = f"/apis/batch/v1/namespaces/{SPACE}/cronjobs"

EVERY_S = 0.2
"""Seconds between two looks at memory."""

ENDED = ("Succeeded", "Failed")
"""Phases of pods that have given their network back, and are shown with their addresses."""


@dataclass(frozen=True)
class Through:
    """What lives through it.

    Attributes:
        streams: connections that were opened at the beginning.
        began: monotonic seconds.
        peaks: the most that each node's reconciler has used at a look.
    """

    network: Network
    streams: dict[str, Stream]
    began: float
    peaks: dict[str, Memory]

    def cut(self) -> tuple[str, ...]:
        """Name the connections that do not live any more."""
        return cut(self.streams)

    def jobs(self) -> list[dict[str, Any]]:
        """Return the jobs that were made by now."""
        return self.network.api.items(JOBS)


@contextmanager
def background(network: Network, name: str) -> Iterator[Through]:
    """Have connections, a CronJob for each node, and somebody who looks at memory."""
    with (
        connections(network, name) as streams,
        cron_jobs(network, network.pods(f"app={name}")[0]["status"]["podIP"]),
        watching(network) as peaks,
    ):
        yield Through(network, streams, time.monotonic(), peaks)


@contextmanager
def cron_jobs(network: Network, address: str) -> Iterator[None]:
    """Have a job on each node each minute, whose pod connects to an address once."""
    network.cluster.kubectl("create", "namespace", SPACE)
    for node in network.nodes:
        asks = CONTAINER | {"args": [address]}
        where = {"nodeSelector": {"kubernetes.io/hostname": node}}
        pod = SPEC | where | {"containers": [asks], "restartPolicy": "Never"}
        spec = {
            "schedule": "* * * * *",
            "successfulJobsHistoryLimit": 100,
            "failedJobsHistoryLimit": 100,
            "jobTemplate": {"spec": {"template": {"spec": pod}}},
        }
        network.api.post(CRON_JOBS, {"metadata": {"name": node}, "spec": spec})
    try:
        yield
    finally:
        network.cluster.kubectl("delete", "namespace", SPACE, "--timeout=120s")


@contextmanager
def watching(network: Network) -> Iterator[dict[str, Memory]]:
    """Look at the reconcilers' memory again and again; those of later containers too."""
    peaks: dict[str, Memory] = {}
    stop = threading.Event()

    def look(node: str) -> None:
        while not stop.is_set():
            # Between two containers, and while the API server is away, there is nothing to see.
            with suppress(AssertionError, OSError, ValueError):
                _follow(network, node, peaks, stop)
            stop.wait(EVERY_S)

    threads = [threading.Thread(target=look, args=(node,), daemon=True) for node in network.nodes]
    for thread in threads:
        thread.start()
    try:
        yield peaks
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _follow(network: Network, node: str, peaks: dict[str, Memory], stop: threading.Event) -> None:
    """Look at one container until it is gone."""
    group = group_of(network.container(node))
    while not stop.is_set():
        now = memory_of(group)
        most = peaks.setdefault(node, now)
        peaks[node] = replace(
            now,
            own=max(now.own, most.own),
            peak=max(now.peak, most.peak),
            killed=max(now.killed, most.killed),
        )
        stop.wait(EVERY_S)


def disagreement(network: Network) -> dict[str, tuple[list[str], list[str]]]:
    """Return the pods whose addresses the API server and our records tell differently."""
    told: dict[str, list[str]] = {}
    for pod in network.api.items("/api/v1/pods"):
        if pod["spec"].get("hostNetwork") or pod["status"]["phase"] in ENDED:
            continue
        name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        told[name] = [ip["ip"] for ip in pod["status"].get("podIPs", [])]
    records = [r for node in network.nodes.values() for r in node.records("attachments")]
    recorded = {r["pod"]: r["addresses"] for r in records}
    return {
        name: (told.get(name, []), recorded.get(name, []))
        for name in told.keys() | recorded.keys()
        if told.get(name, []) != recorded.get(name, [])
    }


def agreed(network: Network) -> None:
    """Wait until all addresses are told alike: a pod that ends is gone there before it is here."""
    until(lambda: not disagreement(network), lambda: str(disagreement(network)), patience_s=90)
