"""An hour of everything at once, in simulated time; the audit's checker after every step.

Throttled and refused calls, lost answers, old looks, metadata without interfaces, death in the
middle of an effect, drift by a second party, pods that come and go, documents that change.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from typing import Any

import pytest
from builders import BEGIN_S
from crash_injection import Life

from reconciler.core.datapath import host_network
from reconciler.diagnostics.audit import contradictions
from reconciler.domains.link import EniLink, PodLink, Veth
from reconciler.domains.nat_objects import NftTable
from reconciler.ipam.cloud import Cloud

HOURS = int(os.environ.get("FAULT_HOURS", "1"))
CLOCK_HOURS = int(os.environ.get("CLOCK_HOURS", "1"))
HOUR_S = 3600.0
OFF_S = 3600.0
"""Seconds the wall clock may be off, either way."""

CLOCK_STEPS_S = [0.0, 0.5, -0.5, 30.0, -30.0, OFF_S, -OFF_S, 365 * 24 * OFF_S]
"""By how much it steps, in seconds; no way leads back from the last but to be set right."""
MOST_PODS = 9
SEED = int(os.environ.get("FAULT_SEED", random.SystemRandom().randrange(10**6)))

NEVER = {
    "AssignedTwice",
    "AssignedAndCooling",
    "AssignedAndQuarantined",
    "WantedByNobody",
    "AddressLost",
    "AddressElsewhere",
    "LimitExceeded",
}
"""What no fault excuses; all else may be so for a while."""

CODES = ["RequestLimitExceeded", "InternalError", "UnauthorizedOperation"]

DOCUMENTS: list[dict[str, Any]] = [
    {},
    {"snat": {"mode": "external"}},
    {"snat": {"excludeCIDRs": ["198.18.0.0/15"]}},
    {"warmPool": {"addresses": {"warm": 3}, "cooldown": "30s"}},
    {"eni": {"allocate": "prefixes"}},
    {"families": ["ipv4", "ipv6"]},
]


class Hour:
    """One hour of one node."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        pool = {"addresses": {"warm": 1, "minimum": 2, "surplus": 0}, "cooldown": "10s"}
        self.life = Life(None, {"warmPool": pool})
        self.seen: Counter[str] = Counter()
        self._next = 0

    def step(self) -> None:
        """Let one thing happen, let the daemon work, and check."""
        names = [n for n in dir(self) if n.startswith("let_")]
        name = self.chance.choice(names)
        getattr(self, name)()
        self.seen[name] += 1
        self.life.look = self.chance.random() < 0.5
        self.life.work(self.chance.choice([0.5, 3.0, 11.0, 31.0]))
        self.life.ec2.lag, self.life.ec2.hidden = 0, set()  # EC2 is late by seconds
        if self.chance.random() < 0.2:  # not every hint arrives, but the clock goes on
            self.life.tick(1.0)
        records = self.life.disk.observe()
        ec2 = self.life.ec2
        truth = Cloud(tuple(ec2.enis), ec2.limits, {})  # and not what a look would show
        found = contradictions(records, truth, self.life.now + self.life.skew)
        assert [str(f) for f in found if f.reason in NEVER] == []

    def let_pods_come(self) -> None:
        for _ in range(self.chance.randint(1, MOST_PODS - len(self.life.running) or 1)):
            if len(self.life.running) < MOST_PODS:
                self.life.begin_pod(self._next)
                self._next += 1

    def let_pods_go(self) -> None:
        for number in self.chance.sample(sorted(self.life.running), len(self.life.running) // 2):
            self.life.end_pod(number, silently=self.chance.random() < 0.3)

    def let_the_document_change(self) -> None:
        self.life.edit(**self.chance.choice(DOCUMENTS))

    def let_a_call_be_refused(self) -> None:
        self.life.ec2.fault = ("before", self.chance.choice(CODES))

    def let_an_answer_be_lost(self) -> None:
        self.life.ec2.fault = ("after", "")

    def let_looks_be_old(self) -> None:
        self.life.ec2.lag = self.chance.randint(1, 4)

    def let_looks_have_holes(self) -> None:
        shown = [
            network
            for e in self.life.ec2.enis
            for network in (*map(host_network, e.secondaries), *e.prefixes, *e.ipv6_prefixes)
        ]
        lost = self.chance.sample(shown, min(len(shown), self.chance.randint(1, 6)))
        self.life.ec2.hidden = set(lost)

    def let_metadata_be_back(self) -> None:
        self.life.imds.empty = False

    def let_metadata_be_empty(self) -> None:
        self.life.imds.empty = True

    def let_it_die_in_an_effect(self) -> None:
        side = self.chance.choice(["before", "after"])
        self.life.fate.strike = (
            side,
            self.life.fate.counts["effect"] + self.chance.randint(0, 12),
        )

    def let_the_clock_step(self) -> None:
        self.life.skew = self.chance.choice([-OFF_S, 0.0, OFF_S])

    def let_it_be_killed(self) -> None:
        self.life.start()

    def let_the_kernel_be_tampered_with(self) -> None:
        objects = self.life.kernel._objects
        loose = [k for k, o in objects.items() if not isinstance(o, EniLink | PodLink | Veth)]
        for identity in self.chance.sample(loose, min(len(loose), 3)):
            objects.pop(identity, None)

    def let_links_be_tampered_with(self) -> None:
        objects = list(self.life.kernel._objects.values())
        for link in self.chance.sample(objects, min(len(objects), 6)):
            if isinstance(link, Veth):
                self.life.kernel._remove(link)

    def let_the_ruleset_be_tampered_with(self) -> None:
        objects = sorted(self.life.nft.observe(), key=lambda o: (o.kind, o.key))
        if self.chance.random() < 0.3:
            self.life.nft._objects.clear()
        elif objects:
            lost = self.chance.choice(objects)
            if not isinstance(lost, NftTable):
                self.life.nft._objects.discard(lost)

    def let_everything_be_well_again(self) -> None:
        life = self.life
        life.fate.strike, life.ec2.fault = None, None
        life.ec2.lag, life.imds.empty = 0, False
        life.edit()


def end_well(hour: Hour) -> None:
    hour.let_everything_be_well_again()
    for seconds in (70.0, 70.0, 70.0, 70.0, 70.0, 3700.0, 70.0, 70.0, 70.0, 70.0, 70.0, 70.0):
        hour.life.tick(seconds)
    hour.life.check_end()


@pytest.mark.timeout(120 + 120 * HOURS)
@pytest.mark.parametrize("number", range(HOURS))
def test_no_fault_and_no_hour_of_them_breaks_an_invariant(number: int) -> None:
    print(f"FAULT_SEED={SEED}")  # noqa: T201 - shown if it fails
    hour = Hour(SEED + number)
    while hour.life.now < BEGIN_S + HOUR_S:
        hour.step()
    assert hour.life.deaths > 0
    assert len(hour.seen) == 16, hour.seen
    end_well(hour)


@pytest.mark.timeout(120 + 120 * CLOCK_HOURS)
@pytest.mark.parametrize("number", range(CLOCK_HOURS))
def test_an_hour_whose_clock_never_goes_on_as_it_should_breaks_no_invariant(number: int) -> None:
    print(f"FAULT_SEED={SEED}")  # noqa: T201 - shown if it fails
    hour = Hour(SEED + number)
    while hour.life.now < BEGIN_S + HOUR_S:
        step = hour.chance.choice(CLOCK_STEPS_S)
        hour.life.skew += step
        hour.step()
    hour.life.skew = 0.0
    end_well(hour)
