"""``doctor``: whether this node has what it needs, one line a check."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from cni.exchange import SOCKET
from reconciler.cli.host import host_options, open_records
from reconciler.cli.options import config_option, output_option
from reconciler.cli.reading import read_document
from reconciler.cli.screen import GREEN, RED, YELLOW, Screen, screen_of
from reconciler.daemon.client import ask
from reconciler.diagnostics.doctor import Check, State, exit_status, from_issue, once
from reconciler.errors import Issue, UnansweredError
from reconciler.node.doctor import examine
from reconciler.node.environment import Environment
from reconciler.node.passes import LocalNode

COLOURS = {State.OK: GREEN, State.WARN: YELLOW, State.FAIL: RED}

INDENT = 6  # columns of how a check went

FORMAT = 1
"""Version of the form of ``-o json``."""


@click.command()
@config_option
@host_options
@output_option
def doctor(config: Path, state_dir: Path, environment: Environment, output: str) -> None:
    """Check whether this node has what it needs; change nothing. It needs no running reconciler.

    Metadata; each EC2 action that the document needs, asked with DryRun where it changes
    something; limits and subnets; kernel, capabilities, nftables, settings, MTU; units and agents
    that stand in the way. Each line that is not ok says what to do.

    Exit status: 0 all is well, 1 something should be mended, 2 pods are not served by it.
    """
    document = read_document(config, output)
    node = LocalNode(open_records(state_dir), environment)
    shown = screen_of(sys.stdout)
    checks: list[Check] = []
    for check in once(_all(config, state_dir, examine(node, document))):
        checks.append(check)
        if output != "json":
            for line in told(check, shown):
                click.echo(line)
    status = exit_status(checks)
    if output == "json":
        names = ("name", "state", "text", "cure")
        listed = [
            {n: str(getattr(c, n)).lower() if n == "state" else getattr(c, n) for n in names}
            for c in checks
        ]
        click.echo(json.dumps({"format": FORMAT, "status": status, "checks": listed}, indent=2))
    sys.exit(status)


def _all(config: Path, state_dir: Path, examined: Iterator[Check]) -> Iterator[Check]:
    yield Check("document", State.OK, f"{config} is valid")
    yield from _of_daemon(state_dir)
    yield from examined


def _of_daemon(state_dir: Path) -> Iterator[Check]:
    """Say whether a reconciler answers, and what conditions it has."""
    try:
        body = ask(state_dir / SOCKET, {"do": "status"})["status"]
    except UnansweredError as error:
        cure = "start it; what follows does not need it"
        yield Check("reconciler", State.WARN, str(error), cure)
        return
    yield Check(
        "reconciler", State.OK, f"answers; document generation {body['document']['generation']}"
    )
    for c in body["conditions"]:
        issue = Issue(str(c["subject"]), str(c["reason"]), str(c["text"]))
        yield from_issue("condition", issue)


def told(check: Check, screen: Screen) -> Iterator[str]:
    """Yield the lines of one check; one, in a pipe."""
    text = f"{check.name}: {check.text}{'; ' if check.cure else ''}{check.cure}"
    start = f"{check.state:<{INDENT}}"
    printed = "".join(c if c.isprintable() else " " for c in text)
    painted = screen.paint(start, **COLOURS.get(check.state, {}))
    for line in screen.wrap(" ".join(printed.split()), start, " " * INDENT):
        yield line.replace(start, painted, 1) if line.startswith(start) else line
