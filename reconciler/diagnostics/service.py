"""Services: where kube-proxy, or whoever else, sends what is addressed to one.

For ``trace`` alone. Rulesets of other owners are read as far as they say where a destination is
translated to; whatever else they ask for is left out, so that all endpoints are found.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import ip_address, ip_network
from typing import Any

from reconciler.core.datapath import IpAddress

Json = Any
"""A part of libnftables' JSON."""


def endpoints_in_nftables(
    map_elements: Iterable[Json],
    rules_of: Callable[[str], Iterable[Json]],
    address: IpAddress,
    protocol: str,
    port: int,
) -> tuple[IpAddress, ...]:
    """Return the endpoints of a service in kube-proxy's mode nftables, ascending.

    Args:
        map_elements: of its map ``service-ips``, as libnftables lists them.
        rules_of: the expressions of a chain's rules, by the chain's name.
        address: of the service.
        protocol: "tcp", "udp" or "sctp".
        port: of the service.
    """
    wanted = {"concat": [str(address), protocol, port]}
    left = [t for key, verdict in map_elements if key == wanted for t in _jumps(verdict)]
    seen: set[str] = set()
    found: set[IpAddress] = set()
    while left:
        chain = left.pop()
        if chain in seen:
            continue
        seen.add(chain)
        for body in rules_of(chain):
            found |= {ip_address(d["addr"]) for d in _all(body, "dnat")}
            left += _jumps(body)
    return tuple(sorted(found, key=int))


def endpoints_in_iptables(
    saved: Iterable[str], address: IpAddress, protocol: str, port: int
) -> tuple[IpAddress, ...]:
    """Return where iptables' nat table sends a destination, ascending.

    Args:
        saved: lines of ``iptables-save -t nat``.
        address: of the service, or of the node.
        protocol: "tcp", "udp" or "sctp".
        port: of the service.
    """
    chains: dict[str, list[Mapping[str, str]]] = {}
    for line in saved:
        if line.startswith("-A "):
            options = _options(shlex.split(line))
            chains.setdefault(options["-A"], []).append(options)
    left, seen = ["PREROUTING"], set[str]()
    found: set[IpAddress] = set()
    while left:
        chain = left.pop()
        if chain in seen:
            continue
        seen.add(chain)
        for rule in chains.get(chain, []):
            if not _may_match(rule, address, protocol, port):
                continue
            target = rule.get("-j") or rule.get("-g") or ""
            if target == "DNAT" and (where := rule.get("--to-destination")):
                found.add(_host(where))
            left.append(target)
    return tuple(sorted(found, key=int))


def _jumps(value: Json) -> list[str]:
    return [str(v["target"]) for verb in ("jump", "goto") for v in _all(value, verb)]


def _all(value: Json, key: str) -> Iterator[Json]:
    """Find every object of that name, however deep."""
    if isinstance(value, dict):
        if key in value:
            yield value[key]
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _all(inner, key)


def _options(words: list[str]) -> dict[str, str]:
    """Pair options with their first word; one after ``!`` is marked, since it matches others."""
    options: dict[str, str] = {}
    for position, word in enumerate(words):
        if word.startswith("-"):
            value = words[position + 1] if position + 1 < len(words) else ""
            negated = position > 0 and words[position - 1] == "!"
            options[f"! {word}" if negated else word] = value
    return options


def _may_match(rule: Mapping[str, str], address: IpAddress, protocol: str, port: int) -> bool:
    if "-d" in rule and address not in ip_network(rule["-d"]):
        return False
    if rule.get("--dport", str(port)) != str(port):
        return False
    return rule.get("-p", protocol) == protocol


def _host(text: str) -> IpAddress:
    """Read ``10.0.0.1:80``, ``10.0.0.1`` or ``[2001:db8::1]:80``."""
    if text.startswith("["):
        return ip_address(text[1:].partition("]")[0])
    return ip_address(text.partition(":")[0] if text.count(":") == 1 else text)
