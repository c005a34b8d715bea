"""Pods of the lab: a namespace, and the real CNI executable as a runtime would call it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from pyroute2 import IPRoute

from lab import netns
from lab.lifecycle import EXECUTABLE, Lab
from lab.topology import NODES, Names


class PodError(Exception):
    """The executable refused; carries its error object."""

    def __init__(self, verb: str, pod: str, error: dict[str, Any]) -> None:
        super().__init__(f"{verb} {pod}: code {error.get('code')}: {error.get('msg')}")
        self.error = error


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod that was given an address.

    Attributes:
        namespace: name of its network namespace.
        result: the executable's result.
    """

    lab: Lab
    node: str
    name: str
    namespace: str
    result: dict[str, Any]

    @property
    def address(self) -> str:
        """Its address."""
        text: str = self.result["ips"][0]["address"]
        return text.partition("/")[0]

    @property
    def addresses(self) -> list[str]:
        """Its addresses, one for each family."""
        return [ip["address"].partition("/")[0] for ip in self.result["ips"]]

    @property
    def device(self) -> int:
        """Device index of the ENI its address belongs to, by EC2's word."""
        for eni in self.lab.enis(self.node):
            networks = map(ip_network, (*eni["prefixes"], *eni["ipv6Prefixes"]))
            own = ip_address(self.address)
            if self.address in eni["addresses"] or any(own in n for n in networks):
                return int(eni["device"])
        raise LookupError(f"no ENI of {self.node} holds {self.address}")


def add(
    lab: Lab,
    node: str,
    name: str,
    *,
    version: str = "1.1.0",
    budget_s: float = 30,
    pod_name: str = "",
    pod_namespace: str = "default",
    config: Mapping[str, Any] | None = None,
) -> Pod:
    """Start a pod: make its namespace, call ADD.

    Args:
        lab: where.
        node: on which node.
        name: of the sandbox.
        version: of the CNI specification.
        budget_s: seconds that ADD may wait.
        pod_name: whose sandbox it is, if the pod is not called like it.
        pod_namespace: the pod's namespace in Kubernetes.
        config: more of the network's configuration.

    Raises:
        PodError: ADD failed; the namespace is removed again.
    """
    namespace = lab.names.namespace(f"pod-{name}")
    netns.make(namespace)
    try:
        result = call(
            lab,
            node,
            name,
            "ADD",
            version=version,
            budget_s=budget_s,
            pod_name=pod_name,
            pod_namespace=pod_namespace,
            config=config,
        )
    except BaseException:
        netns.remove(namespace)
        raise
    return Pod(lab, node, name, namespace, result)


def find(names: Names) -> Iterator[tuple[str, str, list[str]]]:
    """Yield the pods of a lab: the node that has a record of it or "", its name, its addresses."""
    start = names.namespace("pod-")
    for namespace in netns.names(start):
        name = namespace.removeprefix(start)
        record = f"attachments/{names.lab}-{name}:eth0.json"
        node = next((n for n in NODES if (names.node_state(n) / record).exists()), "")
        with netns.inside(namespace), IPRoute() as ip:
            found = [
                address.get_attr("IFA_LOCAL") or address.get_attr("IFA_ADDRESS")
                for link in ip.link_lookup(ifname="eth0")
                for address in ip.get_addr(index=link, scope=0)
            ]
        yield node, name, found


def delete(lab: Lab, node: str, name: str, *, config: Mapping[str, Any] | None = None) -> None:
    """End a pod: call DEL, with more of the network's configuration; remove its namespace.

    Raises:
        PodError: DEL failed.
    """
    call(lab, node, name, "DEL", config=config)
    netns.remove(lab.names.namespace(f"pod-{name}"))


def call(
    lab: Lab,
    node: str,
    name: str,
    verb: str,
    *,
    version: str = "1.1.0",
    budget_s: float = 30,
    pod_name: str = "",
    pod_namespace: str = "default",
    config: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run the executable once, on the node, as its runtime does.

    Args:
        lab: where.
        node: on which node.
        name: of the sandbox.
        verb: what is asked.
        version: of the CNI specification.
        budget_s: seconds that ADD may wait.
        pod_name: whose sandbox it is, if the pod is not called like it.
        pod_namespace: the pod's namespace in Kubernetes.
        config: more of the network's configuration.
        environ: more of the environment.

    Raises:
        PodError: it printed an error.
    """
    told = {
        "cniVersion": version,
        "name": "node-network",
        "type": "node-network",
        "stateDir": str(lab.names.node_state(node)),
        "budgetSeconds": budget_s,
    }
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": f"{lab.names.lab}-{name}",
        "CNI_NETNS": str(netns.path(lab.names.namespace(f"pod-{name}"))),
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/opt/cni/bin",
        "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE={pod_namespace};"
        f"K8S_POD_NAME={pod_name or name}",
    }
    done = subprocess.run(
        lab.command(node, [str(EXECUTABLE)]),
        input=json.dumps(told | dict(config or {})),
        env=environment | dict(environ or {}),
        capture_output=True,
        text=True,
        timeout=budget_s + 15,
    )
    answer: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
    if done.returncode != 0:
        raise PodError(verb, name, answer or {"msg": done.stderr})
    return answer
