"""The part of our table that is of pod groups with an SNAT policy of their own.

One lookup in a map leads a group's first packets to the chain of its policy. The number of rules
depends on groups and families; a pod is an element of two maps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reconciler.core.datapath import Family, Marks, family_of
from reconciler.core.facts import Eni
from reconciler.core.ranges import Range
from reconciler.core.remembered import RememberedWhileAsked
from reconciler.domains import nat_rules as rules
from reconciler.domains.inputs import Inputs
from reconciler.domains.nat_objects import NftChain, NftElement, NftObject, NftSet
from reconciler.domains.nat_rules import no_snat_of, sets_of, texts
from reconciler.domains.snat import reasons, untranslated
from schemas.document import NodeNetwork

MARK, NAT = "snat_mark_", "source_nat_"
"""How the names of groups' chains begin: what binds connections, and what translates them."""


def translated(document: NodeNetwork, families: Sequence[Family]) -> list[Family]:
    """Return the families in which groups have policies of their own."""
    has_policies = len(document.snat_policies) > 1
    return [f for f in families if f.private] if has_policies else []


def desire(
    inputs: Inputs, families: Sequence[Family], primary: Eni, marks: Marks
) -> Iterator[NftObject]:
    """Yield the groups' sets, maps, and chains."""
    document = inputs.document
    families = translated(document, families)
    for family in families:
        sets = sets_of(family)
        yield NftSet(sets.group_mark, family.nft_type, verdicts=True)
        yield NftSet(sets.group_nat, family.nft_type, verdicts=True)
    for group, _ in document.snat_policies[1:] if families else ():
        mark = [rules.mark_outside(f, no_snat_of(f, group), marks) for f in families]
        nat = rules.translate_outside(families, group, primary, document.snat.ports)
        yield NftChain(MARK + group, texts(mark))
        yield NftChain(NAT + group, texts(nat))
        for family in families:
            name = no_snat_of(family, group)
            yield NftSet(name, family.nft_type, interval=True)
            kept = untranslated(inputs, family, group)
            why = tuple(reasons(inputs, kept, group).items())
            yield from RANGES(name, kept, why)


def desire_pods(inputs: Inputs) -> Iterator[NftElement]:
    """Yield what leads pods of groups to their policies, by the ENI that they are on."""
    policies = {name for name, _ in inputs.document.snat_policies[1:]}
    if not policies:
        return
    groups = {e.eni_id: e.group for e in inputs.enis if e.group in policies}
    for pod in inputs.placed:
        if group := groups.get(pod.eni_id):
            for own in pod.vpc_addresses:
                family = family_of(own)
                if family.private:
                    yield NftElement(sets_of(family).group_mark, own, own, MARK + group)
                    yield NftElement(sets_of(family).group_nat, own, own, NAT + group)


def _ranges(
    name: str, kept: tuple[Range, ...], why: tuple[tuple[Range, str], ...]
) -> frozenset[NftElement]:
    because = dict(why)
    return frozenset(NftElement(name, *range_, why=because.get(range_, "")) for range_ in kept)


RANGES = RememberedWhileAsked(_ranges)
"""Those in force: what is the same is compared with no look."""
