"""The network of a cluster under test: the DaemonSet, its pods, and what others say of them."""

from __future__ import annotations

import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e import figures
from waiting import until

from lab import netns
from lab.kubernetes import images
from lab.kubernetes.cluster import Cluster
from lab.kubernetes.node import Node
from lab.traffic import PORT, TIMEOUT_S, Seen, probe
from reconciler.daemon.client import ask

DAEMONS = (
    "/api/v1/namespaces/kube-system/pods?labelSelector=app.kubernetes.io%2Fname%3Dnode-network"
)
ROLLOUT = ("rollout", "-n", "kube-system")
SOCKET = "/run/node-network/node-network.sock"
PODS = "/api/v1/namespaces/default/pods"

Body = dict[str, Any]
Say = Callable[[str], None]

CONTAINER: Body = {
    "name": "application",
    "image": images.APPLICATION,
    "imagePullPolicy": "Never",
    "resources": {"requests": {"cpu": "1m", "memory": "4Mi"}},
}
SPEC: Body = {"terminationGracePeriodSeconds": 1, "containers": [CONTAINER]}


@dataclass(frozen=True)
class Start:
    """How long the first start took.

    Attributes:
        running_s: from the manifest's being applied to both daemons' containers running.
        ready_s: to both nodes being Ready.
    """

    running_s: float
    ready_s: float


@dataclass(frozen=True)
class Memory:
    """What a container uses, in bytes.

    Attributes:
        own: now, without the page cache, which the kernel drops where memory is short.
        peak: the most so far, the page cache included.
        limit: of its group.
        killed: processes that the kernel has ended for the limit.
    """

    own: int
    peak: int
    limit: int
    killed: int


class Network:
    """A cluster with the shipped DaemonSet in it.

    Attributes:
        start: how long the first start took.
    """

    def __init__(self, cluster: Cluster, say: Say) -> None:
        self.cluster = cluster
        self.api = cluster.api
        self.say = say
        began = time.monotonic()
        cluster.deploy()
        until(self.daemons_run, self.trouble, patience_s=120)
        running = time.monotonic() - began
        until(self.nodes_ready, self.trouble, patience_s=120)
        self.start = Start(running, time.monotonic() - began)

    @property
    def nodes(self) -> dict[str, Node]:
        """The nodes, by name."""
        return self.cluster.nodes

    def daemons(self) -> list[Body]:
        """Return the reconcilers' pods."""
        return self.api.items(DAEMONS)

    def daemons_run(self) -> bool:
        """Whether each node has a reconciler that runs."""
        statuses = [s for d in self.daemons() for s in d["status"].get("containerStatuses", [])]
        return sum("running" in s["state"] for s in statuses) == len(self.nodes)

    def daemons_ready(self) -> bool:
        """Whether each node has one reconciler, and it is ready."""
        daemons = self.daemons()
        return len(daemons) == len(self.nodes) and all(map(is_ready, daemons))

    def nodes_ready(self) -> bool:
        """Whether all nodes are Ready."""
        return all(is_ready(n) for n in self.api.items("/api/v1/nodes"))

    def pods(self, selector: str) -> list[Body]:
        """Return the pods with a label."""
        return self.api.items(f"{PODS}?labelSelector={selector.replace('=', '%3D')}")

    def addresses(self, selector: str) -> dict[str, list[str]]:
        """Return the addresses of pods by the API server's word, by name."""
        return {
            p["metadata"]["name"]: [ip["ip"] for ip in p["status"].get("podIPs", [])]
            for p in self.pods(selector)
        }

    def recorded(self, prefix: str) -> dict[str, list[str]]:
        """Return the addresses of pods by our records, by name."""
        records = [r for node in self.nodes.values() for r in node.records("attachments")]
        found = {r["pod"].removeprefix("default/"): r["addresses"] for r in records}
        return {name: own for name, own in found.items() if name.startswith(prefix)}

    def namespace(self, pod: Body) -> str:
        """Return where a pod's network namespace is seen from here."""
        node = self.nodes[pod["spec"]["nodeName"]]
        name = f"default/{pod['metadata']['name']}"
        (container,) = (r["containerID"] for r in node.records("attachments") if r["pod"] == name)
        (intent,) = (r for r in node.records("intents") if r["containerID"] == container)
        # Not by /var/run: that link would be followed here, out of the node.
        return str(node.machine.path(intent["netns"].replace("/var/run/", "/run/")))

    def probe(self, pod: Body, address: str, port: int = PORT) -> Seen:
        """Connect from a pod, and return whose address was seen."""
        return probe(self.namespace(pod), address, port)

    def restarts(self, node: str) -> int:
        """Return how often a node's reconciler was restarted by kubelet."""
        (daemon,) = (d for d in self.daemons() if d["spec"]["nodeName"] == node)
        return sum(s["restartCount"] for s in daemon["status"].get("containerStatuses", []))

    def container(self, node: str) -> str:
        """Return the number of the container of a node's reconciler."""
        (daemon,) = (d for d in self.daemons() if d["spec"]["nodeName"] == node)
        (status,) = daemon["status"]["containerStatuses"]
        return str(status["containerID"]).removeprefix("containerd://")

    def status(self, node: str) -> Body:
        """Return what a node's reconciler says of itself."""
        body: Body = ask(self.nodes[node].machine.path(SOCKET), {"do": "status"})["status"]
        return body

    def rolled_out(self) -> None:
        """Wait until the DaemonSet's pods are those of its last change."""
        self.cluster.kubectl(*ROLLOUT, "status", "daemonset/node-network", "--timeout=300s")

    def note(self, what: str, value: str) -> None:
        """Say a figure, and keep it for the table at the end."""
        self.say(f"{what}: {value}")
        figures.note(what, value)

    def kill_daemon(self, node: str) -> None:
        """Kill a node's reconciler."""
        self.kill_container(node, self.container(node))

    def kill_container(self, node: str, container: str) -> None:
        """Kill the first process of a node's container."""
        words = ["tasks", "kill", "-s", signal.SIGKILL.name, container]
        self.nodes[node].machine.run(["ctr", "-n", "k8s.io", *words])

    def failures(self) -> int:
        """Return how many ADDs have failed since the cluster was made."""
        return sum(node.failed_adds() for node in self.nodes.values())

    def reasons(self, since: int) -> str:
        """Return what was said of the ADDs that failed after the first so many."""
        lines = [line for node in self.nodes.values() for line in node.failures()]
        found = [m[1] if (m := re.search(r"error=(.*)", line)) else line for line in lines]
        return "\n".join(found[since:])

    def trouble(self) -> str:
        """Return what helps when something does not come."""
        parts = [self.cluster.kubectl("get", "nodes,pods", "-A", "-o", "wide")]
        parts.append(self.cluster.kubectl("get", "events", "-A")[-3000:])
        for node in self.nodes.values():
            parts.append(f"--- kubelet of {node.name}\n{node.machine.log('kubelet')}")
            parts.append(f"--- reconciler of {node.name}\n{self.daemon_log(node.name)[-3000:]}")
        return "\n".join(parts)

    def daemon_log(self, node: str) -> str:
        """Return what a node's reconciler has logged, and those of its pod before it."""
        logs = self.nodes[node].machine.logs / "pods"
        paths = logs.glob("kube-system_node-network-*/reconciler/*.log")
        return "".join(p.read_text() for p in sorted(paths, key=lambda p: p.stat().st_mtime))

    @contextmanager
    def deployment(self, name: str, count: int, node: str = "") -> Iterator[list[Body]]:
        """Have so many pods that are ready, on one node if it is named; later they are gone."""
        labels = {"app": name}
        where = {"nodeSelector": {"kubernetes.io/hostname": node}} if node else {}
        spec = {
            "replicas": count,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": SPEC | where},
        }
        path = "/apis/apps/v1/namespaces/default/deployments"
        self.api.post(path, {"metadata": {"name": name}, "spec": spec})
        selector = f"app={name}"
        try:
            until(lambda: self.running(selector) == count, self.trouble, patience_s=180)
            yield self.pods(selector)
        finally:
            self.api.delete(f"{path}/{name}", {"propagationPolicy": "Background"})
            until(lambda: not self.pods(selector), self.trouble, patience_s=180)
            until(lambda: not self.recorded(name), f"the release of the pods of {name}")

    def running(self, selector: str) -> int:
        """Return how many pods with a label are ready."""
        return sum(map(is_ready, self.pods(selector)))


