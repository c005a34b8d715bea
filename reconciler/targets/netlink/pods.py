"""Our objects in pods' namespaces. Everything else there is the pod's (decision 21)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

from reconciler.core.datapath import MAIN_TABLE, PROTOCOL, IpAddress
from reconciler.domains.address import LinkAddress
from reconciler.domains.link import PodLink
from reconciler.domains.neighbour import Neighbour
from reconciler.domains.route import Route
from reconciler.engine.observed import Observed
from reconciler.engine.plan import Key
from reconciler.errors import NamespaceError, ObserveError
from reconciler.targets.netlink import entries
from reconciler.targets.netlink.decode import Ends, KernelObject, Pairs, PodTables, decode_pod
from reconciler.targets.netlink.host import MALFORMED, connected_of, in_places, read_neighbour
from reconciler.targets.netlink.namespaces import entered
from reconciler.targets.netlink.rtnetlink import GONE, POD_BOUNDS, Rtnetlink, Told
from reconciler.targets.netlink.tables import ADDRESSES, LINKS, ROUTES, index_of

HOSTILE = (ObserveError, OSError, *MALFORMED)
"""What reading a pod's namespace may raise; it concerns that pod alone."""


@dataclass
class Inside:
    """What is wanted in one pod's namespace.

    Attributes:
        names: of links of ours; one, but for a moment.
        gateways: addresses of neighbours.
        routes: their keys.
    """

    names: set[str] = field(default_factory=set)
    gateways: set[IpAddress] = field(default_factory=set)
    routes: set[Key] = field(default_factory=set)


class SeenPod(NamedTuple):
    """What was made of a pod's tables."""

    digest: bytes
    ends: Ends
    objects: frozenset[KernelObject]


class Pods:
    """Reads pods' namespaces. Tables that have not changed are not decoded again."""

    def __init__(self) -> None:
        self._seen: dict[str, SeenPod] = {}

    def forget_all_but(self, paths: Collection[str]) -> None:
        """Forget the pods that are not on the node any more."""
        self._seen = {path: pod for path, pod in self._seen.items() if path in paths}

    def observe(self, desired: Iterable[KernelObject], pairs: Pairs) -> Observed:
        """Read every namespace that a desired object is in.

        Raises nothing: each namespace that cannot be read is named in the answer.
        """
        objects: set[KernelObject] = set()
        unread: dict[str, NamespaceError] = {}
        for path, wanted in sorted(_by_namespace(desired).items()):
            try:
                with entered(path):
                    inside = Rtnetlink(None, POD_BOUNDS)
                with inside:
                    tables = _read(inside, wanted)
                objects |= self._recognise(tables, path, pairs)
            except HOSTILE as error:
                # The pod may have anything in there, and may change it while we read.
                why = error.why if isinstance(error, ObserveError) else str(error)
                what = f"its {error.what}: " if isinstance(error, ObserveError) else ""
                unread[path] = NamespaceError(path, f"{what}{why or type(error).__name__}")
                unread[path].__cause__ = error
        return Observed(objects, unread_places=unread)

    def _recognise(self, tables: PodTables, path: str, pairs: Pairs) -> frozenset[KernelObject]:
        digest, seen = tables.digest, self._seen.get(path)
        if (
            seen is None
            or seen.digest != digest
            or any(pairs.get(end, "") != veth for end, veth in seen.ends)
        ):
            ends, objects = decode_pod(tables, path, pairs)
            seen = self._seen[path] = SeenPod(digest, ends, objects)
        return seen.objects


def _by_namespace(desired: Iterable[KernelObject]) -> dict[str, Inside]:
    wanted: dict[str, Inside] = {}
    for o in desired:
        match o:
            case PodLink():
                wanted.setdefault(o.netns, Inside()).names.add(o.name)
            case Neighbour():
                wanted.setdefault(o.netns, Inside()).gateways.add(o.address)
            case Route():
                wanted.setdefault(o.netns, Inside()).routes.add(o.key)
            case LinkAddress():
                wanted.setdefault(o.netns, Inside())
            case _:
                pass
    wanted.pop("", None)
    return wanted


def _read(inside: Rtnetlink, wanted: Inside) -> PodTables:
    link = tuple(
        message
        for name in sorted(wanted.names)
        for message in inside.read_one(LINKS, (("IFLA_IFNAME", name), *LINKS.asks), GONE)
    )
    if not link:  # nothing of ours can be without it, but what is in the place of ours can
        return PodTables(routes=_read_routes(inside, wanted.routes))
    indices = [index_of(message) for message in link]
    addresses = tuple(m for i in indices for m in inside.read_all(ADDRESSES, index=i))
    needed = any(map(entries.may_have_route, addresses))
    return PodTables(
        link,
        _read_routes(inside, wanted.routes),
        tuple(m for i in indices for m in connected_of(inside, i)) if needed else (),
        addresses,
        # Asked for one by one: the kernel keeps all neighbours of all namespaces in one table,
        # and a dump in one of them goes through those of all (``neigh_dump_table``).
        tuple(
            message
            for index in indices
            for gateway in sorted(wanted.gateways, key=attrgetter("version"))
            for message in read_neighbour(inside, gateway, index)
        ),
    )


def _read_routes(inside: Rtnetlink, keys: Iterable[Key]) -> Told:
    """Read our routes, and what is in the place of a desired one that is missing."""
    ours = inside.read_all(ROUTES, (("RTA_TABLE", MAIN_TABLE),), proto=PROTOCOL)
    missing = entries.places_of(keys).difference(map(entries.place_of, ours))
    return ours + in_places(inside, missing)
