"""A look at EC2 as JSON, for the state directory."""

from __future__ import annotations

from dataclasses import asdict
from ipaddress import ip_address, ip_network
from typing import Any

from reconciler.core.facts import Eni, Node
from reconciler.domains.eni import Cloud, Limits

Json = dict[str, Any]


def encode_look(node: Node, cloud: Cloud) -> Json:
    """Return what ``decode_look`` reads back."""
    return {
        "node": asdict(node) | {"vpc_cidrs": [str(c) for c in node.vpc_cidrs]},
        "limits": asdict(cloud.limits),
        "freeAddresses": dict(cloud.free_addresses),
        "enis": [_encode_eni(e) for e in cloud.enis],
    }


def decode_look(body: Json) -> tuple[Node, Cloud]:
    """Read a look.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    node = body["node"]
    cloud = Cloud(
        enis=tuple(_decode_eni(e) for e in body["enis"]),
        limits=Limits(**body["limits"]),
        free_addresses=body["freeAddresses"],
    )
    cidrs = tuple(ip_network(c) for c in node["vpc_cidrs"])
    return Node(**(node | {"vpc_cidrs": cidrs})), cloud


def _encode_eni(eni: Eni) -> Json:
    return asdict(eni) | {
        "subnet_cidr": str(eni.subnet_cidr),
        "primary": str(eni.primary),
        "secondaries": [str(a) for a in eni.secondaries],
    }


def _decode_eni(body: Json) -> Eni:
    parsed = {
        "subnet_cidr": ip_network(body["subnet_cidr"]),
        "primary": ip_address(body["primary"]),
        "secondaries": tuple(ip_address(a) for a in body["secondaries"]),
        "security_groups": tuple(body["security_groups"]),
    }
    return Eni(**(body | parsed))
