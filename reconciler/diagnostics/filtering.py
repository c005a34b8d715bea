"""Chains of other owners that stop pods' packets, or rewrite where they come from.

Packets of some pods are followed. What certainly happens to all of them is an issue. A rule that
stops one pod, or one destination, is a policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from reconciler.core.datapath import IpAddress, IpNetwork
from reconciler.core.remembered import Remembered
from reconciler.diagnostics.packet import Passage, State
from reconciler.diagnostics.ruleset import BaseChain, ChainId, Ruleset
from reconciler.diagnostics.walk import ChainOutcome, Hit, walk
from reconciler.engine.issue import Issue

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


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod whose packets are followed.

    Attributes:
        veth: the host's end of its link; ``prefix*`` for a pod that may come.
        link: of the ENI that its packets leave and come by.
    """

    veth: str
    address: IpAddress
    link: str


@dataclass(frozen=True, slots=True)
class Traffic:
    """What passes a node for its pods.

    Attributes:
        pods: those that are tried.
        hosts: addresses of the host, one for each family.
        kept: destinations that must see pods' own addresses.
        patterns: names of pods' links, as nftables writes them.
    """

    pods: tuple[Pod, ...] = ()
    hosts: tuple[IpAddress, ...] = ()
    kept: tuple[IpNetwork, ...] = ()
    patterns: tuple[str, ...] = ()

    def by_link(self, version: int) -> list[list[Pod]]:
        """Return the pods of a family, those of one ENI together."""
        groups: dict[str, list[Pod]] = {}
        for pod in self.pods:
            if pod.address.version == version:
                groups.setdefault(pod.link, []).append(pod)
        return list(groups.values())


def sample(pods: Iterable[Pod]) -> tuple[Pod, ...]:
    """Choose some pods of some ENIs."""
    chosen: dict[tuple[str, int], list[Pod]] = {}
    for pod in pods:
        group = chosen.setdefault((pod.link, pod.address.version), [])
        if len(group) < MAX_PODS:
            group.append(pod)
    links = list(dict.fromkeys(link for link, _ in chosen))[:MAX_LINKS]
    return tuple(pod for (link, _), group in chosen.items() if link in links for pod in group)


def judge(
    ruleset: Ruleset, traffic: Traffic, tables: frozenset[str] = frozenset(), *, only: bool = False
) -> tuple[Issue, ...]:
    """Say which chains stop pods' packets, and which could not be read.

    The last answer is kept: most passes change neither the chains nor the pods.

    Args:
        ruleset: other owners' chains.
        traffic: what has to pass.
        tables: whose chains are left out.
        only: whose chains are looked at instead.
    """
    found: tuple[Issue, ...] = _JUDGES[only](ruleset, traffic, tables, only)
    return found


def _judge(
    ruleset: Ruleset, traffic: Traffic, tables: frozenset[str], which: bool
) -> tuple[Issue, ...]:
    bases = [b for b in ruleset.bases if (b.id.table in tables) is which]
    bases.sort(key=lambda b: (b.type == "nat", b.hook in HOST))
    trial = _Trial(ruleset, traffic)
    return (*dict.fromkeys(issue for base in bases for issue in _issues(base, trial)),)


_JUDGES = {which: Remembered(_judge) for which in (False, True)}
"""The last answers, and no earlier ones: traffic may name 10,000 CIDRs."""


def accepting(
    ruleset: Ruleset, traffic: Traffic, chains: frozenset[ChainId]
) -> frozenset[ChainId]:
    """Return which of some forward chains accept packets from and to pods for certain.

    The last answer is kept. Of chains beyond the bound on steps nothing is certain.
    """
    found: frozenset[ChainId] = _ACCEPTING(ruleset, traffic, chains)
    return found


def _accepting(
    ruleset: Ruleset, traffic: Traffic, chains: frozenset[ChainId]
) -> frozenset[ChainId]:
    trial = _Trial(ruleset, traffic)

    def accepts(base: BaseChain) -> bool:
        outcomes = [trial.walk(base, p) for _, way in _directions(base, traffic) for p in way]
        return bool(outcomes) and all(f.surely("accept") for f in outcomes)

    bases = (b for b in ruleset.bases if b.id in chains and b.hook == "forward")
    return frozenset(b.id for b in bases if accepts(b))


_ACCEPTING = Remembered(_accepting)


class _Trial:
    """Sends packets through a ruleset, within a bound on all of them."""

    def __init__(self, ruleset: Ruleset, traffic: Traffic) -> None:
        self.traffic = traffic
        self._ruleset = ruleset
        self._left = MAX_STEPS_IN_ALL

    def walk(self, base: BaseChain, passage: Passage) -> ChainOutcome:
        outcome = walk(base, passage, self._ruleset, min(MAX_STEPS, self._left))
        self._left -= outcome.steps
        return outcome


def _directions(base: BaseChain, traffic: Traffic) -> Iterator[tuple[str, list[Passage]]]:
    """Yield the first packets of connections from pods of an ENI, and of connections to them."""
    for version in _versions(base):
        for pods in traffic.by_link(version):
            yield "from", [p for pod in pods for p in _sent(base, pod)]
            yield "to", [p for pod in pods for p in _received(base, pod)]


