"""What is said of a node without changing it: what differs, and what disagrees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

from reconciler.diagnostics.audit import contradictions
from reconciler.diagnostics.lookup import Packet, make_tables
from reconciler.diagnostics.meaning import (
    RULES_CHANGE,
    Shift,
    changes_rules,
    find_shifts,
    tell_shifts,
)
from reconciler.diagnostics.obstacles import find_obstacles
from reconciler.diagnostics.trace import Query, Trace, trace
from reconciler.diagnostics.trace_check import compare, compare_inside, unasked
from reconciler.domains import nat, route, rule
from reconciler.domains.conntrack import OpenTo
from reconciler.domains.inputs import Inputs
from reconciler.domains.left_out import dry_run
from reconciler.engine.converge import Outcome, Outcomes
from reconciler.errors import Issue, ObserveError, ReconcilerError, boundary
from reconciler.ipam.cloud import Cloud
from reconciler.ipam.pool_status import Pool
from reconciler.node.passes import LocalNode, attachment_domain
from reconciler.node.source_pass import SourcePass
from reconciler.node.stock_plugin import domain_for
from reconciler.node.visits import unread_of, unreadable_pods
from reconciler.targets.netlink.queries import Queries
from schemas.document import NodeNetwork


def diff(node: LocalNode, document: NodeNetwork) -> Outcomes:
    """Plan everything, change nothing.

    Raises:
        ObserveError, NotReadyError: as for the passes.
    """
    outcomes = {"eni": node.pool.run(document, dry=True)}
    if node.known.cloud is None:
        return outcomes  # it says why EC2 could not be read
    outcomes["egress"] = look_at_sources(node, document, dry=True)
    node.state.hold(())  # what an earlier observation of this process has found in the kernel
    records = node.state.observe()
    inputs = node.gathering.inputs(document, records, node.known.cloud, rehearsal=True)
    node.state.hold(inputs.kernel.unrecorded)
    inputs = inputs.seeing(clear=records.released)
    outcomes |= dry_run([attachment_domain(node.state)], inputs)
    adopted = [a for a, _ in inputs.host.predecessor.adoptions if a not in inputs.attachments]
    inputs = replace(inputs, attachments=(*inputs.attachments, *adopted))
    inputs = inputs.seeing(visit=node.visits.choose(inputs, audit=True))
    outcomes |= dry_run(node.domains.all, inputs)
    outcomes["link"] = _with_unread(outcomes["link"], inputs)
    outcomes |= dry_run([domain_for(inputs.document, node.environment.remains)], inputs)
    outcomes |= node.after.others.observe(inputs, outcomes)[0]
    outcomes |= node.after.fast_path.plan(inputs)
    return outcomes | node.after.installation.plan(inputs)


def pool(node: LocalNode, document: NodeNetwork) -> tuple[Pool, Cloud, tuple[Issue, ...]]:
    """Plan the pool, change nothing; return what is desired, what EC2 shows, and what is refused.

    Raises:
        ReconcilerError: EC2, metadata or the records cannot be read.
    """
    outcome = node.pool.run(document, dry=True)
    for error in outcome.errors:
        raise error
    assert isinstance(outcome.desired, Pool)
    assert isinstance(outcome.observed, Cloud)
    return outcome.desired, outcome.observed, outcome.remaining.refusals


def look_at_sources(node: LocalNode, document: NodeNetwork, *, dry: bool = False) -> Outcome:
    """Ask EC2 what the document's sources stand for; a ``dry`` look is kept to this process."""
    sources = SourcePass(node.state, node.environment, node.known, node.pool)
    try:
        with boundary("observe of sources"):
            sources.run(document, dry=dry)
            return sources.outcome(document)
    except ReconcilerError as error:
        return Outcome(errors=(error,))


def audit(
    node: LocalNode, document: NodeNetwork, outcomes: Outcomes | None = None
) -> tuple[Issue, ...]:
    """Compare document, intents, records, kernel, nftables and EC2; change nothing.

    What is just being done disagrees for a moment; only what a second observation confirms is
    wrong. Without the ``outcomes`` of ``diff`` it is looked at anew.

    Raises:
        ObserveError, NotReadyError: as for the passes.
    """
    outcomes = outcomes or diff(node, document)
    for outcome in outcomes.values():
        for error in outcome.errors:
            raise error
    seen = outcomes["eni"].observed
    differing = [
        Issue(f"{a.kind} {' '.join(map(str, a.key))}", "Differs", f"{a.reason}; to do: {a}")
        for o in outcomes.values()
        for a in o.plan.actions
    ]
    refused = [replace(r, about=None) for o in outcomes.values() for r in o.plan.refusals]
    cloud = seen if isinstance(seen, Cloud) else None
    against = contradictions(node.state.observe(), cloud, node.environment.now())
    return (*against, *differing, *refused, *outcomes["link"].remaining.findings)


