"""Validation, and the effective document for one node: overrides applied.

What the models refuse is told with the file's line and column. Nothing here knows YAML;
``schemas.load`` says where each value is.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from schemas import problem
from schemas.document import NodeNetwork
from schemas.override import FIXED, find_applying
from schemas.pool import STRATEGIES
from schemas.problem import DocumentError, Path, Places, Problem, print_path

Error = Mapping[str, Any]
"""One of pydantic's ``ErrorDetails``: its type, its place (``loc``), its text."""

_NAMED = re.compile(r"([A-Za-z][A-Za-z0-9.]*)(?:\[(\d+)\])?: ")


MOST_PROBLEMS = 200
"""Beyond which no more overrides are checked: each may repeat what is wrong with 10,000 CIDRs."""


def check(tree: dict[str, Any], places: Places) -> tuple[NodeNetwork | None, list[Problem]]:
    """Validate a document, every override included, and name all that is wrong with it.

    ``tree``: plain values by the document's keys. What is spoilt in the file is not reported
    again.
    """
    document, said = _validate(tree)
    problems = [p for error, message in said for p in _place(error, message, places)]
    known = {(error["loc"], message) for error, message in said}
    for prefix, changes in _patches(tree):
        if len({*problems}) > MOST_PROBLEMS:
            more = (
                f"not checked, nor is what follows: more than {MOST_PROBLEMS} problems come first"
            )
            problems.append(places.problem(prefix, f"{more}; mend those"))
            break
        problems += _check_patch(prefix, changes, tree, known, places)
    return document, problems


def _validate(tree: dict[str, Any]) -> tuple[NodeNetwork | None, list[tuple[Error, str]]]:
    """Return the document, or what is wrong with it and each message that says so."""
    try:
        return NodeNetwork.model_validate(tree, by_alias=True, by_name=False), []
    except ValidationError as found:
        return None, [(error, m) for error in found.errors() for m in problem.explain(error)]


