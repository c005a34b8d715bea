"""What was seen of other owners on the node, and what of ours is at stake."""

from __future__ import annotations

from dataclasses import dataclass

from reconciler.core.datapath import MAIN_TABLE, IpNetwork
from reconciler.core.forward import ForwardChain
from reconciler.diagnostics.filtering import Traffic
from reconciler.diagnostics.ruleset import Ruleset

NETWORKD, NETWORK_MANAGER = "systemd-networkd", "NetworkManager"

NO_RULES, NO_TRAFFIC = Ruleset(), Traffic()


@dataclass(frozen=True, slots=True)
class ForeignRule:
    """An ``ip rule`` of another owner.

    Attributes:
        mark, mask: of its fwmark; a mask of 0 is none.
        selects_more: it selects by something else as well: a link, a user.
        does: what it does in place of looking the table up: prohibit, or goto and a priority.
    """

    family: str
    priority: int
    table: int
    mark: int = 0
    mask: int = 0
    source: IpNetwork | None = None
    selects_more: bool = False
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
