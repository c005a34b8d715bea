"""The benchmark measures what it says: nothing here is about how long anything takes."""

from __future__ import annotations

import pytest
from conftest import lab_name

from benchmarks import forwarding, release
from benchmarks.burst import BurstError
from benchmarks.forwarding import BARE, BEFORE, CASES, KINDS, LEGACY, OURS, STOCK
from lab import lifecycle, netns

pytestmark = pytest.mark.lab


def test_every_kind_of_packet_passes_every_kind_of_node_as_it_should(monkeypatch):
    """``measure`` itself checks translation, the ENI a packet left by, and that none is lost."""
    name = lab_name("f")
    cases = [(BARE, 1, 0), (OURS, 3, 1), (STOCK, 3, 1), (LEGACY, 3, 2)]
    monkeypatch.setattr(forwarding, "EARLIER", "HEAD")
    if release.is_known("HEAD"):  # this is a clone, and no archive
        cases.append((BEFORE, 3, 1))
    costs = forwarding.measure(cases, rounds=2, name=name)
    assert set(costs) == {(case, kind) for case in cases for kind in KINDS}
    assert all(len(found) == 2 and min(found) > 0 for found in costs.values())
    assert netns.names(f"nn-{name}") == []


def test_a_node_that_does_not_translate_is_not_measured(monkeypatch):
    name = lab_name("f")
    everything = forwarding.IPv4Network("0.0.0.0/0")
    monkeypatch.setattr(forwarding, "IPv4Network", lambda _: everything)
    with pytest.raises(BurstError, match="SNAT: left by eth14, not eth0; 1 connections"):
        forwarding.measure([(STOCK, 1, 1)], rounds=1, name=name)
    assert name not in lifecycle.labs()


def test_the_section_replaces_itself_and_nothing_around_it(tmp_path, monkeypatch):
    monkeypatch.setattr(forwarding.os, "getloadavg", lambda: (1.0, 1.0, 1.0))
    costs = {(case, kind): [1000.0, 2000.0, 4000.0] for case in CASES for kind in KINDS}
    monkeypatch.setattr(forwarding, "measure", lambda: costs)
    results = tmp_path / "results.md"
    results.write_text("# Results\n\nothers\n")
    forwarding.write(results)
    once = results.read_text()
    assert once.startswith("# Results\n\nothers\n\n")
    assert once.partition("\n\n## ")[2].startswith("Forwarding\n")
    assert "| ratio; open connection, VPC to pod; stock : ours | 1.00 | ≥ 1.03: not held |" in once
    assert "| new connection, VPC to pod | 2,000 ± 750 |" in once
    results.write_text(f"{once}\n## Later\n\nothers\n")
    forwarding.write(results)
    assert results.read_text() == f"{once}\n## Later\n\nothers\n"
