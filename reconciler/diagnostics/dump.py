"""What goes into a dump for maintainers, and what never does: bounds, secrets, the index. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MOST_OF_ONE, MOST_IN_ALL = 4 << 20, 24 << 20
"""Bytes of one part, and of all together, before they are compressed."""

MOST_PARTS = 64

INDEX = "INDEX.txt"

LEFT_OUT = (
    "environment variables, credentials and session tokens: none is read, and what looks like one "
    "in a text is replaced by (left out)",
    "nftables tables and iptables rules of other owners: the findings about them are in diff.json",
    "what is in pods' own namespaces; names and addresses of pods are in the records",
    "the daemon's log, which goes to its standard error: kubectl -n kube-system logs POD",
)
"""What is never in a dump, for whoever passes it on."""

SECRETS = (
    re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    re.compile(r"\beyJ[\w-]{8,256}\.[\w-]{8,4096}\.[\w-]{8,1024}"),
    re.compile(
        r"(?i)(?<=[a-z\"'_ -])(?:secret\w{0,64}|password|passwd|session_?token|"
        r"security-?token)[\"']?\s*[:=]\s*[\"']?(?P<value>[^\s\"',}]{4,})"
    ),
    re.compile(r"(?i)\b(?:bearer|basic)\s+(?P<value>[\w.~+/-]{8,}=*)"),
)
"""What looks like a credential: AWS access key ids, JWTs, named secrets, bearer tokens. Each has a
bound: a text that begins to look so at every word must not be read to its end from each."""

LONGEST_SECRET = 8192
"""Bytes that any of these is not longer than."""

REPLACED = "(left out)"


@dataclass(frozen=True, slots=True)
class Part:
    """A file of the dump. ``why``: it could not be made, and why; then it has no text."""

    name: str
    text: str = ""
    why: str = ""


def prepare(parts: Iterable[Part]) -> list[Part]:
    """Return the files of a dump, the index first: bounded, and without what looks like a secret.

    Parts come in the order of their worth: what goes beyond the bound in all is left out.
    """
    kept: list[Part] = []
    rows: list[str] = []
    left = MOST_IN_ALL
    for number, part in enumerate(parts):
        most = min(MOST_OF_ONE, left)
        if part.why:
            rows.append(f"{part.name:<20} not in it: {redact(part.why)}")
        elif number >= MOST_PARTS or most <= 0:
            rows.append(f"{part.name:<20} not in it: the dump is full")
        else:
            text, note = _bounded(part.text, most)
            size = len(text.encode())
            left -= size
            rows.append(f"{part.name:<20} {size} bytes{note}")
            kept.append(Part(part.name, text))
    return [Part(INDEX, "\n".join(_index(rows)) + "\n"), *kept]


def _bounded(text: str, most: int) -> tuple[str, str]:
    """Return what is kept of a text, of so many bytes at most, and what the index says of that.

    Credentials are replaced in more than is kept, so that none is cut in two and not known by its
    form any more.
    """
    whole = text.encode(errors="replace")
    seen = redact(whole[: most + LONGEST_SECRET].decode(errors="ignore"))
    kept = seen.encode()
    is_cut = len(whole) > most or len(kept) > most
    if len(whole) > most + LONGEST_SECRET:
        kept = kept[: max(len(kept) - LONGEST_SECRET, 0)]
    shown = kept[:most].decode(errors="ignore")
    note = ", cut: there is more" if is_cut else ""
    replaced = shown.count(REPLACED) - text.count(REPLACED)
    return shown, note + (f", {replaced} left out" if replaced > 0 else "")


def _index(rows: Iterable[str]) -> Iterator[str]:
    yield "What is in this dump of a node, for the maintainers of node-network:"
    yield from (f"  {row}" for row in rows)
    yield ""
    yield "What was left out:"
    yield from (f"  - {text}" for text in LEFT_OUT)


def redact(text: str) -> str:
    """Replace what looks like a credential."""
    for pattern in SECRETS:
        text = pattern.sub(_replace, text)
    return text


def _replace(found: re.Match[str]) -> str:
    value = found.groupdict().get("value")
    return REPLACED if value is None else found[0].replace(value, REPLACED)
