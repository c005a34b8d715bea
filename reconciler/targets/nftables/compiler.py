"""What the kernel makes of our rules: the door to ``nftables``.

libnftables translates a rule's text into the kernel's expressions. It first loads the chains and
sets of every owner, and a crafted one ends the process. So it works in an empty network namespace,
and the expressions that the kernel holds there are copied.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import nftables

from reconciler.core.datapath import FAMILIES, TABLE
from reconciler.domains.nat import NftChain
from reconciler.domains.nat_rules import SETS
from reconciler.errors import ObserveError
from reconciler.targets.netlink.namespaces import empty_namespace
from reconciler.targets.netlink.nf_tables import text
from reconciler.targets.netlink.ruleset import Nfnetlink

Json = dict[str, Any]

_TARGET = re.compile(r'"target":"([^"]+)"')


class CompileError(Exception):
    """libnftables, or the kernel, does not take a rule of ours."""


class Compiler:
    """Remembers what it was last asked for."""

    def __init__(self) -> None:
        self._known: dict[NftChain, tuple[bytes, ...]] = {}

    def compile(self, chains: Iterable[NftChain]) -> Mapping[NftChain, tuple[bytes, ...]]:
        """Return the expressions of each rule of some chains, as the kernel has them.

        Raises:
            CompileError: one of them is refused.
            ObserveError: there is no namespace to translate them in.
        """
        wanted = list(chains)
        if missing := [c for c in wanted if c not in self._known]:
            kept = {c: self._known[c] for c in wanted if c in self._known}
            self._known = kept | _compile(missing)
        return self._known


def _compile(chains: list[NftChain]) -> dict[NftChain, tuple[bytes, ...]]:
    try:
        with empty_namespace():
            library = nftables.Nftables()
            code, _, error = library.json_cmd({"nftables": _script(chains)})
            if code != 0:
                raise CompileError(" ".join(str(error).split())[:256])
            made = Nfnetlink().table_rules("inet", TABLE)
    except OSError as error:
        why = f"no empty network namespace to translate our rules in: {error}"
        raise ObserveError("nftables", why) from error
    by_chain: dict[str, list[bytes]] = {}
    for name, expressions in made:
        by_chain.setdefault(text(name), []).append(expressions)
    if any(len(by_chain.get(c.name, ())) != len(c.rules) for c in chains):
        raise CompileError("the kernel holds another number of rules than were written")
    return {c: tuple(by_chain.get(c.name, ())) for c in chains}


def _script(chains: list[NftChain]) -> list[Json]:
    """Define everything that a rule may name, and then the rules."""
    table = {"family": "inet", "name": TABLE}
    place = {"family": "inet", "table": TABLE}
    named = {target for c in chains for rule in c.rules for target in _TARGET.findall(rule)}
    hooks = {
        c.name: {"type": c.type, "hook": c.hook, "prio": c.priority, "policy": "accept"}
        for c in chains
        if c.hook
    }
    commands: list[Json] = [{"add": {"table": table}}]
    for family, sets in SETS.items():
        of = place | {"type": FAMILIES[family].nft_type}
        ranges = [
            of | {"name": name, "flags": ["interval"]} for name in (sets.no_snat, sets.by_main)
        ]
        commands += [{"add": {"set": body}} for body in (*ranges, of | {"name": sets.pods})]
        commands.append({"add": {"map": of | {"name": sets.pod_eni, "map": "verdict"}}})
    commands += [
        {"add": {"chain": place | {"name": name} | hooks.get(name, {})}}
        for name in sorted({c.name for c in chains} | named)
    ]
    commands += [
        {"add": {"rule": place | {"chain": c.name, "expr": json.loads(rule)}}}
        for c in chains
        for rule in c.rules
    ]
    return commands
