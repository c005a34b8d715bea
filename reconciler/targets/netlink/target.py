"""The kernel's network objects through rtnetlink: what is there, and changes of it.

Sockets are opened and closed within each call, so that they never leave their thread.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any, Final

from reconciler.domains.address import LinkAddress
from reconciler.domains.link import EniLink, PodLink, Veth
from reconciler.domains.neighbour import Neighbour
from reconciler.domains.route import Route
from reconciler.domains.rule import Rule
from reconciler.engine.converge import Observed
from reconciler.engine.plan import Change, Verb
from reconciler.errors import ApplyError, InternalError, boundary
from reconciler.targets.netlink import tables
from reconciler.targets.netlink.decode import KernelObject, Pairs
from reconciler.targets.netlink.learnt import LearntNeighbours
from reconciler.targets.netlink.message import KernelError, reading
from reconciler.targets.netlink.namespaces import entered, open_namespace
from reconciler.targets.netlink.queries import Queries
from reconciler.targets.netlink.read import Host, Pods, observe_places
from reconciler.targets.netlink.removals import Removals
from reconciler.targets.netlink.rtnetlink import GONE, How, Rtnetlink
from reconciler.targets.netlink.tables import ADDRESSES, LINKS, NEIGHBOURS, ROUTES, RULES, af_of


class Netlink(Queries):
    """Links, addresses, neighbours, routes and rules of this namespace and of pods'.

    ``learnt`` are neighbours that are no objects: the kernel has learnt of them by itself.
    ``removals`` are pods' links that a thread of its own deletes, if there is one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.learnt: Final = LearntNeighbours()
        self.removals: Final = Removals()
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
        """Carry out actions in order, each namespace entered once; return what failed.

        A pod's link may be still there afterwards, if it is one of ``removals``.
        """
        failures: list[ApplyError] = []
        made = {a.key for a in actions if a.kind == Veth.kind and a.verb is Verb.CREATE}
        with Sessions() as sessions:
            for action in actions:
                try:
                    with boundary("apply of a kernel object"):
                        try:
                            link = action.object
                            if isinstance(link, Veth) and link.key not in made:
                                leaves = action.verb is Verb.DELETE
                                if leaves and self._takes(sessions, link.name):
                                    continue
                            apply_one(sessions, action)
                        except OSError as error:
                            is_gone = isinstance(error, KernelError) and error.errno in GONE
                            if not (is_gone and action.verb is Verb.DELETE):
                                failures.append(ApplyError.from_errno(str(action), error))
                except InternalError as error:  # of this object: no other waits for it
                    failures.append(ApplyError.from_surprise(str(action), error))
        return tuple(failures)

    def _takes(self, sessions: Sessions, name: str) -> bool:
        removals = self.removals
        return removals.apart and removals.take(sessions.index("", name), name)


class Sessions(ExitStack):
    """Sockets by namespace, opened when first needed, closed together."""

    def __init__(self) -> None:
        super().__init__()
        self._open: dict[str, Rtnetlink] = {}
        self._index: dict[tuple[str, str], int] = {}

    def __call__(self, path: str) -> Rtnetlink:
        """Return the socket into a namespace, "" for the host's; ``OSError`` if it is gone."""
        if path not in self._open:
            with entered(path):
                self._open[path] = self.enter_context(Rtnetlink())
        return self._open[path]

    def index(self, path: str, name: str) -> int:
        """Return a link's index; raise what the socket does, and ENODEV if there is none."""
        if (path, name) not in self._index:
            (told,) = self(path).read_one(LINKS, (("IFLA_IFNAME", name),), ())
            self._index[path, name] = tables.index_of(told)
        return self._index[path, name]

    def forget(self) -> None:
        """Look indices up again: links come and go."""
        self._index.clear()


