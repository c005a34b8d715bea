"""One packet through other owners' chains: the possible outcomes, and the rules that cause them.

If a part of the packet or of a rule is not known, the rule may match. So there may be several
outcomes; a single one is certain.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from reconciler.diagnostics.evaluation import Evaluated, Evaluation
from reconciler.diagnostics.packet import UNKNOWN_MARK, Mark, Passage, State
from reconciler.diagnostics.ruleset import OF_LINKS, BaseChain, ChainId, Ruleset, Verdict

MAX_STEPS = 20_000
"""Rules that are looked at for one packet and chain. kube-proxy's mode iptables has one rule for
each service, and a cluster a few thousand services; a ruleset may branch without bound."""

MAX_DEPTH = 32
"""Chains below each other; nftables itself allows 16 (NFT_JUMP_STACK_SIZE)."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A rule that decides, or may.

    Attributes:
        number: of the rule in its chain, from 1; 0 for the chain's policy.
        what: drop, snat, dnat, notrack, rewrite, or "unread" for what could not be walked.
        asks: what could not be evaluated; "" if it decides for certain.
    """

    chain: ChainId
    number: int
    what: str
    asks: str = ""

    def __str__(self) -> str:
        if self.what == "unread":
            return f"chain {self.chain}, which was not read"
        what = f"rule {self.number}" if self.number else "the policy"
        return f"{what} of chain {self.chain}"


@dataclass(frozen=True, slots=True)
class ChainOutcome:
    """What may become of a packet in one base chain.

    Attributes:
        words: accept, drop, snat, dnat; more than one if it is not certain.
        hits: rules that do, or may do, anything but accept.
        mark: as the chain leaves it.
        steps: rules that were looked at; a long one, or one with large sets, is several.
    """

    base: BaseChain
    words: frozenset[str]
    hits: tuple[Hit, ...] = ()
    mark: Mark = UNKNOWN_MARK
    steps: int = 0

    def surely(self, word: str) -> bool:
        """Whether this and nothing else becomes of it."""
        return self.words == {word}

    def hit(self, word: str) -> Hit | None:
        """Return the first rule that does it."""
        return next((h for h in self.hits if h.what == word), None)


def walk(
    base: BaseChain,
    passage: Passage,
    ruleset: Ruleset,
    most: int = MAX_STEPS,
) -> ChainOutcome:
    """Follow a packet through one base chain and all that it jumps to, over so many rules."""
    way = _Way(passage, ruleset, most)
    words, mark = way.chain(base.id, passage.mark, 0)
    if "through" in words:
        words = words - {"through"} | {"drop" if base.drops else "accept"}
        if base.drops:
            way.hits.append(Hit(base.id, 0, "drop"))
    return ChainOutcome(base, frozenset(words), tuple(dict.fromkeys(way.hits)), mark, way.steps)


def at_hook(
    bases: Iterable[BaseChain], hook: str, passage: Passage, ruleset: Ruleset
) -> tuple[ChainOutcome, ...]:
    """Follow a packet through all chains of a hook, in their order; each has to let it pass.

    Chains of type nat see the first packet of a connection only, and one translation is all.
    """
    outcomes: list[ChainOutcome] = []
    families = {"inet", "netdev", "ip" if passage.version == 4 else "ip6"}
    here = [b for b in bases if b.hook == hook and b.id.family in families]
    if hook in OF_LINKS:
        device = passage.incoming if hook == "ingress" else passage.outgoing
        here = [b for b in here if device in b.devices]
    for base in sorted(here, key=lambda b: (b.priority, b.id)):
        if base.type == "nat" and passage.state is not State.NEW:
            continue
        outcome = walk(base, passage, ruleset)
        outcomes.append(outcome)
        passage = replace(passage, mark=outcome.mark)
        if outcome.surely("drop"):
            break
    return tuple(outcomes)


@dataclass(slots=True)
class _Way:
    passage: Passage
    ruleset: Ruleset
    most: int
    hits: list[Hit] = field(default_factory=list)
    steps: int = 0
    asked: tuple[str, ...] = ()
    """What the jumps on the way here have asked for that could not be evaluated."""

    def chain(self, name: ChainId, mark: Mark, depth: int) -> tuple[set[str], Mark]:
        """Return what may become of the packet in a chain; "through" if it comes out again."""
        rules = (
            self.ruleset.rules.get(name) if depth <= MAX_DEPTH and self.steps < self.most else None
        )
        if rules is None:
            self.hits.append(Hit(name, 0, "unread"))
            return {"accept", "drop", "through"}, UNKNOWN_MARK
        words: set[str] = set()
        exits: list[Mark] = []
        for number, rule in enumerate(rules, 1):
            if self.steps >= self.most:
                self.hits.append(Hit(name, 0, "unread"))
                words |= {"accept", "drop", "through"}
                exits.append(UNKNOWN_MARK)
                break
            evaluation = Evaluation(self.passage, mark, name, self.ruleset.elements)
            found = evaluation.of(rule)
            self.steps += evaluation.steps
            if found.truth is False:
                continue
            for what in found.changes:
                asks = ", ".join(dict.fromkeys(a for a in (*self.asked, found.asks) if a))
                self.hits.append(Hit(name, number, what, asks))
            possible, after = self._verdicts(found, name, number, depth)
            if "return" in possible:
                exits.append(after)
            words |= possible - {"through"}
            if "through" not in possible:
                break
            mark = after if found.truth else mark.joined(after)
        else:
            exits.append(mark)
            words.add("through")
        if "return" in words:
            words = words - {"return"} | {"through"}
        for other in exits[1:]:
            exits[0] = exits[0].joined(other)
        return words, exits[0] if exits else mark

    def _verdicts(
        self, found: Evaluated, name: ChainId, number: int, depth: int
    ) -> tuple[set[str], Mark]:
        possible: set[str] = set() if found.verdicts and found.truth else {"through"}
        mark = found.mark
        before = self.asked
        self.asked = (*before, found.asks) if found.asks else before
        for verdict in found.verdicts:
            words, after = self._verdict(verdict, name, found.mark, depth)
            possible |= words
            mark = mark.joined(after) if len(found.verdicts) > 1 else after
            if verdict.word in ("drop", "snat", "dnat"):
                asks = ", ".join(dict.fromkeys(self.asked))
                self.hits.append(Hit(name, number, verdict.word, asks))
        self.asked = before
        return possible, mark

    def _verdict(
        self, verdict: Verdict, name: ChainId, mark: Mark, depth: int
    ) -> tuple[set[str], Mark]:
        if verdict.word not in ("jump", "goto"):
            return {verdict.word}, mark
        there = ChainId(name.backend, name.family, name.table, verdict.chain)
        words, after = self.chain(there, mark, depth + 1)
        if verdict.word == "goto" and "through" in words:
            words = words - {"through"} | {"return"}
        return words, after
