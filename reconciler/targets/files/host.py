"""The host's own configuration, as files: who else configures links, routes and rules.

Read below a root, because the reconciler's container has other files than its host.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.diagnostics import foreign
from reconciler.diagnostics.foreign import Manager, Networkd, Setting, Tool
from reconciler.targets.files.bounded import list_files, printable, read_file

if TYPE_CHECKING:
    from xml.etree import ElementTree as ET

ROOT = "NODE_NETWORK_HOST_ROOT"
"""Environment variable: where the host's root is mounted. Default: /."""

VENDORS = ("usr/lib", "lib")
"""``/lib`` where it is not yet a link to ``/usr/lib``."""

SYSTEMD = ("etc/systemd", "run/systemd", "usr/local/lib/systemd", "usr/lib/systemd", "lib/systemd")
"""Where systemd's programs look, what counts most first (systemd-system.conf(5))."""

TRUE = {"1", "yes", "y", "true", "t", "on"}
"""systemd.syntax(7), "Boolean arguments"."""

NET_UTILS_RULES = ("99-vpc-policy-routes.rules", "53-ec2-network-interfaces.rules")
"""udev rules of amazon-ec2-net-utils 2.x and ec2-net-utils 1.x: they start it for each ENI."""


MAX_BYTES = 1 << 18
"""Of one file; the largest that programs here are known to have is of some KiB."""

MAX_FILES = 1_000
"""Of one directory; systemd-networkd has a file for each link, and a node 250 of pods."""


