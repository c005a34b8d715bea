"""Follows a traced connection into the VPC: what EC2 says of both ends, read-only."""

from __future__ import annotations

import time
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from reconciler.diagnostics.trace import Query
from reconciler.diagnostics.vpc import Flow, VpcStep, answered_by, follow
from reconciler.node.passes import LocalNode
from reconciler.node.views import Traced
from reconciler.targets.ec2.caller import Ec2CallError, InProcess
from reconciler.targets.ec2.calls import Calls
from reconciler.targets.ec2.way import Ways

TCP = 6  # what is meant if no protocol is named


@dataclass(frozen=True, slots=True)
class Beyond:
    """What the VPC does with a connection. ``notes``: what was not followed or read, and why."""

    steps: tuple[VpcStep, ...] = ()
    notes: tuple[str, ...] = ()


def make_ways(node: LocalNode) -> Ways:
    """Return what asks EC2 of the node's region; raises ObserveError if metadata does not tell."""
    return Ways(Calls(InProcess(node.environment.imds.region()), time.monotonic))


def look_beyond(node: LocalNode, query: Query, traced: Traced, ways: Ways) -> Beyond:
    """Follow a connection from where the node ends."""
    flow = _flow(query, traced)
    if flow is None:
        return Beyond(notes=("the VPC is not followed: only IPv4 is",))
    device = traced.planned.device
    enis = node.known.cloud.enis if node.known.cloud else ()
    eni = next((e for e in enis if device is not None and e.device_index == device), None)
    if eni is None:
        return Beyond(notes=("the VPC is not asked: the packets leave by no ENI of this node",))
    peer = flow.source if query.inbound else flow.destination
    cidrs = [c for c in node.known.identity().vpc_cidrs if isinstance(c, IPv4Network)]
    if own := answered_by(peer, cidrs):
        return Beyond(notes=(own,))
    try:
        way = ways.look(eni.eni_id, peer)
    except Ec2CallError as error:
        return Beyond(notes=(f"the VPC is not followed: {error}",))
    return Beyond(tuple(follow(flow, way, inbound=query.inbound)), way.unread)


def _flow(query: Query, traced: Traced) -> Flow | None:
    """Return the connection as the VPC sees it; None if it is not of IPv4."""
    peer = query.endpoint or query.peer
    source, destination = traced.planned.source, peer
    if query.inbound:
        own = query.pod.addresses if query.pod else ()
        home = query.at or next((a for a in own if a.version == peer.version), None)
        source, destination = peer, home or traced.planned.source
    if not isinstance(source, IPv4Address) or not isinstance(destination, IPv4Address):
        return None
    return Flow(source, destination, query.protocol or TCP, query.port)
