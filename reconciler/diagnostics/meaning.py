"""What a plan comes to for pods and those they talk to, in sentences for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from reconciler.core.ranges import Range, complement, print_range, unite
from reconciler.domains.nat_identities import NAT
from reconciler.domains.nat_objects import NftChain, NftElement, NftTable
from reconciler.domains.nat_rules import TO, no_snat_of
from reconciler.egress.destinations import IPV4
from reconciler.engine.plan import Action, Change, Verb

MOST_NAMED = 3  # ranges in one sentence


@dataclass(frozen=True, slots=True)
class Shift:
    """Destinations that will see another source address of pods than before.

    Attributes:
        group: the pod group whose policy it is; "" for pods of no group.
        own: whether they will see pods' own addresses; if not, the node's.
        ranges: the destinations.
    """

    group: str
    own: bool
    ranges: tuple[Range, ...]


def find_shifts(actions: Iterable[Action]) -> tuple[Shift, ...]:
    """Say who will see another address, by what the sets of untranslated destinations become.

    Nothing if the whole table is new or goes: there is no "before" then. Sets are coalesced, so
    one CIDR more may be a range that is replaced by a larger one.
    """
    changes = [a for a in actions if isinstance(a, Change)]
    if any(isinstance(c.object, NftTable) for c in changes):
        return ()
    base = no_snat_of(IPV4, "")
    added: dict[str, list[Range]] = {}
    removed: dict[str, list[Range]] = {}
    for change in changes:
        obj = change.object
        if not isinstance(obj, NftElement) or change.verb is Verb.UPDATE:
            continue
        if obj.set == base or obj.set.startswith(f"{base}_"):
            side = added if change.verb is Verb.CREATE else removed
            side.setdefault(obj.set, []).append((obj.first, obj.last))
    shifts = []
    for name in sorted(added.keys() | removed.keys()):
        group = name.removeprefix(base).removeprefix("_")
        more, fewer = added.get(name, ()), removed.get(name, ())
        for own, ranges in ((True, _less(more, fewer)), (False, _less(fewer, more))):
            shifts += [Shift(group, own, ranges)] if ranges else []
    return tuple(shifts)


def changes_rules(actions: Iterable[Action]) -> bool:
    """Whether ``snat.rules`` decide something else than before."""
    objects = [a.object for a in actions if isinstance(a, Change)]
    if any(isinstance(o, NftTable) for o in objects):
        return False
    return any(
        (isinstance(o, NftElement) and o.set.startswith(TO))
        or (isinstance(o, NftChain) and o.name == NAT)
        for o in objects
    )


RULES_CHANGE = (
    "snat.rules decide otherwise than before: 'node-network explain address' says who will see "
    "what of which namespaces"
)


def tell_shifts(
    shifts: Sequence[Shift], open_now: Mapping[Shift, int], *, ruled: bool = False
) -> Iterator[str]:
    """Yield a sentence for each.

    Args:
        shifts: of policies.
        open_now: connections that are open and stay as they are; one that was not counted says
            nothing of them.
        ruled: there are rules, which decide before any policy.
    """
    besides = ", where none of snat.rules decides" if ruled else ""
    for shift in shifts:
        whose = f"pods of group {shift.group}: " if shift.group else ""
        sees, instead = "pod addresses", "the node's address"
        sees, instead = (sees, instead) if shift.own else (instead, sees)
        kept = ""
        if count := open_now.get(shift, 0):
            noun = "connection keeps" if count == 1 else "connections keep"
            address = "the node's address" if shift.own else "the pod's address"
            kept = f"; {count} open {noun} {address}"
        yield f"{whose}{_list(shift.ranges)} will see {sees}, no longer {instead}{besides}{kept}"


def _less(ranges: Iterable[Range], others: Iterable[Range]) -> tuple[Range, ...]:
    """Return what the first have and the others have not."""
    everything = IPV4.everything
    return complement(unite((*complement(ranges, everything), *others)), everything)


def _list(ranges: Sequence[Range]) -> str:
    """Name ranges; if they are most of all addresses, what they leave out."""
    if sum(int(last) - int(first) for first, last in ranges) > IPV4.everything.num_addresses // 2:
        rest = complement(ranges, IPV4.everything)
        return f"every destination but {_list(rest)}" if rest else "every destination"
    names = [print_range(*r) for r in ranges[:MOST_NAMED]]
    more = len(ranges) - len(names)
    names += [f"{more} more"] if more else []
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
