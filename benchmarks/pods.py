"""ADD and DEL end to end, beside the reference plugins ``ptp`` with ``host-local``.

Each side is a host of its own with as many pods as the others, but for one that has none, and all
keep their records on a tmpfs, as ``/run`` is on a host. Rounds are interleaved, so that whatever
else the machine does touches all. What travels to other machines is the ratio, not the
milliseconds.
"""

from __future__ import annotations

import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType

from lab import lifecycle, netns
from lab.lifecycle import EXECUTABLE, Lab
from reconciler.daemon.client import ask

PLUGINS = Path("/usr/lib/cni")
ROUNDS = 200
CLEANUP_S = 10.0
"""Seconds that the kernel is given to clean up namespaces; nothing tells when it has done so."""

STARTS = 100

NODE_PASSES = ("pods", "full", "audit")
"""Passes over the kernel, as the metric names them."""

CROWDS = (0, 100, 250)
"""Pods that are there already."""

AT_ONCE = 100
MOST = max(CROWDS) + AT_ONCE + 32
"""Addresses that are enough for all."""

SETTLE_LIMIT_S = 90.0
TYPE = "m5.4xlarge"
DOCUMENT = """\
apiVersion: node-network/v1alpha1
kind: NodeNetwork
warmPool: {{addresses: {{warm: 16, minimum: {minimum}}}, cooldown: {cooldown}}}
eni: {{allocate: prefixes, subnetTags: {{role: pods}}}}
"""
"""Addresses are there before pods ask, and need no rest: EC2 is not what is measured."""

OURS, MASQ, PLAIN = "node-network", "ptp + ipMasq", "ptp"
EMPTY = "node-network with none"
"""Ours on a second node that has no other pods, in every round: what more pods cost is seen beside
it, because a machine gets slower and faster meanwhile by more than that."""

Call = Callable[[str, str, str], None]
"""Runs an executable once: verb, container, namespace."""

Times = dict[tuple[str, str], list[float]]
"""Milliseconds by side and verb."""


def measure() -> list[str]:
    """Return the tables in Markdown."""
    with ExitStack() as stack:
        lab, pids = stack.enter_context(nodes({"node1": MOST, "node2": AT_ONCE + 32}))
        sides: dict[str, Call] = {
            OURS: partial(call_ours, lab),
            MASQ: _peer(lab, "masq", stack, masquerade=True),
            PLAIN: _peer(lab, "plain", stack, masquerade=False),
        }
        others: dict[str, Call] = {EMPTY: partial(call_ours, lab, node="node2")}
        crowded: dict[int, Times] = {}
        there = 0
        for size in CROWDS:
            for side, call in sides.items():
                crowd(lab, side, call, range(there, size))
            there = size
            settle(lab)
            crowded[size] = _rounds(lab, sides | others, size)
        bursts = {side: burst(lab, side, call) for side, call in sides.items()}
        memory_mib = _resident_mib(pids["node1"])
    return [
        *_pods_table(crowded),
        "",
        *_burst_table(bursts),
        "",
        *_start_table(_starts()),
        "",
        f"The reconciler's resident memory right after that burst: {memory_mib:.0f} MiB; once it "
        "rests, see below.",
    ]


def _rounds(lab: Lab, sides: dict[str, Call], crowd: int) -> Times:
    """Let one pod after the other come and go on each side.

    Whoever is next starts when the links of the one before him are gone, some of which go later
    than their DEL; who that is changes from round to round, for something of him may still go on.
    Namespaces are made before and removed after: the kernel cleans up behind everybody's back.
    """
    order, chance = list(sides), random.Random(ROUNDS)
    times: Times = {(side, verb): [] for side in sides for verb in ("ADD", "DEL")}
    # Runtimes give no name twice.
    places = {
        (side, i): lab.names.namespace(f"pod-{short(side)}r{crowd}x{i}")
        for side in sides
        for i in range(ROUNDS)
    }
    for where in places.values():
        netns.make(where)
    for i in range(ROUNDS):
        print(f"\r{crowd} pods, round {i + 1} of {ROUNDS}", end="", file=sys.stderr, flush=True)
        chance.shuffle(order)
        for side in order:
            where = places[side, i]
            for verb in ("ADD", "DEL"):
                began = time.perf_counter()
                sides[side](verb, f"r{crowd}-{i}", where)
                times[side, verb].append(1000 * (time.perf_counter() - began))
            _await_end(where)
    for where in places.values():
        netns.remove(where)
    time.sleep(CLEANUP_S)
    print(file=sys.stderr)
    return times


