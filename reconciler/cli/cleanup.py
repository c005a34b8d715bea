"""``cleanup``: what an uninstallation takes from this node."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from reconciler.cli import report, report_json
from reconciler.cli.host import host_options, lock_records, open_records
from reconciler.cli.options import fail, keep_option, output_option
from reconciler.engine.converge import Outcomes
from reconciler.engine.plan import Verb
from reconciler.errors import ReconcilerError, StateError
from reconciler.node.cleanup import Cleanup, staying
from reconciler.node.environment import Environment
from reconciler.node.passes import LocalNode
from schemas.load import load

DOCUMENT = """\
apiVersion: node-network/v1alpha1
kind: NodeNetwork
families: [ipv4, ipv6]
"""
"""What is looked for. The node's own may be gone by now; it decides on none of what is removed."""

MAX_NAMED = 10  # pods that are named


@click.command()
@host_options
@keep_option
@click.option("--yes", is_flag=True, help="Remove it; without, it is only shown.")
@click.option("--force", is_flag=True, help="Also while pods are alive: they lose their network.")
@output_option
def cleanup(
    state_dir: Path,
    environment: Environment,
    keep_dir: str,
    output: str,
    *,
    yes: bool,
    force: bool,
) -> None:
    """Show what an uninstallation removes from this node; with --yes, remove it.

    Rules, routes, links of pods, the nftables table, rules of ours in others' forward chains,
    the CNI configuration and executable, the records. ENIs stay, as do settings (sysctls). The
    reconciler must not run, and there must be no pods.

    Exit status: 0 nothing is left, 1 something is (or would be removed), 2 an error or refused.
    """
    kept = Path(keep_dir or state_dir)
    try:
        found = Cleanup(
            LocalNode(open_records(state_dir), environment), load(DOCUMENT, "cleanup"), kept
        )
        outcomes = found.plan()
        if yes and any(o.plan.actions or o.errors for o in outcomes.values()):
            state, _lock = lock_records(state_dir, keep_dir)
            found = Cleanup(LocalNode(state, environment), load(DOCUMENT, "cleanup"), kept)
            if found.pods and not force:
                fail(StateError(f"{_alive(found.pods)}: drain the node first, or see --force"))
            for outcomes in found.remove():
                for line in report.applied(outcomes):
                    click.echo(line, err=True)
    except ReconcilerError as error:
        fail(error)
    if output == "json":
        click.echo(report_json.as_json(outcomes), nl=False)
    else:
        click.echo(report.as_text(outcomes, remaining=yes), nl=False)
    for line in _notes(found, outcomes, yes=yes):
        click.echo(line, err=True)
    report.show_tracebacks(outcomes)
    sys.exit(report.exit_code(outcomes, remaining=yes))


def _notes(found: Cleanup, outcomes: Outcomes, *, yes: bool) -> list[str]:
    """Say what stays, and what is in the way."""
    notes = [
        f"= {o.kind:<11} {o.command(Verb.CREATE)}  # stays: {why}" for o, why in staying(outcomes)
    ]
    if found.enis:
        notes.append(
            f"= eni         {', '.join(found.enis)}  # stays: is deleted with the instance; "
            "'node-network gc', from another node of the cluster, deletes what was left behind"
        )
    if found.pods and not yes:
        notes.append(f"! {_alive(found.pods)}: --yes will refuse; drain the node first")
    return notes


def _alive(pods: tuple[str, ...]) -> str:
    more = f" and {len(pods) - MAX_NAMED} more" if len(pods) > MAX_NAMED else ""
    return f"{len(pods)} pods are alive ({', '.join(pods[:MAX_NAMED])}{more})"
