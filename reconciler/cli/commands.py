"""``node-network``: run, diff, apply, validate, status, lab.

Exit codes: 0 done or in sync; 1 differs, or refused; 2 the document, the usage or the world
stands in the way; 128 and the signal's number for what was interrupted, or has lost its reader.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from reconciler.cli import report
from reconciler.core.datapath import IpAddress
from reconciler.core.installation import Installation
from reconciler.daemon import telemetry
from reconciler.daemon.agent import Agent
from reconciler.daemon.client import ask
from reconciler.daemon.health import HealthServer
from reconciler.daemon.server import Server
from reconciler.diagnostics.explain import explain_pool
from reconciler.diagnostics.trace import Query, find_pod
from reconciler.domains import conflist
from reconciler.domains.inputs import Inputs
from reconciler.engine.converge import Outcome
from reconciler.errors import InternalError, ReconcilerError, StateError
from reconciler.ipam.capacity import overcommitted
from reconciler.ipam.cloud import CLUSTER_TAG, Limits
from reconciler.ipam.ec2_action import DeleteEni
from reconciler.ipam.leak import judge
from reconciler.ipam.pool_status import find_pool_status
from reconciler.node.environment import Environment, apart, collector
from reconciler.node.passes import LocalNode
from reconciler.targets.files.installation import HostDirectories
from reconciler.targets.lock import NamespaceLock
from reconciler.targets.state.directory import DEFAULT, StateDirectory
from schemas.document import NodeNetwork
from schemas.load import DocumentError, Problem, dump, load, read
from schemas.resolve import resolve

CONFIG = "/etc/node-network/node-network.yaml"

PROGRAM = "/opt/node-network/bin/node-network-cni"
"""Where the image has it."""

NO_READER, INTERRUPTED = 128 + signal.SIGPIPE, 128 + signal.SIGINT
"""Exit codes of what did not come to its end, as shells have them. 1 would say "it differs"."""

SETTLE_LIMIT_S = 60.0
"""Seconds ``apply`` gives EC2 to attach what it asked for."""

PATH = click.Path(path_type=Path, readable=False)
"""What cannot be read is said by whoever reads it, with what to do; click calls it wrong usage."""

config_option = click.option(
    "-f",
    "--config",
    "config",
    type=PATH,
    envvar="NODE_NETWORK_CONFIG",
    show_envvar=True,
    default=CONFIG,
    show_default=True,
    help="The NodeNetwork document.",
)
state_option = click.option(
    "--state-dir",
    "state_dir",
    type=PATH,
    envvar="NODE_NETWORK_STATE_DIR",
    show_envvar=True,
    default=DEFAULT,
    show_default=True,
    help="Intents, attachments and the socket.",
)
Command = TypeVar("Command", bound=Callable[..., Any])


def install_options(command: Command) -> Command:
    """Where the container runtime looks; for the commands that install something, or show it."""
    for option in (
        click.option(
            "--cni-executable",
            "program",
            type=PATH,
            envvar="NODE_NETWORK_CNI_EXECUTABLE",
            show_envvar=True,
            default=PROGRAM,
            show_default=True,
            help="The CNI executable to install.",
        ),
        click.option(
            "--cni-bin-dir",
            "bin_dir",
            envvar="NODE_NETWORK_CNI_BIN_DIR",
            show_envvar=True,
            default="",
            help="The runtime's directory of CNI plugins, usually /opt/cni/bin; the executable is "
            "installed there. Default: it is not.",
        ),
        click.option(
            "--cni-conf-dir",
            "conf_dir",
            envvar="NODE_NETWORK_CNI_CONF_DIR",
            show_envvar=True,
            default="",
            help="The runtime's directory of CNI configurations, usually /etc/cni/net.d; "
            "10-node-network.conflist is installed there. Default: it is not.",
        ),
    ):
        command = option(command)
    return command


output_option = click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True
)


class _WithLab(click.Group):
    """Commands, and ``lab`` where its package is installed.

    The lab needs packages that a node has no use for, and a command no time to read.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands."""
        lab = ["lab"] if find_spec("lab") else []
        return sorted([*super().list_commands(ctx), *lab])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command; the lab is not imported for another one."""
        if cmd_name != "lab" or not find_spec("lab"):
            return super().get_command(ctx, cmd_name)
        from lab.cli import lab

        return lab

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; click would exit 1 for one whose output nobody reads any more."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # What Python still has in its buffer would fail once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(NO_READER)


