"""``explain``: the commands below it by name. A command's module is imported when it is run."""

from __future__ import annotations

from importlib import import_module

import click

MODULES = {
    "address": "reconciler.cli.explain_node",
    "condition": "reconciler.cli.explain_condition",
    "pool": "reconciler.cli.explain_node",
}
"""The module of each. Of conditions alone nothing is imported that takes long."""


class Subjects(click.Group):
    """The commands of ``MODULES``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name them."""
        return list(MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one."""
        if cmd_name not in MODULES:
            return None
        found = getattr(import_module(MODULES[cmd_name]), cmd_name)
        assert isinstance(found, click.Command)
        return found


@click.group(cls=Subjects)
def explain() -> None:
    """Explain why something of the node is as it is, with the numbers."""
