"""Where kube-proxy, or another program, sends packets that are addressed to a service.

For ``trace`` alone. Of rulesets only the translations of a destination are read; other conditions
are ignored, so that all endpoints are found.
"""

from __future__ import annotations

import shlex
import struct
from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_network

from reconciler.core.datapath import IpAddress, family_of
from reconciler.diagnostics.ruleset import ChainId, Constant, InSet, Rule, Verdict
from reconciler.errors import ObserveError
from reconciler.targets.iptables.programs import Iptables
from reconciler.targets.netlink.ruleset import Nfnetlink
from reconciler.targets.nftables.foreign_chains import KUBE_PROXY, Reading

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}


class Services:
    """kube-proxy's services, and what other software puts into iptables' nat table."""

    def __init__(self) -> None:
        self._kernel = Nfnetlink()
        self._iptables = Iptables()

    def endpoints(self, address: IpAddress, protocol: str, port: int) -> tuple[IpAddress, ...]:
        """Return what a service's address is translated to, ascending; nothing if it is not.

        Of iptables only IPv4's tables are looked at.

        Raises:
            ObserveError: a ruleset could not be read.
        """
        found = self._in_nftables(address, protocol, port)
        if found or address.version != 4:
            return found
        tables = self._kernel.list_tables("ip")
        saved, unlisted = self._iptables.observe({"nat"} & tables)
        for (backend, table), why in unlisted.items():
            if table == "nat":
                raise ObserveError(f"iptables-{backend}'s table nat", why)
        lines = [line for (_, table), text in saved.items() if table == "nat" for line in text]
        return endpoints_in_iptables(lines, address, protocol, port)

    def _in_nftables(self, address: IpAddress, protocol: str, port: int) -> tuple[IpAddress, ...]:
        """Follow the chain of a service in kube-proxy's mode nftables.

        Names: Kubernetes ``pkg/proxy/nftables/proxier.go``.
        """
        family = family_of(address).nft
        parts = (address.packed, bytes([PROTOCOLS[protocol]]), struct.pack(">H", port))
        key = b"".join(part + bytes(-len(part) % 4) for part in parts)
        (element,) = self._kernel.find_elements(KUBE_PROXY, [("service-ips", key)], family)
        if element is None or not element[0]:
            return ()
        chain, _ = element
        reading = Reading(self._kernel)
        reading.follow([ChainId("nft", family, KUBE_PROXY, chain)])
        rules = [rule for found in reading.rules.values() for rule in found or ()]
        maps = {e.set for rule in rules for e in rule if isinstance(e, InSet) and e.verdicts}
        known = [reading.elements.get((family, KUBE_PROXY, name)) for name in maps]
        if None in (*reading.rules.values(), *known):
            what = f"chain {family} {KUBE_PROXY} {chain}"
            raise ObserveError(what, "it leads to more than is read, or changed all the time")
        return tuple(sorted(_translations(rules), key=int))


def _translations(rules: Iterable[Rule]) -> frozenset[IpAddress]:
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
