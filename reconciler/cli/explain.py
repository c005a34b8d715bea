"""``explain``: the commands below it by name. A command's module is imported when it is run."""

from __future__ import annotations

from importlib import import_module

import click

MODULES = {
    "address": "reconciler.cli.explain_node",
    "condition": "reconciler.cli.explain_condition",
    "pod": "reconciler.cli.explain_node",
    "pool": "reconciler.cli.explain_node",
    "route": "reconciler.cli.explain_node",
    "rule": "reconciler.cli.explain_node",
    "set": "reconciler.cli.explain_node",
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
        name = "set_" if cmd_name == "set" else cmd_name  # a built-in one
        found = getattr(import_module(MODULES[cmd_name]), name)
        assert isinstance(found, click.Command)
        return found


@click.group(cls=Subjects)
def explain() -> None:
    """Explain why something of the node is as it is, with the numbers."""
