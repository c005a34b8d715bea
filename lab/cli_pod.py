"""``node-network lab pod``: pods, started and ended as a runtime does it."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import click

from lab import netns, pod, pod_log
from lab.cli_options import fail, name_option
from lab.lifecycle import Lab, LabError
from lab.topology import NODES

nodes = click.Choice(NODES)


@click.group(name="pod")
def pods() -> None:
    """Start and end pods, through the CNI executable as a runtime calls it."""


@pods.command()
@name_option
@click.option(
    "--start",
    "start_s",
    type=click.FloatRange(0, 110, min_open=True),
    metavar="SECONDS",
    help="How long ADD waits for a reconciler that is starting (startSeconds of the CNI "
    "configuration; an installed one has half of cni.budget). Default: 10 where one has run "
    "since the boot, else not at all.",
)
@click.argument("node", type=nodes)
@click.argument("pod_name", metavar="POD")
def add(name: str, node: str, pod_name: str, start_s: float | None) -> None:
    """Start a pod: a namespace of its own, and CNI's ADD."""
    try:
        lab = Lab(name)
        config = _logged(lab, node) | ({} if start_s is None else {"startSeconds": start_s})
        made = pod.add(lab, node, pod_name, config=config)
    except (LabError, pod.PodError, ValueError, subprocess.CalledProcessError) as error:
        fail(getattr(error, "stderr", "") or str(error))
    click.echo(
        f"pod {pod_name} has {made.address} (ENI {made.device}); try: "
        f"ip netns exec {made.namespace} ip route"
    )


def _logged(lab: Lab, node: str) -> dict[str, Any]:
    return {"logFile": str(pod_log.executables_log(lab.names, node))}


@pods.command(name="del")
@name_option
@click.argument("node", type=nodes)
@click.argument("pod_name", metavar="POD")
def delete(name: str, node: str, pod_name: str) -> None:
    """End a pod: CNI's DEL, and its namespace goes."""
    try:
        lab = Lab(name)
        pod.delete(lab, node, pod_name, config=_logged(lab, node))
    except (LabError, pod.PodError, ValueError) as error:
        fail(str(error))


@pods.command(name="list")
@name_option
def list_pods(name: str) -> None:
    """List the pods of a lab: node, pod, address."""
    try:
        lab_names = Lab(name).names
    except ValueError as error:
        fail(str(error))
    for node, one, addresses in pod.find(lab_names):
        click.echo(f"{node or '-'} {one} {' '.join(addresses)}")


@pods.command()
@name_option
@click.argument("pod_name", metavar="POD")
def logs(name: str, pod_name: str) -> None:
    """Show what was logged about a pod, one that has ended too, in the order of time.

    The CNI executable's lines, if `lab pod add` and `del` called it, and the reconciler's, if its
    standard error is a file. `attempt` in both is one ADD; with `run -v` each step of it is there.
    """
    try:
        names = Lab(name).names
    except ValueError as error:
        fail(str(error))
    found, unread = pod_log.logs_of(names)
    told = list(pod_log.story(f"{names.lab}-{pod_name}", f"default/{pod_name}", found))
    for why in unread:
        click.echo(why, err=True)
    if not told:
        fail(f"nothing was logged about pod {pod_name} in lab {name}; 'node-network lab pod list'")
    click.echo("\n".join(told))


@pods.command(name="exec", context_settings={"ignore_unknown_options": True})
@name_option
@click.argument("pod_name", metavar="POD")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_in_pod(name: str, pod_name: str, command: tuple[str, ...]) -> None:
    """Run a command in a pod's network namespace."""
    try:
        netns.enter(netns.path(Lab(name).names.namespace(f"pod-{pod_name}")))
    except (OSError, ValueError) as error:
        fail(f"no pod {pod_name} in lab {name}: {error}; 'node-network lab pod list'")
    try:
        os.execvp(command[0], list(command))
    except OSError as error:
        fail(f"{command[0]}: {error.strerror}")


COMMANDS: tuple[click.Command, ...] = (pods,)
