"""Logging holds up nothing, whatever becomes of the lines."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest
from waiting import until

from reconciler.daemon import logs
from reconciler.errors import FOREIGN_TEXT

LOGS = """\
import logging, sys
from reconciler.daemon import logs, telemetry
logs.configure()
log = logging.getLogger("reconciler.test")
for number in range(6_000):
    log.info("a line", extra={"filler": "x" * 200, "number": number})
print("gone on", flush=True)
for word in sys.stdin:
    log.info("heard", extra={"word": word.strip()})
    print(telemetry.LOG_DROPPED.collect()[0].samples[0].value, flush=True)
"""
"""Some one and a half megabytes."""

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
        with suppress(BlockingIOError):  # a page at a time: it must not wait for the next look
            while True:
                read.extend(os.read(pipe[0], 65536))
        return b"were dropped" in read

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
    program = "import os; from reconciler.daemon import logs; logs.configure()\n"
    program += "print(os.open('/etc/hostname', os.O_RDONLY) > 2)"
    process = start(program, None)
    assert line(process) == "True"
    process.communicate(timeout=10)


# -- formats ----------------------------------------------------------------------------------


def record(**fields: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "reconciler.test", "levelno": logging.INFO, **fields})
    made.msg, made.levelname, made.created = "it happened", "INFO", 1767225600.25
    return made


def test_a_line_of_json_is_one_object_whatever_is_in_its_fields() -> None:
    strange = record(key=("c", "eth0"), ms=1.5, n=3, text='a "b"\nc=\udcff', rate=float("inf"))
    (line,) = logs.Json().format(strange).splitlines()
    assert json.loads(line) == {
        "time": "2026-01-01T00:00:00.250Z",
        "level": "INFO",
        "logger": "reconciler.test",
        "message": "it happened",
        "key": "('c', 'eth0')",
        "ms": 1.5,
        "n": 3,
        "text": 'a "b"\nc=\udcff',
        "rate": "inf",
    }


def test_what_others_say_is_cut_in_either_format_and_so_is_a_traceback() -> None:
    def fall(depth: int) -> None:
        raise ValueError("x" * 20_000) if depth == 0 else OSError("y")

    try:
        fall(0)
    except ValueError:
        long = record(text="x" * 10_000, level="not ours", exc_info=sys.exc_info())
    body = json.loads(logs.Json().format(long))
    assert body["text"] == "x" * FOREIGN_TEXT
    assert body["level"] == "INFO"
    assert len(body["exception"]) == logs.MOST_OF_TRACE
    first = logs.KeyValue().format(long).splitlines()[0]
    assert first == f'2026-01-01T00:00:00.250Z INFO it happened text={"x" * 256} level="not ours"'
