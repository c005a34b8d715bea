"""Memory of the commands that observe by themselves: never at the cost of the daemon.

``kubectl exec`` puts a command into the daemon's cgroup. If its limit is reached, the kernel
ends the process of the highest score, which is the largest one unless another is marked
(``oom_score_adj``, proc(5)). With ``memory.oom.group``, which kubelet sets on cgroup v2 since
Kubernetes 1.28, it ends all of them, so such a command must not reach the limit at all.
"""

from __future__ import annotations

import resource
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

NEEDED = 72 << 20
"""Bytes without which no such command starts: 41 MB of data once all is imported, and a node."""

RESERVED = 16 << 20  # bytes that are left to the daemon, for what it does meanwhile

NO_LIMIT = 1 << 60  # v1 has no word for it, and shows 2^63 less a page

MEGABYTES = 20  # bits


@dataclass(frozen=True, slots=True)
class Group:
    """A memory cgroup: its limit and what is used of it, in bytes.

    ``used``: without files' pages, which the kernel takes back before it ends a process.
    ``falls_together``: if one process is ended for memory, all are.
    """

    limit: int
    used: int
    falls_together: bool = False

    @property
    def share(self) -> int:
        """Bytes that a command may take."""
        free = max(self.limit - self.used - RESERVED, 0)
        # A command asks EC2 by a process of its own, which takes as much as the command.
        return free // 2 if self.falls_together else free


def read_group(
    proc: Path = Path("/proc/self"), root: Path = Path("/sys/fs/cgroup")
) -> Group | None:
    """Read this process's memory cgroup; None without a limit, or if it does not show here."""
    try:
        lines = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
        paths = {names: path.lstrip("/") for _, names, path in lines}
        if "memory" in paths:
            top, limit, usage = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            files = ("total_inactive_file", "total_active_file")
        else:
            top, limit, usage = root, "memory.max", "memory.current"
            files = ("inactive_file", "active_file")
        here = top / paths["memory" if "memory" in paths else ""]
        if not (here / limit).exists():
            here = top  # a container that sees its own group there, but the host's name of it
        if (text := (here / limit).read_text().strip()) == "max" or int(text) >= NO_LIMIT:
            return None
        fields = dict(line.split() for line in (here / "memory.stat").read_text().splitlines())
        used = int((here / usage).read_text()) - sum(int(fields[name]) for name in files)
        together = here / "memory.oom.group"
        falls = together.exists() and together.read_text().strip() == "1"
        return Group(int(text), max(used, 0), falls)
    except (OSError, ValueError, KeyError):
        return None


def yield_to_daemon() -> str:
    """Be the first to go if memory runs out, and take none that the daemon may need.

    Returns:
        Why the command must not start: a sentence, or "".
    """
    with suppress(OSError):  # a higher score needs no right
        Path("/proc/self/oom_score_adj").write_text("1000")
    group = read_group()
    if group is None:
        return ""
    if group.share < NEEDED:
        return (
            f"{(group.limit - group.used) >> MEGABYTES} MiB are left of this container's memory "
            f"limit of {group.limit >> MEGABYTES} MiB, and the command might cost it its daemon. "
            "Raise the limit, or run it on the host; status and metrics still answer"
        )
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    share = group.share if hard == resource.RLIM_INFINITY else min(group.share, hard)
    with suppress(OSError):
        # Both limits: the process that asks EC2 sets one of its own, which must not be higher.
        resource.setrlimit(resource.RLIMIT_DATA, (share, share))
    return ""
