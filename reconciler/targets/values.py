"""Values that others answer with: each has a type and a bound, or is not read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, Generic, TypeVar

Object = Mapping[str, Any]
"""An object of an answer, as a JSON parser or an SDK gives it."""

T = TypeVar("T")
N = TypeVar("N", IPv4Network, IPv6Network)


class MalformedError(ValueError):
    """A value of an answer is not what it must be."""

    def __init__(self, key: str, value: object, wanted: str) -> None:
        super().__init__(f"{key} is {_shown(value)}, not {wanted}")


@dataclass(frozen=True, slots=True)
class Type(Generic[T]):
    """What a value must be; all of it raises ``MalformedError`` for one that is not that.

    Attributes:
        wanted: the same in words.
        read: returns the value; raises ValueError or TypeError if it is not that.
    """

    wanted: str
    read: Callable[[Any], T]

    def take(self, key: str, found: object) -> T:
        """Read what was found by a name."""
        try:
            return self.read(found)
        except (ValueError, TypeError):
            raise MalformedError(key, found, self.wanted) from None

    def of(self, body: Object, key: str) -> T:
        """Read a field."""
        return self.take(key, body.get(key))

    def each(self, body: Object, lists: str, key: str, most: int) -> set[T]:
        """Read the same field of every object in a list that is not longer."""
        return {self.of(entry, key) for entry in entries(body, lists, most)}


def _held(value: T, holds: object) -> T:
    if not holds:
        raise ValueError
    return value


def _text(found: Any) -> str:
    return str(_held(found, isinstance(found, str)))


def like(pattern: str) -> Type[str]:
    """A text that matches as a whole."""
    matches = re.compile(pattern).fullmatch
    return Type(f"a text like {pattern}", lambda found: _held(_text(found), matches(found)))


def number(least: int, most: int) -> Type[int]:
    """A whole number within bounds; a truth value is none."""

    def read(found: Any) -> int:
        return int(_held(found, type(found) is int and least <= found <= most))

    return Type(f"a number from {least} to {most}", read)


def network(kind: type[N], lengths: Iterable[int]) -> Type[N]:
    """A network of one family whose length is among these."""

    def read(found: Any) -> N:
        value = kind(_text(found))
        return _held(value, value.prefixlen in lengths)

    return Type(f"an IPv{kind(0).version} network of the right length", read)


FLAG = Type(
    "true or false", lambda found: bool(_held(found, found is None or isinstance(found, bool)))
)
"""One that is absent is false."""

IPV4: Type[IPv4Address] = Type("an IPv4 address", lambda found: IPv4Address(_text(found)))
IPV6: Type[IPv6Address] = Type("an IPv6 address", lambda found: IPv6Address(_text(found)))


def entries(body: Object, key: str, most: int, *, required: bool = False) -> list[Object]:
    """Return a list of objects, one that is absent as empty; ``MalformedError`` if it is none."""
    found = body.get(key)
    if found is None and not required:
        return []
    if not isinstance(found, list) or len(found) > most:
        raise MalformedError(key, found, f"a list of at most {most}")
    for entry in found:
        if not isinstance(entry, Mapping):
            raise MalformedError(f"an entry of {key}", entry, "an object")
    return found


def inner(body: Object, key: str) -> Object:
    """Return an object, one that is absent as empty; ``MalformedError`` if it is none."""
    found = body.get(key)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise MalformedError(key, found, "an object")
    return found


def _shown(value: object) -> str:
    """Return a value for a message: short, printable, whatever it is."""
    if value is None:
        return "absent"
    if isinstance(value, str):
        return ascii(value[:32]) + (f" and {len(value) - 32} characters" if value[32:] else "")
    if isinstance(value, int) and value.bit_length() <= 64:
        return str(value)
    if isinstance(value, list | Mapping):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
