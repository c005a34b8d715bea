"""What the host's files say of other owners: networkd, NetworkManager, firewalld, AWS's tools."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from targets.test_foreign_contract import run

from reconciler.diagnostics.foreign import (
    NETWORK_MANAGER,
    NETWORKD,
    Manager,
    Networkd,
    Setting,
)
from reconciler.targets.files.host import HostFiles

# -- the host's files ------------------------------------------------------------------------


def put(root: Path, name: str, text: str = "") -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def mask(root: Path, name: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("/dev/null")


ON, OFF = Setting(True), Setting(False)


def test_an_empty_host_has_nobody(home: str, tmp_path: Path) -> None:
    host = HostFiles(tmp_path)
    assert host.networkd() is None
    assert (host.managers(), host.tools(), host.firewalld_accepts()) == ((), (), frozenset())


def test_networkd_counts_only_where_it_runs(tmp_path: Path) -> None:
    put(tmp_path, "etc/systemd/networkd.conf", "[Network]\nManageForeignRoutes=no\n")
    assert HostFiles(tmp_path).networkd() is None
    put(tmp_path, "run/systemd/netif/state")
    assert HostFiles(tmp_path).networkd() == Networkd(
        ON, Setting(False, "/etc/systemd/networkd.conf")
    )


NO, YES = "[Network]\nManageForeignRoutes=no\n", "[Network]\nManageForeignRoutes=yes\n"


@pytest.mark.parametrize(
    ("files", "file", "value"),
    [
        ({}, "", True),
        ({"usr/lib/systemd/networkd.conf": NO}, "/usr/lib/systemd/networkd.conf", False),
        # Of the main files only the first found is read.
        (
            {"usr/lib/systemd/networkd.conf": NO, "etc/systemd/networkd.conf": "[Network]\n"},
            "",
            True,
        ),
        # Drop-ins come after it, by name, wherever they are.
        (
            {
                "etc/systemd/networkd.conf": YES,
                "usr/lib/systemd/networkd.conf.d/80-release.conf": NO,
            },
            "/usr/lib/systemd/networkd.conf.d/80-release.conf",
            False,
        ),
        (
            {
                "etc/systemd/networkd.conf.d/10-a.conf": YES,
                "run/systemd/networkd.conf.d/20-b.conf": NO,
            },
            "/run/systemd/networkd.conf.d/20-b.conf",
            False,
        ),
        # One name is one file: /etc before /run before /usr/lib.
        (
            {
                "etc/systemd/networkd.conf.d/10-a.conf": YES,
                "usr/lib/systemd/networkd.conf.d/10-a.conf": NO,
            },
            "/etc/systemd/networkd.conf.d/10-a.conf",
            True,
        ),
        # Another section, a comment, and the last assignment.
        (
            {
                "etc/systemd/networkd.conf": "[DHCPv4]\nManageForeignRoutes=no\n[Network]\n"
                "# ManageForeignRoutes=no\nManageForeignRoutes=no\nManageForeignRoutes = true\n"
            },
            "/etc/systemd/networkd.conf",
            True,
        ),
    ],
)
def test_what_networkd_reads_last_counts(
    tmp_path: Path, files: dict[str, str], file: str, value: bool
) -> None:
    put(tmp_path, "run/systemd/netif/state")
    for name, content in files.items():
        put(tmp_path, name, content)
    found = HostFiles(tmp_path).networkd()
    assert found is not None
    assert found.routes == Setting(value, file)


def test_a_masked_drop_in_counts_for_nothing(tmp_path: Path) -> None:
    put(tmp_path, "run/systemd/netif/state")
    put(tmp_path, "usr/lib/systemd/networkd.conf.d/80-release.conf", NO)
    mask(tmp_path, "etc/systemd/networkd.conf.d/80-release.conf")
    found = HostFiles(tmp_path).networkd()
    assert found is not None
    assert found.routes == ON


def test_who_manages_a_link_is_read_by_its_index(home: str, tmp_path: Path) -> None:
    run("ip", "link", "add", "a0", "type", "veth", "peer", "b0")
    index = {name: socket.if_nametoindex(name) for name in ("a0", "b0")}
    netif = "ADMIN_STATE=configured\nNETWORK_FILE=/usr/lib/systemd/network/80-x.network\n"
    put(tmp_path, f"run/systemd/netif/links/{index['a0']}", netif)
    put(tmp_path, f"run/systemd/netif/links/{index['b0']}", "ADMIN_STATE=unmanaged\n")
    put(tmp_path, "run/systemd/netif/links/9999", netif)
    put(tmp_path, f"run/NetworkManager/devices/{index['b0']}", "[device]\nmanaged=true\n")
    put(tmp_path, f"run/NetworkManager/devices/{index['a0']}", "[device]\nmanaged=false\n")
    assert set(HostFiles(tmp_path).managers()) == {
        Manager("a0", NETWORKD, "/usr/lib/systemd/network/80-x.network"),
        Manager("b0", NETWORK_MANAGER, f"/run/NetworkManager/devices/{index['b0']}"),
    }


def tools(root: Path) -> list[str]:
    return [t.name for t in HostFiles(root).tools()]


def test_ec2_net_utils_is_found_by_its_udev_rules_until_they_are_masked(tmp_path: Path) -> None:
    name = "udev/rules.d/99-vpc-policy-routes.rules"
    put(tmp_path, f"usr/lib/{name}")
    (tool,) = HostFiles(tmp_path).tools()
    assert (tool.name, tool.file) == ("amazon-ec2-net-utils", f"/usr/lib/{name}")
    mask(tmp_path, f"etc/{name}")
    assert tools(tmp_path) == []


def test_nm_cloud_setup_is_found_when_enabled_and_told_to_serve_ec2(tmp_path: Path) -> None:
    drop_in = "usr/lib/systemd/system/nm-cloud-setup.service.d/10-rh-enable-for-ec2.conf"
    put(tmp_path, drop_in, "[Service]\nEnvironment=NM_CLOUD_SETUP_EC2=yes\n")
    assert tools(tmp_path) == [], "not enabled"
    wants = tmp_path / "etc/systemd/system/timers.target.wants"
    wants.mkdir(parents=True)
    (wants / "nm-cloud-setup.timer").symlink_to("/usr/lib/systemd/system/nm-cloud-setup.timer")
    assert tools(tmp_path) == ["nm-cloud-setup"]
    put(tmp_path, drop_in, "[Service]\n")
    assert tools(tmp_path) == [], "serves no cloud"


ZONE = '<zone target="{}"><interface name="nn+"/><interface name="x0"/></zone>'
POLICY = '<policy target="ACCEPT"><ingress-zone name="ANY"/><egress-zone name="trusted"/></policy>'


def test_firewalld_accepts_by_a_zone_and_a_policy_together(tmp_path: Path) -> None:
    host = HostFiles(tmp_path)
    put(tmp_path, "etc/firewalld/zones/trusted.xml", ZONE.format("ACCEPT"))
    assert host.firewalld_accepts() == frozenset(), "nothing lets others in"
    put(tmp_path, "etc/firewalld/policies/to-pods.xml", POLICY)
    assert host.firewalld_accepts() == {"nn*", "x0"}
    put(tmp_path, "etc/firewalld/zones/trusted.xml", ZONE.format("default"))
    assert host.firewalld_accepts() == frozenset()
    put(tmp_path, "etc/firewalld/zones/trusted.xml", "<zone")
    assert host.firewalld_accepts() == frozenset()


@pytest.mark.parametrize(
    "name",
    [
        "etc/systemd/networkd.conf.d/50-x.conf",
        "run/systemd/netif/links/1",
        "run/NetworkManager/devices/1",
        "etc/firewalld/zones/x.xml",
        "etc/systemd/system/nm-cloud-setup.service.d/x.conf",
    ],
)
@pytest.mark.parametrize("what", ["fifo", "bytes", "large", "nested", "directory", "bomb"])
def test_whatever_stands_in_a_files_place_says_nothing_and_stops_nothing(
    home: str, tmp_path: Path, name: str, what: str
) -> None:
    put(tmp_path, "run/systemd/netif/state")
    wants = tmp_path / "etc/systemd/system/timers.target.wants"
    wants.mkdir(parents=True)
    (wants / "nm-cloud-setup.timer").symlink_to("/nowhere")
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    match what:
        case "fifo":
            os.mkfifo(path)
        case "bytes":
            path.write_bytes(bytes(range(256)) * 9)
        case "large":
            path.write_bytes(b"[Network]\nManageForeignRoutes=no\n" + b"#" * (1 << 19))
        case "nested":
            path.write_text("<x>" * 50_000)
        case "directory":
            path.mkdir()
        case "bomb":
            path.write_text('<?xml version="1.0" encoding="no-such"?><zone target="ACCEPT"/>')
    host = HostFiles(tmp_path)
    running = host.networkd()
    assert running is not None
    assert running.routes == Setting(True)
    assert (host.managers(), host.tools(), host.firewalld_accepts()) == ((), (), frozenset())


def test_a_directory_without_end_is_read_as_far_as_its_bound(tmp_path: Path) -> None:
    for number in range(1_200):
        put(tmp_path, f"etc/firewalld/zones/{number}.xml", "<zone/>")
    assert len(list(HostFiles(tmp_path)._firewalld("zones"))) == 1_000
