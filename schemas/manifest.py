"""A document inside a Kubernetes manifest: a ConfigMap, alone, in a List, or among others.

For people and CI, who have the manifest. The daemon reads the key's own file, and never comes
here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import yaml

from schemas.load import check_tokens
from schemas.problem import DocumentError, Problem

_HINT = re.compile(r"""(^|[{,\s])["']?kind["']?\s*:\s*["']?(ConfigMap|List)\b""", re.MULTILINE)
"""Whether a text may be a manifest; to parse it is the price of many lists of CIDRs."""

OWN = "NodeNetwork"  # the kind of a document

MOST_NAMED = 5  # keys or ConfigMaps in one message


@dataclass(frozen=True, slots=True)
class Embedded:
    """A document's text, and where it stands.

    ``source``: what to call it. ``line``, ``column``: how far its own are below and beside those
    of the file.
    """

    text: str
    source: str
    line: int = 0
    column: int = 0

    def placed(self, error: DocumentError) -> DocumentError:
        """Return what is wrong, by the places in the file."""
        if not self.line:
            return error
        return DocumentError(
            replace(p, line=p.line + self.line, column=p.column + self.column) if p.line else p
            for p in error.problems
        )


def find_document(text: str, source: str) -> Embedded:
    """Return the document in a manifest; what is no manifest is a document itself.

    Raises:
        DocumentError: there is none, or which one is meant is not known.
    """
    whole = Embedded(text, source)
    if not _HINT.search(text):
        return whole
    try:
        check_tokens(text, source)
        roots = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except (yaml.YAMLError, DocumentError):
        return whole  # what is wrong with it, its reader says
    objects = [o for root in roots for o in _objects(root)]
    if not objects or any(_text(o, "kind") == OWN for o in objects):
        return whole
    maps = [o for o in objects if _text(o, "kind") == "ConfigMap"]
    found = [(o, key, value) for o in maps for key, value in _data(o)]
    with_kind = [f for f in found if re.search(rf"\bkind\b.{{0,3}}:\s*\W?{OWN}\b", f[2].value)]
    chosen = with_kind if len(maps) > 1 else found
    if len(chosen) == 1:
        (_, key, value), = chosen  # fmt: skip
        return _embedded(text, source, key, value)
    names = [f"{_name(o)}: data.{key}" if len(maps) > 1 else f"data.{key}" for o, key, _ in chosen]
    raise DocumentError([Problem(source, 1, 1, "", _refusal(names, maps, len(objects)))])


def _refusal(names: list[str], maps: list[yaml.Node], objects: int) -> str:
    if len(names) > 1:
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        listed = ", ".join(names[:MOST_NAMED]) + more
        return f"which of these is the document is not known: {listed}; give the text of one"
    if not maps:
        return f"a manifest without a ConfigMap, of {objects} objects"
    which = ", ".join(map(_name, maps[:MOST_NAMED]))
    return f"no key of data is a document, in {which}; binaryData is not looked at"


def _objects(root: yaml.Node) -> Iterator[yaml.Node]:
    if _text(root, "kind") != "List":
        yield root
        return
    items = _get(root, "items")
    if isinstance(items, yaml.SequenceNode):
        yield from items.value


def _data(config_map: yaml.Node) -> Iterator[tuple[str, yaml.ScalarNode]]:
    data = _get(config_map, "data")
    for key, value in _pairs(data):
        if isinstance(value, yaml.ScalarNode):
            yield key, value


def _embedded(text: str, source: str, key: str, value: yaml.ScalarNode) -> Embedded:
    """Return a value; of a literal block each line is one of the file."""
    written = str(value.value)
    if value.style != "|":
        return Embedded(written, f"{source} (data.{key})")
    line = value.start_mark.line + 1
    column = 0
    for own, there in zip(written.splitlines(), text.splitlines()[line:], strict=False):
        if own.strip():
            column = len(there) - len(own)
            break
    return Embedded(written, source, line, column)


def _name(node: yaml.Node) -> str:
    metadata = _get(node, "metadata")
    name = _text(metadata, "name") if metadata else ""
    return f"ConfigMap {name or '?'}"


def _text(node: yaml.Node, key: str) -> str:
    found = _get(node, key)
    return str(found.value) if isinstance(found, yaml.ScalarNode) else ""


def _get(node: yaml.Node, key: str) -> yaml.Node | None:
    return next((value for name, value in _pairs(node) if name == key), None)


def _pairs(node: yaml.Node | None) -> Iterable[tuple[str, yaml.Node]]:
    if not isinstance(node, yaml.MappingNode):
        return ()
    return ((str(k.value), v) for k, v in node.value if isinstance(k, yaml.ScalarNode))
