"""``python -m reconciler`` is ``node-network``."""

import gc
import signal
import sys

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
    """Start what the daemon will wait for, before it imports anything of its own.

    Another process checks the document for it, so that its model can be the plain one.
    """
    gc.disable()  # nothing that is imported is garbage; the daemon enables it
    import schemas
    from schemas.process import CHECKERS

    schemas.checks = False
    CHECKERS.start()


if __name__ == "__main__":
    enter()
