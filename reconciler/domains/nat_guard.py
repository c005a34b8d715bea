"""The rules that ask whether a pod may send what it sends: a part of our table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reconciler.core.datapath import FAMILIES, INSTANCE_METADATA, Family
from reconciler.domains.nat_rules import (
    BY_ENI,
    LINKS,
    OWN,
    Expression,
    Rules,
    match,
    payload,
    sets_of,
)
from schemas.pods import MetadataAccess

GUARD = "guard"
"""The chain that every packet enters."""

GUARD_PRIORITY = -300
"""``raw``, before conntrack: a packet that is dropped must not touch a connection of the pod whose
address it carries; a reset would end it."""

FROM_POD = "from_pod"
"""The chain for what a pod sends and what carries none of its addresses."""

SPOOFED = "spoofed"
"""Counts what a pod has sent with an address that is not its own."""

METADATA = "metadata"
"""Counts what a pod has sent to instance metadata and was refused."""

FROM_ENI = "from_eni"
"""The chain for what comes in by an ENI."""

NO_SOURCE = "no_source"
"""The chain for what carries an address that no other host can have."""

MARTIAN = "martian"
"""Counts that."""

COUNTERS = (SPOOFED, MARTIAN, METADATA)

NO_METADATA = "no_metadata"
"""The chain that refuses a pod instance metadata."""

LINK: Expression = {"meta": {"key": "iifname"}}

LINK_LOCAL = "fe80::"
"""With length 10. What carries such a source is never forwarded (RFC 4291, 2.5.6; ip6_forward)."""


def guard(families: Sequence[Family]) -> Rules:
    """Mark what carries an address of its link with the pod's ENI; look at the rest by its link.

    In this order because a packet of a pod then costs one lookup, which also chooses its ENI, and
    one by an ENI only that of its source. By names of links: they are known before a link is made,
    so that a pod's elements need no transaction of their own. By a link that is not ours a pod's
    packet may come as well, from another owner's hands: its ENI is chosen by its source alone.
    """
    rules: Rules = [[BY_ENI, *_is_source("=="), {"return": None}]]
    for f in families:
        if f.version == 6:  # of which the kernel asks nothing either (``from_eni``)
            rules.append([BY_ENI, match({"meta": {"key": "nfproto"}}, "ipv6"), {"return": None}])
        key = {"concat": [LINK, payload(f, "saddr")]}
        rules.append([{"vmap": {"key": key, "data": f"@{sets_of(f).guarded}"}}])
    by_link: list[Expression] = [{"vmap": {"key": LINK, "data": f"@{LINKS}"}}]
    return [*rules, by_link, [{"goto": {"target": OWN}}]]


def from_pod() -> Rules:
    """Drop it, but for what IPv6 says on a link before and besides any address.

    Duplicate address detection and multicast reports come from the unspecified address, neighbour
    and router discovery from the link-local one (RFC 4861, 4.3; RFC 4862, 5.4.2; RFC 3810,
    5.2.13). Neither is ever forwarded. A pod without an IPv6 address has the latter, too.
    """
    source = payload(FAMILIES["ipv6"], "saddr")
    local = {"prefix": {"addr": LINK_LOCAL, "len": 10}}
    return [
        [match(source, local), {"return": None}],
        [match(source, "::"), {"return": None}],
        [{"counter": SPOOFED}, {"drop": None}],
    ]


def from_eni() -> Rules:
    """Find what carries an address of this host, of a broadcast or a group; of each packet.

    The kernel does so as a part of its look at IPv4's sources (``fib_validate_source``), which is
    off here; of IPv6 it never asks. One lookup in the table of the host's addresses.
    """
    return [[*_is_source("!="), {"goto": {"target": NO_SOURCE}}]]


def _is_source(op: str) -> list[Expression]:
    """IPv4, and its source is (``==``) or is not (``!=``) one that another host may have."""
    kind: Expression = {"fib": {"result": "type", "flags": ["saddr"]}}
    return [match({"meta": {"key": "nfproto"}}, "ipv4"), match(kind, "unicast", op=op)]


def no_source() -> Rules:
    """Drop it; but a transit gateway asks for members of groups from 0.0.0.0.

    (VPC user guide, "Multicast on transit gateways"; RFC 4541, 2.1.1.) What else carries that, the
    kernel itself refuses (``ip_route_input_slow``).
    """
    return [
        [match(payload(FAMILIES["ipv4"], "saddr"), "0.0.0.0"), {"return": None}],
        [{"counter": MARTIAN}, {"drop": None}],
    ]


def is_denied_metadata(pod: str, entries: Iterable[MetadataAccess]) -> bool:
    """Whether a pod (``namespace/name``) is refused instance metadata: its first entry decides.

    So is one whose name is not known, because the runtime did not say it or its record was lost,
    where any is: the credentials there are the node's.
    """
    if not pod:
        return any(e.access == "deny" for e in entries)
    namespace, _, name = pod.partition("/")
    found = next((e for e in entries if e.match.matches(namespace, name)), None)
    return found is not None and found.access == "deny"


def to_metadata(families: Sequence[Family]) -> Rules:
    """Look at what goes to instance metadata, in first packets."""
    return [
        [
            match(payload(f, "daddr"), str(INSTANCE_METADATA[f.name])),
            match(payload(f, "saddr"), f"@{sets_of(f).no_metadata}"),
            {"goto": {"target": NO_METADATA}},
        ]
        for f in families
    ]


def no_metadata() -> Rules:
    """Refuse it so that a client gives up at once: its SDK then looks for other credentials."""
    return [
        [
            match({"meta": {"key": "l4proto"}}, "tcp"),
            {"counter": METADATA},
            {"reject": {"type": "tcp reset"}},
        ],
        [{"counter": METADATA}, {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}],
    ]
