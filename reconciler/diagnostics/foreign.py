"""Other owners on the node: what of theirs hurts us, told from what does not.

Only what can be told for certain is a finding. A program that is merely there, or whose doings
ours have been tried beside and came to no harm, is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from reconciler.core.datapath import (
    ENI_PRIORITY,
    FAMILIES,
    LOCAL_TABLE,
    MAIN_TABLE,
    MAX_DEVICE_INDEX,
    IpNetwork,
    host_network,
)
from reconciler.core.forward import ForwardChain, covers, is_ours_to_open
from reconciler.core.predecessor import IptablesChain, Leftover, StockRule, StockTable
from reconciler.diagnostics import filtering
from reconciler.diagnostics.filtering import Pod, Traffic, sample
from reconciler.diagnostics.mark import users_of
from reconciler.diagnostics.ruleset import ChainId, Ruleset
from reconciler.domains.inputs import Inputs
from reconciler.engine.finding import Finding

NO_RULES, NO_TRAFFIC = Ruleset(), Traffic()


@dataclass(frozen=True, slots=True)
class ForeignRule:
    """An ``ip rule`` of another owner.

    Attributes:
        mark, mask: of its fwmark; a mask of 0 is none.
        narrow: it selects by something else as well: a link, a user.
        does: what it does in place of looking the table up: prohibit, or goto and a priority.
    """

    family: str
    priority: int
    table: int
    mark: int = 0
    mask: int = 0
    source: IpNetwork | None = None
    narrow: bool = False
    destination: IpNetwork | None = None
    does: str = ""

    def __str__(self) -> str:
        words = [f"ip rule {self.priority}: from {self.source or 'all'}"]
        if self.destination:
            words.append(f"to {self.destination}")
        if self.mask:
            words.append(f"fwmark {self.mark:#x}/{self.mask:#x}")
        table = "main" if self.table == MAIN_TABLE else self.table
        return " ".join([*words, self.does or f"lookup {table}"])


@dataclass(frozen=True, slots=True)
class Setting:
    """What a program's configuration says in the end.

    Attributes:
        file: where it is said; "" if nowhere, so that it is the program's default.
    """

    value: bool
    file: str = ""


@dataclass(frozen=True, slots=True)
class Networkd:
    """systemd-networkd, running.

    Attributes:
        rules, routes: ManageForeignRoutingPolicyRules and ManageForeignRoutes.
    """

    rules: Setting
    routes: Setting


@dataclass(frozen=True, slots=True)
class Manager:
    """A program that configures a link.

    Attributes:
        file: what makes it do so, or where it says that it does.
    """

    link: str
    program: str
    file: str


@dataclass(frozen=True, slots=True)
class Tool:
    """A program that configures every ENI it meets.

    Attributes:
        file: by which it is in force.
    """

    name: str
    file: str
    cure: str


@dataclass(frozen=True, slots=True)
class Foreign:
    """Everything of other owners that was looked at.

    Attributes:
        chains, tables: names of their chains and nftables tables, in all families.
        forward: their base chains with hook forward; None if unknown.
        ruleset: the chains that packets from and to pods pass, rule by rule.
        firewalld_accepts: patterns of links that a zone of firewalld accepts, in both directions.
        networkd: None if it does not run.
        unread: what could not be looked at, and why.
    """

    chains: frozenset[str] = frozenset()
    tables: frozenset[str] = frozenset()
    forward: tuple[ForwardChain, ...] | None = ()
    ruleset: Ruleset = NO_RULES
    rules: tuple[ForeignRule, ...] = ()
    firewalld_accepts: frozenset[str] = frozenset()
    networkd: Networkd | None = None
    managers: tuple[Manager, ...] = ()
    tools: tuple[Tool, ...] = ()
    unread: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Ours:
    """What others can get in the way of.

    Attributes:
        families: nftables' words for the families of pods.
        mark_mask: our bits of packet marks.
        patterns: names of pods' links on the host; ``prefix*`` for all that begin so.
        eni_links: links of ENIs that we configure: all but the primary's.
        sources: pods' addresses, as networks of one.
        accept_forwarded: we add rules to chains that drop.
        traffic: packets that have to pass.
    """

    families: frozenset[str]
    mark_mask: int
    patterns: frozenset[str]
    eni_links: frozenset[str]
    sources: frozenset[IpNetwork]
    accept_forwarded: bool = False
    traffic: Traffic = NO_TRAFFIC


def desire(inputs: Inputs) -> Ours:
    """Say what of ours is at stake."""
    return Ours(
        families=frozenset(FAMILIES[name].nft for name in inputs.families),
        mark_mask=inputs.document.routing.mark_mask,
        patterns=inputs.veth_patterns,
        eni_links=frozenset(name for eni, name in inputs.pod_enis if not eni.is_primary),
        sources=frozenset(host_network(x) for a in inputs.attachments for x in a.addresses),
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
        pods=sample(pods),
        hosts=tuple(h for h in hosts if h),
        kept=(*inputs.node.vpc_cidrs, *inputs.document.snat.exclude_cidrs),
        patterns=tuple(sorted(inputs.veth_patterns)),
    )


def without(foreign: Foreign, leaving: frozenset[Leftover]) -> Foreign:
    """Leave out what a plan of ours is about to remove: there is nothing to be done about it.

    Args:
        foreign: a look at other owners.
        leaving: what the plan removes, with everything it knows it by.
    """
    rules = {
        (o.priority, o.table, o.mark or 0, o.mask, o.source, o.destination)
        for o in leaving
        if isinstance(o, StockRule)
    }
    return replace(
        foreign,
        chains=foreign.chains - {o.name for o in leaving if isinstance(o, IptablesChain)},
        tables=foreign.tables - {o.name for o in leaving if isinstance(o, StockTable)},
        rules=tuple(
            r
            for r in foreign.rules
            if r.narrow
            or (r.priority, r.table, r.mark, r.mask, r.source, r.destination) not in rules
        ),
    )


FIREWALLD = "firewalld"
OF_FIREWALLD = frozenset({FIREWALLD})
"""The table of firewalld's nftables backend."""


