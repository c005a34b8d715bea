"""The last observation of EC2 as JSON, for the state directory.

It outlives the release that wrote it. A field that this release does not know is left out, one
that an earlier release did not have gets its default. Whatever else is wrong makes it no look at
all: of one that lacks an ENI, that ENI's routes and rules would seem to be garbage.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import MISSING, asdict, fields
from ipaddress import ip_address, ip_network
from typing import Any, TypeVar

from reconciler.core.datapath import MAX_DEVICE_INDEX
from reconciler.core.facts import Eni, Node
from reconciler.ipam.cloud import Cloud, Limits, Subnet

Json = dict[str, Any]

MAX_OBSERVATION_BYTES = 4 << 20
"""Bytes of a look. The largest instance's ENIs take some 100 KiB; a subnet 300 bytes, or 20 KiB
with the fifty tags that EC2 allows."""

MAX_ITEMS = 16_384
"""Entries of one list in a look: 2^14, the addresses of 64 ENIs with 256 each, several times what
EC2 allows."""

T = TypeVar("T")


def encode_observation(node: Node, cloud: Cloud) -> Json:
    """Return what ``decode_observation`` reads back.

    Subnets are left out if they would make it too large: the next observation of EC2 brings them,
    and no pod that runs depends on them.
    """
    body: Json = {
        "node": asdict(node)
        | {name: [str(c) for c in getattr(node, name)] for name in NODE_FIELDS},
        "limits": asdict(cloud.limits) if cloud.limits else None,
        "subnets": [asdict(s) | {"cidr": str(s.cidr)} for s in cloud.subnets.values()],
        "enis": [_encode_eni(e) for e in cloud.enis],
    }
    if len(json.dumps(body["subnets"])) > MAX_OBSERVATION_BYTES // 2:
        body["subnets"] = []
    return body


def decode_observation(body: Json) -> tuple[Node, Cloud]:
    """Read a look.

    Raises:
        one of ``record_file.UNREADABLE``: it is none.
    """
    node = _read_fields(Node, body["node"], NODE_FIELDS)
    limits = body.get("limits")
    subnets = [_read_fields(Subnet, s, SUBNET_FIELDS) for s in _items(body.get("subnets", []))]
    # A look of an earlier release does not say which ENI is the primary one.
    enis = [
        _read_fields(Eni, {"is_primary": e["mac"] == node.primary_mac} | e, ENI_FIELDS)
        for e in _items(body["enis"])
    ]
    cloud = Cloud(
        enis=tuple(enis),
        limits=_read_fields(Limits, limits, {}) if limits else None,
        subnets={s.subnet_id: s for s in subnets},
    )
    return node, cloud


def _read_fields(kind: type[T], body: Json, readers: dict[str, Callable[[Any], Any]]) -> T:
    """Read the fields that this release knows, each of its type.

    Raises:
        KeyError: one is missing that has no default.
        TypeError, ValueError: one is of another type.
    """
    values: dict[str, Any] = {}
    for field in fields(kind):  # type: ignore[arg-type]  # dataclasses all
        name = ON_DISK.get(field.name, field.name)
        if name not in body and field.default is not MISSING:
            continue
        value = body[name]
        read = readers.get(name)
        values[field.name] = read(value) if read else _plain(value, str(field.type))
    return kind(**values)


def _plain(value: Any, expected: str) -> Any:
    """Return a text, number or truth value, if it is of the type that is annotated."""
    kinds = [PLAIN[name] for name in expected.split(" | ")]
    # A truth value is a number to Python, and to nothing else.
    if isinstance(value, bool) and bool not in kinds:
        raise TypeError(f"{value!r} is no {expected}")
    if isinstance(value, int) and float in kinds and int not in kinds:
        value = float(value)
    if not isinstance(value, tuple(kinds)):
        raise TypeError(f"{type(value).__name__} is no {expected}")
    return value


PLAIN: dict[str, type] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": bool,
    "None": type(None),
}


def _items(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > MAX_ITEMS:
        raise ValueError("it is no list, or too long")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} is no text")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(_text, _items(value)))


def _networks(value: Any) -> tuple[Any, ...]:
    return tuple(ip_network(_text(n)) for n in _items(value))


def _addresses(value: Any) -> tuple[Any, ...]:
    return tuple(ip_address(_text(a)) for a in _items(value))


def _index(value: Any) -> int | None:
    if value is not None and not 0 <= int(_plain(value, "int")) <= MAX_DEVICE_INDEX:
        raise ValueError(f"device index {value}")
    return value if value is None else int(value)


NODE_FIELDS: dict[str, Callable[[Any], Any]] = {
    "vpc_cidrs": _networks,
    "subnet_cidrs": _networks,
}

SUBNET_FIELDS: dict[str, Callable[[Any], Any]] = {
    "cidr": lambda value: ip_network(_text(value)),
    "tags": lambda value: tuple((_text(k), _text(v)) for k, v in _items(value)),
    "families": _texts,
}

ENI_FIELDS: dict[str, Callable[[Any], Any]] = {
    "device_index": _index,
    "subnet_cidr": lambda value: ip_network(_text(value)),
    "primary": lambda value: ip_address(_text(value)),
    "secondaries": _addresses,
    "prefixes": _networks,
    "boundless": _networks,
    "host_addresses": _addresses,
    "security_groups": _texts,
    "stock_tags": _texts,
}


ON_DISK = {"ipv6_prefixes": "boundless"}
"""Fields that earlier releases have written by another name."""


def _encode_eni(eni: Eni) -> Json:
    named = {ON_DISK.get(k, k): v for k, v in asdict(eni).items()}
    return named | {
        "subnet_cidr": str(eni.subnet_cidr),
        "primary": str(eni.primary),
        "secondaries": [str(a) for a in eni.secondaries],
        "prefixes": [str(p) for p in eni.prefixes],
        "boundless": [str(p) for p in eni.ipv6_prefixes],
        "host_addresses": [str(a) for a in eni.host_addresses],
    }
