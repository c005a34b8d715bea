"""``trace``: how a connection's packets are routed and translated."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from reconciler.cli import options
from reconciler.cli.host import open_records
from reconciler.cli.reading import read_document
from reconciler.core.datapath import IpAddress
from reconciler.diagnostics.trace import Query, find_pod
from reconciler.domains.inputs import Inputs
from reconciler.errors import ReconcilerError
from reconciler.node.beyond import Beyond, look_beyond, make_ways
from reconciler.node.passes import LocalNode
from reconciler.node.views import Traced, follow
from reconciler.targets.services import Services

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}


@click.command()
@click.argument("pod")
@click.argument("peer", type=options.Address(), metavar="DESTINATION")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help="Destination port; with a service's address, it selects the endpoints.",
)
@click.option("--protocol", type=click.Choice(list(PROTOCOLS)), default="tcp", show_default=True)
@click.option(
    "--endpoint",
    type=options.Address(),
    help="The endpoint that the service is translated to. Default: trace all.",
)
@click.option("--inbound", is_flag=True, help="The destination opens the connection to the pod.")
@click.option(
    "--vpc",
    "is_beyond",
    is_flag=True,
    help="Go on where the node ends: ask EC2 for security groups, network ACLs, routes, peerings.",
)
@click.option(
    "--at",
    type=options.Address(),
    help="With --inbound: the node's address that it connects to (NodePort, hostPort).",
)
@options.config_option
@options.state_option
@options.output_option
def trace(
    pod: str,
    peer: IpAddress,
    port: int | None,
    protocol: str,
    endpoint: IpAddress | None,
    at: IpAddress | None,
    config: Path,
    state_dir: Path,
    output: str,
    *,
    inbound: bool,
    is_beyond: bool,
) -> None:
    """Show how packets between a pod and DESTINATION are routed and translated.

    No packet is sent: the desired tables are evaluated, the kernel is asked for the same routes,
    and other owners' chains are evaluated rule by rule, in nftables and iptables. With --vpc, what
    EC2 says is followed as well, of the peer's side as far as that may be described.
    POD is namespace/name, a name, an address, a container ID, or host.

    Exit status: 0 it works as far as the node knows, 1 something stops or rewrites it, 2 an error.
    """
    if at and not inbound:
        raise click.UsageError("--at is about connections from outside; add --inbound")
    document = read_document(config, output)
    node = LocalNode(open_records(state_dir))
    try:
        ends: tuple[IpAddress | None, ...] = (endpoint,)
        if port and not endpoint and not inbound:
            ends = Services().endpoints(peer, protocol, port) or ends

        queries: list[Query] = []

        def make(inputs: Inputs) -> list[Query]:
            who = find_pod(inputs.attachments, pod)
            number = PROTOCOLS[protocol]
            queries.extend(Query(who, peer, inbound, at, end, number, port) for end in ends)
            return queries

        traces = follow(node, document, make)
        beyond = [Beyond()] * len(traces)
        if is_beyond:
            ways = make_ways(node)
            beyond = [
                look_beyond(node, query, traced, ways)
                for query, traced in zip(queries, traces, strict=True)
            ]
    except ReconcilerError as error:
        options.fail(error)
    if output == "json":
        both = zip(traces, beyond, strict=True)
        bodies = [_body(t) | (_vpc_body(b) if is_beyond else {}) for t, b in both]
        click.echo(json.dumps({"traces": bodies}, indent=2))
    else:
        parts = ([*_lines(t), *_vpc_lines(b)] for t, b in zip(traces, beyond, strict=True))
        click.echo("\n".join("".join(f"{line}\n" for line in part) for part in parts), nl=False)
    stopped = any(s.stops for b in beyond for s in b.steps)
    against = any(t.planned.troubles or t.differences or t.obstacles for t in traces)
    sys.exit(1 if against or stopped else 0)


def _lines(traced: Traced) -> Iterator[str]:
    for leg in traced.planned.legs:
        yield leg.name
        yield from (f"  {step.about:<10} {step.text}" for step in leg.steps)
    against = (*traced.planned.troubles, *traced.differences, *traced.obstacles)
    yield from (f"! {text}" for text in against)
    yield from (f"note: {text}" for text in (*traced.planned.hints, *traced.hints))
    if traced.planned.legs and not traced.differences and not traced.obstacles:
        yield "the kernel agrees with every step"


MARKS = {True: "! ", False: "  ", None: "? "}
"""What is before a step of the VPC: it ends there, goes on, or that is not known."""


def _vpc_lines(beyond: Beyond) -> Iterator[str]:
    if beyond.steps:
        yield "in the VPC"
    for step in beyond.steps:
        yield f"{MARKS[step.stops]}{step.about:<16} {step.text}"
    yield from (f"note: {note}" for note in beyond.notes)


def _vpc_body(beyond: Beyond) -> dict[str, Any]:
    steps = [{"about": s.about, "text": s.text, "stops": s.stops} for s in beyond.steps]
    return {"vpc": {"steps": steps, "notes": list(beyond.notes)}}


def _body(traced: Traced) -> dict[str, Any]:
    planned = traced.planned
    return {
        "source": str(planned.source),
        "device": planned.device,
        "legs": [
            {
                "name": leg.name,
                "steps": [{"about": s.about, "text": s.text} for s in leg.steps],
                "lookups": [
                    {"command": packet.command, "decision": str(decision)}
                    for packet, decision in leg.lookups
                ],
            }
            for leg in planned.legs
        ],
        "troubles": list(planned.troubles),
        "differences": list(traced.differences),
        "obstacles": list(traced.obstacles),
        "hints": [*planned.hints, *traced.hints],
    }
