"""What a packet on an open connection costs with each thing that decides about it, one by one."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from ipaddress import IPv4Network

from benchmarks import forwarding, report, testbed
from benchmarks.burst import Aim, Burst
from benchmarks.forwarding import PODS, SIZE
from benchmarks.nodes import LAB
from benchmarks.testbed import VPC_HOST, Testbed
from lab import netns

ROUNDS = report.number("FLOORS_PACKETS", 200)
CONNTRACK = """
add table ip floor
add chain ip floor seen { type filter hook prerouting priority filter; }
add rule ip floor seen ct state invalid drop
"""
NAT = f"""{CONNTRACK}
add chain ip floor into {{ type nat hook prerouting priority dstnat; }}
add chain ip floor out {{ type nat hook postrouting priority srcnat; }}
add rule ip floor out oifname "none" masquerade
"""
ROUTED = "a rule that leads to a table of pods"
LAYERS = {
    "bare": "",
    "conntrack, by one rule": CONNTRACK,
    "and hooks of NAT": NAT,
    f"and {ROUTED}": NAT,
}
OURS = "ours"
WAYS = ("VPC to pod", "pod to VPC")

Costs = dict[tuple[str, str], list[float]]
"""Nanoseconds, by layer and way."""


def measure() -> Costs:
    """Lay out a node for each layer, and ours; burst through all in random order."""
    with ExitStack() as stack:
        beds = {
            layer: stack.enter_context(_layer(number, layer, rules))
            for number, (layer, rules) in enumerate(LAYERS.items())
        }
        names = stack.enter_context(forwarding.a_lab(f"{LAB}v"))
        exclude = [IPv4Network("11.0.0.0/24")]
        beds[OURS] = stack.enter_context(closing(testbed.by_us(names, PODS[0], exclude)))
        bursts = {}
        for layer, bed in beds.items():
            aims = (
                Aim(bed.beyond, bed.last.address, str(VPC_HOST), new=False),
                Aim(bed.last.netns, VPC_HOST, new=False),
            )
            for way, aim in zip(WAYS, aims, strict=True):
                bursts[layer, way] = stack.enter_context(closing(Burst(aim, SIZE)))
        costs: Costs = {key: [] for key in bursts}
        chance = random.Random(ROUNDS)
        with forwarding.one_cpu():
            for _ in range(ROUNDS):
                for key in chance.sample(list(bursts), len(bursts)):
                    costs[key].append(bursts[key].send())
        return costs


@contextmanager
def _layer(number: int, layer: str, rules: str) -> Iterator[Testbed]:
    with forwarding.a_lab(f"{LAB}v{number}") as names, closing(testbed.bare(names)) as bed:
        with netns.inside(bed.node):
            subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
            if ROUTED in layer:
                way = f"{bed.last.address} dev pod table 512"
                for words in (f"route add {way}", "rule add pref 512 lookup 512"):
                    subprocess.run(["ip", *words.split()], check=True)
        yield bed


def table(costs: Costs) -> list[str]:
    """Return the layers, with what each adds."""
    rows = []
    for layer in (*LAYERS, OURS):
        cells = []
        for way in WAYS:
            middle, bare = (report.p(costs[at, way], 50) for at in (layer, "bare"))
            cells += [f"{middle:,.0f}", f"{middle / bare:.2f}"]
        rows.append((layer, *cells))
    head = ("one packet on an open connection, ns", WAYS[0], ": bare", WAYS[1], ": bare")
    return report.table(head, rows)


def ratio(costs: Costs, layer: str, way: str) -> float:
    """Return what a layer costs, to bare."""
    return report.p(costs[layer, way], 50) / report.p(costs["bare", way], 50)


LAST = tuple(LAYERS)[-1]
