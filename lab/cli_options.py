"""What the lab's commands share: which lab is meant, and how a command ends that cannot go on."""

from __future__ import annotations

import sys
from typing import NoReturn

import click

name_option = click.option("--name", default="demo", show_default=True, help="Which lab.")


def fail(message: str) -> NoReturn:
    """Say why a command cannot go on, and exit 2."""
    click.echo(message, err=True)
    sys.exit(2)
