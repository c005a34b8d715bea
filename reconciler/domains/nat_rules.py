"""The rules of our nftables table, as expressions in libnftables' JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from reconciler.core.datapath import ENI_GROUP, FAMILIES, POD_GROUP, Family, Marks
from reconciler.core.facts import Eni

Expression = dict[str, Any]

Rules = list[list[Expression]]

CONNECTION_MARK: Expression = {"ct": {"key": "mark"}}

CONFIRMED, UNCONFIRMED = (
    {"match": {"op": op, "left": {"ct": {"key": "status"}}, "right": "confirmed"}}
    for op in ("in", "!")
)
"""A packet of a connection that is open, and the first one of a connection: conntrack confirms one
with its first packet. Neither matches what conntrack does not know."""

BY_ENI, BY_POD = (
    {"match": {"op": "==", "left": {"meta": {"key": "iifgroup"}}, "right": group}}
    for group in (ENI_GROUP, POD_GROUP)
)
"""By an ENI, by a pod, as the link's group says: one number, where a name costs a lookup.

A hint: by a link that has lost its group a packet takes the longer way, to the same end.
"""


@dataclass(frozen=True, slots=True)
class Sets:
    """Names of one family's sets.

    ``no_snat``: destinations that see pods' own addresses. ``pod_eni``: verdict map from a pod's
    address to the chain of its ENI. ``by_main``: destinations that the main table routes.
    ``held``: addresses that EC2 has assigned to this node's ENIs for pods, whether a pod has them
    or not. ``guarded``: verdict map from pods' links, each with an address that may come from
    there, to the chain of its ENI.
    ``no_metadata``: addresses of pods that are refused instance metadata. ``group_mark``,
    ``group_nat``: verdict maps from an address of a pod group with an SNAT policy of its own to
    the chains of that policy.
    """

    no_snat: str
    pods: str
    pod_eni: str
    by_main: str
    held: str
    guarded: str
    no_metadata: str
    group_mark: str
    group_nat: str

    @property
    def of_ranges(self) -> tuple[str, ...]:
        """Those whose elements are ranges."""
        return (self.no_snat, self.by_main, self.held)


NOUNS = (
    *("no_snat", "pods", "pod_eni", "by_main", "held"),
    *("guarded", "no_metadata", "group_mark", "group_nat"),
)

SETS = {name: Sets(*(f"{noun}_{name}" for noun in NOUNS)) for name in FAMILIES}
"""By family."""

LINKS = "links"
"""The verdict map from a link to the chain for what comes in by it."""

ARRIVALS = "arrivals"
"""The verdict map from an ENI's link to the chain that binds a connection to this ENI."""

LINK_MAPS = (LINKS, ARRIVALS)

FIRST = "first"
"""The chain for a connection's first packet, behind the translation of services."""

CHOICE = "choice"
"""The chain that chooses a packet's ENI."""

OWN = "own"
"""The chain that chooses it by a packet's source alone."""

BOUND = "bound"
"""The chain for packets of connections that are bound to an ENI."""


def sets_of(family: Family) -> Sets:
    """Name a family's sets."""
    return SETS[family.name]


def no_snat_of(family: Family, group: str) -> str:
    """Name the set of destinations that see a group's own addresses; "" is that of no group."""
    name = sets_of(family).no_snat
    return f"{name}_{group}" if group else name


TO = "to_"
"""How the names of sets of ranges begin that rules of the document lead to."""


def is_of_ranges(name: str) -> bool:
    """Whether a set's elements are ranges, by its name."""
    return name.startswith(TO) or any(
        name in s.of_ranges or name.startswith(f"{s.no_snat}_") for s in SETS.values()
    )


def chain_of(device_index: int) -> str:
    """Name the chain that sends a packet by an ENI."""
    return f"eni_{device_index}"


def arrival_of(device_index: int) -> str:
    """Name the chain that binds a connection to an ENI by which it came in."""
    return f"arrival_{device_index}"


