"""Command lines of ours in README and docs: each command, and each option, is there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from reconciler.cli.main import main

ROOT = Path(__file__).parents[1]
PAGES = [
    *(p for p in sorted((ROOT / "docs").rglob("*.md")) if p.parent.name != "reference"),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "deploy/README.md")),
]
CODE = re.compile(r"^```\w*\n(.*?)^```|^ {4,}(\S[^\n]*)$|`([^`\n]+)`", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(
    r"(?:^|-- |\| |&& |\$\(|exec |^[$#] )node-network (?=[a-z-])(.*?)(?= -- |$)", re.MULTILINE
)
END = re.compile(r"\s+(?:[|&>;#)]|2>)|\)(?:$|[ ;])|…|\.\.\.")
"""Where a command line ends in a shell's, or in a text that leaves the rest out."""


def command_lines(text: str) -> Iterator[str]:
    """Yield what stands after ``node-network`` where that is a command, as far as it is told."""
    for found in CODE.finditer(text.replace("\\\n", " ")):
        code = next(part for part in found.groups() if part is not None)
        for line in code.splitlines():
            for command in COMMAND.finditer(re.sub(r"^\s*[$#] ", "", line.strip())):
                yield END.split(command[1])[0].strip()


def fault(line: str) -> str:
    """Say what a command line names that is not there; "" if all of it is.

    Names with commas or bars between them are one command each.
    """
    if listed := re.fullmatch(r"((?:[a-z-]+ )+)([a-z-]+(?:(?:, |\|)[a-z-]+)+)", line):
        found = (fault(listed[1] + name) for name in re.split(r", |\|", listed[2]))
        return next(filter(None, found), "")
    try:
        words = shlex.split(line)
    except ValueError as error:
        return str(error)
    command: click.Command = main
    context = click.Context(main)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name = words.pop(0)
        if re.fullmatch("[A-Z]+", name):
            return ""  # a word that stands for any of them
        found = command.get_command(context, name)
        if found is None:
            return f"{command.name} has no command {name}"
        command = found
    known = {opt for p in command.params for opt in (*p.opts, *p.secondary_opts)}
    known |= {"-h", "--help"}
    named = [w.partition("=")[0] for w in words if re.match("--?[a-z]", w)]
    wrong = [w for w in named if w not in known]
    return f"{command.name} has no option {', '.join(wrong)}" if wrong else ""


def test_a_wrong_line_is_found() -> None:
    text = "`node-network dif`, `node-network explain pod, root`, or\n\n"
    text += "    # node-network lab exec node1 -- node-network diff \\\n      --pool=1\n"
    assert [fault(line) for line in command_lines(text)] == [
        "main has no command dif",
        "explain has no command root",
        "",
        "diff has no option --pool",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_line_on_a_page_can_be_typed(page: Path) -> None:
    wrong = {line: fault(line) for line in command_lines(page.read_text())}
    assert {line: why for line, why in wrong.items() if why} == {}
