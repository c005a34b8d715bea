"""``python -m reconciler`` is ``node-network``."""

import gc
import os
import signal
import sys
from pathlib import Path

DAEMON = "run"  # the command


def enter() -> None:
    """Run the command line.

    Its modules take a second to load. Ctrl-C then ends the process as it ends any other; Python
    would print where it was.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.argv[1:2] == [DAEMON] and not {"-h", "--help"} & {*sys.argv}:
        _begin_daemon()
    from reconciler.cli.main import run_command_line

    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run_command_line()


def _begin_daemon() -> None:
    """Start what the daemon will wait for, then import it.

    Another process checks the document for it, so that its model can be the plain one.
    """
    gc.disable()  # nothing that is imported is garbage; the daemon enables it
    import schemas
    from reconciler.daemon.unused import left_out
    from schemas.process import CHECKERS

    schemas.checks = False
    CHECKERS.start()
    # Without a look at EC2 that is remembered, no pod is served before EC2 has answered.
    if not Path(_state_dir(), "look.json").exists():
        from reconciler.targets.ec2.caller import EARLY

        EARLY.start()
    with left_out():
        import reconciler.cli.run  # noqa: F401


def _state_dir() -> str:
    """Return ``--state-dir`` as most write it; a wrong guess costs a process that ends soon."""
    given = dict(zip(sys.argv, sys.argv[1:], strict=False)).get("--state-dir")
    return given or os.environ.get("NODE_NETWORK_STATE_DIR") or "/run/node-network"


if __name__ == "__main__":
    enter()
