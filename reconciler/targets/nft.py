"""nftables through libnftables' JSON binding: the door to ``nftables``.

One transaction per plan. Of other owners' tables nothing is looked at but the names of their
chains and the few rules that stand in a chain with hook forward itself, and those are decoded as
the kernel has them (``rules.py``): more would cost what they have, and libnftables must never see
it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from typing import Any

import nftables

from reconciler.core.datapath import ALIAS, TABLE, IpAddress
from reconciler.core.forward import ForwardChain
from reconciler.core.mark import sign_of
from reconciler.core.plan import Change, Verb
from reconciler.core.predecessor import StockTable
from reconciler.core.ranges import as_network
from reconciler.domains.forward import ForwardAccept
from reconciler.domains.nat import (
    NftChain,
    NftElement,
    NftObject,
    NftSet,
    NftTable,
    canonical,
)
from reconciler.errors import ApplyError, ObserveError
from reconciler.targets.nfnetlink import (
    NFT_MSG_DELRULE,
    NFT_MSG_NEWRULE,
    NLM_F_APPEND,
    NLM_F_CREATE,
    Chain,
    Nfnetlink,
    Request,
)
from reconciler.targets.rules import accept_link, decode_rule, identity

Json = dict[str, Any]


class Nft:
    """Our table in the network namespace this object was made in.

    libnftables opens its netlink socket when the context is made, and a socket belongs to its
    namespace for life.
    """

    def __init__(self) -> None:
        self._nft = nftables.Nftables()
        self._nft.set_json_output(True)
        self._nft.set_handle_output(False)
        self.kernel = Nfnetlink()
        self._seen: tuple[int, frozenset[NftObject]] | None = None

    def observe(self, desired: Iterable[NftObject] = ()) -> frozenset[NftObject]:
        """List our table, unless no ruleset has changed since; the empty set if there is none.

        Raises:
            ObserveError: the kernel or libnftables refused.
        """
        del desired  # the whole table is always looked at
        now = self.kernel.generation()
        if self._seen is None or self._seen[0] != now:
            # A change that comes in between has a later number, and is seen next time.
            self._seen = now, self._observe_anew()
        return self._seen[1]

    def _observe_anew(self) -> frozenset[NftObject]:
        if TABLE not in self.kernel.list_tables("inet"):
            return frozenset()
        command = f"list table inet {TABLE}"
        code, output, error = self._nft.cmd(command)
        if code != 0:
            raise ObserveError("nftables", f"{command}: {str(error).strip()[:256]}")
        return _decode_text(output)

    def observe_at(self, places: Iterable[NftElement]) -> frozenset[NftObject]:
        """Read single elements of sets without ranges; the cost does not grow with the sets.

        Raises:
            ObserveError: the kernel refused.
        """
        places = list(places)
        verdicts = self.kernel.find_elements(TABLE, [(e.set, e.first.packed) for e in places])
        return frozenset(
            replace(element, goto=verdict)
            for element, verdict in zip(places, verdicts, strict=True)
            if verdict is not None
        )

    def apply(self, actions: Sequence[Change[NftObject]]) -> tuple[ApplyError, ...]:
        """Commit all actions as one transaction: all of them happen, or none."""
        return self.commit(encode(actions), actions)

    def commit(self, commands: list[Json], actions: Sequence[object]) -> tuple[ApplyError, ...]:
        """Run commands as one transaction, on behalf of these actions."""
        code, _, error = self._nft.json_cmd({"nftables": commands})
        if code == 0:
            return ()
        why = str(error).strip()[:256]
        return tuple(ApplyError(str(a), "TransactionRefused", why) for a in actions)

    def listing(self, command: str) -> list[Json]:
        """Return what a list command says.

        Raises:
            ObserveError: libnftables refused.
        """
        code, output, error = self._nft.cmd(command)
        if code != 0:
            raise ObserveError("nftables", f"{command}: {str(error).strip()[:256]}")
        try:
            listing: list[Json] = json.loads(output)["nftables"] if output else []
        except (ValueError, KeyError, TypeError) as error:
            raise ObserveError("nftables", f"{command}: no JSON: {error}") from error
        return listing

    def rules(self, family: str, table: str, chain: str) -> list[Json]:
        """List the rules of another owner's chain.

        Raises:
            ObserveError: libnftables refused.
        """
        # As JSON: the names are other people's, and text would have to be quoted.
        where = {"family": family, "table": table, "name": chain}
        command = {"list": {"chain": where}}
        code, output, error = self._nft.json_cmd({"nftables": [command]})
        if code != 0:
            raise ObserveError("other owners' chains", str(error).strip()[:256])
        return [entry["rule"] for entry in (output or {}).get("nftables", []) if "rule" in entry]


KUBE_PROXY = "kube-proxy"
"""Its table in mode nftables, one for each family."""


class KubeProxyTable:
    """kube-proxy's tables in its mode nftables, read for ``trace`` and never changed.

    Names: Kubernetes ``pkg/proxy/nftables/proxier.go``.
    """

    def __init__(self) -> None:
        self._nft = Nft()

    def services(self, family: str) -> list[Json]:
        """Return the elements of the map of services of a family; none if there is no such map.

        Raises:
            ObserveError: libnftables refused.
        """
        if KUBE_PROXY not in self._nft.kernel.list_tables(family):
            return []
        listing = self._nft.listing(f"list map {family} {KUBE_PROXY} service-ips")
        return [x for e in listing if "map" in e for x in e["map"].get("elem", [])]

    def rules(self, family: str, chain: str) -> list[Json]:
        """Return the expressions of each rule of a chain.

        Raises:
            ObserveError: libnftables refused.
        """
        return [rule["expr"] for rule in self._nft.rules(family, KUBE_PROXY, chain)]


NEVER_FIREWALLS = frozenset({TABLE, KUBE_PROXY})
"""Tables whose forward chains drop nothing that others may have; not worth a look at their
rules."""

MAX_NAMES = 5_000
"""Names of chains that are kept of all there are; of later ones only those that are hooked, or
that are the first to tell a program which marks packets. A cluster with 10,000 services has some
60,000 chains on each node."""

MAX_RULES, MAX_RULES_IN_ALL = 1_000, 10_000
"""Rules that are looked at of one foreign chain, and of all. Whoever has more in a forward chain
itself is told that it was not looked at; a rule costs 50 microseconds to decode."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of other owners.

    Attributes:
        names: (table, name) of their chains.
        forward: their chains with hook forward, as far as they were looked at.
        ours: our rules in them.
        unread: what was not looked at, and why.
    """

    names: frozenset[tuple[str, str]]
    forward: tuple[ForwardChain, ...]
    ours: frozenset[ForwardAccept]
    unread: tuple[tuple[str, str], ...] = ()


class ForwardRules:
    """Our rules in forward chains of other owners, in the namespace this object was made in."""

    def __init__(self) -> None:
        self._kernel = Nfnetlink()
        self._seen: tuple[int, Seen] | None = None

    def chains(self) -> tuple[frozenset[tuple[str, str]], tuple[ForwardChain, ...]]:
        """Return (table, name) of chains that are not ours, and the forward chains of them.

        Raises:
            ObserveError: the kernel refused.
        """
        seen = self._look()
        return seen.names, seen.forward

    def unread(self) -> tuple[tuple[str, str], ...]:
        """Return the chains that are not looked at, each with the reason.

        Raises:
            ObserveError: the kernel refused.
        """
        return self._look().unread

    def observe(self, desired: Iterable[ForwardAccept] = ()) -> frozenset[ForwardAccept]:
        """List the rules that carry our comment.

        Raises:
            ObserveError: the kernel refused.
        """
        del desired  # a chain that is not desired any more has to be looked at as well
        return self._look().ours

    def apply(self, actions: Sequence[Change[ForwardAccept]]) -> tuple[ApplyError, ...]:
        """Carry out actions, each a transaction: one chain's owner is not another's."""
        failures = []
        for action in actions:
            try:
                self._kernel.commit(_accept_requests(action), action.object.family)
            except OSError as error:
                number = error.errno or 0
                failures.append(
                    ApplyError.from_errno(str(action), number, os.strerror(number), error)
                )
        return tuple(failures)

    def _look(self) -> Seen:
        """Look at everything, unless no ruleset has changed since the last look."""
        now = self._kernel.generation()
        if self._seen is None or self._seen[0] != now:
            # A change that comes in between has a later number, and is seen next time.
            self._seen = (now, self._look_anew())
        return self._seen[1]

    def _look_anew(self) -> Seen:
        names, hooked = self._kernel.chains(_choose)
        chains: list[ForwardChain] = []
        handles: dict[ForwardAccept, tuple[int, ...]] = {}
        unread: list[tuple[str, str]] = []
        left = MAX_RULES_IN_ALL
        for chain in hooked:
            if chain.hook != "forward" or chain.table in NEVER_FIREWALLS:
                continue
            try:
                rules = [decode_rule(r) for r in self._kernel.rules(chain, min(MAX_RULES, left))]
            except ObserveError as error:
                unread.append((error.what, error.why))
                continue
            left -= len(rules)
            chains.append(_forward_chain(chain, [r.body for r in rules]))
            for rule in rules:
                if rule.comment == ALIAS:
                    found = _our_accept(chain, rule.body)
                    handles[found] = (*handles.get(found, ()), rule.handle)
        ours = frozenset(replace(found, handles=h) for found, h in handles.items())
        return Seen(names, tuple(chains), ours, tuple(unread))


def _choose(chains: Iterable[Chain]) -> tuple[frozenset[tuple[str, str]], list[Chain]]:
    """Keep the names of other owners' chains, within bounds, and the chains that are hooked."""
    names: set[tuple[str, str]] = set()
    hooked: list[Chain] = []
    told: set[str] = set()
    for chain in chains:
        if (chain.family, chain.table) == ("inet", TABLE):
            continue
        sign = sign_of(chain.name)
        if len(names) < MAX_NAMES or chain.hook or (sign and sign not in told):
            names.add((chain.table, chain.name))
            told.add(sign)
        if chain.hook:
            hooked.append(chain)
    return frozenset(names), hooked


