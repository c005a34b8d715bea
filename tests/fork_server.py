"""Many programs out of one process that has read them already: labs' servers, daemons, commands.

To read moto takes most of a lab's start, and to read its modules most of a daemon's. Who starts
one has no use for this; a test run starts hundreds. It is Python's own fork server: a process
without threads, which forks each of them. A parent that is killed leaves them to
``lifecycle.down``.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn
from unittest.mock import patch

from lab import netns
from lab.lifecycle import Lab
from lab.topology import Names

CALLER = "reconciler.targets.ec2.caller"
"""The program that calls EC2 for a daemon or a command."""

CHECKER = "schemas.apart"
"""The program that checks the document for a daemon."""

PRELOAD = "tests.fork_server_preload"
"""What the fork server reads before it forks; it says nothing if it cannot."""


class ForkServer:
    """Starts programs, as ``lifecycle.up`` and a test's ``Cluster`` ask for them."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([PRELOAD])

    def start(self, names: Names, types: Mapping[str, str]) -> Forked:
        """Start the server of a lab; it ends with this process, unless that is killed."""
        names.log.touch()
        lab = Lab(names.lab)
        return self._fork(_serve, (names, dict(types)), lab, "vpc", names.log, names.log)

    def launch(self, lab: Lab, node: str, words: Sequence[str], log: Path) -> Forked:
        """Start ``node-network`` on a node; what it says is appended to a log."""
        log.touch()
        return self._fork(_reconcile, (list(words),), lab, node, log, log)

    def run(self, lab: Lab, node: str, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run ``node-network`` on a node to its end."""
        with tempfile.TemporaryDirectory() as directory:
            out, err = Path(directory, "out"), Path(directory, "err")
            out.touch()
            err.touch()
            status = self._fork(_reconcile, (list(words),), lab, node, out, err).wait(120)
            return subprocess.CompletedProcess(words, status, out.read_text(), err.read_text())

    def _fork(
        self, target: Any, arguments: tuple[Any, ...], lab: Lab, part: str, out: Path, err: Path
    ) -> Forked:
        where = (netns.path(lab.names.namespace(part)), lab.environment(part), out, err)
        process = self._context.Process(target=_be, args=(where, target, arguments), daemon=True)
        # Whatever runs the tests is not to be imported by each of them.
        runs = sys.modules["__main__"]
        with patch.multiple(runs, create=True, __file__=None, __spec__=None):
            process.start()
        return Forked(process)


class Forked:
    """A program of ``ForkServer``, with those words of a ``subprocess.Popen`` that are needed."""

    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Its number."""
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """Return its exit status; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, and return its exit status.

        Raises:
            subprocess.TimeoutExpired: it has not ended within so many seconds.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(str(self._process), timeout)
        return self._process.exitcode


Where = tuple[Path, Mapping[str, str], Path, Path]
"""The namespace of a program, its environment, and where its output and its errors go."""


def _be(where: Where, target: Any, arguments: tuple[Any, ...]) -> None:
    """Be in every respect what a program in the namespace would be."""
    namespace, environment, out, err = where
    for standard, path in ((1, out), (2, err)):
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(fd, standard)
        os.close(fd)
    assert PRELOAD in sys.modules, "each program reads moto and the SDK by itself"
    os.environ.clear()
    os.environ.update(environment)
    netns.enter(namespace)
    target(*arguments)


def _serve(names: Names, types: Mapping[str, str]) -> None:
    """Be ``python -m lab.server``."""
    os.setsid()
    # Not at the top: whoever asks for servers need not read moto.
    from moto.moto_api._internal import mock_random

    from lab import server

    mock_random.seed()  # forked, it would give every lab the same ids
    server.serve(names, types)


def _reconcile(words: list[str]) -> None:
    """Be ``python -m reconciler``, whose own programs are forked as well."""
    from reconciler.__main__ import enter
    from reconciler.targets.ec2 import caller
    from schemas import process

    own = {name: getattr(subprocess, name) for name in ("PIPE", "Popen", "TimeoutExpired")}
    for module in (caller, process):
        vars(module)["subprocess"] = SimpleNamespace(**own | {"Popen": _fork_program})
    sys.argv[:] = ["node-network", *words]
    enter()


def _fork_program(argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start the program that calls EC2, or checks documents: its modules are here already."""
    assert argv[1] == "-m"
    assert argv[2] in (CALLER, CHECKER)
    return subprocess.Popen(argv, preexec_fn=partial(_be_program, *argv[2:]), **options)


def _be_program(name: str, *words: str) -> NoReturn:
    """Be the program, in the child of ``Popen``, which does not get to exec."""
    status = 1
    try:
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # one of them tells the parent of the exec
        sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
        module = import_module(name)
        vars(module)["MAX_DATA"] = resource.RLIM_INFINITY  # moto is here as well
        module.main(*words)
        sys.stdout.flush()
        status = 0
    finally:
        os._exit(status)
