"""Published manifests and chart values of amazon-vpc-cni-k8s, and its documented examples.

The examples are rows of its ``docs/eni-and-ip-target.md`` and ``docs/prefix-and-ip-target.md``:
what a node holds, by settings and pods. Where the document that ``import`` writes leads to
something else, the row says why.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.importing.stock_settings import StockSettings, read
from reconciler.importing.translate import translate
from reconciler.importing.written import write
from reconciler.ipam.cloud import PREFIX_SIZE
from reconciler.ipam.pool import Demand, Place, Space, band, grow
from schemas.document import NodeNetwork
from schemas.load import load

UPSTREAM = Path(__file__).parent / "upstream"
RELEASES = ("v1.6.4", "v1.10.2", "v1.12.1", "v1.15.1", "v1.19.0")

DISCOVERY = "# - ENABLE_SUBNET_DISCOVERY"
CORDON = "# - AWS_MANAGE_ENIS_NON_SCHEDULABLE is false"


@pytest.mark.parametrize("release", RELEASES)
def test_what_a_release_was_published_with_gives_a_valid_document(release: str) -> None:
    path = UPSTREAM / f"{release}.yaml"
    text = "\n".join(write(*translate(read([(path.name, path.read_text())]))))
    document = load(text, path.name)
    assert document.warm_pool.enis is not None
    assert document.warm_pool.enis.warm == 1
    assert (document.eni.allocate, document.snat.mode, document.families) == (
        *("addresses", "node"),
        ("ipv4",),
    )
    # Nothing of it has no counterpart: two notes, on what the stock plugin does unasked.
    told = text.partition("# Not translated, or different:\n")[2].splitlines()
    assert len(told) == 2, told
    assert told[0].startswith(DISCOVERY)
    assert told[1].startswith(CORDON)


def test_a_setting_that_a_release_leaves_out_has_its_codes_default() -> None:
    """v1.6.4 sets three variables."""
    path = UPSTREAM / "v1.6.4.yaml"
    text = "\n".join(write(*translate(read([(path.name, path.read_text())]))))
    assert "warm: 1  # WARM_ENI_TARGET not set" in text


# -- the arithmetic ---------------------------------------------------------------------------

TYPES = {"t3.small": (3, 3), "p3dn.24xlarge": (15, 49)}
"""ENIs, and addresses or prefixes that an ENI takes beside its own address."""


def held(instance_type: str, env: dict[str, str], pods: int) -> tuple[int, ...]:
    """What each ENI of a node has, which began with an empty primary ENI."""
    lines, notes = translate(StockSettings(env))
    document = load("\n".join(write(lines, notes)), "imported")
    enis, slots = TYPES[instance_type]
    return spread(document, enis, slots, pods)


def spread(document: NodeNetwork, enis: int, slots: int, pods: int) -> tuple[int, ...]:
    prefixes = document.eni.allocate == "prefixes"
    per_eni = slots * (PREFIX_SIZE if prefixes else 1)
    wanted = band(document.warm_pool.strategy, Demand(pods), per_eni=per_eni, max_pods=None)
    growth = grow(
        wanted.aim,
        places=[Place("s", slots)],
        spaces={"s": Space(10_000, 600)},
        candidates=("s",),
        new_enis=enis - 1,
        slots=slots,
        prefixes=prefixes,
    )
    shares = (*growth.shares, *growth.creations)
    return tuple(s.prefixes if prefixes else s.addresses for s in shares)


ENI = {"WARM_ENI_TARGET": "1"}
PREFIX = {"ENABLE_PREFIX_DELEGATION": "true", "WARM_PREFIX_TARGET": "1"}


def by_address(warm: int, minimum: int, *, prefixes: bool = False) -> dict[str, str]:
    targets = {"WARM_IP_TARGET": str(warm), "MINIMUM_IP_TARGET": str(minimum)}
    return (PREFIX if prefixes else ENI) | targets


SAME = [
    ("t3.small", ENI, 0, (3,)),
    ("t3.small", ENI, 5, (3, 3, 3)),
    ("t3.small", ENI, 9, (3, 3, 3)),
    ("t3.small", by_address(1, 1), 0, (1,)),
    ("t3.small", by_address(1, 1), 5, (3, 3)),
    ("t3.small", by_address(1, 1), 9, (3, 3, 3)),
    ("t3.small", by_address(2, 5), 5, (3, 3, 1)),
    ("t3.small", by_address(2, 5), 9, (3, 3, 3)),
    ("p3dn.24xlarge", ENI, 0, (49,)),
    ("p3dn.24xlarge", ENI, 3, (49, 49)),
    ("p3dn.24xlarge", ENI, 95, (49, 49, 49)),
    ("p3dn.24xlarge", by_address(5, 10), 0, (10,)),
    ("p3dn.24xlarge", by_address(5, 10), 7, (12,)),
    ("p3dn.24xlarge", by_address(5, 10), 15, (20,)),
    ("p3dn.24xlarge", by_address(5, 10), 45, (49, 1)),
    ("t3.small", PREFIX, 0, (1,)),
    ("t3.small", PREFIX, 5, (2,)),
    ("t3.small", PREFIX, 16, (2,)),
    ("t3.small", PREFIX, 17, (3,)),
    ("t3.small", PREFIX, 58, (3, 2)),
    ("t3.small", by_address(1, 1, prefixes=True), 0, (1,)),
    ("t3.small", by_address(1, 1, prefixes=True), 5, (1,)),
    ("t3.small", by_address(1, 1, prefixes=True), 17, (2,)),
    ("t3.small", by_address(1, 1, prefixes=True), 58, (3, 1)),
    ("t3.small", by_address(7, 20, prefixes=True), 5, (2,)),
    ("t3.small", by_address(7, 20, prefixes=True), 17, (2,)),
    ("t3.small", by_address(7, 20, prefixes=True), 58, (3, 2)),
    ("p3dn.24xlarge", PREFIX, 0, (1,)),
    ("p3dn.24xlarge", by_address(5, 10, prefixes=True), 0, (1,)),
    ("p3dn.24xlarge", by_address(5, 10, prefixes=True), 7, (1,)),
    ("p3dn.24xlarge", by_address(5, 10, prefixes=True), 15, (2,)),
]
"""Type, settings, pods, and what the documentation says that each ENI has."""

DIFFERENT = [
    # An ENI is filled before another one is made, so that there are as few as possible; the
    # documentation puts two on the first ENI, which has room for three.
    ("t3.small", by_address(2, 5), 0, (2, 3), (3, 2)),
    # MINIMUM_IP_TARGET 20 is two prefixes, as the documentation's text and its column "prefixes
    # per ENI" say; its column "attached prefixes" says one.
    ("t3.small", by_address(7, 20, prefixes=True), 0, (1,), (2,)),
    # No ENI is made while those that are there take more prefixes; the documentation shows
    # further ones that have none.
    ("p3dn.24xlarge", PREFIX, 3, (2, 0), (2,)),
    ("p3dn.24xlarge", PREFIX, 95, (7, 0, 0), (7,)),
    ("p3dn.24xlarge", by_address(5, 10, prefixes=True), 45, (4, 0), (4,)),
]
"""The same; and what it is here, and why."""


@pytest.mark.parametrize(("instance_type", "env", "pods", "documented"), SAME)
def test_a_documented_example_comes_to_the_same_here(
    instance_type: str, env: dict[str, str], pods: int, documented: tuple[int, ...]
) -> None:
    assert held(instance_type, env, pods) == documented


@pytest.mark.parametrize(("instance_type", "env", "pods", "documented", "ours"), DIFFERENT)
def test_a_documented_example_that_differs_differs_as_explained(
    instance_type: str,
    env: dict[str, str],
    pods: int,
    documented: tuple[int, ...],
    ours: tuple[int, ...],
) -> None:
    assert held(instance_type, env, pods) == ours != documented
