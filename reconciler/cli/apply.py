"""``apply``: passes until nothing is left to do."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from reconciler.cli import report
from reconciler.cli.host import host_options, lock_records, show_tracebacks
from reconciler.cli.options import config_option, fail, output_option, read_document
from reconciler.engine.converge import Outcome
from reconciler.errors import ReconcilerError
from reconciler.node.environment import Environment
from reconciler.node.passes import LocalNode
from schemas.document import NodeNetwork

SETTLE_LIMIT_S = 60.0
"""Seconds ``apply`` gives EC2 to attach what it asked for."""


@click.command()
@config_option
@host_options
@output_option
def apply(config: Path, state_dir: Path, environment: Environment, output: str) -> None:
    """Converge once, then exit.

    Exit status: 0 in sync, 1 something is refused or left to do, 2 an error.
    """
    document = read_document(config, output)
    try:
        state, _lock = lock_records(state_dir)
        outcomes = _settle(LocalNode(state, environment), document)
    except ReconcilerError as error:
        fail(error)
    click.echo(
        report.as_json(outcomes) if output == "json" else report.remaining_text(outcomes), nl=False
    )
    show_tracebacks(outcomes)
    sys.exit(report.exit_code(outcomes, remaining=True))


def _settle(node: LocalNode, document: NodeNetwork) -> dict[str, Outcome]:
    """Run passes until nothing is left, or nothing changes any more; print what is done."""
    deadline = time.monotonic() + SETTLE_LIMIT_S
    look = True
    while True:
        pool = node.pool.run(document, look=look)
        if node.known.cloud is None:
            return {"eni": pool}  # it says why EC2 could not be read
        result = node.after.run(node.kernel_pass(document))
        outcomes = {"eni": pool} | result.outcomes
        for line in report.applied(outcomes):
            click.echo(line, err=True)
        moving = node.pool.in_transition or node.pool.schedule.is_pending or pool.remaining.actions
        look = False  # from now on only if something follows
        if not moving or pool.errors or time.monotonic() > deadline:
            return outcomes
        time.sleep(0.2)
