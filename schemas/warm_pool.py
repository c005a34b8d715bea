"""The warm pool: one strategy, counted in addresses, in ENIs or in prefixes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from pydantic import ConfigDict, Field, StrictInt

from schemas.model import Model, Sparse
from schemas.value import Duration

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