def apply_one(sessions: Sessions, action: Change[KernelObject]) -> None:
    """Carry out one action; ``OSError`` if the kernel refuses, or a namespace is gone."""
    deleting = action.verb is Verb.DELETE
    match action.object:
        case EniLink() as link:
            own = ("IFLA_MTU", link.mtu), ("IFLA_GROUP", link.group)
            _set_link(sessions(""), link.name, link.up, *own)
        case Veth() | PodLink() as link if deleting:
            sessions.forget()
            where = sessions(link.netns if isinstance(link, PodLink) else "")
            where.change(LINKS, How.DELETE, (("IFLA_IFNAME", link.name),))
        case Veth() as veth:
            _apply_veth(sessions, veth, action.was, creating=action.verb is Verb.CREATE)
        case PodLink() as link:
            settings = ("IFLA_ADDRESS", link.mac), ("IFLA_MTU", link.mtu)
            _set_link(sessions(link.netns), link.name, link.up, *settings)
        case LinkAddress() as address:
            _apply_address(sessions, action.verb, address)
        case Neighbour() as neighbour:
            sessions(neighbour.netns).change(
                NEIGHBOURS,
                How.DELETE if deleting else How.REPLACE,
                (("NDA_DST", str(neighbour.address)), ("NDA_LLADDR", neighbour.mac)),
                family=af_of(neighbour.address),
                ifindex=sessions.index(neighbour.netns, neighbour.device),
                state=tables.NUD_PERMANENT,
            )
        case Route() as route:
            _apply_route(sessions, route, deleting=deleting)
        case Rule() as rule:
            _apply_rule(sessions(""), rule, deleting=deleting)


def _set_link(where: Rtnetlink, name: str, up: bool, *settings: tuple[str, Any]) -> None:
    flags = tables.IFF_UP if up else 0
    attributes = (("IFLA_IFNAME", name), *settings)
    where.change(LINKS, How.SET, attributes, flags=flags, change=tables.IFF_UP)


def _apply_veth(
    sessions: Sessions, veth: Veth, was: KernelObject | None, *, creating: bool
) -> None:
    host = sessions("")
    sessions.forget()
    if isinstance(was, Veth) and was.name != veth.name:
        index = sessions.index("", was.name)
        # Before Linux 6.2 a link that is up keeps its name (dev_change_name).
        host.change(LINKS, How.SET, (), index=index, change=tables.IFF_UP)
        host.change(LINKS, How.SET, (("IFLA_IFNAME", veth.name),), index=index)
        sessions.forget()
    if isinstance(was, Veth) and was.mtu != veth.mtu and veth.pod_netns:
        _set_peers_mtu(sessions, veth)
    settings: tables.Attributes = (
        ("IFLA_ADDRESS", veth.mac),
        ("IFLA_MTU", veth.mtu),
        ("IFLA_GROUP", veth.group),
    )
    if creating:
        # The peer is born in the pod's namespace: moving it there later costs an RCU grace period.
        fd = open_namespace(veth.pod_netns)
        try:
            peer = (
                ("IFLA_IFNAME", veth.pod_name),
                ("IFLA_ADDRESS", veth.pod_mac),
                ("IFLA_MTU", veth.mtu),
                ("IFLA_NET_NS_FD", fd),
            )
            data = ("IFLA_INFO_DATA", (("VETH_INFO_PEER", peer),))
            kind = ("IFLA_LINKINFO", (("IFLA_INFO_KIND", "veth"), data))
            host.change(LINKS, How.CREATE, (("IFLA_IFNAME", veth.name), *settings, kind))
        finally:
            os.close(fd)
        settings = ()  # given at its creation
    # By a message of its own: a new link is not up yet, and a new alias of one that is up makes
    # the kernel go through every IPv6 route there is (NETDEV_CHANGE, rt6_sync_down_dev).
    alias = (("IFLA_IFNAME", veth.name), *settings, ("IFLA_IFALIAS", veth.alias))
    host.change(LINKS, How.SET, (*alias, _accept_local(veth)))
    _set_link(host, veth.name, veth.up)


def _accept_local(veth: Veth) -> tuple[str, Any]:
    """Spell the setting as /proc/sys/net/ipv4/conf has it, so that it needs no file of its own."""
    setting = ("IPV4_DEVCONF_ACCEPT_LOCAL", int(veth.accept_local))
    return "IFLA_AF_SPEC", (("AF_INET", (("IFLA_INET_CONF", (setting,)),)),)


