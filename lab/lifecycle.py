"""Labs from outside: up, down, and a handle to ask and to run things in them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from lab import netns, topology
from lab.topology import EC2_ENDPOINT, EC2_PORT, INSTANCES, STATE, Names

START_LIMIT_S = 30.0
STOP_LIMIT_S = 5.0

PARTS = ("vpc", "peer", "internet", *(i.name for i in INSTANCES))

AMBIENT = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
)
"""The caller's own AWS settings have no business in a lab."""

STATIC = Path(__file__).parents[1] / "build/node-network-cni"
"""What ``make cni`` builds, and hosts get."""

EXECUTABLE = STATIC if STATIC.exists() else Path(sys.executable).with_name(STATIC.name)
"""What a node installs as its CNI executable: without the static one, the same code in Python."""

ON_DISK = {"opt", "etc", "host", "var", "log"}
"""What survives a reboot of what is in a node's directory; the rest stands for ``/run``."""

PLUGINS = Path("/usr/lib/cni")
"""Where Debian's containernetworking-plugins puts the reference plugins."""

Say = Callable[[str], None]


class Server(Protocol):
    """A lab's server, as a process of this one's; the words are ``subprocess.Popen``'s."""

    def poll(self) -> int | None:
        """Return its exit status; None while it runs."""

    def terminate(self) -> None:
        """Ask it to end."""

    def wait(self) -> int:
        """Wait for its end."""


Start = Callable[[Names, Mapping[str, str]], Server]

_servers: dict[str, Server] = {}
"""Servers that this process started, to be collected when their lab goes down."""


class LabError(Exception):
    """A lab could not be made, asked or found; says what to do next."""


