"""The manifest's container serves pods, and each thing it is granted is needed.

One story is told in the container that the manifest describes, on a node of a lab, from the first
start to an edit. Then again with one capability, mount or variable less, and must break at the
place that needs it.
"""

from __future__ import annotations

import copy
import fcntl
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import yaml
from conftest import fork_server, lab_name
from deploy.archive import ARCHIVE, unpack
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

HOST_FILES = {
    each["name"]
    for each in yaml.safe_load((render.CHART / "values.yaml").read_text())["hostFiles"]
}
"""Mounts of which each is taken away in test_host_files.py."""

PYTHON = ["/opt/node-network/venv/bin/python", "-c"]

LOCKED = """
import fcntl
try:
    fcntl.flock(open("/run/xtables.lock"), fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    raise SystemExit(0)
raise SystemExit("it is not the lock that the host holds")
"""

SHORT_S = 6.0
"""Seconds to wait for what is not expected to come."""


class Node:
    """A node of a lab with the container on it.

    Args:
        breaks_at: steps that are not expected to come, as a pattern; "" if all are.
        root: of the container.
    """

    def __init__(
        self, lab: Lab, directory: Path, spec: Manifest, breaks_at: str, root: Path
    ) -> None:
        self.lab = lab
        self.breaks_at = breaks_at
        self.document = directory / "document"
        self.document.mkdir()
        self.write(DOCUMENT)
        self.bin, self.conf = directory / "bin", directory / "conf"
        here = {
            "/etc/node-network": self.document,
            "/run/node-network": lab.names.node_state("node1"),
            "/var/lib/node-network": directory / "keep",
            "/opt/cni/bin": self.bin,
            "/etc/cni/net.d": self.conf,
            "/etc/tmpfiles.d": directory / "tmpfiles",
        }
        for each in spec["volumes"]:
            # The host's own configuration is of no interest here: test_host_files.py.
            if "hostPath" in each and each["name"] not in ("netns", "proc-sys-net"):
                path = each["hostPath"]["path"]
                here.setdefault(path, directory / "empty" / each["name"])
        for path in here.values():
            path.mkdir(parents=True, exist_ok=True)
        self.lock = here["/run/xtables.lock"] = directory / "xtables.lock"
        self.lock.touch()
        self.tmpfiles = here["/etc/tmpfiles.d"]
        # ``portmap``, which the default configuration names.
        (self.bin / "portmap").touch(mode=0o755)
        self.container = Container(lab, "node1", spec, directory / "bundle", here, root)
        self.here = here

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

    def patience_s(self, step: str) -> float:
        """Seconds to wait for a step."""
        return SHORT_S if self.breaks_at and re.match(self.breaks_at, step) else PATIENCE_S

    def step(self, name: str, holds: Callable[[], Any]) -> None:
        """Wait for a step.

        Raises:
            AssertionError: it has not come, with its name.
        """

        def now() -> bool:
            if self.container.has_ended():
                raise AssertionError(f"{name}: it has ended: {self.container.log}")
            return bool(holds())

        until(now, lambda: f"{name}: {self.container.log}", patience_s=self.patience_s(name))

    def status(self) -> dict[str, Any]:
        """What the daemon says; empty if it does not answer."""
        try:
            socket = self.lab.names.node_state("node1") / "node-network.sock"
            found: dict[str, Any] = ask(socket, {"do": "status"})["status"]
            return found
        except UnansweredError:
            return {}

    def told(self, what: str) -> Any:
        """A part of what the daemon says, once it answers."""
        return until(self.status, "an answer")[what]

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
        self.step("boot rule", lambda: list(self.tmpfiles.glob("node-network.conf")))
        try:
            one = pod.add(self.lab, "node1", "one", budget_s=min(self.patience_s("ADD"), 30))
        except pod.PodError as error:
            raise AssertionError(f"ADD: {error}: {self.container.log}") from error
        peers = {p: self.lab.names.namespace(p) for p in ("vpchost", "peer")}
        with Receiver(peers["vpchost"]), Receiver(peers["peer"]):
            assert probe(one.namespace, VPC_HOST).source == one.address
            assert probe(one.namespace, PEER).source == one.address, "override by nodeName"
            self.write(DOCUMENT.partition("overrides")[0])
            self.step("edit", lambda: self.told("document")["generation"] == 2)
            self.step("edit", lambda: probe(one.namespace, PEER).source == "10.0.1.10")
        self.lab.run("node1", ["nft", "flush", "ruleset"])
        self.step("repair", lambda: probe_works(one.namespace, peers["peer"]))
        pod.delete(self.lab, "node1", "one")
        self.step("conditions", lambda: not self.told("conditions"))
        self.step("release", lambda: not self.told("attachments"))


