"""The ``NodeNetwork`` document: what a node's network should be.

Every model is frozen and refuses unknown keys. YAML says ``camelCase``, Python ``snake_case``.
The descriptions here are the manual: the JSON Schema beside this file carries them to editors.
"""

from __future__ import annotations

import re
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StrictInt,
    WithJsonSchema,
    model_validator,
)
from pydantic.alias_generators import to_camel

API_VERSION = "node-network/v1alpha1"

UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
_DURATION = re.compile(r"([0-9]{1,9})(ms|s|m|h)")
_CIDR = re.compile(r"[0-9a-fA-F.:]+(/[0-9]{1,3})?")
_PREFIX = re.compile(r"[a-z][a-z0-9]{0,3}")

MIN_MTU, MAX_MTU = 1280, 9001
"""Bytes. IPv6 needs 1280 (RFC 8200 section 5) and a node may get it one day; 9001 is EC2's jumbo
frame (EC2 user guide, "Network MTU")."""

RESERVED_PREFIXES = {
    "eni": "the stock plugin's links begin with it",
    "eth": "ENIs are called that",
    "lo": "the loopback interface is called that",
    "vlan": "the stock plugin's branch ENIs begin with it",
    "veth": "other runtimes' links begin with it",
    "cni": "bridge plugins' links begin with it",
}

RESERVED_TAGS = ("node.k8s.amazonaws.com/", "cluster.k8s.amazonaws.com/")
"""Ownership is read from tags that begin so; the document may not forge it."""

Network = IPv4Network | IPv6Network


def parse_duration(value: object) -> timedelta:
    """Read ``500ms``, ``30s``, ``2m`` or ``1h``.

    Raises:
        ValueError: it is anything else; a number without a unit says nothing.
    """
    if isinstance(value, timedelta):
        return value
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is no duration; write a number and a unit, as 30s, 2m or 1h")
    return timedelta(milliseconds=int(match[1]) * UNITS_MS[match[2]])


def print_duration(value: timedelta) -> str:
    """Write a duration in the largest unit that keeps it whole."""
    ms = value // timedelta(milliseconds=1)
    unit = next(u for u in ("h", "m", "s", "ms") if ms % UNITS_MS[u] == 0 and (ms or u == "s"))
    return f"{ms // UNITS_MS[unit]}{unit}"


def parse_cidr(value: object) -> Network:
    """Read a CIDR; a bare address means that address alone.

    Raises:
        ValueError: it is no CIDR, or has bits set that its length cuts off.
    """
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    if value is None:
        raise ValueError("the entry is empty; remove it, or write a CIDR as 10.1.0.0/16")
    if not isinstance(value, str) or not _CIDR.fullmatch(value):
        shown = "a list inside the list" if isinstance(value, list) else repr(value)
        raise ValueError(f"{shown} is no CIDR; write it as 10.1.0.0/16")
    try:
        return ip_network(value)
    except ValueError:
        pass
    try:
        fixed = ip_network(value, strict=False)
    except ValueError:
        raise ValueError(f"{value!r} is no CIDR; write it as 10.1.0.0/16") from None
    raise ValueError(f"{value} has host bits set; write {fixed}")


def _check_prefix(value: str) -> str:
    if not _PREFIX.fullmatch(value):
        raise ValueError(
            f"{value!r}: must be 1 to 4 lower-case letters and digits, a letter first"
        )
    if reason := RESERVED_PREFIXES.get(value):
        raise ValueError(f"{value!r} cannot be told from others' links: {reason}")
    return value


def _check_tags(value: object) -> tuple[tuple[str, str], ...]:
    """Read EC2 tags. Limits: EC2 user guide, "Tag restrictions"."""
    pairs = dict(value) if isinstance(value, dict | tuple) else None
    if pairs is None:
        raise ValueError("must be a mapping of names to values")
    faults = [
        f"tag {key!r}: {fault}" for key, text in pairs.items() if (fault := _fault(key, text))
    ]
    if faults:
        raise ValueError("\n".join(faults))
    return tuple(sorted(pairs.items()))


