"""A cluster: two nodes and a control plane on a lab, and nothing of it left afterwards."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from lab import lifecycle
from lab.kubernetes import build, cgroups, images
from lab.kubernetes.api import Api
from lab.kubernetes.build import Say
from lab.kubernetes.control_plane import ControlPlane
from lab.kubernetes.machine import ENVIRONMENT
from lab.kubernetes.node import Node
from lab.kubernetes.places import ADMINISTRATOR, CONTROL, DISKS, Places
from lab.lifecycle import Lab
from lab.topology import EC2_ENDPOINT, EC2_PORT, NODES

LETTER = "k"
"""Start of the names of clusters' labs."""

MANIFEST = build.ROOT / images.MANIFEST

SMALL = "m5.large"
"""What a node of the lab is, unless it is asked for another."""

MAX_PODS = {SMALL: 28, "m5.xlarge": 57}
"""Pods that kubelet takes, by instance type: ENIs x (addresses of each - 1) + 1. EKS adds 2 in its
list (amazon-eks-ami, eni-max-pods.txt) for the pods with the host's network; kube-proxy is none
here, so a node would be given one pod more than it has addresses."""


class KubectlError(Exception):
    """kubectl failed; carries what it said."""


class Cluster:
    """A cluster that is up.

    Attributes:
        nodes: by name.
        api: the administrator's connection.
    """

    def __init__(
        self,
        lab: Lab,
        places: Places,
        programs: Path,
        archives: tuple[Path, ...],
        types: Mapping[str, str],
    ) -> None:
        self.lab = lab
        self.places = places
        self._programs = programs
        self.control = ControlPlane(lab, places, programs)
        self.nodes = {
            name: Node(lab, name, places, programs, archives, MAX_PODS[types.get(name, SMALL)])
            for name in NODES
        }

    @property
    def api(self) -> Api:
        """A connection as administrator."""
        return self.control.api()

    def start(self, say: Say) -> None:
        """Start the control plane and the nodes."""
        say("control plane")
        self.control.start()
        say("nodes: containerd, images, kubelet, kube-proxy")
        for node in self.nodes.values():
            node.install()
        with ThreadPoolExecutor() as workers:
            list(workers.map(Node.start, self.nodes.values()))

    def stop(self) -> None:
        """Switch all off."""
        for node in self.nodes.values():
            node.stop()
        self.control.stop()

    def reboot(self, name: str) -> None:
        """Switch a node off and on: its disk and its ENIs stay, all else is new."""
        node = self.nodes[name]
        node.stop()
        self.lab.ask("reboot", node=name)
        node.start()

    def kubectl_command(self, *words: str) -> list[str]:
        """Return the command that runs kubectl as the administrator."""
        kubeconfig = f"--kubeconfig={self.places.kubeconfig(ADMINISTRATOR)}"
        return self.lab.command(CONTROL, [str(self._programs / "kubectl"), kubeconfig, *words])

    def kubectl(self, *words: str, text: str = "") -> str:
        """Run kubectl as the administrator; return what it printed.

        Args:
            words: its arguments.
            text: its standard input.

        Raises:
            KubectlError: it failed.
        """
        done = subprocess.run(
            self.kubectl_command(*words),
            input=text,
            capture_output=True,
            text=True,
            timeout=300,
            env=ENVIRONMENT | {"HOME": str(self.places.control)},
        )
        if done.returncode:
            raise KubectlError(f"kubectl {' '.join(words)}: {done.stderr}")
        return done.stdout

    def deploy(
        self,
        document: str | None = None,
        *,
        rendered: str | None = None,
        image: str = images.RECONCILER,
    ) -> None:
        """Apply the shipped manifest.

        Args:
            document: the text of the document, in place of the manifest's own.
            rendered: the chart with other values, in place of the shipped manifest.
            image: the reconciler's.
        """
        bodies = manifest(document, rendered=rendered, image=image)
        self.kubectl("apply", "-f", "-", text=yaml.safe_dump_all(bodies))


def manifest(
    document: str | None = None,
    *,
    rendered: str | None = None,
    image: str = images.RECONCILER,
) -> list[dict[str, Any]]:
    """Return the shipped manifest with what every user fills in, and the lab's EC2."""
    text = MANIFEST.read_text() if rendered is None else rendered
    bodies: list[dict[str, Any]] = list(yaml.safe_load_all(text))
    for body in bodies:
        if body["kind"] == "ConfigMap" and document is not None:
            body["data"] = {"node-network.yaml": document}
        if body["kind"] == "DaemonSet":
            (container,) = body["spec"]["template"]["spec"]["containers"]
            container["image"] = image
            endpoint = f"http://{EC2_ENDPOINT}:{EC2_PORT}"
            container["env"].append({"name": "AWS_ENDPOINT_URL_EC2", "value": endpoint})
    return bodies


@contextmanager
def cluster(
    say: Say = lambda _: None, *, types: Mapping[str, str] | None = None
) -> Iterator[Cluster]:
    """Make a cluster without a network, and remove it.

    What is left of clusters whose user was killed is removed first.

    Args:
        say: called with what is done next, and with how long it took.
        types: instance types by node.
    """
    programs, archives = build.components(say), images.archives(say)
    remove_left(say)
    name = f"{LETTER}{secrets.token_hex(3)}"
    places = Places(name)
    with _locked(places.lock):
        try:
            began = time.monotonic()
            _make_directory(places.directory)
            made = Cluster(
                lifecycle.up(name, types=types), places, programs, archives, types or {}
            )
            try:
                made.start(say)
                say(f"cluster {name} is up after {time.monotonic() - began:.1f} s")
                yield made
            finally:
                with lifecycle.undisturbed():
                    made.stop()
        finally:
            with lifecycle.undisturbed():
                _remove(name)


def remove_left(say: Say = lambda _: None) -> None:
    """Remove every cluster that nobody uses."""
    DISKS.mkdir(exist_ok=True)
    names = {p.name for p in DISKS.iterdir() if p.is_dir()} | {
        p.stem for p in DISKS.glob("*.lock")
    }
    names |= {group.removeprefix(cgroups.PREFIX) for group in cgroups.left()}
    for name in sorted(names):
        try:
            with _locked(Places(name).lock), lifecycle.undisturbed():
                say(f"removing what is left of cluster {name}")
                _remove(name)
        except BlockingIOError:
            continue  # in use


def _make_directory(path: Path) -> None:
    """Make the directory of a cluster's disks, in memory.

    A node writes 20,000 files. An overlay can be made on them, which it could not be on a
    container's own root, and to remove them takes no time.
    """
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(path)], check=True)


def _remove(name: str) -> None:
    """Remove every trace of a cluster, half-built or crashed ones too."""
    cgroups.Group(f"{cgroups.PREFIX}{name}").remove()
    lifecycle.down(name)
    if Places(name).directory.is_mount():
        subprocess.run(["umount", "-l", str(Places(name).directory)], check=True)
    shutil.rmtree(Places(name).directory, ignore_errors=True)
    Places(name).lock.unlink(missing_ok=True)
    with suppress(OSError):  # others are there
        DISKS.rmdir()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that ends with this process, however it ends.

    Raises:
        BlockingIOError: somebody holds it.
    """
    while True:
        path.parent.mkdir(exist_ok=True)
        fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and path.stat().st_ino == os.fstat(fd).st_ino:
                yield
                return
        finally:
            os.close(fd)
