"""A host with two ENIs and two pods in namespaces, and how to fill and shake them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from builders import attachment, inputs
from conftest import namespace, plug

from lab import netns
from reconciler.domains import address, link, neighbour, route, rule
from reconciler.domains.link import Veth
from reconciler.engine.plan import Change, Verb
from reconciler.targets.netlink.target import Netlink

MANY = 30_000
"""Routes of others: more than are read of a pod."""


@dataclass
class Node:
    """A host with two ENIs and two pods, all in place."""

    target: Netlink
    home: str
    pods: tuple[str, str]
    wanted: frozenset[Any]

    def of(self, pod: int) -> set[Any]:
        """What is wanted in a pod's namespace."""
        path = str(netns.path(self.pods[pod]))
        return {o for o in self.wanted if getattr(o, "netns", "") == path}

    def on_host(self) -> set[Any]:
        return {o for o in self.wanted if not getattr(o, "netns", "")}


@contextmanager
def a_node() -> Iterator[Node]:
    """Make one, with everything of it in place."""
    with (
        namespace("home") as home,
        namespace("poda") as one,
        namespace("podb") as other,
        namespace("vpc") as vpc,
        netns.inside(home),
    ):
        for index in (0, 1):
            plug(f"02:aa:00:00:00:0{index}", f"eth{index}", vpc)
        bound = tuple(
            attachment(n, 1, netns=str(netns.path(p))) for n, p in ((1, one), (2, other))
        )
        now = inputs(2, bound)
        target = Netlink()
        for domain in (link, address, neighbour, route, rule):
            wanted = domain.desire(now)
            assert (
                target.apply(
                    [
                        Change(Verb.CREATE, o, "test")
                        for o in sorted(wanted, key=lambda o: (o.kind != Veth.kind, o.key))
                    ]
                )
                == ()
            )
        everything = frozenset(
            o for d in (link, address, neighbour, route, rule) for o in d.desire(now)
        )
        yield Node(target, home, (one, other), everything)


def batch(where: str, lines: list[str]) -> None:
    """Have ``ip`` carry out many commands at once."""
    argv = ["ip", "-netns", where, "-force", "-batch", "-"]
    done = subprocess.run(
        argv, input="\n".join(lines), text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]


def routes(count: int, device: str, words: str) -> list[str]:
    return [
        f"route add 198.{18 + n // 65536}.{n // 256 % 256}.{n % 256}/32 dev {device} {words}"
        for n in range(count)
    ]
