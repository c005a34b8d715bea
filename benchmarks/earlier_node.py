"""A program: has an earlier release converge a node that this release has laid out and wired.

With the earlier release first in PYTHONPATH, all of it is imported from there. What it says of the
node is its own ``benchmarks.testbed``'s, which since 787f3aa has had these names.
"""

from __future__ import annotations

import sys
from ipaddress import IPv4Network

from benchmarks import testbed
from lab.topology import Names


def main(name: str, pods: str, *exclude: str) -> None:
    """Converge the node of the lab ``name`` with so many pods and these excluded CIDRs."""
    for wiring in ("_wire", "ready"):
        setattr(testbed.Testbed, wiring, lambda self: None)
    setattr(testbed, "_ip", lambda lines: None)  # noqa: B010
    testbed.by_us(Names(name), int(pods), [IPv4Network(cidr) for cidr in exclude])


if __name__ == "__main__":
    main(*sys.argv[1:])