def _forward_chain(chain: Chain, bodies: Sequence[list[Json]]) -> ForwardChain:
    end = next((n for n, body in enumerate(bodies) if _stops(body)), None)
    return ForwardChain(
        chain.family,
        chain.table,
        chain.name,
        drops=chain.drops,
        shut=end is not None,
        accepts=frozenset(found for b in bodies[:end] if (found := _accepted(b))),
    )


def _our_accept(chain: Chain, body: list[Json]) -> ForwardAccept:
    """Return the rule; one that somebody has changed is none that is ever desired."""
    way, pattern = _accepted(body) or ("", canonical(body))
    return ForwardAccept(chain.family, chain.table, chain.name, way, pattern)


def _stops(body: list[Json]) -> bool:
    """Whether a rule drops or rejects every packet; of iptables' targets REJECT is no verdict."""
    match body:
        case [{"drop": _}] | [{"reject": _}] | [{"xt": {"type": "target", "name": "REJECT"}}]:
            return True
        case _:
            return False


def _accepted(body: list[Json]) -> tuple[str, str] | None:
    """Return (iifname or oifname, pattern) of a rule that accepts by that alone."""
    match body:
        case [
            {"match": {"op": "==", "left": {"meta": {"key": str(way)}}, "right": str(pattern)}},
            {"accept": _},
        ] if way in ("iifname", "oifname"):
            return way, pattern
    return None