def texts(rules: Rules) -> tuple[str, ...]:
    """Return the one text of each rule."""
    return tuple(json.dumps(r, sort_keys=True, separators=(",", ":")) for r in rules)


def eni(device_index: int, marks: Marks) -> Rules:
    """Send a packet by an ENI."""
    return [[set_mark({"meta": {"key": "mark"}}, device_index, marks)]]


def arrival(families: Sequence[Family]) -> Rules:
    """Bind connections to an address of the host to the ENI by which they come in.

    NodePort and hostPort: what answers them is a pod, whose own ENI may be another one; the VPC
    drops an answer that leaves by an ENI without the address it carries.

    Of a chain of type nat, because the kernel asks those for first packets alone. Such a chain is
    behind no translation here; what it does not translate goes on to the next one.
    """
    by_link: list[Expression] = [
        {"vmap": {"key": {"meta": {"key": "iifname"}}, "data": f"@{ARRIVALS}"}}
    ]
    return [[BY_POD, {"return": None}], *_to_pods(families), by_link]


def arrived(device_index: int, marks: Marks) -> Rules:
    """Bind a connection to the ENI by which it came in, if it is to an address of its link."""
    local = match({"fib": {"result": "type", "flags": ["daddr", "iif"]}}, "local")
    return [[local, set_mark(CONNECTION_MARK, device_index, marks)]]


def route_mark(marks: Marks, *, is_plain: bool) -> Rules:
    """Have a connection's first packet looked at; then choose the ENI.

    ``is_plain``: ``guard`` has marked what pods send, and no destination is the main table's. Then
    there is nothing left to choose for a connection that is bound to no ENI, and little for one
    that is bound to the primary. What conntrack does not know passes these rules by.
    """
    bits = {"&": [CONNECTION_MARK, marks.mask]}
    looked: list[Expression] = [{"jump": {"target": FIRST}}]
    chosen: list[Expression] = [{"goto": {"target": CHOICE}}]
    known: Rules = [
        [UNCONFIRMED, *looked],
        [match(bits, 0), {"return": None}],
        [match(bits, marks.of(0)), *eni(0, marks)[0], {"return": None}],
        [match(bits, 0, op="!="), {"goto": {"target": BOUND}}],
    ]
    return [*(known if is_plain else [[CONFIRMED, *chosen]]), looked, chosen]


def first(
    families: Sequence[Family],
    metadata: Rules,
    marks: Marks,
    grouped: Sequence[Family] = (),
    ruled: Iterable[list[Expression]] = (),
) -> Rules:
    """Refuse first packets that lead nowhere, and bind pods' connections to the primary ENI.

    Those that a pod opens to somewhere its own address cannot be answered from. By their first
    packet, but not by a chain of type nat, which sees it as well: once kube-proxy has translated
    it, the kernel asks no other chain of that type (nf_nat_inet_fn), and a service whose endpoint
    is beyond the VPC would be out of reach from secondary ENIs.

    ``metadata``: rules for what goes there; with those for what no pod has they stand ahead of a
    group's policy, which is the last word.
    ``grouped``: families in which pod groups have policies of their own. ``ruled``: what is asked
    before any policy.
    """
    refused = [*metadata, *_to_held(families, HELD)]
    return [*_to_pods(families), *refused, *ruled, *mark_by_policy(families, marks, grouped)]


def mark_by_policy(families: Sequence[Family], marks: Marks, grouped: Sequence[Family]) -> Rules:
    """Bind to the primary ENI what the policies send by the node's address."""
    by_group = [[_by_source(f, sets_of(f).group_mark)] for f in grouped]
    marked = [[*_leaves_vpc(f), set_mark(CONNECTION_MARK, 0, marks)] for f in families]
    return [*by_group, *marked]


def mark_outside(family: Family, no_snat: str, marks: Marks) -> list[Expression]:
    """Bind connections to the primary ENI, but for those to a set of destinations."""
    return [_outside(family, no_snat), set_mark(CONNECTION_MARK, 0, marks)]


