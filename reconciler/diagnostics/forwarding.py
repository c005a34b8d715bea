"""Chains of other owners that stop pods' packets, or rewrite where they come from.

Packets of some pods are followed. What certainly happens to all of them is an issue. A rule that
stops one pod, or one destination, is a policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from reconciler.core.datapath import IpAddress
from reconciler.core.facts import ForwardChain, covers, is_ours_to_open
from reconciler.core.remembered import Remembered
from reconciler.diagnostics.foreign import Foreign, Ours, Pod, Traffic
from reconciler.diagnostics.packet import Passage, State
from reconciler.diagnostics.ruleset import BaseChain, ChainId, Ruleset
from reconciler.diagnostics.walk import ChainOutcome, walk
from reconciler.errors import Issue

MAX_PODS = 2
"""Pods of each ENI and family whose packets are followed: what stops one alone may be a policy."""

MAX_LINKS = 4
"""ENIs whose pods are tried."""

MAX_KEPT = 4
"""Networks for which pods' addresses must stay what they are, and are tried."""

MAX_STEPS, MAX_STEPS_IN_ALL = 5_000, 30_000
"""Rules that are evaluated for one packet in one chain, and for all of a ruleset; one costs some
ten microseconds, and pods wait meanwhile. Beyond it a chain is reported as not read."""

TCP = 6

FELIX = "cali-"
"""Chains of Calico's Felix, which drops the packets of links that it does not know as a pod's."""

FIREWALLD = "firewalld"
"""The table of firewalld's nftables backend."""

IPTABLES = {
    ("ip", "filter", "FORWARD"): "iptables",
    ("ip6", "filter", "FORWARD"): "ip6tables",
}
"""Chains that iptables keeps, in nftables or by itself."""

RELOAD = "firewall-cmd --reload"
"""What brings into force what the permanent configuration says already."""

VERSIONS = {"ip": (4,), "ip6": (6,), "inet": (4, 6), "netdev": (4, 6)}

HOST = {
    "input": (
        "InputDropped",
        "drops or rejects what pods answer to this node, so probes of kubelet fail, and nothing "
        "on the node reaches a pod; put ahead of it a rule that accepts established connections, "
        "or what comes from",
    ),
    "output": (
        "OutputDropped",
        "drops or rejects what this node sends to pods, so probes of kubelet fail, and nothing on "
        "the node reaches a pod; put ahead of it a rule that accepts what goes to",
    ),
}
"""Hook: the reason, and what it means."""

Question = tuple[list[Passage], str, str, str]
"""Whether a chain does the same to all of some packets: they, what it does, a reason, and what it
means."""


def sample(pods: Iterable[Pod]) -> tuple[Pod, ...]:
    """Choose some pods of some ENIs."""
    chosen: dict[tuple[str, int], list[Pod]] = {}
    for pod in pods:
        group = chosen.setdefault((pod.link, pod.address.version), [])
        if len(group) < MAX_PODS:
            group.append(pod)
    links = list(dict.fromkeys(link for link, _ in chosen))[:MAX_LINKS]
    return tuple(pod for (link, _), group in chosen.items() if link in links for pod in group)


def judge(foreign: Foreign, ours: Ours) -> tuple[Issue, ...]:
    """Name what stops or rewrites pods' packets: chains as a whole first, then single rules."""
    found = judge_chains(foreign.ruleset, ours.traffic)
    of_firewalld = {f"chain {c}" for c in foreign.ruleset.rules if c.table == FIREWALLD}
    rejects = any(f.subject in of_firewalld and f.reason == "ForwardingDropped" for f in found)
    named = (*_shutting(foreign, ours), *_firewalld(foreign, ours, rejects=rejects))
    subjects = {f.subject for f in named} | {what for what, _ in foreign.unread} | of_firewalld
    return (*named, *(f for f in found if f.subject not in subjects))


def _shutting(foreign: Foreign, ours: Ours) -> Iterator[Issue]:
    """Name chains that drop what none of their own rules accepts."""
    shutting: dict[ChainId, tuple[ForwardChain, list[str]]] = {}
    for chain in foreign.forward or ():
        served = chain.family == "inet" or chain.family in ours.families
        if not (chain.drops or chain.shut) or not served or chain.table == FIREWALLD:
            continue
        shut = [
            pattern
            for pattern in sorted(ours.patterns)
            for way in ("iifname", "oifname")
            if not any(side == way and covers(a, pattern) for side, a in chain.accepts)
        ]
        if shut:
            name = ChainId(chain.backend, chain.family, chain.table, chain.name)
            shutting[name] = chain, [*dict.fromkeys(shut)]
    # Pods' packets may be accepted by a rule in a chain that such a one jumps to.
    open_ = accepting(foreign.ruleset, ours.traffic, frozenset(shutting))
    for name, (chain, shut) in shutting.items():
        what = "a rule in it drops every packet that reaches it"
        what = what if chain.shut else "its policy is drop"
        why = (
            f"{what}, so packets from and to pods end there; accepting them in a table of our own "
            "would not help, because every chain of a hook has to let a packet pass"
        )
        if name not in open_:
            cure = _opening(chain, shut, ours)
            yield Issue(f"chain {name}", "ForwardingDropped", f"{why}; {cure}")


