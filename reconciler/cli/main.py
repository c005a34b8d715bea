"""``node-network``: the commands by name. A command's module is imported when it is run.

Exit codes: 0 done or in sync; 1 differs, or refused; 2 the document, the usage, the host or EC2
does not allow it; 128 and the signal's number for what was interrupted, or has lost its reader.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from importlib import import_module
from importlib.util import find_spec
from keyword import iskeyword
from typing import Any

import click

from reconciler.cli.memory import yield_to_daemon

NO_READER, INTERRUPTED = 128 + signal.SIGPIPE, 128 + signal.SIGINT
"""Exit codes of what did not come to its end, as shells have them. 1 would say "it differs"."""

MODULES = {
    "status": "reconciler.cli.status",
    "explain": "reconciler.cli.explain",
    "doctor": "reconciler.cli.doctor",
    "trace": "reconciler.cli.trace",
    "connectivity": "reconciler.cli.connectivity",
    "diff": "reconciler.cli.node",
    "validate": "reconciler.cli.document",
    "apply": "reconciler.cli.apply",
    "run": "reconciler.cli.run",
    "retry": "reconciler.cli.status",
    "audit": "reconciler.cli.node",
    "sysdump": "reconciler.cli.sysdump",
    "import": "reconciler.cli.importing",
    "render": "reconciler.cli.document",
    "max-pods": "reconciler.cli.node",
    "gc": "reconciler.cli.node",
    "cleanup": "reconciler.cli.cleanup",
    "lab": "lab.cli",
}
"""The module of each command. ``--help`` lists them in this order: first what one reaches for when
something is wrong, last what removes. The lab's is there only where its package is installed: a
node has no use for it."""

OBSERVING = frozenset(
    {
        *("apply", "audit", "connectivity", "diff", "doctor", "explain", "gc", "max-pods"),
        *("sysdump", "trace"),
    }
)
"""Commands that observe by themselves, and so may take as much memory as the daemon."""


class Commands(click.Group):
    """The commands of ``MODULES``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands that are installed."""
        return [c for c, module in MODULES.items() if find_spec(module.partition(".")[0])]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        if cmd_name not in self.list_commands(ctx):
            return None
        name = f"{cmd_name}_" if iskeyword(cmd_name) else cmd_name.replace("-", "_")
        # What modules are made of stays. To look for garbage in it would be a sixth of a start.
        gc.disable()
        try:
            found = getattr(import_module(MODULES[cmd_name]), name)
        finally:
            gc.enable()
        assert isinstance(found, click.Command)
        return found

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; click would exit 1 if the reader of its output has gone."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # What Python still has in its buffer would fail once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(NO_READER)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="node-network")
def main() -> None:
    """Pod networking for Kubernetes on AWS: one document, one planner, converged."""


def run_command_line() -> None:
    """Run ``main``; a bug of ours must not look like a difference, so it never exits 1.

    Python exits 1 after an uncaught exception, which is what ``diff`` says when something differs.
    """
    code: Any
    if OBSERVING.intersection(sys.argv[1:2]) and (why := yield_to_daemon()):
        click.echo(f"node-network: {why}.", err=True)
        sys.exit(2)
    try:
        code = main(prog_name="node-network", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort:
        click.echo("interrupted", err=True)
        code = INTERRUPTED
    except MemoryError:
        click.echo("node-network: out of memory: the daemon's is left to the daemon", err=True)
        code = 2
    except OSError as error:
        # Of the host: a disk that is full, output that cannot be written.
        click.echo(f"node-network: cannot go on: {error}", err=True)
        code = 2
    except Exception:  # noqa: BLE001 - the top level: the traceback is all there is to say
        traceback.print_exc()
        click.echo("node-network: internal error; please report it with the lines above", err=True)
        code = 2
    sys.exit(code if isinstance(code, int) else 0)
