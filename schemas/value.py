"""The base of the document's parts, and its single values: durations, CIDRs, tags, names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache, partial
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from schemas import problem
from schemas.problem import EMPTY
from schemas.vocabulary import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    StrictInt,
    WithJsonSchema,
    model_serializer,
    model_validator,
    to_camel,
)

if TYPE_CHECKING:
    from pydantic import (
        GetCoreSchemaHandler,
        GetJsonSchemaHandler,
        SerializerFunctionWrapHandler,
    )

UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
_DURATION = re.compile(r"([0-9]{1,9})(ms|s|m|h)")
_MASK = re.compile(r"0x[0-9a-fA-F]{2,8}")
_CIDR = re.compile(r"[0-9a-fA-F.:]+(/[0-9]{1,3})?")

MIN_MTU, MAX_MTU = 1280, 9001
"""Bytes. IPv6 needs 1280 (RFC 8200 section 5) and a node may get it one day; 9001 is EC2's jumbo
frame (EC2 user guide, "Network MTU")."""

MIN_POD_MTU = 576
"""Bytes. Every host of IPv4 takes packets of so many (RFC 791 section 3.1)."""

RESERVED_PREFIXES = {
    "eth": "ENIs are called that",
    "lo": "the loopback interface is called that",
    "vlan": "the stock plugin's branch ENIs begin with it",
    "veth": "other runtimes' links begin with it",
    "cni": "bridge plugins' links begin with it",
}

MARK_BITS = 8
"""One for each ENI an instance can have, and one for the primary (``schemas.pool.MAX_ENIS``)."""

KUBERNETES_MARKS = {
    0x4000: "kube-proxy marks what it will masquerade with it",
    0x8000: "kubelet marks what it will drop with it",
    0x2000: "the portmap plugin marks what it will masquerade with it",
}
"""Mark bits that are in use on every Kubernetes node. Sources: kubelet's --iptables-masquerade-bit
and --iptables-drop-bit, containernetworking/plugins portmap "markMasqBit"."""

RESERVED_TAGS = ("node-network/", "node.k8s.amazonaws.com/", "cluster.k8s.amazonaws.com/")
"""Prefixes of tags that say who owns an ENI; the document may not set them."""

SOURCES = {
    "@peering": "the CIDR blocks of VPCs that are peered with this one",
    "@routes": "what the subnets' route tables send to a peering, a transit gateway, a Cloud WAN "
    "core network, a virtual private or local gateway, or another ENI",
    "@transit": "of that, what goes to a transit gateway or a core network",
    "@onprem": "of that, what goes to a virtual private or local gateway",
}
"""What may stand in place of a CIDR, and is derived from the VPC."""

_PREFIX_LIST = re.compile(r"pl-[0-9a-f]{8,17}")

Network = IPv4Network | IPv6Network
Pairs = tuple[tuple[str, str], ...]
"""A mapping that can be hashed: sorted by name, no name twice."""


def parse_duration(value: object) -> timedelta:
    """Read ``500ms``, ``30s``, ``2m`` or ``1h``.

    Raises:
        ValueError: it is anything else; a number without a unit says nothing.
    """
    if isinstance(value, timedelta):
        return value
    if value is None:
        raise ValueError(problem.EMPTY)
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

    Bits beyond the length are cut off, as iptables, nft and EC2's security groups do: the network
    is what is meant, and it is what ``render`` and ``diff`` print.

    Raises:
        ValueError: it is no CIDR.
    """
    if isinstance(value, str):
        try:
            return _network(value)
        except ValueError:
            pass
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    if value is None:
        raise ValueError("the entry is empty; remove it, or write a CIDR as 10.1.0.0/16")
    shown = "a list inside the list" if isinstance(value, list) else repr(value)
    raise ValueError(f"{shown} is no CIDR; write it as 10.1.0.0/16")


@lru_cache(16_384)
def _network(text: str) -> Network:
    """Read each CIDR once, however many overrides have the whole document checked again."""
    if not _CIDR.fullmatch(text):
        raise ValueError(text)
    return ip_network(text, strict=False)


