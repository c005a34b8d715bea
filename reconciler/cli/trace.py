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
) -> None:
    """Show how packets between a pod and DESTINATION are routed and translated.

    No packet is sent: the desired tables are evaluated, the kernel is asked for the same routes,
    and other owners' chains are evaluated rule by rule, in nftables and iptables.
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

        def make(inputs: Inputs) -> list[Query]:
            who = find_pod(inputs.attachments, pod)
            number = PROTOCOLS[protocol]
            return [Query(who, peer, inbound, at, end, number, port) for end in ends]

        traces = follow(node, document, make)
    except ReconcilerError as error:
        options.fail(error)
    if output == "json":
        click.echo(json.dumps({"traces": [_body(t) for t in traces]}, indent=2))
    else:
        click.echo("\n".join("".join(f"{line}\n" for line in _lines(t)) for t in traces), nl=False)
    sys.exit(1 if any(t.planned.troubles or t.differences or t.obstacles for t in traces) else 0)


def _lines(traced: Traced) -> Iterator[str]:
    for leg in traced.planned.legs:
        yield leg.name
        yield from (f"  {step.about:<10} {step.text}" for step in leg.steps)
    against = (*traced.planned.troubles, *traced.differences, *traced.obstacles)
    yield from (f"! {text}" for text in against)
    yield from (f"note: {text}" for text in (*traced.planned.hints, *traced.hints))
    if traced.planned.legs and not traced.differences and not traced.obstacles:
        yield "the kernel agrees with every step"


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
