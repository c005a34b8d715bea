"""The images that a node gets: the reconciler's, and what runs in pods."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from lab.kubernetes import build, oci
from lab.kubernetes.build import Say

RECONCILER = "localhost/node-network:e2e"
EARLIER = "localhost/node-network:earlier"
PAUSE = "localhost/pause:e2e"
APPLICATION = "localhost/application:e2e"

SOURCES = (
    "cni",
    "deploy/Dockerfile",
    "deploy/completion",
    "deploy/executable",
    "deploy/image",
    "deploy/man",
    "pyproject.toml",
    "reconciler",
    "schemas",
)
"""What ``deploy/Dockerfile`` copies, and itself; but for the README, which changes nothing."""

MANIFEST = "deploy/daemonset.yaml"

KEPT_S = 86400.0
"""Seconds that an image of another state of the tree is kept."""

COMMIT = "EARLIER"
"""Environment variable that names the commit of the earlier release."""

LOOKED_AT = 20
"""Commits that are looked at for an earlier image."""


@dataclass(frozen=True)
class Release:
    """An image, and the manifest that goes with it.

    Attributes:
        commit: what it was made from.
        image: its name.
        archive: the image.
        manifest: its text.
    """

    commit: str
    image: str
    archive: Path
    manifest: str


def archives(say: Say) -> tuple[Path, ...]:
    """Return the OCI archives of all images."""
    return reconciler(say), *pods(say)


def pods(say: Say) -> tuple[Path, Path]:
    """Return the archives of what pods run: nothing, and a program that answers."""
    program = build.application(say) / "application"

    def make(place: Path) -> None:
        for name, image in (("pause", PAUSE), ("application", APPLICATION)):
            layer = place / f"{name}.layer"
            oci.write_layer(layer, {f"/{name}": program})
            oci.write_archive(place / f"{name}.tar", image, [layer], {"Entrypoint": [f"/{name}"]})
            layer.unlink()

    key = build.fingerprint([program, Path(oci.__file__)], PAUSE, APPLICATION)
    place = build.kept("pod-images", key, make, say)
    return place / "pause.tar", place / "application.tar"


def reconciler(say: Say) -> Path:
    """Return the archive of the image that is shipped, built from this tree.

    Raises:
        BuildError: it cannot be built.
    """
    place = _built(build.ROOT, say)
    # One for each commit would fill the disk; another tree may use its own now.
    for other in build.cache().glob("image-*"):
        if other != place and time.time() - other.stat().st_mtime > KEPT_S:
            shutil.rmtree(other, ignore_errors=True)
    return place / "image.tar"


def earlier(say: Say) -> Release | None:
    """Return what was shipped before: of the newest commit whose image is another.

    Sources can differ and still make the same image, which containerd then reports under
    either of its names. The environment may name the commit instead.

    Returns:
        The release; None if this tree knows no such commit, as a source archive.

    Raises:
        BuildError: an image cannot be built.
    """
    named = os.environ.get(COMMIT)
    present = oci.identity(reconciler(say))
    for commit in [named] if named else filter(_differs, _commits()):
        with TemporaryDirectory() as directory:
            tree = Path(directory)
            listed = _git("ls-tree", "--name-only", commit, "--", "README.md", *SOURCES, MANIFEST)
            packed = _git("archive", commit, *listed.stdout.decode().split()).stdout
            subprocess.run(["tar", "-x", "-C", directory], input=packed, check=True)
            text = (tree / MANIFEST).read_text()
            built = _built(tree, say) / "image.tar"
        if named or oci.identity(built) != present:
            return Release(commit, EARLIER, _renamed(built, say), text)
        say(f"commit {commit[:12]} makes the same image as this tree: the one before it is tried")
    return None


def _renamed(built: Path, say: Say) -> Path:
    """Return a copy of an archive, under the name of the earlier release."""

    def make(place: Path) -> None:
        oci.rename(built, place / "image.tar", EARLIER)

    place = build.kept("earlier", built.parent.name.removeprefix("image-"), make, say)
    for other in build.cache().glob("earlier-*"):
        if other != place:
            shutil.rmtree(other, ignore_errors=True)
    return place / "image.tar"


def _built(tree: Path, say: Say) -> Path:
    """Return the directory of a tree's image."""
    script = tree / "deploy/image/build.sh"

    def make(place: Path) -> None:
        build.run([str(script), RECONCILER, str(place / "image.tar")])

    return build.kept(
        "image", build.fingerprint([tree / p for p in SOURCES if (tree / p).exists()]), make, say
    )


def _commits() -> list[str]:
    """Return the newest commits that have touched what the image is made from."""
    listed = _git("rev-list", f"--max-count={LOOKED_AT}", "HEAD", "--", *SOURCES)
    return listed.stdout.decode().split()


def _differs(commit: str) -> bool:
    """Whether this tree makes its image from something else than a commit did."""
    return _git("diff", "--quiet", commit, "--", *SOURCES).returncode == 1


def _git(*words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", *words], cwd=build.ROOT, capture_output=True, check=False)
