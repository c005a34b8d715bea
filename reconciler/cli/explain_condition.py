"""``explain condition``: what a reason means, and what to do."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from reconciler.cli.explained import Told, rows, show
from reconciler.cli.options import fail, output_option, state_option
from reconciler.cli.screen import screen_of
from reconciler.daemon.client import ask_status
from reconciler.diagnostics.reasons import catalogue, ec2, node
from reconciler.errors import UnansweredError

MOST_SHOWN = 8  # conditions of one reason that are printed

Conditions = list[Mapping[str, Any]]


@click.command()
@click.argument("name", required=False)
@state_option
@output_option
def condition(name: str | None, state_dir: Path, output: str) -> None:
    """Say what a condition, a finding or a refused ADD means, and what to do.

    NAME is its reason, as `status`, the log, a CNI error or a metric has it. Without it, every
    condition that the running reconciler has now is explained.

    Exit status: 0 explained; 2 no reason is called so, or no reconciler answers and none is named.
    """
    why = ""
    try:
        known: Conditions = ask_status(state_dir)["conditions"]
    except UnansweredError as error:
        if name is None:
            fail(error)
        known, why = [], str(error)
    now = datetime.now(UTC)
    reasons = [name] if name is not None else list(dict.fromkeys(c["reason"] for c in known))
    found = [tuple(explained(reason, known, now, why)) for reason in reasons]
    for reason, said in zip(reasons, found, strict=True):
        if not said:
            near = ", ".join(catalogue.alike(reason))
            meant = f"; did you mean {near}?" if near else ""
            click.echo(f"no reason is called {reason!a}{meant}", err=True)
            sys.exit(2)
    if output == "json":
        told = [
            Told(r, said[0][1], rows(said[1:])) for r, said in zip(reasons, found, strict=True)
        ]
        show(output, "condition", name, told)
    elif not found:
        click.echo("no condition: nothing is wrong that the reconciler knows of")
    else:
        screen = screen_of(sys.stdout)
        click.echo("\n\n".join("\n".join(screen.table(said)) for said in found))


def explained(
    reason: str, conditions: Iterable[Mapping[str, Any]], now: datetime, why: str = ""
) -> Iterator[tuple[str, str]]:
    """Yield headings and texts about a reason; nothing if there is none of that name.

    Args:
        reason: in any case of letters.
        conditions: as ``status`` has them.
        now: to say how long ago they began.
        why: no reconciler answers, if none does.
    """
    here = [c for c in conditions if str(c["reason"]).lower() == reason.lower()]
    entry = catalogue.find(reason) or (ec2.UNKNOWN if here else None)
    if entry is None:
        return
    is_form = entry in (ec2.UNKNOWN, node.ERRNO)
    yield from catalogue.lines(reason if is_form else entry.reason, entry)
    for c in here[:MOST_SHOWN]:
        since = str(c["since"])
        yield "now", f"{c['subject']}: {c['text']} (since {since}, {age(since, now)})"
    if more := len(here[MOST_SHOWN:]):
        yield "now", f"and {more} more of this reason"
    if not here:
        yield "now", f"not known: {why}" if why else "no condition of this reason"


def age(since: str, now: datetime) -> str:
    """Say how long ago a time of ``status`` was, in its two largest units."""
    try:
        seconds = max(int((now - datetime.fromisoformat(since)).total_seconds()), 0)
    except (ValueError, TypeError):
        return "an unknown time ago"
    for size, unit, below, less in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if seconds >= size:
            rest = f" {seconds % size // below} {less}" if seconds % size >= below else ""
            return f"{seconds // size} {unit}{rest} ago"
    return f"{seconds // 60} min {seconds % 60} s ago" if seconds >= 60 else f"{seconds} s ago"
