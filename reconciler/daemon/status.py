"""What is known of the node after the last passes: can pods start, and what ``status`` shows."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reconciler.cluster.report import STARTING
from reconciler.core.datapath import IpNetwork
from reconciler.daemon.document import Accepted
from reconciler.daemon.duty import Condition
from reconciler.daemon.overview import (
    MOST_SHOWN,
    age,
    describe_conditions,
    describe_eni,
    describe_limits,
    describe_other_card,
    describe_pods,
    describe_policies,
    describe_rules,
)
from reconciler.daemon.telemetry import PACKETS
from reconciler.egress.destinations import Egress
from reconciler.errors import FOREIGN_TEXT, Issue
from reconciler.ipam.cloud import Cloud
from reconciler.ipam.margin import Margin, within
from reconciler.ipam.pool import Demand
from reconciler.ipam.pool_groups import demand_of
from reconciler.ipam.records import Records
from reconciler.node.pass_result import PassResult

PATIENCE_S = 30.0
"""Seconds for which passes must fail before STATUS says so: a node that flaps to NotReady has its
pods taken out of every Service, though they run as before."""

HOST_WIDE = ("sysctl", "rule", "nat", "source-check")
"""Domains without whose objects no pod reaches what is beyond the node, running ones included."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What is known after the last pass over the kernel.

    Attributes:
        latest: of what was last observed; None after a full pass that failed.
        limited_since: monotonic seconds since which a domain of ``HOST_WIDE`` fails.
        refused: packets that the table's counters had counted then.
    """

    latest: PassResult | None = None
    generation: int = 0  # of the document that the last full pass worked on
    failing_since: float | None = None  # monotonic seconds since which full passes fail
    limited_since: float | None = None
    has_converged: bool = False  # whether a full pass has ever succeeded
    refused: Mapping[str, int] = field(default_factory=dict)

    def after_failure(self, started: float) -> Progress:
        """After a full pass that failed: what was known is not known any more."""
        return replace(self, latest=None, failing_since=self.failing_since or started)

    def after_observation(self, result: PassResult) -> Progress:
        """After any pass, before its duties are done."""
        if self.latest is None or result.asked is None:
            return replace(self, latest=result)
        return replace(self, latest=self.latest.followed_by(result))

    def after_pass(self, result: PassResult, generation: int, started: float) -> Progress:
        """After a whole full pass."""
        limited = any(result.outcomes[name].failed for name in HOST_WIDE)
        since = (self.limited_since or started) if limited else None
        return Progress(
            result, generation, limited_since=since, has_converged=True, refused=self.refused
        )

    def after_counting(self, refused: Mapping[str, int]) -> Progress:
        """After a look at the table's counters."""
        for reason, number in refused.items():
            before = self.refused.get(reason, 0)
            # They begin anew with the table.
            PACKETS.labels(reason).inc(number - before if number >= before else number)
        return replace(self, refused=dict(refused))


@dataclass(frozen=True, slots=True)
class PoolReport:
    """What the last pass over the pool has done."""

    demand: Demand | None = None  # that the last successful one has planned for
    generation: int = 0  # of the document that this one has planned by
    fails: bool = False  # whether the last one has failed
    margin: Margin | None = None  # demands that it would have done as much for

    def is_for(self, demand: Demand) -> bool:
        """Whether a pass for this demand would do nothing more."""
        return self.demand == demand or within(self.margin, demand)


def find_obstacle(
    progress: Progress, cloud: Cloud | None, texts: Callable[[str], list[str]], now: float
) -> Issue | None:
    """Say why no pod can start on this node; None if they can.

    Exhaustion is none: a node that says it is not ready loses the pods it has.

    ``texts`` returns a domain's conditions; ``now`` is in monotonic seconds.
    """

    def causes(of: Iterable[str] = ("node", "eni")) -> str:
        return "; ".join(t for name in of for t in texts(name))[: FOREIGN_TEXT * 2]

    if cloud is None or not cloud.enis:
        if cloud is None and not progress.has_converged and not causes():
            return Issue("node", STARTING, "EC2 has not been observed yet")
        return Issue("node", "NotAvailable", causes() or "no ENI is known yet")
    failing, limited = progress.failing_since, progress.limited_since
    if failing is not None and (not progress.has_converged or now - failing > PATIENCE_S):
        return Issue("node", "NotAvailable", causes() or "no pass succeeds")
    if limited is not None and now - limited > PATIENCE_S:
        return Issue("node", "Limited", causes(HOST_WIDE) or "rules or settings are missing")
    return None


