"""``explain``: the node's state, with the numbers."""

from __future__ import annotations

from pathlib import Path

import click

from reconciler.cli.host import open_records
from reconciler.cli.options import config_option, fail, read_document, state_option
from reconciler.diagnostics.explain import explain_pool
from reconciler.errors import ReconcilerError
from reconciler.ipam.pool_status import find_pool_status
from reconciler.node.passes import LocalNode


@click.group()
def explain() -> None:
    """Explain the node's state, with the numbers."""


@explain.command()
@config_option
@state_option
def pool(config: Path, state_dir: Path) -> None:
    """Print the pool's arithmetic, and the limit that binds."""
    document = read_document(config)
    try:
        outcome = LocalNode(open_records(state_dir)).pool.run(document, dry=True)
    except ReconcilerError as error:
        fail(error)
    if outcome.errors:
        fail(outcome.errors[0])
    lines = explain_pool(outcome.desired, find_pool_status(outcome.desired, outcome.observed))
    lines += [f"! {refusal}" for refusal in outcome.remaining.refusals]
    click.echo("\n".join(lines))
