"""Who on the node looks at each packet that is forwarded, and would miss those of the fast path.

A chain of type nat sees first packets alone; kube-proxy's chains decide about first packets, and
let all others pass. Of everything else one rule is enough: what it is for is not known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from reconciler.diagnostics.foreign import Foreign
from reconciler.diagnostics.ruleset import Rule, Ruleset, Verdict, accepted_link
from reconciler.errors import Issue

REASON = "FastPathHeld"

HOOKS = frozenset({"prerouting", "forward", "postrouting", "ingress", "egress"})
"""That a forwarded packet passes."""

KUBE_PROXY = "KUBE-"
"""How the names of kube-proxy's chains begin in iptables. Its own tables of nftables are not among
those that are looked at."""

PLAIN_QUEUES = frozenset({"noqueue", "mq", "pfifo_fast", "pfifo", "fq", "fq_codel", "sfq"})
"""Queues that a link may have by net.core.default_qdisc, or by itself; they shape nothing."""

MOST = 4
"""Of each kind that are named: what they are is the same for each link."""


def judge(foreign: Foreign | None, queues: Iterable[tuple[str, str]]) -> tuple[Issue, ...]:
    """Say what does, and what was not looked at.

    Args:
        foreign: what was seen of other owners; None if that is not known.
        queues: of the links in question each link's name and the kind of its queue.
    """
    if foreign is None:
        return (Issue("other owners' rules", REASON, "it is not known yet which there are"),)
    unread = (Issue(what, REASON, f"it was not looked at: {why}") for what, why in foreign.unread)
    return (*_of_chains(foreign.ruleset), *_of_queues(queues), *list(unread)[:MOST])


def _of_chains(ruleset: Ruleset) -> Iterator[Issue]:
    for base in ruleset.bases:
        if base.hook not in HOOKS or base.type == "nat":
            continue
        rules = ruleset.rules.get(base.id)
        if rules is None or not all(map(_is_of_first_packets, rules)):
            why = (
                f"its rules are asked for each packet at hook {base.hook}, and would not be for "
                "what passes by the fast path"
            )
            yield Issue(f"chain {base.id}", REASON, why)


def _is_of_first_packets(rule: Rule) -> bool:
    """Whether a rule leads to kube-proxy's chains, or only accepts by a link, as ours there do."""
    chains = [e.chain for e in rule if isinstance(e, Verdict)]
    is_kube_proxys = bool(chains) and all(c.startswith(KUBE_PROXY) for c in chains)
    return is_kube_proxys or accepted_link(rule) is not None


def _of_queues(queues: Iterable[tuple[str, str]]) -> Iterator[Issue]:
    found: dict[str, list[str]] = {}
    for link, kind in queues:
        if kind not in PLAIN_QUEUES:
            found.setdefault(kind, []).append(link)
    for kind, links in sorted(found.items()):
        more = f" and {len(links) - 1} more" if len(links) > 1 else ""
        why = f"tc has {kind} there, which may shape or filter by what rulesets say of a packet"
        yield Issue(f"link {min(links)}{more}", REASON, why)
