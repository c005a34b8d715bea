"""All reasons by name, as text for a terminal and as the page ``docs/reference/conditions.md``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches

from reconciler.diagnostics.reasons import ec2, egress, node, others, pods, pool, states
from reconciler.diagnostics.reasons.entry import Entry

SECTIONS: Mapping[str, tuple[Entry, ...]] = {
    "Addresses, ENIs and the pool": pool.ENTRIES,
    "EC2's answers, and sources of SNAT": (*ec2.ENTRIES, ec2.UNKNOWN),
    "Rules of SNAT, and dedicated addresses": egress.ENTRIES,
    "Pods": pods.ENTRIES,
    "The reconciler and its node": (*node.ENTRIES, node.ERRNO),
    "Other owners, migration, and what is left in EC2": others.ENTRIES,
    "States of an address": states.ENTRIES,
}
"""Every entry, by what it is about."""

BY_REASON: Mapping[str, Entry] = {e.reason: e for of in SECTIONS.values() for e in of}

ERRNO = re.compile(r"E[A-Z0-9]{1,30}|errno [0-9]{1,4}")
"""Names of errno are words of capitals (errno(3)); of some there is only the number."""

EC2_CODE = re.compile(r"[A-Z][A-Za-z0-9]{1,63}(\.[A-Za-z0-9]{1,63}){1,3}")
"""Codes of EC2 with a point, as ``InvalidSubnetID.NotFound``: none of our reasons has one."""

ALIKE = 3  # reasons that are offered in the place of a word that is none

HEAD = """\
# Conditions and refusals

`node-network explain condition NAME` prints the same, with what holds on the node. One word names
one reason everywhere: in what a runtime is told of an ADD, in `node-network status`, in the log,
in the label `reason` of metrics, in the condition and the Events of the Node object, and here.
"""


def find(reason: str) -> Entry | None:
    """Return the entry of a reason, EC2's and the kernel's words included; None if it is none."""
    if (entry := BY_REASON.get(reason)) is not None:
        return entry
    lower = {name.lower(): entry for name, entry in BY_REASON.items()}
    if (entry := lower.get(reason.lower())) is not None:
        return entry
    if ERRNO.fullmatch(reason):
        return node.ERRNO
    return ec2.UNKNOWN if EC2_CODE.fullmatch(reason) else None


def alike(word: str) -> list[str]:
    """Return reasons that a word may have been meant for, the most alike first."""
    lower = {name.lower(): name for name in BY_REASON}
    return [lower[n] for n in get_close_matches(word.lower()[:128], lower, ALIKE, 0.5)]


def lines(reason: str, entry: Entry) -> Iterator[tuple[str, str]]:
    """Yield what is known of a reason as headings and texts."""
    yield "reason", f"{reason}: {entry.title}"
    yield from entry.parts


def page() -> Iterator[str]:
    """Yield ``docs/reference/conditions.md``."""
    yield HEAD
    for section, entries in SECTIONS.items():
        yield f"\n## {section}\n"
        for entry in _sorted(entries):
            yield f"\n### {entry.reason}\n\n**{entry.title}.** {entry.meaning}\n\n"
            for heading, text in entry.parts[1:]:
                yield f"- *{heading}*: {text}\n"


def _sorted(entries: Iterable[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda e: (e.reason[:1].islower(), e.reason.lower()))
