"""What a process and all that it starts take, from outside: CPU and memory.

CPU is exact to the nanosecond for processes that live; of children that have ended, the kernel
tells their parent's sum in ticks (10 ms), so a difference is wrong by two ticks at most, however
many have ended between. What the kernel does in threads of its own is not counted.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
SAMPLE_S = 0.1

GONE = (FileNotFoundError, ProcessLookupError)


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU seconds so far.

    Attributes:
        own: of the process itself.
        all: with all that it has started, ended or not.
    """

    own: float
    all: float

    def __sub__(self, other: Cpu) -> Cpu:
        return Cpu(self.own - other.own, self.all - other.all)


def cpu(pid: int) -> Cpu:
    """Return what a process and its descendants have taken."""
    own = _clock_s(pid)
    total = own + _ended_s(pid)
    for child in descendants(pid):
        with suppress(*GONE, OSError):  # it has ended: its parent's sum has it
            total += _clock_s(child) + _ended_s(child)
    return Cpu(own, total)


def descendants(pid: int) -> list[int]:
    """Return a process's children, and theirs."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with suppress(*GONE):
            found += [int(word) for word in (task / "children").read_text().split()]
    for child in tuple(found):
        found += descendants(child)
    return found


def _clock_s(pid: int) -> float:
    """Read a process's own clock; clock_getcpuclockid(3) says what it is called."""
    return time.clock_gettime(~pid << 3 | 2)


def _ended_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) * TICK_S


def run_s(call: Callable[[], object]) -> float:
    """Return the CPU seconds of the programs that a call runs to their end, in this thread."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    call()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def private_mib(pid: int) -> float:
    """Return memory that only this process has and that it has written to (proc(5))."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("Private_Dirty")) / 1024


def _command_line(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    return words.decode(errors="replace").strip()


class Memory:
    """Looks at the memory of a process and all that it starts, ten times a second.

    Attributes:
        worst: MiB of all of them together when that was most, and of each by its command line.
    """

    def __init__(self, pid: int) -> None:
        self.worst: tuple[float, dict[str, float]] = (0.0, {})
        self._pid = pid
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        own = _command_line(self._pid)
        while not self._end.wait(SAMPLE_S):
            now: dict[str, float] = {}
            for pid in (self._pid, *descendants(self._pid)):
                with suppress(*GONE, StopIteration):
                    # Until its exec, what is started has its parent's memory (vfork(2)). First
                    # the name: the exec may come between both.
                    name, mib = _command_line(pid), private_mib(pid)
                    if pid == self._pid or name != own:
                        now[f"{pid} {name}"] = mib
            total = sum(now.values())
            if total > self.worst[0]:
                self.worst = (total, now)
