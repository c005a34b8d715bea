"""A checked document as JSON, from the process that has checked it to one that only holds it.

Not the document's own form: each part has its name, each value its type, and it is said which
fields the document gives. What comes back equals what went, whichever of the two made it.
"""

from __future__ import annotations

from datetime import timedelta
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

from schemas import cni, document, group, override, pods, pool, snat
from schemas.document import NodeNetwork
from schemas.value import Model

MS = timedelta(milliseconds=1)


def encode(value: Any) -> Any:
    """Return what ``json.dumps`` writes, and ``decode`` makes the same value of.

    Raises:
        TypeError: it is nothing that a document holds.
    """
    match value:
        case Model():
            values = {name: encode(inner) for name, inner in vars(value).items()}
            return {"part": type(value).__name__, "is": values, "given": [*value.model_fields_set]}
        case tuple():
            return [encode(inner) for inner in value]
        case IPv4Network() | IPv6Network():
            return {"network": str(value)}
        case timedelta():
            return {"ms": value // MS}
        case None | bool() | int() | str():
            return value
        case _:
            raise TypeError(f"no value of a document: {type(value).__name__}")


def decode(body: Any) -> Any:
    """Return the value that ``encode`` has written.

    Raises:
        ValueError, TypeError, KeyError: it has not written that.
    """
    match body:
        case {"part": str(name), "is": dict(values), "given": list(given)}:
            held = {key: decode(inner) for key, inner in values.items()}
            return _parts()[name].model_construct(set(given), **held)
        case list():
            return tuple([decode(inner) for inner in body])
        case {"network": str(text)}:
            return ip_network(text)
        case {"ms": int(ms)}:
            return ms * MS
        case None | bool() | int() | str():
            return body
        case _:
            raise ValueError(f"no value of a document: {body!r:.64}")


def decode_document(body: Any) -> NodeNetwork:
    """Return the whole document; raises what ``decode`` raises."""
    found = decode(body)
    if not isinstance(found, NodeNetwork):
        raise TypeError(f"no document: {found!r:.64}")
    return found


@cache
def _parts() -> dict[str, type[Model]]:
    """Return the parts that a document is made of, by name."""
    modules = (cni, document, group, override, pods, pool, snat)
    found = (value for module in modules for value in vars(module).values())
    return {c.__name__: c for c in found if isinstance(c, type) and issubclass(c, Model)}
