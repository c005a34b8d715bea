"""``python -m reconciler`` is ``node-network``."""

from reconciler.cli import main

if __name__ == "__main__":
    main(prog_name="node-network")
