"""The command line with something in its way: a sentence and an exit code, no traceback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from reconciler.cli import run
from reconciler.cli.explain import explain
from reconciler.cli.group import NamedGroup
from reconciler.cli.main import main

DOCUMENT = "apiVersion: node-network/v1alpha1\nkind: NodeNetwork\n"
PROGRAM = [sys.executable, "-m", "reconciler"]

USER = """
import encodings.utf_8_sig, json, os, sys  # this Python itself may be root's
from importlib import import_module
from reconciler.cli.main import MODULES, run_command_line
for module in MODULES.values():
    import_module(module)
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
found = []
for argv in json.loads(sys.argv[1]):
    out, err = os.memfd_create("out"), os.memfd_create("err")
    if not (child := os.fork()):
        os.dup2(out, 1); os.dup2(err, 2)
        sys.argv = ["node-network", *argv]
        run_command_line()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    found.append([code, *(os.pread(fd, 1 << 20, 0).decode() for fd in (out, err))])
print(json.dumps(found))
"""
"""Runs command lines as a user without rights; Python and its modules are loaded once."""


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory that every user may enter, with a document, and records that are root's."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        (root / "document.yaml").write_text(DOCUMENT)
        (root / "secret.yaml").write_text(DOCUMENT)
        (root / "secret.yaml").chmod(0o600)
        (root / "state/intents").mkdir(parents=True)
        (root / "state").chmod(0o700)
        (root / "fresh").mkdir()
        yield root


@pytest.fixture(scope="module")
def user(place: Path) -> dict[str, tuple[int, str, str]]:
    """What each command line says to a user without rights."""
    state, config = f"--state-dir {place}/state", f"-f {place}/document.yaml"
    lines = {
        "diff": f"diff {config} {state}",
        "diff, json": f"diff {config} {state} -o json",
        "diff, deeper": f"diff {config} {state}/intents",
        "audit": f"audit {config} {state}",
        "doctor": f"doctor {config} {state}",
        "sysdump": f"sysdump {config} {state}",
        "connectivity": f"connectivity web 10.0.0.1 {config} {state}",
        "explain": f"explain pool {config} {state}",
        "explain rule": f"explain rule {config} {state}",
        "explain pod": f"explain pod web {config} {state}",
        "explain conditions": f"explain condition {state}",
        "explain condition": f"explain condition ENOSPC {state}",
        "trace": f"trace host 10.0.0.1 {config} {state}",
        "status": f"status {state}",
        "apply": f"apply {config} {state}",
        "cleanup": f"cleanup {state}",
        "run": f"run {config} {state}",
        "apply, fresh": f"apply {config} --state-dir {place}/fresh",
        "lab": "lab status",
        "no document": f"diff -f {place}/none.yaml {state}",
        "another's document": f"diff -f {place}/secret.yaml {state}",
        "another's DaemonSet": f"import {place}/secret.yaml",
        "explain, its document": f"explain pool -f {place}/secret.yaml {state}",
        "doctor, its document": f"doctor -f {place}/secret.yaml {state}",
        "gc": f"gc {config}",
        "validate": f"validate {place}/document.yaml",
        "render": f"render {config} {state}",
    }
    argvs = json.dumps([line.split() for line in lines.values()])
    done = subprocess.run(
        [sys.executable, "-c", USER, argvs], capture_output=True, text=True, check=True
    )
    return dict(zip(lines, map(tuple, json.loads(done.stdout)), strict=True))


NEED_ROOT = (
    "diff",
    "diff, json",
    "diff, deeper",
    "audit",
    "doctor",
    "sysdump",
    "connectivity",
    "explain",
    "explain rule",
    "explain pod",
    "explain conditions",
    "trace",
    "status",
    "apply",
    "cleanup",
    "run",
    "apply, fresh",
)


@pytest.mark.parametrize("line", NEED_ROOT)
def test_a_user_without_rights_is_told_so_in_one_sentence(user: Any, line: str) -> None:
    code, out, err = user[line]
    assert (code, out) == (2, "")
    (said,) = err.splitlines()
    assert "ermission denied; run as root" in said


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("lab", "needs root; try again with sudo"),
        ("no document", "none.yaml: cannot be read: no such file or directory"),
        ("another's document", "secret.yaml: cannot be read: permission denied"),
        ("another's DaemonSet", "secret.yaml: cannot be read: permission denied"),
        ("explain, its document", "secret.yaml: cannot be read: permission denied"),
        ("doctor, its document", "secret.yaml: cannot be read: permission denied"),
        ("gc", "cluster: is not named; gc needs it"),
    ],
)
def test_what_else_is_in_the_way_is_said_without_a_traceback(
    user: Any, line: str, words: str
) -> None:
    code, out, err = user[line]
    assert (code, out) == (2, "")
    assert words in err
    assert "Traceback" not in err


def test_what_needs_no_rights_needs_none(user: Any) -> None:
    assert user["validate"][0] == user["render"][0] == user["explain condition"][0] == 0
    assert "The kernel has refused an action" in user["explain condition"][1]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (DOCUMENT.encode(), ""),
        (b"snat: 1\n", "-:1:7: snat: "),
        (b"a: \xff\n", "-:1:4: not UTF-8: byte 0xff"),
        (b" " * (2 << 20), "bytes"),
    ],
    ids=["valid", "wrong", "no text", "too large"],
)
def test_a_document_may_come_by_a_pipe(content: bytes, said: str) -> None:
    done = subprocess.run(
        [*PROGRAM, "validate", "-"], input=content, capture_output=True, check=False
    )
    assert done.returncode == (2 if said else 0)
    assert said in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_a_reader_that_has_gone_makes_no_difference_and_no_noise(place: Path) -> None:
    """Exit status 1 is the word for "it differs"."""
    argv = [*PROGRAM, "render", "-f", str(place / "document.yaml")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


def test_output_that_cannot_be_written_is_said(place: Path) -> None:
    argv = [*PROGRAM, "render", "-f", str(place / "document.yaml")]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "the connection was closed"),
        (b"[]\n", "it is no object"),
        (b'{"ok": false, "msg": "busy"}\n', "busy"),
        (None, "interrupted"),
    ],
    ids=["nothing", "a list", "a refusal", "never, until Ctrl-C"],
)
def test_whatever_a_reconciler_answers_status_ends_with_a_sentence(
    tmp_path: Path, answer: bytes | None, words: str
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "node-network.sock"))
        listener.listen()
        argv = [*PROGRAM, "status", "--state-dir", str(tmp_path)]
        # A suite in the background has inherited that SIGINT is ignored; its commands would too.
        at_first = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        with subprocess.Popen(
            argv, stderr=subprocess.PIPE, text=True, preexec_fn=at_first
        ) as process:
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(1 << 16)
                if answer is None:
                    process.send_signal(signal.SIGINT)
                else:
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_RDWR)
                _, err = process.communicate()
    assert words in err
    assert "Traceback" not in err
    assert process.returncode == (130 if answer is None else 2)


def test_a_signal_ends_the_daemon_wherever_its_main_thread_is() -> None:
    """Also while that thread has the lock by which it would be told."""
    stopping = threading.Event()
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        run._stop_when_told(SimpleNamespace(stop=stopping.set))  # type: ignore[arg-type]
        with stopping._cond:  # type: ignore[attr-defined]
            signal.raise_signal(signal.SIGTERM)
        assert stopping.wait(15)
    finally:
        os.close(signal.set_wakeup_fd(-1))
        for number, handler in before.items():
            signal.signal(number, handler)


SLOW = {"pydantic", "yaml", "pyroute2", "boto3", "botocore", "reconciler.ipam", "lab"}


@pytest.mark.parametrize("module", ["main", "status", "explain", "explain_condition"])
def test_what_asks_the_reconciler_reads_no_model_of_the_document(module: str) -> None:
    """Which would be most of what ``status`` takes; probes and scripts call it often."""
    assert _loads(f"import reconciler.cli.{module}") == set()


def test_a_list_of_commands_imports_none_of_them() -> None:
    """Nor does a shell that completes their names: 60 ms instead of 800."""
    help_ = "sys.argv[1:] = ['explain', '--help']; m.run_command_line()"
    assert _loads(f"import reconciler.cli.main as m; {help_}") == set()
    complete = "os.environ['_NODE_NETWORK_COMPLETE'] = 'bash_complete'"
    words = "os.environ.update(COMP_WORDS='node-network ', COMP_CWORD='1')"
    run_ = "m.run_command_line()"
    assert _loads(f"import os, reconciler.cli.main as m; {complete}; {words}; {run_}") == set()


def _loads(what: str) -> set[str]:
    """Name what takes long to import, and is imported by some lines of Python."""
    script = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        f"{what}"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return SLOW & {*done.stderr.split()}


@pytest.mark.parametrize("group", [main, explain], ids=lambda g: g.name)
def test_each_command_has_a_line_that_is_not_cut(group: NamedGroup) -> None:
    assert [*group.summaries] == [*group.modules]
    help_ = click.HelpFormatter(width=80)
    group.format_commands(click.Context(group), help_)
    lines = help_.getvalue().splitlines()
    for name, summary in group.summaries.items():
        assert any(line.split(None, 1) == [name, summary] for line in lines)


def test_help_lists_first_what_one_reaches_for_and_last_what_removes() -> None:
    listed = main.list_commands(click.Context(main))
    assert listed[:4] == ["status", "explain", "doctor", "trace"]
    assert listed[-3:] == ["gc", "cleanup", "lab"]


NOT_HELD = {
    *("pydantic", "yaml", "boto3", "botocore", "asyncio", "rich", "importlib.metadata"),
    *("ctypes.util", "html", "http.server", "multiprocessing", "pickle", "shutil", "socketserver"),
    *("tempfile", "urllib.request", "uuid", "wsgiref", "xml"),
}
"""What the daemon never imports: other processes do, while they are asked, or none does."""


def test_the_daemon_holds_the_document_and_nothing_that_checks_it() -> None:
    script = (
        "import sys, schemas; schemas.checks = False\n"
        "from reconciler.daemon.unused import left_out\n"
        "with left_out():\n    import reconciler.cli.run\n"
        f"print(*{NOT_HELD} & {{*sys.modules}})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr
