"""What amazon-vpc-cni-k8s has left on the node: recognised by its exact shape, and named.

Whether it may go, and what becomes of its pods, is ``migration``'s to say, if the document asks.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from reconciler.core.datapath import MAIN_TABLE, IpAddress, IpNetwork, family_of, host_network
from reconciler.core.facts import Eni
from reconciler.core.predecessor import (
    CHAIN,
    CONNMARK_COMMENTS,
    ENI_TABLES,
    MARK,
    NFT_TABLE,
    OWNER,
    PROTOCOLS,
    TO_POD,
    VETH,
    IptablesChain,
    IptablesRule,
    Leftover,
    Sighting,
    StockRoute,
    StockRule,
    StockTable,
)
from reconciler.domains.inputs import Inputs
from reconciler.engine.issue import Issue
from reconciler.engine.plan import Plan
from reconciler.ipam.records import Records


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """What is needed to recognise the stock plugin's objects.

    Attributes:
        links: interface name by MAC.
    """

    enis: tuple[Eni, ...]
    links: Mapping[str, str]


def desire(inputs: Inputs) -> Whereabouts:
    """Say where the stock plugin's objects would be."""
    return Whereabouts(inputs.enis, inputs.links)


def plan(desired: Whereabouts, observed: Sighting) -> Plan:
    """Touch nothing, and say what is there."""
    found = in_order(recognise(observed, desired.enis, desired.links))
    return Plan(foreign=found, findings=_findings(desired, observed, found))


def unexplained(seen: Sighting, records: Records) -> tuple[StockRoute, ...]:
    """Return routes to the stock plugin's pods that no attachment of ours explains."""
    known = {(a.veth, address) for a in records.attachments for address in a.addresses}
    return tuple(
        sorted(
            (
                r
                for r in pod_routes(seen)
                if (r.device, r.destination.network_address) not in known
            ),
            key=lambda r: r.key,
        )
    )


def recognise(
    seen: Sighting, enis: Iterable[Eni], links: Mapping[str, str]
) -> frozenset[Leftover]:
    """Return what is the stock plugin's of what was seen.

    Args:
        seen: the look.
        enis: what EC2 last showed.
        links: interface name by MAC.
    """
    ways = {
        e.device_index + 1: (links[e.mac], e.gateway)
        for e in enis
        if e.device_index and not e.is_primary and e.mac in links
    }
    found: set[Leftover] = {r for r in seen.rules if is_stock_rule(r)}
    found |= set(pod_routes(seen))
    found |= {r for r in seen.routes if r.table in ways and _is_way_out(r, *ways[r.table])}
    for (backend, table), lines in seen.saved.items():
        found |= set(_iptables(backend, table, lines))
    if NFT_TABLE in seen.tables:
        found.add(StockTable())
    return frozenset(found)


def in_order(found: Iterable[Leftover]) -> tuple[Leftover, ...]:
    """Sort objects as they may go.

    A rule goes before the routes it leads to: one that says ``to 10.0.1.20 lookup main`` would
    find the subnet there once the pod's own route is gone, and send the packet out of the node.
    """
    order = list(PLURALS)
    return tuple(sorted(found, key=lambda o: (order.index(type(o)), o.key)))


def is_stock_rule(rule: StockRule) -> bool:
    """Whether a rule has the exact shape of one that the stock plugin makes."""
    if rule.extra or rule.protocol not in PROTOCOLS:
        return False
    to, source, mark = rule.destination, rule.source, (rule.mark, rule.mask)
    plain, main = mark == (None, 0), rule.table == MAIN_TABLE
    match rule.priority:
        case 512:
            return plain and main and _is_host(to) and source is None
        case 1024:
            return mark == (MARK, MARK) and main and to is None and source is None
        case 1535:
            return plain and main and to is not None and source is None
        case 1536:
            # Older releases restricted it to each of the VPC's CIDRs.
            return plain and _is_host(source) and rule.table in ENI_TABLES
        case 32765:
            return plain and _is_host(source) and to is None and rule.table in ENI_TABLES
        case _:
            return False


def pod_routes(seen: Sighting) -> Iterator[StockRoute]:
    """Return the routes to the stock plugin's pods: in ``main``, each over the pod's own link.

    Known by the link's name, or, because its prefix can be chosen, by the rule for that address.
    """
    ruled = {r.destination for r in seen.rules if r.priority == TO_POD and is_stock_rule(r)}
    for route in seen.routes:
        plain = route.gateway is None and not route.metric and route.protocol in PROTOCOLS
        ours = VETH.fullmatch(route.device) or route.destination in ruled
        if plain and ours and route.table == MAIN_TABLE and _is_host(route.destination):
            yield route


def _is_way_out(route: StockRoute, device: str, gateway: IpAddress) -> bool:
    """Whether it is one of the two routes in a secondary ENI's table."""
    if route.device != device or route.metric or route.protocol not in PROTOCOLS:
        return False
    if route.gateway is None:
        return route.destination == host_network(gateway)
    return route.gateway == gateway and route.destination == family_of(gateway).everything


def _iptables(backend: str, table: str, lines: Iterable[str]) -> Iterator[Leftover]:
    """Return the stock plugin's chains, and its rules in chains of others."""
    copies: Counter[tuple[str, str]] = Counter()
    for line in lines:
        word, name, text = (*line.split(" ", 2), "", "")[:3]
        if word.startswith(":") and CHAIN.fullmatch(word[1:]):
            yield IptablesChain(backend, table, word[1:])
        elif word == "-A" and not CHAIN.fullmatch(name) and _is_stock_text(table, name, text):
            yield IptablesRule(backend, table, name, text, copies[name, text])
            copies[name, text] += 1


def _is_stock_text(table: str, chain: str, text: str) -> bool:
    """Whether a rule leads into a chain of the stock plugin's, or is one of its CONNMARKs."""
    try:
        words = shlex.split(text)
    except ValueError:
        return False  # quotes that the stock plugin does not write
    options = dict(pairwise(words))
    target = options.get("-j", "")
    if CHAIN.fullmatch(target):
        return True
    ours = options.get("--comment") in CONNMARK_COMMENTS.get(table, ())
    return chain == "PREROUTING" and target == "CONNMARK" and ours


def _is_host(network: IpNetwork | None) -> bool:
    return network is not None and network.num_addresses == 1


def _findings(
    desired: Whereabouts, seen: Sighting, found: Iterable[Leftover]
) -> tuple[Issue, ...]:
    tagged = [e.eni_id for e in desired.enis if e.is_adoptable]
    counts = Counter(PLURALS[type(o)] for o in found)
    parts = [f"{count} {noun}" for noun, count in sorted(counts.items())]
    parts += [f"{len(tagged)} ENIs ({', '.join(tagged)})"] if tagged else []
    if not parts:
        return ()
    running = "; its daemon still runs: stop it first" if seen.running else ""
    return (
        Issue(
            subject=OWNER,
            reason="StockPluginPresent",
            message=f"left on this node: {', '.join(parts)}; they are not touched{running}; to "
            f"take over its pods and remove the rest, set takeOver: {OWNER}",
        ),
    )


PLURALS: dict[type, str] = {
    IptablesRule: "iptables rules",
    IptablesChain: "iptables chains",
    StockTable: "nftables tables",
    StockRule: "ip rules",
    StockRoute: "routes",
}
"""Its objects in the order in which they may go, and what they are called."""
