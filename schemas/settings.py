"""What a document sets, line by line, and what of it is in force on one node. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from schemas.problem import Path, Places, print_path

MOST = 500  # settings that are listed
LONGEST = 120
"""Characters of a value; of a longer list it is said how many there are."""

IN_FORCE, ELSEWHERE, MATCHES = "in force", "on other nodes", "matches this node"
NOT_HERE = "not in force here"


class Setting(NamedTuple):
    """One value of a document, and what becomes of it on a node."""

    line: int
    name: str
    value: str
    state: str


def list_settings(
    tree: Mapping[str, Any], places: Places, applying: Sequence[int], final: Mapping[str, Any]
) -> list[Setting]:
    """List what a document sets, in the order of its lines.

    Args:
        tree: the document as it is written.
        places: where its parts stand.
        applying: positions of the overrides that match the node; a later one counts more.
        final: the document with them applied.
    """
    found = []
    for path, value in islice(_leaves(tree, ()), MOST):
        state = _state(path, tree, places, applying)
        # What removes a value is in force where there is none.
        if state == IN_FORCE and _has(final, _own(path)) == (value is None):
            state = NOT_HERE
        found.append(Setting(_line(places, path), print_path(path), _text(value), state))
    return sorted(found, key=lambda s: s.line)


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """Yield what has no keys below it; a list of plain values is one."""
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _leaves(below, (*path, key))
    elif isinstance(value, list) and any(isinstance(v, dict | list) for v in value):
        for position, below in enumerate(value):
            yield from _leaves(below, (*path, position))
    else:
        yield path, value


def _line(places: Places, path: Path) -> int:
    """Return the line of a part's key, or of what it is in."""
    for length in range(len(path), 0, -1):
        place = places.keys.get(path[:length]) or places.values.get(path[:length])
        if place:
            return place[0]
    return 1


def _text(value: Any) -> str:
    if isinstance(value, list):
        whole = ", ".join(map(_text, value)) or "none"
        return whole if len(whole) <= LONGEST else f"{whole[: LONGEST - 20]}... ({len(value)})"
    words = {True: "true", False: "false", None: "null"}
    text = words[value] if isinstance(value, bool | None) else str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _own(path: Path) -> Path:
    """Return which value of the document is meant, by itself or by an override."""
    return path[3:] if path[0] == "overrides" else path


def _state(path: Path, tree: Mapping[str, Any], places: Places, applying: Sequence[int]) -> str:
    """Say what overrides make of a setting."""
    order = -1
    if path[0] == "overrides":
        if len(path) < 3 or path[1] not in applying:
            return ELSEWHERE
        if path[2] != "set":
            return MATCHES
        order = int(path[1])
    own = _own(path)
    later = [j for j in applying if j > order and _sets(tree["overrides"][j]["set"], own)]
    if later:
        return f"changed in line {_line(places, ('overrides', later[-1], 'set', *own))}"
    return IN_FORCE


def _sets(patch: Any, path: Path) -> bool:
    """Whether a merge patch says something of a value: its own, or what it is in as a whole."""
    for part in path:
        if not isinstance(patch, dict):
            return True
        if part not in patch:
            return False
        patch = patch[part]
    return True


def _has(tree: Any, path: Path) -> bool:
    for part in path:
        if isinstance(tree, dict):
            if part not in tree:
                return False
        elif not isinstance(part, int) or not isinstance(tree, list) or part >= len(tree):
            return False
        tree = tree[part]
    return True
