"""The warm pool's strategies: which one is in force."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from schemas.pool import AddressTarget, EniTarget, PrefixTarget, WarmPool


@pytest.mark.parametrize(
    ("pool", "strategy"),
    [
        (WarmPool(), AddressTarget(warm=4, minimum=0, surplus=4)),
        (WarmPool(addresses=AddressTarget(warm=0)), AddressTarget(warm=0, minimum=0, surplus=4)),
        (WarmPool(enis=EniTarget()), EniTarget(warm=1)),
        (WarmPool(enis=EniTarget(warm=0)), EniTarget(warm=0)),
        (WarmPool(prefixes=PrefixTarget()), PrefixTarget(warm=1)),
    ],
    ids=repr,
)
def test_the_strategy_in_force_is_the_one_given_or_addresses(
    pool: WarmPool, strategy: object
) -> None:
    assert pool.strategy == strategy


def test_strategies_of_the_same_numbers_are_still_different() -> None:
    assert EniTarget(warm=1) != PrefixTarget(warm=1)


def test_a_pool_has_no_two_strategies_however_it_is_made() -> None:
    with pytest.raises(ValidationError, match="addresses and enis are given"):
        WarmPool(addresses=AddressTarget(), enis=EniTarget())
