"""One look at all sources: what is asked of EC2, and what is known after its answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from reconciler.core.facts import Eni
from reconciler.egress import destinations
from reconciler.egress.destinations import IPV4, Egress
from reconciler.egress.source import Failure, Look, Source, merge
from schemas.snat import Snat, SnatPolicy

MAX_ALL = 10_000
"""CIDRs of all sources together: as many as the document may list (``schemas.document``)."""


@dataclass(frozen=True, slots=True)
class Question:
    """What EC2 is asked.

    ``subnet_ids``: of the ENIs that pods' packets leave by, whose route tables count.
    """

    names: tuple[str, ...]
    vpc_id: str
    subnet_ids: frozenset[str]


Answers = Mapping[str, Look | Failure]
"""By a source's name."""


def make_question(
    snat: Snat, enis: Iterable[Eni], vpc_id: str, others: Iterable[SnatPolicy] = ()
) -> Question:
    """Return what a document's sources need; ``enis`` are those of the node.

    ``others``: the policies of pod groups.
    """
    names = dict.fromkeys(n for policy in (snat, *others) for n in destinations.named(policy))
    names |= dict.fromkeys(destinations.named_by_rules(snat))
    ours = [e for e in enis if e.serves_pods]
    used = [e for e in ours if e.pod_addresses or e.ipv6_prefixes] or ours
    return Question(tuple(names), vpc_id, frozenset(e.subnet_id for e in used))


def of_vpc(egress: Egress, vpc_id: str) -> Egress:
    """Return what is known of a VPC: of another one nothing, as after a start from an image."""
    if vpc_id and egress.vpc_id and egress.vpc_id != vpc_id:
        return Egress(vpc_id)
    return replace(egress, vpc_id=vpc_id or egress.vpc_id)


def take(egress: Egress, question: Question, answers: Answers, now: float) -> Egress:
    """Return what is known after answers; ``now``: seconds since the epoch.

    What the document no longer names is forgotten.
    """
    known, sources, count = egress.by_name, [], 0
    for name in sorted(question.names):
        before = known.get(name, Source(name))
        source = merge(before, answers[name], now) if name in answers else before
        if count + len(source.entries) > MAX_ALL and len(source.entries) > len(before.entries):
            why = f"with it, sources would stand for more than {MAX_ALL} CIDRs"
            source = replace(before, failure=Failure("", "TooManyEntries", why))
        count += len(source.entries)
        sources.append(source)
    return replace(egress, sources=tuple(sources))


def settle(egress: Egress, snat: SnatPolicy) -> Egress:
    """Remember what is excluded, if all sources are known: the next document may name others."""
    if destinations.unknown(snat, egress):
        return egress
    former = destinations.untranslated(snat, egress, (), IPV4)
    return egress if former == egress.former else replace(egress, former=former)


def contents(egress: Egress) -> object:
    """Return what of it decides about packets."""
    sources = ((s.name, s.is_known, tuple(e.network for e in s.entries)) for s in egress.sources)
    return (egress.former, *sources)
