"""The image's list of packages."""

from __future__ import annotations

from pathlib import Path

import pytest
from deploy.programs import DEPLOY, program

sbom = program("image/sbom.py")

LISTED = (
    "libc6:arm64\t2.36-9+deb12u13\tarm64\tglibc\tinstalled\n"
    "old\t1\tall\told\tconfig-files\n"
    "libstdc++6:arm64\t12.2.0\tarm64\tgcc-12\tinstalled\n"
)


def install(directory: Path, name: str, version: str) -> None:
    """Make what pip leaves of a package."""
    info = directory / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_debian_packages_are_named_as_scanners_look_for_them() -> None:
    glibc, stdcpp = sbom.debian_components(LISTED, "12")
    where = "?arch=arm64&distro=debian-12"
    assert glibc["purl"] == f"pkg:deb/debian/libc6@2.36-9%2Bdeb12u13{where}"
    assert stdcpp["purl"] == f"pkg:deb/debian/libstdc%2B%2B6@12.2.0{where}"
    assert stdcpp["properties"] == [{"name": "debian:source", "value": "gcc-12"}]


def test_python_packages_are_those_that_are_installed(tmp_path: Path) -> None:
    install(tmp_path, "node_network", "0.1.0")
    install(tmp_path, "PyYAML", "6.0.4")
    lock = sbom.locked((DEPLOY / "image/requirements.txt").read_text())
    own, (one,) = sbom.python_components(tmp_path, lock)
    assert own == "0.1.0"
    assert one["purl"] == "pkg:pypi/pyyaml@6.0.4"


def test_what_is_installed_besides_the_lock_is_refused(tmp_path: Path) -> None:
    install(tmp_path, "node_network", "0.1.0")
    install(tmp_path, "pip", "23.0.1")
    with pytest.raises(sbom.NotLockedError, match=r"pip.*23\.0\.1"):
        sbom.python_components(tmp_path, {"pyyaml": "6.0.4"})