def _patches(tree: dict[str, Any]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Find what overrides set, and where; what has no such form is refused as part of the base."""
    overrides = tree.get("overrides")
    for position, override in enumerate(overrides if isinstance(overrides, list) else ()):
        changes = override.get("set") if isinstance(override, dict) else None
        if isinstance(changes, dict):
            allowed = {key: inner for key, inner in changes.items() if key not in FIXED}
            yield ("overrides", position, "set"), allowed


def _check_patch(
    prefix: Path,
    changes: dict[str, Any],
    base: dict[str, Any],
    known: set[tuple[Any, str]],
    places: Places,
) -> Iterator[Problem]:
    """Find what is wrong with the document once a patch is applied, and was not before.

    ``known``: what is wrong with the base: pydantic's place, and the message.
    """
    before = {k: v for k, v in base.items() if k != "overrides"}  # each has its own turn
    alone = _validate(changes)[1]
    own = {(error["loc"], message) for error, message in alone if error["type"] != "missing"}
    told = known - own
    for error, message in _validate(merge(before, changes))[1]:
        if (error["loc"], message) not in told:
            yield from _place(error, message, places, prefix)
    # Merging removes the keys that are null, so unknown ones among them are looked for apart.
    for error, message in alone:
        if error["type"] == "extra_forbidden":
            yield from _place(error, message, places, prefix)


def _place(error: Error, message: str, places: Places, prefix: Path = ()) -> Iterator[Problem]:
    """Say in the document's terms what pydantic found; nothing if its place is spoilt.

    ``prefix``: where the override's patch is; empty for the document itself.
    """
    path, message = _reach(error, message, places, prefix)
    if places.is_spoilt(path):
        return
    unknown = error["type"] == "extra_forbidden"
    if unknown:
        message += _suggest(path[len(prefix) :], FIXED if prefix else ())
    yield places.problem(path, message, of_key=unknown or error["loc"][-1:] == ("[key]",))


def _reach(error: Error, message: str, places: Places, prefix: Path) -> tuple[Path, str]:
    """Find the deepest place that a message is about, and what remains to be said of it."""
    path = _document_path(error, places, prefix)
    named = _NAMED.match(message)
    if error["type"] == "value_error" and named:
        index = (int(named[2]),) if named[2] else ()
        deeper: Path = (*path, *named[1].split("."), *index)
        if deeper in places or not path:
            return deeper, message[named.end() :]
        if prefix and deeper[len(prefix) :] in places:
            message += " (it is set for all nodes; set it here too)"
    return path, message


def _document_path(error: Error, places: Places, prefix: Path) -> Path:
    """Keep what of pydantic's location is in the document: it adds types and branches."""
    path = prefix
    for part in error["loc"]:
        if (*path, part) in places:
            path = (*path, part)
    return (*path, error["loc"][-1]) if error["type"] == "missing" else path


def _suggest(path: Path, excluded: tuple[str, ...]) -> str:
    """Name the key that was probably meant: one like it here, or the same one deeper down."""
    model: type[BaseModel] = NodeNetwork
    for part in path[:-1]:
        # A position in a list or a name in a mapping is no field, and leads to no other model.
        for field in model.model_fields.values():
            if field.alias == part:
                model = _model(field.annotation) or model
                break
    last = str(path[-1])
    fields = {f.alias: f for f in model.model_fields.values() if f.alias not in excluded}
    close = difflib.get_close_matches(last, map(str, fields), n=1, cutoff=0.5)
    deeper = [
        f"{alias}.{last}"
        for alias, field in fields.items()
        if (inner := _model(field.annotation))
        and last in {f.alias for f in inner.model_fields.values()}
    ]
    if meant := close or deeper:
        return f"; did you mean {' or '.join(map(repr, meant))}?"
    return f"; known here: {', '.join(map(str, fields))}"


def _model(annotation: Any) -> type[BaseModel] | None:
    """Find the model in an annotation, as in ``Model | None`` or ``tuple[Model, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for arg in get_args(annotation) if (m := _model(arg))), None)


ALTERNATIVES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("warmPool",): STRATEGIES,
    ("eni",): ("subnets", "subnetTags"),
}
"""Keys of a mapping of which only one may be given: a patch that names one drops the others."""


def resolve(
    document: NodeNetwork, *, instance_type: str, zone: str, node_name: str
) -> NodeNetwork:
    """Return the effective document for one node: its overrides are applied.

    Raises:
        DocumentError: overrides that are valid alone contradict each other on this node.
    """
    applying = find_applying(document, instance_type=instance_type, zone=zone, node_name=node_name)
    if not applying:
        # Nothing to validate again: with 10,000 CIDRs that takes 0.1 s.
        return document.model_copy(update={"overrides": ()})
    tree = document.model_dump(mode="json", exclude={"overrides"})
    for override in applying.values():
        tree = merge(tree, override.changes)
    try:
        return NodeNetwork.model_validate(tree, by_alias=True, by_name=False)
    except ValidationError as error:
        where = f"node {node_name} ({instance_type}, {zone})"
        cause = f"this comes of {' with '.join(applying)}"
        raise DocumentError(
            Problem(where, 0, 0, print_path(e["loc"]), f"{message}; {cause}")
            for e in error.errors()
            for message in problem.explain(e)
        ) from error


def merge(
    base: Mapping[str, Any], changes: Mapping[str, Any], path: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return a tree with a JSON merge patch applied (RFC 7396); neither argument is changed.

    ``path``: of both in the document.
    """
    alternatives = ALTERNATIVES.get(path, ())
    chosen = {key for key in alternatives if changes.get(key) is not None}
    dropped = set(alternatives) - chosen if chosen else set()
    merged = {key: value for key, value in base.items() if key not in dropped}
    for key, change in changes.items():
        if change is None:
            merged.pop(key, None)
        elif isinstance(change, dict):
            below = merged.get(key)
            merged[key] = merge(below if isinstance(below, dict) else {}, change, (*path, key))
        else:
            merged[key] = change
    return merged
