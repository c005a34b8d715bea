"""``connectivity``: whether packets of a pod come where they should, and why not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from reconciler.cli.host import open_records
from reconciler.cli.options import config_option, fail, output_option, state_option
from reconciler.cli.reading import read_document
from reconciler.cli.screen import screen_of
from reconciler.diagnostics.connectivity import MOST_TARGETS, Answer, Target, parse, rows, unfit
from reconciler.diagnostics.trace import Query, find_pod
from reconciler.errors import ReconcilerError
from reconciler.node.passes import LocalNode
from reconciler.node.views import follow, survey
from reconciler.targets.netlink.probe import probe

WORDS = {True: "ok", False: "FAIL", None: "FAIL"}

NOTHING = "a trace finds nothing in the way on this node; 'trace --vpc' goes on in the VPC"

OTHER_FAMILY = "families and egressFamilies of the document say which addresses pods get"

Row = tuple[Target, Answer, tuple[str, ...]]
"""What was tried, what was seen, and why it fails, as far as a trace knows."""


@click.command()
@click.argument("pod")
@click.argument("targets", nargs=-1)
@config_option
@state_option
@output_option
def connectivity(
    pod: str, targets: tuple[str, ...], config: Path, state_dir: Path, output: str
) -> None:
    """Send packets from POD's namespace, and say of each target whether it was reached.

    Tried are this node, another pod of it, instance metadata, and TARGETS: ADDRESS (a refusal
    shows that packets come and go), ADDRESS:PORT, or dns:ADDRESS. So are named a pod of another
    node, a host of the VPC, a service, and what is on the internet. What is not reached is traced
    for the reason.

    Exit status: 0 all were reached, 1 some were not, 2 an error.
    """
    document = read_document(config, output)
    node = LocalNode(open_records(state_dir))
    try:
        named = [parse(text) for text in targets]
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if len(named) > MOST_TARGETS:
        raise click.UsageError(f"{len(named)} targets are more than {MOST_TARGETS}")
    try:
        inputs = survey(node, document)
        who = find_pod(inputs.attachments, pod)
        if who is None:
            raise click.UsageError("name a pod; the host needs no test of ours")
        tried = list(rows(inputs, who, named))
        seen = probe(who.netns, tried)
        lost = [t for t in tried if not seen[t].reached]
        traces = follow(node, document, lambda _: [_query(who, t) for t in lost]) if lost else ()
    except ReconcilerError as error:
        fail(error)
    why = {
        target: (*t.planned.troubles, *t.differences, *t.obstacles, *t.planned.hints)
        for target, t in zip(lost, traces, strict=True)
    }
    untried: list[Row] = [(t, answer, (OTHER_FAMILY,)) for t, answer in unfit(who, named)]
    _print([*((t, seen[t], why.get(t, ())) for t in tried), *untried], output)
    sys.exit(1 if lost or untried else 0)


def _query(pod: object, target: Target) -> Query:
    number = 17 if target.is_dns else 6
    return Query(pod, target.address, protocol=number, port=target.port)  # type: ignore[arg-type]


def _print(found: list[Row], output: str) -> None:
    if output == "json":
        body = [
            {
                "target": t.name,
                "address": str(t.address),
                "port": t.port,
                "reached": bool(a.reached),
                "text": a.text,
                "why": list(why),
            }
            for t, a, why in found
        ]
        click.echo(json.dumps({"format": 1, "rows": body}, indent=2))
        return
    screen = screen_of(sys.stdout)
    for t, a, why in found:
        text = f"{t.name} ({t.address} port {t.port}): {a.text}"
        for line in screen.wrap(text, f"{WORDS[a.reached]:<6}", " " * 6):
            click.echo(line)
        causes = why if why or a.reached else (NOTHING,)
        for each in causes:
            for line in screen.wrap(each, "      because: ", " " * 8):
                click.echo(line)
