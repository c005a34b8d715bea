"""A memory cgroup: what kubelet puts around a container that has a limit."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import yaml

MANIFEST = Path(__file__).parents[1] / "deploy/daemonset.yaml"

V1 = Path("/sys/fs/cgroup/memory")
V2 = Path("/sys/fs/cgroup")

PREFIX = "nnt-"
"""Start of the name of every group a test makes; the run's own letters follow."""

UNITS = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}

REMOVE_S = 5.0
"""Seconds for a group's last process to be gone from it."""


class NoCgroupError(AssertionError):
    """This machine has no memory controller in which a group can be made."""


def manifest_limit() -> int:
    """Return the bytes of memory that the manifest gives the daemon."""
    documents = list(yaml.safe_load_all(MANIFEST.read_text()))
    (daemon,) = (d for d in documents if d["kind"] == "DaemonSet")
    (container,) = daemon["spec"]["template"]["spec"]["containers"]
    text = container["resources"]["limits"]["memory"]
    found = re.fullmatch(r"(\d+)(Ki|Mi|Gi|)", text)
    assert found, f"{MANIFEST.name}: limits.memory is {text!r}"
    return int(found[1]) * UNITS[found[2]]


class MemoryGroup:
    """A group with a limit and without swap; what is started by ``prefix`` is in it.

    Raises:
        NoCgroupError: no group can be made here, so that nothing would be limited.
    """

    def __init__(self, name: str, limit_bytes: int) -> None:
        self.v2 = (V2 / "cgroup.controllers").exists()
        if self.v2:
            with suppress(OSError):  # it may be on already, or not to be had: checked below
                (V2 / "cgroup.subtree_control").write_text("+memory")
        root, limit = (V2, "memory.max") if self.v2 else (V1, "memory.limit_in_bytes")
        self.path = root / f"{PREFIX}{name}"
        try:
            self.path.mkdir()
            (self.path / limit).write_text(str(limit_bytes))
            told = (self.path / limit).read_text().strip()
        except OSError as error:
            with suppress(OSError):
                self.path.rmdir()
            raise NoCgroupError(
                f"no memory cgroup can be made below {root} ({error}): these tests need root and "
                "the memory controller of cgroup v1 or v2"
            ) from error
        assert int(told) <= limit_bytes
        with suppress(OSError):  # a kernel without swap has no such file
            swap = "memory.swap.max" if self.v2 else "memory.swappiness"
            (self.path / swap).write_text("0")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        remove(self.path)

    @property
    def prefix(self) -> Sequence[str]:
        """Words before a command that start it in the group, in the same process."""
        return ("sh", "-c", f'echo $$ >{self.path}/cgroup.procs && exec "$@"', "sh")

    def holds(self, pid: int) -> bool:
        """Whether a process is in the group."""
        return str(pid) in (self.path / "cgroup.procs").read_text().split()

    @property
    def kills(self) -> int:
        """How many processes the kernel has killed because the limit was reached."""
        events = "memory.events" if self.v2 else "memory.oom_control"
        return _field(self.path / events, "oom_kill")

    @property
    def peak_bytes(self) -> int:
        """The most that was ever charged, page cache included."""
        peak = "memory.peak" if self.v2 else "memory.max_usage_in_bytes"
        return int((self.path / peak).read_text())


def remove(path: Path) -> None:
    """Remove a group once its processes are gone."""
    deadline = time.monotonic() + REMOVE_S
    while path.exists():
        try:
            path.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def remove_left(run: str) -> None:
    """Remove what interrupted tests of a run have left."""
    for root in (V1, V2):
        for path in root.glob(f"{PREFIX}{run}*"):
            remove(path)


def _field(path: Path, name: str) -> int:
    lines = (line.split() for line in path.read_text().splitlines())
    return next(int(words[1]) for words in lines if words[0] == name)
