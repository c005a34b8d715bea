"""``status`` and ``retry``: what the running reconciler is asked."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from cni.exchange import SOCKET
from reconciler.cli.options import fail, output_option, state_option
from reconciler.cli.screen import screen_of
from reconciler.cli.status_text import as_text
from reconciler.daemon.client import ask, ask_status
from reconciler.errors import ReconcilerError, UnansweredError

AGAIN_S = 2.0  # seconds between two looks of ``status --watch``

CLEAR = "\x1b[H\x1b[2J\x1b[3J"
"""To the upper left corner; clear the screen, and what was scrolled out (console_codes(4))."""

FORMAT = 1  # of the answer that is understood here, as ``schemas.status`` publishes it


@click.command()
@state_option
@output_option
@click.option(
    "-w", "--watch", is_flag=True, help="Go on until Ctrl-C, with a look every two seconds."
)
def status(state_dir: Path, output: str, *, watch: bool) -> None:
    """Show the running reconciler's state; with -o json, its metrics too.

    For root, and for members of the group that the reconciler was started with (--status-group).

    Exit status: 0 settled, without conditions; 1 not; 2 no reconciler answers.
    """
    if watch:
        for text in _look_again(state_dir, output):
            click.echo(text, nl=False)
    try:
        body = ask_status(state_dir)
        text = json.dumps(body, indent=2) + "\n" if output == "json" else _as_text(body)
    except ReconcilerError as error:
        fail(error)
    click.echo(text, nl=False)
    sys.exit(0 if body["settled"] and not body["conditions"] else 1)


def _look_again(state_dir: Path, output: str) -> Iterator[str]:
    """Yield what to print, without end: a screen each time, or a line of JSON.

    A reconciler that does not answer is said, and asked again: it may be starting.
    """
    while True:
        where = screen_of(sys.stdout)
        try:
            body = ask_status(state_dir)
            text = json.dumps(body) + "\n" if output == "json" else _as_text(body)
        except ReconcilerError as error:
            text = json.dumps({"error": str(error)}) if output == "json" else str(error)
            text += "\n"
        yield text if output == "json" else f"{CLEAR if where.width else ''}{text}"
        time.sleep(AGAIN_S)


def _as_text(body: Mapping[str, Any]) -> str:
    if body.get("formatVersion") != FORMAT:
        why = "the reconciler that runs is of another release; restart it, or see -o json"
        raise UnansweredError(why)
    return as_text(body, screen_of(sys.stdout))


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
