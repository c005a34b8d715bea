"""``node-network``: the commands by name.

Exit codes: 0 done or in sync; 1 differs, or refused; 2 the document, the usage, the host or EC2
does not allow it; 128 and the signal's number for what was interrupted, or has lost its reader.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib.util import find_spec
from typing import Any

import click

from reconciler.cli.group import NamedGroup
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

SUMMARIES = {
    "status": "Show the running reconciler's state.",
    "explain": "Say why something of the node is as it is.",
    "doctor": "Check whether this node has what it needs.",
    "trace": "Show how a pod's packets are routed and translated.",
    "connectivity": "Send packets from a pod, and say what they reach.",
    "diff": "Show what differs from the document.",
    "validate": "Check a document without touching anything.",
    "apply": "Converge once, then exit.",
    "run": "Reconcile this node until SIGTERM (the daemon).",
    "retry": "Try again at once what EC2 or the kernel has refused.",
    "audit": "Show where document, records, kernel and EC2 disagree.",
    "sysdump": "Write an archive with what maintainers need of a node.",
    "import": "Write the document for what amazon-vpc-cni-k8s is set to.",
    "render": "Print the effective document for one node.",
    "max-pods": "Print how many pods kubelet should take on this node.",
    "gc": "Delete ENIs that nodes of this cluster have leaked.",
    "cleanup": "Show what an uninstallation removes, or remove it.",
    "lab": "A VPC on this machine, to try things in.",
}
"""What each is for, in one line of ``--help`` and of what shells complete."""

OBSERVING = frozenset(
    {
        *("apply", "audit", "connectivity", "diff", "doctor", "explain", "gc", "max-pods"),
        *("sysdump", "trace"),
    }
)
"""Commands that observe by themselves, and so may take as much memory as the daemon."""


class Commands(NamedGroup):
    """The commands of ``MODULES``."""

    modules, summaries = MODULES, SUMMARIES

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands that are installed."""
        return [c for c in super().list_commands(ctx) if c != "lab" or find_spec("lab")]

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
    except Exception as error:  # noqa: BLE001 - the top level: all there is to say is where
        sys.excepthook(type(error), error, error.__traceback__)
        click.echo("node-network: internal error; please report it with the lines above", err=True)
        code = 2
    sys.exit(code if isinstance(code, int) else 0)
