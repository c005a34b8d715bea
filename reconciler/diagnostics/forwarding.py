"""Forward chains of other owners that stop pods' packets, and what opens them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from reconciler.core.forward import ForwardChain, covers, is_ours_to_open
from reconciler.diagnostics import filtering
from reconciler.diagnostics.foreign import Foreign, Ours
from reconciler.diagnostics.ruleset import ChainId
from reconciler.engine.issue import Issue

FIREWALLD = "firewalld"
OF_FIREWALLD = frozenset({FIREWALLD})
"""The table of firewalld's nftables backend."""


def judge(foreign: Foreign, ours: Ours) -> tuple[Issue, ...]:
    """Name what stops or rewrites pods' packets: chains as a whole first, then single rules."""
    named = tuple(_forwarding(foreign, ours))
    subjects = {f.subject for f in named} | {what for what, _ in foreign.unread}
    found = filtering.judge(foreign.ruleset, ours.traffic, OF_FIREWALLD)
    return (*named, *(f for f in found if f.subject not in subjects))


def _forwarding(foreign: Foreign, ours: Ours) -> Iterator[Issue]:
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


def _dropped(chain: ForwardChain, shut: list[str], ours: Ours) -> Issue:
    what = (
        "a rule in it drops every packet that reaches it" if chain.shut else "its policy is drop"
    )
    why = (
        f"{what}, so packets from and to pods end there; accepting them in a table of our own "
        "would not help, because every chain of a hook has to let a packet pass"
    )
    return Issue(
        f"chain {_id_of(chain)}", "ForwardingDropped", f"{why}; {_opening(chain, shut, ours)}"
    )


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


def _rejected(shut: list[str], only: tuple[str, ...] = ()) -> Issue:
    interfaces = " ".join(f"--add-interface={p.replace('*', '+')}" for p in shut)
    commands = (
        f"firewall-cmd --permanent --zone=trusted {interfaces}",
        "firewall-cmd --permanent --new-policy=to-pods",
        "firewall-cmd --permanent --policy=to-pods --add-ingress-zone=ANY "
        "--add-egress-zone=trusted --set-target=ACCEPT",
        "firewall-cmd --reload",
    )
    return Issue(
        "table inet firewalld",
        "ForwardingDropped",
        "firewalld rejects what no zone forwards, packets from and to pods among them, and no "
        f"rule of ours can override that; run: {'; '.join(only or commands)}",
    )
