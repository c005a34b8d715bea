"""What a forwarded packet and a new connection cost, beside the stock plugin's datapath.

Nodes with 4, 100 and 700 pods, ours and the stock plugin's, stand side by side in namespaces, and
bursts go through one after the other, round by round, so that whatever else the machine does
touches all. Packets go to and from the pod that came last, on the last ENI: the end of every list.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from benchmarks import nodes, release, report, testbed
from benchmarks.burst import Aim, Burst, BurstError, Sink
from benchmarks.testbed import ENIS, VPC_HOST, Testbed
from lab import lifecycle
from lab.stock import Iptables
from lab.topology import INTERNET_HOST, STATE, Names

ROUNDS = report.number("FORWARDING_ROUNDS", 200)
SIZE = 300
"""Packets in a burst: short enough to be done, mostly, before the scheduler looks again."""

PODS = (4, 100, 700)
FEW, MANY = 1, 5000
"""Excluded CIDRs."""

TITLE = "Forwarding"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of packet.

    Attributes:
        to: where it goes; None to the pod, from the VPC.
        new: each opens a connection of its own.
    """

    name: str
    to: IPv4Address | None
    new: bool


KINDS = tuple(
    Kind(f"{'new' if new else 'open'} connection, {name}", to, new)
    for new in (False, True)
    for name, to in (
        ("pod to VPC", VPC_HOST),
        ("pod to internet, SNAT", INTERNET_HOST),
        ("VPC to pod", None),
    )
)

EARLIER = os.environ.get("FORWARDING_EARLIER", "787f3aa")
"""A commit: the last release of which nothing asked what source a pod's packets carry."""

OURS, STOCK, LEGACY, BARE = "ours", f"stock-{Iptables.NFT}", f"stock-{Iptables.LEGACY}", "bare"
BEFORE = "earlier"
"""Whose nodes they are: this release's, the stock plugin's, nobody's, an earlier release's."""

Case = tuple[str, int, int]
"""Whose node it is, its pods, its excluded CIDRs."""

SIZES: tuple[Case, ...] = tuple((who, n, FEW) for who in (OURS, STOCK) for n in PODS)
LISTS: tuple[Case, ...] = (
    *((who, PODS[0], cidrs) for who in (OURS, STOCK) for cidrs in (FEW, MANY)),
    (LEGACY, PODS[0], MANY),
)
NOTHING: Case = (BARE, 1, 0)
THEN: Case = (BEFORE, PODS[0], FEW)
CASES = (NOTHING, THEN, *dict.fromkeys((*SIZES, *LISTS)))

PAIRS = (
    (SIZES[0], THEN),
    (SIZES[len(PODS)], SIZES[0]),
    (SIZES[0], NOTHING),
    (SIZES[len(PODS)], NOTHING),
)
"""What is compared with few pods: a case with another."""

Costs = dict[tuple[Case, Kind], list[float]]
"""Nanoseconds of CPU time per packet, one for each round, by case and kind of packet."""


@dataclass(frozen=True, slots=True)
class Way:
    """One kind of packet through one node."""

    case: Case
    kind: Kind
    bed: Testbed
    burst: Burst
    sink: Sink


def measure(
    cases: Sequence[Case] = CASES, *, rounds: int = ROUNDS, name: str = f"{nodes.LAB}w"
) -> Costs:
    """Lay out nodes, measure, and take them down.

    Args:
        cases: the nodes.
        rounds: bursts of every kind through every node.
        name: of the lab whose namespaces they are.

    Raises:
        BurstError: packets were lost, or went another way than they should.
    """
    with ExitStack() as undo:
        names = undo.enter_context(a_lab(name))
        beds = {}
        for case in cases:
            if case[0] == BEFORE and not release.is_known(EARLIER):
                continue
            _say(f"making {case[0]} with {case[1]} pods and {case[2]} CIDRs")
            made = _earlier(name, case) if case[0] == BEFORE else _now(names, case)
            beds[case] = undo.enter_context(made)
        ways = [way for case, bed in beds.items() for way in _ways(case, bed)]
        for way in ways:
            undo.callback(way.burst.close)
        for way in ways:
            _check(way)
        with one_cpu():
            return _rounds(ways, rounds)


def write(path: Path = report.RESULTS) -> None:
    """Measure, and put the result in place of this section of a file."""
    report.write(TITLE, "forwarding", lambda: table(measure()), path)


