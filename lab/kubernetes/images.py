"""The images that a node gets: the reconciler's, and what runs in pods."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from lab.kubernetes import build, oci
from lab.kubernetes.build import Say

RECONCILER = "localhost/node-network:e2e"
PAUSE = "localhost/pause:e2e"
APPLICATION = "localhost/application:e2e"

SOURCES = ("cni", "deploy", "pyproject.toml", "reconciler", "schemas")
"""What ``deploy/Dockerfile`` copies, and itself; but for the README, which changes nothing."""

KEPT_S = 86400.0
"""Seconds that an image of another state of the tree is kept."""


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
    script = build.ROOT / "deploy/image/build.sh"

    def make(place: Path) -> None:
        build.run([str(script), RECONCILER, str(place / "image.tar")])

    place = build.kept("image", build.fingerprint([build.ROOT / p for p in SOURCES]), make, say)
    # One for each commit would fill the disk; another tree may use its own now.
    for other in build.cache().glob("image-*"):
        if other != place and time.time() - other.stat().st_mtime > KEPT_S:
            shutil.rmtree(other, ignore_errors=True)
    return place / "image.tar"
