"""What is left in memory of a document that another has replaced."""

from __future__ import annotations

import gc
from ipaddress import IPv4Network, ip_network
from typing import Any

import pytest
from builders import document
from simulation import Simulation

from schemas.value import _network

FORMER = ip_network("172.16.9.0/24")
WARM = {"addresses": {"warm": 2}}


def _left() -> int:
    _network.cache_clear()  # that of the process which checks documents, and ends
    gc.collect()
    return sum(isinstance(o, IPv4Network) and o == FORMER for o in gc.get_objects())


@pytest.mark.parametrize(
    "snat",
    [
        {"excludeCIDRs": [str(FORMER)]},
        {"onlyCIDRs": [str(FORMER)]},
        {"rules": [{"namespace": "a", "to": [str(FORMER)], "as": "node"}]},
    ],
    ids=["excluded", "only", "rule"],
)
def test_nothing_of_a_former_documents_cidrs_is_kept(snat: dict[str, Any]) -> None:
    """Documents of 10,000 CIDRs that follow each other would be kept beside each other."""
    sim = Simulation(warmPool=WARM)
    sim.turn(61.0)
    before = _left()
    sim.document = document(warmPool=WARM, snat=snat)
    sim.turn(61.0)
    assert _left() > before
    sim.document = document(warmPool=WARM)
    for _ in range(3):
        sim.turn(61.0)
    assert _left() == before
