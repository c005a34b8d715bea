"""What the reconciler costs when nothing happens, and what it has kept after much has.

Counted is the process itself; the one that calls EC2, which comes and goes, is named beside it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import pods
from lab import netns
from lab.lifecycle import Lab
from reconciler.daemon.client import ask

RESULTS = Path(__file__).with_name("results.md")
TITLE = "## At rest"

PODS = max(pods.CROWDS)
CHURN = int(os.environ.get("IDLE_CHURN", "5000"))
MINUTES = float(os.environ.get("IDLE_MINUTES", "10"))
PASSES = 40
AT_ONCE = 4
QUIET_S = 10
"""Seconds after which what was left over is given back."""

CLOCK_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Process:
    """The reconciler, from outside."""

    def __init__(self, lab: Lab, pid: int) -> None:
        self._proc = Path(f"/proc/{pid}")
        self._socket = lab.names.node_state("node1") / "node-network.sock"

    def cpu_s(self) -> float:
        """CPU seconds of its own, so far; its children's are apart."""
        fields = (self._proc / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * CLOCK_TICK_S

    def ec2_cpu_s(self) -> float:
        """CPU seconds of the processes that called EC2 and have ended."""
        fields = (self._proc / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[13]) + int(fields[14])) * CLOCK_TICK_S

    def resident_mib(self) -> float:
        """VmRSS, in MiB."""
        lines = (self._proc / "status").read_text().splitlines()
        return next(int(x.split()[1]) for x in lines if x.startswith("VmRSS")) / 1024

    def passes(self) -> int:
        """Full passes and passes for pods, so far."""
        status: dict[str, Any] = ask(self._socket, {"do": "status"})["status"]
        starts = tuple(f'node_network_pass_seconds_count{{pass="{p}"}}' for p in pods.NODE_PASSES)
        lines = [x for x in status["metrics"].splitlines() if x.startswith(starts)]
        return sum(int(float(line.rpartition(" ")[2])) for line in lines)


def measure() -> list[str]:
    """Return the section in Markdown."""
    with pods.node() as (lab, pid):
        process = Process(lab, pid)
        start_mib = process.resident_mib()
        call = partial(pods.call_ours, lab)
        _churn(lab, call)
        pods.settle(lab)
        time.sleep(QUIET_S)
        churned_mib = process.resident_mib()
        pods.crowd(lab, pods.OURS, call, range(PODS))
        pods.settle(lab)
        pass_ms = _pass_ms(lab, process)
        _tell(f"{MINUTES:g} idle minutes")
        before, ec2_before = process.cpu_s(), process.ec2_cpu_s()
        time.sleep(60 * MINUTES)
        share = (process.cpu_s() - before) / (60 * MINUTES)
        ec2_share = (process.ec2_cpu_s() - ec2_before) / (60 * MINUTES)
        crowded_mib = process.resident_mib()
    return [
        TITLE,
        "",
        "Written by `make bench`; this section alone by `python -m benchmarks.idle`. EC2 is "
        "called by a process of its own, which ends when nothing is asked (decision 17).",
        "",
        "| the reconciler | |",
        "|---|---|",
        f"| CPU of a full pass that finds nothing to do, {PODS} pods, mean of {PASSES} | "
        f"{pass_ms:.0f} ms |",
        f"| CPU of {MINUTES:g} idle minutes, {PODS} pods | {share:.2%} of a core |",
        f"| the same of the processes that called EC2 meanwhile | {ec2_share:.2%} |",
        f"| resident memory after the start | {start_mib:.0f} MiB |",
        f"| after {CHURN:,} pods came and went, {pods.AT_ONCE} at once now and then | "
        f"{churned_mib:.0f} MiB |",
        f"| after that, with {PODS} pods | {crowded_mib:.0f} MiB |",
    ]


def _pass_ms(lab: Lab, process: Process) -> float:
    """Have it look because of something that is none of its business."""
    time.sleep(3)
    passes, cpu = process.passes(), process.cpu_s()
    for number in range(PASSES):
        word = "del" if number % 2 else "add"
        rule = ["ip", "rule", word, "priority", "77", "from", "192.0.2.77", "lookup", "main"]
        subprocess.run(lab.command("node1", rule), check=True)
        time.sleep(0.6)
    done = process.passes() - passes
    return 1000 * (process.cpu_s() - cpu) / done


def _churn(lab: Lab, call: pods.Call) -> None:
    """Let pods come and go: some at a time, and now and then many at once."""

    def cycle(number: int) -> None:
        where = lab.names.namespace(f"pod-i{number}")
        netns.make(where)
        call("ADD", f"i{number}", where)
        call("DEL", f"i{number}", where)
        netns.remove(where)

    for begin in range(0, CHURN, 1000):
        _tell(f"{begin} of {CHURN} pods")
        pods.burst(lab, pods.OURS, call)
        end = min(begin + 1000, CHURN)
        with ThreadPoolExecutor(AT_ONCE) as workers:
            list(workers.map(cycle, range(begin + pods.AT_ONCE, end)))


def _tell(what: str) -> None:
    print(f"at rest: {what}", file=sys.stderr, flush=True)


def write(path: Path = RESULTS) -> None:
    """Measure, and put the result in place of this section of a file."""
    pods.replace_section(path, TITLE, measure())


if __name__ == "__main__":
    write()
    print(RESULTS.read_text())