class HostFiles:
    """The host's files, below its root directory; by default that is what the environment says."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or Path(os.environ.get(ROOT, "/"))

    def networkd(self) -> Networkd | None:
        """What systemd-networkd does with rules and routes of others; None if it does not run."""
        if not (self.root / "run/systemd/netif/state").exists():
            return None
        found: dict[str, Setting] = {}
        for path in self._networkd_files():
            for name, value in _section(path, "Network"):
                if name in ("ManageForeignRoutingPolicyRules", "ManageForeignRoutes"):
                    found[name] = Setting(value.lower() in TRUE, self._name(path))
        default = Setting(True)
        return Networkd(
            found.get("ManageForeignRoutingPolicyRules", default),
            found.get("ManageForeignRoutes", default),
        )

    def managers(self) -> tuple[Manager, ...]:
        """Who says that it configures which of this namespace's links."""

        def of_links(directory: str) -> Iterator[tuple[str, Path]]:
            # What there is a file of, and not the other way round: each pod has a link.
            for path in list_files(self.root / directory, "*", MAX_FILES):
                with suppress(ValueError, OverflowError, OSError):  # of no link, or a gone one
                    yield socket.if_indextoname(int(path.name)), path

        networkd = (
            Manager(name, foreign.NETWORKD, file)
            for name, path in of_links("run/systemd/netif/links")
            if (file := dict(_assignments(_text(path))).get("NETWORK_FILE"))
        )
        manager = (
            Manager(name, foreign.NETWORK_MANAGER, self._name(path))
            for name, path in of_links("run/NetworkManager/devices")
            if dict(_section(path, "device")).get("managed") == "true"
        )
        return (*networkd, *manager)

    def tools(self) -> tuple[Tool, ...]:
        """Programs that take every ENI for theirs."""
        return (*self._net_utils(), *self._cloud_setup())

    def firewalld_accepts(self) -> frozenset[str]:
        """Patterns of links that firewalld's configuration lets forward, and be forwarded to.

        Those of a zone with target ACCEPT to which a policy accepts what comes from anywhere.
        """
        reached = {
            zone.get("name", "")
            for policy in self._firewalld("policies")
            if policy.get("target") == "ACCEPT"
            and any(z.get("name") == "ANY" for z in policy.findall("ingress-zone"))
            for zone in policy.findall("egress-zone")
        }
        return frozenset(
            interface.get("name", "").replace("+", "*")
            for zone in self._firewalld("zones")
            if zone.get("target") == "ACCEPT" and reached & {"ANY", zone.get("file", "")}
            for interface in zone.findall("interface")
        )

    def _networkd_files(self) -> Iterator[Path]:
        """Files in the order in which they are read: what comes later counts."""
        mains = [self.root / d / "networkd.conf" for d in SYSTEMD]
        yield from [p for p in mains if p.exists()][:1]
        yield from self._merged([f"{d}/networkd.conf.d" for d in SYSTEMD], "*.conf")

    def _net_utils(self) -> Iterator[Tool]:
        places = ["etc/udev/rules.d", "run/udev/rules.d", *(f"{d}/udev/rules.d" for d in VENDORS)]
        for path in self._merged(places, "*.rules"):
            if path.name in NET_UTILS_RULES:
                cure = (
                    "remove the package (amazon-ec2-net-utils or ec2-net-utils), or mask it: "
                    f"ln -s /dev/null /etc/udev/rules.d/{path.name}; then "
                    '\'systemctl stop "policy-routes@*" "refresh-policy-routes@*"\''
                )
                yield Tool("amazon-ec2-net-utils", self._name(path), cure)

    def _cloud_setup(self) -> Iterator[Tool]:
        """An enabled unit that is told to serve EC2."""
        units = ("nm-cloud-setup.timer", "nm-cloud-setup.service")
        system = self.root / "etc/systemd/system"
        # An enabled unit is a link to a path on the host, which leads nowhere from a container.
        wants = list_files(system, "*.wants", MAX_FILES)
        enabled = [p for unit in units for d in wants if os.path.lexists(p := d / unit)]
        masked = [u for u in units if _is_masked(system / u)]
        if not enabled or len(masked) == len(units):
            return
        drop_ins = [f"{d}/system/nm-cloud-setup.service.d" for d in SYSTEMD]
        settings = [
            value
            for path in self._merged(drop_ins, "*.conf")
            for name, value in _section(path, "Service")
            if name == "Environment"
        ]
        if any("NM_CLOUD_SETUP_EC2=yes" in value for value in settings):
            cure = f"run: systemctl disable --now {' '.join(units)}"
            yield Tool("nm-cloud-setup", self._name(enabled[0]), cure)

    def _merged(self, directories: Iterable[str], pattern: str) -> list[Path]:
        """Return files by name, each from the first directory that has it; masked ones go."""
        found: dict[str, Path] = {}
        for directory in directories:
            for path in list_files(self.root / directory, pattern, MAX_FILES):
                found.setdefault(path.name, path)
        return [found[name] for name in sorted(found) if not _is_masked(found[name])]

    def _firewalld(self, what: str) -> Iterator[ET.Element]:
        places = [f"etc/firewalld/{what}", *(f"{d}/firewalld/{what}" for d in VENDORS)]
        if not (paths := self._merged(places, "*.xml")):
            return  # and the parser is not loaded
        from xml.etree import ElementTree as ET

        for path in paths:
            try:
                root = ET.fromstring(read_file(path, MAX_BYTES))
            except (ET.ParseError, OSError, ValueError, LookupError):
                continue  # firewalld does not read it either
            root.set("file", path.stem)
            yield root

    def _name(self, path: Path) -> str:
        """Return the path as the host's operator knows it."""
        return f"/{printable(str(path.relative_to(self.root)))}"


def _is_masked(path: Path) -> bool:
    with suppress(OSError):  # no link, or gone since the directory was listed
        return path.readlink() == Path("/dev/null")
    return False


def _section(path: Path, section: str) -> Iterator[tuple[str, str]]:
    """Return a section's assignments in order; systemd lets a name come twice."""
    lines = _text(path).splitlines()
    here = False
    for line in map(str.strip, lines):
        if line.startswith("["):
            here = line == f"[{section}]"
        elif here:
            yield from _assignments(line)


def _assignments(text: str) -> Iterator[tuple[str, str]]:
    for line in map(str.strip, text.splitlines()):
        name, equals, value = line.partition("=")
        if equals and not line.startswith(("#", ";")):
            yield name.strip(), value.strip()


def _text(path: Path) -> str:
    try:
        return read_file(path, MAX_BYTES).decode(errors="replace")
    except OSError:
        return ""  # gone, or no file: it says nothing