def probe_works(namespace: str, peer: str) -> bool:
    """Whether a peer sees the node's address again."""
    with Receiver(peer):
        return probe(namespace, PEER).source == "10.0.1.10"


@contextmanager
def node(
    directory: Path, spec: Manifest, *, breaks_at: str = "", root: Path = Path("/")
) -> Iterator[Node]:
    """A lab of the test's own, with the container on its first node."""
    lab = lifecycle.up(lab_name("v"), start=fork_server.start)
    try:
        made = Node(lab, directory, copy.deepcopy(spec), breaks_at, root)
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


def test_the_image_serves_pods_in_it(tmp_path: Path) -> None:
    if not ARCHIVE.exists():
        pytest.skip("no image: 'make image' builds it, with a Debian mirror and a package index")
    root = tmp_path / "root"
    unpack(ARCHIVE, root)
    with node(tmp_path, POD, root=root) as made:
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


def drop_proc_sys(spec: Manifest) -> None:
    (container,) = spec["containers"]
    container["env"] = [e for e in container["env"] if e["name"] != "NODE_NETWORK_PROC_SYS"]


def drop_propagation(spec: Manifest) -> None:
    (container,) = spec["containers"]
    (mount,) = (m for m in container["volumeMounts"] if m["name"] == "netns")
    del mount["mountPropagation"]


NEEDED: dict[str, tuple[Callable[[Manifest], None], str]] = {
    "capability NET_ADMIN": (drop_capability("NET_ADMIN"), "executable"),
    "capability SYS_ADMIN": (drop_capability("SYS_ADMIN"), "executable"),
    "mount document": (drop_mount("document"), "answers|ready"),
    "mount state": (drop_mount("state"), "answers"),
    "mount keep": (drop_mount("keep"), "conditions"),
    "mount cni-bin": (drop_mount("cni-bin"), "executable"),
    "mount cni-conf": (drop_mount("cni-conf"), "conflist"),
    "mount tmpfiles": (drop_mount("tmpfiles"), "boot rule"),
    "mount netns": (drop_mount("netns"), "ADD"),
    "propagation of netns": (drop_propagation, "ADD"),
    "mount proc-sys-net": (drop_mount("proc-sys-net"), "executable"),
    "variable NODE_NETWORK_PROC_SYS": (drop_proc_sys, "executable"),
    "variable NODE_NAME": (drop_node_name, "override by nodeName"),
}
"""What is taken away, and the step that fails for it."""


USED: dict[str, tuple[Callable[[Manifest], None], list[str]]] = {
    "capability NET_RAW": (drop_capability("NET_RAW"), ["iptables-legacy-save", "-t", "nat"]),
    "mount aws-node": (drop_mount("aws-node"), ["cat", "/var/run/aws-node/ipam.json"]),
    "mount xtables-lock": (drop_mount("xtables-lock"), [*PYTHON, LOCKED]),
}
"""What is taken away, and a command that works only with it: all of this is for what the stock
plugin has left, and what is done then is in tests/scenarios/test_takeover.py."""


VARIABLES = ("NODE_NAME", "NODE_NETWORK_PROC_SYS")
"""Those that let it see the node; of the others tests/cli and test_host_files.py have tests."""


def granted(spec: Manifest) -> set[str]:
    """All that a manifest grants, by the names that are used here."""
    container = container_of(spec)
    mounts = container["volumeMounts"]
    return {
        *(f"capability {name}" for name in container["securityContext"]["capabilities"]["add"]),
        *(f"mount {m['name']}" for m in mounts if m["name"] not in HOST_FILES),
        *(f"propagation of {m['name']}" for m in mounts if "mountPropagation" in m),
        *(f"variable {e['name']}" for e in container["env"] if e["name"] in VARIABLES),
    }


def test_everything_that_is_granted_is_taken_away_once() -> None:
    assert granted(TAKE_OVER) == {*NEEDED, *USED}
    assert granted(TAKE_OVER) - granted(POD) == {*USED}


@pytest.mark.parametrize("what", NEEDED)
def test_without_it_the_story_breaks(what: str, tmp_path: Path) -> None:
    take, step = NEEDED[what]
    with node(tmp_path, POD, breaks_at=step) as made:
        take(made.container.pod)
        with pytest.raises(AssertionError, match=f"^({step})"):
            made.tell()


@pytest.mark.parametrize("what", USED)
def test_a_command_works_only_with_it(what: str, tmp_path: Path) -> None:
    take, command = USED[what]
    for name, change in (("with", lambda _: None), ("without", take)):
        directory = tmp_path / name
        directory.mkdir()
        with node(directory, TAKE_OVER) as made, made.lock.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            (made.here["/var/run/aws-node"] / "ipam.json").write_text("{}")
            change(made.container.pod)
            made.container.start(command)
            assert (made.container.wait() == 0) == (name == "with"), made.container.log
