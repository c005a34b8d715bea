"""What is wrong with a document, and where."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

Path = tuple[str | int, ...]
"""Keys and positions from the top of a document."""

Place = tuple[int, int]
"""Line and column, counted from 1."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        source: the file's path, or the node on which overrides contradict each other.
        line, column: counted from 1, where the value, or for an unknown key the key, begins; 0
            if it has no one place, or the file could not be read.
        path: keys from the top, joined with dots.
    """

    source: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        place = f":{self.line}:{self.column}" if self.line else ""
        where = f"{self.source}{place}: "
        return f"{where}{self.path}: {self.message}" if self.path else where + self.message


class DocumentError(Exception):
    """The document is invalid; a person must edit it. Carries every problem, in file order."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(
            sorted(set(problems), key=lambda p: (p.line, p.column, p.path, p.message))
        )
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(frozen=True, slots=True)
class Places:
    """Where each part of a document stands in its file, as line and column.

    Attributes:
        values, keys: by path.
        spoilt: what YAML reads as something else, and is a problem already.
    """

    source: str
    values: dict[Path, Place] = field(default_factory=dict)
    keys: dict[Path, Place] = field(default_factory=dict)
    spoilt: set[Path] = field(default_factory=set)

    def __contains__(self, path: object) -> bool:
        return path in self.values

    def is_spoilt(self, path: Path) -> bool:
        """Whether it is part of what is a problem already."""
        return any(path[:length] in self.spoilt for length in range(len(path) + 1))

    def problem(self, path: Path, message: str, *, of_key: bool = False) -> Problem:
        """Place what is wrong with a value, or with its key; what is missing, at what lacks it."""
        place = self.keys.get(path) if of_key else None
        for length in range(len(path), -1, -1):
            place = place or self.values.get(path[:length])
        return Problem(self.source, *(place or (1, 1)), print_path(path), message)


def print_path(path: Path) -> str:
    """Write a path; what is no key of ours, as m5.large, stands in brackets."""
    text = ""
    for part in path:
        word = str(part) if str(part).isprintable() else ascii(part)
        bracketed = isinstance(part, int) or "." in word
        text += f"[{word}]" if bracketed else f".{word}" if text else word
    return text
