"""The image's lock: what the product imports, at the versions that are tested, and no more."""

from __future__ import annotations

import ast
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = re.compile(r"^([a-z0-9._-]+)==(\S+)([^\n]*(?:\n    --hash=[^\n]+)+)", re.MULTILINE)

Lock = dict[str, tuple[str, frozenset[str]]]

TYPES_ONLY = {"mypy_boto3_ec2"}
"""Imported for the type checker alone."""

FROM_DEBIAN = {"nftables"}
"""libnftables' binding comes with the library that it binds."""


def lock(file: str) -> Lock:
    """Versions and hashes by name."""
    text = (ROOT / file).read_text()
    found = {
        name: (version, frozenset(re.findall(r"--hash=(\S+)", rest)))
        for name, version, rest in PACKAGE.findall(text)
    }
    assert len(found) == len(re.findall(r"^[a-z0-9]", text, re.MULTILINE))
    return found


@pytest.fixture(scope="module")
def shipped() -> Lock:
    return lock("deploy/image/requirements.txt")


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-build.txt"])
def test_each_package_is_the_one_that_is_tested(file: str) -> None:
    everything = lock("requirements.txt")
    for name, (version, hashes) in lock(f"deploy/image/{file}").items():
        assert everything[name] == (version, hashes), f"{name}: run deploy/image/lock.sh"


def test_it_names_no_index_and_no_host() -> None:
    for path in (ROOT / "deploy/image").glob("requirements*.txt"):
        assert "://" not in path.read_text()
        assert "index" not in path.read_text()


def imported() -> set[str]:
    """What the shipped rooms import that is neither theirs nor Python's."""
    found: set[str] = set()
    for path in (
        p for part in ("reconciler", "cni", "schemas") for p in (ROOT / part).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {a.name.partition(".")[0] for a in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    ours = {"reconciler", "cni", "schemas", "lab"}
    return found - ours - TYPES_ONLY - FROM_DEBIAN - set(sys.stdlib_module_names)


def needs(name: str, seen: set[str]) -> set[str]:
    """A distribution and all it requires on Linux, by their names."""
    if name in seen:
        return seen
    seen.add(name)
    for requirement in metadata.requires(name) or ():
        what, _, marker = requirement.partition(";")
        if "extra" in marker or "win32" in marker or "Windows" in marker:
            continue
        if (old := re.search(r"python_version\s*<\s*['\"]3\.(\d+)", marker)) and int(old[1]) <= 11:
            continue
        (word,) = re.findall(r"^[A-Za-z0-9._-]+", what)
        needs(re.sub(r"[-_.]+", "-", word).lower(), seen)
    return seen


def test_it_has_what_the_product_imports_with_what_that_needs_and_no_more(shipped: Lock) -> None:
    places = metadata.packages_distributions()
    wanted: set[str] = set()
    for module in imported():
        (name,) = set(places[module])
        needs(re.sub(r"[-_.]+", "-", name).lower(), wanted)
    on_linux = shipped.keys() - {"win-inet-pton"}  # only with a marker for Windows
    assert on_linux == wanted
    assert not on_linux & {"moto", "pytest", "grpcio", "flask", "hypothesis", "setuptools"}
