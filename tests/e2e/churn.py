"""Pods that come and go, one a second on each node."""

from __future__ import annotations

import threading
import time
from typing import Self

from e2e.network import PODS, SPEC, Network, is_ready
from waiting import until

PERIOD_S = 1.0
LIFE_S = 5.0
SELECTOR = "churn=1"


class Churn:
    """Makes a pod on each node every second, and deletes each some seconds after it was ready.

    Attributes:
        made: how many pods were made.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._stop = threading.Event()
        self._ready: dict[str, float] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._before = network.failures()
        self.made = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        until(self._all_gone, self._network.trouble, patience_s=240)

    def failed(self) -> int:
        """Return how many ADDs have failed since it began."""
        return self._network.failures() - self._before

    def reasons(self) -> str:
        """Return what was said of them."""
        return self._network.reasons(self._before)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            for node in self._network.nodes:
                self._make(node)
            self._reap()
            due += PERIOD_S
            self._stop.wait(due - time.monotonic())

    def _make(self, node: str) -> None:
        self.made += 1
        metadata = {"name": f"churn-{self._before}-{self.made}", "labels": {"churn": "1"}}
        body = {"metadata": metadata, "spec": SPEC | {"nodeName": node}}
        self._network.api.post(PODS, body)

    def _reap(self) -> bool:
        """Delete who has lived long enough; whether nobody is left."""
        now, pods = time.monotonic(), self._network.pods(SELECTOR)
        for pod in pods:
            name = pod["metadata"]["name"]
            if is_ready(pod) and now - self._ready.setdefault(name, now) > LIFE_S:
                self._network.api.delete(f"{PODS}/{name}")
        return not pods

    def _all_gone(self) -> bool:
        """Wait for every pod: one whose ADD failed is ready late, and not before."""
        time.sleep(0.2)
        return self._reap()
