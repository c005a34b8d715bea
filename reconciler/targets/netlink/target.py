"""The kernel's network objects through rtnetlink: what is there, and changes of it.

Sockets are opened and closed within each call, so that they never leave their thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reconciler.domains.link import Veth
from reconciler.engine.observed import Observed
from reconciler.engine.plan import Change, Verb
from reconciler.errors import ApplyError, InternalError, boundary
from reconciler.targets.netlink.decode import KernelObject, Pairs
from reconciler.targets.netlink.message import KernelError, reading
from reconciler.targets.netlink.queries import Queries
from reconciler.targets.netlink.read import Host, Pods, observe_places
from reconciler.targets.netlink.rtnetlink import GONE, Rtnetlink
from reconciler.targets.netlink.write import Sessions, apply_one


class Netlink(Queries):
    """Links, addresses, neighbours, routes and rules of this namespace and of pods'."""

    def __init__(self) -> None:
        super().__init__()
        self._host = Host()
        self._pods = Pods()
        self._pairs: Pairs = {}

    def observe(self, desired: Iterable[KernelObject]) -> Observed:
        """Read the host's objects, and those of every pod namespace a desired object is in.

        Of ENIs' links and their addresses only those are shown that are desired, or over which
        something desired leads; of other owners' routes only those in the place of a desired one;
        and of neighbours only those of desired addresses.

        Raises:
            ObserveError: the host's links could not be read.
        """
        desired = list(desired)
        seen, self._pairs = self._host.observe(desired)
        self._pods.forget_all_but({o.pod_netns for o in desired if isinstance(o, Veth)})
        return seen.with_these(self._pods.observe(desired, self._pairs))

    def observe_at(self, places: Iterable[KernelObject]) -> Observed:
        """Read what is in the places of these objects of pods, and their namespaces.

        Of the host nothing is dumped, so the cost does not grow with other pods.

        Raises:
            ObserveError: the kernel could not be read.
        """
        places = list(places)
        with reading("links and routes of single pods"), Rtnetlink() as host:
            objects, pairs = observe_places(host, places)
        return Observed(objects).with_these(self._pods.observe(places, pairs))

    def observe_inside(self, places: Iterable[KernelObject]) -> Observed:
        """Read only pods' namespaces, by what the last look at the host has found of their links.

        Raises nothing: each namespace that cannot be read is named in the answer.
        """
        return self._pods.observe(places, self._pairs)

    def apply(self, actions: Sequence[Change[KernelObject]]) -> tuple[ApplyError, ...]:
        """Carry out actions in order, each namespace entered once; return what failed."""
        failures: list[ApplyError] = []
        with Sessions() as sessions:
            for action in actions:
                try:
                    with boundary("apply of a kernel object"):
                        try:
                            apply_one(sessions, action)
                        except OSError as error:
                            is_gone = isinstance(error, KernelError) and error.errno in GONE
                            if not (is_gone and action.verb is Verb.DELETE):
                                failures.append(ApplyError.from_errno(str(action), error))
                except InternalError as error:  # of this object: no other waits for it
                    failures.append(ApplyError.from_surprise(str(action), error))
        return tuple(failures)