def _fault(key: object, text: object) -> str:
    if not isinstance(key, str) or not isinstance(text, str):
        return f"names and values are text; put {text!r} in quotes"
    if not 1 <= len(key) <= 128 or len(text) > 256:
        return "a name has 1 to 128 characters, a value at most 256"
    if key.lower().startswith("aws:"):
        return "names that begin with aws: are Amazon's own"
    if key.startswith(RESERVED_TAGS):
        return "ownership is read from it; it is set for you"
    return ""


def _no_duplicates(value: tuple[str, ...]) -> tuple[str, ...]:
    if "ipv6" in value:
        raise ValueError("ipv6 is not built yet; remove it")
    if len(set(value)) != len(value):
        raise ValueError("a family is named twice")
    return value


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(print_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": f"^{_DURATION.pattern}$"}),
]
Cidr = Annotated[
    Network,
    BeforeValidator(parse_cidr),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": f"^{_CIDR.pattern}$"}),
]
Tags = Annotated[
    tuple[tuple[str, str], ...],
    BeforeValidator(_check_tags),
    PlainSerializer(dict, return_type=dict[str, str]),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"minLength": 1, "maxLength": 128, "pattern": "^(?![aA][wW][sS]:)"},
            "additionalProperties": {"type": "string", "maxLength": 256},
        }
    ),
]
Mtu = Annotated[StrictInt, Field(ge=MIN_MTU, le=MAX_MTU)]
Family = Literal["ipv4", "ipv6"]


class Model(BaseModel):
    """What all parts of the document have in common."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        serialize_by_alias=True,
    )


class WarmPool(Model):
    """How many addresses the node holds before pods ask for them."""

    warm: StrictInt = Field(
        default=4,
        ge=0,
        le=1000,
        description="Addresses kept free beyond those in use. Unit: addresses. The default lets a "
        "few pods start while EC2 is asked for more, which takes seconds.",
    )
    minimum: StrictInt = Field(
        default=0,
        ge=0,
        le=10000,
        description="Addresses held in all, pods' included, even when few are used. Unit: "
        "addresses. Set it near the node's usual number of pods and a burst costs no EC2 call.",
    )
    cooldown: Duration = Field(
        default=timedelta(seconds=30),
        description="Rest of a released address before another pod may get it. Unit: duration, "
        "0s to 1h. The default is the stock plugin's; connections of the old pod die meanwhile.",
    )

    @model_validator(mode="after")
    def _check(self) -> WarmPool:
        if not timedelta() <= self.cooldown <= timedelta(hours=1):
            raise ValueError("cooldown: must be from 0s to 1h")
        return self


class Eni(Model):
    """The network interfaces that carry pods."""

    max: Annotated[StrictInt, Field(ge=1, le=127)] | None = Field(
        default=None,
        description="ENIs on this instance at most, the primary included. Unit: interfaces. "
        "Default: what the instance type allows.",
    )
    mtu: Mtu = Field(
        default=MAX_MTU,
        description="MTU of every ENI's link. Unit: bytes. Default: EC2's jumbo frame.",
    )
    tags: Tags = Field(
        default=(),
        description="EC2 tags for the ENIs we create, beside those that mark them as ours.",
    )


class Snat(Model):
    """Whose address the world outside the VPC sees."""

    mode: Literal["node", "external"] = Field(
        default="node",
        description="node: what a pod sends out of the VPC carries the node's primary address. "
        "external: it carries the pod's own, and a NAT gateway or router does the rest.",
    )
    exclude_cidrs: tuple[Cidr, ...] = Field(
        default=(),
        alias="excludeCIDRs",
        description="Destinations beyond the VPC that see pod addresses all the same: peered "
        "VPCs, on-premises networks. The VPC's own CIDRs are always among them. Overlapping and "
        "adjacent entries are merged; a bare address means that address alone.",
    )

    @model_validator(mode="after")
    def _check(self) -> Snat:
        if self.mode == "external" and self.exclude_cidrs:
            raise ValueError(
                "excludeCIDRs: has no effect in mode external, where nothing is translated; "
                "remove it, or choose mode node"
            )
        return self


class Pods(Model):
    """The pods' side."""

    mtu: Mtu | None = Field(
        default=None, description="MTU of pods' links. Unit: bytes. Default: the ENIs' MTU."
    )
    veth_prefix: Annotated[
        str,
        AfterValidator(_check_prefix),
        WithJsonSchema({"type": "string", "pattern": f"^{_PREFIX.pattern}$"}),
    ] = Field(
        default="nn",
        description="First letters of the host ends of pods' links: 1 to 4 lower-case letters "
        "and digits. A change holds for pods that start after it.",
    )