def choice(by_main: Sequence[Family], marks: Marks, *, is_guarded: bool) -> Rules:
    """Choose the ENI: the one a connection is bound to, else the pod's own.

    ``by_main``: families in which there are destinations that the main table routes.
    ``is_guarded``: chain ``guard`` has chosen the pod's own.
    """
    mained = [[match(payload(f, "daddr"), f"@{sets_of(f).by_main}"), _goto(0)] for f in by_main]
    bound = match({"&": [CONNECTION_MARK, marks.mask]}, 0, op="!=")
    return [
        *mained,
        [bound, {"goto": {"target": BOUND}}],
        *([] if is_guarded else [[{"goto": {"target": OWN}}]]),
    ]


def own(families: Sequence[Family]) -> Rules:
    """Choose a pod's own ENI. What came by an ENI is no pod's, so it need not be looked up."""
    return [
        [BY_ENI, {"return": None}],
        *([_by_source(f, sets_of(f).pod_eni)] for f in families),
    ]


def without_mark(asked: Rules, marks: Marks) -> Rules:
    """Ask for a packet's way as if it had no mark of ours, which ``guard`` may have set."""
    mark: Expression = {"meta": {"key": "mark"}}
    cleared: Expression = {"mangle": {"key": mark, "value": {"&": [mark, marks.others]}}}
    return [[cleared], *asked, [{"goto": {"target": OWN}}]]


def bound(devices: Sequence[int], marks: Marks) -> Rules:
    """Send a packet by the ENI that its connection is bound to."""
    bits = {"&": [CONNECTION_MARK, marks.mask]}
    return [[match(bits, marks.of(index)), _goto(index)] for index in devices]


def source_nat(
    families: Sequence[Family],
    link: str,
    primary: Eni,
    local: Iterable[str],
    ports: str,
    grouped: Sequence[Family] = (),
    ruled: Iterable[list[Expression]] = (),
) -> Rules:
    """Give packets that leave the VPC the node's address.

    Those from addresses that are good on this node only, too, wherever they go. ``grouped`` and
    ``ruled``: as of ``first``.
    """
    chosen = [(f, _leaves_vpc(f)) for f in families]
    chosen += [(FAMILIES[name], [_is_node_local(FAMILIES[name])]) for name in local]
    by_primary = match({"meta": {"key": "oifname"}}, link)
    by_group = [[by_primary, _by_source(f, sets_of(f).group_nat)] for f in grouped]
    return [
        *ruled,
        *by_group,
        *_translate([(f, [by_primary, *which]) for f, which in chosen], primary, ports),
    ]


def translate_outside(families: Sequence[Family], group: str, primary: Eni, ports: str) -> Rules:
    """Give a group's packets that leave by the primary ENI the node's address, by its policy."""
    chosen = [(f, [_outside(f, no_snat_of(f, group))]) for f in families]
    return _translate(chosen, primary, ports)


def _translate(
    chosen: Iterable[tuple[Family, list[Expression]]], primary: Eni, ports: str
) -> Rules:
    return [
        [*which, become(f, str(address), ports)]
        for f, which in chosen
        if (address := primary.host_address(f.version)) is not None
    ]


def become(family: Family, source: str | Expression, ports: str) -> Expression:
    """Give a packet another source: an address, or what a map has."""
    flags = {} if ports == "sequential" else {"flags": ports}
    return {"snat": {"family": family.nft, "addr": source} | flags}


WAY: Expression = {"fib": {"result": "oifname", "flags": ["daddr", "mark"]}}
"""The link by which a packet would leave that has no route yet; with the marks of others."""

HELD, HELD_SENT = "held", "held_sent"
"""The chains for first packets to addresses that this node holds for pods; for the host's own."""

REFUSE = "refuse"
"""The chain that answers a packet by saying that no pod is there."""


