"""Reading the document: the door to PyYAML.

YAML 1.1 reads ``no`` as a boolean and ``010`` as eight. Such a value is an error here, with what
to write instead. Anchors, aliases and merge keys are refused: an operator who reads the document
in an incident finds each value where it applies.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from schemas import problem
from schemas.check import check
from schemas.document import NodeNetwork
from schemas.file import MAX_BYTES, read, read_stream
from schemas.problem import DocumentError, Path, Place, Places, Problem, print_path

__all__ = [
    "MAX_BYTES",
    "DocumentError",
    "Problem",
    "dump",
    "find_places",
    "load",
    "read",
    "read_stream",
]

MAX_VALUES = 16_384
"""Keys and values together. Reading as many takes some 3 s. A list of CIDRs has a lower bound
(``schemas.snat.MAX_CIDRS``)."""

MAX_DEPTH = 32
"""Levels of nesting; the document has six. The parser recurses."""

PLAIN_TAGS = {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}

OPENING = (
    yaml.BlockMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.FlowSequenceStartToken,
)
COUNTED = (yaml.ScalarToken, *OPENING)
CLOSING = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)

_HALF = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair: YAML can spell it, and neither a file nor EC2 takes it."""

_QUOTES = ", or put text that begins with & or * in quotes"


def load(text: str, source: str) -> NodeNetwork:
    """Parse and validate a document whole, every override included.

    Each override is checked alone. Which of them apply together is known only on a node, where
    ``schemas.check.resolve`` checks the result.

    ``source``: what to call it in errors; usually the file's path.

    Raises:
        DocumentError: it is invalid; all problems at once.
    """
    root = _parse(text, source)
    reading = _Reading(source)
    tree = reading.value(root, ())
    if not isinstance(tree, dict):
        no_mapping = Problem(source, 1, 1, "", "the document is no mapping of keys")
        raise DocumentError(reading.problems or [no_mapping])
    document, found = check(tree, reading.places)
    problems = [*reading.problems, *found]
    if problems or document is None:
        raise DocumentError(problems)
    return document


def find_places(text: str, source: str) -> Places:
    """Say where each part of a document stands; raises a DocumentError if it is no YAML."""
    reading = _Reading(source)
    reading.value(_parse(text, source), ())
    return reading.places


def read_tree(text: str, source: str) -> tuple[dict[str, Any], Places]:
    """Return a valid document as it is written, and where each part of it stands."""
    reading = _Reading(source)
    tree = reading.value(_parse(text, source), ())
    assert isinstance(tree, dict)
    return tree, reading.places


def dump(document: NodeNetwork) -> str:
    """Write a document in its normal form: every default explicit, CIDRs canonical."""
    text: str = yaml.safe_dump(document.model_dump(mode="json"), sort_keys=False)
    return text


def _parse(text: str, source: str) -> yaml.Node:
    if len(text) > MAX_BYTES:
        raise _refused(source, None, f"larger than {MAX_BYTES} bytes")
    try:
        check_tokens(text, source)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        hint = _QUOTES if error.context == "while scanning an alias" else ""
        message = f"not YAML: {error.problem or error.context}{hint}"
        if "'@'" in message:
            message += '; put it in quotes, as "@peering"'
        if "'\\t'" in message:
            message = "not YAML: a tab; indent with spaces"
        raise _refused(source, error.problem_mark or error.context_mark, message) from error
    except yaml.YAMLError as error:
        message = f"not YAML: {' '.join(str(error).split())}"
        raise _refused(source, None, message) from error
    if root is None:
        raise _refused(source, None, "the document is empty")
    return root


def check_tokens(text: str, source: str) -> None:
    """Refuse aliases and what is no text; bound depth and values, before the composer recurses."""
    depth = values = 0
    for token in yaml.scan(text):
        if isinstance(token, yaml.AnchorToken | yaml.AliasToken):
            message = f"anchors and aliases are not supported; write the value out{_QUOTES}"
            raise _refused(source, token.start_mark, message)
        if isinstance(token, yaml.ScalarToken) and _HALF.search(token.value):
            message = f"{token.value[:32]!r} has half of a surrogate pair, which is no character"
            raise _refused(source, token.start_mark, message)
        depth += isinstance(token, OPENING) - isinstance(token, CLOSING)
        if depth > MAX_DEPTH:
            message = f"nested more than {MAX_DEPTH} levels deep"
            raise _refused(source, token.start_mark, message)
        values += isinstance(token, COUNTED)
        if values > MAX_VALUES:
            message = f"more than {MAX_VALUES} keys and values; write CIDRs as fewer, larger ones"
            raise _refused(source, token.start_mark, message)


class _Reading:
    """Turns nodes into plain values and remembers the place of each.

    A value that YAML reads as something else (``no``) is a problem, and is passed on as the text
    that was written.
    """

    def __init__(self, source: str) -> None:
        self.problems: list[Problem] = []
        self.places = Places(source)

    def value(self, node: yaml.Node, path: Path) -> Any:
        self.places.values[path] = _place(node.start_mark)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if node.tag not in PLAIN_TAGS:
            self._spoil(node, path, f"the tag {node.tag} is not supported")
            return ""
        if isinstance(node, yaml.MappingNode):
            return dict(self._pairs(node, path))
        return [self.value(child, (*path, i)) for i, child in enumerate(node.value)]

    def _pairs(self, node: yaml.MappingNode, path: Path) -> Iterator[tuple[str, Any]]:
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if (
                not isinstance(key_node, yaml.ScalarNode)
                or key_node.tag != "tag:yaml.org,2002:str"
            ):
                shown = repr(key) if isinstance(key, str) else "[...]"
                message = f"a key must be text; put {shown} in quotes"
                if key == "<<":
                    message = "merge keys are not supported; write the values out"
                self._add(key_node, path, message)
                continue
            below = (*path, key)
            if key in seen:
                self._add(key_node, below, f"stands twice, first in line {seen[key]}; remove one")
            self.places.keys[below] = place = _place(key_node.start_mark)
            seen[key] = place[0]
            yield key, self.value(value_node, below)

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        text: str = node.value
        if message := problem.surprise(text, node.tag, _as_number(text)):
            self._spoil(node, path, message)
            return text
        match node.tag.rpartition(":")[2]:
            case "bool":
                return text.lower() == "true"
            case "int":
                return int(text)
            case "null":
                return None
            case _:
                return text

    def _spoil(self, node: yaml.Node, path: Path, message: str) -> None:
        self.places.spoilt.add(path)
        self._add(node, path, message)

    def _add(self, node: yaml.Node, path: Path, message: str) -> None:
        place = _place(node.start_mark)
        self.problems.append(Problem(self.places.source, *place, print_path(path), message))


def _as_number(text: str) -> str:
    try:
        return str(yaml.safe_load(text)) if len(text) <= problem.MAX_DIGITS else "?"
    except (yaml.YAMLError, ValueError):
        return "?"


def _place(mark: yaml.Mark | None) -> Place:
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)


def _refused(source: str, mark: yaml.Mark | None, message: str) -> DocumentError:
    return DocumentError([Problem(source, *_place(mark), "", message)])
