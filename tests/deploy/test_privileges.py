"""The manifest's container serves pods, and each thing it is granted is needed.

One story is told in the container that the manifest describes, on a node of a lab, from the first
start to an edit. Then again with one capability, mount or variable less, and must break at the
place that needs it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import yaml
from conftest import fork_server, lab_name
from deploy.container import Container, Manifest, pod_of, without_mount
from deploy.programs import DEPLOY, program
from waiting import PATIENCE_S, until

from lab import lifecycle, netns, pod
from lab.lifecycle import Lab
from lab.traffic import Receiver, probe
from reconciler.daemon.client import ask
from reconciler.errors import UnansweredError

pytestmark = [pytest.mark.lab, pytest.mark.runtime]

render = program("render.py")

POD = pod_of((DEPLOY / "daemonset.yaml").read_text())
TAKE_OVER = pod_of(render.render({"document": {"takeOver": "amazon-vpc-cni"}}))

DOCUMENT = """\
apiVersion: node-network/v1alpha1
kind: NodeNetwork
warmPool: {addresses: {warm: 2, minimum: 4}}
snat: {mode: node}
overrides:
  - match: {nodeName: node1}
    set: {snat: {excludeCIDRs: [10.100.0.0/16]}}
"""

PEER = "10.100.0.10"
VPC_HOST = "10.0.9.10"

SHORT_S = 15.0
"""Seconds to wait for what is not expected to come."""


class Node:
    """A node of a lab with the container on it.

    Args:
        patience_s: seconds to wait for each step.
    """

    def __init__(self, lab: Lab, directory: Path, spec: Manifest, patience_s: float) -> None:
        self.lab = lab
        self.patience_s = patience_s
        self.document = directory / "document"
        self.document.mkdir()
        self.write(DOCUMENT)
        self.bin, self.conf = directory / "bin", directory / "conf"
        here = {
            "/etc/node-network": self.document,
            "/run/node-network": lab.names.node_state("node1"),
            "/opt/cni/bin": self.bin,
            "/etc/cni/net.d": self.conf,
        }
        for each in spec["volumes"]:
            # The host's own configuration is of no interest here: test_host_files.py.
            if "hostPath" in each and each["name"] not in ("netns", "proc-sys-net"):
                path = each["hostPath"]["path"]
                here.setdefault(path, directory / "empty" / each["name"])
        for path in here.values():
            path.mkdir(parents=True, exist_ok=True)
        # ``portmap``, which the default configuration names.
        (self.bin / "portmap").touch(mode=0o755)
        self.container = Container(lab, "node1", spec, directory / "bundle", here)

    def write(self, text: str) -> None:
        """Write the document as the kubelet does: a new directory behind a link."""
        number = len(list(self.document.iterdir()))
        new = self.document / f"..{number}"
        new.mkdir()
        (new / "node-network.yaml").write_text(text)
        (self.document / "..data_tmp").symlink_to(new.name)
        (self.document / "..data_tmp").rename(self.document / "..data")
        if not (link := self.document / "node-network.yaml").is_symlink():
            link.symlink_to("..data/node-network.yaml")

    def step(self, name: str, holds: Callable[[], Any]) -> None:
        """Wait for a step.

        Raises:
            AssertionError: it has not come, with its name.
        """

        def now() -> bool:
            if self.container.has_ended():
                raise AssertionError(f"{name}: it has ended: {self.container.log}")
            return bool(holds())

        until(now, lambda: f"{name}: {self.container.log}", patience_s=self.patience_s)

    def status(self) -> dict[str, Any]:
        """What the daemon says; empty if it does not answer."""
        try:
            socket = self.lab.names.node_state("node1") / "node-network.sock"
            found: dict[str, Any] = ask(socket, {"do": "status"})["status"]
            return found
        except UnansweredError:
            return {}

    def is_ready(self) -> bool:
        """Whether the readiness probe succeeds."""
        try:
            with (
                netns.inside(self.lab.names.namespace("node1")),
                urlopen("http://127.0.0.1:61680/readyz", timeout=2) as answer,
            ):
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    def tell(self) -> None:
        """Tell the story.

        Raises:
            AssertionError: a step has not come.
        """
        self.container.start()
        self.step("answers", self.status)
        self.step("ready", self.is_ready)
        self.step("executable", lambda: (self.bin / "node-network").exists())
        self.step("conflist", lambda: list(self.conf.glob("10-node-network.conflist")))
        try:
            one = pod.add(self.lab, "node1", "one", budget_s=min(self.patience_s, 30))
        except pod.PodError as error:
            raise AssertionError(f"ADD: {error}: {self.container.log}") from error
        peers = {p: self.lab.names.namespace(p) for p in ("vpchost", "peer")}
        with Receiver(peers["vpchost"]), Receiver(peers["peer"]):
            assert probe(one.namespace, VPC_HOST).source == one.address
            assert probe(one.namespace, PEER).source == one.address, "override by nodeName"
            self.write(DOCUMENT.partition("overrides")[0])
            self.step("edit", lambda: self.status()["document"]["generation"] == 2)
            self.step("edit", lambda: probe(one.namespace, PEER).source == "10.0.1.10")
        self.lab.run("node1", ["nft", "flush", "ruleset"])
        self.step("repair", lambda: probe_works(one.namespace, peers["peer"]))
        pod.delete(self.lab, "node1", "one")
        self.step("conditions", lambda: not self.status()["conditions"])
        self.step("release", lambda: not self.status()["attachments"])


def probe_works(namespace: str, peer: str) -> bool:
    """Whether a peer sees the node's address again."""
    with Receiver(peer):
        return probe(namespace, PEER).source == "10.0.1.10"