def group_of(container: str) -> Path:
    """Return a container's control group for memory, of version 1 or 2."""
    for path in Path("/sys/fs/cgroup").rglob(f"*{container}*"):
        if (path / "memory.stat").exists():
            return path
    raise AssertionError(f"no memory group of container {container}")


def memory_of(group: Path) -> Memory:
    """Read a control group.

    Raises:
        OSError: it is gone.
    """
    peak, limit, now, kills = (
        ("memory.peak", "memory.max", "memory.current", "memory.events")
        if (group / "memory.current").exists()
        else (
            "memory.max_usage_in_bytes",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "memory.oom_control",
        )
    )
    stat, told = (
        dict(line.split() for line in (group / name).read_text().splitlines())
        for name in ("memory.stat", kills)
    )
    # Version 1 counts those of groups below only with this prefix.
    cached = sum(
        int(stat.get(f"total_{name}", stat[name])) for name in ("active_file", "inactive_file")
    )
    return Memory(
        int((group / now).read_text()) - cached,
        int((group / peak).read_text()),
        int((group / limit).read_text()),
        int(told["oom_kill"]),
    )


def is_ready(body: Body) -> bool:
    """Whether a node or a pod has the condition Ready."""
    conditions = body["status"].get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def connects(namespace: str, address: str, port: int) -> bool:
    """Whether a TCP connection can be made from a namespace."""
    with netns.inside(namespace):
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with connection:
        connection.settimeout(TIMEOUT_S)
        return connection.connect_ex((address, port)) == 0


def ask_by_udp(namespace: str, address: str, port: int) -> str:
    """Send a datagram from a namespace; return the address that the receiver saw, "" for none."""
    with netns.inside(namespace):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender, suppress(OSError):
        sender.settimeout(TIMEOUT_S)
        sender.connect((address, port))
        sender.send(b"?")
        return sender.recv(64).decode()
    return ""
