"""What the tests of real runtimes share: clusters as the other tests have them, and plugins."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from scenarios.conftest import DOCUMENT, Cluster, make_cluster

from lab.lifecycle import EXECUTABLE

__all__ = ["make_cluster"]

REFERENCE = Path("/usr/lib/cni")
"""Where Debian's containernetworking-plugins has them."""


@pytest.fixture(scope="module")
def cluster(
    request: pytest.FixtureRequest, make_cluster: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Two nodes with reconcilers, of a module's ``TYPES``; a test leaves it as it found it."""
    types = getattr(request.module, "TYPES", {})
    directory = tmp_path_factory.mktemp("cluster")
    with make_cluster(directory, "node1", "node2", types=types) as made:
        made.config.write_text(DOCUMENT + getattr(request.module, "RECONCILE", ""))
        yield made


@pytest.fixture(scope="session")
def plugins() -> Iterator[Path]:
    """A directory of CNI executables, as a host has it: ours beside the reference plugins."""
    with TemporaryDirectory(prefix="nn-cni-") as name:
        directory = Path(name)
        for each in REFERENCE.iterdir():
            (directory / each.name).symlink_to(each)
        ours = directory / "node-network"
        shutil.copy(EXECUTABLE, ours)
        yield directory
