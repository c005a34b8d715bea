"""Where kube-proxy, or another program, sends packets that are addressed to a service.

For ``trace`` alone. Of rulesets only the translations of a destination are read; other conditions
are ignored, so that all endpoints are found.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_network

from reconciler.core.datapath import IpAddress
from reconciler.diagnostics.ruleset import Constant, Rule, Verdict


def translations(rules: Iterable[Rule]) -> frozenset[IpAddress]:
    """Return the addresses that rules translate destinations to."""
    found: set[IpAddress] = set()
    for rule in rules:
        registers: dict[int | None, bytes] = {
            e.register: e.value for e in rule if isinstance(e, Constant)
        }
        for verdict in rule:
            if isinstance(verdict, Verdict) and verdict.word == "dnat":
                address = registers.get(verdict.register, b"")
                found |= {ip_address(address)} if len(address) in (4, 16) else set()
    return frozenset(found)


def endpoints_in_iptables(
    saved: Iterable[str], address: IpAddress, protocol: str, port: int
) -> tuple[IpAddress, ...]:
    """Return where the lines of ``iptables-save -t nat`` send a destination, ascending."""
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
