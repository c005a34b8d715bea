"""Many labs' servers out of one process that has read moto already.

Reading moto takes most of a lab's start. Who makes one lab reads it once either way and has no use
for this; a test run makes a hundred. It is Python's own fork server: a process without threads,
which forks a server for each lab. A parent that is killed leaves it to ``lifecycle.down``.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from lab import netns
from lab.lifecycle import Lab
from lab.topology import Names


class ForkServer:
    """Starts servers, as ``lifecycle.up`` asks for them."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.fork_server_preload"])

    def start(self, names: Names, types: Mapping[str, str]) -> Forked:
        """Start the server of a lab; it ends with this process, unless that is killed."""
        names.log.touch()
        environment = Lab(names.lab).environment("vpc")
        process = self._context.Process(
            target=_serve, args=(names, dict(types), environment), daemon=True
        )
        process.start()
        return Forked(process)


class Forked:
    """A server of ``ForkServer``, with the few words of a ``subprocess.Popen`` that are needed."""

    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process

    def poll(self) -> int | None:
        """Return its exit status; None while it runs."""
        return self._process.exitcode

    def terminate(self) -> None:
        """Ask it to end."""
        self._process.terminate()

    def wait(self) -> int:
        """Wait for its end, and return its exit status."""
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode


def _serve(names: Names, types: Mapping[str, str], environment: Mapping[str, str]) -> None:
    """Be in every respect what ``python -m lab.server`` in the namespace would be."""
    os.setsid()
    _redirect(names.log)
    os.environ.clear()
    os.environ.update(environment)
    netns.enter(netns.path(names.namespace("vpc")))
    # Not at the top: whoever asks for servers need not read moto.
    from moto.moto_api._internal import mock_random

    from lab import server

    mock_random.seed()  # forked, it would give every lab the same ids
    server.serve(names, types)


def _redirect(log: Path) -> None:
    fd = os.open(log, os.O_WRONLY | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(fd, standard)
    os.close(fd)
