"""What several commands take, and how they end: the document, the state directory, errors."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NoReturn

import click

from cni.protocol import DEFAULT_STATE_DIR
from reconciler.errors import InternalError
from schemas.document import NodeNetwork
from schemas.load import DocumentError, load, read

CONFIG = "/etc/node-network/node-network.yaml"

NEEDS = "run as root, with CAP_NET_ADMIN and CAP_SYS_ADMIN"

PATH = click.Path(path_type=Path, readable=False)
"""What cannot be read is said by whoever reads it, with what to do; click calls it wrong usage."""

config_option = click.option(
    "-f",
    "--config",
    "config",
    type=PATH,
    envvar="NODE_NETWORK_CONFIG",
    show_envvar=True,
    default=CONFIG,
    show_default=True,
    help="The NodeNetwork document.",
)
state_option = click.option(
    "--state-dir",
    "state_dir",
    type=PATH,
    envvar="NODE_NETWORK_STATE_DIR",
    show_envvar=True,
    default=DEFAULT_STATE_DIR,
    show_default=True,
    help="Intents, attachments and the socket.",
)
output_option = click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True
)


def read_document(path: Path, output: str = "text") -> NodeNetwork:
    """Return the document; end the command if it is not valid."""
    try:
        return load(read(path), str(path))
    except DocumentError as error:
        refuse(error, output)


def refuse(error: DocumentError, output: str) -> NoReturn:
    """End the command by what is wrong with the document."""
    if output == "json":
        problems = [
            {
                "file": p.source,
                "line": p.line,
                "column": p.column,
                "path": p.path,
                "message": p.message,
            }
            for p in error.problems
        ]
        click.echo(json.dumps({"errors": problems}, indent=2))
    fail(error)


def fail(error: Exception) -> NoReturn:
    """End the command by an error."""
    if isinstance(error, InternalError):
        click.echo(error.trace, err=True)
    click.echo(f"{error}{advice(error)}", err=True)
    sys.exit(2)


def advice(error: Exception) -> str:
    """Say what a user without rights can do, if the error itself does not."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, PermissionError):
        cause = cause.__cause__
    return "" if cause is None or "run as root" in str(error) else f"; {NEEDS}"
