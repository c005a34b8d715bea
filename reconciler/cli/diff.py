"""``diff``: the plan of a pass."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from reconciler.cli import report
from reconciler.cli.host import host_options, open_records, show_tracebacks
from reconciler.cli.options import advice, config_option, fail, output_option, read_document
from reconciler.errors import ReconcilerError
from reconciler.node import views
from reconciler.node.environment import Environment
from reconciler.node.passes import LocalNode


@click.command()
@config_option
@host_options
@output_option
def diff(config: Path, state_dir: Path, environment: Environment, output: str) -> None:
    """Show what differs from the document, and change nothing.

    Findings about other owners' objects are printed on stderr, and change no exit status.

    Exit status: 0 in sync, 1 something differs, 2 an error.
    """
    document = read_document(config, output)
    node = LocalNode(open_records(state_dir), environment)
    try:
        outcomes = views.diff(node, document)
        findings = [*views.findings(node, document, outcomes), *report.findings(outcomes)]
    except ReconcilerError as error:
        fail(error)
    if output == "json":
        click.echo(report.as_json(outcomes, findings), nl=False)
    else:
        click.echo(report.as_text(outcomes), nl=False)
        # They are no differences, so they are no part of the plan and of the exit status.
        for finding in findings:
            click.echo(f"! {report.finding_line(finding)}", err=True)
        for line in report.foreign(outcomes):
            click.echo(line, err=True)
    if summary := report.summary(outcomes):
        click.echo(summary, err=True)
    show_tracebacks(outcomes)
    for cure in {advice(e) for o in outcomes.values() for e in o.errors} - {""}:
        click.echo(f"node-network{cure.replace(';', ':', 1)}", err=True)
    sys.exit(report.exit_code(outcomes))
