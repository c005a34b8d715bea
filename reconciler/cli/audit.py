"""``audit``: what document, records, kernel and EC2 disagree about."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from reconciler.cli import report
from reconciler.cli.host import host_options, open_records
from reconciler.cli.options import config_option, fail, output_option, read_document
from reconciler.errors import ReconcilerError
from reconciler.node import views
from reconciler.node.environment import Environment
from reconciler.node.passes import LocalNode


@click.command()
@config_option
@host_options
@click.option(
    "--apart",
    "apart_s",
    default=3.0,
    show_default=True,
    help="Seconds between the two observations that must both show a disagreement.",
)
@output_option
def audit(
    config: Path, state_dir: Path, environment: Environment, apart_s: float, output: str
) -> None:
    """Show where document, intents, records, kernel, nftables and EC2 disagree.

    Unlike diff, it also checks invariants: no address of two pods, none that is used during its
    cooldown, none that EC2 has taken away. Nothing is changed. Changes in progress disagree for a
    moment, so a disagreement counts if two observations show it. Findings about other owners'
    objects are printed on stderr, and change no exit status.

    Exit status: 0 all agree, 1 they do not, 2 an error.
    """
    document = read_document(config, output)
    node = LocalNode(open_records(state_dir), environment)
    try:
        outcomes = views.diff(node, document)
        found = views.audit(node, document, outcomes)
        others = (*views.findings(node, document, outcomes), *report.findings(outcomes))
        if found:
            time.sleep(apart_s)
            before = {(f.subject, f.reason) for f in found}
            found = tuple(
                f for f in views.audit(node, document) if (f.subject, f.reason) in before
            )
    except ReconcilerError as error:
        fail(error)
    if output == "json":
        click.echo(report.findings_json(found), nl=False)
    else:
        for finding in found:
            click.echo(f"! {report.finding_line(finding)}")
    for finding in dict.fromkeys(f for f in others if f not in found):
        click.echo(f"! {report.finding_line(finding)}", err=True)
    sys.exit(1 if found else 0)
