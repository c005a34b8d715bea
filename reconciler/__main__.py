"""``python -m reconciler`` is ``node-network``."""

import signal


def enter() -> None:
    """Run the command line.

    Its modules take a second to load. Ctrl-C then ends the process as it ends any other; Python
    would print where it was.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from reconciler.cli.main import run_command_line

    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run_command_line()


if __name__ == "__main__":
    enter()