def judge(foreign: Foreign, ours: Ours) -> tuple[Finding, ...]:
    """Say what hurts, in the order in which an operator should look at it."""
    named = tuple(_forwarding(foreign, ours))
    subjects = {f.subject for f in named}
    return (
        *named,
        *(f for f in filtered(foreign, ours) if f.subject not in subjects),
        *_networkd(foreign, ours),
        *_managers(foreign, ours),
        *_marks(foreign, ours),
        *_early_rules(foreign, ours),
        *(Finding(what, "ForeignUnread", why) for what, why in dict.fromkeys(foreign.unread)),
    )


def filtered(foreign: Foreign, ours: Ours) -> tuple[Finding, ...]:
    """Say what becomes of pods' packets, rule by rule; of firewalld that is said elsewhere."""
    return filtering.judge(foreign.ruleset, ours.traffic, OF_FIREWALLD)


def _forwarding(foreign: Foreign, ours: Ours) -> Iterator[Finding]:
    shutting = [*_shutting(foreign, ours)]
    # Pods' packets may be accepted by a rule in a chain that such a one jumps to.
    accepting = filtering.accepting(
        foreign.ruleset, ours.traffic, frozenset(_id_of(chain) for chain, _ in shutting)
    )
    for chain, shut in shutting:
        if _id_of(chain) not in accepting:
            yield _dropped(chain, shut, ours)
    if FIREWALLD in foreign.tables:
        shut = [
            p
            for p in sorted(ours.patterns)
            if not any(covers(a, p) for a in foreign.firewalld_accepts)
        ]
        if shut:
            yield _rejected(shut)
        elif _stops(foreign, ours):
            yield _rejected(sorted(ours.patterns), RELOAD)


def _shutting(foreign: Foreign, ours: Ours) -> Iterator[tuple[ForwardChain, list[str]]]:
    """Yield chains that drop what none of their own rules accepts, and the links meant by it."""
    for chain in foreign.forward or ():
        served = chain.family == "inet" or chain.family in ours.families
        if not (chain.drops or chain.shut) or not served or chain.table == FIREWALLD:
            continue
        shut = [
            pattern
            for pattern in sorted(ours.patterns)
            if not all(_lets(chain.accepts, way, pattern) for way in ("iifname", "oifname"))
        ]
        if shut:
            yield chain, shut


def _id_of(chain: ForwardChain) -> ChainId:
    return ChainId(chain.backend, chain.family, chain.table, chain.name)


def _lets(accepts: Iterable[tuple[str, str]], way: str, pattern: str) -> bool:
    return any(side == way and covers(accepted, pattern) for side, accepted in accepts)