class Reconcile(Model):
    """How often the world is looked at without being told."""

    resync: Duration = Field(
        default=timedelta(seconds=60),
        description="Time between full looks at kernel and nftables. Unit: duration, 1s to 1h. "
        "Changes are noticed at once by their notifications; this is for lost ones.",
    )
    ec2_resync: Duration = Field(
        default=timedelta(minutes=5),
        description="Time between looks at EC2 while nothing is wanted from it. Unit: duration, "
        "10s to 1h. EC2 tells nobody of changes, and every look counts against the account's "
        "request limits.",
    )

    @model_validator(mode="after")
    def _check(self) -> Reconcile:
        faults = []
        if not timedelta(seconds=1) <= self.resync <= timedelta(hours=1):
            faults.append("resync: must be from 1s to 1h")
        if not timedelta(seconds=10) <= self.ec2_resync <= timedelta(hours=1):
            faults.append("ec2Resync: must be from 10s to 1h")
        if faults:
            raise ValueError("\n".join(faults))
        return self


class NodeNetwork(Model):
    """A node's network, as it should be."""

    api_version: Literal["node-network/v1alpha1"] = Field(description="Version of this schema.")
    kind: Literal["NodeNetwork"] = Field(description="What this document is.")
    warm_pool: WarmPool = Field(default=WarmPool(), description="Addresses held ready.")
    eni: Eni = Field(default=Eni(), description="The network interfaces that carry pods.")
    snat: Snat = Field(default=Snat(), description="Whose address the world outside the VPC sees.")
    pods: Pods = Field(default=Pods(), description="The pods' side.")
    reconcile: Reconcile = Field(
        default=Reconcile(), description="How often to look without being told."
    )
    families: Annotated[
        tuple[Family, ...], Field(min_length=1), AfterValidator(_no_duplicates)
    ] = Field(default=("ipv4",), description="Address families of pods. Only ipv4 is built yet.")

    @property
    def pod_mtu(self) -> int:
        """MTU of pods' links in bytes."""
        return self.pods.mtu or self.eni.mtu

    @model_validator(mode="after")
    def _check(self) -> NodeNetwork:
        faults = []
        if self.pod_mtu > self.eni.mtu:
            faults.append(
                f"pods.mtu: {self.pod_mtu} does not fit into eni.mtu {self.eni.mtu}; "
                "a pod's packets would be fragmented or dropped; lower pods.mtu"
            )
        versions = {4 if family == "ipv4" else 6 for family in self.families}
        for position, cidr in enumerate(self.snat.exclude_cidrs):
            if cidr.version not in versions:
                faults.append(
                    f"snat.excludeCIDRs[{position}]: {cidr} is IPv{cidr.version}, but families "
                    "has none of that version; remove it"
                )
        if faults:
            raise ValueError("\n".join(faults))
        return self


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) that editors check the YAML with."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "NodeNetwork",
    } | NodeNetwork.model_json_schema(by_alias=True)
