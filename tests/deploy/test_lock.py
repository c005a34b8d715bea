"""The image's lock: what the product imports, at the versions that are tested, and no more."""

from __future__ import annotations

import ast
import json
import re
import subprocess
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


ALONE = """
import json, sys
refused = set(json.loads(sys.argv[1]))

class Gate:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in refused:
            raise ModuleNotFoundError(f"{name} is not in the daemon's lock", name=name)

sys.meta_path.insert(0, Gate())
from importlib import import_module
from reconciler.cli.main import MODULES, main
for module in {*MODULES.values()} - {"lab.cli"}:
    import_module(module)
import_module("reconciler.targets.ec2.caller")._make_client("eu-central-1")
for command in ("run", "status"):
    main([command, "--help"], "node-network", standalone_mode=False)
"""
"""Runs what a node runs, where some of the modules that are installed cannot be imported."""


def test_with_nothing_but_the_lock_installed_every_command_starts(shipped: Lock) -> None:
    others = {
        module
        for module, names in metadata.packages_distributions().items()
        if not shipped.keys() & {re.sub(r"[-_.]+", "-", n).lower() for n in names}
    }
    others -= {"reconciler", "cni", "schemas", "lab", *FROM_DEBIAN}
    assert {"moto", "pytest", "rich"} <= others
    done = start(others)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: node-network") == 2
    assert "watchdog is not in the daemon's lock" in start({*others, "watchdog"}).stderr


def start(without: set[str]) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", ALONE, json.dumps([*without])]
    return subprocess.run(argv, capture_output=True, text=True, cwd=ROOT)


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
