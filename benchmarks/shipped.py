"""What the image ships, without a container: Debian's Python, its packages, its command line.

The environment is made as ``deploy/Dockerfile`` makes it, of the same lock, in ``build/shipped``;
command and variables are read from that file. ``python -m benchmarks.shipped`` makes it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "deploy/Dockerfile"
LOCK = ROOT / "deploy/image/requirements.txt"
CUT = ROOT / "deploy/image/cut_sdk.py"
VENV = ROOT / "build/shipped"
IN_IMAGE = "/opt/node-network/venv"
PYTHON = "/usr/bin/python3"
BINDING = Path("/usr/lib/python3/dist-packages/nftables")
"""Debian's, of libnftables."""

SOURCES = ("cni", "deploy/completion", "deploy/man", "reconciler", "schemas")
FILES = ("README.md", "pyproject.toml")


@cache
def command() -> tuple[str, ...]:
    """Return what starts ``node-network`` as the image does, without a command of it.

    The environment is made, or brought up to date with this tree.
    """
    prepare()
    return read_command()


def python() -> tuple[str, ...]:
    """Return the interpreter that the image's command has, with its flags and variables."""
    return interpreter(command())


def read_command() -> tuple[str, ...]:
    """Read the image's variables and its entry point."""
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    lines = re.findall(r"^ENV (.+)$", text, re.MULTILINE)
    variables = [word for line in lines for word in line.split()]
    words: list[str] = json.loads(re.findall(r"^ENTRYPOINT (\[.*\])$", text, re.MULTILINE)[-1])
    return ("env", *variables, *(w.replace(IN_IMAGE, str(VENV)) for w in words))


def interpreter(words: tuple[str, ...]) -> tuple[str, ...]:
    """Return what of a command is the interpreter, its flags and variables."""
    if "-m" in words:
        return words[: words.index("-m")]
    return (*words[:-1], f"{VENV}/bin/python")


def prepare() -> None:
    """Make the environment, or bring it up to date; one process at a time."""
    VENV.parent.mkdir(exist_ok=True)
    with VENV.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        packages = _fingerprint([LOCK, CUT, Path(__file__), Path(PYTHON).resolve()])
        if _stamp("packages") != packages:
            _tell("Debian's Python with the packages of the image's lock")
            _make()
            _stamp("packages", packages)
        ours = _fingerprint([*(ROOT / f for f in FILES), *(ROOT / s for s in SOURCES)], packages)
        if _stamp("ours") != ours:
            _install()
            _stamp("ours", ours)


def _make() -> None:
    shutil.rmtree(VENV, ignore_errors=True)
    subprocess.run([PYTHON, "-m", "venv", "--without-pip", str(VENV)], check=True)
    _pip("install", "--only-binary", ":all:", "--require-hashes", "-r", str(LOCK))
    (site,) = VENV.glob("lib/python3*/site-packages")
    subprocess.run([PYTHON, CUT, site], check=True)
    (site / "nftables").symlink_to(BINDING)


def _install() -> None:
    """Install this tree's packages from a copy: setuptools leaves what it made beside them."""
    with tempfile.TemporaryDirectory(prefix="node-network-bench-") as directory:
        place = Path(directory)
        for name in SOURCES:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, place / "tree" / name, ignore=ignored)
        for name in FILES:
            shutil.copy(ROOT / name, place / "tree" / name)
        made = [
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            str(place),
            str(place / "tree"),
        ]
        _pip("wheel", *made, into=False)
        (wheel,) = place.glob("*.whl")
        _pip("install", "--no-deps", "--force-reinstall", str(wheel))


def _pip(*words: str, into: bool = True) -> None:
    where = ["--python", str(VENV / "bin/python")] if into else []
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *where, *words], check=True)


def _stamp(name: str, value: str = "") -> str:
    """Write what something was made of, or read it."""
    path = VENV / f".{name}"
    if value:
        path.write_text(value)
    return path.read_text() if path.exists() else ""


def _fingerprint(paths: Iterable[Path], more: str = "") -> str:
    digest = hashlib.sha256(more.encode())
    for path in paths:
        inner = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in inner:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(str(file).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _tell(what: str) -> None:
    print(f"shipped: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    print(*command())