@click.group(cls=_WithLab, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="node-network")
def main() -> None:
    """Pod networking for Kubernetes on AWS: one document, one planner, converged."""


@main.command()
@config_option
@state_option
@install_options
@click.option(
    "--listen",
    envvar="NODE_NETWORK_LISTEN",
    show_envvar=True,
    default="",
    help="Serve /livez, /readyz and /metrics on host:port; also [::1]:port, or :port for every "
    "address. Default: they are not served.",
)
@click.option(
    "--events/--no-events",
    default=True,
    show_default=True,
    help="Listen for changes of files and of the kernel; or see them by the clock alone, every "
    "reconcile.resync.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log every look, not only changes.")
def run(
    config: Path,
    state_dir: Path,
    conf_dir: str,
    bin_dir: str,
    program: Path,
    listen: str,
    *,
    events: bool,
    verbose: bool,
) -> None:
    """Reconcile this node until told to stop (the daemon)."""
    telemetry.configure(verbose=verbose)
    state = StateDirectory(state_dir)
    try:
        state.prepare()
        state.lock()
        namespace = NamespaceLock()
        namespace.take()
        environment = replace(_environment(state, conf_dir, bin_dir, program), make_ec2=apart)
        agent = Agent(config, state, environment, events=events)
        door = Server(state.socket, agent)
        agent.upkeep += [namespace, door]
        servers: list[Server | HealthServer] = [door]
        if listen:
            servers.append(HealthServer(listen, agent))
        threading.excepthook = agent.duties.note_end
        _stop_when_told(agent)
        for server in servers:
            server.start()
        try:
            agent.run()
        finally:
            for server in servers:
                server.stop()
    except (ReconcilerError, DocumentError) as error:
        _fail(error)