def _accept_requests(action: Change[ForwardAccept]) -> list[Request]:
    rule = action.object
    if action.verb is Verb.DELETE:
        return [
            (NFT_MSG_DELRULE, 0, identity(rule.table, rule.chain, handle))
            for handle in rule.handles
        ]
    body = accept_link(rule.table, rule.chain, rule.way, rule.pattern, ALIAS)
    return [(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, body)]


def encode(actions: Sequence[Change[NftObject]]) -> list[Json]:
    """Return the transaction, in the order the kernel's references demand.

    Rules name sets and chains, map elements name chains. So: unhook first (rules and elements
    away), then define, then fill, then connect, and only then drop what nothing names any more.
    """
    stages = _Stages()
    for action in actions:
        if action.verb is Verb.DELETE:
            stages.remove(action.object)
        else:
            stages.put(action.object, action.was)
    return _joined(stages.commands())


@dataclass(slots=True)
class _Stages:
    """The parts of a transaction, by when they must happen."""

    unhook: list[Json] = field(default_factory=list)
    define: list[Json] = field(default_factory=list)
    fill: list[Json] = field(default_factory=list)
    connect: list[Json] = field(default_factory=list)
    drop: list[Json] = field(default_factory=list)

    def commands(self) -> list[Json]:
        """All commands in order; the table first, for a chain to be added to."""
        filled = [*self.define, *self.fill, *self.connect]
        return [*self.unhook, {"add": _table()}, *filled, *self.drop]

    def remove(self, obj: NftObject) -> None:
        match obj:
            case NftTable():
                # "add" first, so that deleting a table that is already gone is no error.
                self.unhook += [{"add": _table()}, {"delete": _table()}]
            case NftChain():
                self.unhook.append({"flush": {"chain": _named(obj.name)}})
                self.drop.append({"delete": {"chain": _named(obj.name)}})
            case NftSet():
                self.drop.append({"delete": {_noun(obj): _named(obj.name)}})
            case NftElement():
                self.unhook.append({"delete": {"element": _element(obj)}})

    def put(self, obj: NftObject, was: NftObject | None) -> None:
        match obj:
            case NftTable():
                pass  # always there: see commands()
            case NftChain():
                if was is not None:
                    self.unhook.append({"flush": {"chain": _named(obj.name)}})
                self.define.append({"add": {"chain": _chain(obj)}})
                self.connect += [{"add": {"rule": _rule(obj.name, text)}} for text in obj.rules]
            case NftSet():
                self.define.append({"add": {_noun(obj): _set(obj)}})
            case NftElement():
                if isinstance(was, NftElement):
                    self.unhook.append({"delete": {"element": _element(was)}})
                self.fill.append({"add": {"element": _element(obj)}})


