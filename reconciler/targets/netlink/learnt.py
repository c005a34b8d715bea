"""Neighbours that the kernel has learnt on ENIs' links: looked at, and asked for again.

Sockets are opened and closed within each call, so that they never leave their thread.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from ipaddress import ip_address

from reconciler.core.datapath import IpNetwork
from reconciler.domains.neighbour import Learnt
from reconciler.errors import ApplyError
from reconciler.targets.netlink import entries
from reconciler.targets.netlink.message import KernelError, native, reading
from reconciler.targets.netlink.rtnetlink import GONE, How, Rtnetlink
from reconciler.targets.netlink.tables import LINKS, NEIGHBOURS, af_of, value_of

MAX_LEARNT = 4096
"""Entries of one look: what the kernel keeps of both families, and as many again (``gc_thresh3``
is 1024)."""

NUD_REACHABLE, NUD_STALE, NUD_DELAY, NUD_PROBE = 0x02, 0x04, 0x08, 0x10
NTF_PROXY, NTF_EXT_LEARNED, NTF_ROUTER = 0x08, 0x10, 0x80

KNOWN = NUD_REACHABLE | NUD_STALE | NUD_DELAY
"""Has a MAC that the kernel sends to, and is not being asked for."""

NOT_OURS = NTF_PROXY | NTF_EXT_LEARNED | NTF_ROUTER
"""Of another program, or a router, which IPv6 learns of by advertisements."""


def _is_learnt(neighbour: bytes) -> bool:
    state, flags = native(neighbour[8:10]), neighbour[10]  # ``struct ndmsg``
    return bool(state & KNOWN) and not flags & NOT_OURS


TABLE = NEIGHBOURS._replace(name="learnt neighbours", takes=_is_learnt)


class LearntNeighbours:
    """The neighbours of this namespace that the kernel has learnt by itself."""

    def observe(self, macs: Collection[str], networks: Iterable[IpNetwork]) -> frozenset[Learnt]:
        """Return those whose address is of some networks, on links with some MACs.

        Raises:
            ObserveError: the kernel could not be read.
        """
        networks, seen = tuple(networks), list[tuple[int, bytes]]()

        def note(entry: bytes) -> bool:
            if len(seen) < MAX_LEARNT:
                seen.append((native(entry[4:8]), value_of(TABLE, entry, "NDA_DST")))
            return False

        with reading("learnt neighbours"), Rtnetlink() as host:
            host.read_all(TABLE, takes=note)
            found = {(i, a) for i, own in seen for a in (ip_address(own),) if _is_in(a, networks)}
            names = {i: _name_of(host, i, macs) for i in {index for index, _ in found}}
        return frozenset(Learnt(i, names[i], address) for i, address in found if names[i])

    def ask_again(self, neighbours: Iterable[Learnt]) -> tuple[ApplyError, ...]:
        """Have the kernel ask for their MACs; until it is answered it sends to those it has.

        As it does itself when nothing confirms an entry. Returns what failed.
        """
        failures: list[ApplyError] = []
        with Rtnetlink() as host:
            for one in neighbours:
                try:
                    host.change(
                        NEIGHBOURS,
                        How.SET,
                        (("NDA_DST", str(one.address)),),
                        family=af_of(one.address),
                        ifindex=one.link,
                        state=NUD_PROBE,
                    )
                except KernelError as error:
                    if error.errno not in GONE:
                        failures.append(ApplyError.from_errno(str(one), error))
        return tuple(failures)


def _is_in(address: object, networks: Iterable[IpNetwork]) -> bool:
    return any(address in network for network in networks)


def _name_of(host: Rtnetlink, index: int, macs: Collection[str]) -> str:
    """Return the name of a link with one of the MACs; "" of any other."""
    for link in host.read_one(LINKS, (), index=index):
        if entries.may_be_eni(link) and value_of(LINKS, link, "IFLA_ADDRESS").hex(":") in macs:
            return entries.name_of(link).decode(errors="replace")
    return ""
