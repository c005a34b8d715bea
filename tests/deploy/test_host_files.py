"""The host's files that the manifest mounts: each tells something, and together all of it."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy.container import pod_of
from deploy.programs import DEPLOY, program

from reconciler.targets.files.host import HostFiles

render = program("render.py")
HOST_FILES = yaml.safe_load((render.CHART / "values.yaml").read_text())["hostFiles"]
PATHS = [h["path"] for h in HOST_FILES]

FILES = {
    "run/systemd/netif/state": "",
    "run/systemd/netif/links/1": "NETWORK_FILE=/etc/systemd/network/all.network\n",
    "usr/lib/systemd/networkd.conf.d/80.conf": "[Network]\nManageForeignRoutes=no\n",
    "etc/systemd/networkd.conf.d/90.conf": "[Network]\nManageForeignRoutingPolicyRules=no\n",
    "run/NetworkManager/devices/1": "[device]\nmanaged=true\n",
    "etc/udev/rules.d/53-ec2-network-interfaces.rules": "#\n",
    "usr/lib/udev/rules.d/99-vpc-policy-routes.rules": "#\n",
    "etc/firewalld/zones/pods.xml": '<zone target="ACCEPT"><interface name="nn+"/></zone>',
    "etc/firewalld/policies/all.xml": (
        '<policy target="ACCEPT"><ingress-zone name="ANY"/><egress-zone name="ANY"/></policy>'
    ),
}


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host on which everybody configures the network."""
    for name, text in FILES.items():
        path = tmp_path / "host" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "host"


def told(root: Path) -> tuple[Any, ...]:
    """All that is told of a host."""
    files = HostFiles(root)
    return files.networkd(), files.managers(), files.tools(), files.firewalld_accepts()


def seen(host: Path, into: Path, paths: Collection[str]) -> Path:
    """Return a root with what is mounted of a host."""
    for path in paths:
        shutil.copytree(host / path[1:], into / path[1:])
    return into


def test_what_is_mounted_tells_as_much_as_the_whole_host(host: Path, tmp_path: Path) -> None:
    networkd, managers, tools, firewalld = all_of_it = told(host)
    assert networkd is not None
    assert len(managers) == 2
    assert len(tools) == 2
    assert firewalld
    assert told(seen(host, tmp_path / "seen", PATHS)) == all_of_it


@pytest.mark.parametrize("less", PATHS)
def test_each_of_them_tells_something(less: str, host: Path, tmp_path: Path) -> None:
    some = [path for path in PATHS if path != less]
    assert told(seen(host, tmp_path / "seen", some)) != told(host)


def test_they_are_mounted_read_only_where_the_reconciler_looks_and_the_root_is_not() -> None:
    pod = pod_of((DEPLOY / "daemonset.yaml").read_text())
    (container,) = pod["containers"]
    (root,) = (e["value"] for e in container["env"] if e["name"] == "NODE_NETWORK_HOST_ROOT")
    mounts = {m["name"]: m for m in container["volumeMounts"]}
    volumes = {v["name"]: v["hostPath"]["path"] for v in pod["volumes"] if "hostPath" in v}
    for each in HOST_FILES:
        mount = mounts[each["name"]]
        assert mount["mountPath"] == root + each["path"]
        assert mount["readOnly"]
        assert volumes[each["name"]] == each["path"]
    assert not {"/", "/etc", "/run", "/var", "/proc", "/sys"} & set(volumes.values())