def _stop_when_told(agent: Agent) -> None:
    """Have SIGTERM and SIGINT end the daemon.

    Not from the handler itself: it runs between two steps of the main thread, which may be about
    to wait, and would then not be woken, or hold the very lock that ``stop`` takes.
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


@main.command()
@config_option
@state_option
@install_options
@output_option
def diff(
    config: Path, state_dir: Path, conf_dir: str, bin_dir: str, program: Path, output: str
) -> None:
    """Show what differs from the document, and change nothing.

    What other owners have on the node that hurts us is said on stderr, and changes no exit status.

    Exit status: 0 in sync, 1 something differs, 2 an error.
    """
    document = _document(config, output)
    state = _readable(state_dir)
    node = LocalNode(state, _environment(state, conf_dir, bin_dir, program))
    try:
        outcomes = node.diff(document)
        findings = [*node.findings(document, outcomes), *report.findings(outcomes)]
    except ReconcilerError as error:
        _fail(error)
    if output == "json":
        click.echo(report.as_json(outcomes, findings), nl=False)
    else:
        click.echo(report.as_text(outcomes), nl=False)
        # Nothing differs by them, so they are no part of the plan and of the exit status.
        for finding in findings:
            click.echo(f"! {finding}", err=True)
        for line in report.foreign(outcomes):
            click.echo(line, err=True)
    if summary := report.summary(outcomes):
        click.echo(summary, err=True)
    _tell_traces(outcomes)
    for cure in {_cure(e) for o in outcomes.values() for e in o.errors} - {""}:
        click.echo(f"node-network{cure.replace(';', ':', 1)}", err=True)
    sys.exit(report.exit_code(outcomes))


@main.command()
@config_option
@state_option
@install_options
@click.option(
    "--apart",
    "apart_s",
    default=3.0,
    show_default=True,
    help="Seconds between the two looks that must both show a disagreement.",
)
@output_option
def audit(
    config: Path,
    state_dir: Path,
    conf_dir: str,
    bin_dir: str,
    program: Path,
    apart_s: float,
    output: str,
) -> None:
    """Say what document, intents, records, kernel, nftables and EC2 disagree about.

    Unlike diff, it also looks for what must never be, whatever the planner thinks of it: an
    address that two pods have, or that is in cooldown while it is used, or that EC2 has taken
    away. Nothing is changed. What is just being done disagrees for a moment, so it looks twice.
    What other owners have on the node that hurts us is said on stderr, and changes no exit status.

    Exit status: 0 all agree, 1 they do not, 2 an error.
    """
    document = _document(config, output)
    state = _readable(state_dir)
    node = LocalNode(state, _environment(state, conf_dir, bin_dir, program))
    try:
        outcomes = node.diff(document)
        found = node.audit(document, outcomes)
        others = (*node.findings(document, outcomes), *report.findings(outcomes))
        if found:
            time.sleep(apart_s)
            before = {(f.subject, f.reason) for f in found}
            found = tuple(f for f in node.audit(document) if (f.subject, f.reason) in before)
    except ReconcilerError as error:
        _fail(error)
    if output == "json":
        click.echo(report.findings_json(found), nl=False)
    else:
        for finding in found:
            click.echo(f"! {finding}")
    for finding in dict.fromkeys(f for f in others if f not in found):
        click.echo(f"! {finding}", err=True)
    sys.exit(1 if found else 0)


@main.command()
@config_option
@state_option
@install_options
@output_option
def apply(
    config: Path, state_dir: Path, conf_dir: str, bin_dir: str, program: Path, output: str
) -> None:
    """Converge once, then exit.

    Exit status: 0 in sync, 1 something is refused or left to do, 2 an error.
    """
    document = _document(config, output)
    state = StateDirectory(state_dir)
    try:
        state.prepare()
        state.lock()
        namespace = NamespaceLock()
        namespace.take()
        outcomes = _settle(
            LocalNode(state, _environment(state, conf_dir, bin_dir, program)), document
        )
    except ReconcilerError as error:
        _fail(error)
    click.echo(
        report.as_json(outcomes) if output == "json" else report.remaining_text(outcomes), nl=False
    )
    _tell_traces(outcomes)
    sys.exit(report.exit_code(outcomes, remaining=True))


def _settle(node: LocalNode, document: NodeNetwork) -> dict[str, Outcome]:
    """Run passes until nothing is left, or nothing moves any more; say what is done."""
    deadline = time.monotonic() + SETTLE_LIMIT_S
    look = True
    while True:
        pool = node.pool_pass(document, look=look)
        if node.cloud is None:
            return {"eni": pool}  # it says why EC2 could not be read
        result = node.install(node.observe_others(node.kernel_pass(document)))
        outcomes = {"eni": pool} | result.outcomes
        for line in report.applied(outcomes):
            click.echo(line, err=True)
        moving = node.in_transition or node.is_pending or pool.remaining.actions
        look = False  # from now on only if something follows
        if not moving or pool.errors or time.monotonic() > deadline:
            return outcomes
        time.sleep(0.2)


@main.command()
@click.argument("file", type=PATH)
@output_option
def validate(file: Path, output: str) -> None:
    """Check a document without touching anything.

    What maxPods says is compared with what each instance type in instanceTypes can serve.

    Exit status: 0 valid, 2 not.
    """
    document = _document(file, output)
    problems = []
    for name, given in document.instance_types:
        here = resolve(document, instance_type=name, zone="", node_name="")
        if told := overcommitted(here, name, Limits(given.enis, given.addresses_per_eni)):
            problems.append(Problem(str(file), 0, 0, "maxPods", told))
    if problems:
        _refuse(DocumentError(problems), output)
    click.echo('{"errors": []}' if output == "json" else f"{file}: valid")


@main.command()
@config_option
@click.option("--instance-type", default="", help="As instance metadata says it.")
@click.option("--zone", default="", help="Availability zone.")
@click.option("--node-name", default="", help="As the cluster calls the node.")
@click.option(
    "--conflist", "as_conflist", is_flag=True, help="Print the CNI configuration made of it."
)
@state_option
def render(
    config: Path,
    instance_type: str,
    zone: str,
    node_name: str,
    state_dir: Path,
    *,
    as_conflist: bool,
) -> None:
    """Print the document for one node: its overrides applied, all defaults spelt out."""
    document = _document(config)
    try:
        found = resolve(document, instance_type=instance_type, zone=zone, node_name=node_name)
    except DocumentError as error:
        _fail(error)
    if as_conflist:
        click.echo(conflist.write(conflist.make(found.cni, str(state_dir.absolute()))), nl=False)
    else:
        click.echo(dump(found), nl=False)


@main.group()
def explain() -> None:
    """Say why the node is as it is, with the numbers."""


@explain.command()
@config_option
@state_option
def pool(config: Path, state_dir: Path) -> None:
    """Print the pool's arithmetic and name the term that binds."""
    document = _document(config)
    try:
        outcome = LocalNode(_readable(state_dir)).pool_pass(document, dry=True)
    except ReconcilerError as error:
        _fail(error)
    if outcome.errors:
        _fail(outcome.errors[0])
    lines = explain_pool(outcome.desired, find_pool_status(outcome.desired, outcome.observed))
    lines += [f"! {refusal}" for refusal in outcome.remaining.refusals]
    click.echo("\n".join(lines))


