"""What ``status`` shows: what is in force, what is held, what is wrong."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reconciler.core.datapath import IpNetwork
from reconciler.daemon.conditions import Condition
from reconciler.daemon.document import Accepted
from reconciler.daemon.pool_loop import PoolReport
from reconciler.daemon.readiness import Progress
from reconciler.ipam.cloud import Cloud
from reconciler.ipam.records import Records


@dataclass(frozen=True, slots=True)
class View:
    """All that it is made of, each read once.

    Attributes:
        is_pending: whether the pool has more to do than its plan says.
        ec2_calls: made so far, by action.
    """

    path: Path
    accepted: Accepted
    progress: Progress
    pool: PoolReport
    cloud: Cloud | None
    conditions: list[Condition]
    ec2_calls: Mapping[str, int]
    is_pending: bool

    @property
    def addresses(self) -> dict[str, int]:
        """Count pod addresses by state; none before a pass."""
        if (latest := self.progress.latest) is None:
            return {}
        return count_addresses(latest.records, self.cloud, latest.inputs.occupied)

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to do, by the document in force, and this was seen."""
        latest = self.progress.latest
        return bool(
            latest
            and latest.settled
            and self.progress.generation == self.accepted.generation
            and (self.pool.fails or self.pool.demand == latest.records.demand)
            and not self.is_pending
        )


def describe(view: View) -> dict[str, Any]:
    """Describe the node."""
    latest = view.progress.latest
    records = latest.records if latest else Records()
    enis = view.cloud.enis if view.cloud else ()
    devices = {e.eni_id: e.device_index for e in enis}
    return {
        "document": {
            "path": str(view.path),
            "generation": view.accepted.generation,
            "refused": view.accepted.refused,
        },
        "settled": view.is_settled,
        "pool": view.addresses,
        "conditions": view.conditions,
        "enis": [
            {
                "id": e.eni_id,
                "device": e.device_index,
                "status": e.status,
                "owned": e.owned,
                "addresses": len(e.pod_addresses),
                "prefixes": [str(p) for p in (*e.prefixes, *e.ipv6_prefixes)],
            }
            for e in enis
        ],
        "attachments": [
            {
                "pod": a.pod or str(a.key),
                "addresses": [str(own) for own in a.addresses],
                "eni": a.eni_id,
                "device": devices.get(a.eni_id),
                "veth": a.veth,
            }
            for a in records.living
        ],
        "cooling": [str(c.address) for c in records.cooling],
        "ec2Calls": dict(view.ec2_calls),
    }


def count_addresses(
    records: Records, cloud: Cloud | None, occupied: Collection[IpNetwork]
) -> dict[str, int]:
    """Count pod addresses by state.

    Args:
        records: of pods, cooldowns and quarantines.
        cloud: what the node's ENIs hold.
        occupied: what the host takes for its own.
    """
    enis = cloud.enis if cloud else ()
    held = {a for e in enis if e.serves_pods for a in e.pod_addresses}
    assigned = {own for a in records.attachments for own in a.vpc_addresses}
    cooling = {c.address for c in records.cooling}
    leaving = [q.network for q in records.quarantined]
    quarantined = {a for a in held if any(a in network for network in leaving)}
    on_host = {a for a in held if any(a in network for network in occupied)}
    return {
        "allocatable": len(held - assigned - cooling - quarantined - on_host),
        "assigned": len(assigned),
        "cooling": len(cooling),
        "quarantined": len(quarantined),
    }
