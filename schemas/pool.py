"""ENIs for pods, the limits of instance types, and the warm pool: what is held of addresses."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal

from schemas.value import (
    MAX_MTU,
    Duration,
    InstanceTypeName,
    Model,
    Mtu,
    SecurityGroupId,
    Sparse,
    SubnetId,
    Tags,
    TagSelector,
    check_unique,
)
from schemas.vocabulary import (
    AfterValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StrictBool,
    StrictInt,
)

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler

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
    exclude_subnet_tags: TagSelector = Field(
        default=(),
        description="Subnets that have all of these tags are not used for pods: no ENI is created "
        "there, and one that is there gives no more addresses. Default: none is excluded.",
    )
    subnet_order: Literal["listed", "most-free"] = Field(
        default="listed",
        description="Which of the subnets an ENI is created in first. listed: in the order of "
        "subnets; those that subnetTags selects, most free addresses first. most-free: most free "
        "addresses first. Default: listed, so that the order says which is preferred.",
    )
    security_groups: Annotated[
        tuple[SecurityGroupId, ...],
        Field(max_length=MAX_SECURITY_GROUPS),
        AfterValidator(check_unique),
    ] = Field(
        default=(),
        description="Security groups of the ENIs we create. Unit: ids, at most 16. Default: the "
        "primary ENI's, so that all pods of a node have the same; when those change, the others "
        "follow.",
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


STRATEGIES = ("addresses", "enis", "prefixes")
"""Keys of ``warmPool`` of which a document may give one."""


class AddressTarget(Model):
    """Hold a number of free addresses, and give back what exceeds it by the surplus.

    Only allocatable addresses count: cooling and quarantined ones cannot serve a pod yet.
    """

    warm: StrictInt = Field(
        default=4,
        ge=0,
        le=1000,
        description="Allocatable addresses beyond those in use. Unit: addresses. Default 4: a few "
        "pods can start while EC2 is asked for more, which takes seconds.",
    )
    minimum: StrictInt = Field(
        default=0,
        ge=0,
        le=10000,
        description="Addresses held in all, those in use included. Unit: addresses. Default 0: a "
        "node without pods holds few. Near the node's usual number of pods, a burst of pods costs "
        "no EC2 call.",
    )
    surplus: StrictInt = Field(
        default=4,
        ge=0,
        le=1000,
        description="Width of the dead band. Unit: addresses. Addresses are given back only when "
        "more than warm + surplus are allocatable, and growth aims at the middle of the band, so "
        "the pool does not grow and shrink in turn. Default 4: after a change, two pods may start "
        "or end before EC2 is called again.",
    )


class EniTarget(Model):
    """Hold as many free addresses as whole ENIs of this instance type have."""

    warm: StrictInt = Field(
        default=1,
        ge=0,
        le=15,
        description="Allocatable addresses, in ENIs. Unit: ENIs. Default 1: the stock "
        "plugin's WARM_ENI_TARGET.",
    )


class PrefixTarget(Model):
    """Hold whole free /28 prefixes; needs ``eni.allocate: prefixes``."""

    warm: StrictInt = Field(
        default=1,
        ge=0,
        le=100,
        description="Allocatable addresses, in /28 prefixes. Unit: prefixes of 16 "
        "addresses. Default 1: the stock plugin's WARM_PREFIX_TARGET as its manifests set it.",
    )


Strategy = AddressTarget | EniTarget | PrefixTarget


class WarmPool(Sparse):
    """What the node holds before pods ask for it: one of addresses, enis or prefixes."""

    # An editor then marks the key that is one too many.
    model_config = ConfigDict(
        json_schema_extra={
            "dependentSchemas": {
                one: {"properties": {other: False for other in STRATEGIES if other != one}}
                for one in STRATEGIES
            }
        }
    )

    addresses: AddressTarget | None = Field(
        default=None,
        description="Count in addresses. The default strategy: it holds least.",
    )
    enis: EniTarget | None = Field(
        default=None,
        description="Count in whole ENIs: more addresses held, fewer EC2 calls.",
    )
    prefixes: PrefixTarget | None = Field(
        default=None,
        description="Count in /28 prefixes. Requires eni.allocate: prefixes.",
    )
    cooldown: Duration = Field(
        default=timedelta(seconds=30),
        description="Cooldown of a released address: how long before another pod may get it. "
        "Unit: duration, 0s to 1h. Default 30s, as the stock plugin's: the old pod's connections "
        "time out meanwhile.",
    )

    @property
    def strategy(self) -> Strategy:
        """The one in force."""
        return self.addresses or self.enis or self.prefixes or AddressTarget()

    def _faults(self) -> Iterator[str]:
        yield from super()._faults()
        given = [name for name in STRATEGIES if getattr(self, name) is not None]
        if len(given) > 1:
            yield (
                f"{given[1]}: {' and '.join(given)} are given, but one strategy decides; "
                "remove all but one"
            )
        if not timedelta() <= self.cooldown <= timedelta(hours=1):
            yield "cooldown: must be from 0s to 1h"
