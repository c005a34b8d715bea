"""``explain``: what is computed from the document and what is known of this node."""

from __future__ import annotations

import time
from pathlib import Path

import click

from reconciler.cli.host import open_records
from reconciler.cli.options import Address, config_option, fail, state_option
from reconciler.cli.reading import read_document
from reconciler.core.datapath import IpAddress
from reconciler.diagnostics.explain import explain_address, explain_pools
from reconciler.errors import ReconcilerError
from reconciler.node import views
from reconciler.node.passes import LocalNode


@click.command()
@config_option
@state_option
def pool(config: Path, state_dir: Path) -> None:
    """Print the pool's arithmetic, and the limit that binds."""
    document = read_document(config)
    try:
        desired, cloud, refusals = views.pool(LocalNode(open_records(state_dir)), document)
    except ReconcilerError as error:
        fail(error)
    lines = [*explain_pools(desired, cloud), *(f"! {refusal}" for refusal in refusals)]
    click.echo("\n".join(lines))


@click.command()
@click.argument("destination", type=Address())
@config_option
@state_option
def address(destination: IpAddress, config: Path, state_dir: Path) -> None:
    """Say whose address DESTINATION sees of a pod's packets, and why.

    By what was last known of the sources that snat names; EC2 is not asked, and no pod is needed.
    """
    document = read_document(config)
    known = LocalNode(open_records(state_dir)).known
    try:
        facts, policies = known.identity(), known.resolve(document).snat_policies
    except ReconcilerError as error:
        fail(error)
    for group, snat in policies:
        lines = explain_address(snat, known.egress, facts, destination, time.time())
        click.echo("\n".join(f"group {group}: {line}" if group else line for line in lines))
