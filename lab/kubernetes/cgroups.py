"""Control groups of a cluster: one for each machine, in every hierarchy, of version 1 or 2.

They limit nothing. What runs in a machine is found by them, and kubelet makes its own below them.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PREFIX = "nne-"
"""Start of the name of every cluster's group."""

LEAF = "system"
"""Where a machine's own processes are: in version 2 a group that has groups with controllers below
it has no processes of its own."""

END_S = 20.0
"""Seconds for processes that were killed to be gone."""

CPUSET = ("cpuset.cpus", "cpuset.mems")


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One hierarchy of control groups as the kernel has mounted it.

    Attributes:
        point: where.
        kind: the file system, ``cgroup`` or ``cgroup2``.
        options: what another mount of the same hierarchy needs.
    """

    point: Path
    kind: str
    options: str


def hierarchies(mountinfo: str) -> tuple[Hierarchy, ...]:
    """Return the hierarchies in a text like ``/proc/self/mountinfo`` (proc(5))."""
    found = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, superblock = right.split(" ", 2)
        if kind not in {"cgroup", "cgroup2"}:
            continue
        own = [w for w in superblock.split(",") if w not in {"rw", "ro", "xattr"}]
        # What systemd adds to its own hierarchy is refused in a cgroup namespace.
        words = [w for w in own if "=" not in w or w.startswith("name=")]
        if any(w.startswith("name=") for w in words):
            words.insert(0, "none")
        options = ",".join(words) if kind == "cgroup" else ""
        found.append(Hierarchy(Path(left.split()[4]), kind, options))
    return tuple(found)


def present() -> tuple[Hierarchy, ...]:
    """Return this machine's hierarchies."""
    return hierarchies(Path("/proc/self/mountinfo").read_text())


class Group:
    """One group, of the same name in every hierarchy.

    Args:
        name: its path below each hierarchy's root.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def make(self) -> None:
        """Make it, and the leaf for processes; what is there already is kept."""
        for hierarchy in present():
            path = hierarchy.point
            for part in (*Path(self.name).parts, LEAF):
                if hierarchy.kind == "cgroup2" and part != LEAF:
                    delegate(path)
                parent, path = path, path / part
                path.mkdir(exist_ok=True)
                for setting in CPUSET:
                    # Version 1 lets no process into a group without processors and memory.
                    if hierarchy.kind == "cgroup" and (path / setting).exists():
                        (path / setting).write_text((parent / setting).read_text())

    def prefix(self) -> list[str]:
        """Return the words before a command that start it in the group's leaf."""
        places = [h.point / self.name / LEAF / "cgroup.procs" for h in present()]
        moves = " && ".join(f"echo $$ >{place}" for place in places)
        return ["sh", "-c", f'{moves} && exec "$@"', "sh"]

    def kill(self) -> None:
        """Kill what is in it and below, until nothing is left.

        Raises:
            TimeoutError: something does not end.
        """
        deadline = time.monotonic() + END_S
        while pids := self.processes():
            if time.monotonic() > deadline:
                raise TimeoutError(f"cgroup {self.name}: processes {sorted(pids)} do not end")
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def processes(self) -> set[int]:
        """Return the processes in it and below."""
        found: set[int] = set()
        for path in self._paths():
            # Not by rglob, which fails on a group that is removed meanwhile, as kubelet does.
            for group, _, _ in os.walk(path):
                with suppress(OSError):
                    found.update(map(int, (Path(group) / "cgroup.procs").read_text().split()))
        # A process of a PID namespace that this one does not see is 0.
        return found - {0, os.getpid()}

    def remove(self) -> None:
        """Kill what is in it, and remove it with all that is below."""
        self.kill()
        for path in self._paths():
            below = [p for p in path.rglob("*") if p.is_dir()]
            for each in [*sorted(below, reverse=True), path]:
                _remove(each)

    def _paths(self) -> Iterator[Path]:
        for hierarchy in present():
            if (path := hierarchy.point / self.name).is_dir():
                yield path


def left() -> list[str]:
    """Name the groups of clusters, running ones too."""
    return sorted({p.name for h in present() for p in h.point.glob(f"{PREFIX}*") if p.is_dir()})


def delegate(path: Path) -> None:
    """Let groups below have the controllers that this one has (cgroup v2)."""
    controllers = (path / "cgroup.controllers").read_text().split()
    for controller in controllers:
        with suppress(OSError):  # taken by version 1, or not to be had here
            (path / "cgroup.subtree_control").write_text(f"+{controller}")


def _remove(path: Path) -> None:
    deadline = time.monotonic() + END_S
    while path.exists():
        try:
            path.rmdir()
        except OSError:
            # A process that was killed stays in its group until it has ended.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
