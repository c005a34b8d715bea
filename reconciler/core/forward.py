"""Forward chains of other owners: every chain of a hook has to let a packet pass."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ForwardChain:
    """A base chain of another owner that forwarded packets pass.

    Attributes:
        family: nftables' word: ip, ip6 or inet.
        backend: "nft", or "legacy" for what only iptables-legacy shows.
        drops: its policy is to drop what no rule accepts.
        shut: a rule in it drops or rejects every packet that reaches it.
        accepts: (iifname or oifname, pattern) of its rules that accept what comes from, or
            goes to, such links; those behind a rule that shuts it do not count.
    """

    family: str
    table: str
    name: str
    backend: str = "nft"
    drops: bool = False
    shut: bool = False
    accepts: frozenset[tuple[str, str]] = frozenset()

    @property
    def path(self) -> str:
        """As ``nft`` names it."""
        return f"{self.family} {self.table} {self.name}"


def is_ours_to_open(chain: ForwardChain, families: frozenset[str]) -> bool:
    """Whether rules of ours can make this chain let pods' packets pass."""
    served = chain.family == "inet" or chain.family in families
    by_policy = chain.drops and not chain.shut
    return by_policy and chain.backend == "nft" and served


def covers(pattern: str, other: str) -> bool:
    """Whether every link name that ``other`` means is one that ``pattern`` means."""
    if pattern.endswith("*"):
        return other.removesuffix("*").startswith(pattern[:-1])
    return pattern == other