def _await_end(where: str) -> None:
    """Wait until a namespace has no interface of a pod's any more."""
    deadline = time.monotonic() + SETTLE_LIMIT_S
    with netns.inside(where):
        while any(name == "eth0" for _, name in socket.if_nameindex()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the pod in {where} does not end")
            time.sleep(0.001)


def crowd(lab: Lab, side: str, call: Call, numbers: range) -> None:
    """Let pods come that stay, as ``c`` and their number."""

    def come(number: int) -> None:
        where = lab.names.namespace(f"pod-{short(side)}{number}")
        netns.make(where)
        call("ADD", f"c{number}", where)

    with ThreadPoolExecutor(4) as workers:
        list(workers.map(come, numbers))


def burst(lab: Lab, side: str, call: Call) -> tuple[float, list[float]]:
    """Let pods come all at once; return seconds until the last one has come, and each one's."""
    places = [lab.names.namespace(f"pod-{short(side)}b{i}") for i in range(AT_ONCE)]
    for where in places:
        netns.make(where)

    def come(number: int) -> float:
        call("ADD", f"b{number}", places[number])
        return time.perf_counter() - began

    with ThreadPoolExecutor(AT_ONCE) as workers:
        began = time.perf_counter()
        each = list(workers.map(come, range(AT_ONCE)))
    for number, where in enumerate(places):
        call("DEL", f"b{number}", where)
        netns.remove(where)
    return max(each), each


def short(side: str) -> str:
    """Return what the namespaces of a side's pods are called by."""
    return side[0] + side[-1]


def _starts() -> dict[str, list[float]]:
    """Time executables that are asked for their version."""
    python = [sys.executable, "-I", "-m", "cni"]
    programs = {
        "loopback plugin": [str(PLUGINS / "loopback")],
        "node-network, static": [str(EXECUTABLE)],
        "node-network, Python": python,
    }
    question = json.dumps({"cniVersion": "1.0.0", "name": "n", "type": "any"})
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(STARTS):
        for name, argv in programs.items():
            began = time.perf_counter()
            environ = {"CNI_COMMAND": "VERSION"}
            subprocess.run(
                argv, input=question, env=environ, text=True, check=True, stdout=subprocess.DEVNULL
            )
            times[name].append(1000 * (time.perf_counter() - began))
    return times


# -- the sides ----------------------------------------------------------------------------


@contextmanager
def node() -> Iterator[tuple[Lab, int]]:
    """A lab with a reconciler on one large node, and that one's process."""
    with nodes({"node1": MOST}) as (lab, pids):
        yield lab, pids["node1"]


@contextmanager
def nodes(
    minima: Mapping[str, int],
    cooldown: str = "0s",
    earlier: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Iterator[tuple[Lab, dict[str, int]]]:
    """A lab with a reconciler on each of some large nodes, and their processes.

    Args:
        minima: addresses that a node shall have, by its name.
        cooldown: of addresses; those of a pod that has left can be given out again at once.
        earlier: words before the command of a node that runs another release, by its name.
    """
    name = "bench"
    lifecycle.down(name)
    with tempfile.TemporaryDirectory(prefix="node-network-bench-") as directory:
        lab = lifecycle.up(name, types=dict.fromkeys(minima, TYPE))
        try:
            with ExitStack() as stack:
                pids = {
                    node: stack.enter_context(
                        _reconciler(lab, node, text, Path(directory), earlier.get(node, ()))
                    )
                    for node, minimum in minima.items()
                    for text in [DOCUMENT.format(minimum=minimum, cooldown=cooldown)]
                }
                for node in minima:
                    settle(lab, node)
                yield lab, pids
        finally:
            lifecycle.down(name)


@contextmanager
def _reconciler(
    lab: Lab, node: str, document: str, directory: Path, words: Sequence[str]
) -> Iterator[int]:
    config = directory / f"{node}.yaml"
    config.write_text(document)
    argv = [*words, sys.executable, "-m", "reconciler", "run", "-f", str(config)]
    with _tmpfs(lab.names.node_state(node)), (directory / f"{node}.log").open("w") as log:
        process = lab.start(node, argv, stderr=log)
        yield process.pid  # nsenter has become the reconciler by exec
        process.terminate()
        process.wait()


def call_ours(lab: Lab, verb: str, name: str, where: str, *, node: str = "node1") -> None:
    """Run our executable once."""
    config = {
        "cniVersion": "1.0.0",
        "name": "node-network",
        "type": "node-network",
        "stateDir": str(lab.names.node_state(node)),
    }
    _run(lab.names.namespace(node), EXECUTABLE, config, verb, name, where)


def _peer(lab: Lab, name: str, stack: ExitStack, *, masquerade: bool) -> Call:
    """The reference plugins, on a host of their own."""
    host = lab.names.namespace(f"pod-{name}host")
    netns.make(host)
    data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="node-network-bench-")))
    stack.enter_context(_tmpfs(data))
    config = {
        "cniVersion": "1.0.0",
        "name": name,
        "type": "ptp",
        "ipMasq": masquerade,
        "ipam": {
            "type": "host-local",
            "dataDir": str(data),
            "ranges": [[{"subnet": "198.18.0.0/16"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    return partial(_run, host, PLUGINS / "ptp", config)


def _run(
    host: str, program: Path, config: Mapping[str, object], verb: str, name: str, where: str
) -> None:
    """Run an executable once on a host, as a runtime does that runs there."""
    environment = {
        "PATH": os.environ["PATH"],
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": name,
        "CNI_NETNS": str(netns.path(where)),
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(PLUGINS),
    }
    with netns.inside(host):
        done = subprocess.run(
            [str(program)],
            input=json.dumps(config),
            env=environment,
            text=True,
            check=False,
            capture_output=True,
        )
    if done.returncode != 0:
        raise RuntimeError(f"{program.name} {verb} {name}: {done.stdout}{done.stderr}")


@contextmanager
def _tmpfs(directory: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "node-network", str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def settle(lab: Lab, node: str = "node1") -> None:
    """Wait until a node is as it should be, with addresses for all that is to come."""
    path = lab.names.node_state(node) / "node-network.sock"
    deadline = time.monotonic() + SETTLE_LIMIT_S
    while True:
        if path.exists():
            status = ask(path, {"do": "status"})["status"]
            if status["settled"] and status["pool"].get("allocatable", 0) >= AT_ONCE:
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{node} did not settle")
        time.sleep(0.1)


def _resident_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("VmRSS")) / 1024


# -- the tables ---------------------------------------------------------------------------


def _pods_table(crowded: dict[int, Times]) -> list[str]:
    sides = (OURS, MASQ, PLAIN, EMPTY)
    lines = [
        f"| one pod, end to end; ms, p50 / p99 of {ROUNDS} | {' | '.join(sides)} "
        f"| ours : {MASQ} | ours : {PLAIN} | ours : ours with none |",
        f"|{'---|' * (2 * len(sides))}",
    ]
    for verb in ("ADD", "DEL"):
        for crowd, times in crowded.items():
            cells = " | ".join(_spell(times[side, verb]) for side in sides)
            ours = _p(times[OURS, verb], 50)
            ratios = [ours / _p(times[side, verb], 50) for side in sides[1:]]
            spelt = " | ".join(f"{ratio:.2f}" for ratio in ratios)
            lines.append(f"| {verb}, {crowd} pods there | {cells} | {spelt} |")
    return lines


def _burst_table(burst: dict[str, tuple[float, list[float]]]) -> list[str]:
    lines = [
        f"| {AT_ONCE} ADDs at once, {max(CROWDS)} pods there | all, s | each, s, p50 / p99 |",
        "|---|---|---|",
    ]
    for side, (whole, each) in burst.items():
        lines.append(f"| {side} | {whole:.2f} | {_p(each, 50):.2f} / {_p(each, 99):.2f} |")
    return lines


def _start_table(times: dict[str, list[float]]) -> list[str]:
    first = next(iter(times))
    lines = [f"| start, of {STARTS} | ms, p50 / p99 | : {first} |", "|---|---|---|"]
    for name, values in times.items():
        ratio = _p(values, 50) / _p(times[first], 50)
        lines.append(f"| {name} | {_spell(values)} | {ratio:.2f} |")
    return lines


def _spell(values: list[float]) -> str:
    return f"{_p(values, 50):.1f} / {_p(values, 99):.1f}"


def _p(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def replace_section(path: Path, title: str, lines: list[str]) -> None:
    """Put lines in place of a section of a Markdown file, or at its end."""
    before, _, after = path.read_text().partition(title)
    _, heading, rest = after.partition("\n## ")
    section = "\n".join(lines)
    path.write_text(f"{before.rstrip()}\n\n{section}\n{heading}{rest}")
