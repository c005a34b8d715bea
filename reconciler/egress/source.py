"""A source: a word of the document in place of CIDRs, and what it has last stood for.

EC2's answers are merged one by one. What is new counts at once. What an answer lacks counts until
a second full answer, some time later, lacks it too: EC2 is eventually consistent, and lists end
early. An answer that is none, or that has more than may be, changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from reconciler.core.datapath import IpNetwork

MAX_ENTRIES = 5000
"""CIDRs of one source. A route table has 1,000 routes at most and a prefix list 1,000 entries
(VPC user guide, "Amazon VPC quotas"); a VPC has 125 peerings, each with a few CIDRs."""

APART_S = 10.0
"""Seconds between two looks that agree on what is gone: EC2 shows old answers for seconds (EC2
developer guide, "Eventual consistency")."""

MAX_LABEL = 64
"""Characters kept of a name that somebody has given in EC2."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A CIDR that a source stands for.

    Attributes:
        via: what says so: a peering, or a route's target; "" of a prefix list.
        label: what somebody calls that in EC2.
        missed_at: seconds since the epoch of the first look that lacked it; None if the last one
            had it.
    """

    network: IpNetwork
    via: str = ""
    label: str = ""
    missed_at: float | None = None

    @property
    def origin(self) -> str:
        """What says so, and its name: ``pcx-0a1b, "shared-services"``."""
        return ", ".join(filter(None, (self.via, f'"{self.label}"' if self.label else "")))


@dataclass(frozen=True, slots=True)
class Look:
    """A full answer: everything that a source stands for; ``version`` is a prefix list's."""

    entries: tuple[Entry, ...]
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there was no full answer: the EC2 action, a code, and words."""

    action: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Source:
    """What is known of a source; its entries ascend, and no two have the same CIDR.

    ``looked_at``: seconds since the epoch of the last full answer; None before the first one.
    ``failure``: why there has been none since.
    """

    name: str
    entries: tuple[Entry, ...] = ()
    looked_at: float | None = None
    version: int | None = None
    failure: Failure | None = None

    @property
    def is_known(self) -> bool:
        """Whether it was ever answered in full; if so, it may still stand for nothing."""
        return self.looked_at is not None

    @property
    def missed(self) -> tuple[Entry, ...]:
        """Those that the last look lacked."""
        return tuple(e for e in self.entries if e.missed_at is not None)


def merge(source: Source, answer: Look | Failure, now: float) -> Source:
    """Return what is known after an answer.

    ``now``: seconds since the epoch.
    """
    if isinstance(answer, Look):
        answer = _refused(source, answer) or answer
    if isinstance(answer, Failure):
        return replace(source, failure=answer)
    shown = {e.network: e for e in reversed(sort_entries(answer.entries))}
    missed = (e for e in source.entries if e.network not in shown)
    kept = [_miss(e, now) for e in missed if not _is_gone(e, now)]
    if len(shown) + len(kept) > MAX_ENTRIES:
        many = f"it stands for more than {MAX_ENTRIES} CIDRs"
        return replace(source, failure=Failure("", "TooManyEntries", many))
    entries = sort_entries((*shown.values(), *kept))
    return Source(source.name, entries, now, answer.version)


def sort_entries(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """Return entries in the order of their CIDRs, then of what says so."""
    return tuple(
        sorted(entries, key=lambda e: (int(e.network[0]), e.network.prefixlen, e.via, e.label))
    )


def _refused(source: Source, look: Look) -> Failure | None:
    """Say why a full answer does not count: it is older than what is known."""
    if source.version is None or look.version is None or look.version >= source.version:
        return None
    older = f"version {look.version} was answered after version {source.version}"
    return Failure("DescribeManagedPrefixLists", "StaleAnswer", older)


def _miss(entry: Entry, now: float) -> Entry:
    return entry if entry.missed_at is not None else replace(entry, missed_at=now)


def _is_gone(entry: Entry, now: float) -> bool:
    """Whether a look that lacks it now agrees with an earlier one, the clock set back or not."""
    return entry.missed_at is not None and not 0 <= now - entry.missed_at < APART_S