def parse_destination(value: object) -> Network | str:
    """Read a CIDR or the name of a source.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(value, str) or not value.startswith(("@", "pl-")):
        return parse_cidr(value)
    if value in SOURCES or _PREFIX_LIST.fullmatch(value):
        return value
    words = ", ".join(SOURCES)
    raise ValueError(f"{value!r} is no source; write {words}, or a prefix list as pl-0a1b2c3d")


def parse_mark_mask(value: object) -> int:
    """Read a mask of eight adjacent bits that no other program on a Kubernetes node uses.

    Text, because YAML 1.1 reads 0xff as a number.

    Raises:
        ValueError: it is no hexadecimal number, another number of bits, or holds others' bits.
    """
    match = _MASK.fullmatch(value) if isinstance(value, str) else None
    mask = value if isinstance(value, int) else int(match[0], 16) if match else 0
    if not mask or mask != (mask & -mask) * ((1 << MARK_BITS) - 1) or mask >> 32:
        raise ValueError(f"{value!r}: must be {MARK_BITS} adjacent bits of 32; write it as '0xff'")
    if taken := [f"{bit:#x} ({why})" for bit, why in KUBERNETES_MARKS.items() if bit & mask]:
        raise ValueError(f"{mask:#x} holds {', '.join(taken)}; choose other bits")
    return mask


def parse_tags(value: object, *, ours: bool = True) -> Pairs:
    """Read EC2 tags; if they are to be ``ours``, none that are Amazon's or say who owns an ENI.

    Raises:
        ValueError: no mapping of text to text, or other tags than these; all that are.
    """
    pairs = dict(value) if isinstance(value, dict | tuple) else None
    if pairs is None:
        raise ValueError("must be a mapping of names to values")
    faults = [
        f"tag {key!r}: {fault}"
        for key, text in pairs.items()
        if (fault := _fault(key, text) or (_whose(key) if ours else ""))
    ]
    if faults:
        raise ValueError("\n".join(faults))
    return tuple(sorted(pairs.items()))


def _fault(key: object, text: object) -> str:
    """Say what EC2 refuses (EC2 user guide, "Tag restrictions")."""
    if not isinstance(key, str) or not isinstance(text, str):
        return f"names and values are text{problem.shown('; put {} in quotes', text)}"
    if not 1 <= len(key) <= 128 or len(text) > 256:
        return "a name has 1 to 128 characters, a value at most 256"
    return ""


def _whose(key: str) -> str:
    if key.lower().startswith("aws:"):
        return "names that begin with aws: are Amazon's own"
    if key.startswith(RESERVED_TAGS):
        return "ownership is read from it; it is set for you"
    return ""


def as_json(value: dict[Any, Any]) -> str:
    """Write a mapping as JSON with sorted keys.

    As text it can be hashed, cannot change, and equals the same mapping in another order.

    Raises:
        ValueError: it has values that JSON does not have.
    """
    try:
        return json.dumps(value, sort_keys=True)
    except TypeError as error:
        raise ValueError(f"not plain YAML: {error}") from error


def check_unique(value: tuple[str, ...]) -> tuple[str, ...]:
    """Return a list in which nothing is named twice.

    Raises:
        ValueError: something is; all that are.
    """
    twice = [text for position, text in enumerate(value) if text in value[:position]]
    if twice:
        raise ValueError("\n".join(f"{text} is named twice" for text in dict.fromkeys(twice)))
    return value


@dataclass(frozen=True)
class Form:
    """Text of a form: the pattern for editors, and the words of the error."""

    pattern: str
    said: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        schema = {"type": "string", "pattern": f"^{self.pattern}$"}
        return handler.generate_schema(
            Annotated[source, AfterValidator(self.check), WithJsonSchema(schema)]
        )

    def check(self, value: str) -> str:
        """Return text that has the form.

        Raises:
            ValueError: it does not.
        """
        if not re.fullmatch(self.pattern, value):
            raise ValueError(f"{value!r}: must be {self.said}")
        return value


def _check_prefix(value: str) -> str:
    if reason := RESERVED_PREFIXES.get(value):
        raise ValueError(f"{value!r} cannot be told from others' links: {reason}")
    return value


def _tags_schema(names: dict[str, object]) -> WithJsonSchema:
    return WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"minLength": 1, "maxLength": 128} | names,
            "additionalProperties": {"type": "string", "maxLength": 256},
        }
    )


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
Destination = Annotated[
    IPv4Network | IPv6Network | str,
    PlainValidator(parse_destination),
    PlainSerializer(str, return_type=str),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": f"^({_CIDR.pattern}|{'|'.join(SOURCES)}|{_PREFIX_LIST.pattern})$",
        }
    ),
]
"""A CIDR, or the name of a source: one of ``SOURCES``, or a prefix list's id."""