def _opening(chain: ForwardChain, shut: list[str], ours: Ours) -> str:
    """Say how pods' packets get through a chain."""
    if not is_ours_to_open(chain, ours.families):
        # Ahead of the rule that shuts it, or else where the policy is asked.
        verb, word = ("-I", "insert") if chain.shut else ("-A", "add")
        rules = [(way, p) for p in shut for way in ("iifname", "oifname")]
        program = IPTABLES.get((chain.family, chain.table, chain.name))
        if program:
            program += f"-{chain.backend} {verb} FORWARD"
            commands = [f"{program} -{w[0]} {p.replace('*', '+')} -j ACCEPT" for w, p in rules]
        else:
            commands = [f"nft {word} rule {chain.path} {way} '{p}' accept" for way, p in rules]
        return f"run: {'; '.join(commands)}"
    if ours.accept_forwarded:
        return "routing.acceptForwarded is set, so rules that accept them will be put there"
    return "set routing.acceptForwarded, or let its owner accept them"


def _firewalld(foreign: Foreign, ours: Ours, *, rejects: bool) -> Iterator[Issue]:
    patterns = sorted(ours.patterns)
    shut = [p for p in patterns if not any(covers(a, p) for a in foreign.firewalld_accepts)]
    if FIREWALLD not in foreign.tables or not (shut or rejects):
        return
    interfaces = " ".join(f"--add-interface={p.replace('*', '+')}" for p in shut)
    commands = (
        f"firewall-cmd --permanent --zone=trusted {interfaces}",
        "firewall-cmd --permanent --new-policy=to-pods",
        "firewall-cmd --permanent --policy=to-pods --add-ingress-zone=ANY "
        "--add-egress-zone=trusted --set-target=ACCEPT",
        RELOAD,
    )
    yield Issue(
        "table inet firewalld",
        "ForwardingDropped",
        "firewalld rejects what no zone forwards, packets from and to pods among them, and no "
        f"rule of ours can override that; run: {'; '.join(commands if shut else (RELOAD,))}",
    )


class _Trial:
    """Sends packets through a ruleset, within a bound on all of them."""

    def __init__(self, ruleset: Ruleset) -> None:
        self._ruleset = ruleset
        self._left = MAX_STEPS_IN_ALL

    def walk(self, base: BaseChain, packets: Iterable[Passage]) -> list[ChainOutcome]:
        outcomes = []
        for passage in packets:
            outcomes.append(walk(base, passage, self._ruleset, min(MAX_STEPS, self._left)))
            self._left -= outcomes[-1].steps
        return outcomes


@Remembered
def judge_chains(ruleset: Ruleset, traffic: Traffic) -> tuple[Issue, ...]:
    """Say which chains stop pods' packets, and which could not be read.

    The last answer is kept, and no earlier one: traffic may name 10,000 CIDRs. Most passes change
    neither the chains nor the pods.
    """
    order = sorted(
        ruleset.bases, key=lambda b: (b.id.table == FIREWALLD, b.type == "nat", b.hook in HOST)
    )
    trial = _Trial(ruleset)
    return (*dict.fromkeys(issue for base in order for issue in _issues(base, trial, traffic)),)


@Remembered
def accepting(
    ruleset: Ruleset, traffic: Traffic, chains: frozenset[ChainId]
) -> frozenset[ChainId]:
    """Return which of some forward chains accept packets from and to pods for certain.

    The last answer is kept. Of chains beyond the bound on steps nothing is certain.
    """
    trial, found = _Trial(ruleset), set()
    for base in ruleset.bases:
        if base.id in chains and base.hook == "forward":
            packets = [p for _, way in _directions(base, traffic) for p in way]
            outcomes = trial.walk(base, packets)
            if outcomes and all(f.surely("accept") for f in outcomes):
                found.add(base.id)
    return frozenset(found)