def describe(
    path: Path,
    accepted: Accepted,
    progress: Progress,
    pool: PoolReport,
    cloud: Cloud | None,
    conditions: list[Condition],
    ec2_calls: Mapping[str, int],
    now: float,
    *,
    is_pending: bool,
) -> dict[str, Any]:
    """Describe the node: what is in force, what is held, what is wrong.

    The pool may have more to do than its plan says (``is_pending``). ``now``: seconds since the
    epoch.
    """
    latest = progress.latest
    records = latest.records if latest else Records()
    enis = cloud.enis if cloud else ()
    devices = {e.eni_id: e.device_index for e in enis}
    # Nothing is left to do, by the document in force, and this was seen.
    settled = (
        latest is not None
        and latest.settled
        and progress.generation == accepted.generation
        and (pool.fails or pool.generation == accepted.generation)
        and (pool.fails or pool.is_for(demand_of(latest.records, latest.inputs.document)))
        and not is_pending
    )
    return {
        "document": {
            "path": str(path),
            "generation": accepted.generation,
            "acceptedAt": accepted.accepted_at,
            "refused": accepted.refused,
        },
        "settled": settled,
        "pool": count_addresses(records, cloud, latest.inputs.host.withheld) if latest else {},
        "snat": describe_policies(latest.inputs.document) if latest else [],
        "snatRules": describe_rules(latest.inputs.document) if latest else [],
        "limits": describe_limits(latest.inputs, cloud, records) if latest and cloud else None,
        "conditions": describe_conditions(conditions, now),
        "enis": [describe_eni(e) for e in enis],
        "otherCards": [describe_other_card(e) for e in cloud.other_cards] if cloud else [],
        "attachments": describe_pods(records, devices),
        "packetsRefused": dict(progress.refused),
        "cooling": [str(c.address) for c in records.cooling],
        "identities": [
            {
                "namespace": i.namespace,
                "group": i.group,
                "addresses": [str(own) for own in i.addresses],
                "eni": i.eni_id,
                "device": devices.get(i.eni_id),
                "state": i.state,
            }
            for i in records.identities
        ],
        "ec2Calls": dict(ec2_calls),
    }


def shorten(status: dict[str, Any], most: int) -> dict[str, Any]:
    """Return a status that is not longer than ``most`` bytes: the longest lists lose their ends.

    Of what was left out, ``shortened`` has the number, by list.
    """
    lists = {name: value for name, value in status.items() if isinstance(value, list)}
    shortened: dict[str, int] = {}
    while lists and len(json.dumps(status)) > most:
        name = max(lists, key=lambda n: len(json.dumps(status[n])))
        kept = status[name][: len(status[name]) // 2]
        shortened[name] = len(lists[name]) - len(kept)
        status = {**status, name: kept, "shortened": shortened}
    return status


def describe_sources(egress: Egress, now: float) -> list[dict[str, Any]]:
    """Describe what the document's sources stand for, how old that is, and what is wrong.

    ``now``: seconds since the epoch.
    """
    return [
        {
            "name": s.name,
            "lookedAt": s.looked_at,
            "ageSeconds": None if s.looked_at is None else age(now, s.looked_at),
            "failure": s.failure.code if s.failure else None,
            "entries": len(s.entries),
            "shown": [
                {"cidr": str(e.network), "via": e.via, "label": e.label, "missedAt": e.missed_at}
                for e in s.entries[:MOST_SHOWN]
            ],
        }
        for s in egress.sources
    ]


def count_addresses(
    records: Records, cloud: Cloud | None, withheld: Collection[IpNetwork]
) -> dict[str, int]:
    """Count pod addresses by state; what is ``withheld`` from pods is not allocatable."""
    enis = cloud.enis if cloud else ()
    held = {a for e in enis if e.serves_pods for a in e.pod_addresses}
    assigned = {own for a in records.attachments for own in a.vpc_addresses}
    cooling = {c.address for c in records.cooling}
    dedicated = {own for i in records.identities for own in i.addresses}
    leaving = [q.network for q in records.quarantined]
    quarantined = {a for a in held if any(a in network for network in leaving)}
    withheld_here = {a for a in held if any(a in network for network in withheld)}
    return {
        "allocatable": len(held - assigned - cooling - dedicated - quarantined - withheld_here),
        "assigned": len(assigned),
        "cooling": len(cooling),
        "quarantined": len(quarantined),
        "dedicated": len(dedicated),
    }
