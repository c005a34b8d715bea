"""Reading the document: the door to PyYAML.

YAML 1.1 turns ``no`` into a boolean and ``010`` into eight. Whoever writes such a value meant
something else, so it is an error here, with what to write instead. Anchors, aliases and merge
keys are refused: a document that an operator reads in an incident should say what it means where
it says it.
"""

from __future__ import annotations

import difflib
import pathlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from schemas import words
from schemas.document import NodeNetwork

Path = tuple[str | int, ...]

MAX_BYTES = 1 << 20
"""Kubernetes refuses ConfigMaps larger than this."""

MAX_DEPTH = 32
"""Levels of nesting; the document has four, and a parser that recurses must end somewhere."""

PLAIN_TAGS = {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        line, column: counted from 1, where the value, or for an unknown key the key, begins; 0 if
            the file could not be read.
        path: keys from the top, joined with dots.
    """

    source: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        where = f"{self.source}:{self.line}:{self.column}: " if self.line else f"{self.source}: "
        return f"{where}{self.path}: {self.message}" if self.path else where + self.message


class DocumentError(Exception):
    """The document is invalid; a person must edit it. Carries every problem, in file order."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


def read(path: pathlib.Path) -> str:
    """Read a document's file.

    Raises:
        DocumentError: it is not there, cannot be read, or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DocumentError(
            (Problem(str(path), 0, 0, "", f"cannot be read: {reason}"),)
        ) from error
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        message = f"not UTF-8: byte {error.object[error.start]:#04x}"
        raise DocumentError((Problem(str(path), line, column, "", message),)) from error


def load(text: str, source: str) -> NodeNetwork:
    """Parse and validate a document whole.

    Args:
        text: the YAML.
        source: what to call it in errors; usually the file's path.

    Raises:
        DocumentError: it is invalid; all problems at once.
    """
    root = _parse(text, source)
    reading = _Reading(source)
    value = reading.value(root, ())
    if not isinstance(value, dict):
        known = reading.problems or [
            Problem(source, 1, 1, "", "the document is no mapping of keys")
        ]
        raise DocumentError(_ordered(known))
    try:
        document = NodeNetwork.model_validate(value)
    except ValidationError as error:
        # What could not be read as YAML was reported already, with a better reason.
        found = [p for e in error.errors() if not reading.is_spoilt(e) for p in reading.explain(e)]
        raise DocumentError(_ordered([*reading.problems, *found])) from error
    if reading.problems:
        raise DocumentError(_ordered(reading.problems))
    return document


def dump(document: NodeNetwork) -> str:
    """Write a document in its normal form: every value spelt out, CIDRs canonical."""
    text: str = yaml.safe_dump(document.model_dump(mode="json"), sort_keys=False)
    return text


def _parse(text: str, source: str) -> yaml.Node:
    if len(text) > MAX_BYTES:
        raise DocumentError((Problem(source, 1, 1, "", f"larger than {MAX_BYTES} bytes"),))
    try:
        _check_tokens(text, source)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = f"not YAML: {error.problem or error.context}"
        if "'\\t'" in message:
            message = "not YAML: a tab; indent with spaces"
        raise DocumentError((_at(source, mark, message),)) from error
    except yaml.YAMLError as error:
        message = f"not YAML: {' '.join(str(error).split())}"
        raise DocumentError((Problem(source, 1, 1, "", message),)) from error
    if root is None:
        raise DocumentError((Problem(source, 1, 1, "", "the document is empty"),))
    return root


def _check_tokens(text: str, source: str) -> None:
    """Refuse what the composer would follow without end: aliases, and nesting beyond reason."""
    depth = 0
    for token in yaml.scan(text):
        if isinstance(token, yaml.AnchorToken | yaml.AliasToken):
            message = "anchors and aliases are not supported; write the value out"
            raise DocumentError((_at(source, token.start_mark, message),))
        depth += isinstance(token, OPENING) - isinstance(token, CLOSING)
        if depth > MAX_DEPTH:
            message = f"nested more than {MAX_DEPTH} levels deep"
            raise DocumentError((_at(source, token.start_mark, message),))


OPENING = (
    yaml.BlockMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.FlowSequenceStartToken,
)
CLOSING = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)


class _Reading:
    """Turns nodes into plain values and remembers where each stood."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: list[Problem] = []
        self.places: dict[Path, yaml.Mark] = {}
        self.keys: dict[Path, yaml.Mark] = {}
        self._spoilt: set[Path] = set()

    def value(self, node: yaml.Node, path: Path) -> Any:
        self.places[path] = node.start_mark
        if node.tag not in PLAIN_TAGS and not isinstance(node, yaml.ScalarNode):
            self.problems.append(
                self._at(node.start_mark, _dotted(path), f"the tag {node.tag} is not supported")
            )
            self._spoilt.add(path)
            return None
        if isinstance(node, yaml.MappingNode):
            return dict(self._pairs(node, path))
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, (*path, i)) for i, child in enumerate(node.value)]
        return self._scalar(node, path)

    def is_spoilt(self, error: Any) -> bool:
        """Whether pydantic complains of a value that YAML has spoilt."""
        path = _document_path(error["loc"], self.places, self.keys)
        return any(path[: len(bad)] == bad for bad in self._spoilt)

    def explain(self, error: Any) -> list[Problem]:
        """Say in the document's terms what pydantic found; a validator may find several things."""
        path = _document_path(error["loc"], self.places, self.keys)
        if error["type"] == "value_error":
            messages = error["msg"].removeprefix("Value error, ").split("\n")
            return [self._named(path, message) for message in messages]
        mark = self.places.get(path) or self._nearest(path)
        if error["type"] == "extra_forbidden":
            mark = self.keys.get(path, mark)
            return [self._at(mark, _dotted(path), f"unknown key{_suggest(path)}")]
        return [self._at(mark, _dotted(path), words.explain(error))]

    def _named(self, path: Path, message: str) -> Problem:
        """Place a message that begins with the path below ``path`` that it is about."""
        named = re.match(r"([A-Za-z.]+)(?:\[(\d+)\])?: ", message)
        if named:
            index = (int(named[2]),) if named[2] else ()
            deeper: Path = (*path, *named[1].split("."), *index)
            if deeper in self.places or not path:
                path, message = deeper, message[named.end() :]
        return self._at(self.places.get(path) or self._nearest(path), _dotted(path), message)

    def _nearest(self, path: Path) -> yaml.Mark | None:
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path)

    def _pairs(self, node: yaml.MappingNode, path: Path) -> Iterator[tuple[str, Any]]:
        seen: dict[str, yaml.Mark] = {}
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
                self.problems.append(self._at(key_node.start_mark, _dotted(path), message))
                continue
            if key in seen:
                message = f"stands twice, first in line {seen[key].line + 1}; remove one"
                where = _dotted((*path, key))
                self.problems.append(self._at(key_node.start_mark, where, message))
            seen[key] = key_node.start_mark
            self.keys[(*path, key)] = key_node.start_mark
            yield key, self.value(value_node, (*path, key))

    def _scalar(self, node: yaml.Node, path: Path) -> Any:
        text: str = node.value
        if message := words.surprise(text, node.tag, _as_number(text)):
            self.problems.append(self._at(node.start_mark, _dotted(path), message))
            self._spoilt.add(path)
            return None
        match node.tag.rpartition(":")[2]:
            case "bool":
                return text.lower() == "true"
            case "int":
                return int(text)
            case "null":
                return None
            case _:
                return text

    def _at(self, mark: yaml.Mark | None, path: str, message: str) -> Problem:
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        return Problem(self.source, line, column, path, message)


