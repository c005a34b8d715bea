"""Commands by name: a command's module is imported when it is run, or asked for its own help."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, ClassVar

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class NamedGroup(click.Group):
    """A group of commands, of which it knows names, modules and one line each.

    So a list of them costs no import: all modules take most of a second.
    """

    modules: ClassVar[Mapping[str, str]] = {}
    summaries: ClassVar[Mapping[str, str]] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name them."""
        return list(self.modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        if cmd_name not in self.list_commands(ctx):
            return None
        name = cmd_name.replace("-", "_")
        # What modules are made of stays. To look for garbage in it would be a sixth of a start.
        gc.disable()
        try:
            module = import_module(self.modules[cmd_name])
        finally:
            gc.freeze()
            gc.enable()
        # A keyword of Python's, or a name of a built-in thing, has a line below it there.
        found = getattr(module, name, None) or getattr(module, f"{name}_")
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one line on each."""
        with formatter.section("Commands"):
            formatter.write_dl([(n, self.summaries[n]) for n in self.list_commands(ctx)])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return commands and options that begin so."""
        from click.shell_completion import CompletionItem

        names = [n for n in self.list_commands(ctx) if n.startswith(incomplete)]
        found = [CompletionItem(n, help=self.summaries[n]) for n in names]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]
