"""The last observations of EC2 as JSON, for the state directory: of ENIs, and of sources.

Each outlives the release that wrote it. A field that this release does not know is left out, one
that an earlier release did not have gets its default. Whatever else is wrong makes it no look at
all: of one that lacks an ENI, that ENI's routes and rules would seem to be garbage.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from reconciler.core.datapath import MAX_DEVICE_INDEX
from reconciler.core.facts import Eni, Node
from reconciler.egress.destinations import Egress
from reconciler.ipam.cloud import Cloud, Limits, Subnet
from reconciler.targets.state import structure
from reconciler.targets.state.codec import Json

MAX_OBSERVATION_BYTES = 4 << 20
"""Bytes of a look. The largest instance's ENIs take some 100 KiB; a subnet 300 bytes, or 20 KiB
with the fifty tags that EC2 allows."""

MAX_ITEMS = 16_384
"""Entries of one list in a look: 2^14, the addresses of 64 ENIs with 256 each, several times what
EC2 allows."""

ON_DISK = {"ipv6_prefixes": "boundless"}
"""Fields of an ENI that earlier releases have written by another name."""


@dataclass(frozen=True)
class _Look:
    node: Node
    enis: tuple[Eni, ...]
    limits: Limits | None = None
    subnets: tuple[Subnet, ...] = ()


def encode_observation(node: Node, cloud: Cloud) -> Json:
    """Return what ``decode_observation`` reads back.

    Subnets are left out if they would make it too large: the next observation of EC2 brings them,
    and no pod that runs depends on them.
    """
    look = _Look(node, cloud.enis, cloud.limits, tuple(cloud.subnets.values()))
    body: Json = structure.encode(look)
    body["enis"] = [{ON_DISK.get(k, k): v for k, v in eni.items()} for eni in body["enis"]]
    if len(json.dumps(body["subnets"])) > MAX_OBSERVATION_BYTES // 2:
        body["subnets"] = []
    return body


def decode_observation(body: Json) -> tuple[Node, Cloud]:
    """Read a look; what it raises is one of ``record_file.UNREADABLE``."""
    _check_lengths(body)
    here = {on_disk: name for name, on_disk in ON_DISK.items()}
    enis = [{here.get(k, k): v for k, v in eni.items()} for eni in body["enis"]]
    look = structure.decode(_Look, body | {"enis": enis})
    for eni in look.enis:
        if not 0 <= (eni.device_index or 0) <= MAX_DEVICE_INDEX:
            raise ValueError(f"device index {eni.device_index}")
    # A look of an earlier release does not say which ENI is the primary one.
    told = tuple(
        replace(e, is_primary=raw.get("is_primary", e.mac == look.node.primary_mac))
        for e, raw in zip(look.enis, enis, strict=True)
    )
    return look.node, Cloud(told, look.limits, {s.subnet_id: s for s in look.subnets})


def encode_egress(egress: Egress) -> Json:
    """Return what ``decode_egress`` reads back."""
    body: Json = structure.encode(egress)
    return body


def decode_egress(body: Json) -> Egress:
    """Read what is known of sources; what it raises is one of ``record_file.UNREADABLE``."""
    _check_lengths(body)
    return structure.decode(Egress, body)


def _check_lengths(value: Any) -> None:
    if isinstance(value, list) and len(value) > MAX_ITEMS:
        raise ValueError(f"a list of {len(value)} entries, of {MAX_ITEMS} at most")
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, dict | list):
            _check_lengths(inner)