def _decode_text(text: str) -> frozenset[NftObject]:
    try:
        return decode(json.loads(text)["nftables"])
    except (KeyError, TypeError, ValueError):
        # Somebody put in what we never write; the table is ours, and is made anew.
        return frozenset({NftTable(readable=False)})


def decode(listing: Iterable[Json]) -> frozenset[NftObject]:
    """Return the objects of a listing of our table."""
    objects: set[NftObject] = set()
    chains: dict[str, Json] = {}
    rules: dict[str, list[str]] = {}
    for entry in listing:
        match entry:
            case {"table": table}:
                flags = table.get("flags", [])
                flags = (flags,) if isinstance(flags, str) else tuple(sorted(flags))
                objects.add(NftTable(table["name"], flags))
            case {"chain": chain}:
                chains[chain["name"]] = chain
            case {"rule": rule}:
                rules.setdefault(rule["chain"], []).append(canonical(_normal(rule["expr"])))
            case {"set": body} | {"map": body}:
                objects |= _decode_set(body)
            case {"metainfo": _}:
                pass
            case _:
                raise ValueError(f"not ours: {entry}")
    for name, chain in chains.items():
        objects.add(
            NftChain(
                name,
                tuple(rules.get(name, ())),
                chain.get("type", ""),
                chain.get("hook", ""),
                chain.get("prio", 0),
                chain.get("policy", "").removeprefix("accept"),
            )
        )
    return frozenset(objects)


def _normal(value: Any) -> Any:
    """Undo the liberties that listings take.

    The kernel keeps ``(x & mask) ^ bits``. To print it as ``(x & m) | bits``, some releases list
    ``m`` with the bits that are or-ed anyway (nftables 1.0.6), some without. And a mask of the
    highest bits is listed as a prefix, as if a mark were an address.
    """
    match value:
        case {
            "match": {
                "op": str(op),
                "left": {"ct": _} as left,
                "right": {"prefix": {"addr": int(bits), "len": int(length)}},
            }
        }:
            masked = {"&": [left, 0xFFFFFFFF << (32 - length) & 0xFFFFFFFF]}
            return {"match": {"op": op, "left": masked, "right": bits}}
        case {"|": [{"&": [operand, int(mask)]}, int(bits)]}:
            return {"|": [{"&": [_normal(operand), mask & ~bits]}, bits]}
        case dict():
            return {key: _normal(inner) for key, inner in value.items()}
        case list():
            return [_normal(inner) for inner in value]
        case _:
            return value


