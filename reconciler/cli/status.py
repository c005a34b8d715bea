"""``status`` and ``retry``: what the running reconciler is asked."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from cni.exchange import SOCKET
from reconciler.cli.options import fail, output_option, state_option
from reconciler.daemon.client import ask
from reconciler.errors import ReconcilerError


@click.command()
@state_option
@output_option
def status(state_dir: Path, output: str) -> None:
    """Show the running reconciler's state; with -o json, its metrics too.

    Exit status: 0 settled, without conditions; 1 not; 2 no reconciler answers.
    """
    try:
        body = ask(state_dir / SOCKET, {"do": "status"})["status"]
    except ReconcilerError as error:
        fail(error)
    if output == "json":
        click.echo(json.dumps(body, indent=2))
    else:
        click.echo("\n".join(f"{about:<12} {text}" for about, text in _lines(body)))
    sys.exit(0 if body["settled"] and not body["conditions"] else 1)


@click.command()
@state_option
def retry(state_dir: Path) -> None:
    """Have the running reconciler try again at once what EC2 or the kernel has refused.

    For when the cause is mended: a policy allows the call, a quota was raised. Without it the
    reconciler tries again by itself, after the time that the condition names.

    Exit status: 0 it does so now; 2 no reconciler answers.
    """
    try:
        ask(state_dir / SOCKET, {"do": "retry"})
    except ReconcilerError as error:
        fail(error)


def _lines(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    document = body["document"]
    # The condition below says why.
    refused = "; the file has changed since and is refused" if document["refused"] else ""
    which = f"generation {document['generation']}, accepted {document['acceptedAt']}"
    yield "document", f"{document['path']} ({which}{refused})"
    yield "settled", "yes" if body["settled"] else "no"
    yield "pool", ", ".join(f"{count} {state}" for state, count in body["pool"].items())
    for e in body["enis"]:
        prefixes = f", {' '.join(e['prefixes'])}" if e["prefixes"] else ""
        more = prefixes + ("" if e["owned"] else ", foreign")
        more += f", group {e['group']}" if e["group"] else ""
        where = f"{e['id']} device {e['device']}, {e['status']}"
        yield "eni", f"{where}, {e['addresses']} addresses{more}"
    for s in body["sources"]:
        age = "never" if s["ageSeconds"] is None else f"{s['ageSeconds']} s ago"
        failed = f"; since then {s['failure']}" if s["failure"] else ""
        yield "source", f"{s['name']}: {s['entries']} CIDRs, as EC2 told {age}{failed}"
    for a in body["attachments"]:
        yield "attachment", f"{' '.join(a['addresses'])} on {a['eni']} ({a['veth']}): {a['pod']}"
    if any(body["packetsRefused"].values()):
        counted = body["packetsRefused"].items()
        yield "refused", ", ".join(f"{n} packets {why}" for why, n in counted if n)
    if body["cooling"]:
        yield "cooling", ", ".join(body["cooling"])
    for c in body["conditions"]:
        text = str(c["text"])
        # An action's error says again what the line has already.
        for said in (c["subject"], c["reason"]):
            text = text.removeprefix(f"{said}: ")
        yield "condition", f"{c['reason']} since {c['since']}: {c['subject']}: {text}"
