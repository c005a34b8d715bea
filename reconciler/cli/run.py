"""``run``: the daemon."""

from __future__ import annotations

import grp
import os
import re
import signal
import threading
from dataclasses import replace
from pathlib import Path

import click

from reconciler.cli.host import host_options, lock_records
from reconciler.cli.options import config_option, fail, keep_option, setting
from reconciler.daemon import logs
from reconciler.daemon.agent import Agent
from reconciler.daemon.health import METRICS, HealthServer
from reconciler.daemon.server import Server
from reconciler.daemon.unix_socket import STATUS
from reconciler.errors import ReconcilerError, StateError
from reconciler.node.environment import Environment, apart
from schemas.apart import Apart
from schemas.problem import DocumentError
from schemas.process import CHECKERS


@click.command()
@config_option
@host_options
@keep_option
@setting(
    "--listen",
    about="Serve /livez, /readyz and /metrics on host:port; also [::1]:port, or :port for every "
    "address. Default: disabled.",
)
@setting(
    "--metrics-listen",
    about="Serve /metrics, and nothing else, on host:port as well: for Prometheus on other nodes. "
    "Default: disabled.",
)
@setting(
    "--status-group",
    about="A group, by name or number, whose members may ask for 'status', by a socket of its "
    "own. Default: root alone.",
)
@click.option(
    "--events/--no-events",
    default=True,
    show_default=True,
    help="Watch files and the kernel for changes; without, observe them every reconcile.resync "
    "only.",
)
@setting(
    "--log-format",
    kind=click.Choice(list(logs.FORMS)),
    default="text",
    about="Lines of the log on standard error: key=value, or one JSON object each.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log every observation, not only changes.")
def run(
    config: Path,
    state_dir: Path,
    environment: Environment,
    keep_dir: str,
    listen: str,
    metrics_listen: str,
    status_group: str,
    log_format: str,
    *,
    events: bool,
    verbose: bool,
) -> None:
    """Reconcile this node until SIGTERM (the daemon)."""
    logs.configure(verbose=verbose, form=log_format)
    try:
        state, namespace = lock_records(state_dir, keep_dir)
        environment, keep = replace(environment, make_ec2=apart), Path(keep_dir or state.root)
        agent = Agent(
            config,
            state,
            environment,
            keep_dir=keep,
            events=events,
            documents=Apart(CHECKERS),
        )
        doors = [Server(state.socket, agent)]
        if status_group:
            doors.append(Server(state.root / STATUS, agent, _find_group(status_group)))
        agent.upkeep.properties.extend([namespace, *doors])
        servers: list[Server | HealthServer] = [*doors]
        servers += [HealthServer(listen, agent)] if listen else []
        servers += [HealthServer(metrics_listen, agent, METRICS)] if metrics_listen else []
        threading.excepthook = agent.parts.duties.note_end
        _stop_when_told(agent)
        for server in servers:
            server.start()
        try:
            agent.run()
        finally:
            for server in servers:
                server.stop()
    except (ReconcilerError, DocumentError) as error:
        fail(error)


def _find_group(text: str) -> int:
    """Return a group's number; a container knows the host's groups by their numbers only."""
    try:
        return int(text) if re.fullmatch("[0-9]{1,10}", text) else grp.getgrnam(text).gr_gid
    except KeyError:
        raise StateError(f"--status-group: there is no group {text}; give its number") from None


def _stop_when_told(agent: Agent) -> None:
    """Let SIGTERM and SIGINT end the daemon.

    In a thread of its own, because a handler runs between two steps of the main thread. If that
    thread is about to wait, it would not wake; it may also hold the lock that ``stop`` takes.
    """
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)

    def listen() -> None:
        os.read(told, 1)
        agent.stop()

    threading.Thread(target=listen, name="signals", daemon=True).start()
