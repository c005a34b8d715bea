"""Floors are of the same work: the product's own messages, and the goals that the results name."""

from __future__ import annotations

import socket
import subprocess
from collections import Counter
from contextlib import closing

import pytest
from conftest import lab_name

from benchmarks import forwarding, goals, nodes, report, testbed
from benchmarks.floors import daemon, executables, lives, verdicts
from benchmarks.floors.replay import Pod
from lab import netns


@pytest.mark.lab
def test_a_replayed_pod_is_the_pod_that_was_there():
    def look():
        with netns.inside(bed.node):
            links = {name: number for number, name in socket.if_nameindex()}
            routes = subprocess.run(
                ["ip", "-j", "route", "show", "table", "512"], capture_output=True, check=True
            ).stdout
            elements = subprocess.run(
                ["nft", "-s", "-j", "list", "ruleset"], capture_output=True, check=True
            ).stdout
        return sorted(links), routes, elements

    with (
        forwarding.a_lab(lab_name("f")) as names,
        nodes.tmpfs(names.state),
        closing(testbed.by_us(names, 1, [])) as bed,
        closing(Pod(bed, names)) as pod,
    ):
        address = str(bed.last.address).encode()
        without = look()
        pod.come()
        once = look()
        pod.go()
        assert look() == without
        pod.come()
        assert look() == once
        assert address in once[1]
        assert address not in without[1]
        assert len(once[2]) > len(without[2])


def test_every_goal_has_a_floor_and_its_figures(tmp_path, monkeypatch):
    results = tmp_path / "results.md"
    table = report.table(
        ("one pod, end to end", "ours : ptp", "goal", "ours, p99 : p50", "goal"),
        [
            ("ADD, 0 pods there", *report.goal(0.9, 0.95), "1.0", ""),
            ("ADD, 250 pods there", *report.goal(1.0, 0.95), *report.goal(1.5, 2)),
        ],
    )
    report.replace_section(results, "## Pods", ["## Pods", "", *table])
    monkeypatch.setattr(verdicts.report, "RESULTS", results)
    sides = (*lives.STEMS, lives.KERNEL, executables.IN_C, executables.IN_PYTHON)
    taken = {
        name: lives.Taken([3.0, 4.0], [2.0, 3.0], [1.0, 2.0])
        for name in (*sides, executables.OURS, executables.LOOPBACK)
    }
    measured = verdicts.Measured(
        lives=taken,
        daemon_ms=5.0,
        bursts={name: [1.0, 0.5] for name in taken},
        dumps={250: 2.0, 50: 1.0},
        idle={"watches": 0.01},
        memory={"after its start": 30.0},
        mib=dict.fromkeys(verdicts.PROGRAMS, 10.0),
        seconds=dict.fromkeys((*verdicts.PROGRAMS, verdicts.IMPORTS), 0.5),
        between="`a.b` 5%",
        threads="MainThread 3.0 ms",
        packages="pyroute2 20%",
        packets={"to": (1.4, 1.3), "from": (1.5, 1.4)},
    )
    lines = verdicts.table(measured)
    assert len(list(goals.read(results.read_text()))) == 3
    assert any("| ≤ 0.95: 0.90 held, 1.00 not held | 2.00 with C" in line for line in lines)
    assert any("p99 : p50 | ≤ 2: 1.50 held |" in line for line in lines)
    assert len({line.count("|") for line in lines[2:]}) == 1


def test_functions_are_told_apart_by_thread_and_taken_between_two_looks():
    before = {"functions": {"MainThread /x/site-packages/reconciler/a/b.py:C.f": [1.0, 2.0, 3]}}
    after = {
        "functions": {
            "MainThread /x/site-packages/reconciler/a/b.py:C.f": [4.0, 9.0, 5],
            "links /usr/lib/python3.11/json/decoder.py:decode": [1.0, 1.0, 1],
        }
    }
    found = daemon.functions(before, after)
    assert daemon.largest(found, 2) == ["`a.b.C.f` 75%", "`json.decoder.decode` 25%"]
    assert "| `a.b.C.f` | 2 | 175% |" in daemon.function_tables(found, 1)


def test_system_calls_are_spelt_per_pod():
    calls = Counter({"sendto": 20, "futex": 10})
    assert daemon.spell_calls(calls, 10) == "3 (`strace -c`): 2.0 sendto, 1.0 futex."
    assert daemon.spell_calls(Counter(), 10) == "`strace` is not there."
