"""The DaemonSet's container, as containerd makes it of the manifest, on a node of the lab.

Its root is this machine's, below a layer of its own, so that no image is needed: what is tested
is what the manifest grants. What a container that is not privileged gets besides (masked and
read-only paths, the seccomp profile) is as containerd's CRI has it.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from conftest import RUN

from lab.lifecycle import EXECUTABLE, Lab

ROOT = Path(__file__).parents[2]
SECCOMP = Path("/usr/share/containers/seccomp.json")
"""The profile of podman's package: the one from which containerd's was taken."""

ENTRY_POINT = "/opt/node-network/venv/bin/node-network"
"""The image's (deploy/Dockerfile)."""

MASKED = ("acpi", "kcore", "keys", "latency_stats", "timer_list", "timer_stats", "sched_debug")
READ_ONLY = ("asound", "bus", "fs", "irq", "sys", "sysrq-trigger")

SCRIPT = """
set -e
mount -t tmpfs tmpfs "$1/layer"
mkdir "$1/layer/upper" "$1/layer/work"
cp -a "$1/files/." "$1/layer/upper/"
mount -t overlay overlay -o "lowerdir=$3,upperdir=$1/layer/upper,workdir=$1/layer/work" "$1/rootfs"
exec runc --root "$1/runc" run --bundle "$1" "$2"
"""

Manifest = dict[str, Any]