def _set_peers_mtu(sessions: Sessions, veth: Veth) -> None:
    """Give the pod's end the same MTU, whatever the pod calls it by now.

    An MTU is the pair's: what is longer than the receiving end's is dropped silently
    (``is_skb_forwardable``).
    """
    for told in sessions("").read_one(LINKS, (("IFLA_IFNAME", veth.name),), ()):
        peer = tables.decode_entry(LINKS, told).get("link")
        mtu = ("IFLA_MTU", veth.mtu)
        sessions(veth.pod_netns).change(LINKS, How.SET, (mtu,), index=peer)


def _apply_address(sessions: Sessions, verb: Verb, address: LinkAddress) -> None:
    where = sessions(address.netns)
    own = str(address.address)
    flags = 0 if address.connected_route else tables.IFA_F_NOPREFIXROUTE
    flags |= tables.IFA_F_NODAD if address.address.version == 6 else 0
    attributes = (("IFA_LOCAL", own), ("IFA_ADDRESS", own), ("IFA_FLAGS", flags))
    fields = {
        "family": af_of(address.address),
        "prefixlen": address.prefix_length,
        "index": sessions.index(address.netns, address.device),
    }
    if verb is not Verb.CREATE:
        # The kernel does not change IFA_F_NOPREFIXROUTE of an IPv4 address in place.
        where.change(ADDRESSES, How.DELETE, attributes, **fields)
    if verb is not Verb.DELETE:
        where.change(ADDRESSES, How.CREATE, attributes, **fields)


def _apply_route(sessions: Sessions, route: Route, *, deleting: bool) -> None:
    where = sessions(route.netns)
    attributes: tables.Attributes = (("RTA_TABLE", route.table),)
    if route.destination.prefixlen:
        attributes += (("RTA_DST", str(route.destination.network_address)),)
    if route.metric:
        attributes += (("RTA_PRIORITY", route.metric),)
    # To delete it, too: without the way the first one in that place goes.
    if route.device or not deleting:
        attributes += (("RTA_OIF", sessions.index(route.netns, route.device)),)
    if route.gateway:
        attributes += (("RTA_GATEWAY", str(route.gateway)),)
    fields = {
        "family": af_of(route.destination),
        "dst_len": route.destination.prefixlen,
        "proto": route.protocol,
        "tos": route.tos,
    }
    if deleting:
        # Without a scope the kernel would look for one of scope "universe" only.
        how, fields["scope"] = How.DELETE, tables.SCOPE_NOWHERE
    else:
        if route.source:
            attributes += (("RTA_PREFSRC", str(route.source)),)
        how, fields["type"] = How.REPLACE, tables.RTN_UNICAST
        fields["scope"] = tables.SCOPE_UNIVERSE if route.gateway else tables.SCOPE_LINK
    where.change(ROUTES, how, attributes, **fields)


def _apply_rule(host: Rtnetlink, rule: Rule, *, deleting: bool) -> None:
    if deleting and rule.told:
        # The first one goes that has what is named: with less than all it may be another one.
        host.send(RULES, How.DELETE, rule.told)
        return
    attributes: tables.Attributes = (
        ("FRA_PRIORITY", rule.priority),
        ("FRA_TABLE", rule.table),
        ("FRA_PROTOCOL", rule.protocol),
    )
    told = dict(word.partition("=")[::2] for word in rule.extra.split(","))
    fields = {
        "family": tables.AF[rule.family],
        "action": int(told.get("action", tables.FR_ACT_TO_TBL)),
    }
    if rule.mark is not None:
        attributes += (("FRA_FWMARK", rule.mark), ("FRA_FWMASK", rule.mask))
    if rule.source is not None:
        attributes += (("FRA_SRC", str(rule.source.network_address)),)
        fields["src_len"] = rule.source.prefixlen
    try:
        how = How.DELETE if deleting else How.CREATE
        host.change(RULES, how, attributes, **fields)
    except KernelError as error:
        if deleting or error.errno != errno.EEXIST:
            raise
