"""Sysctls: the few kernel settings without which the datapath cannot work.

Those of the host and its ENIs are one domain; those of pods' links are another, which runs after
the links are made.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from reconciler.core.attachment import Attachment, nsenter
from reconciler.core.datapath import family_of
from reconciler.domains.inputs import Inputs
from reconciler.engine.plan import Key, Plan, Verb, compare_in_place

IPV6 = "ipv6"
"""The one family whose settings are links' own."""

FORWARDING = "net/ipv6/conf/all/forwarding"

ALL, OFF = "all", "0"
"""What holds for all links at least, and no look at where packets may come from."""


@dataclass(frozen=True, slots=True)
class Sysctl:
    """One setting of a network namespace.

    ``name``: path below /proc/sys with slashes, because interface names may contain dots.
    ``netns``: identity of the namespace; empty for the host's.
    """

    kind: ClassVar[str] = "sysctl"
    stays: ClassVar[str] = "what it was before is not recorded, and others may rely on it"
    name: str
    value: str
    netns: str = ""

    @property
    def key(self) -> Key:
        return (self.netns, self.name)

    def command(self, verb: Verb) -> str:
        """``sysctl -w``; a setting is never deleted."""
        return f"{nsenter(self.netns)}sysctl -w {self.name}={self.value}"


def desire(inputs: Inputs) -> frozenset[Sysctl]:
    """Forwarding on; IPv6 as a router wants it."""
    settings = {Sysctl("net/ipv4/ip_forward", "1")}
    if IPV6 in inputs.families:
        settings.add(Sysctl(FORWARDING, "1"))
        for eni, name in inputs.pod_enis:
            settings |= _of_eni(name, primary=eni.is_primary)
    return frozenset(settings)


def desire_source_check(inputs: Inputs) -> frozenset[Sysctl]:
    """No look at sources by the kernel where our ruleset has it; else one that lets packets in.

    The look goes through all rules of routing for each packet (``fib_validate_source``), which is
    a fifth of what one to a pod costs. The kernel leaves it out where the filter is off and
    addresses of its own are accepted; it takes the larger filter of the link's and of ``all``.
    Chain ``guard`` refuses these addresses then (``domains.nat_guard``), so this domain comes
    behind that one.

    ``rp_filter=2`` on secondary ENIs: the look is without our mark, finds ``main`` and so the
    primary ENI, and strictly takes whatever comes in by another one for spoofed (RFC 3704 section
    2.4). For the primary it finds the link the packet came by, so the host's filter stays there.
    """
    found: set[Sysctl] = set()
    denied, filters = inputs.document.pods.spoofing == "deny", inputs.host.source_filters
    for eni, name in inputs.pod_enis:
        base, own = f"net/ipv4/conf/{name}", filters.get(name) if eni.is_primary else OFF
        is_off = denied and filters.get(ALL) == own == OFF
        found.add(Sysctl(f"{base}/accept_local", "1" if is_off else "0"))
        if not eni.is_primary:
            found.add(Sysctl(f"{base}/rp_filter", OFF if is_off else "2"))
    return frozenset(found)


def source_filters(primary: str) -> tuple[Sysctl, ...]:
    """Return the settings that ``HostState.source_filters`` has, with any value."""
    return tuple(Sysctl(f"net/ipv4/conf/{name}/rp_filter", OFF) for name in (ALL, primary))


def _of_eni(name: str, *, primary: bool) -> set[Sysctl]:
    """A router takes no advertisements, but the host's own default route comes by them.

    On a secondary ENI they would bring another one. There, too, nothing waits for duplicates to
    be found: no other host in a VPC can have the address that is made of an ENI's MAC, and until
    then nothing could be sent (RFC 4862 section 5.4).
    """
    base = f"net/ipv6/conf/{name}"
    settings = {Sysctl(f"{base}/disable_ipv6", "0")}
    if primary:
        return settings | {Sysctl(f"{base}/accept_ra", "2")}
    return settings | {Sysctl(f"{base}/accept_ra", "0"), Sysctl(f"{base}/accept_dad", "0")}


def desire_pods(inputs: Inputs) -> frozenset[Sysctl]:
    """IPv6 on both ends of the links of pods that have such an address.

    No pod tells the host its routes; and a runtime that has switched IPv6 off has done so for
    pods without it.
    """
    base = "net/ipv6/conf"
    host = [a.veth for a in inputs.placed if has_ipv6(a)]
    pods = [
        (a.netns, name) for a in inputs.visited if has_ipv6(a) for name in (a.key.ifname, "lo")
    ]
    links = [*(("", veth) for veth in host), *pods]
    settings = {Sysctl(f"{base}/{name}/disable_ipv6", "0", netns) for netns, name in links}
    return frozenset(settings | {Sysctl(f"{base}/{veth}/accept_ra", "0") for veth in host})


def has_ipv6(attachment: Attachment) -> bool:
    """Whether a pod has an IPv6 address."""
    return any(family_of(a).name == IPV6 for a in attachment.addresses)


def plan(desired: Iterable[Sysctl], observed: Iterable[Sysctl]) -> Plan:
    """Compare only what is desired: every other setting is another owner's.

    Forwarding comes last: with it, the kernel removes every default route that it has by
    advertisement, except those of links that say ``accept_ra=2`` by then
    (``rt6_purge_dflt_routers`` in net/ipv6/route.c).
    """
    whole = compare_in_place(desired, observed)
    return Plan(tuple(sorted(whole.actions, key=lambda a: a.key[-1] == FORWARDING)))
