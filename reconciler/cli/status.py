"""``status``: the running reconciler's state."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
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
    click.echo(json.dumps(body, indent=2) if output == "json" else _as_text(body))
    sys.exit(0 if body["settled"] and not body["conditions"] else 1)


def _as_text(body: Mapping[str, Any]) -> str:
    """What ``status`` prints."""
    document = body["document"]
    # The condition below says why.
    refused = "; the file has changed since and is refused" if document["refused"] else ""
    lines = [
        f"document     {document['path']} (generation {document['generation']}{refused})",
        f"settled      {'yes' if body['settled'] else 'no'}",
    ]
    pool = body["pool"]
    lines.append(f"pool         {', '.join(f'{count} {state}' for state, count in pool.items())}")
    for eni in body["enis"]:
        owner = "" if eni["owned"] else ", foreign"
        lines.append(
            f"eni          {eni['id']} device {eni['device']}, {eni['status']}, "
            f"{eni['addresses']} addresses{_prefixes(eni)}{owner}"
        )
    lines += [
        f"attachment   {' '.join(a['addresses'])} on {a['eni']} ({a['veth']}): {a['pod']}"
        for a in body["attachments"]
    ]
    if body["cooling"]:
        lines.append(f"cooling      {', '.join(body['cooling'])}")
    lines += [
        f"condition    {c['reason']} since {c['since']}: {c['subject']}: {_condition_text(c)}"
        for c in body["conditions"]
    ]
    return "\n".join(lines)


def _condition_text(condition: Mapping[str, Any]) -> str:
    """Leave out subject and reason, which the line has already: an action's error has both."""
    text = str(condition["text"])
    for said in (condition["subject"], condition["reason"]):
        text = text.removeprefix(f"{said}: ")
    return text


def _prefixes(eni: dict[str, Any]) -> str:
    return f", {' '.join(eni['prefixes'])}" if eni["prefixes"] else ""