@dataclass
class Container:
    """A container of one pod's manifest, not yet started.

    Attributes:
        lab: where.
        node: on which node; the pod is in its network namespace.
        pod: the pod's ``spec``, changed at will before it is started.
        directory: for the bundle.
        here: what this test has for paths of the host.
        root: an image's files; or this machine's, to which ours are added.
    """

    lab: Lab
    node: str
    pod: Manifest
    directory: Path
    here: Mapping[str, Path]
    root: Path = Path("/")

    def __post_init__(self) -> None:
        self.name = f"nnt-{RUN}-{secrets.token_hex(3)}"
        (self._spec,) = self.pod["containers"]

    @property
    def log(self) -> str:
        """The end of what it has said."""
        path = self.directory / "log"
        return path.read_text()[-3000:] if path.exists() else ""

    def start(self, argv: Sequence[str] = ()) -> None:
        """Start it, with a command of its own or another one."""
        for name in ("layer", "rootfs", "runc", "files"):
            (self.directory / name).mkdir(parents=True)
        if self.root == Path("/"):
            self._make_files(self.directory / "files")
        bundle = self._bundle(argv or [ENTRY_POINT, *self._spec["args"]])
        (self.directory / "config.json").write_text(json.dumps(bundle))
        words = ["sh", "-c", SCRIPT, "sh", str(self.directory), self.name, str(self.root)]
        with (self.directory / "log").open("w") as log:
            # A mount namespace of its own, so that every mount goes with it.
            self._process = self.lab.start(
                self.node,
                ["unshare", "--mount", "--propagation", "slave", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def has_ended(self) -> bool:
        """Whether it runs no more."""
        return self._process.poll() is not None

    def wait(self) -> int:
        """Wait for its end; return its exit status."""
        return self._process.wait(timeout=60)

    def remove(self) -> None:
        """End it, and remove everything."""
        for words in (["kill", self.name, "KILL"], ["delete", "--force", self.name]):
            runc = ["runc", "--root", str(self.directory / "runc"), *words]
            subprocess.run(runc, capture_output=True, check=False)
        self.wait()
        shutil.rmtree(self.directory)

    def _make_files(self, files: Path) -> None:
        """Make what the image has and this machine has not."""
        own = files / "opt/node-network"
        (own / "bin").mkdir(parents=True)
        shutil.copy(EXECUTABLE, own / "bin/node-network-cni")
        (own / "venv").symlink_to(sys.prefix)

    def _bundle(self, argv: Sequence[str]) -> dict[str, Any]:
        """Return the runtime's configuration."""
        security = self._spec["securityContext"]
        assert not security.get("privileged")
        assert security["capabilities"]["drop"] == ["ALL"]
        granted = [f"CAP_{name}" for name in security["capabilities"].get("add", [])]
        assert self.pod["hostNetwork"]
        assert "hostPID" not in self.pod
        mounts = [self._mount(each) for each in self._spec["volumeMounts"]]
        if self.root == Path("/"):
            # The tree is perhaps below /tmp, which the pod has of its own.
            mounts += [
                _own(str(p), "bind", str(p), "rbind", "ro") for p in {ROOT, Path(sys.prefix)}
            ]
        # Paths before what is below them, as the kubelet's order is not.
        mounts = [*OWN_MOUNTS, *sorted(mounts, key=lambda m: str(m["destination"]))]
        return {
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs", "readonly": security["readOnlyRootFilesystem"]},
            "process": {
                "terminal": False,
                "user": {"uid": 0, "gid": 0},
                "cwd": "/",
                "args": list(argv),
                "env": [f"{k}={v}" for k, v in self._environment().items()],
                "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), granted),
                "noNewPrivileges": False,
            },
            "mounts": mounts,
            "linux": {
                "rootfsPropagation": "rslave",
                "cgroupsPath": f"/{self.name}",
                # No network: it has its node's.
                "namespaces": [{"type": t} for t in ("pid", "ipc", "uts", "mount")],
                "maskedPaths": [*(f"/proc/{name}" for name in MASKED), "/sys/firmware"],
                "readonlyPaths": [f"/proc/{name}" for name in READ_ONLY],
                "seccomp": self._seccomp(granted),
            },
        }

    def _environment(self) -> dict[str, str]:
        lab = {k: v for k, v in self.lab.environment(self.node).items() if "NODE_NETWORK" not in k}
        found = dict(lab)
        for each in self._spec["env"]:
            if "valueFrom" in each:
                path = each["valueFrom"]["fieldRef"]["fieldPath"]
                found[each["name"]] = {"spec.nodeName": self.node}[path]
            else:
                found[each["name"]] = each["value"]
        return found

    def _mount(self, mount: Manifest) -> dict[str, Any]:
        (volume,) = (v for v in self.pod["volumes"] if v["name"] == mount["name"])
        if "emptyDir" in volume:
            source = self.directory / mount["name"]
            source.mkdir()
        else:
            path = volume["hostPath"]["path"] if "hostPath" in volume else mount["mountPath"]
            source = self.here.get(path, Path(path))
        propagation = (
            "rslave" if mount.get("mountPropagation") == "HostToContainer" else "rprivate"
        )
        access = "ro" if mount.get("readOnly") else "rw"
        return {
            "destination": mount["mountPath"],
            "type": "bind",
            "source": str(source),
            "options": ["rbind", propagation, access],
        }

    def _seccomp(self, granted: Sequence[str]) -> dict[str, Any] | None:
        kind = self.pod["securityContext"]["seccompProfile"]["type"]
        assert kind == "RuntimeDefault"
        return runtime_default(json.loads(SECCOMP.read_text()), granted)


def runtime_default(profile: dict[str, Any], granted: Sequence[str]) -> dict[str, Any]:
    """Return a profile of the containers' format for what runc reads, for some capabilities."""
    machine = os.uname().machine
    names = {"x86_64": "amd64", "aarch64": "arm64"}

    def holds(condition: dict[str, Any] | None, *, unless: bool) -> bool:
        condition = condition or {}
        parts = []
        if caps := condition.get("caps"):
            parts.append(set(caps) & set(granted) if unless else set(caps) <= set(granted))
        if arches := condition.get("arches"):
            parts.append(names[machine] in arches)
        return any(parts) if unless else all(parts)

    rules = [
        {key: rule[key] for key in ("names", "action", "args", "errnoRet") if rule.get(key)}
        for rule in profile["syscalls"]
        if holds(rule.get("includes"), unless=False)
        and not holds(rule.get("excludes"), unless=True)
    ]
    return {
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile.get("defaultErrnoRet", 1),
        "architectures": [{"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}[machine]],
        "syscalls": rules,
    }


def _own(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": [*options]}


SAFE = ("nosuid", "noexec", "nodev")
OWN_MOUNTS = (
    _own("/proc", "proc", "proc", *SAFE),
    _own("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
    _own("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666"),
    _own("/dev/shm", "tmpfs", "shm", *SAFE, "mode=1777", "size=65536k"),
    _own("/sys", "sysfs", "sysfs", *SAFE, "ro"),
)


def pod_of(manifests: str) -> Manifest:
    """Return the pod's spec of the DaemonSet among manifests."""
    (found,) = (m for m in yaml.safe_load_all(manifests) if m["kind"] == "DaemonSet")
    spec: Manifest = found["spec"]["template"]["spec"]
    return spec


def without_mount(pod: Manifest, name: str) -> None:
    """Take a mount from a pod."""
    (container,) = pod["containers"]
    before = len(container["volumeMounts"])
    container["volumeMounts"] = [m for m in container["volumeMounts"] if m["name"] != name]
    assert len(container["volumeMounts"]) == before - 1, name
