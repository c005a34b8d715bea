"""What of other owners on the node hurts us.

Only what is certain is a finding. A program that merely runs, or that ours has been tried beside
without harm, is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from ipaddress import IPv4Network
from operator import or_

from reconciler.core import datapath
from reconciler.core.datapath import FAMILIES, IpNetwork
from reconciler.core.facts import covers
from reconciler.core.ranges import find
from reconciler.diagnostics import forwarding
from reconciler.diagnostics.foreign import (
    MARK_USERS,
    NETWORK_MANAGER,
    NETWORKD,
    Foreign,
    ForeignRule,
    MarkUser,
    Ours,
    Pod,
    Traffic,
)
from reconciler.diagnostics.stock_objects import (
    IptablesChain,
    Leftover,
    StockRule,
    StockTable,
)
from reconciler.domains.inputs import Inputs
from reconciler.domains.snat import untranslated
from reconciler.egress.destinations import networks
from reconciler.errors import Issue

BEYOND = IPv4Network("198.51.100.0/24")
"""Stands for every destination that no list names (TEST-NET-2, RFC 5737)."""


LAST_OF_OURS = datapath.ENI_PRIORITY + datapath.MAX_DEVICE_INDEX
"""Priority of the last of our rules that choose a route by a mark."""

SHIFTS = (*range(0, 25, 8), *range(25))
"""Where eight adjacent bits of a mark may be, whole bytes first."""

DECIDES = (
    "it decides about pods' packets before our rules are asked, so they are dropped, or find "
    "another route or none"
)
LEADS = (
    "it sends pods' packets to another table before our rules are asked, so they may leave by an "
    "ENI that their address does not belong to"
)


def desire(inputs: Inputs) -> Ours:
    """Say what of ours is at stake."""
    return Ours(
        families=frozenset(FAMILIES[name].nft for name in inputs.families),
        mark_mask=inputs.document.routing.mark_mask,
        patterns=inputs.veth_patterns,
        eni_links=frozenset(name for eni, name in inputs.pod_enis if not eni.is_primary),
        sources=frozenset(
            datapath.host_network(x) for a in inputs.attachments for x in a.addresses
        ),
        accept_forwarded=inputs.document.routing.accept_forwarded,
        traffic=_traffic(inputs),
    )


def _traffic(inputs: Inputs) -> Traffic:
    links = {eni.eni_id: (eni, name) for eni, name in inputs.pod_enis}
    pods = [
        Pod(a.veth, own, links[a.eni_id][1])
        for a in inputs.attachments
        if a.eni_id in links
        for own in a.vpc_addresses
    ]
    if not pods:
        prefix = f"{inputs.document.pods.veth_prefix}*"
        pods = [Pod(prefix, e.pod_addresses[0], n) for e, n in links.values() if e.pod_addresses]
    hosts = (
        e.host_address(FAMILIES[name].version) for name in inputs.families for e in inputs.enis[:1]
    )
    return Traffic(
        pods=forwarding.sample(pods),
        hosts=tuple(h for h in hosts if h),
        kept=_kept(inputs),
        patterns=tuple(sorted(inputs.veth_patterns)),
    )


def _kept(inputs: Inputs) -> tuple[IpNetwork, ...]:
    """Return destinations that must see pods' own addresses, by every setting that says so."""
    ranges = untranslated(inputs, FAMILIES["ipv4"])
    beyond = (BEYOND,) if find(ranges, BEYOND.network_address) else ()
    excluded = networks(inputs.document.snat.exclude_cidrs, inputs.host.egress)
    return (*beyond, *inputs.node.vpc_cidrs, *excluded)


def without(foreign: Foreign, leaving: frozenset[Leftover]) -> Foreign:
    """Leave out what a plan of ours is about to remove: there is nothing to be done about it."""
    rules = {
        ForeignRule(
            "ipv4", o.priority, o.table, o.mark or 0, o.mask, o.source, False, o.destination
        )
        for o in leaving
        if isinstance(o, StockRule)
    }
    return replace(
        foreign,
        chains=foreign.chains - {o.name for o in leaving if isinstance(o, IptablesChain)},
        tables=foreign.tables - {o.name for o in leaving if isinstance(o, StockTable)},
        rules=tuple(r for r in foreign.rules if r not in rules),
    )


def judge(foreign: Foreign, ours: Ours) -> tuple[Issue, ...]:
    """Say what hurts, in the order in which an operator should look at it."""
    return (
        *forwarding.judge(foreign, ours),
        *_networkd(foreign, ours),
        *_managers(foreign, ours),
        *_marks(foreign, ours),
        *_early_rules(foreign, ours),
        *(Issue(what, "ForeignUnread", why) for what, why in dict.fromkeys(foreign.unread)),
    )


def _networkd(foreign: Foreign, ours: Ours) -> Iterator[Issue]:
    if foreign.networkd is None:
        return
    cure = (
        "put 'ManageForeignRoutingPolicyRules=no' and 'ManageForeignRoutes=no' under [Network] "
        "into /etc/systemd/networkd.conf.d/90-pods.conf, then restart systemd-networkd"
    )
    rules, routes = foreign.networkd.rules, foreign.networkd.routes
    if rules.value:
        why = (
            "ManageForeignRoutingPolicyRules is on: whenever it starts or a link changes, it "
            "deletes every ip rule that is not its own; ours come back at once, but packets "
            f"leave by the wrong ENI meanwhile; {cure}"
        )
        subject = f"systemd-networkd, {rules.file or 'by default'}"
        yield Issue(subject, "NetworkdDeletesRules", why)
    links = {m.link for m in foreign.managers if m.program == NETWORKD} & ours.eni_links
    if routes.value and links:
        why = (
            f"ManageForeignRoutes is on and it manages {', '.join(sorted(links))}: when it "
            f"configures them it deletes our routes over them; {cure}"
        )
        subject = f"systemd-networkd, {routes.file or 'by default'}"
        yield Issue(subject, "NetworkdDeletesRoutes", why)


