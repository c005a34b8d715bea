"""Names, addresses and directories of a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from lab.topology import INSTANCES, NODES

DISKS = Path("/var/lib/node-network-lab")
"""Where clusters keep what would be on disks, each in a file system in memory."""

CONTROL = "vpchost"
"""The instance that the control plane runs on."""

(CONTROL_ADDRESS,) = (i.address for i in INSTANCES if i.name == CONTROL)
API_PORT = 6443
API = f"https://{CONTROL_ADDRESS}:{API_PORT}"
SERVICE_CIDR = "10.96.0.0/16"
DNS_SERVICE = "10.96.0.10"
DOMAIN = "cluster.local"

ADMINISTRATOR = "administrator"

USERS = {
    ADMINISTRATOR: "system:masters",
    "system:kube-controller-manager": "",
    "system:kube-scheduler": "",
    "system:kube-proxy": "",
    **{f"system:node:{node}": "system:nodes" for node in NODES},
}
"""Who may ask the API server, and the group of each; their names have their rights by default."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where things of one cluster are.

    Args:
        lab: name of its lab.
    """

    lab: str

    @property
    def directory(self) -> Path:
        """All that the cluster keeps."""
        return DISKS / self.lab

    @property
    def lock(self) -> Path:
        """Held by who uses the cluster."""
        return DISKS / f"{self.lab}.lock"

    @property
    def control(self) -> Path:
        """The control plane's directory."""
        return self.directory / "control"

    @property
    def authority(self) -> Path:
        """The API server's certificates, its own authority among them."""
        return self.control / "certificates/apiserver.crt"

    def disk(self, node: str) -> Path:
        """A node's disk."""
        return self.directory / node

    def kubeconfig(self, user: str) -> Path:
        """How a user reaches the API server."""
        return self.control / f"{user.replace(':', '-')}.kubeconfig"


def address(node: str) -> IPv4Address:
    """Return a node's own address."""
    (found,) = (i.address for i in INSTANCES if i.name == node)
    return found