def _decode_set(body: Json) -> set[NftObject]:
    name = body["name"]
    flags = body.get("flags", [])
    # A single flag is listed as a plain word by newer releases of libnftables.
    interval = "interval" in ([flags] if isinstance(flags, str) else flags)
    objects: set[NftObject] = {
        NftSet(name, body["type"], interval=interval, verdicts=body.get("map") == "verdict")
    }
    for element in body.get("elem", []):
        match element:
            case [value, {"goto": {"target": str(goto)}}]:
                first, last = _decode_range(value)
                objects.add(NftElement(name, first, last, goto))
            case _:
                first, last = _decode_range(element)
                objects.add(NftElement(name, first, last))
    return objects


def _decode_range(value: Any) -> tuple[IpAddress, IpAddress]:
    match value:
        case str():
            return ip_address(value), ip_address(value)
        case {"prefix": {"addr": addr, "len": length}}:
            network = ip_network((addr, length))
            return network.network_address, network.broadcast_address
        case {"range": [first, last]}:
            return ip_address(first), ip_address(last)
        case _:
            raise ValueError(f"element {value!r}")


def _joined(commands: list[Json]) -> list[Json]:
    """Join neighbouring commands on elements of one set: the cost is per command."""
    joined: list[Json] = []
    for command in commands:
        ((verb, body),) = command.items()
        previous = joined[-1].get(verb, {}) if joined else {}
        if (
            "element" in body
            and previous.get("element", {}).get("name") == body["element"]["name"]
        ):
            previous["element"]["elem"] += body["element"]["elem"]
        else:
            joined.append(command)
    return joined


def _table() -> Json:
    return {"table": {"family": "inet", "name": TABLE}}


def _named(name: str) -> Json:
    return {"family": "inet", "table": TABLE, "name": name}


def _noun(obj: NftSet) -> str:
    return "map" if obj.verdicts else "set"


def _chain(obj: NftChain) -> Json:
    if not obj.hook:
        return _named(obj.name)
    hook = {"type": obj.type, "hook": obj.hook, "prio": obj.priority, "policy": "accept"}
    return _named(obj.name) | hook


def _set(obj: NftSet) -> Json:
    body = _named(obj.name) | {"type": obj.type}
    if obj.interval:
        body["flags"] = ["interval"]
    if obj.verdicts:
        body["map"] = "verdict"
    return body


def _rule(chain: str, text: str) -> Json:
    return {"family": "inet", "table": TABLE, "chain": chain, "expr": json.loads(text)}


def _element(obj: NftElement) -> Json:
    value: Any
    if obj.first == obj.last:
        value = str(obj.first)
    elif network := as_network(obj.first, obj.last):
        value = {"prefix": {"addr": str(network.network_address), "len": network.prefixlen}}
    else:
        value = {"range": [str(obj.first), str(obj.last)]}
    entry = [value, {"goto": {"target": obj.goto}}] if obj.goto else value
    return _named(obj.set) | {"elem": [entry]}


class StockTables:
    """Tables of family ip that other owners have: their names, and how to be rid of one."""

    def __init__(self) -> None:
        self._nft = Nft()

    def observe(self) -> frozenset[str]:
        """List the names.

        Raises:
            ObserveError: libnftables refused.
        """
        return self._nft.kernel.list_tables("ip")

    def apply(self, actions: Sequence[Change[StockTable]]) -> tuple[ApplyError, ...]:
        """Delete tables, all or none."""
        tables = [{"family": "ip", "name": a.object.name} for a in actions]
        # "add" first, so that deleting a table that is already gone is no error.
        commands = [{verb: {"table": t}} for t in tables for verb in ("add", "delete")]
        return self._nft.commit(commands, actions) if actions else ()
