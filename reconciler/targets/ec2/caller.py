"""Calls of EC2, in a process of their own: the door to ``boto3`` and ``botocore``.

The SDK and its model of EC2 take as much memory as all the rest of the daemon, and are needed for
seconds every few minutes; so they live in a process that is started for a call, and ends when none
has come for a while. Parsing EC2's answers there, it takes no time from the thread that pods wait
for. Endpoint, credentials and proxies follow the SDK's own rules (``AWS_ENDPOINT_URL_EC2`` and the
rest), so whatever an operator knows of them holds here. The SDK never retries for us: the loop
looks again before it repeats anything.

``python -m reconciler.targets.ec2.caller`` is that process: a question is a JSON object on a line
of its standard input, the answer one on a line of its standard output. Both have a number,
so that no answer is ever taken for another question's.
"""

from __future__ import annotations

import gc
import json
import os
import re
import resource
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from schemas.process import start

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client

MODULE = "reconciler.targets.ec2.caller"  # ``__name__`` is another in the process that it starts

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 20
"""Seconds; EC2 answers in well under one, and a hung call must not hold the loop for a minute."""

ANSWER_S = 40.0
"""Seconds in which the process must have answered, its start included; else it is ended."""

IDLE_S = 20.0
"""Seconds without a call after which the process ends: longer than what one growth of the pool
pauses between two of its calls, and short beside the minutes between two looks."""

MAX_ANSWER = 4 << 20
"""Bytes of one answer. A page of 100 ENIs with 50 addresses and 50 tags each is half of it."""

MAX_QUESTION = 48 << 10
"""Bytes of one question: what an empty pipe takes at once (pipe(7): 64 KiB), so that asking never
waits for a process that hangs."""

MAX_DATA = 128 << 20
"""Bytes of memory that the process may take for its data (``RLIMIT_DATA``). It needs 50 MB; an
answer that takes more ends it, and not the daemon, which shares its cgroup."""

END_S = 5.0
"""Seconds for a killed process to be gone; it is left behind if it is not."""

MAX_WORDS = 256
"""Characters of what EC2 or the SDK says of a failure."""

CODE = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""EC2's codes are words, and so are reasons of conditions."""

ANSWER_LOST = "AnswerLost"
"""The code of a call of which it is unknown whether it has happened."""

REFUSAL = ("operation_name", "code", "message", "refused")
"""What the other process tells of an ``Ec2CallError``."""


class Ec2CallError(Exception):
    """A call that brought no answer.

    Attributes:
        code: EC2's, or the SDK's name of what went wrong, or ``ANSWER_LOST``.
        refused: EC2 itself said so; it has certainly not happened, unless the code says otherwise.
    """

    def __init__(
        self, operation_name: str, code: str, message: str, *, refused: bool = False
    ) -> None:
        code = code if CODE.fullmatch(code) else "Unknown"
        operation_name = operation_name if CODE.fullmatch(operation_name) else ""
        message = "".join(c if c.isprintable() else " " for c in message[:MAX_WORDS])
        super().__init__(f"{operation_name}: {code}: {message}")
        self.operation_name = operation_name
        self.code = code
        self.message = message
        self.refused = refused


Caller = Callable[[str, str, dict[str, Any]], Any]
"""Makes a call: EC2's name of it, the SDK's method, and its arguments as the SDK takes them.
Raises an ``Ec2CallError`` if there is no answer."""


class Subprocess:
    """Makes calls in a process of their own; one at a time."""

    def __init__(self, region: str) -> None:
        self._region = region
        self._process: subprocess.Popen[bytes] | None = None
        self._questions = 0
        self._lock = threading.Lock()
        self._idle: threading.Timer | None = None

    def __call__(self, operation: str, method: str, arguments: dict[str, Any]) -> Any:
        """Make one call."""
        with self._lock:
            if self._idle is not None:
                self._idle.cancel()
            try:
                return self._ask(operation, {"method": method, "arguments": arguments})
            finally:
                self._idle = threading.Timer(IDLE_S, self.close)
                self._idle.daemon = True
                with suppress(RuntimeError):  # no thread can be started: then it is not ended
                    self._idle.start()

    def close(self) -> None:
        """End the process; the next call starts another."""
        with self._lock:
            self._end()

    def _ask(self, operation: str, question: dict[str, Any]) -> Any:
        process = self._running(operation)
        assert process.stdin is not None
        assert process.stdout is not None
        self._questions += 1
        question |= {"number": self._questions, "region": self._region}
        line = json.dumps(question).encode() + b"\n"
        if len(line) > MAX_QUESTION:
            why = f"a question of {len(line)} bytes, more than {MAX_QUESTION}, is not asked"
            raise Ec2CallError(operation, "QuestionTooLong", why, refused=True)
        try:
            process.stdin.write(line)
            process.stdin.flush()
            answer = _parse(_read_line(process.stdout), self._questions)
        except (OSError, ValueError, RecursionError) as error:
            # Killed, hung, or out of its mind: whether EC2 was asked is unknown.
            self._end()
            why = f"the process that calls EC2 failed: {error}"
            raise Ec2CallError(operation, ANSWER_LOST, why) from error
        if "answer" in answer:
            return answer["answer"]
        named, code, message, refused = map(answer.get, REFUSAL)
        raise Ec2CallError(str(named or operation), str(code), str(message), refused=bool(refused))

    def _running(self, operation: str) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None:
            try:
                self._process = EARLY.take() or start(MODULE)
            except OSError as error:
                why = f"the process that calls EC2: {error}"
                raise Ec2CallError(operation, "NotStarted", why) from error
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            _end(process)