def _sent(base: BaseChain, pod: Pod) -> Iterator[Passage]:
    """What a pod sends beyond the node, as it is at a chain's hook."""
    match base.hook:
        case "prerouting":
            yield Passage(pod.veth, "", pod.address, None, has_way_back=True)
        case "forward":
            yield Passage(pod.veth, pod.link, pod.address, None)
        case "postrouting":
            yield Passage("", pod.link, pod.address, None)
        case "egress" if pod.link in base.devices:
            yield Passage("", pod.link, pod.address, None, state=None)


def _received(base: BaseChain, pod: Pod) -> Iterator[Passage]:
    match base.hook:
        case "prerouting":
            yield Passage(pod.link, "", None, pod.address)
        case "forward":
            yield Passage(pod.link, pod.veth, None, pod.address)
        case "postrouting":
            yield Passage("", pod.veth, None, pod.address)
        case "ingress" if pod.link in base.devices:
            yield Passage(pod.link, "", None, pod.address, state=None)


def _versions(base: BaseChain) -> tuple[int, ...]:
    return {"ip": (4,), "ip6": (6,), "inet": (4, 6), "netdev": (4, 6)}.get(base.id.family, ())


def _issues(base: BaseChain, trial: _Trial) -> Iterator[Issue]:
    for asked in _questions(base, trial.traffic):
        outcomes = [trial.walk(base, p) for p in asked.packets]
        if hit := _certain(outcomes, asked.word, trial.traffic):
            yield Issue(f"chain {base.id}", asked.reason, f"{hit} {asked.meaning}")
        if asked.word == "drop":
            yield from _unread(base, outcomes)


@dataclass(frozen=True, slots=True)
class _Question:
    """Whether a chain does the same to all of some packets, and what that means."""

    packets: list[Passage]
    word: str
    reason: str
    meaning: str


def _questions(base: BaseChain, traffic: Traffic) -> Iterator[_Question]:
    if base.type == "nat":
        yield from _kept(base, traffic) if base.hook == "postrouting" else ()
    elif base.hook in HOST:
        packets = [
            _probe(base.hook, pod, host)
            for version in _versions(base)
            for pods in traffic.by_link(version)
            for pod in pods
            for host in traffic.hosts
            if host.version == version
        ]
        reason, meaning = HOST[base.hook]
        text = f"drops or rejects {meaning} {_links(traffic)}"
        yield _Question(packets, "drop", reason, text)
    else:
        for direction, packets in _directions(base, traffic):
            yield _Question(
                packets,
                "drop",
                "ForwardingDropped",
                f"drops or rejects packets {direction} pods, so they end there; "
                "accepting them in another table or at this chain's end does not help, "
                "because that rule comes first: change it, or put ahead of it one that "
                f"accepts what comes from, and goes to, {_links(traffic)}",
            )


HOST = {
    "input": (
        "InputDropped",
        "what pods answer to this node, so probes of kubelet fail, and nothing on the node "
        "reaches a pod; put ahead of it a rule that accepts established connections, or what "
        "comes from",
    ),
    "output": (
        "OutputDropped",
        "what this node sends to pods, so probes of kubelet fail, and nothing on the node reaches "
        "a pod; put ahead of it a rule that accepts what goes to",
    ),
}
"""Hook: the reason, and what it means."""


def _probe(hook: str, pod: Pod, host: IpAddress) -> Passage:
    if hook == "output":
        return Passage("", pod.veth, host, pod.address, TCP, local=False)
    state = State.ESTABLISHED
    return Passage(pod.veth, "", pod.address, host, TCP, state=state, local=True)


def _kept(base: BaseChain, traffic: Traffic) -> Iterator[_Question]:
    """Ask who rewrites the source of packets for which the document keeps it."""
    for network in traffic.kept[:MAX_KEPT]:
        if network.version not in _versions(base):
            continue
        far = network.network_address + (network.num_addresses - 1) // 2
        packets = [
            Passage("", p.link, p.address, far)
            for pods in traffic.by_link(network.version)
            for p in pods
            if p.address != far
        ]
        meaning = (
            f"translates the source of pods' packets to {network}, whose receivers shall see "
            "pods' own addresses by this document; take pods out of that rule, or delete it"
        )
        yield _Question(packets, "snat", "SourceRewritten", meaning)


def _certain(outcomes: list[ChainOutcome], word: str, traffic: Traffic) -> Hit | None:
    """Return the rule that does it to all of some packets for certain; None if none does."""
    if not outcomes or not all(o.surely(word) for o in outcomes):
        return None
    hit = outcomes[0].hit(word)
    may_come = any(p.veth.endswith("*") for p in traffic.pods)
    is_felix = hit is not None and word == "drop" and hit.chain.name.startswith(FELIX)
    return None if may_come and is_felix else hit


def _links(traffic: Traffic) -> str:
    return ", ".join(traffic.patterns) or "pods' links"


def _unread(base: BaseChain, outcomes: list[ChainOutcome]) -> Iterator[Issue]:
    hits = {h.chain: h for f in outcomes if len(f.words) > 1 for h in f.hits if h.what == "unread"}
    for chain in hits:
        yield Issue(
            f"chain {chain}",
            "ForeignUnread",
            f"it has more rules than are read, or changes all the time, so whether "
            f"{base.hook} packets of pods end in it is not known; 'node-network trace' asks for "
            "one connection",
        )
