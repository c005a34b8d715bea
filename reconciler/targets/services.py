"""The endpoints of services on this node, by the rulesets that translate their addresses."""

from __future__ import annotations

import struct

from reconciler.core.datapath import IpAddress, family_of
from reconciler.diagnostics.ruleset import ChainId, InSet
from reconciler.diagnostics.service import endpoints_in_iptables, translations
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
        """Return what a destination is translated to, ascending; nothing if it is not.

        Of iptables only IPv4's tables are looked at.

        Args:
            address: of the service.
            protocol: "tcp", "udp" or "sctp".
            port: of the service.

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
        (chain,) = self._kernel.find_elements(KUBE_PROXY, [("service-ips", key)], family)
        if not chain:
            return ()
        reading = Reading(self._kernel)
        reading.follow([ChainId("nft", family, KUBE_PROXY, chain)])
        rules = [rule for found in reading.rules.values() for rule in found or ()]
        maps = {e.set for rule in rules for e in rule if isinstance(e, InSet) and e.verdicts}
        known = [reading.elements.get((family, KUBE_PROXY, name)) for name in maps]
        if None in (*reading.rules.values(), *known):
            what = f"chain {family} {KUBE_PROXY} {chain}"
            raise ObserveError(what, "it leads to more than is read, or changed all the time")
        return tuple(sorted(translations(rules), key=int))