class Lab:
    """A lab that is up."""

    def __init__(self, name: str) -> None:
        self.names = Names(name)

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Ask the lab's server.

        Raises:
            LabError: it does not answer, or refuses.
        """
        try:
            with socket.socket(socket.AF_UNIX) as s:
                s.settimeout(20)
                s.connect(str(self.names.control))
                with s.makefile("rwb") as stream:
                    stream.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
                    stream.flush()
                    answer: dict[str, Any] = json.loads(stream.readline())
        except (OSError, ValueError) as error:
            raise LabError(
                f"lab {self.names.lab} does not answer ({error}); {self._cure()}"
            ) from error
        if not answer.pop("ok"):
            raise LabError(f"lab {self.names.lab}: {answer['error']}")
        return answer

    def _cure(self) -> str:
        verb = "down" if netns.names(self.names.prefix) else "up"
        return f"'node-network lab {verb} --name {self.names.lab}'"

    def drops(self) -> list[dict[str, Any]]:
        """Return the flows the fabric dropped, with the reason."""
        flows: list[dict[str, Any]] = self.ask("drops")["flows"]
        return flows

    def passed(self) -> list[dict[str, Any]]:
        """Return the flows that left ENIs and passed the source check."""
        flows: list[dict[str, Any]] = self.ask("passed")["flows"]
        return flows

    def enis(self, node: str = "") -> list[dict[str, Any]]:
        """Return ENIs, of one node if it is named, in device order."""
        enis = [e for e in self.ask("status")["enis"] if not node or e["instance"] == node]
        return sorted(enis, key=lambda e: (e["instance"], e["device"] or 0))

    def environment(self, node: str) -> dict[str, str]:
        """Return the environment of a process on a node."""
        kept = {k: v for k, v in os.environ.items() if k not in AMBIENT}
        return kept | {
            "AWS_ENDPOINT_URL_EC2": f"http://{EC2_ENDPOINT}:{EC2_PORT}",
            "NODE_NETWORK_STATE_DIR": str(self.names.node_state(node)),
            "NODE_NETWORK_KEEP_DIR": str(self.names.node_state(node) / "var"),
            "NODE_NETWORK_LAB": self.names.lab,
            "NODE_NETWORK_NODE": node,
            # This machine's own configuration is not the node's.
            "NODE_NETWORK_HOST_ROOT": str(self.names.node_state(node) / "host"),
            "NODE_NETWORK_CNI_BIN_DIR": str(self.names.plugins(node)),
            "NODE_NETWORK_CNI_CONF_DIR": str(self.names.configurations(node)),
            "NODE_NETWORK_TMPFILES_DIR": str(self.names.tmpfiles(node)),
            "NODE_NETWORK_CNI_EXECUTABLE": str(EXECUTABLE),
            "NODE_NETWORK_AWS_NODE_DIR": str(self.names.stock_plugin(node)),
        }

    def command(self, part: str, argv: Sequence[str]) -> list[str]:
        """Return the command that runs ``argv`` in a part's namespace."""
        return ["nsenter", f"--net={netns.path(self.names.namespace(part))}", "--", *argv]

    def run(
        self, node: str, argv: Sequence[str], **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a node to its end."""
        options = {"capture_output": True, "text": True, "timeout": 120} | options
        options["env"] = self.environment(node) | options.get("env", {})
        return subprocess.run(self.command(node, argv), **options)

    def start(self, node: str, argv: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a command on a node."""
        options = {"text": True} | options
        return subprocess.Popen(self.command(node, argv), env=self.environment(node), **options)


def start_server(names: Names, types: Mapping[str, str]) -> Server:
    """Start a lab's server in its namespace, as a program that outlives this one."""
    words = [names.lab, *(f"{node}={its}" for node, its in types.items())]
    lab = Lab(names.lab)
    with names.log.open("w") as log:
        return subprocess.Popen(
            lab.command("vpc", [sys.executable, "-m", "lab.server", *words]),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=lab.environment("vpc"),
            start_new_session=True,
        )


def up(
    name: str,
    say: Say = lambda _: None,
    *,
    types: Mapping[str, str] | None = None,
    start: Start = start_server,
) -> Lab:
    """Make a lab. If that fails or is interrupted, nothing of it stays.

    Args:
        name: what to call it.
        say: called with what is done next.
        types: instance types by node; other nodes have the ones of the topology.
        start: starts its server.

    Raises:
        LabError: one of this name is there, or this one cannot be made.
        ValueError: the name is none, or there is no such node or type; nothing was made.
    """
    names = Names(name)
    types = types or {}
    _refuse_unknown(types)
    if netns.names(names.prefix) or not _claim(names):
        raise LabError(
            f"lab {name} is up, or something is left of it; 'node-network lab down --name {name}'"
        )
    try:
        say("namespaces")
        for part in PARTS:
            netns.make(names.namespace(part))
        for instance in INSTANCES:
            names.node_state(instance.name).mkdir()
            _make_runtime_directories(names, instance.name)
        say("EC2, instance metadata and the fabric")
        _start(names, types, start)
    except BaseException as error:
        down(name)
        if isinstance(error, subprocess.CalledProcessError):
            raise LabError(f"lab {name} cannot be made: {error.stderr or error}") from error
        if isinstance(error, OSError):
            raise LabError(f"lab {name} cannot be made: {error}") from error
        raise
    return Lab(name)


def _make_runtime_directories(names: Names, node: str) -> None:
    """Make what a host has whose container runtime was installed: its plugins, and no network."""
    names.configurations(node).mkdir(parents=True)
    names.tmpfiles(node).mkdir(parents=True)
    names.plugins(node).mkdir(parents=True)
    for plugin in ("loopback", "portmap"):
        (names.plugins(node) / plugin).symlink_to(PLUGINS / plugin)


def down(name: str, say: Say = lambda _: None) -> bool:
    """Remove every trace of a lab, half-built or crashed ones too; False if there was none."""
    with undisturbed():
        return _remove(Names(name), say)


def reboot(lab: Lab, node: str) -> None:
    """Start a node anew: its processes, pods, kernel objects and ``/run`` are gone.

    Its disk stays, the runtime's directories among it, and EC2 notices nothing. The node's own
    daemons are started separately.

    Raises:
        LabError: there is no such node.
    """
    names = lab.names
    state = names.node_state(node)
    pods = [json.loads(p.read_text())["netns"] for p in (state / "intents").glob("*.json")]
    _end_processes_in(names.namespace(node), signal.SIGKILL)
    for pod in pods:
        _end_processes_in(Path(pod).name, signal.SIGKILL)
        netns.remove(Path(pod).name)
    lab.ask("reboot", node=node)
    for entry in state.iterdir():
        if entry.name in ON_DISK:
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore what would interrupt, so that a second Ctrl-C leaves no half of a lab behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _remove(names: Names, say: Say) -> bool:
    existed = names.state.exists() or bool(netns.names(names.prefix))
    say("processes")
    _end_processes(names)
    say("namespaces")
    for namespace in netns.names(names.prefix):
        netns.remove(namespace)
    shutil.rmtree(names.state, ignore_errors=True)
    with suppress(OSError):  # other labs are there, or it is gone already
        STATE.rmdir()
    return existed


def labs() -> list[str]:
    """Name the labs of this machine, half-built ones too."""
    found = {p.name for p in STATE.iterdir()} if STATE.exists() else set()
    found |= {n.split("-")[1] for n in netns.names("nn-") if n.endswith("-vpc")}
    return sorted(found)


def _claim(names: Names) -> bool:
    """Make the lab's directory; False if it exists: of two at once, one makes the lab."""
    while True:
        try:
            STATE.mkdir(mode=0o700, exist_ok=True)
            names.state.mkdir(mode=0o700)
        except FileExistsError:
            return False
        except FileNotFoundError:
            continue  # another lab went down and took the empty parent along
        return True


def _refuse_unknown(types: Mapping[str, str]) -> None:
    topology.instances(types)
    if not types:
        return
    # Not at the top: reading moto's tables takes a second, and few commands need them.
    from moto.ec2.models.instance_types import INSTANCE_TYPES

    if unknown := sorted(set(types.values()) - INSTANCE_TYPES.keys()):
        raise ValueError(f"no such instance type: {', '.join(unknown)}")


def _start(names: Names, types: Mapping[str, str], start: Start) -> None:
    lab = Lab(names.lab)
    process = start(names, types)
    _servers[names.lab] = process
    deadline = time.monotonic() + START_LIMIT_S
    while not _answers(lab):
        if process.poll() is not None or time.monotonic() > deadline:
            tail = names.log.read_text()[-2000:]
            raise LabError(f"the server of lab {names.lab} did not start:\n{tail}")
        time.sleep(0.02)


def _answers(lab: Lab) -> bool:
    """Whether the server answers; its socket's file is there a little before it listens."""
    try:
        lab.ask("ping")
    except LabError:
        return False
    return True


def _end_processes(names: Names) -> None:
    """End what lives in the lab's namespaces: politely, then not."""
    server = _servers.pop(names.lab, None)
    if server:
        # Of an interrupted start: it may not have entered its namespace yet.
        server.terminate()
    for number in (signal.SIGTERM, signal.SIGKILL):
        _end_processes_in(names.prefix, number)
    if server:
        server.wait()


def _end_processes_in(prefix: str, number: signal.Signals) -> None:
    """Signal what lives in namespaces whose names begin so, and wait for its end for a while."""
    for pid in netns.processes(prefix):
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    deadline = time.monotonic() + STOP_LIMIT_S
    while netns.processes(prefix) and time.monotonic() < deadline:
        time.sleep(0.02)