def _document_path(
    loc: tuple[Any, ...], places: dict[Path, yaml.Mark], keys: dict[Path, yaml.Mark]
) -> Path:
    """Keep what of pydantic's location is in the document: it adds names of types and branches."""
    path: Path = ()
    for position, part in enumerate(loc):
        known = (*path, part) in places or (*path, part) in keys
        missing = position == len(loc) - 1 == len(path)
        if known or missing:
            path = (*path, part)
    return path


def _suggest(path: Path) -> str:
    """Name the key that was probably meant."""
    model: type[BaseModel] = NodeNetwork
    for part in path[:-1]:
        field = next((f for f in model.model_fields.values() if f.alias == part), None)
        annotation: Any = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        model = annotation
    known = [str(f.alias) for f in model.model_fields.values()]
    close = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known here: {', '.join(known)}"


def _as_number(text: str) -> str:
    try:
        return str(yaml.safe_load(text)) if len(text) <= words.MAX_DIGITS else "?"
    except (yaml.YAMLError, ValueError):
        return "?"


def _dotted(path: Path) -> str:
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            word = part if part.isprintable() else ascii(part)
            text += f".{word}" if text else word
    return text


def _at(source: str, mark: yaml.Mark | None, message: str) -> Problem:
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    return Problem(source, line, column, "", message)


def _ordered(problems: list[Problem]) -> tuple[Problem, ...]:
    return tuple(sorted(set(problems), key=lambda p: (p.line, p.column, p.path, p.message)))