def sent(families: Sequence[Family]) -> Rules:
    """Look at the host's own first packets to addresses that this node holds for pods."""
    later: list[Expression] = [CONFIRMED, {"return": None}]
    return [later, *_to_pods(families), *_to_held(families, HELD_SENT)]


def held(links: Iterable[str], *, is_routed: bool) -> Rules:
    """Refuse what would leave by an ENI: EC2 would only bring it back.

    A packet to a pod, of whichever plugin, leaves by that pod's link, and one to the host itself
    is not forwarded. So this depends on no record. Known pods have been let pass before.

    A packet that is refused confirms nothing, so its connection has no second one. Connections
    that were open when their pod ended are ended in conntrack (``targets.conntrack``), and what
    comes then is a first packet again.

    ``is_routed``: it has its route already. What is forwarded has none yet: a lookup for these few
    costs less than a chain behind routing, which all packets pass. It has the marks of others.
    """
    way: Expression = {"meta": {"key": "oifname"}} if is_routed else WAY
    return [[match(way, link), {"goto": {"target": REFUSE}}] for link in sorted(links)]


def refuse(links: Iterable[str]) -> Rules:
    """Say that no pod is there, in words by which a client gives up at once.

    Port unreachable: TCP that is connecting and UDP that is connected take it for the end, where
    host unreachable is only a hint (RFC 1122, 4.2.3.9; icmp_err_convert). To a pod of this node
    and the host itself TCP's own reset, which also ends connections that are open, is not limited
    in rate, and which conntrack translates back if a service was asked for: an ICMP error of a
    connection's first packet it does not know. Not to what came in by an ENI: a reset has the
    gone pod's address as its source, and the VPC drops it unless it leaves by that one's ENI.
    """
    unreachable = {"reject": {"type": "icmpx", "expr": "port-unreachable"}}
    reset = {"reject": {"type": "tcp reset"}}
    return [
        *([match({"meta": {"key": "iifname"}}, link), unreachable] for link in sorted(links)),
        [match({"meta": {"key": "l4proto"}}, "tcp"), reset],
        [unreachable],
    ]


def _to_pods(families: Sequence[Family]) -> Rules:
    """Let pass what is for pods that are known: by one lookup, however many ENIs there are."""
    return [
        [match(payload(f, "daddr"), f"@{sets_of(f).pods}"), {"return": None}] for f in families
    ]


def _to_held(families: Sequence[Family], chain: str) -> Rules:
    return [
        [match(payload(f, "daddr"), f"@{sets_of(f).held}"), {"jump": {"target": chain}}]
        for f in families
    ]


def _is_node_local(family: Family) -> Expression:
    network = family.node_local
    prefix = {"prefix": {"addr": str(network.network_address), "len": network.prefixlen}}
    return match(payload(family, "saddr"), prefix)


def _leaves_vpc(family: Family) -> list[Expression]:
    return [
        match(payload(family, "saddr"), f"@{sets_of(family).pods}"),
        _outside(family, sets_of(family).no_snat),
    ]


def _outside(family: Family, no_snat: str) -> Expression:
    return match(payload(family, "daddr"), f"@{no_snat}", op="!=")


def _by_source(family: Family, verdicts: str) -> Expression:
    return {"vmap": {"key": payload(family, "saddr"), "data": f"@{verdicts}"}}


def set_mark(mark: Expression, device_index: int, marks: Marks) -> Expression:
    """Write an ENI into our bits of a mark; other owners' bits stay."""
    value = {"|": [{"&": [mark, marks.others]}, marks.of(device_index)]}
    return {"mangle": {"key": mark, "value": value}}


def match(left: Expression, right: Any, op: str = "==") -> Expression:
    """Compare what is on the left with a value, or look for it in a set."""
    return {"match": {"op": op, "left": left, "right": right}}


def payload(family: Family, field: str) -> Expression:
    """Name a field of the packet's header."""
    return {"payload": {"protocol": family.nft, "field": field}}


def _goto(device_index: int) -> Expression:
    return {"goto": {"target": chain_of(device_index)}}