def findings(node: LocalNode, document: NodeNetwork, outcomes: Outcomes) -> tuple[Issue, ...]:
    """Say what other owners have that hurts us; nothing if EC2 was never looked at.

    What ``outcomes``, of ``diff``, plan to remove hurts no more.
    """
    if node.known.cloud is None:
        return ()
    inputs = node.gathering.inputs(document, node.state.observe(), node.known.cloud)
    return node.after.others.observe(inputs, outcomes)[1]


def tell(node: LocalNode, document: NodeNetwork, outcomes: Outcomes) -> tuple[str, ...]:
    """Say what ``outcomes``, of ``diff``, come to for pods and those they talk to."""
    actions = outcomes["nat"].plan.actions if "nat" in outcomes else ()
    shifts = find_shifts(actions)
    open_now: dict[Shift, int] = {}
    if shifts:
        with suppress(ReconcilerError), boundary("count of connections"):  # then they are not told
            asked = [_connections(node, document, shift) for shift in shifts]
            counts = node.environment.conntrack.count(asked) or ()
            open_now = dict(zip(shifts, counts, strict=False))
    told = tell_shifts(shifts, open_now, ruled=bool(document.snat.rules))
    return (*told, *([RULES_CHANGE] if changes_rules(actions) else ()))


def _connections(node: LocalNode, document: NodeNetwork, shift: Shift) -> OpenTo:
    """Return the question for connections that stay as they are when a policy changes."""
    cloud, own = node.known.cloud, {group for group, _ in document.snat_policies} - {""}
    group_of = {e.eni_id: e.group for e in cloud.enis if e.group in own} if cloud else {}
    pods = frozenset(
        address
        for a in node.state.observe().attachments
        for address in a.vpc_addresses
        if group_of.get(a.eni_id, "") == shift.group
    )
    return OpenTo(pods, shift.ranges, translated=shift.own)


def _with_unread(links: Outcome, inputs: Inputs) -> Outcome:
    """Add a word on each pod's namespace that a look could not read."""
    pods = inputs.attachments
    found = tuple(unreadable_pods(unread_of(links.observed, pods), pods))
    plan = replace(links.plan, findings=(*links.plan.findings, *found))
    return replace(links, plan=plan, remaining=plan)


class Traced(NamedTuple):
    """A connection's way."""

    planned: Trace  # as desired
    differences: tuple[str, ...]  # where node or kernel would not do it so
    obstacles: tuple[str, ...] = ()  # what other owners' chains do, or may do, against it
    hints: tuple[str, ...] = ()  # what else of theirs decides


def survey(node: LocalNode, document: NodeNetwork) -> Inputs:
    """Gather what is known of the node, by the last observation of EC2; no call is made.

    Raises:
        ObserveError, NotReadyError: as for the passes.
    """
    if node.known.facts is None:
        node.pool.learn()
    cloud = node.known.observation()
    return node.gathering.inputs(document, node.state.observe(), cloud)


def follow(
    node: LocalNode, document: NodeNetwork, make: Callable[[Inputs], Sequence[Query]]
) -> tuple[Traced, ...]:
    """Follow connections through what is desired, what is there, and the kernel's answers.

    It works on the last observation of EC2 and makes no call. ``make`` returns the connections,
    once it is known which pods there are.

    Raises:
        ObserveError, NotReadyError: as for the passes.
        UnknownPodError: ``make`` knows no such pod.
    """
    inputs, environment = survey(node, document), node.environment
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
    there = make_tables(fib.rules, fib.routes, environment.nft.observe(()), fib.addresses)
    others, unread = environment.surroundings.chains()
    unread = (*unread, *(f"{what}: not read: {why}" for what, why in fib.unread))

    def trace_one(query: Query) -> Traced:
        planned, actual = trace(query, inputs, desired), trace(query, inputs, there)
        met = find_obstacles(query, planned, inputs, others)
        return Traced(
            planned,
            _differences(routing, query, planned, actual),
            tuple(dict.fromkeys((*met.sure, *unasked(query, fib.rules), *unread))),
            tuple(dict.fromkeys(met.hints)),
        )

    return tuple(map(trace_one, queries))


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
