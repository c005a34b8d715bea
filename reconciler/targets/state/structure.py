"""Frozen dataclasses as JSON, and back: each field by its declared type, and nothing else.

As pydantic does in its strict mode, without its eight megabytes: a text may be an address, a list
is a tuple, and no value is taken for one of another type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

Decode = Callable[[Any], Any]

ADDRESSES = (IPv4Address, IPv4Network, IPv6Address, IPv6Network)


def encode(value: Any) -> Any:
    """Return what ``json.dumps`` writes."""
    if is_dataclass(value):
        return {f.name: encode(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [encode(inner) for inner in value]
    return str(value) if isinstance(value, ADDRESSES) else value


def decode(kind: type[T], body: Any) -> T:
    """Return an instance of a dataclass. Keys that it does not know are left out.

    Raises:
        ValueError, TypeError: a field is missing that has no default, or of another type.
    """
    wanted: Any = kind
    found: T = _decoder(wanted)(body)
    return found


@cache
def _decoder(kind: Any) -> Decode:
    """Return what reads values of a type; a TypeError says that there is no such reader."""
    if is_dataclass(kind):
        return _reads_fields(kind)
    if kind in ADDRESSES:
        return lambda body: kind(_text(body))
    if kind is str:
        return _text
    if kind is float:
        return _number
    if kind in (int, bool, NoneType):
        return lambda body: _exactly(kind, body)
    inner = get_args(kind)
    if get_origin(kind) is tuple and inner[1:] == (...,):
        return _reads_lists(_decoder(inner[0]))
    if get_origin(kind) is tuple:
        return _reads_rows([_decoder(each) for each in inner])
    if get_origin(kind) in (Union, UnionType):
        return _reads_one_of([_decoder(each) for each in inner])
    raise TypeError(f"no value on the disk is of type {kind}")


def _reads_fields(kind: Any) -> Decode:
    hints = get_type_hints(kind)
    known = {f.name: _decoder(hints[f.name]) for f in fields(kind)}
    needed = {f.name for f in fields(kind) if f.default is MISSING is f.default_factory}

    def read(body: Any) -> Any:
        if not isinstance(body, Mapping):
            raise TypeError(f"no fields of {kind.__name__}")
        if lacking := needed - body.keys():
            raise ValueError(f"{kind.__name__} without {', '.join(sorted(lacking))}")
        given = {name: one(body[name]) for name, one in known.items() if name in body}
        return kind(**given)

    return read


def _reads_lists(inner: Decode) -> Decode:
    return lambda body: tuple([inner(each) for each in _exactly(list, body)])


def _reads_rows(inner: list[Decode]) -> Decode:
    def read(body: Any) -> Any:
        pairs = zip(inner, _exactly(list, body), strict=True)
        return tuple([one(each) for one, each in pairs])

    return read


def _reads_one_of(choices: list[Decode]) -> Decode:
    def read(body: Any) -> Any:
        for one in choices:
            try:
                return one(body)
            except (ValueError, TypeError):
                pass
        raise ValueError(f"not of the type it should be: {body!r:.64}")

    return read


def _exactly(kind: type, body: Any) -> Any:
    if type(body) is not kind:
        raise TypeError(f"no {kind.__name__}: {body!r:.64}")
    return body


def _text(body: Any) -> str:
    text: str = _exactly(str, body)
    text.encode()  # half of a surrogate pair, which JSON can spell, is no text
    return text


def _number(body: Any) -> float:
    if type(body) not in (int, float) or not math.isfinite(body):
        raise TypeError(f"no number: {body!r:.64}")
    return float(body)
