"""Looks at all that a node needs, and changes nothing. It runs beside a daemon, or without one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from reconciler.diagnostics import doctor
from reconciler.diagnostics.doctor import Check, Host, State
from reconciler.diagnostics.rights import Question, Unasked, questions
from reconciler.domains.inputs import Inputs
from reconciler.engine.converge import Outcomes
from reconciler.errors import Issue, ObserveError, ReconcilerError
from reconciler.ipam.cloud import Cloud
from reconciler.ipam.pool import capacity
from reconciler.ipam.pool_status import Pool, find_pool_status
from reconciler.node import views
from reconciler.node.passes import LocalNode
from reconciler.targets import host_probe
from reconciler.targets.ec2.caller import InProcess
from reconciler.targets.ec2.calls import Calls
from reconciler.targets.ec2.rights import Rights
from reconciler.targets.kernel import PROC_SYS
from reconciler.targets.netlink.queries import Queries
from schemas.document import NodeNetwork

NOT_SHOWN = frozenset({"Differs", "DemandUnknown", "NotConverged"})
"""Reasons that say nothing of what a node needs: a start that is under way has them."""


def make_rights(region: str) -> Rights:
    """Return what asks EC2 of a region."""
    return Rights(Calls(InProcess(region), time.monotonic))


def examine(
    node: LocalNode, document: NodeNetwork, make: Callable[[str], Rights] = make_rights
) -> Iterator[Check]:
    """Yield checks, the first cause first: metadata, EC2, the pool, the host, other owners."""
    try:
        facts, region = node.environment.imds.node(), node.environment.imds.region()
    except ObserveError as error:
        cure = "see that the instance allows metadata, and that nothing in between drops it"
        yield Check("metadata", State.FAIL, str(error), cure)
        yield from doctor.judge_host(_host(node, None), document.families)
        return
    named = f"{facts.instance_id}, {facts.instance_type} in {facts.availability_zone}"
    yield Check("metadata", State.OK, f"answers with a token: {named}")
    # The document in force is refused, or the kernel cannot be read: what is known is said first.
    outcomes: Outcomes = {}
    try:
        outcomes = views.diff(node, document)
    except ReconcilerError as error:
        yield doctor.from_issue("node", error.issue, State.FAIL)
    yield from _of_rights(node, document, make(region))
    inputs: Inputs | None = None
    if node.known.cloud is not None and outcomes:
        yield from _of_pool(outcomes)
        try:
            inputs = views.survey(node, document)
        except ReconcilerError as error:
            yield doctor.from_issue("node", error.issue, State.FAIL)
    host = _host(node, inputs)
    yield from doctor.judge_host(host, inputs.families if inputs else document.families)
    if inputs is not None:
        effective = inputs.document
        yield from doctor.judge_mtu(host.mtus, effective.eni.mtu, effective.pod_mtu)
        yield from _of_others(node, document, outcomes)


def _of_rights(node: LocalNode, document: NodeNetwork, rights: Rights) -> Iterator[Check]:
    facts = node.environment.imds.node()
    known = replace(facts, name=node.environment.node_name)
    if document.ec2.mode == "frozen":
        yield Check("ec2", State.OK, "ec2.mode is frozen: EC2 is asked for nothing")
        return
    cloud: Cloud | None = node.known.cloud
    for question in questions(document, known, cloud.enis if cloud else ()):
        if isinstance(question, Unasked):
            yield Check(f"ec2:{question.action}", State.SKIPPED, question.why)
            continue
        yield from _ask(rights, question)
    options = rights.metadata_options(facts.instance_id)
    if isinstance(options, str):
        why = f"not known: {options}; ec2:DescribeInstances is needed for this check alone"
        yield Check("hop limit", State.SKIPPED, why)
    else:
        yield doctor.judge_metadata(options.hop_limit, options.tokens)


def _ask(rights: Rights, question: Question) -> Iterator[Check]:
    for found in rights.ask([question]):
        reads = not question.is_dry
        yield doctor.judge_right(found.action, found.why, is_allowed=found.is_allowed, reads=reads)


def _of_pool(outcomes: Outcomes) -> Iterator[Check]:
    """Judge limits and subnets by what the pool's planner has found."""
    outcome = outcomes["eni"]
    for error in outcome.errors:
        yield doctor.from_issue("pool", error.issue, State.FAIL)
    if not isinstance(outcome.observed, Cloud) or not isinstance(outcome.desired, Pool):
        return
    at = find_pool_status(outcome.desired, outcome.observed)
    if at.limits is not None:
        kind = outcome.desired.node.instance_type
        found = capacity(outcome.desired.document, at.limits, foreign=at.foreign)
        yield Check("limits", State.OK, f"{kind} serves {found.pods} pods: {found.text}")
    for name in at.choice.subnets:
        free = at.spaces[name].free
        if free <= 0:
            full = Issue(f"subnet {name}", "SubnetExhausted", "no address is free")
            yield doctor.from_issue("subnet", full)
        else:
            yield Check("subnet", State.OK, f"{name} has {free} free addresses")
    for refusal in outcome.remaining.refusals:
        if refusal.reason not in NOT_SHOWN:
            yield doctor.from_issue("pool", refusal)


def _of_others(node: LocalNode, document: NodeNetwork, outcomes: Outcomes) -> Iterator[Check]:
    """Judge the other owners of this host, and what fails of our own domains."""
    for name, outcome in outcomes.items():
        if name != "eni":
            for error in outcome.errors:
                yield doctor.from_issue(name, error.issue, State.FAIL)
            for refusal in outcome.remaining.refusals:
                if refusal.reason not in NOT_SHOWN:
                    yield doctor.from_issue(name, refusal)
    findings = [f for o in outcomes.values() for f in o.remaining.findings]
    found = dict.fromkeys((*views.findings(node, document, outcomes), *findings))
    for finding in found:
        yield doctor.from_issue("others", finding)
    if not found:
        yield Check("others", State.OK, "no agent, unit or ruleset that stands in the way")


def _host(node: LocalNode, inputs: Inputs | None) -> Host:
    root = Path(os.environ.get("NODE_NETWORK_PROC_SYS", str(PROC_SYS)))
    links = [name for _, name in inputs.pod_enis] if inputs else []
    return Host(
        host_probe.release(),
        host_probe.capabilities(),
        dict(host_probe.settings(doctor.SETTINGS, root)),
        host_probe.is_writable(doctor.FORWARDING, root),
        dict(_unread(node)),
        dict(host_probe.mtus(links)),
    )


def _unread(node: LocalNode) -> Iterator[tuple[str, str]]:
    readings: dict[str, Callable[[], object]] = {
        "nftables": lambda: node.environment.nft.observe(()),
        "rules and routes": Queries().fib,
    }
    for what, read in readings.items():
        try:
            read()
        except ReconcilerError as error:
            yield what, str(error)
