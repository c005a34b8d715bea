"""The MACs that the kernel has learnt of others in the VPC, which it is made to ask for again.

The kernel takes any progress of a TCP connection for a proof that it sends to the right MAC, also
of a pod's connection that it only forwards: the packet's mark for that (``dst_pending_confirm``)
survives the way out of the pod's namespace. So an entry that is wrong, because its address went to
an ENI of another node, may never be asked for again (decision 31).
"""

from __future__ import annotations

from collections.abc import Callable

from reconciler.domains.neighbour import Learnt, choose_to_ask
from reconciler.node.environment import LearntTarget
from reconciler.node.gathering import Known


class NeighboursAgain:
    """Has the kernel ask for each of them once a minute.

    ``clock``: monotonic seconds.
    """

    def __init__(self, target: LearntTarget, known: Known, clock: Callable[[], float]) -> None:
        self._target, self._known, self._clock = target, known, clock
        self._asked: dict[Learnt, float] = {}

    def turn(self) -> None:
        """Ask for those whose time has come; not before it is known which ENIs there are.

        The VPC's router is left out: its MAC stays, and all traffic goes by it.

        Raises:
            ObserveError: the kernel could not be read.
            ApplyError: it has refused one.
        """
        facts, cloud = self._known.facts, self._known.cloud
        if facts is None or cloud is None:
            return
        enis = [e for e in cloud.enis if e.owned and e.device_index is not None]
        routers = {e.gateway for e in enis}
        seen = self._target.observe({e.mac for e in enis}, facts.vpc_cidrs)
        now = self._clock()
        asked = {n: self._asked[n] for n in seen if n in self._asked}
        due = choose_to_ask((n for n in seen if n.address not in routers), asked, now)
        self._asked = asked | dict.fromkeys(due, now)
        if failures := self._target.ask_again(due):
            raise failures[0]
