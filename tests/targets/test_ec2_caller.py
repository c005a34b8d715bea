"""Calls of EC2 from another process: it may die, hang or babble, and the next call works."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import until
from werkzeug.serving import make_server

from reconciler.targets.ec2 import caller as ec2_caller
from reconciler.targets.ec2.caller import ANSWER_LOST, Early, Ec2CallError, Subprocess

DESCRIBE = ("DescribeNetworkInterfaces", "describe_network_interfaces", {"MaxResults": 100})


@pytest.fixture
def caller(ec2: Any) -> Iterator[Subprocess]:
    del ec2  # it is who answers
    made = Subprocess("us-east-1")
    yield made
    made.close()


def pid_of(caller: Subprocess) -> int:
    assert caller._process is not None
    return caller._process.pid


def test_answers_and_refusals_of_ec2_come_across(caller: Subprocess, ec2: Any) -> None:
    (only,) = caller(*DESCRIBE)["NetworkInterfaces"]
    assert only["Attachment"]["InstanceId"] == ec2.instance_id
    ec2.cloud.faults.set(denied=["DescribeNetworkInterfaces"])
    with pytest.raises(Ec2CallError) as caught:
        caller(*DESCRIBE)
    assert caught.value.code == "UnauthorizedOperation"
    assert caught.value.refused
    assert caught.value.operation_name == "DescribeNetworkInterfaces"


def test_what_the_sdk_itself_refuses_is_named_and_was_not_asked(
    caller: Subprocess, ec2: Any
) -> None:
    with pytest.raises(Ec2CallError) as caught:
        caller("DescribeNetworkInterfaces", "describe_network_interfaces", {"MaxResults": "many"})
    assert (caught.value.code, caught.value.refused) == ("ParamValidationError", False)
    assert "DescribeNetworkInterfaces" not in ec2.cloud.faults.calls()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
def test_a_process_that_fails_loses_one_answer_and_no_more(
    caller: Subprocess, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    caller(*DESCRIBE)
    first = pid_of(caller)
    os.kill(first, number)
    if number == signal.SIGKILL:
        # Between its death and our noticing it: a killed process is only then asked in vain.
        until(lambda: Path(f"/proc/{first}/stat").read_text().split()[2] == "Z")
        monkeypatch.setattr(caller._process, "poll", lambda: None)
    with monkeypatch.context() as short, pytest.raises(Ec2CallError) as caught:
        short.setattr(ec2_caller, "ANSWER_S", 0.2)
        caller(*DESCRIBE)
    assert (caught.value.code, caught.value.refused) == (ANSWER_LOST, False)
    assert not Path(f"/proc/{first}").exists()
    assert caller(*DESCRIBE)["NetworkInterfaces"]
    assert pid_of(caller) != first


@pytest.mark.parametrize(
    "babble",
    [
        "echo nonsense; exec sleep 100",
        "echo 3; exec sleep 100",
        "echo '{}'; exec sleep 100",
        """echo '{"number": 1}'; exec sleep 100""",
        """echo '{"number": 7, "answer": {}}'; exec sleep 100""",
        """printf '{"number": 1, "answer":'; exec sleep 100""",
        """head -c 200000 /dev/zero | tr '\\0' '['; echo; exec sleep 100""",
        """yes '' | tr '\\n' 'x'""",
        """printf '\\377\\376\\n'; exec sleep 100""",
        """printf '{"number": 1, "answer": 1%0400000d}\\n' 0; exec sleep 100""",
        """printf '{"number": 1, "answer":'""",
    ],
    ids=[
        "no-json",
        "no-object",
        "no-number",
        "no-answer",
        "another's",
        "hangs-within",
        "nested",
        "without-end",
        "no-text",
        "huge-number",
        "half",
    ],
)
def test_a_process_that_babbles_is_ended(
    caller: Subprocess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, babble: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nread line; {babble}\n")
    python.chmod(0o700)
    with monkeypatch.context() as another, pytest.raises(Ec2CallError) as caught:
        another.setattr(sys, "executable", str(python))
        another.setattr(ec2_caller, "ANSWER_S", 1.0)
        caller(*DESCRIBE)
    assert (caught.value.code, caught.value.refused) == (ANSWER_LOST, False)
    assert caller._process is None  # so the next call starts another, as above


def test_a_refusal_is_a_word_and_a_short_line_whatever_it_says(
    caller: Subprocess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {
        "number": 1,
        "operation_name": 7,
        "code": "x" * 9999,
        "message": "\x1b[2J\n\ud800" * 9999,
    }
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\ninput()\nprint({json.dumps(told | {'refused': 3})!r})\n"
    )
    python.chmod(0o700)
    with monkeypatch.context() as another, pytest.raises(Ec2CallError) as caught:
        another.setattr(sys, "executable", str(python))
        caller(*DESCRIBE)
    assert caught.value.code == "Unknown"
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


def test_a_question_that_fills_the_pipe_is_not_asked(caller: Subprocess) -> None:
    filters = [{"Name": "subnet-id", "Values": [f"subnet-{n:017x}" for n in range(4000)]}]
    with pytest.raises(Ec2CallError) as caught:
        caller(DESCRIBE[0], DESCRIBE[1], {"Filters": filters})
    assert (caught.value.code, caught.value.refused) == ("QuestionTooLong", True)
    assert caller(*DESCRIBE)["NetworkInterfaces"]


def test_the_process_goes_before_the_daemon_when_memory_is_short(caller: Subprocess) -> None:
    caller(*DESCRIBE)
    proc = Path(f"/proc/{pid_of(caller)}")
    assert (proc / "oom_score_adj").read_text() == "1000\n"
    (line,) = [li for li in (proc / "limits").read_text().splitlines() if "Max data size" in li]
    assert line.split()[3] == str(ec2_caller.MAX_DATA)


def test_a_body_without_end_is_a_lost_answer_and_the_next_call_works(
    caller: Subprocess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flood(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/xml")])
        part = b"<a>" * (1 << 18)
        return (part for _ in range(1000))

    server = make_server("127.0.0.1", 0, flood)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with monkeypatch.context() as another, pytest.raises(Ec2CallError) as caught:
            another.setenv("AWS_ENDPOINT_URL_EC2", f"http://127.0.0.1:{server.port}")
            caller(*DESCRIBE)
        assert caught.value.code == ANSWER_LOST
        assert "MemoryError" in caught.value.message  # of its own, long before the node's ends
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    caller.close()
    assert caller(*DESCRIBE)["NetworkInterfaces"]


def test_an_answer_nobody_asked_for_is_not_taken_for_the_next_question_s(
    caller: Subprocess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    stray = """printf '{"number": 1, "answer": "one"}\\n'; read line
    printf '{"number": 1, "answer": "one again"}\\n'; exec sleep 100"""
    python.write_text(f"#!/bin/sh\nread line; {stray}\n")
    python.chmod(0o700)
    with monkeypatch.context() as another:
        another.setattr(sys, "executable", str(python))
        assert caller(*DESCRIBE) == "one"
        with pytest.raises(Ec2CallError, match="no answer to question 2"):
            caller(*DESCRIBE)
    assert caller(*DESCRIBE)["NetworkInterfaces"]


def test_an_answer_of_many_pipes_length_comes_whole(
    caller: Subprocess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\n"
        "input()\n"
        """print('{"number": 1, "answer": "' + 'x' * 1000000 + '"}')\n"""
    )
    python.chmod(0o700)
    with monkeypatch.context() as another:
        another.setattr(sys, "executable", str(python))
        assert caller(*DESCRIBE) == "x" * 1000000


@pytest.mark.parametrize(
    ("variables", "code", "words"),
    [
        ({"AWS_ENDPOINT_URL_EC2": "nonsense"}, "ValueError", "Invalid endpoint: nonsense"),
        (
            {
                "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/node",
                "AWS_WEB_IDENTITY_TOKEN_FILE": "/no/such/token",
            },
            "FileNotFoundError",
            "/no/such/token",
        ),
    ],
    ids=["no-url", "token-not-mounted"],
)
def test_what_the_sdk_trips_over_is_named_and_no_lost_answer(
    caller: Subprocess,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    code: str,
    words: str,
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Ec2CallError, match=words) as caught:
        caller(*DESCRIBE)
    assert (caught.value.code, caught.value.refused) == (code, False)


def test_a_terminal_s_interrupt_is_not_for_the_process(caller: Subprocess) -> None:
    caller(*DESCRIBE)
    assert os.getsid(pid_of(caller)) != os.getsid(0)


def test_a_process_that_cannot_be_started_is_no_lost_answer(
    caller: Subprocess, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as another, pytest.raises(Ec2CallError) as caught:
        another.setattr(sys, "executable", "/no/such/python")
        caller(*DESCRIBE)
    assert caught.value.code == "NotStarted"


def test_it_ends_when_nothing_is_asked_for_a_while(
    caller: Subprocess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ec2_caller, "IDLE_S", 0.1)
    caller(*DESCRIBE)
    first = pid_of(caller)
    until(lambda: not Path(f"/proc/{first}").exists())
    assert caller(*DESCRIBE)["NetworkInterfaces"]


def test_a_process_that_was_started_early_is_the_first_to_be_asked(
    caller: Subprocess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ec2_caller, "EARLY", early := Early())
    early.start()
    assert early._process is not None
    first = early._process.pid
    assert caller(*DESCRIBE)["NetworkInterfaces"]
    assert pid_of(caller) == first
    assert early.take() is None


def test_a_process_that_was_started_early_in_vain_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    early = Early()
    with monkeypatch.context() as short:
        short.setattr(ec2_caller, "IDLE_S", 0.1)
        early.start()
    until(lambda: early._process is None)
    early.start()
    assert early._process is not None
    pid = early._process.pid
    early._process.kill()
    early._process.wait()
    assert early.take() is None, "it is not asked: it has ended"
    assert not Path(f"/proc/{pid}").exists()


def test_it_ends_with_whoever_asks(ec2: Any) -> None:
    del ec2
    program = (
        "import os, sys\n"
        "from reconciler.targets.ec2.caller import Subprocess\n"
        "c = Subprocess('us-east-1')\n"
        f"c{DESCRIBE!r}\n"
        "print(c._process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    theirs = int(done.stdout)
    until(lambda: not Path(f"/proc/{theirs}").exists() or _is_dead(theirs))


def _is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except FileNotFoundError:
        return True


def test_the_daemon_itself_does_not_have_the_sdk_in_memory() -> None:
    program = (
        "import sys, reconciler.cli.run\n"
        "print({'boto3', 'botocore', 'urllib3', 'moto'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
