"""``python -m reconciler`` is ``node-network``."""

from reconciler.cli import run_command_line

if __name__ == "__main__":
    run_command_line()
