"""A node with clients and servers, for tests of what others on it do to their packets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import rulesets

from lab.pod import Pod
from lab.traffic import PORT, Receiver, Seen, probe

NODE, VPC_HOST = "10.0.1.10", "10.0.9.10"


class ScaleFixture:
    """Clients and servers on the primary and on a secondary ENI of node1, one on node2."""

    def __init__(self, cluster: Any, near: list[Pod], far: Pod) -> None:
        self.cluster = cluster
        devices = {a: e["device"] for e in cluster.lab.enis("node1") for a in e["addresses"]}
        by_device: dict[int, list[Pod]] = {}
        for one in near:
            by_device.setdefault(devices[one.address], []).append(one)
        self.client = {d: by_device[d][0] for d in (0, 1)}
        self.server = {d: by_device[d][1] for d in (0, 1)}
        self.stranger = by_device[2][0]
        self.far = far
        self.near = near

    @property
    def node(self) -> str:
        return str(self.cluster.lab.names.namespace("node1"))

    def place(self, name: str) -> str:
        return str(self.cluster.lab.names.namespace(name))

    def veth(self, one: Pod) -> str:
        found = self.cluster.status()["attachments"]
        return next(str(a["veth"]) for a in found if one.address in a["addresses"])

    def call(self, where: str, address: str, port: int = PORT) -> Seen:
        """Connect; a packet that the fabric drops fails the test, answered or not."""
        self.cluster.lab.ask("forget")
        seen = probe(where, address, port)
        assert self.cluster.lab.drops() == []
        return seen

    def reasons(self) -> set[str]:
        return {c["reason"] for c in self.cluster.status()["conditions"]}

    def conditions(self) -> list[dict[str, str]]:
        found: list[dict[str, str]] = self.cluster.status()["conditions"]
        return found

    def theirs(self) -> str:
        """Every ruleset on the node but our table."""
        text = rulesets.listing(self.node)
        return re.sub(r"table inet node_network \{.*?\n\}\n", "", text, flags=re.S)


@contextmanager
def inhabited(cluster: Any) -> Iterator[ScaleFixture]:
    """Start the pods and receivers."""
    with cluster.pods(20) as near, cluster.pods(1, "node2") as (far,), ExitStack() as stack:
        made = ScaleFixture(cluster, near, far)
        servers = [p.namespace for p in (*made.server.values(), *made.client.values(), far)]
        for place in (*servers, made.place("internet"), made.place("vpchost")):
            stack.enter_context(Receiver(place))
        yield made
