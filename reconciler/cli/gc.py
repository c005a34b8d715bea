"""``gc``: delete ENIs that nodes have leaked."""

from __future__ import annotations

import time
from pathlib import Path

import click

from reconciler.cli.options import config_option, fail, read_document
from reconciler.errors import ReconcilerError
from reconciler.ipam.cloud import CLUSTER_TAG
from reconciler.ipam.ec2_action import DeleteEni
from reconciler.ipam.leak import judge
from reconciler.node.environment import collector
from schemas.load import DocumentError, Problem


@click.command()
@config_option
@click.option("--dry-run", is_flag=True, help="List, delete nothing.")
@click.option(
    "--apart",
    "apart_s",
    default=5.0,
    show_default=True,
    help="Seconds between the two observations that must both show an ENI.",
)
def gc(config: Path, *, dry_run: bool, apart_s: float) -> None:
    """Delete ENIs that nodes of this cluster have leaked; any node or CI job may run it.

    Exit status: 0 done, 2 an error.
    """
    document = read_document(config)
    if not document.cluster:
        fail(DocumentError([Problem(str(config), 0, 0, "cluster", "is not named; gc needs it")]))
    try:
        ec2 = collector()
        first = ec2.leaked({CLUSTER_TAG: document.cluster})
        time.sleep(apart_s if first else 0)
        second = ec2.leaked({CLUSTER_TAG: document.cluster}) if first else []
    except ReconcilerError as error:
        fail(error)
    doomed = []
    for verdict in judge(first, second, now=time.time()):
        word = "keep" if not verdict.leaked else "would delete" if dry_run else "delete"
        click.echo(f"{word} {verdict.eni.eni_id}: {verdict.why}")
        if verdict.leaked and not dry_run:
            doomed.append(DeleteEni(verdict.eni.eni_id, verdict.why))
    for failure in ec2.apply(doomed):
        fail(failure)
