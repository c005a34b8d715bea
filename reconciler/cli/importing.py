"""``import``: the document for what people have of amazon-vpc-cni-k8s."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from reconciler.importing import stock_settings
from reconciler.importing.translate import translate
from reconciler.importing.written import write

FILE = click.Path(path_type=Path, allow_dash=True, readable=False)
"""What cannot be read is said by ``import`` itself; click calls it wrong usage."""


@click.command("import")
@click.argument("files", nargs=-1, type=FILE)
def import_(files: tuple[Path, ...]) -> None:
    """Write the document that does what amazon-vpc-cni-k8s is set to.

    FILES, or standard input: the DaemonSet aws-node and ENIConfigs as kubectl prints them, values
    of the Helm chart aws-vpc-cni, the configuration of the EKS add-on; YAML or JSON, mixed.

    Each line says which variable it came from. What has no counterpart is listed below the
    document.

    Exit status: 0 written, 2 not.
    """
    try:
        settings = stock_settings.read([_read(file) for file in files or (Path("-"),)])
    except OSError as error:
        click.echo(f"{error.filename}: cannot be read: {str(error.strerror).lower()}", err=True)
        sys.exit(2)
    except (stock_settings.SettingsError, UnicodeDecodeError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    lines, notes = translate(settings)
    for line in write(lines, notes):
        click.echo(line)
    if notes:
        click.echo(f"{len(notes)} notes on what differs are below the document", err=True)


def _read(file: Path) -> tuple[str, str]:
    """Read an input, one byte beyond what is allowed at most."""
    if str(file) == "-":
        content = sys.stdin.buffer.read(stock_settings.MAX_BYTES + 1)
        return "standard input", content.decode()
    with file.open("rb") as opened:
        return str(file), opened.read(stock_settings.MAX_BYTES + 1).decode()
