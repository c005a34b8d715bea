"""``python -m lab.kubernetes``: a cluster to look into, until it is interrupted."""

from __future__ import annotations

import signal
import sys

from lab.kubernetes.cluster import cluster, remove_left


def main() -> None:
    """Make a cluster with the shipped manifest, say how to look into it, and wait."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if sys.argv[1:] == ["clean"]:
        remove_left(say)
        return
    try:
        with cluster(say) as made:
            made.deploy()
            say(f"kubectl: {' '.join(made.kubectl_command())}")
            for node in made.nodes.values():
                say(f"{node.name}: {' '.join(node.machine.enter())}")
                say(f"  logs: {node.machine.logs}")
            say("Ctrl-C removes it")
            signal.pause()
    except KeyboardInterrupt:
        say("removed")


def say(text: str) -> None:
    """Print a line at once."""
    print(f"e2e: {text}", flush=True)  # noqa: T201 - a command line


if __name__ == "__main__":
    main()