def table(costs: Costs) -> list[str]:
    """Return the section in Markdown."""
    head = [f"{_who(case)}, {case[1]} pods" for case in SIZES]
    return [
        f"CPU time of one packet's whole way, in nanoseconds: median of {ROUNDS} bursts of {SIZE} "
        "packets, ± half the distance between the quartiles. The way begins with the sender's "
        "system call, leads through the node, and ends where the receiver's link drops and counts "
        "it, all on one CPU. All nodes are there at once and take turns. Each has "
        f"{ENIS} ENIs; packets are those of the pod that came last, on the last ENI.",
        "",
        "*Ours* is made by one kernel pass of the reconciler. *Stock* is the layout of "
        "amazon-vpc-cni-k8s v1.23.1 with iptables-nft (`lab/stock.py`). *Bare* only "
        "routes, for "
        "one pod, without rules, NAT and connection tracking: what is left when a plugin decides "
        "nothing.",
        "",
        *_rows(
            ["ns, 1 excluded CIDR", "bare", *head],
            [[kind.name, *_times(costs, kind, (NOTHING, *SIZES))] for kind in KINDS],
        ),
        "",
        *_rows(
            [
                "ratio",
                *(f"{who}, {n} : {PODS[0]} pods" for who in ("ours", "stock") for n in PODS[1:]),
                *(f"stock : ours, {n} pods" for n in PODS),
            ],
            [_ratios(costs, kind) for kind in KINDS],
        ),
        "",
        f"What pods send carries their addresses ([decision 26]"
        "(../docs/decisions/026-what-a-pod-sends-carries-its-addresses.md)); at "
        f"{EARLIER} nothing asked for that. {PODS[0]} pods:",
        "",
        *_rows(
            [
                *("ratio", f"ours : {EARLIER}", "stock : ours", "goal", "ours : bare", "goal"),
                "stock : bare",
            ],
            [[kind.name, *_goals(costs, kind)] for kind in KINDS],
        ),
        "",
        "A new connection is a UDP packet to a destination port of its own: one more entry in the "
        "connection table, and one walk through NAT. In thousands that one CPU does in a second:",
        "",
        *_rows(
            ["thousands a second", "bare", *head],
            [[kind.name, *_rates(costs, kind, (NOTHING, *SIZES))] for kind in KINDS],
        ),
        "",
        f"{MANY:,} excluded CIDRs, no two of which touch, on nodes with {PODS[0]} pods. The stock "
        "plugin's chains hold a rule for each and return at the first that matches; its VPC CIDRs "
        "come last.",
        "",
        *_rows(
            [
                f"ns, {PODS[0]} pods",
                *(f"{_who(case)}, {case[2]:,}" for case in LISTS),
                f"ours, {MANY:,} : {FEW}",
                f"stock, {MANY:,} : {FEW}",
                f"stock : ours, {MANY:,}",
            ],
            [
                [
                    kind.name,
                    *_times(costs, kind, LISTS),
                    _ratio(costs, kind, LISTS[1], LISTS[0]),
                    _ratio(costs, kind, LISTS[3], LISTS[2]),
                    _ratio(costs, kind, LISTS[3], LISTS[1]),
                ]
                for kind in KINDS
            ],
        ),
    ]


@contextmanager
def a_lab(name: str) -> Iterator[Names]:
    """Have a lab's names and directory, without its server; all that is called so goes after."""
    names = Names(name)
    nodes.clear(name)
    try:
        STATE.mkdir(mode=0o700, exist_ok=True)
        names.state.mkdir(mode=0o700)
        yield names
    finally:
        lifecycle.down(name)


@contextmanager
def _now(names: Names, case: Case) -> Iterator[Testbed]:
    with closing(_lay_out(names, case)) as bed:
        yield bed


@contextmanager
def _earlier(name: str, case: Case) -> Iterator[Testbed]:
    rooms = ("reconciler", "cni", "schemas", "benchmarks", "lab")
    with (
        release.unpacked(EARLIER, *rooms) as place,
        a_lab(f"{name}b") as names,
        closing(testbed.by_earlier(names, place, case[1], _excluded(case))) as bed,
    ):
        yield bed


def _excluded(case: Case) -> list[IPv4Network]:
    """Return networks that do not touch, so that nobody can join any two into one."""
    return [IPv4Network((0x0B000000 + 512 * i, 24)) for i in range(case[2])]


def _lay_out(names: Names, case: Case) -> Testbed:
    (who, pods, _), exclude = case, _excluded(case)
    if who == BARE:
        return testbed.bare(names)
    if who == OURS:
        return testbed.by_us(names, pods, exclude)
    return testbed.by_stock(names, pods, exclude, Iptables(who.removeprefix("stock-")))


def _ways(case: Case, bed: Testbed) -> Iterator[Way]:
    for kind in KINDS:
        if kind.to is None:
            aim = Aim(bed.beyond, bed.last.address, str(VPC_HOST), new=kind.new)
            yield Way(case, kind, bed, Burst(aim, SIZE), bed.inside)
        else:
            aim = Aim(bed.last.netns, kind.to, new=kind.new)
            yield Way(case, kind, bed, Burst(aim, SIZE), bed.outside)


