"""A machine: a network namespace of the lab, with files, processes and cgroups of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lab import netns
from lab.kubernetes import build
from lab.kubernetes.cgroups import PREFIX, Group
from lab.lifecycle import Lab

START_S = 30.0
"""Seconds for a machine's first process to be ready."""

PROGRAMS = "/opt/kubernetes"
"""Where a machine has Kubernetes' components."""

PATH = f"{PROGRAMS}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

ENVIRONMENT = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8"}
"""All that its processes are told: this machine's proxies and credentials are not theirs."""


class MachineError(Exception):
    """A machine did not start; carries the end of its log."""


class Machine:
    """One machine; its disk survives ``stop``.

    Args:
        lab: which lab it is in.
        name: of the instance, and of the host.
        disk: directory of all that it writes.
        binds: directories of this machine, by the path that it sees them at.
    """

    def __init__(self, lab: Lab, name: str, disk: Path, binds: Mapping[str, Path]) -> None:
        self.name = name
        self.disk = disk
        self.logs = disk / "log"
        self._lab = lab
        self._binds = binds
        self._group = Group(f"{PREFIX}{lab.names.lab}/{name}")
        self._first = 0
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Boot it: namespaces, file systems, and a first process.

        Raises:
            MachineError: it does not come up.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        self._group.make()
        description = self.disk / "machine.json"
        binds = {place: str(source) for place, source in self._binds.items()}
        body = {"name": self.name, "disk": str(self.disk), "binds": binds}
        description.write_text(json.dumps(body | {"group": self._group.name}))
        init = [sys.executable, "-m", "lab.kubernetes.init", str(description)]
        unshare = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", *init]
        network = f"--net={netns.path(self._lab.names.namespace(self.name))}"
        words = [*self._group.prefix(), "nsenter", network, "--", *unshare]
        process = self._popen("init", words, cwd=build.ROOT, env=ENVIRONMENT)
        deadline = time.monotonic() + START_S
        while not (self.first() and self.path("/run/ready").exists()):
            if process.poll() is not None or time.monotonic() > deadline:
                raise MachineError(f"{self.name} does not start:\n{self.log('init')}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Switch it off, at once: its processes, mounts and namespaces are gone."""
        self._group.remove()
        self._first = 0
        for process in self._processes:
            process.wait()
        self._processes.clear()

    def first(self) -> int:
        """Return the number of its first process as this machine counts; 0 if it is off."""
        if not self._first:
            self._first = next((pid for pid, own in self._own() if own == 1), 0)
        return self._first

    def path(self, inside: str) -> Path:
        """Return where a path of its file system is seen from here."""
        return Path(f"/proc/{self.first()}/root{inside}")

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return the command that runs ``argv`` on it."""
        return [*self._group.prefix(), *self.enter(), "--", *argv]

    def enter(self) -> list[str]:
        """Return the words before a command of a person: it stays in the caller's cgroups."""
        kinds = [f"--{kind}" for kind in ("mount", "uts", "ipc", "net", "pid", "cgroup")]
        return ["nsenter", f"--target={self.first()}", "--wd=/", *kinds]

    def run(self, argv: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on it to its end."""
        options = {"capture_output": True, "text": True, "timeout": 300, "check": True} | options
        return subprocess.run(self.command(argv), env=ENVIRONMENT, **options)

    def spawn(self, name: str, argv: Sequence[str], **more: str) -> None:
        """Start a daemon on it, which writes to the log of that name.

        Args:
            name: of its log.
            argv: its command.
            more: variables of its environment.
        """
        self._popen(name, self.command(argv), cwd=None, env=ENVIRONMENT | more)

    def kill(self, program: str, number: signal.Signals = signal.SIGKILL) -> list[int]:
        """Signal each of its own processes of a program, and return their numbers here."""
        found = [pid for pid, _ in self._own() if _program(pid) == program]
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return found

    def log(self, name: str, size: int = 3000) -> str:
        """Return the end of a log, at most so many characters."""
        path = self.logs / f"{name}.log"
        return path.read_text(errors="replace")[-size:] if path.exists() else ""

    def _own(self) -> Iterator[tuple[int, int]]:
        """List its processes: the number here, and its own."""
        for pid in self._group.processes():
            with suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                (line,) = (x for x in status.splitlines() if x.startswith("NSpid:"))
                numbers = line.split()[1:]
                # Containers have a namespace of their own, one further in.
                if len(numbers) == _depth() + 1:
                    yield pid, int(numbers[-1])

    def _popen(
        self, name: str, words: Sequence[str], cwd: Path | None, env: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        with (self.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=cwd,
                env=env,
                start_new_session=True,
            )
        self._processes.append(process)
        return process


def _depth() -> int:
    """How many PID namespaces this process is in."""
    status = Path("/proc/self/status").read_text()
    (line,) = (x for x in status.splitlines() if x.startswith("NSpid:"))
    return len(line.split()) - 1


def _program(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""