@contextmanager
def node(directory: Path, spec: Manifest, patience_s: float = PATIENCE_S) -> Iterator[Node]:
    """A lab of the test's own, with the container on its first node."""
    lab = lifecycle.up(lab_name("v"), start=fork_server.start)
    try:
        made = Node(lab, directory, copy.deepcopy(spec), patience_s)
        try:
            yield made
        finally:
            made.container.remove()
    finally:
        lifecycle.down(lab.names.lab)


def container_of(spec: Manifest) -> Manifest:
    (found,) = spec["containers"]
    return dict(found)


def test_the_manifests_container_serves_pods(tmp_path: Path) -> None:
    with node(tmp_path, POD) as made:
        made.tell()


def drop_capability(name: str) -> Callable[[Manifest], None]:
    def drop(spec: Manifest) -> None:
        (container,) = spec["containers"]
        container["securityContext"]["capabilities"]["add"].remove(name)

    return drop


def drop_mount(name: str) -> Callable[[Manifest], None]:
    return lambda spec: without_mount(spec, name)


def drop_node_name(spec: Manifest) -> None:
    (container,) = spec["containers"]
    container["env"] = [e for e in container["env"] if e["name"] != "NODE_NAME"]


def drop_propagation(spec: Manifest) -> None:
    (container,) = spec["containers"]
    (mount,) = (m for m in container["volumeMounts"] if m["name"] == "netns")
    del mount["mountPropagation"]


NEEDED: dict[str, tuple[Callable[[Manifest], None], str]] = {
    "capability NET_ADMIN": (drop_capability("NET_ADMIN"), "executable"),
    "capability SYS_ADMIN": (drop_capability("SYS_ADMIN"), "answers"),
    "mount document": (drop_mount("document"), "answers|^ready"),
    "mount state": (drop_mount("state"), "answers"),
    "mount cni-bin": (drop_mount("cni-bin"), "executable"),
    "mount cni-conf": (drop_mount("cni-conf"), "conflist"),
    "mount netns": (drop_mount("netns"), "ADD"),
    "propagation of netns": (drop_propagation, "ADD"),
    "mount proc-sys-net": (drop_mount("proc-sys-net"), "executable"),
    "variable NODE_NAME": (drop_node_name, "override by nodeName"),
}
"""What is taken away, and the step that fails for it."""


def test_everything_that_is_granted_is_taken_away_once() -> None:
    container = container_of(POD)
    mounts = container["volumeMounts"]
    host_files = {h["name"] for h in yaml.safe_load(VALUES.read_text())["hostFiles"]}
    granted = {
        *(f"capability {name}" for name in container["securityContext"]["capabilities"]["add"]),
        *(f"mount {m['name']}" for m in mounts if m["name"] not in host_files),
        *(f"propagation of {m['name']}" for m in mounts if "mountPropagation" in m),
        *(f"variable {e['name']}" for e in container["env"] if "valueFrom" in e),
    }
    assert granted == set(NEEDED)


VALUES = render.CHART / "values.yaml"


@pytest.mark.parametrize("what", NEEDED)
def test_without_it_the_story_breaks(what: str, tmp_path: Path) -> None:
    take, step = NEEDED[what]
    with node(tmp_path, POD, SHORT_S) as made:
        take(made.container.pod)
        with pytest.raises(AssertionError, match=f"^{step}"):
            made.tell()