def _check(way: Way) -> None:
    """See once that packets open connections, are translated, and leave as they should.

    Raises:
        BurstError: they do not.
    """
    bed, kind = way.bed, way.kind
    bed.forget_connections()
    before = bed.carried()
    _send(way)
    after = bed.carried()
    own, vpc, internet = str(bed.last.address), str(VPC_HOST), str(INTERNET_HOST)
    link = {VPC_HOST: f"eth{bed.last.device}", INTERNET_HOST: "eth0", None: ""}[kind.to]
    answers = {
        VPC_HOST: (vpc, own),
        INTERNET_HOST: (internet, str(bed.primary)),
        None: (own, vpc),
    }[kind.to]
    connections = [answers] * (SIZE if kind.new else 1)
    if way.case == NOTHING:
        link, connections = link and "eth0", []
    # IPv6 says a word of its own now and then.
    used = "".join(name for name in after if after[name] - before[name] >= SIZE)
    found = bed.connections()
    if (used, found) != (link, connections):
        raise BurstError(
            f"{way.case}, {kind.name}: left by {used or 'no ENI'}, not {link or 'none'}; "
            f"{len(found)} connections, answered as {set(found)}, "
            f"not {len(connections)} as {answers}"
        )


def _rounds(ways: Sequence[Way], rounds: int) -> Costs:
    costs: Costs = {(w.case, w.kind): [] for w in ways}
    chance = random.Random(rounds)
    for number in range(rounds):
        _say(f"round {number + 1} of {rounds}")
        for way in chance.sample(ways, len(ways)):
            if way.kind.new:
                way.bed.forget_connections()
            costs[way.case, way.kind].append(_send(way))
            if way.kind.new and way.case != NOTHING and way.bed.tracked != SIZE:
                raise BurstError(f"{way.case}, {way.kind.name}: {way.bed.tracked} new, not {SIZE}")
    return costs


def _send(way: Way) -> float:
    """Send one burst and return its cost, if all of it arrived."""
    before = way.sink.count() - way.burst.sent
    cost = way.burst.send()
    if lost := before + way.burst.sent - way.sink.count():
        raise BurstError(f"{way.case}, {way.kind.name}: {lost} packets did not arrive")
    return cost


@contextmanager
def one_cpu() -> Iterator[None]:
    """Keep this process on one processor."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _say(text: str) -> None:
    print(f"\rforwarding: {text:40}", end="", file=sys.stderr, flush=True)


def _who(case: Case) -> str:
    return {STOCK: "stock", LEGACY: "stock with iptables-legacy"}.get(case[0], case[0])


def _times(costs: Costs, kind: Kind, cases: Sequence[Case]) -> list[str]:
    cells = []
    for case in cases:
        low, middle, high = statistics.quantiles(costs[case, kind], n=4, method="inclusive")
        cells.append(f"{middle:,.0f} ± {(high - low) / 2:,.0f}")
    return cells


def _rates(costs: Costs, kind: Kind, cases: Sequence[Case]) -> list[str]:
    return [f"{1e6 / _median(costs, case, kind):,.0f}" for case in cases]


def _ratios(costs: Costs, kind: Kind) -> list[str]:
    first = PODS[0]
    grown = [
        _ratio(costs, kind, (who, n, FEW), (who, first, FEW))
        for who in (OURS, STOCK)
        for n in PODS[1:]
    ]
    beside = [_ratio(costs, kind, (STOCK, n, FEW), (OURS, n, FEW)) for n in PODS]
    return [kind.name, *grown, *beside]


def _ratio(costs: Costs, kind: Kind, case: Case, to: Case) -> str:
    if not {(case, kind), (to, kind)} <= costs.keys():
        return "-"  # a commit that this checkout's history does not have
    return f"{_quotient(costs, kind, case, to):.2f}"


def _quotient(costs: Costs, kind: Kind, case: Case, to: Case) -> float:
    # Round by round: what the machine does meanwhile is in both.
    rounds = zip(costs[case, kind], costs[to, kind], strict=True)
    return statistics.median(a / b for a, b in rounds)


def _goals(costs: Costs, kind: Kind) -> list[str]:
    """Return the ratios of few pods, and what they shall be."""
    earlier, stock, ours, stocks = PAIRS
    beside = report.goal(_quotient(costs, kind, *stock), 1.0 if kind.new else 1.03, least=True)
    bare = _quotient(costs, kind, *ours)
    goal = (f"{bare:.2f}", "") if kind.new else report.goal(bare, 1.45 if kind.to else 1.35)
    return [_ratio(costs, kind, *earlier), *beside, *goal, _ratio(costs, kind, *stocks)]


def _median(costs: Costs, case: Case, kind: Kind) -> float:
    return statistics.median(costs[case, kind])


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


if __name__ == "__main__":
    write()
