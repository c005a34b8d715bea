"""Earlier releases: commits of the repository's history, unpacked beside this one."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]


def is_known(commit: str) -> bool:
    """Whether a commit is in this checkout's history."""
    argv = ["git", "-C", str(ROOT), "cat-file", "-e", f"{commit}^{{commit}}"]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def abbreviate(commit: str) -> str:
    """Return a commit's short name."""
    return _git("rev-parse", "--short", commit).decode().strip()


@contextmanager
def unpacked(commit: str, *rooms: str) -> Iterator[Path]:
    """Unpack packages of a commit into a directory that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="node-network-bench-") as place:
        packed = _git("archive", commit, *rooms)
        subprocess.run(["tar", "-x", "-C", place], input=packed, check=True)
        yield Path(place)


def environment(place: Path) -> dict[str, str]:
    """Return the variables with which Python imports what was unpacked, and not this release."""
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(place)}


def _git(*words: str) -> bytes:
    return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, check=True).stdout
