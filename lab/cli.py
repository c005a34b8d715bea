"""``node-network lab``: a VPC on this machine."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import click

from lab import cli_pod, cli_rehearsal, cli_vpc, lifecycle, netns
from lab.cli_options import fail, name_option
from lab.lifecycle import Lab, LabError
from lab.topology import INSTANCES

parts = click.Choice([i.name for i in INSTANCES] + ["vpc", "peer", "internet"])


@click.group()
def lab() -> None:
    """A VPC on this machine: EC2, instance metadata and a packet fabric, in namespaces."""
    # Ctrl-C, SIGTERM and a closed terminal alike: what was begun is taken down again.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as it is under nohup
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    if os.geteuid() != 0 and not {"-h", "--help"} & set(sys.argv):
        fail("the lab makes network namespaces and needs root; try again with sudo")


def _pairs(
    _context: click.Context, _parameter: click.Parameter, words: tuple[str, ...]
) -> dict[str, str]:
    if wrong := [w for w in words if "=" not in w]:
        raise click.BadParameter(f"{wrong[0]!r} is not NODE=TYPE")
    return dict(w.split("=", 1) for w in words)


@lab.command()
@name_option
@click.option(
    "--type",
    "types",
    multiple=True,
    metavar="NODE=TYPE",
    callback=_pairs,
    help="Instance type of a node, such as node1=m5.4xlarge; once for each node.",
)
def up(name: str, types: dict[str, str]) -> None:
    """Make a lab."""
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        try:
            lifecycle.up(name, lambda step: status.update(f"lab {name}: {step}"), types=types)
        except (LabError, ValueError) as error:
            fail(str(error))
    click.echo(f"lab {name} is up; try: node-network lab exec --name {name} node1 -- ip address")


@lab.command()
@name_option
@click.option("--all", "everything", is_flag=True, help="All labs of this machine.")
def down(name: str, *, everything: bool) -> None:
    """Remove a lab, half-built or crashed ones too."""
    for each in lifecycle.labs() if everything else [name]:
        try:
            existed = lifecycle.down(each)
        except ValueError as error:
            fail(str(error))
        click.echo(f"lab {each} is {'down' if existed else 'not there'}")


@lab.command()
@name_option
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text")
def status(name: str, output: str) -> None:
    """Show instances, their ENIs, and what the fabric dropped."""
    try:
        handle = Lab(name)
        enis, drops = handle.enis(), handle.drops()
        calls = handle.ask("calls")["calls"]
    except (LabError, ValueError) as error:
        fail(str(error))
    if output == "json":
        click.echo(json.dumps({"enis": enis, "drops": drops, "calls": calls}, indent=2))
        return
    from rich.table import Table

    from lab.demo import make_console

    console = make_console()
    table = Table("instance", "device", "ENI", "status", "primary", "secondaries", box=None)
    for e in enis:
        device = "" if e["device"] is None else str(e["device"])
        row = (e["instance"], device, e["id"], e["status"], e["primary"])
        table.add_row(*row, str(len(e["addresses"][1:])))
    console.print(table)
    for flow in drops:
        console.print(
            f"dropped {flow['packets']} from {flow['source']} to {flow['destination']} "
            f"by {flow['eni']}: {flow['reason']}"
        )
    console.print("EC2 calls: " + (", ".join(f"{n} {a}" for a, n in calls.items()) or "none"))


@lab.command()
@click.option("--name", default="story", show_default=True, help="Which lab to make for it.")
@click.option(
    "-f",
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=Path(__file__).parents[1] / "config/node-network.yaml",
    show_default="config/node-network.yaml",
    help="The document to converge to; its snat.excludeCIDRs must be an empty list.",
)
def demo(name: str, config: Path) -> None:
    """Show what node-network does, on a lab of its own, and check every claim."""
    from lab.demo import run

    sys.exit(run(name, config))


for each_command in (*cli_pod.COMMANDS, *cli_vpc.COMMANDS, *cli_rehearsal.COMMANDS):
    lab.add_command(each_command)


@lab.command(context_settings={"ignore_unknown_options": True})
@name_option
@click.argument("part", type=parts)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec(name: str, part: str, command: tuple[str, ...]) -> None:  # noqa: A001 - the verb
    """Run a command on a node, with its network and its EC2."""
    try:
        handle = Lab(name)
    except ValueError as error:
        fail(str(error))
    try:
        netns.enter(netns.path(handle.names.namespace(part)))
    except OSError as error:
        fail(f"lab {name} is not up: {error.strerror}; 'node-network lab up --name {name}'")
    try:
        os.execvpe(command[0], list(command), handle.environment(part))
    except OSError as error:
        fail(f"{command[0]}: {error.strerror}")
