"""The systemd unit: what systemd says of it, and that it grants what the manifest grants."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from deploy.container import pod_of
from deploy.programs import DEPLOY

from reconciler.cli.main import main

UNIT = DEPLOY / "node-network.service"
PROGRAM = "/usr/local/bin/node-network"


def settings() -> Iterator[tuple[str, str]]:
    """Yield the unit's settings, in order."""
    for line in UNIT.read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            name, _, value = line.partition("=")
            yield name, value


def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze")
    # It wants the program to be there.
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(PROGRAM, "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_each_setting_is_said_once() -> None:
    names = [name for name, _ in settings() if name != "Environment"]
    assert len(names) == len(set(names))


def test_it_has_the_manifests_capabilities_and_directories() -> None:
    found = dict(settings())
    pod = pod_of((DEPLOY / "daemonset.yaml").read_text())
    (container,) = pod["containers"]
    granted = container["securityContext"]["capabilities"]["add"]
    assert found["CapabilityBoundingSet"].split() == [f"CAP_{name}" for name in granted]
    told = {e["name"]: e["value"] for e in container["env"] if "value" in e}
    own = dict(v.split("=", 1) for name, v in settings() if name == "Environment")
    assert own == {name: told[name] for name in own}
    # A node without Kubernetes is never "Ready": its pods wait for the daemon after a boot.
    directories = {name for name in told if name.endswith("_DIR")}
    assert set(own) == directories - {"NODE_NETWORK_TMPFILES_DIR"}
    writable = [path.lstrip("-") for path in found["ReadWritePaths"].split()]
    assert writable == [told["NODE_NETWORK_CNI_BIN_DIR"], told["NODE_NETWORK_CNI_CONF_DIR"]]
    assert f"/var/lib/{found['StateDirectory']}" == own["NODE_NETWORK_KEEP_DIR"]


def test_it_starts_a_command_that_there_is() -> None:
    program, command = dict(settings())["ExecStart"].split()
    assert program == PROGRAM
    assert command in main.list_commands(None)  # type: ignore[attr-defined]
