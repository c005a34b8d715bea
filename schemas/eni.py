"""ENIs for pods: how many, their settings, and the limits of instance types."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    GetCoreSchemaHandler,
    PlainSerializer,
    StrictBool,
    StrictInt,
)

from schemas.model import Model
from schemas.value import (
    MAX_MTU,
    InstanceTypeName,
    Mtu,
    SecurityGroupId,
    SubnetId,
    Tags,
    TagSelector,
    check_unique,
)

MAX_ENIS = 127
"""More than any instance type attaches. ENI *k* is marked with *k*, which must stay below the mark
of the primary ENI, 128 (``reconciler.core.datapath``)."""

MAX_SECURITY_GROUPS = 16
"""Per ENI, after the quota is raised from 5 (Amazon VPC user guide, "Amazon VPC quotas")."""


class Eni(Model):
    """The ENIs that pods' addresses belong to."""

    max: Annotated[StrictInt, Field(ge=1, le=MAX_ENIS)] | None = Field(
        default=None,
        description="Most ENIs on this instance, the primary included. Unit: interfaces. "
        "Default: the instance type's limit.",
    )
    mtu: Mtu = Field(
        default=MAX_MTU,
        description="MTU of every ENI's link. Unit: bytes. Default: EC2's jumbo frame.",
    )
    tags: Tags = Field(
        default=(),
        description="EC2 tags for the ENIs we create, beside those that mark them as ours. "
        "Default: none.",
    )
    allocate: Literal["addresses", "prefixes"] = Field(
        default="addresses",
        description="addresses: pods get secondary addresses of ENIs, assigned one by one. "
        "prefixes: pods get addresses of /28 prefixes, of 16 addresses each, and single addresses "
        "where a subnet has no whole block free. Default addresses: a prefix takes 16 addresses "
        "from the subnet for the first pod.",
    )
    use_primary: StrictBool = Field(
        default=True,
        description="Whether pods get addresses of the primary ENI too. Default true: every "
        "instance has it, and small instance types have few others.",
    )
    subnets: Annotated[tuple[SubnetId, ...], AfterValidator(check_unique)] = Field(
        default=(),
        description="Subnets for the ENIs we create, in order of preference. Unit: ids. Default: "
        "the primary ENI's, unless subnetTags selects others.",
    )
    subnet_tags: TagSelector = Field(
        default=(),
        description="Instead of subnets: use those that have all of these tags. Default: no "
        "selection.",
    )
    security_groups: Annotated[
        tuple[SecurityGroupId, ...],
        Field(max_length=MAX_SECURITY_GROUPS),
        AfterValidator(check_unique),
    ] = Field(
        default=(),
        description="Security groups of the ENIs we create. Unit: ids, at most 16. Default: the "
        "primary ENI's, so that all pods of a node have the same.",
    )

    def _faults(self) -> Iterator[str]:
        if self.subnets and self.subnet_tags:
            yield "subnetTags: subnets names the subnets already; remove subnets or subnetTags"
        if self.max == 1 and not self.use_primary:
            yield "usePrimary: false with max 1 leaves no ENI for pods; raise max or use it"


class InstanceLimits(Model):
    """Limits of one instance type."""

    enis: StrictInt = Field(
        ge=1,
        le=MAX_ENIS,
        description="Most ENIs, the primary included. Unit: interfaces. No default: with a wrong "
        "number EC2 refuses every call.",
    )
    addresses_per_eni: StrictInt = Field(
        ge=2,
        le=250,
        description="Most IPv4 addresses per ENI, its primary address included. Unit: "
        "addresses. No default, as for enis.",
    )


class _SortedPairs:
    """Reads a mapping as pydantic does, places of faults included, and keeps sorted pairs.

    A frozen model is hashed by its fields, and a dict cannot be.
    """

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        mapping = dict[InstanceTypeName, InstanceLimits]
        return handler.generate_schema(
            Annotated[mapping, AfterValidator(lambda limits: tuple(sorted(limits.items())))]
        )


InstanceTypes = Annotated[
    tuple[tuple[str, InstanceLimits], ...],
    _SortedPairs(),
    PlainSerializer(dict, return_type=dict[str, InstanceLimits]),
    # pydantic leaves names that do not match the pattern to anything.
    Field(json_schema_extra={"additionalProperties": False}),
]
