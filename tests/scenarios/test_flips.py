"""Flipping every SNAT policy to every other while connections of every kind are open."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, permutations
from typing import Any

import pytest
from traffic_matrix import (
    DEVICES,
    HOST_PORTS,
    HOSTS,
    NODE,
    NODE_PORTS,
    POLICIES,
    SERVICES,
    TrafficMatrix,
)
from traffic_matrix import traffic_matrix as make_traffic_matrix

from lab.traffic import PORT, Stream

pytestmark = pytest.mark.lab


@pytest.fixture
def traffic_matrix(make_cluster: Any, tmp_path: Any) -> Iterator[TrafficMatrix]:
    with make_cluster(tmp_path) as cluster, make_traffic_matrix(cluster) as made:
        yield made


def tour() -> list[str]:
    """Every policy to every other, each flip once: Hierholzer's walk."""
    left = {a: [b for b in POLICIES if b != a] for a in POLICIES}
    stack, walk = [next(iter(POLICIES))], []
    while stack:
        if left[stack[-1]]:
            stack.append(left[stack[-1]].pop())
        else:
            walk.append(stack.pop())
    return walk[::-1]


def ways(traffic_matrix: TrafficMatrix) -> Iterator[tuple[str, str, int, str, str]]:
    """Where from, to what address and port, the source that is seen now, and what to call it."""
    for row in ("primary", "secondary", "host"):
        for target in ("near", "far", *HOSTS):
            source = (
                NODE
                if row == "host" or target in traffic_matrix.translated
                else traffic_matrix.own(row)
            )
            if target == "internet" and source != NODE:
                continue  # no way out without translation
            address = traffic_matrix.address(target)
            yield traffic_matrix.where(row), address, PORT, source, f"{row} to {target}"
            if target in SERVICES:
                service = f"172.20.0.{SERVICES[target]}"
                yield traffic_matrix.where(row), service, 80, source, f"{row} to service {target}"
    for client in ("VPC host", "peer"):
        place, source = HOSTS[client]
        place = traffic_matrix.names.namespace(place)
        for row in DEVICES:
            yield place, traffic_matrix.own(row), PORT, source, f"{client} to {row}"
            for arrival in DEVICES:
                for port in (NODE_PORTS[row], HOST_PORTS[row]):
                    name = f"{client} to {row} by port {port} of {arrival}"
                    yield place, traffic_matrix.entry(arrival), port, source, name


@pytest.mark.timeout(240)
def test_no_connection_is_cut_by_any_flip_and_new_ones_follow_it(
    traffic_matrix: TrafficMatrix,
) -> None:
    """In every direction, by every way in; and what is open keeps the source it had."""
    walk = tour()
    assert set(pairwise(walk)) == set(permutations(POLICIES, 2))
    open_streams: list[tuple[str, Stream]] = []
    opened_under: set[str] = set()
    try:
        for flip, policy in enumerate(walk):
            traffic_matrix.switch(policy)
            dead = [name for name, stream in open_streams if not stream.exchange(f"flip {flip}")]
            assert dead == [], f"cut by the flip to {policy}"
            for where, address, port, source, name in ways(traffic_matrix):
                stream = Stream(where, address, port)
                assert stream.source == source, f"{name} under {policy}"
                if policy in opened_under:
                    stream.__exit__()  # one of each kind, opened under each policy, is enough
                else:
                    open_streams.append((f"{name}, opened under {policy}", stream))
            opened_under.add(policy)
        assert traffic_matrix.lab.drops() == []
    finally:
        for _, stream in open_streams:
            stream.__exit__()