def _dropped(chain: ForwardChain, shut: list[str], ours: Ours) -> Finding:
    what = "a rule in it drops whatever comes that far" if chain.shut else "its policy is drop"
    why = (
        f"{what}, so packets from and to pods end there; accepting them in a table of our own "
        "would not help, because every chain of a hook has to let a packet pass"
    )
    name = f"chain {chain.path}" + (" (legacy iptables)" if chain.backend == "legacy" else "")
    return Finding(name, "ForwardingDropped", f"{why}; {_opening(chain, shut, ours)}")


IPTABLES = {
    ("ip", "filter", "FORWARD"): "iptables",
    ("ip6", "filter", "FORWARD"): "ip6tables",
}
"""Chains that iptables keeps, in nftables or by itself."""


def _opening(chain: ForwardChain, shut: list[str], ours: Ours) -> str:
    """Say how pods' packets get through a chain."""
    if not is_ours_to_open(chain, ours.families):
        # Ahead of the rule that shuts it, or else where the policy is asked.
        verb, word = ("-I", "insert") if chain.shut else ("-A", "add")
        rules = [(way, p) for p in shut for way in ("iifname", "oifname")]
        program = IPTABLES.get((chain.family, chain.table, chain.name))
        if program:
            program += f"-{chain.backend} {verb} FORWARD"
            jumps = [f"-{way[0]} {p.replace('*', '+')} -j ACCEPT" for way, p in rules]
            commands = [f"{program} {jump}" for jump in jumps]
        else:
            commands = [f"nft {word} rule {chain.path} {way} '{p}' accept" for way, p in rules]
        return f"run: {'; '.join(commands)}"
    if ours.accept_forwarded:
        return "routing.acceptForwarded is set, so rules that accept them will be put there"
    return "set routing.acceptForwarded, or let its owner accept them"


RELOAD = ("firewall-cmd --reload",)
"""What brings into force what the permanent configuration says already."""


def _stops(foreign: Foreign, ours: Ours) -> bool:
    """Whether firewalld's rules, as they are now, reject pods' packets."""
    found = filtering.judge(foreign.ruleset, ours.traffic, OF_FIREWALLD, only=True)
    return any(f.reason == "ForwardingDropped" for f in found)


def _rejected(shut: list[str], only: tuple[str, ...] = ()) -> Finding:
    interfaces = " ".join(f"--add-interface={p.replace('*', '+')}" for p in shut)
    commands = (
        f"firewall-cmd --permanent --zone=trusted {interfaces}",
        "firewall-cmd --permanent --new-policy=to-pods",
        "firewall-cmd --permanent --policy=to-pods --add-ingress-zone=ANY "
        "--add-egress-zone=trusted --set-target=ACCEPT",
        "firewall-cmd --reload",
    )
    return Finding(
        "table inet firewalld",
        "ForwardingDropped",
        "firewalld rejects what no zone forwards, packets from and to pods among them, and no "
        f"rule of ours can override that; run: {'; '.join(only or commands)}",
    )


def _networkd(foreign: Foreign, ours: Ours) -> Iterator[Finding]:
    if foreign.networkd is None:
        return
    cure = (
        "put 'ManageForeignRoutingPolicyRules=no' and 'ManageForeignRoutes=no' under [Network] "
        "into /etc/systemd/networkd.conf.d/90-pods.conf, then restart systemd-networkd"
    )
    rules, routes = foreign.networkd.rules, foreign.networkd.routes
    if rules.value:
        yield Finding(
            f"systemd-networkd, {rules.file or 'by default'}",
            "NetworkdDeletesRules",
            "ManageForeignRoutingPolicyRules is on: whenever it starts or a link changes, it "
            "deletes every ip rule that is not its own; ours come back at once, but packets "
            f"leave by the wrong ENI meanwhile; {cure}",
        )
    managed = sorted(
        m.link for m in foreign.managers if m.program == NETWORKD and m.link in ours.eni_links
    )
    if routes.value and managed:
        yield Finding(
            f"systemd-networkd, {routes.file or 'by default'}",
            "NetworkdDeletesRoutes",
            f"ManageForeignRoutes is on and it manages {', '.join(managed)}: when it configures "
            f"them it deletes our routes over them; {cure}",
        )


NETWORKD, NETWORK_MANAGER = "systemd-networkd", "NetworkManager"

