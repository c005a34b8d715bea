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
from reconciler.diagnostics import stock_objects as stock
from reconciler.domains.inputs import Inputs
from reconciler.engine.plan import Plan
from reconciler.errors import Issue
from reconciler.ipam.records import Records

PLURALS: dict[type, str] = {
    stock.IptablesRule: "iptables rules",
    stock.IptablesChain: "iptables chains",
    stock.StockTable: "nftables tables",
    stock.StockRule: "ip rules",
    stock.StockRoute: "routes",
}
"""Its objects in the order in which they may go, and what they are called."""


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """What is needed to recognise the stock plugin's objects: ENIs, and link names by MAC."""

    enis: tuple[Eni, ...]
    links: Mapping[str, str]


def desire(inputs: Inputs) -> Whereabouts:
    """Say where the stock plugin's objects would be."""
    return Whereabouts(inputs.enis, inputs.links)


def plan(desired: Whereabouts, observed: stock.Sighting) -> Plan:
    """Touch nothing, and say what is there."""
    found = in_order(recognise(observed, desired.enis, desired.links))
    tagged = [e.eni_id for e in desired.enis if e.is_adoptable]
    counts = Counter(PLURALS[type(o)] for o in found)
    parts = [f"{count} {noun}" for noun, count in sorted(counts.items())]
    parts += [f"{len(tagged)} ENIs ({', '.join(tagged)})"] if tagged else []
    running = "; its daemon still runs: stop it first" if observed.running else ""
    message = (
        f"left on this node: {', '.join(parts)}; they are not touched{running}; to take over its "
        f"pods and remove the rest, set takeOver: {stock.OWNER}"
    )
    findings = (Issue(stock.OWNER, "StockPluginPresent", message),) if parts else ()
    return Plan(foreign=found, findings=findings)


def unexplained(seen: stock.Sighting, records: Records) -> tuple[stock.StockRoute, ...]:
    """Return routes to the stock plugin's pods that no attachment of ours explains."""
    known = {(a.veth, address) for a in records.attachments for address in a.addresses}
    routes = (
        r for r in pod_routes(seen) if (r.device, r.destination.network_address) not in known
    )
    return tuple(sorted(routes, key=lambda r: r.key))


def recognise(
    seen: stock.Sighting, enis: Iterable[Eni], links: Mapping[str, str]
) -> frozenset[stock.Leftover]:
    """Return what is the stock plugin's of what was seen; links are names by MAC."""
    ways = {
        e.device_index + 1: (links[e.mac], e.gateway)
        for e in enis
        if e.device_index and not e.is_primary and e.mac in links
    }
    found: set[stock.Leftover] = {r for r in seen.rules if is_stock_rule(r)}
    found |= set(pod_routes(seen))
    found |= {r for r in seen.routes if r.table in ways and _is_way_out(r, *ways[r.table])}
    for (backend, table), lines in seen.saved.items():
        found |= set(_iptables(backend, table, lines))
    if stock.NFT_TABLE in seen.tables:
        found.add(stock.StockTable())
    return frozenset(found)


def in_order(found: Iterable[stock.Leftover]) -> tuple[stock.Leftover, ...]:
    """Sort objects as they may go.

    A rule goes before the routes it leads to: one that says ``to 10.0.1.20 lookup main`` would
    find the subnet there once the pod's own route is gone, and send the packet out of the node.
    """
    order = list(PLURALS)
    return tuple(sorted(found, key=lambda o: (order.index(type(o)), o.key)))


def is_stock_rule(rule: stock.StockRule) -> bool:
    """Whether a rule has the exact shape of one that the stock plugin makes."""
    to, source, mark = rule.destination, rule.source, (rule.mark, rule.mask)
    plain = mark == (None, 0)
    by_main = rule.table == MAIN_TABLE and source is None
    by_eni = plain and _is_host(source) and rule.table in stock.ENI_TABLES
    shapes = {
        stock.TO_POD: plain and by_main and _is_host(to),
        stock.FWMARK: mark == (stock.MARK, stock.MARK) and by_main and to is None,
        stock.SERVICE_CIDR: plain and by_main and to is not None,
        stock.FROM_POD: by_eni,  # older releases restricted it to each of the VPC's CIDRs
        stock.FROM_ENI: by_eni and to is None,
    }
    is_named = rule.extra or rule.protocol not in stock.PROTOCOLS
    return not is_named and shapes.get(rule.priority, False)


def pod_routes(seen: stock.Sighting) -> Iterator[stock.StockRoute]:
    """Return the routes to the stock plugin's pods: in ``main``, each over the pod's own link.

    Known by the link's name, or, because its prefix can be chosen, by the rule for that address.
    """
    to_pods = (r for r in seen.rules if r.priority == stock.TO_POD and is_stock_rule(r))
    ruled = {r.destination for r in to_pods}
    for route in seen.routes:
        plain = route.gateway is None and not route.metric and route.protocol in stock.PROTOCOLS
        ours = stock.VETH.fullmatch(route.device) or route.destination in ruled
        if plain and ours and route.table == MAIN_TABLE and _is_host(route.destination):
            yield route


def _is_way_out(route: stock.StockRoute, device: str, gateway: IpAddress) -> bool:
    """Whether it is one of the two routes in a secondary ENI's table."""
    if route.device != device or route.metric or route.protocol not in stock.PROTOCOLS:
        return False
    if route.gateway is None:
        return route.destination == host_network(gateway)
    return route.gateway == gateway and route.destination == family_of(gateway).everything


def _iptables(backend: str, table: str, lines: Iterable[str]) -> Iterator[stock.Leftover]:
    """Return the stock plugin's chains, and its rules in chains of others."""
    is_its_chain = stock.CHAIN.fullmatch
    copies: Counter[tuple[str, str]] = Counter()
    for line in lines:
        word, name, text = (*line.split(" ", 2), "", "")[:3]
        if word.startswith(":") and is_its_chain(word[1:]):
            yield stock.IptablesChain(backend, table, word[1:])
        elif word == "-A" and not is_its_chain(name) and _is_stock_text(table, name, text):
            yield stock.IptablesRule(backend, table, name, text, copies[name, text])
            copies[name, text] += 1


def _is_stock_text(table: str, chain: str, text: str) -> bool:
    """Whether a rule leads into a chain of the stock plugin's, or is one of its CONNMARKs."""
    try:
        options = dict(pairwise(shlex.split(text)))
    except ValueError:
        return False  # quotes that the stock plugin does not write
    target, comment = options.get("-j", ""), options.get("--comment")
    is_connmark = chain == "PREROUTING" and target == "CONNMARK"
    ours = is_connmark and comment in stock.CONNMARK_COMMENTS.get(table, ())
    return ours or bool(stock.CHAIN.fullmatch(target))


def _is_host(network: IpNetwork | None) -> bool:
    return network is not None and network.num_addresses == 1
