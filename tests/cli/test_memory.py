"""Commands in the daemon's cgroup: when memory is short they go, and the daemon stays."""

from __future__ import annotations

import resource
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cgroup import MemoryGroup
from conftest import RUN
from scenarios.conftest import PROGRAM, make_cluster
from waiting import until

from reconciler.cli import main
from reconciler.cli.main import OBSERVING
from reconciler.cli.memory import NEEDED, RESERVED, Group, read_group

__all__ = ["make_cluster"]

MIB = 1 << 20
LIMIT = 512 * MIB
LEFT = 24 * MIB
"""Less than any command needs, and more than the daemon takes at rest."""

UNSEEN = ("unshare", "--mount", "sh", "-c", 'umount -l /sys/fs/cgroup && exec "$@"', "sh")
"""Words before a command that let it see no cgroup, as in a container without that mount."""


class Shared:
    """A node whose daemon is in a group with hardly any memory left."""

    def __init__(self, cluster: Any, group: MemoryGroup) -> None:
        self.cluster = cluster
        self.group = group

    def limit(self, left: int) -> None:
        """Leave so many bytes in the group."""
        file = "memory.max" if self.group.v2 else "memory.limit_in_bytes"
        usage = "memory.current" if self.group.v2 else "memory.usage_in_bytes"
        used = int((self.group.path / usage).read_text())
        (self.group.path / file).write_text(str(used + left))

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the node, in the group."""
        done: subprocess.CompletedProcess[str] = self.cluster.lab.run(
            "node1", [*self.group.prefix, *argv]
        )
        return done

    def diff(self, *before: str) -> subprocess.CompletedProcess[str]:
        return self.run(*before, *PROGRAM, "diff", "-f", str(self.cluster.config))


@pytest.fixture
def shared(tmp_path: Path, make_cluster: Any) -> Iterator[Shared]:
    with (
        MemoryGroup(f"{RUN}-{secrets.token_hex(3)}", LIMIT) as group,
        make_cluster(tmp_path) as cluster,
    ):
        cluster.prefix = group.prefix
        cluster.start("node1")
        assert group.holds(cluster.process().pid)
        yield Shared(cluster, group)


@pytest.mark.lab
def test_with_room_a_command_runs_beside_its_daemon(shared: Shared) -> None:
    done = shared.diff()
    assert done.returncode == 0, done.stderr


@pytest.mark.lab
def test_a_command_that_would_not_fit_does_not_start_and_says_so(shared: Shared) -> None:
    shared.limit(LEFT)
    done = shared.diff()
    assert done.returncode == 2, done.stderr
    assert "MiB are left of this container's memory limit of" in done.stderr
    assert shared.group.kills == 0
    assert shared.cluster.answers()


@pytest.mark.lab
def test_a_command_that_sees_no_limit_is_ended_before_the_daemon(shared: Shared) -> None:
    # Both are of about one size; let the daemon be the larger one in the kernel's eyes.
    pid = shared.cluster.process().pid
    Path(f"/proc/{pid}/oom_score_adj").write_text("500")
    shared.limit(LEFT // 2)
    done = shared.diff(*UNSEEN)
    assert shared.group.kills > 0, "memory was not short: nothing is shown"
    assert shared.cluster.process().poll() is None, "the daemon was ended for a command"
    assert done.returncode == -9, done.stderr
    until(shared.cluster.answers, "the daemon's answer")


@pytest.mark.parametrize("command", ["apply", "audit", "diff", "explain", "gc", "trace"])
def test_each_that_observes_by_itself_marks_itself(command: str) -> None:
    assert command in OBSERVING
    assert _score(command) == "1000"


def test_every_command_that_makes_a_node_of_its_own_is_one_that_observes() -> None:
    """Told by what their modules import, because a process for each takes seconds."""
    cli = Path(main.__file__).parent
    made = {name for name, module in main.MODULES.items() if _makes_a_node(cli, module)}
    assert made - {"run", "cleanup"} <= OBSERVING
    assert {"doctor", "sysdump", "connectivity"} <= made


def _makes_a_node(cli: Path, module: str) -> bool:
    path = cli / f"{module.rpartition('.')[2]}.py"
    return path.exists() and "LocalNode(" in path.read_text()


@pytest.mark.parametrize("command", ["run", "status", "lab"])
def test_the_daemon_and_what_asks_it_do_not(command: str) -> None:
    assert _score(command) == Path("/proc/self/oom_score_adj").read_text().strip()


def _score(command: str) -> str:
    """Return the score of the process that runs a command's help."""
    script = (
        "import atexit, sys; from pathlib import Path; from reconciler.cli.main import "
        "run_command_line; sys.argv[1:] = [sys.argv[1], '--help']; "
        "atexit.register(lambda: print(Path('/proc/self/oom_score_adj').read_text(), "
        "file=sys.stderr)); run_command_line()"
    )
    argv = [sys.executable, "-c", script, command]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stderr.strip()


V2 = {
    "memory.max": "201326592",
    "memory.current": "104857600",
    "memory.stat": "anon 9\ninactive_file 4194304\nactive_file 1048576",
    "memory.oom.group": "1",
}
V1 = {
    "memory.limit_in_bytes": "201326592",
    "memory.usage_in_bytes": "104857600",
    "memory.stat": "cache 9\ntotal_inactive_file 4194304\ntotal_active_file 1048576",
}


@pytest.mark.parametrize(
    ("line", "place", "files", "falls"),
    [
        ("0::/", "", V2, True),
        ("0::/kubepods/pod1/one", "kubepods/pod1/one", V2, True),
        ("0::/kubepods/pod1/one", "", V2, True),  # its own mount, and the host's name
        ("9:memory:/kubepods/one\n8:pids:/x", "memory/kubepods/one", V1, False),
        ("9:memory:/kubepods/one", "memory", V1, False),
    ],
)
def test_the_limit_is_read_where_containers_have_it(
    tmp_path: Path, line: str, place: str, files: dict[str, str], falls: bool
) -> None:
    (tmp_path / "cgroup").write_text(line)
    root = tmp_path / "fs"
    (root / place).mkdir(parents=True)
    for name, text in files.items():
        (root / place / name).write_text(text)
    assert read_group(tmp_path, root) == Group(192 * MIB, 95 * MIB, falls)


@pytest.mark.parametrize("limit", ["max", "9223372036854771712", "", "many"])
def test_no_limit_or_none_that_can_be_read_bounds_nothing(tmp_path: Path, limit: str) -> None:
    (tmp_path / "cgroup").write_text("0::/")
    for name, text in (V2 | {"memory.max": limit}).items():
        (tmp_path / name).write_text(text)
    assert read_group(tmp_path, tmp_path) is None
    assert read_group(tmp_path / "nowhere", tmp_path) is None


def test_where_all_fall_together_the_one_that_asks_ec2_counts_too() -> None:
    assert Group(192 * MIB, 92 * MIB).share == 100 * MIB - RESERVED
    assert Group(192 * MIB, 92 * MIB, falls_together=True).share == (100 * MIB - RESERVED) // 2
    assert Group(92 * MIB, 192 * MIB).share == 0


def test_a_command_takes_no_more_than_its_share() -> None:
    script = (
        "import resource, reconciler.cli.memory as m; "
        f"m.read_group = lambda: m.Group({NEEDED + RESERVED}, 0); print(m.yield_to_daemon()); "
        "print(resource.getrlimit(resource.RLIMIT_DATA)); bytes(1 << 28)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split("\n", 1)[1].strip() == str((NEEDED, NEEDED))
    assert "MemoryError" in done.stderr
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] != NEEDED
