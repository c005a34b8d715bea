"""Following connections through what is desired, what is there, and the kernel's answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from reconciler.diagnostics.lookup import Packet, make_tables
from reconciler.diagnostics.obstacles import find_obstacles
from reconciler.diagnostics.trace import Query, Trace, compare, compare_inside, trace, unasked
from reconciler.domains import nat, route, rule
from reconciler.domains.inputs import Inputs
from reconciler.errors import ObserveError
from reconciler.node.passes import LocalNode
from reconciler.targets.netlink.queries import Queries
from schemas.document import NodeNetwork


class Traced(NamedTuple):
    """A connection's way.

    Attributes:
        planned: as desired.
        differences: where node or kernel would not do it so.
        obstacles: what other owners' chains do, or may do, against it.
        hints: what else of theirs decides.
    """

    planned: Trace
    differences: tuple[str, ...]
    obstacles: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()


def follow(
    node: LocalNode, document: NodeNetwork, make: Callable[[Inputs], Sequence[Query]]
) -> tuple[Traced, ...]:
    """Follow connections.

    It works on the last observation of EC2 and makes no call.

    Args:
        node: where.
        document: what is desired.
        make: returns the connections, once it is known which pods there are.

    Raises:
        ObserveError, NotReadyError: as for the passes.
        UnknownPodError: ``make`` knows no such pod.
    """
    if node.known.facts is None:
        node.pool.learn()
    cloud, environment = node.known.observation(), node.environment
    inputs = node.gathering.inputs(document, node.state.observe(), cloud)
    queries = make(inputs)
    routing = Queries()
    fib = routing.fib()
    rules = [r for r in fib.rules if not rule.is_owned(r)]
    routes = [r for r in fib.routes if not route.is_owned(r)]
    desired = make_tables(
        (*rules, *rule.desire(inputs)),
        (*routes, *route.desire(inputs)),
        nat.desire(inputs),
        fib.addresses,
    )
    there = make_tables(fib.rules, fib.routes, environment.nft.observe(), fib.addresses)
    others, unread = environment.surroundings.chains()
    unread = (*unread, *(f"{what}: not read: {why}" for what, why in fib.unread))
    found = []
    for query in queries:
        planned, actual = trace(query, inputs, desired), trace(query, inputs, there)
        met = find_obstacles(query, planned, inputs, others)
        found.append(
            Traced(
                planned,
                _differences(routing, query, planned, actual),
                tuple(dict.fromkeys((*met.sure, *unasked(query, fib.rules), *unread))),
                tuple(dict.fromkeys(met.hints)),
            )
        )
    return tuple(found)


def _differences(netlink: Queries, query: Query, planned: Trace, actual: Trace) -> tuple[str, ...]:
    packets = [packet for leg in planned.legs for packet, _ in leg.lookups]
    answers = [netlink.look_up(packet) for packet in packets]
    found = compare(planned, actual, answers)
    if query.pod is None or not packets:
        return found
    try:
        way = netlink.look_up(Packet(None, query.peer), query.pod.netns)
    except ObserveError as error:
        return (*found, f"the pod's own namespace was not asked: {error.why}")
    return (*found, *compare_inside(query.pod, query.peer, way))