class Early:
    """A process that was started before it is known what it will be asked, and by whom.

    On a node that EC2 was never asked about it loads the SDK while the daemon loads itself.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; if it is not taken, it ends as it would without a call."""
        with suppress(OSError, RuntimeError):  # the first call starts one
            self._process = start(MODULE)
            unused = threading.Timer(IDLE_S, self._end_unused)
            unused.daemon = True
            unused.start()

    def take(self) -> subprocess.Popen[bytes] | None:
        """Return it to whoever asks first; None if there is none, or it has ended."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None and process.poll() is not None:
            _end(process)
            return None
        return process

    def _end_unused(self) -> None:
        if process := self.take():
            _end(process)


EARLY = Early()
"""Of this process."""


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):  # what was still in its buffer is not needed
                stream.close()
    with suppress(subprocess.TimeoutExpired):  # the kernel may be busy with its memory
        process.wait(END_S)


def _read_line(stream: IO[bytes]) -> bytes:
    """Return an answer, all that comes until a line is whole; an OSError says there is none."""
    deadline = time.monotonic() + ANSWER_S
    line = bytearray()
    while not line.endswith(b"\n"):
        # Not ``readline``: of a process that hangs within a line, that would wait for ever.
        if not select.select([stream], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError(f"no answer for {ANSWER_S:.0f} s")
        part = os.read(stream.fileno(), 1 << 16)
        if not part:
            raise ConnectionResetError("it ended without an answer")
        line += part
        if len(line) > MAX_ANSWER:
            raise ConnectionAbortedError(f"its answer is longer than {MAX_ANSWER} bytes")
    return bytes(line)


def _parse(line: bytes, number: int) -> dict[str, Any]:
    """Return the answer to a question; a ValueError or RecursionError says that it is none."""
    answer = json.loads(line)
    if not isinstance(answer, dict) or answer.get("number") != number:
        raise ValueError(f"no answer to question {number}: {line[:64]!r}")
    if "answer" not in answer and not answer.keys() >= set(REFUSAL):
        raise ValueError(f"neither answer nor refusal: {line[:64]!r}")
    return answer


# -- the other process ------------------------------------------------------------------------


class InProcess:
    """Makes calls right here, with the SDK."""

    def __init__(self, region: str) -> None:
        self._region = region
        self._client: EC2Client | None = None

    def __call__(self, operation: str, method: str, arguments: dict[str, Any]) -> Any:
        """Make one call."""
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
        from botocore.parsers import ResponseParserError

        try:
            if self._client is None:
                self._client = _make_client(self._region)
            return getattr(self._client, method)(**arguments)
        except ClientError as error:
            told = error.response.get("Error", {})
            raise Ec2CallError(
                error.operation_name,
                str(told.get("Code", "Unknown")),
                str(told.get("Message", error)),
                refused=True,
            ) from error
        except (BotoCoreError, ResponseParserError) as error:
            # The parser's: a proxy's page in place of EC2's words. With no whole answer the call
            # may have happened all the same; an observation of EC2 tells.
            lost = isinstance(error, HTTPClientError | ResponseParserError)
            code = ANSWER_LOST if lost else type(error).__name__
            # Some of the SDK's sentences end where the name of the cause would be.
            cause = f" ({type(error.__context__).__name__})" if lost and error.__context__ else ""
            raise Ec2CallError(operation, code, f"{error}{cause}") from error
        except (OSError, ValueError) as error:
            # What the SDK does not wrap: an endpoint that is no URL, a token that is not mounted.
            raise Ec2CallError(operation, type(error).__name__, str(error)) from error
        except (MemoryError, RecursionError, LookupError, TypeError, AttributeError) as error:
            # An answer that the SDK's parser does not survive, or that takes more memory than
            # there may be: the call may have happened.
            why = f"{type(error).__name__}: {error}"
            raise Ec2CallError(operation, ANSWER_LOST, why) from error


def _make_client(region: str) -> EC2Client:
    # The SDK and its model of EC2 stay. To look for garbage in them is a quarter of their start.
    gc.disable()
    try:
        import boto3
        from botocore.config import Config

        return boto3.session.Session().client(
            "ec2",
            region_name=region,
            config=Config(
                connect_timeout=CONNECT_TIMEOUT_S,
                read_timeout=READ_TIMEOUT_S,
                retries={"total_max_attempts": 1},
            ),
        )
    finally:
        gc.freeze()
        gc.enable()


def _load() -> None:
    """Load the SDK before the first question, whose answer is waited for."""
    gc.disable()
    with suppress(ImportError):  # the first call says so
        import boto3
        import botocore.config

        _ = boto3.session, botocore.config
    gc.enable()


def _be_the_first_to_go() -> None:
    """Take no memory that the daemon needs, which is in the same cgroup (proc(5))."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    with suppress(OSError, ValueError):  # a lower limit that is set already stays
        resource.setrlimit(resource.RLIMIT_DATA, (MAX_DATA, hard))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def main() -> None:
    """Answer questions until there are no more: the process that asks has ended, or wants none."""
    _be_the_first_to_go()
    _load()
    # Whatever else is printed here, by a library say, is for the log and no answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    call: InProcess | None = None
    for line in sys.stdin:
        question = json.loads(line)
        call = call or InProcess(question["region"])
        answer: dict[str, Any]
        try:
            answer = {"answer": call("", question["method"], question["arguments"])}
        except Ec2CallError as error:
            answer = {name: getattr(error, name) for name in REFUSAL}
        # Of times, which are all that JSON has no word for, nothing is read.
        answers.write(json.dumps({"number": question["number"], **answer}, default=str) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
