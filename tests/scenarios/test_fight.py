"""Somebody takes back again and again what we do: we slow down, say so, and it ends with them."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from reconciler.domains.conflist import NAME

pytestmark = pytest.mark.lab


@contextmanager
def opponent(cluster: Any, undo: list[str], stands: Any) -> Iterator[list[int]]:
    """Undo something whenever it stands; yield how often that was."""
    ended, times = threading.Event(), [0]

    def fight() -> None:
        while not ended.wait(0.02):
            if stands():
                times[0] += cluster.lab.run("node1", undo).returncode == 0

    thread = threading.Thread(target=fight)
    thread.start()
    try:
        yield times
    finally:
        ended.set()
        thread.join()


def fights(cluster: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = cluster.status()["conditions"]
    return [c for c in found if c["reason"] == "OwnershipFight"]


def most_repairs(seconds: float) -> int:
    """Slower and slower: five at once, then after one, two, four seconds, as the last one was."""
    return math.floor(math.log2(seconds + 1)) + 1


def has_rule(cluster: Any) -> bool:
    return "\n1024:" in cluster.ip("rule")


def has_table(cluster: Any) -> bool:
    return "node_network" in cluster.lab.run("node1", ["nft", "list", "tables"]).stdout


def test_a_fight_over_one_rule_is_named_and_slows_down_and_nobody_else_waits(
    cluster: Any,
) -> None:
    undo = ["ip", "rule", "delete", "priority", "1024"]
    with opponent(cluster, undo, lambda: has_rule(cluster)) as times:
        (found,) = until(lambda: fights(cluster), cluster.log)
        assert found["subject"].startswith("ip rule add priority 1024 ")
        assert "it was put back 5 times within" in found["text"]
        fought, began = times[0], time.monotonic()
        with cluster.pods(1) as (one,):
            assert one.address
        assert times[0] - fought <= most_repairs(time.monotonic() - began)
    until(lambda: has_rule(cluster), patience_s=35)
    until(lambda: not cluster.status()["conditions"], cluster.log)
    assert cluster.diff().returncode == 0


def test_whoever_flushes_the_ruleset_for_ever_is_named_by_process(cluster: Any) -> None:
    with opponent(cluster, ["nft", "flush", "ruleset"], lambda: has_table(cluster)):
        (found,) = until(
            lambda: [c for c in fights(cluster) if c["subject"].startswith("nft add table")],
            cluster.log,
        )
    assert "nft (pid " in found["text"]
    # An edit of the document is a reason to try at once.
    text = cluster.config.read_text()
    cluster.config.write_text(f"{text}# tried again\n")
    until(lambda: not cluster.status()["conditions"], cluster.log, patience_s=5)
    assert cluster.diff().returncode == 0
    cluster.config.write_text(text)


@contextmanager
def mesh(file: Path) -> Iterator[list[int]]:
    """A service mesh's installer: it adds its plugin whenever it is missing from our file."""
    ended, times = threading.Event(), [0]

    def add() -> None:
        while not ended.wait(0.02):
            body = json.loads(file.read_text())
            if len(body["plugins"]) == 2:
                body["plugins"].append({"type": "loopback"})
                fresh = file.with_name("mesh.tmp")
                fresh.write_text(json.dumps(body))
                fresh.replace(file)
                times[0] += 1

    thread = threading.Thread(target=add)
    thread.start()
    try:
        yield times
    finally:
        ended.set()
        thread.join()


def test_a_mesh_that_rewrites_our_conflist_is_named_and_told_of_cni_chain(cluster: Any) -> None:
    file: Path = cluster.lab.names.configurations("node1") / NAME
    before = json.loads(file.read_text())
    assert len(before["plugins"]) == 2
    with mesh(file) as times:
        (found,) = until(lambda: fights(cluster), cluster.log)
        assert "cni.chain" in found["text"]
        assert "loopback" in found["text"]
        fought, began = times[0], time.monotonic()
        with cluster.pods(1):
            pass
        assert times[0] - fought <= most_repairs(time.monotonic() - began), "it slows down"
    until(lambda: json.loads(file.read_text()) == before, cluster.log, patience_s=35)
    until(lambda: not cluster.status()["conditions"], cluster.log)
