"""A look at EC2 as JSON, for the state directory."""

from __future__ import annotations

from dataclasses import asdict
from ipaddress import ip_address, ip_network
from typing import Any

from reconciler.core.cloud import Cloud, Limits
from reconciler.core.facts import Eni, Node
from reconciler.core.subnet import Subnet

Json = dict[str, Any]


def encode_look(node: Node, cloud: Cloud) -> Json:
    """Return what ``decode_look`` reads back."""
    return {
        "node": asdict(node) | {"vpc_cidrs": [str(c) for c in node.vpc_cidrs]},
        "limits": asdict(cloud.limits) if cloud.limits else None,
        "subnets": [asdict(s) | {"cidr": str(s.cidr)} for s in cloud.subnets.values()],
        "enis": [_encode_eni(e) for e in cloud.enis],
    }


def decode_look(body: Json) -> tuple[Node, Cloud]:
    """Read a look.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    node = body["node"]
    subnets = [_decode_subnet(s) for s in body["subnets"]]
    cloud = Cloud(
        enis=tuple(_decode_eni(e, node["primary_mac"]) for e in body["enis"]),
        limits=Limits(**body["limits"]) if body["limits"] else None,
        subnets={s.subnet_id: s for s in subnets},
    )
    cidrs = tuple(ip_network(c) for c in node["vpc_cidrs"])
    return Node(**(node | {"vpc_cidrs": cidrs})), cloud


def _decode_subnet(body: Json) -> Subnet:
    tags = tuple((key, value) for key, value in body["tags"])
    families = tuple(body.get("families", ("ipv4",)))
    parsed = {"cidr": ip_network(body["cidr"]), "tags": tags, "families": families}
    return Subnet(**(body | parsed))


def _encode_eni(eni: Eni) -> Json:
    return asdict(eni) | {
        "subnet_cidr": str(eni.subnet_cidr),
        "primary": str(eni.primary),
        "secondaries": [str(a) for a in eni.secondaries],
        "prefixes": [str(p) for p in eni.prefixes],
        "boundless": [str(p) for p in eni.boundless],
        "host_addresses": [str(a) for a in eni.host_addresses],
    }


def _decode_eni(body: Json, primary_mac: str) -> Eni:
    parsed = {
        # A look of an earlier release does not say it.
        "is_primary": bool(body.get("is_primary", body["mac"] == primary_mac)),
        "subnet_cidr": ip_network(body["subnet_cidr"]),
        "primary": ip_address(body["primary"]),
        "secondaries": tuple(ip_address(a) for a in body["secondaries"]),
        "prefixes": tuple(ip_network(p) for p in body["prefixes"]),
        # A look of a release before IPv6 has neither.
        "boundless": tuple(ip_network(p) for p in body.get("boundless", ())),
        "host_addresses": tuple(ip_address(a) for a in body.get("host_addresses", ())),
        "security_groups": tuple(body["security_groups"]),
        "stock_tags": tuple(body.get("stock_tags", ())),
    }
    return Eni(**(body | parsed))
