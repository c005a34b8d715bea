"""Logging holds up nothing, whatever becomes of the lines."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from waiting import until

from reconciler.daemon.duty import Conditions
from reconciler.daemon.telemetry import MOST_REASONS, OTHER, exposition
from reconciler.engine.converge import Outcome
from reconciler.errors import ObserveError
from reconciler.ipam.budget import CallBackoffs

LOGS = """\
import logging, sys
from reconciler.daemon import telemetry
telemetry.configure()
log = logging.getLogger("reconciler.test")
for number in range(6_000):
    log.info("a line", extra={"filler": "x" * 200, "number": number})
print("gone on", flush=True)
for word in sys.stdin:
    log.info("heard", extra={"word": word.strip()})
    print(telemetry.LOG_DROPPED.collect()[0].samples[0].value, flush=True)
"""
"""Some one and a half megabytes."""

CODES = 200

Process = subprocess.Popen[str]


def start(program: str, stderr: int | None) -> Process:
    pipe = subprocess.PIPE
    argv = [sys.executable, "-c", program]
    if stderr is None:
        argv = ["sh", "-c", 'exec "$0" "$@" 2>&-', *argv]
    return subprocess.Popen(argv, text=True, stdin=pipe, stdout=pipe, stderr=stderr)


def line(process: Process) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def say(process: Process, word: str) -> str:
    assert process.stdin is not None
    process.stdin.write(f"{word}\n")
    process.stdin.flush()
    return line(process)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, 4096)
    yield ends
    for end in ends:
        os.close(end)


def test_a_pipe_that_nobody_reads_holds_up_nobody_and_what_was_dropped_is_said(
    pipe: tuple[int, int],
) -> None:
    process = start(LOGS, pipe[1])
    assert line(process) == "gone on"
    dropped = float(say(process, "first"))
    assert 1_000 < dropped < 6_001
    os.set_blocking(pipe[0], False)
    read = bytearray()

    def is_told() -> bool:
        try:
            read.extend(os.read(pipe[0], 65536))
        except BlockingIOError:
            return b"were dropped" in read
        return False

    until(is_told)
    lines = read.decode().splitlines()
    (told,) = [x for x in lines if "were dropped" in x]
    assert re.search(r"lines=(\d+)", told)[1] == f"{dropped:.0f}"  # type: ignore[index]
    kept = [x for x in lines if "a line" in x]
    assert kept[0].endswith("number=0")
    assert len(kept) == 6_001 - dropped  # "first" was dropped, too
    say(process, "second")
    process.communicate(timeout=10)
    assert b"word=second" in os.read(pipe[0], 65536)  # at the end all is written


def test_a_pipe_that_nobody_reads_does_not_keep_the_process_from_its_end(
    pipe: tuple[int, int],
) -> None:
    process = start(LOGS, pipe[1])
    assert line(process) == "gone on"
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_a_pipe_whose_reader_is_gone_and_a_full_disk_and_no_stderr_hold_up_nobody() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    for stderr in (writer, full, None):
        process = start(LOGS, stderr)
        assert line(process) == "gone on"
        assert float(say(process, "still here")) >= 0
        process.communicate(timeout=20)
        assert process.returncode == 0
    os.close(writer)
    os.close(full)


def test_without_stderr_no_other_file_gets_its_number() -> None:
    program = "import os; from reconciler.daemon import telemetry; telemetry.configure()\n"
    program += "print(os.open('/etc/hostname', os.O_RDONLY) > 2)"
    process = start(program, None)
    assert line(process) == "True"
    process.communicate(timeout=10)


# -- labels -----------------------------------------------------------------------------------


def test_however_many_codes_ec2_invents_the_metric_has_a_bound_and_one_for_all_others() -> None:
    conditions = Conditions()
    for number in range(CODES):
        error = ObserveError("EC2", "it says so", reason=f"Code{number}")
        conditions.report("a domain", Outcome(errors=(error,)))
    counted = re.findall(r'failures_total\{domain="a domain",reason="(.*)"\} (.*)', exposition())
    assert len(counted) == MOST_REASONS + 1
    assert dict(counted)[OTHER] == str(float(CODES - MOST_REASONS))


def test_a_node_whose_subnets_are_ever_others_remembers_those_of_the_last_hour() -> None:
    rests = CallBackoffs()
    for number in range(CODES):
        rests = rests.after_failure(
            f"assign:subnet-{number}", "Unavailable", "", now=number * 60.0, chance=1.0
        )
    assert len(rests.by_scope) < 70