RELEASE = {
    NETWORKD: "narrow the [Match] of that file, or put a file that sorts before it with "
    "'[Link] Unmanaged=yes' and '[Match] Name={link}' into /etc/systemd/network",
    NETWORK_MANAGER: "put '[keyfile]' and 'unmanaged-devices=interface-name:{link}' into "
    "/etc/NetworkManager/conf.d/90-pods.conf, then reload it",
}
"""What an operator does so that a program leaves a link alone."""


def _managers(foreign: Foreign, ours: Ours) -> Iterator[Finding]:
    for tool in foreign.tools:
        yield Finding(
            tool.name,
            "ToolsManageEnis",
            f"{tool.file} lets it give every ENI addresses, routes and rules of its own, beside "
            f"and against ours; {tool.cure}",
        )
    pods: dict[tuple[str, str], list[str]] = {}
    for manager in foreign.managers:
        if manager.link in ours.eni_links:
            yield Finding(
                f"link {manager.link}",
                "ToolsManageEnis",
                f"{manager.program} manages it by {manager.file}: addresses and routes it adds "
                "there compete with ours; "
                f"{RELEASE[manager.program].format(link=manager.link)}",
            )
        elif any(covers(p, manager.link) for p in ours.patterns):
            pods.setdefault((manager.program, manager.file), []).append(manager.link)
    # NetworkManager has a file for each link; what matters is whose they are.
    by_program: dict[str, tuple[str, int]] = {}
    for (program, file), links in sorted(pods.items()):
        first, count = by_program.get(program, (file, 0))
        by_program[program] = (first, count + len(links))
    for program, (file, count) in by_program.items():
        pattern = sorted(ours.patterns, key=lambda p: not p.endswith("*"))[0]
        yield Finding(
            f"{count} links of pods",
            "ToolsManagePods",
            f"{program} manages them by {file}: it may take them down, or delete their routes; "
            f"{RELEASE[program].format(link=pattern)}",
        )


def _marks(foreign: Foreign, ours: Ours) -> Iterator[Finding]:
    for user, trace in users_of(foreign.chains, foreign.tables, ours.mark_mask):
        yield Finding(
            trace,
            "MarkConflict",
            f"{user.name} uses bits {user.mask:#x} of packet marks and our mask is "
            f"{ours.mark_mask:#x}: each takes the other's for its own; {user.cure}",
        )
    for rule in foreign.rules:
        if rule.mask & ours.mark_mask:
            yield Finding(
                str(rule),
                "MarkConflict",
                f"it reads bits of our mask {ours.mark_mask:#x}: it may catch our packets, or "
                "miss its own once we have marked them; give it a mask without these bits, or "
                "routing.markMask eight bits that it leaves alone",
            )


def _early_rules(foreign: Foreign, ours: Ours) -> Iterator[Finding]:
    """Rules that choose pods' route before ours do."""
    families = {f.name for f in FAMILIES.values() if f.nft in ours.families}
    count: dict[tuple[int, int, str], list[ForeignRule]] = {}
    for rule in foreign.rules:
        early = rule.priority <= ENI_PRIORITY + MAX_DEVICE_INDEX and rule.table != LOCAL_TABLE
        if not early or rule.mask or rule.narrow or rule.family not in families:
            continue
        if _takes(rule.source, ours.sources) and _leads_to(rule.destination, ours.sources):
            count.setdefault((rule.priority, rule.table, rule.does), []).append(rule)
    for (_, _, does), rules in sorted(count.items()):
        more = f", and {len(rules) - 1} more like it" if len(rules) > 1 else ""
        harm = (
            "it decides about pods' packets before our rules are asked, so they are dropped, or "
            "find another route or none"
            if does
            else "it sends pods' packets to another table before our rules are asked, so they may "
            "leave by an ENI that their address does not belong to"
        )
        yield Finding(
            f"{rules[0]}{more}",
            "RuleBeforeOurs",
            f"{harm}; delete it, or give it a priority above {ENI_PRIORITY + MAX_DEVICE_INDEX}",
        )


def _leads_to(destination: IpNetwork | None, pods: frozenset[IpNetwork]) -> bool:
    """Whether a rule's destination means pods.

    Not a single address: such a rule, as the stock plugin's, leads to a route of its own.
    """
    if destination is None:
        return True
    return destination.prefixlen < destination.max_prefixlen and any(
        p.version == destination.version and p.network_address in destination for p in pods
    )


def _takes(source: IpNetwork | None, pods: frozenset[IpNetwork]) -> bool:
    """Whether a rule's source means a pod."""
    if source is None or source in pods:
        return True
    return any(p.version == source.version and p.network_address in source for p in pods)
