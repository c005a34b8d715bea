"""What is said of a node without changing it: what differs, and what disagrees."""

from __future__ import annotations

from dataclasses import replace

from reconciler.core.unreadable import Unread
from reconciler.diagnostics.audit import contradictions
from reconciler.domains.inputs import Inputs
from reconciler.domains.left_out import dry_run
from reconciler.engine.converge import Outcome, Outcomes
from reconciler.engine.issue import Issue
from reconciler.engine.observed import unread_places
from reconciler.ipam.cloud import Cloud
from reconciler.node.passes import LocalNode, attachment_domain
from reconciler.node.stock_plugin import domain_for
from schemas.document import NodeNetwork


def diff(node: LocalNode, document: NodeNetwork) -> Outcomes:
    """Plan everything, change nothing.

    Raises:
        ObserveError, NotReadyError: as for the passes.
    """
    outcomes = {"eni": node.pool.run(document, dry=True)}
    if node.known.cloud is None:
        return outcomes  # it says why EC2 could not be read
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
    return outcomes | node.after.installation.plan(inputs)


def audit(
    node: LocalNode, document: NodeNetwork, outcomes: Outcomes | None = None
) -> tuple[Issue, ...]:
    """Compare document, intents, records, kernel, nftables and EC2; change nothing.

    What is just being done disagrees for a moment; only what a second observation confirms is
    wrong.

    Args:
        node: where.
        document: what is desired.
        outcomes: of ``diff``; looked at anew if there are none.

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
    refused = [
        Issue(r.subject, r.reason, r.message) for o in outcomes.values() for r in o.plan.refusals
    ]
    cloud = seen if isinstance(seen, Cloud) else None
    against = contradictions(node.state.observe(), cloud, node.environment.now())
    return (*against, *differing, *refused, *outcomes["link"].remaining.findings)


def findings(node: LocalNode, document: NodeNetwork, outcomes: Outcomes) -> tuple[Issue, ...]:
    """Say what other owners have that hurts us; nothing if EC2 was never looked at.

    Args:
        node: where.
        document: what is desired.
        outcomes: of ``diff``: what it plans to remove hurts no more.

    Raises:
        ObserveError, NotReadyError: as for the passes.
    """
    if node.known.cloud is None:
        return ()
    inputs = node.gathering.inputs(document, node.state.observe(), node.known.cloud)
    return node.after.others.observe(inputs, outcomes)[1]


def _with_unread(links: Outcome, inputs: Inputs) -> Outcome:
    """Add a word on each pod's namespace that a look could not read."""
    places = unread_places(links.observed)
    failed = {a.key: places[a.netns].why for a in inputs.attachments if a.netns in places}
    found = tuple(Unread().after((), failed, 0.0).findings(inputs.attachments))
    if not found:
        return links
    plan = replace(links.plan, findings=(*links.plan.findings, *found))
    return replace(links, plan=plan, remaining=plan)