@main.command()
@config_option
@click.option("--dry-run", is_flag=True, help="List, delete nothing.")
@click.option(
    "--apart",
    "apart_s",
    default=5.0,
    show_default=True,
    help="Seconds between the two looks that must both show an ENI.",
)
def gc(config: Path, *, dry_run: bool, apart_s: float) -> None:
    """Delete ENIs that nodes of this cluster have leaked; any node or CI job may run it.

    Exit status: 0 done, 2 an error.
    """
    document = _document(config)
    if not document.cluster:
        _fail(DocumentError([Problem(str(config), 0, 0, "cluster", "is not named; gc needs it")]))
    try:
        ec2 = collector()
        first = ec2.leaked({CLUSTER_TAG: document.cluster})
        time.sleep(apart_s if first else 0)
        second = ec2.leaked({CLUSTER_TAG: document.cluster}) if first else []
    except ReconcilerError as error:
        _fail(error)
    doomed = []
    for verdict in judge(first, second, now=time.time()):
        word = "keep" if not verdict.leaked else "would delete" if dry_run else "delete"
        click.echo(f"{word} {verdict.eni.eni_id}: {verdict.why}")
        if verdict.leaked and not dry_run:
            doomed.append(DeleteEni(verdict.eni.eni_id, verdict.why))
    for failure in ec2.apply(doomed):
        _fail(failure)


class _Address(click.ParamType[IpAddress]):
    """An IP address of one host; names are not resolved: which of its addresses would be meant?"""

    name = "ADDRESS"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> IpAddress:
        try:
            address = ip_address(value)
        except ValueError:
            self.fail(f"{value!r} is no IP address", param, ctx)
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        address = mapped or address
        if address.is_multicast or address.is_unspecified or address.is_loopback:
            self.fail(f"{address} is no address of another host", param, ctx)
        if int(address) == 2**32 - 1:
            self.fail(f"{address} is everybody's address on a link", param, ctx)
        return address


PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}


@main.command(name="trace")
@click.argument("pod")
@click.argument("peer", type=_Address(), metavar="DESTINATION")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help="That is connected to; of a service, to find its endpoints.",
)
@click.option("--protocol", type=click.Choice(list(PROTOCOLS)), default="tcp", show_default=True)
@click.option(
    "--endpoint", type=_Address(), help="What a service is translated to; else all are traced."
)
@click.option("--inbound", is_flag=True, help="The destination opens the connection to the pod.")
@click.option(
    "--at",
    type=_Address(),
    help="With --inbound: the node's address that it connects to (NodePort, hostPort).",
)
@config_option
@state_option
@output_option
def trace_connection(
    pod: str,
    peer: IpAddress,
    port: int | None,
    protocol: str,
    endpoint: IpAddress | None,
    at: IpAddress | None,
    config: Path,
    state_dir: Path,
    output: str,
    *,
    inbound: bool,
) -> None:
    """Say how a pod's packets to DESTINATION find their way, and the answers back.

    No packet is sent: what is desired is walked, the kernel is asked the same questions, and other
    owners' chains are followed rule by rule, in nftables and iptables.
    POD is namespace/name, a name, an address, a container ID, or host.

    Exit status: 0 it works as far as the node can know, 1 something is against it, 2 an error.
    """
    if at and not inbound:
        raise click.UsageError("--at is about connections from outside; add --inbound")
    document = _document(config, output)
    node = LocalNode(_readable(state_dir))
    try:
        ends: tuple[IpAddress | None, ...] = (endpoint,)
        if port and not endpoint and not inbound:
            ends = node.endpoints(peer, protocol, port) or ends

        def make(inputs: Inputs) -> list[Query]:
            who = find_pod(inputs.attachments, pod)
            number = PROTOCOLS[protocol]
            return [Query(who, peer, inbound, at, end, number, port) for end in ends]

        traces = node.trace(document, make)
    except ReconcilerError as error:
        _fail(error)
    text = report.traces_json(traces) if output == "json" else report.traces_text(traces)
    click.echo(text, nl=False)
    sys.exit(1 if any(t.planned.troubles or t.differences or t.obstacles for t in traces) else 0)


