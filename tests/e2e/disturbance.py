"""Something happens to a running network while pods come and go and connections are open."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from e2e.churn import Churn
from e2e.network import Network
from waiting import until

from lab.topology import INTERNET_HOST
from lab.traffic import Receiver, Stream

NODE = "node1"

MADE = 10
"""Pods that are made before and after what happens."""


@dataclass(frozen=True)
class Disturbance:
    """What became of pods while something happened.

    Attributes:
        made: pods that were made meanwhile.
        failed: ADDs that failed.
        reasons: what was said of them.
        cut: which of the connections opened before do not live any more.
        took_s: until it was over, by its own measure.
    """

    made: int
    failed: int
    reasons: str
    cut: tuple[str, ...]
    took_s: float


def disturb(network: Network, name: str, what: Callable[[], object]) -> Disturbance:
    """Do something under a pod a second and node; return what became of them.

    Args:
        network: to which it happens.
        name: of what is done.
        what: does it, and returns when it is over.
    """
    until(network.daemons_ready, network.trouble, patience_s=120)
    with connections(network, "talk") as streams:
        with Churn(network) as churn:
            until(lambda: churn.made > MADE)
            began = time.monotonic()
            what()
            took, made = time.monotonic() - began, churn.made
            until(lambda: churn.made > made + MADE)
        seen = Disturbance(churn.made, churn.failed(), churn.reasons(), cut(streams), took)
    network.note(f"{name}: took, s; ADDs that failed", f"{took:.1f}; {seen.failed} of {seen.made}")
    if seen.failed:
        network.say(seen.reasons)
    return seen


@contextmanager
def connections(network: Network, name: str) -> Iterator[dict[str, Stream]]:
    """Connections of pods that are open: between the nodes, both ways, and with the Internet."""
    with ExitStack() as stack:
        pods = stack.enter_context(network.deployment(name, 4))
        stack.enter_context(Receiver(network.cluster.lab.names.namespace("internet")))
        one = next(p for p in pods if p["spec"]["nodeName"] == NODE)
        other = next(p for p in pods if p["spec"]["nodeName"] != NODE)
        ends = {
            "to the other node": (one, other["status"]["podIP"]),
            "from the other node": (other, one["status"]["podIP"]),
            "to the Internet": (one, str(INTERNET_HOST)),
            "from the other node to the Internet": (other, str(INTERNET_HOST)),
        }
        yield {
            words: stack.enter_context(Stream(network.namespace(pod), address, timeout_s=10))
            for words, (pod, address) in ends.items()
        }


def cut(streams: dict[str, Stream]) -> tuple[str, ...]:
    """Name the connections over which nothing comes back any more."""
    return tuple(words for words, stream in streams.items() if not stream.exchange("still there"))
