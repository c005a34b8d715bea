"""What the document's sources stand for, asked of EC2: peerings, route tables, prefix lists.

Each kind is a question of its own, and fails alone. A list that is not whole is no answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from ipaddress import IPv4Network
from typing import Any

from reconciler.egress import routes
from reconciler.egress.observation import Answers, Question
from reconciler.egress.source import Entry, Failure, Look
from reconciler.ipam import budget
from reconciler.targets.ec2.caller import Ec2CallError
from reconciler.targets.ec2.calls import Calls, Filters, matching, operation, parts, reading
from reconciler.targets.ec2.decode_vpc import (
    ListVersion,
    RawTable,
    decode_list,
    decode_list_entry,
    decode_peering,
    decode_table,
)

PEERINGS = "describe_vpc_peering_connections"
TABLES = "describe_route_tables"
LISTS = "describe_managed_prefix_lists"
LIST_ENTRIES = "get_managed_prefix_list_entries"

MAX_PEERINGS = 500
"""Active peerings of one side; the quota is 50, and can be raised to 125."""

MAX_TABLES = 100
"""Route tables of the subnets that one instance has ENIs in."""

MAX_LISTS = 40
"""Prefix lists of one look: those of the document, and destinations of routes."""

MAX_LIST_ENTRIES = 2000
"""Entries of one prefix list; the quota is 1,000."""

IPV6 = "IPv6"


class VpcSources:
    """Asks what sources stand for.

    The entries of a version of a prefix list never change, so they are asked for once.
    """

    def __init__(self, calls: Calls) -> None:
        self.calls: Mapping[str, int] = calls.made
        self._calls = calls
        self._lists: dict[str, tuple[int, tuple[Entry, ...]]] = {}

    def look(self, question: Question) -> Answers:
        """Ask for all of a question; what failed says why in its place."""
        answers: dict[str, Look | Failure] = {}
        lists = [n for n in question.names if n.startswith("pl-")]
        if "@peering" in question.names:
            answers["@peering"] = _answer(partial(self._look_at_peerings, question.vpc_id))
        words = [n for n in question.names if n in routes.TARGETS]
        if words:
            answers |= self._routes(words, question)
        if lists:
            answers |= self._named_lists(lists)
        self._calls.drain()
        return answers

    def _look_at_peerings(self, vpc_id: str) -> Look:
        found: list[Entry] = []
        for side in ("requester", "accepter"):
            filters = [
                matching(f"{side}-vpc-info.vpc-id", vpc_id),
                matching("status-code", "active"),
            ]
            pages = self._calls.pages(
                PEERINGS, "VpcPeeringConnections", filters, most=MAX_PEERINGS
            )
            with reading(PEERINGS):
                for body in pages:
                    found += decode_peering(body, vpc_id)
        return Look(tuple(found))

    # -- routes -----------------------------------------------------------------------------------

    def _routes(self, words: Iterable[str], question: Question) -> Answers:
        try:
            tables = [self._resolved(t) for t in self._tables(question)]
        except Ec2CallError as error:
            return dict.fromkeys(words, _failure(error))
        return {word: Look(routes.entries_of(word, tables)) for word in words}

    def _tables(self, question: Question) -> list[RawTable]:
        """Return the tables of the subnets; the VPC's main one stands for those without."""
        found: list[RawTable] = []
        for ids in parts(question.subnet_ids):
            found += self._described([matching("association.subnet-id", *ids)])
        associated = frozenset().union(*(t.subnets for t in found))
        if question.subnet_ids - associated:
            main = [
                matching("vpc-id", question.vpc_id),
                matching("association.main", "true"),
            ]
            tables = self._described(main)
            if len(tables) != 1:
                why = f"{len(tables)} main route tables are shown, and a VPC has one"
                raise Ec2CallError(operation(TABLES), "AnswerShort", why)
            found += tables
        return list({t.name: t for t in found}.values())

    def _described(self, filters: Filters) -> list[RawTable]:
        pages = self._calls.pages(TABLES, "RouteTables", filters, most=MAX_TABLES)
        with reading(TABLES):
            return [decode_table(body) for body in pages]

    def _resolved(self, table: RawTable) -> routes.Table:
        """Replace prefix lists by their entries.

        A route to the same CIDR of its own comes first (VPC user guide, "Route priority").
        """
        named = {r.destination for r in table.routes if isinstance(r.destination, str)}
        known = self._describe_lists(named)
        found: list[routes.Route] = []
        own = {r.destination for r in table.routes if isinstance(r.destination, IPv4Network)}
        for route in table.routes:
            if isinstance(route.destination, IPv4Network):
                found.append(routes.Route(route.destination, route.target))
                continue
            for entry in self._entries(_there(known, route.destination)):
                assert isinstance(entry.network, IPv4Network)
                if entry.network not in own:
                    found.append(routes.Route(entry.network, route.target))
        return table.name, tuple(found)

    # -- prefix lists -----------------------------------------------------------------------------

    def _named_lists(self, names: Iterable[str]) -> Answers:
        try:
            known = self._describe_lists(names)
        except Ec2CallError as error:
            return dict.fromkeys(names, _failure(error))
        return {name: _answer(partial(self._look_at, known, name)) for name in names}

    def _look_at(self, known: Mapping[str, ListVersion], name: str) -> Look:
        found = _there(known, name)
        if found.family == IPV6:
            why = "its addresses are IPv6, which is never translated; take it out of the document"
            raise Ec2CallError(operation(LISTS), "Ipv6PrefixList", why)
        return Look(self._entries(found), found.version)

    def _describe_lists(self, names: Iterable[str]) -> dict[str, ListVersion]:
        names = set(names)
        if len(names) > MAX_LISTS:
            why = f"{len(names)} prefix lists are named, more than {MAX_LISTS}"
            raise Ec2CallError(operation(LISTS), "TooManyPrefixLists", why)
        if not names:
            return {}
        filters = [matching("prefix-list-id", *sorted(names))]
        with reading(LISTS):
            bodies = self._calls.pages(LISTS, "PrefixLists", filters, most=100)
            return {found.list_id: found for found in map(decode_list, bodies)}

    def _entries(self, found: ListVersion) -> tuple[Entry, ...]:
        """Return the entries of a prefix list; one of IPv6 has none here."""
        if found.family == IPV6:
            return ()
        known = self._lists.get(found.list_id)
        if known is not None and known[0] == found.version:
            return known[1]
        arguments: dict[str, Any] = {"PrefixListId": found.list_id}
        if found.version is not None:
            arguments["TargetVersion"] = found.version
        pages = self._calls.pages(LIST_ENTRIES, "Entries", most=MAX_LIST_ENTRIES, **arguments)
        with reading(LIST_ENTRIES):
            entries = tuple(map(decode_list_entry, pages))
        if found.version is not None:
            if len(self._lists) >= 2 * MAX_LISTS:
                self._lists.clear()
            self._lists[found.list_id] = found.version, entries
        return entries


def _there(known: Mapping[str, ListVersion], name: str) -> ListVersion:
    if name not in known:
        why = "EC2 does not show it; check its id, and that it is shared with this AWS account"
        raise Ec2CallError(operation(LISTS), "PrefixListNotFound", f"{name}: {why}")
    return known[name]


def _answer(ask: Callable[[], Look]) -> Look | Failure:
    try:
        return ask()
    except Ec2CallError as error:
        return _failure(error)


def _failure(error: Ec2CallError) -> Failure:
    why = f"{error.message}{budget.cure(error.operation_name, error.code)}"
    return Failure(error.operation_name, error.code, why)