@main.command()
@state_option
@output_option
def status(state_dir: Path, output: str) -> None:
    """Show what the running reconciler knows; its metrics, too, with -o json.

    Exit status: 0 all is well, 1 not, 2 no reconciler answers.
    """
    try:
        body = ask(StateDirectory(state_dir).socket, {"do": "status"})["status"]
    except ReconcilerError as error:
        _fail(error)
    click.echo(json.dumps(body, indent=2) if output == "json" else report.status_text(body))
    sys.exit(0 if body["settled"] and not body["conditions"] else 1)


def _environment(state: StateDirectory, conf_dir: str, bin_dir: str, program: Path) -> Environment:
    """This host, with what is to be installed on it."""
    conf, plugins = (str(Path(d).absolute()) if d else "" for d in (conf_dir, bin_dir))
    places = Installation(conf, plugins, str(program.absolute()), str(state.root.absolute()))
    return Environment(files=HostDirectories(places), node_name=os.environ.get("NODE_NAME", ""))


def _readable(state_dir: Path) -> StateDirectory:
    """Open the records for a look.

    They are root's: whoever may not list them would otherwise see a node without any.
    """
    try:
        os.listdir(state_dir)  # noqa: PTH208 - for the errno
    except FileNotFoundError:
        pass  # no reconciler has run here yet: there are no records
    except OSError as error:
        cure = "run as root" if isinstance(error, PermissionError) else "see --state-dir"
        _fail(StateError(f"cannot read the records in {state_dir}: {error.strerror}; {cure}"))
    return StateDirectory(state_dir)


def _document(path: Path, output: str = "text") -> NodeNetwork:
    try:
        return load(read(path), str(path))
    except DocumentError as error:
        _refuse(error, output)


def _refuse(error: DocumentError, output: str) -> NoReturn:
    if output == "json":
        click.echo(report.problems_json(error), nl=False)
    _fail(error)


def _fail(error: Exception) -> NoReturn:
    if isinstance(error, InternalError):
        click.echo(error.trace, err=True)
    click.echo(f"{error}{_cure(error)}", err=True)
    sys.exit(2)


def _tell_traces(outcomes: Mapping[str, Outcome]) -> None:
    """Print the traceback of each failure that no code expects, as the daemon logs it."""
    errors = [e for o in outcomes.values() for e in o.errors]
    for trace in dict.fromkeys(e.trace for e in errors if isinstance(e, InternalError)):
        click.echo(trace, err=True)


def _cure(error: Exception) -> str:
    """Say what a user without rights can do, if the error itself does not."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, PermissionError):
        cause = cause.__cause__
    return "" if cause is None or "run as root" in str(error) else f"; {NEEDS}"


NEEDS = "run as root, with CAP_NET_ADMIN and CAP_SYS_ADMIN"


def run_command_line() -> None:
    """Run ``main``; a bug of ours must not look like a difference, so it never exits 1.

    Python exits 1 after an uncaught exception, which is what ``diff`` says when something differs.
    """
    code: Any
    try:
        code = main(prog_name="node-network", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort:
        click.echo("interrupted", err=True)
        code = INTERRUPTED
    except OSError as error:
        # The world's doing: a disk that is full, output that cannot be written.
        click.echo(f"node-network: cannot go on: {error}", err=True)
        code = 2
    except Exception:  # noqa: BLE001 - the top level: the traceback is all there is to say
        traceback.print_exc()
        click.echo("node-network: internal error; please report it with the lines above", err=True)
        code = 2
    sys.exit(code if isinstance(code, int) else 0)
