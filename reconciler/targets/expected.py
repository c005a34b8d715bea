"""Which notifications of the kernel say nothing new: they are about what was just seen, or done.

Whatever is done for a pod the kernel tells everybody, us too, and tells some of it on behalf of no
socket (a link's carrier, its IPv6 routes). So a notification is known by what it says, not by who
has caused it: it is explained if it shows an object as it is expected, or the end of one that is
not. What is about rules and nftables of other owners is for the look at these. All else, and what
cannot be understood, is for a full pass to look at (decision 37).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import ip_address, ip_network

from reconciler.core.datapath import FLOWS, PROTOCOL, TABLE
from reconciler.domains.link import Link, Veth, is_owned
from reconciler.domains.nat_objects import NftElement, NftLink
from reconciler.domains.nat_rules import LINKS as POD_LINKS
from reconciler.domains.nat_rules import SETS
from reconciler.domains.route import Route
from reconciler.engine.converge import Outcome
from reconciler.engine.plan import Key, Verb
from reconciler.targets.netlink import decode, entries, nf_tables, tables
from reconciler.targets.netlink.message import HEADER, attributes, native, split
from reconciler.targets.netlink.nfnetlink import FAMILIES, HEADERS, NFNL_SUBSYS_NFTABLES
from reconciler.targets.nftables import table

RTM_NEWLINK, RTM_DELLINK = 16, 17
RTM_NEWADDR, RTM_DELADDR = 20, 21
RTM_NEWROUTE, RTM_DELROUTE = 24, 25
RTM_NEWRULE, RTM_DELRULE = 32, 33
RTM_NEWNETCONF, RTM_DELNETCONF = 80, 81  # linux/rtnetlink.h
NETCONFA_IFINDEX = 1  # linux/netconf.h

REGISTERED = 0xFFFFFFFF
"""``ifi_change`` of the first notification of a new link (``rtmsg_ifinfo``)."""

AUTOMATIC = tuple(ip_network(n) for n in ("fe80::/10", "ff00::/8"))
"""Networks to which the kernel adds addresses and routes by itself, with each link."""

PLAIN = frozenset(
    {POD_LINKS}.union(*({s.pods, s.pod_eni, s.guarded, s.no_metadata} for s in SETS.values()))
)
"""Sets of single elements that pods have."""

MALFORMED = (struct.error, ValueError, KeyError, IndexError, OSError)


class Verdict(Enum):
    """What some notifications are.

    ``OTHERS``: besides what is explained, rules or rulesets of other owners have changed.
    ``UNDECIDED``: a link is being made or removed, and what comes next says what for.
    """

    EXPLAINED = "explained"
    OTHERS = "others"
    UNDECIDED = "undecided"
    NEWS = "news"


@dataclass
class Expected:
    """The host's objects as passes have last seen them, or left them.

    Attributes:
        is_whole: whether the last full pass has seen everything in its place.
        links: by name.
        elements: of the sets that pods have elements of, by set and key.
    """

    is_whole: bool = False
    links: dict[str, Link] = field(default_factory=dict)
    routes: dict[Key, Route] = field(default_factory=dict)
    elements: dict[tuple[str, bytes], NftElement | NftLink] = field(default_factory=dict)

    def learn(self, outcomes: Mapping[str, Outcome], *, settled: bool) -> None:
        """Take over what a full pass has seen; nothing is expected if it has left something."""
        self.links.clear()
        self.routes.clear()
        self.elements.clear()
        self.is_whole = settled
        for outcome in outcomes.values() if settled else ():
            self._add(outcome)

    def follow(self, outcomes: Mapping[str, Outcome], gone: Iterable[object] = ()) -> None:
        """Take over what a pass over some pods has done; ``gone`` is not wanted any more.

        The runtime removes a pod's namespace after DEL, and what the pod had goes with it: no pass
        deletes that.
        """
        for o in gone:
            self._remove(o)
        for outcome in outcomes.values():
            for action in outcome.plan.actions:
                if action.verb is Verb.DELETE:
                    self._remove(getattr(action, "object", None))
            self._add(outcome)

    def _add(self, outcome: Outcome) -> None:
        for o in outcome.desired if isinstance(outcome.desired, frozenset) else ():
            match o:
                case Route(netns=""):
                    self.routes[o.key] = o
                case NftElement() | NftLink() if o.set in PLAIN:
                    self.elements[o.set, table.key_of(o)] = o
                case _ if isinstance(o, Link) and not getattr(o, "netns", ""):
                    self.links[o.name] = o

    def _remove(self, o: object) -> None:
        match o:
            case Route(netns=""):
                self.routes.pop(o.key, None)
            case NftElement() | NftLink():
                self.elements.pop((o.set, table.key_of(o)), None)
            case Veth():
                self.links.pop(o.name, None)
            case _:
                pass

    def judge(self, told: Iterable[bytes], name_of: Callable[[int], str]) -> Verdict:
        """Say what notifications are; in the order in which they came.

        Args:
            told: what sockets have received.
            name_of: names a link by its index; "" if there is none.
        """
        if not self.is_whole:
            return Verdict.NEWS
        try:
            return _Judgement(self, name_of).of(list(_messages(told)))
        except MALFORMED:
            return Verdict.NEWS


def _messages(told: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    for data in told:
        for kind, _, _, _, body in split(data):
            yield kind, body


@dataclass
class _Event:
    """What one notification says of a link."""

    is_gone: bool
    is_up: bool
    is_first: bool
    link: Link | None


class _Judgement:
    """One look at some notifications."""

    def __init__(self, expected: Expected, name_of: Callable[[int], str]) -> None:
        self._expected = expected
        self._name_of = name_of
        self._events: dict[int, list[_Event]] = {}
        self._elements: dict[tuple[str, bytes], bool] = {}
        self._routes: dict[Key, tuple[bool, int, Route]] = {}
        self._settings: list[int] = []
        self._ended: list[int] = []
        self._of_others = False

    def of(self, messages: list[tuple[int, bytes]]) -> Verdict:
        """Say what they are."""
        if not all(self._hear(kind, body) for kind, body in messages):
            return Verdict.NEWS
        verdicts = {
            *(self._of_link(events) for events in self._events.values()),
            *(self._of_route(key, *last) for key, last in self._routes.items()),
            *(_explained(self._is_gone(i) or not self._is_ours(i)) for i in self._ended),
            *(_explained(self._is_a_pods(i)) for i in self._settings),
            *(
                _explained(is_there is (place in self._expected.elements))
                for place, is_there in self._elements.items()
            ),
        }
        for verdict in (Verdict.NEWS, Verdict.UNDECIDED):
            if verdict in verdicts:
                return verdict
        return Verdict.OTHERS if self._of_others else Verdict.EXPLAINED

    def _hear(self, kind: int, body: bytes) -> bool:
        """Take over one notification; return whether it can be anything but news."""
        if kind >> 8 == NFNL_SUBSYS_NFTABLES:
            return self._hear_nft(kind & 0xFF, body)
        entry = body[HEADER.size :]
        if kind in (RTM_NEWLINK, RTM_DELLINK):
            return self._hear_link(entry, is_gone=kind == RTM_DELLINK)
        if kind in (RTM_NEWADDR, RTM_DELADDR):
            facts = tables.decode_entry(tables.ADDRESSES, entry)
            if kind == RTM_DELADDR:
                self._ended.append(facts["index"])
            return _is_automatic(str(decode.address_of(facts)))
        if kind in (RTM_NEWROUTE, RTM_DELROUTE):
            return self._hear_route(entry, is_gone=kind == RTM_DELROUTE)
        if kind in (RTM_NEWNETCONF, RTM_DELNETCONF):
            index = dict(attributes(entry, 4))[NETCONFA_IFINDEX]
            self._settings.append(native(index, signed=True))
            return self._settings[-1] > 0
        if kind in (RTM_NEWRULE, RTM_DELRULE):
            return self._hear_others(not entries.is_stamped(entry))
        return False

    def _hear_others(self, is_theirs: bool) -> bool:
        self._of_others |= is_theirs
        return is_theirs

    def _hear_link(self, entry: bytes, *, is_gone: bool) -> bool:
        facts = tables.decode_entry(tables.LINKS, tables.comparable(tables.LINKS, entry))
        if facts["family"]:
            return False  # what a bridge says of its port
        link = decode.decode_link(facts, set())
        is_first = facts["change"] == REGISTERED and not is_gone
        is_up = bool(facts["flags"] & tables.IFF_UP)
        events = self._events.setdefault(facts["index"], [])
        events.append(_Event(is_gone, is_up, is_first, link))
        return link is not None

    def _of_link(self, events: list[_Event]) -> Verdict:
        """Say what was heard of one link.

        With a link that goes, or is down, go routes whose end the kernel does not tell of.
        """
        *before, last = events
        assert last.link is not None
        name = last.link.name
        wanted = self._expected.links.get(name)
        is_ours = isinstance(last.link, Veth) and is_owned(last.link)
        if wanted is None:
            if is_ours and last.is_gone:
                return Verdict.EXPLAINED
            return Verdict.UNDECIDED if is_ours and not last.is_up else Verdict.NEWS
        if last.is_gone:
            return Verdict.NEWS
        is_new = events[0].is_first
        was_up = False
        for event in before:
            was_up = was_up or event.is_up
            if event.is_gone or (event.link != wanted and (was_up or not is_new)):
                return Verdict.NEWS
        if last.link == wanted:
            return Verdict.EXPLAINED
        return Verdict.UNDECIDED if is_new and not was_up and not last.is_up else Verdict.NEWS

    def _hear_route(self, entry: bytes, *, is_gone: bool) -> bool:
        facts = tables.decode_entry(tables.ROUTES, entry)
        way = facts.get("oif") or 0
        if facts["proto"] == tables.RTPROT_KERNEL and _is_automatic(facts.get("dst") or ""):
            if is_gone:
                self._ended.append(way)
            return True
        route = decode.decode_route(facts, "", {way: self._name(way)})
        if route is None or route.protocol != PROTOCOL:
            return False
        self._routes[route.key] = is_gone, way, route
        return True

    def _of_route(self, key: Key, is_gone: bool, way: int, route: Route) -> Verdict:
        """Say what was last heard of one place: a pod's address may be a later one's by now."""
        if wanted := self._expected.routes.get(key):
            return _explained(not is_gone and route == wanted)
        return _explained(is_gone or self._is_gone(way))

    def _hear_nft(self, kind: int, body: bytes) -> bool:
        if kind == nf_tables.NFT_MSG_NEWGEN:
            return True  # what has changed was told before
        found = dict(attributes(body, HEADERS))
        owner = found[nf_tables.NFTA_TABLE].rstrip(b"\0")
        if kind == nf_tables.NFT_MSG_NEWFLOWTABLE and owner == FLOWS.encode():
            return True  # a pod's link in the fast path, which each full pass looks at
        if FAMILIES.get(body[HEADER.size]) != "inet" or owner != TABLE.encode():
            return self._hear_others(True)
        is_there = kind == nf_tables.NFT_MSG_NEWSETELEM
        if not is_there and kind != nf_tables.NFT_MSG_DELSETELEM:
            return False
        name = nf_tables.text(found[nf_tables.NFTA_SET_ELEM_LIST_SET].rstrip(b"\0"))
        if name not in PLAIN:
            return False
        for _, content in attributes(found[nf_tables.NFTA_SET_ELEM_LIST_ELEMENTS]):
            if (read := table.read_element(content)) is None:
                return False
            key, goto, value = read
            wanted = self._expected.elements.get((name, key))
            if is_there and wanted and table.leading_to(wanted, goto, value) != wanted:
                return False
            self._elements[name, key] = is_there
        return True

    def _name(self, index: int) -> str:
        known = (e.link.name for e in reversed(self._events.get(index, ())) if e.link)
        return next(known, "") or self._name_of(index)

    def _is_ours(self, index: int) -> bool:
        return self._name(index) in self._expected.links

    def _is_a_pods(self, index: int) -> bool:
        """Whether a link is a pod's, or was; none of its IPv4 settings is looked at."""
        told = [e.link for e in self._events.get(index, ())]
        link = told[-1] if told else self._expected.links.get(self._name(index))
        return (isinstance(link, Veth) and is_owned(link)) or self._is_gone(index)

    def _is_gone(self, index: int) -> bool:
        if events := self._events.get(index):
            return events[-1].is_gone
        return index > 0 and not self._name_of(index)  # a route that rejects packets has no link


def _is_automatic(address: str) -> bool:
    if not address:
        return False
    own = ip_address(address)
    return any(own.version == n.version and own in n for n in AUTOMATIC)


def _explained(holds: bool) -> Verdict:
    return Verdict.EXPLAINED if holds else Verdict.NEWS
