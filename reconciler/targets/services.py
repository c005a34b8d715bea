"""Where services lead on this node, by the rulesets of whoever translates their addresses."""

from __future__ import annotations

from functools import partial

from reconciler.core.datapath import IpAddress, family_of
from reconciler.diagnostics.service import endpoints_in_iptables, endpoints_in_nftables
from reconciler.errors import ObserveError
from reconciler.targets.iptables.programs import Iptables
from reconciler.targets.nftables.target import KubeProxyTable


class Services:
    """kube-proxy's services, and what other software puts into iptables' nat table."""

    def __init__(self) -> None:
        self._proxy = KubeProxyTable()
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
        family = family_of(address).nft
        rules_of = partial(self._proxy.rules, family)
        found = endpoints_in_nftables(
            self._proxy.service(family, address, protocol, port), rules_of, address, protocol, port
        )
        if found or address.version != 4:
            return found
        saved, unlisted = self._iptables.observe({"nat"} & self._proxy.tables(family))
        for (backend, table), why in unlisted.items():
            if table == "nat":
                raise ObserveError(f"iptables-{backend}'s table nat", why)
        lines = [line for (_, table), text in saved.items() if table == "nat" for line in text]
        return endpoints_in_iptables(lines, address, protocol, port)