RELEASE = {
    NETWORKD: "restrict the [Match] of that file, or put a file that sorts before it with "
    "'[Link] Unmanaged=yes' and '[Match] Name={link}' into /etc/systemd/network",
    NETWORK_MANAGER: "put '[keyfile]' and 'unmanaged-devices=interface-name:{link}' into "
    "/etc/NetworkManager/conf.d/90-pods.conf, then reload it",
}
"""What an operator does so that a program leaves a link alone."""


def _managers(foreign: Foreign, ours: Ours) -> Iterator[Issue]:
    for tool in foreign.tools:
        yield Issue(
            tool.name,
            "ToolsManageEnis",
            f"{tool.file} lets it give every ENI addresses, routes and rules of its own, beside "
            f"and against ours; {tool.cure}",
        )
    pods: dict[str, list[str]] = {}
    for manager in foreign.managers:
        if manager.link in ours.eni_links:
            yield Issue(
                f"link {manager.link}",
                "ToolsManageEnis",
                f"{manager.program} manages it by {manager.file}: addresses and routes it adds "
                "there compete with ours; "
                f"{RELEASE[manager.program].format(link=manager.link)}",
            )
        elif any(covers(p, manager.link) for p in ours.patterns):
            # NetworkManager has a file for each link; what matters is whose they are.
            pods.setdefault(manager.program, []).append(manager.file)
    for program, files in sorted(pods.items()):
        pattern = min(ours.patterns, key=lambda p: not p.endswith("*"))
        yield Issue(
            f"{len(files)} links of pods",
            "ToolsManagePods",
            f"{program} manages them by {min(files)}: it may take them down, or delete their "
            f"routes; {RELEASE[program].format(link=pattern)}",
        )


def _marks(foreign: Foreign, ours: Ours) -> Iterator[Issue]:
    others = _other_bits(foreign)
    for user in MARK_USERS:
        signs = _signs(user, foreign)
        if not signs or not user.mask & ours.mark_mask:
            continue
        yield Issue(
            signs[0],
            "MarkConflict",
            f"{user.name} uses bits {user.mask:#x} of packet marks and our mask is "
            f"{ours.mark_mask:#x}: each takes the other's for its own; "
            f"{user.cure.format(other_bits=others)}",
        )
    for rule in foreign.rules:
        if rule.mask & ours.mark_mask:
            yield Issue(
                str(rule),
                "MarkConflict",
                f"it reads bits of our mask {ours.mark_mask:#x}: it may catch our packets, or "
                "miss its own once we have marked them; give it a mask without these bits, or "
                f"{others}",
            )


def _signs(user: MarkUser, foreign: Foreign) -> list[str]:
    """Return what shows that a program marks packets here."""
    signs = [f"chain {c}" for c in sorted(foreign.chains) if c.startswith(user.chains)]
    return signs + ([f"table {user.table}"] if user.table in foreign.tables else [])


def _other_bits(foreign: Foreign) -> str:
    """Say which eight adjacent bits no program uses here, and what it means to take them."""
    used = reduce(or_, (r.mask for r in foreign.rules), 0)
    used = reduce(or_, (u.mask for u in MARK_USERS if _signs(u, foreign)), used)
    free = next((m for m in (0xFF << n for n in SHIFTS) if not m & used), None)
    if free is None:
        return "change the other's (no eight adjacent bits for routing.markMask are free here)"
    return (
        f"set routing.markMask to {free:#x}, which nothing that was seen here uses (new packets "
        "and connections get the new marks; open ones through the node's address are cut)"
    )


def _early_rules(foreign: Foreign, ours: Ours) -> Iterator[Issue]:
    """Rules that choose pods' route before ours do."""
    families = {f.name for f in FAMILIES.values() if f.nft in ours.families}
    count: dict[tuple[int, int, str], list[ForeignRule]] = {}
    for rule in foreign.rules:
        early = rule.priority <= LAST_OF_OURS and rule.table != datapath.LOCAL_TABLE
        if not early or rule.mask or rule.selects_more or rule.family not in families:
            continue
        # A single destination is not meant: such a rule, as the stock plugin's, leads to a route
        # of its own.
        to = rule.destination
        is_single = to is not None and to.prefixlen == to.max_prefixlen
        if _means(rule.source, ours.sources) and not is_single and _means(to, ours.sources):
            count.setdefault((rule.priority, rule.table, rule.does), []).append(rule)
    for (_, _, does), rules in sorted(count.items()):
        more = f", and {len(rules) - 1} more like it" if len(rules) > 1 else ""
        yield Issue(
            f"{rules[0]}{more}",
            "RuleBeforeOurs",
            f"{DECIDES if does else LEADS}; delete it, or give it a priority above {LAST_OF_OURS}",
        )


def _means(network: IpNetwork | None, pods: frozenset[IpNetwork]) -> bool:
    """Whether a rule's source or destination means a pod."""
    if network is None or network in pods:
        return True
    return any(p.version == network.version and p.network_address in network for p in pods)