Tags = Annotated[
    Pairs,
    BeforeValidator(parse_tags),
    PlainSerializer(dict, return_type=dict[str, str]),
    _tags_schema({"pattern": "^(?![aA][wW][sS]:)"}),
]
TagSelector = Annotated[
    Pairs,
    BeforeValidator(partial(parse_tags, ours=False)),
    PlainSerializer(dict, return_type=dict[str, str]),
    _tags_schema({}),
]
Mtu = Annotated[StrictInt, Field(ge=MIN_MTU, le=MAX_MTU)]
PodMtu = Annotated[StrictInt, Field(ge=MIN_POD_MTU, le=MAX_MTU)]
MarkMask = Annotated[
    int,
    BeforeValidator(parse_mark_mask),
    PlainSerializer(hex, return_type=str),
    WithJsonSchema({"type": "string", "pattern": f"^{_MASK.pattern}$"}),
]
Family = Literal["ipv4", "ipv6"]
Families = Annotated[
    tuple[Family, ...],
    Field(min_length=1),
    AfterValidator(check_unique),
]
EgressFamilies = Annotated[tuple[Family, ...], AfterValidator(check_unique)]
VethPrefix = Annotated[
    str,
    Form("[a-z][a-z0-9]{0,3}", "1 to 4 lower-case letters and digits, a letter first"),
    AfterValidator(_check_prefix),
]
SubnetId = Annotated[str, Form("subnet-[0-9a-z]+", "a subnet id like subnet-0123abcd")]
SecurityGroupId = Annotated[str, Form("sg-[0-9a-z]+", "a security group id like sg-0123abcd")]
InstanceTypeName = Annotated[
    str, Form(r"[a-z0-9-]+\.[a-z0-9-]+", "an instance type like m5.large")
]
TaintKey = Annotated[
    str,
    Form(
        r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?",
        "the key of a taint, like node-network/agent-not-ready",
    ),
]
ClusterName = Annotated[str, Form("[A-Za-z0-9-]{0,100}", "1 to 100 letters, digits and hyphens")]


class Model(BaseModel):
    """A part of the document: frozen, strict about its keys, ``camelCase`` in YAML."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )

    def _faults(self) -> Iterator[str]:
        """Say which keys do not agree; a text may begin with the key: ``a.b: `` or ``a[3]: ``."""
        yield from ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if faults := list(self._faults()):
            raise ValueError("\n".join(faults))
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: Any, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Show defaults as in YAML; pydantic shows Python's (``PT30S``)."""
        made = handler(core_schema)
        written = cls.model_construct().model_dump(mode="json", warnings="none")
        for key, schema in handler.resolve_ref_schema(made)["properties"].items():
            if "default" not in schema:
                continue
            if key in written:
                schema["default"] = written[key]
            else:  # None, which a Sparse part neither writes nor reads
                del schema["default"]
                schema.update(schema.pop("anyOf")[0])
        return made


class Sparse(Model):
    """A part whose keys are absent or have a value.

    ``enis:`` without a value would otherwise count as absent, and another strategy would apply.
    """

    def _faults(self) -> Iterator[str]:
        for name, field in type(self).model_fields.items():
            if name in self.model_fields_set and getattr(self, name) is None:
                yield f"{field.alias}: {EMPTY}"

    @model_serializer(mode="wrap")
    def _write(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}
