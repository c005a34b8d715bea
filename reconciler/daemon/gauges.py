"""Metrics that each scrape reads from the state of the daemon, without asking anything outside."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from reconciler.core.datapath import IpAddress
from reconciler.core.facts import Eni
from reconciler.daemon.document import Accepted
from reconciler.daemon.status import Progress
from reconciler.daemon.telemetry import Durations, Family, Series, release
from reconciler.domains.inputs import Inputs
from reconciler.egress.destinations import Egress
from reconciler.errors import Issue
from reconciler.ipam import budget
from reconciler.ipam.cloud import Cloud
from reconciler.ipam.forecast import Outlook
from reconciler.ipam.records import Records
from reconciler.targets.ec2.tally import BOUNDS_S, Tallied

BUILD = Family("build_info", "gauge", "1; which program this is", ("version", "python"))
READY = Family("ready", "gauge", "Whether pods can start on this node, as /readyz says: 1 or 0")
PODS = Family("pods", "gauge", "Pods that have their addresses")
WAITING = Family(
    "pods_waiting",
    "gauge",
    "ADDs under way that have not got what they ask for, by why: the reason that the runtime is "
    "told, or Pending until a pass has come to them",
    ("reason",),
)
ADDRESSES = Family(
    "addresses",
    "gauge",
    "Addresses for pods by state (allocatable, assigned, cooling, quarantined, dedicated: to a "
    "namespace, reserved: in use by the host or withheld by the document), ENI and subnet",
    ("state", "eni", "subnet"),
)
ENIS = Family(
    "enis",
    "gauge",
    "ENIs by owner (ours, foreign), status of their attachment in EC2, and pod group",
    ("owner", "status", "group"),
)
ENI_LIMIT = Family("eni_limit", "gauge", "ENIs that the instance and eni.max allow")
ADDRESS_LIMIT = Family(
    "address_limit", "gauge", "Addresses for pods that the instance and the document allow"
)
TARGET = Family(
    "pool_target_addresses",
    "gauge",
    "Addresses to hold for the demand there is: the pool grows below low, gives back above high, "
    "either to aim",
    ("bound",),
)
LEFT = Family(
    "pool_addresses_left",
    "gauge",
    "Addresses that nothing uses: those held, and those that EC2 could give within the limits and "
    "what is free in the subnets; of the pods of no group",
)
EXHAUSTION = Family(
    "pool_exhaustion_seconds",
    "gauge",
    "Seconds until pool_addresses_left is used up at the rate of the last 15 minutes; +Inf if use "
    "does not grow",
)
SUBNET_FREE = Family(
    "subnet_free_addresses",
    "gauge",
    "Addresses that a subnet has left for the whole VPC, as EC2 said when it was last asked",
    ("subnet",),
)
CONDITIONS = Family(
    "conditions",
    "gauge",
    "Conditions there are now, as status lists them, by domain and reason",
    ("domain", "reason"),
)
LOOKS = Family(
    "look_timestamp_seconds",
    "gauge",
    "When something was last observed, in seconds since the epoch: node (a full pass), ec2, or a "
    "source of the document",
    ("of",),
)
ACCEPTED = Family(
    "document_accepted_timestamp_seconds",
    "gauge",
    "When the document in force was accepted, in seconds since the epoch",
)
EC2_CALLS = Family(
    "ec2_calls",
    "counter",
    "EC2 calls by action and outcome: ok, what has become of it, or held_back by the node's own "
    "budget",
    ("action", "outcome"),
)
EC2_SECONDS = Family(
    "ec2_call_seconds", "histogram", "Duration of EC2 calls, failed ones included", ("action",)
)
EC2_BUDGET = Family(
    "ec2_budget_calls",
    "gauge",
    "EC2 calls of an action that the node's own budget allows at once",
    ("action",),
)


@dataclass(frozen=True, slots=True)
class State:
    """What a scrape is read from; each value was whole when it was taken.

    Attributes:
        now: seconds since the epoch.
        clock: monotonic seconds.
        obstacle: why no pod can start.
        waiting: why ADDs under way wait.
        calls: EC2's, by action.
    """

    now: float
    clock: float
    obstacle: Issue | None
    progress: Progress
    outlook: Outlook
    cloud: Cloud | None
    egress: Egress
    accepted: Accepted
    conditions: tuple[tuple[str, Issue], ...]
    waiting: tuple[str, ...]
    calls: Mapping[str, Tallied]


def read(state: State) -> dict[Family, Series]:
    """Return the value of each of these metrics; without any where it is not known."""
    latest, cloud, supply = state.progress.latest, state.cloud, state.outlook.supply
    records = latest.records if latest else Records()
    bands = (("low", supply.low), ("aim", supply.aim), ("high", supply.high)) if supply else ()
    subnets = cloud.subnets.values() if cloud else ()
    kept = state.accepted.kept
    return {
        BUILD: {(_release(), platform.python_version()): 1},
        READY: {(): state.obstacle is None},
        PODS: _one(len(records.living) if latest else None),
        WAITING: _counted((reason,) for reason in state.waiting),
        ADDRESSES: count_addresses(records, cloud, latest.inputs) if latest and cloud else {},
        ENIS: _counted((*_kind(e), e.group) for e in (cloud.enis if cloud else ())),
        ENI_LIMIT: _one(supply.enis if supply else None),
        ADDRESS_LIMIT: _one(supply.most if supply else None),
        TARGET: {(name,): bound for name, bound in bands},
        LEFT: _one(supply.left if supply else None),
        EXHAUSTION: _one(state.outlook.seconds_left(state.clock)),
        SUBNET_FREE: {(s.subnet_id,): s.free for s in subnets if s.is_described},
        CONDITIONS: _counted((domain, i.reason) for domain, i in state.conditions),
        LOOKS: dict(_looks(state)),
        ACCEPTED: _one(kept.accepted_at.timestamp() if kept else None),
        EC2_CALLS: {
            (action, outcome.replace(" ", "_")): count
            for action, counted in state.calls.items()
            for outcome, count in counted.outcomes.items()
        },
        EC2_SECONDS: {
            (action,): Durations(BOUNDS_S, counted.took, counted.seconds)
            for action, counted in state.calls.items()
        },
        EC2_BUDGET: {
            (action,): round(budget.left(counted.bucket, action, state.clock), 1)
            for action, counted in state.calls.items()
        },
    }


def count_addresses(records: Records, cloud: Cloud, inputs: Inputs) -> Series:
    """Count pod addresses by state, ENI and subnet."""
    states: dict[IpAddress, str] = {}
    holders: dict[IpAddress, Eni] = {}
    leaving = [q.network for q in records.quarantined]
    withheld = inputs.host.withheld
    for eni in cloud.enis:
        for address in eni.pod_addresses if eni.serves_pods else ():
            holders[address] = eni
            states[address] = "allocatable"
            if any(address in n for n in withheld):
                states[address] = "reserved"
            if any(address in n for n in leaving):
                states[address] = "quarantined"
    states |= {c.address: "cooling" for c in records.cooling}
    states |= {own: "dedicated" for i in records.identities for own in i.addresses}
    states |= {own: "assigned" for a in records.attachments for own in a.vpc_addresses}
    by_id = {e.eni_id: e for e in cloud.enis}
    for a in records.attachments:
        if (holder := by_id.get(a.eni_id)) is not None:
            holders |= dict.fromkeys(a.vpc_addresses, holder)

    def place(address: IpAddress) -> tuple[str, str]:
        found = holders.get(address)
        return (found.eni_id, found.subnet_id) if found else ("", "")

    return _counted((state, *place(address)) for address, state in states.items())


def _kind(eni: Eni) -> tuple[str, str]:
    return "ours" if eni.owned else "foreign", eni.status


def _looks(state: State) -> Iterator[tuple[tuple[str, ...], float]]:
    passed = state.now - state.clock  # between the two clocks
    if state.progress.latest is not None:
        yield ("node",), round(state.progress.latest.observed_at + passed, 1)
    if state.outlook.looked_at is not None:
        yield ("ec2",), round(state.outlook.looked_at + passed, 1)
    for source in state.egress.sources:
        if source.looked_at is not None:
            yield (source.name,), source.looked_at


def _one(value: float | None) -> Series:
    return {} if value is None else {(): value}


def _counted(labels: Iterable[tuple[str, ...]]) -> Series:
    return dict(Counter(labels))


_release = cache(release)
