"""The document in the cluster: edited, and taken by the reconcilers at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from e2e.network import Network
from waiting import until

from reconciler.errors import UnansweredError

PATH = "/api/v1/namespaces/kube-system/configmaps/node-network"

LOOK_AGAIN_S = 1.0
"""Seconds after which kubelet is told again; within it, it has looked."""


@contextmanager
def edited(network: Network, text: str) -> Iterator[None]:
    """Have another document in the ConfigMap; later the one before."""
    before = network.api.get(PATH)["data"]
    network.api.patch(PATH, {"data": {"node-network.yaml": text}})
    try:
        yield
    finally:
        network.api.patch(PATH, {"data": before})


def taken(network: Network, holds: Callable[[], bool]) -> None:
    """Wait until an edit has its effect, and have kubelet look at the daemons' pods meanwhile.

    It mounts a ConfigMap anew once a minute, or when a pod of it changes.
    """
    told = float("-inf")

    def come() -> bool:
        nonlocal told
        if time.monotonic() - told > LOOK_AGAIN_S:
            annotation = {"metadata": {"annotations": {"e2e/now": str(time.time())}}}
            for daemon in network.daemons():
                name = daemon["metadata"]["name"]
                network.api.patch(f"/api/v1/namespaces/kube-system/pods/{name}", annotation)
            told = time.monotonic()
        return holds()

    until(come, network.trouble, patience_s=120)


def refused(network: Network, of: Callable[[Iterable[bool]], bool] = all) -> bool:
    """Whether reconcilers say that the document is refused; one that is starting says nothing."""
    with suppress(UnansweredError):
        return of(
            "DocumentRefused" in {c["reason"] for c in network.status(node)["conditions"]}
            for node in network.nodes
        )
    return of([False])
