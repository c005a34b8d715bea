"""Egress identities: the address by which a namespace's pods are known outside the VPC.

One for each namespace and pod group that a rule ``as: dedicated`` is for, from the first pod on
this node. It is of an ENI of the group, so that connections leave by the group's security groups.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, NamedTuple

from reconciler.core.datapath import FAMILIES, IpAddress
from reconciler.core.facts import Eni
from reconciler.engine.plan import Key, Verb
from schemas.document import NodeNetwork
from schemas.group import group_of
from schemas.snat import EgressRule

MAX_IDENTITIES = 64
"""Identities of a node: each takes an address from pods."""

IDLE_S = 86_400.0
"""Seconds without a pod after which one is given back: longer than between two runs of a daily
job, and short enough for namespaces that come and go."""

LOST_S = 120.0
"""Seconds after which an address that EC2 no longer shows is replaced: as long as a look at EC2
may be stale after a change (``release.RELEASED_WAIT_S``)."""

NAMESPACE = re.compile("[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
"""What a namespace is called (RFC 1123 label); anything else has no identity."""


class Owner(NamedTuple):
    """Whose an identity is; ``group`` is "" for pods of no group."""

    namespace: str
    group: str = ""

    def __str__(self) -> str:
        group = f" in group {self.group}" if self.group else ""
        return f"namespace {self.namespace}{group}"


@dataclass(frozen=True, slots=True)
class EgressIdentity:
    """An address that no pod has, and by which the pods of a namespace are known.

    Attributes:
        addresses: one for each family that pods had when it was bound; all of one ENI.
        idle_since: since when its namespace has no pod here, in seconds since the epoch; 0 while
            it has.
        lost_since: since when EC2 does not show the addresses on the ENI; 0 while it does.
    """

    kind: ClassVar[str] = "identity"
    namespace: str
    group: str
    addresses: tuple[IpAddress, ...]
    eni_id: str
    idle_since: float = 0.0
    lost_since: float = 0.0

    @property
    def owner(self) -> Owner:
        return Owner(self.namespace, self.group)

    @property
    def key(self) -> Key:
        return tuple(self.owner)

    @property
    def state(self) -> str:
        """Return in a word how it is used."""
        return "lost" if self.lost_since else "idle" if self.idle_since else "in use"

    def of_version(self, version: int) -> IpAddress | None:
        """Return its address of an IP version."""
        return next((a for a in self.addresses if a.version == version), None)

    def is_held_by(self, enis: Iterable[Eni]) -> bool:
        """Whether its ENI is among these, and has all of its addresses."""
        eni = next((e for e in enis if e.eni_id == self.eni_id), None)
        return eni is not None and all(map(eni.holds, self.addresses))

    def command(self, verb: Verb) -> str:
        what = " and ".join(map(str, self.addresses))
        if verb is Verb.DELETE:
            return f"release {what} from {self.owner}"
        if verb is Verb.UPDATE:
            return f"record {what} of {self.owner} as {self.state}"
        return f"bind {what} on {self.eni_id} to {self.owner}"


def explain_cost(document: NodeNetwork) -> list[str]:
    """Say what the rules take from the pool; nothing if no rule is ``as: dedicated``."""
    places = [n for n, rule in enumerate(document.snat.rules) if rule.identity == "dedicated"]
    if not places:
        return []
    which = " and ".join(f"snat.rules[{n}]" for n in places)
    counted = [name for name in document.families if FAMILIES[name].counted]
    others = [name for name in document.families if not FAMILIES[name].counted]
    what = [f"one {name} address of the pool" for name in counted]
    what += [f"one {name} address of an ENI's prefix, which costs nothing" for name in others]
    return [
        f"{which}: each namespace that has pods on a node takes {', and '.join(what)}, for each "
        f"group that its pods are in; {MAX_IDENTITIES} namespaces at most"
    ]


def rules_of(pod: str, rules: tuple[EgressRule, ...]) -> tuple[int, ...]:
    """Return the places of the rules that are for a pod (``namespace/name``), in order.

    One whose name is not known is matched by none.
    """
    namespace, slash, _ = pod.partition("/")
    if not slash:
        return ()
    return tuple(n for n, rule in enumerate(rules) if fnmatchcase(namespace, rule.namespace))


def owner_of(pod: str, document: NodeNetwork) -> Owner | None:
    """Return whose identity a pod has; None if no rule gives it one."""
    rules = document.snat.rules
    if not any(rules[n].identity == "dedicated" for n in rules_of(pod, rules)):
        return None
    return Owner(pod.partition("/")[0], group_of(pod, document.pod_groups))


def owners(pods: Iterable[str], document: NodeNetwork) -> frozenset[Owner]:
    """Return whose identities these pods need."""
    if not document.snat.rules:
        return frozenset()
    return frozenset(filter(None, (owner_of(pod, document) for pod in pods)))


def is_asked_for(owner: Owner, document: NodeNetwork) -> bool:
    """Whether the document still has a rule, and the group, that an identity is for."""
    has_group = not owner.group or any(g.name == owner.group for g in document.pod_groups)
    dedicated = (r for r in document.snat.rules if r.identity == "dedicated")
    return has_group and any(fnmatchcase(owner.namespace, r.namespace) for r in dedicated)


def missing(
    wanted: Iterable[Owner], held: Iterable[EgressIdentity]
) -> tuple[list[Owner], list[Owner]]:
    """Return who lacks an identity, and who of them gets none because there are too many.

    Both ascending; a namespace whose name is none gets none.
    """
    known = {i.owner for i in held}
    lacking = sorted(o for o in set(wanted) - known if NAMESPACE.fullmatch(o.namespace))
    room = max(MAX_IDENTITIES - len(known), 0)
    return lacking[:room], lacking[room:]
