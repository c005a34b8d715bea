"""The document of a command that reads one by itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NoReturn

import click

from reconciler.cli.options import fail
from schemas.document import NodeNetwork
from schemas.load import DocumentError, load, read, read_stream
from schemas.manifest import find_document


def read_document(path: Path, output: str = "text") -> NodeNetwork:
    """Return the document, of standard input for ``-``; end the command if it is not valid.

    It may stand in the manifest of a ConfigMap.
    """
    return read_placed(path, output)[0]


def read_placed(path: Path, output: str = "text") -> tuple[NodeNetwork, str]:
    """Return the same, and its text, by which each part's place can be found."""
    try:
        is_piped = str(path) == "-"
        text = read_stream(sys.stdin.buffer, "-") if is_piped else read(path)
        found = find_document(text, str(path))
        try:
            return load(found.text, found.source), "\n" * found.line + found.text
        except DocumentError as error:
            raise found.placed(error) from None
    except DocumentError as error:
        refuse(error, output)


def refuse(error: DocumentError, output: str) -> NoReturn:
    """End the command by what is wrong with the document."""
    if output == "json":
        names = {"file": "source"} | {n: n for n in ("line", "column", "path", "message")}
        problems = [{k: getattr(p, name) for k, name in names.items()} for p in error.problems]
        click.echo(json.dumps({"errors": problems}, indent=2))
    fail(error)
