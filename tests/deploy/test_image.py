"""The image: what its recipe says, and what is in the archive that ``make image`` wrote."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from deploy.archive import ARCHIVE, opened

ROOT = Path(__file__).parents[2]
RECIPE = (ROOT / "deploy/Dockerfile").read_text()

MOST_BYTES = 150_000_000
"""Unpacked, beyond the base."""


def test_every_stage_is_from_the_one_base_which_is_pinned_by_digest() -> None:
    (base,) = re.findall(r"^ARG BASE=(.*)$", RECIPE, re.MULTILINE)
    assert re.fullmatch(r"debian:bookworm-slim@sha256:[0-9a-f]{64}", base)
    stages = re.findall(r"^FROM (\S+)(?: AS (\S+))?$", RECIPE, re.MULTILINE)
    assert [name for name, _ in stages if name != "${BASE}"] == ["build", "build"]


def test_nothing_in_the_recipe_is_of_one_architecture() -> None:
    assert not re.search(r"amd64|x86_64|arm64|aarch64", RECIPE.split("\n\n", 1)[1])


def test_what_is_copied_is_let_through_to_the_build() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let = {line[1:] for line in lines if line.startswith("!")}
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", RECIPE, re.MULTILINE):
        for source in sources.split():
            assert any(source == each or source.startswith(f"{each}/") for each in let), source


@dataclass
class Image:
    """An image of an archive.

    Attributes:
        layers: members of each layer, the base's first.
    """

    config: dict[str, Any]
    layers: list[list[tarfile.TarInfo]]
    sbom: dict[str, Any]

    @property
    def ours(self) -> Iterator[tarfile.TarInfo]:
        """What is there beyond the base."""
        return (member for layer in self.layers[1:] for member in layer)


@pytest.fixture(scope="module")
def image() -> Image:
    if not ARCHIVE.exists():
        pytest.skip("no image: 'make image' builds it, with a Debian mirror and a package index")
    layers, sbom = [], b"{}"
    with opened() as archive:
        for layer in archive.layers():
            members = []
            for member in layer:
                members.append(member)
                if member.name.endswith("node-network/sbom.cdx.json"):
                    found = layer.extractfile(member)
                    assert found is not None
                    sbom = found.read()
            layers.append(members)
        return Image(archive.config, layers, json.loads(sbom))


def test_it_is_small(image: Image) -> None:
    assert sum(m.size for m in image.ours) < MOST_BYTES


def test_its_programs_are_on_the_path(image: Image) -> None:
    environment = dict(word.split("=", 1) for word in image.config["config"]["Env"])
    path = {f".{directory}" for directory in environment["PATH"].split(":")}
    names = {f"./{m.name.removeprefix('./')}" for layer in image.layers for m in layer}
    for program in ("node-network", "ip", "nft", "iptables-nft-save", "iptables-legacy-save"):
        # Debian's /bin and /sbin are links to those below /usr.
        places = path | {f"./usr{p[1:]}" for p in path}
        assert any(f"{directory}/{program}" in names for directory in places), program
    assert image.config["config"]["Entrypoint"] == ["/opt/node-network/venv/bin/node-network"]
    modes = {m.name.removeprefix("./"): m.mode for m in image.ours}
    assert modes["opt/node-network/bin/node-network-cni"] & 0o777 == 0o755


def test_nothing_of_the_lab_or_the_tests_is_in_it(image: Image) -> None:
    packages = {m.name.split("site-packages/")[1].split("/")[0] for m in image.ours
                if "venv" in m.name and "site-packages/" in m.name}  # fmt: skip
    assert packages >= {"boto3", "reconciler", "schemas", "cni"}
    assert not packages & {"pip", "setuptools", "moto", "pytest", "grpc", "lab", "tests"}


def test_every_module_is_compiled_since_the_root_will_be_read_only(image: Image) -> None:
    names = {m.name for m in image.ours if "venv/lib" in m.name}
    sources = {n for n in names if n.endswith(".py")}
    cached = re.compile(r"__pycache__/(.+)\.cpython-3\d+\.pyc$")
    compiled = {cached.sub(r"\1.py", n) for n in names if cached.search(n)}
    assert len(sources) > 500
    assert sources - compiled == set()


def test_it_says_what_is_in_it(image: Image) -> None:
    labels = image.config["config"]["Labels"]
    title, version = (labels[f"org.opencontainers.image.{k}"] for k in ("title", "version"))
    assert title == image.sbom["metadata"]["component"]["name"] == "node-network"
    assert version == image.sbom["metadata"]["component"]["version"]
    purls = {c["purl"].split("@")[0] for c in image.sbom["components"]}
    assert purls >= {
        "pkg:deb/debian/libnftables1",
        "pkg:deb/debian/iproute2",
        "pkg:deb/debian/libc6",
        "pkg:pypi/boto3",
        "pkg:pypi/pydantic-core",
    }
    assert "pkg:pypi/moto" not in purls
