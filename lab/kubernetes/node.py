"""A node: a machine with containerd, kubelet and kube-proxy."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from lab.kubernetes import build, images
from lab.kubernetes.machine import PROGRAMS, Machine, MachineError
from lab.kubernetes.places import DNS_SERVICE, DOMAIN, Places, address
from lab.lifecycle import PLUGINS, Lab

START_S = 60.0

SOCKET = "/run/containerd/containerd.sock"
CONFIGURATION = "/etc/kubernetes"
IMAGES = "/opt/images"
REFERENCE = ("host-local", "loopback", "portmap")
"""The CNI plugins that kubelet's packages and EKS' images bring along."""

PROXY = "system:kube-proxy"

LOG = "containerd"
FAILED_ADD = "failed to setup network for sandbox"
"""How containerd's log says that an ADD has failed (pkg/cri/sbserver/sandbox_run.go)."""


class Node:
    """One node of a cluster.

    Args:
        lab: which lab it is in.
        name: its instance's.
        places: of the cluster.
        programs: directory of Kubernetes' components.
        archives: container images that it has from the start.
        max_pods: how many pods kubelet takes.
    """

    def __init__(
        self,
        lab: Lab,
        name: str,
        places: Places,
        programs: Path,
        archives: Sequence[Path],
        max_pods: int,
    ) -> None:
        disk = places.disk(name)
        binds = {
            PROGRAMS: programs,
            CONFIGURATION: disk / "kubernetes",
            IMAGES: build.cache(),
            # Not this machine's own, and no overlay: containerd makes overlays of its own there.
            "/opt/cni/bin": disk / "plugins",
            "/etc/cni/net.d": disk / "networks",
            "/var/lib/cni": disk / "cni",
            "/var/lib/containerd": disk / "containerd",
            "/var/lib/kubelet": disk / "kubelet",
            "/var/log": disk / "log",
        }
        self.name = name
        self._max_pods = max_pods
        self.machine = Machine(lab, name, disk, binds)
        self._places = places
        self._binds = binds
        self._archives = tuple(archives)
        self._has_images = False

    def install(self) -> None:
        """Put on its disk what a node's image has: configurations and plugins."""
        for source in self._binds.values():
            source.mkdir(parents=True, exist_ok=True)
        for plugin in REFERENCE:
            shutil.copy(PLUGINS / plugin, self._binds["/opt/cni/bin"] / plugin)
        for user, name in ((f"system:node:{self.name}", "kubelet"), (PROXY, "kube-proxy")):
            self._write(f"{name}.kubeconfig", self._kubeconfig(user))
        shutil.copy(self._places.authority, self._binds[CONFIGURATION] / "authority.crt")
        self._write("resolv.conf", "nameserver 10.0.0.2\n")
        self._write("containerd.toml", CONTAINERD)
        self._write_kubelet(self._max_pods)
        self._write("kube-proxy.yaml", yaml.safe_dump(_kube_proxy(self.name)))

    def start(self) -> None:
        """Boot it: containerd first, with its images, then kubelet and kube-proxy.

        Raises:
            MachineError: it does not come up.
        """
        self.machine.start()
        # As systemd does early in a boot (systemd-tmpfiles-setup.service), for what is ours.
        boot = ["systemd-tmpfiles", "--create", "--remove", "--boot", "--prefix=/etc/cni"]
        self.machine.run(boot)
        self.start_containerd()
        if not self._has_images:
            for archive in self._archives:
                self.load(archive)
            self._has_images = True
        self.start_kubelet()
        self.start_kube_proxy()

    def start_containerd(self) -> None:
        """Start containerd and wait until it answers."""
        self.machine.spawn(LOG, ["containerd", "-c", f"{CONFIGURATION}/containerd.toml"])
        asked = ["ctr", "--connect-timeout", "2s", "version"]
        self._wait(lambda: self.machine.run(asked, check=False).returncode == 0, LOG)

    def start_kubelet(self) -> None:
        """Start kubelet."""
        options = {
            "config": f"{CONFIGURATION}/kubelet.yaml",
            "kubeconfig": f"{CONFIGURATION}/kubelet.kubeconfig",
            "hostname-override": self.name,
            "node-ip": str(address(self.name)),
        }
        words = [f"--{name}={value}" for name, value in options.items()]
        self.machine.spawn("kubelet", ["kubelet", *words])

    @contextmanager
    def taking(self, most: int) -> Iterator[None]:
        """Have kubelet take so many pods; later as many as the node can serve."""
        self._restart_kubelet(most)
        try:
            yield
        finally:
            self._restart_kubelet(self._max_pods)

    def start_kube_proxy(self) -> None:
        """Start kube-proxy."""
        self.machine.spawn(
            "kube-proxy", ["kube-proxy", f"--config={CONFIGURATION}/kube-proxy.yaml"]
        )

    def load(self, archive: Path) -> None:
        """Give its runtime an image from the cache."""
        place = f"{IMAGES}/{archive.relative_to(build.cache())}"
        self.machine.run(["ctr", "-n", "k8s.io", "images", "import", place])

    def stop(self) -> None:
        """Switch it off, at once."""
        self.machine.stop()

    def failed_adds(self) -> int:
        """Return how many ADDs have failed since the node was made, by containerd's log."""
        return len(self.failures())

    def failures(self) -> list[str]:
        """Return what containerd's log says of each ADD that has failed."""
        path = self.machine.logs / f"{LOG}.log"
        return [line for line in path.read_text().splitlines() if FAILED_ADD in line]

    def records(self, kind: str) -> list[dict[str, Any]]:
        """Return the reconciler's records of a kind: attachments, intents, cooling."""
        found = []
        for path in self.machine.path(f"/run/node-network/{kind}").glob("*.json"):
            try:
                found.append(json.loads(path.read_text()))
            except FileNotFoundError:
                continue  # removed meanwhile
        return found

    def _restart_kubelet(self, max_pods: int) -> None:
        self.machine.kill("kubelet")
        self._write_kubelet(max_pods)
        self.start_kubelet()

    def _write_kubelet(self, max_pods: int) -> None:
        self._write("kubelet.yaml", yaml.safe_dump(_kubelet(max_pods)))

    def _write(self, name: str, text: str) -> None:
        (self._binds[CONFIGURATION] / name).write_text(text)

    def _kubeconfig(self, user: str) -> str:
        text = self._places.kubeconfig(user).read_text()
        return text.replace(str(self._places.authority), f"{CONFIGURATION}/authority.crt")

    def _wait(self, holds: Callable[[], bool], name: str) -> None:
        deadline = time.monotonic() + START_S
        while not holds():
            if time.monotonic() > deadline:
                raise MachineError(f"{self.name}: {name}:\n{self.machine.log(name)}")
            time.sleep(0.1)


CONTAINERD = f"""
version = 2
[grpc]
address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{images.PAUSE}"
# Fewer capabilities than a machine of one's own has: a score can only be raised.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/opt/cni/bin"
conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"""


def _kubelet(max_pods: int) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        # Whoever can reach a lab's node may ask its kubelet: there is no authority for clients.
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        "maxPods": max_pods,
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        "clusterDNS": [DNS_SERVICE],
        "clusterDomain": DOMAIN,
        "resolvConf": f"{CONFIGURATION}/resolv.conf",
        "failSwapOn": False,
        "makeIPTablesUtilChains": False,
        "oomScoreAdj": 0,
        # The disk is this machine's: how full it is says nothing about the node.
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
    }


def _kube_proxy(node: str) -> dict[str, Any]:
    # Zero: the kernel's own values stay. The size of conntrack's table belongs to all namespaces.
    conntrack = {"maxPerCore": 0, "min": 0}
    times = {"tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"}
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": f"{CONFIGURATION}/kube-proxy.kubeconfig"},
        "hostnameOverride": node,
        "conntrack": conntrack | times,
    }