def _groups(traffic: Traffic, base: BaseChain) -> Iterator[tuple[int, list[Pod]]]:
    """Yield the pods of each family that a chain sees, those of one ENI together."""
    groups: dict[tuple[int, str], list[Pod]] = {}
    for pod in traffic.pods:
        groups.setdefault((pod.address.version, pod.link), []).append(pod)
    for (version, _), pods in groups.items():
        if version in VERSIONS.get(base.id.family, ()):
            yield version, pods


def _directions(base: BaseChain, traffic: Traffic) -> Iterator[tuple[str, list[Passage]]]:
    """Yield the first packets of connections from pods of an ENI, and of connections to them."""
    for _, pods in _groups(traffic, base):
        yield "from", [p for pod in pods for p in _forwarded(base, pod, is_sent=True)]
        yield "to", [p for pod in pods for p in _forwarded(base, pod, is_sent=False)]


def _forwarded(base: BaseChain, pod: Pod, *, is_sent: bool) -> Iterator[Passage]:
    """Yield what a pod sends beyond the node, or gets from there, as it is at a chain's hook."""
    source, to = (pod.address, None) if is_sent else (None, pod.address)
    come, leave = (pod.veth, pod.link) if is_sent else (pod.link, pod.veth)
    match base.hook:
        case "prerouting":
            yield Passage(come, "", source, to, has_way_back=True if is_sent else None)
        case "forward":
            yield Passage(come, leave, source, to)
        case "postrouting":
            yield Passage("", leave, source, to)
        case "egress" if is_sent and leave in base.devices:
            yield Passage("", leave, source, to, state=None)
        case "ingress" if not is_sent and come in base.devices:
            yield Passage(come, "", source, to, state=None)


def _issues(base: BaseChain, trial: _Trial, traffic: Traffic) -> Iterator[Issue]:
    for packets, word, reason, meaning in _questions(base, traffic):
        outcomes = trial.walk(base, packets)
        if outcomes and all(o.surely(word) for o in outcomes):
            hit = next((h for h in outcomes[0].hits if h.what == word), None)
            may_come = any(p.veth.endswith("*") for p in traffic.pods)
            is_felix = hit and word == "drop" and hit.chain.name.startswith(FELIX)
            if hit and not (may_come and is_felix):
                yield Issue(f"chain {base.id}", reason, f"{hit} {meaning}")
        unread = (h for o in outcomes if len(o.words) > 1 for h in o.hits if h.what == "unread")
        for chain in dict.fromkeys(h.chain for h in unread) if word == "drop" else ():
            yield Issue(
                f"chain {chain}",
                "ForeignUnread",
                "it has more rules than are read, or changes all the time, so whether "
                f"{base.hook} packets of pods end in it is not known; 'node-network trace' asks "
                "for one connection",
            )


def _questions(base: BaseChain, traffic: Traffic) -> Iterator[Question]:
    links = ", ".join(traffic.patterns) or "pods' links"
    if base.type == "nat":
        yield from _kept(base, traffic) if base.hook == "postrouting" else ()
    elif base.hook in HOST:
        packets = [
            _probe(base.hook, pod, host)
            for version, pods in _groups(traffic, base)
            for pod in pods
            for host in traffic.hosts
            if host.version == version
        ]
        reason, meaning = HOST[base.hook]
        yield packets, "drop", reason, f"{meaning} {links}"
    else:
        for direction, packets in _directions(base, traffic):
            meaning = (
                f"drops or rejects packets {direction} pods, so they end there; accepting them in "
                "another table or at this chain's end does not help, because that rule comes "
                "first: change it, or put ahead of it one that accepts what comes from, and goes "
                f"to, {links}"
            )
            yield packets, "drop", "ForwardingDropped", meaning


def _probe(hook: str, pod: Pod, host: IpAddress) -> Passage:
    if hook == "output":
        return Passage("", pod.veth, host, pod.address, TCP, local=False)
    state = State.ESTABLISHED
    return Passage(pod.veth, "", pod.address, host, TCP, state=state, local=True)


def _kept(base: BaseChain, traffic: Traffic) -> Iterator[Question]:
    """Ask who rewrites the source of packets for which the document keeps it."""
    for network in traffic.kept[:MAX_KEPT]:
        far = network.network_address + (network.num_addresses - 1) // 2
        packets = [
            Passage("", p.link, p.address, far)
            for version, pods in _groups(traffic, base)
            for p in pods
            if version == network.version and p.address != far
        ]
        meaning = (
            f"translates the source of pods' packets to {network}, whose receivers shall see "
            "pods' own addresses by this document; take pods out of that rule, or delete it"
        )
        yield packets, "snat", "SourceRewritten", meaning
