"""What a pass over the kernel has done, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from reconciler.core.attachment import Attachment, AttachmentKey
from reconciler.domains import conflist
from reconciler.domains.inputs import Inputs
from reconciler.domains.left_out import left_out
from reconciler.domains.link import PodLink, Veth
from reconciler.engine.converge import Outcome, Outcomes
from reconciler.engine.issue import Issue
from reconciler.engine.plan import Action, Key, Verb
from reconciler.errors import ApplyError, NamespaceError, PodError
from reconciler.ipam.records import Records


@dataclass(frozen=True, slots=True)
class PassResult:
    """What one pass over the kernel did.

    Attributes:
        observed_at: monotonic seconds at which it began to look: older hints are answered.
        records: intents and attachments after it.
        inputs: what was last planned on.
        done: attachments of which every object was seen in its place.
        waiting: why each wanted intent has no attachment yet.
        findings: what other owners have that hurts us; None if not looked for.
        pods: what pods have done in their own namespaces; likewise.
        asked: the attachments that were looked at alone; None for a full pass.
        audit: every pod's namespace was, or is to be, looked into.
    """

    outcomes: Outcomes
    observed_at: float
    records: Records
    inputs: Inputs
    done: Mapping[AttachmentKey, Attachment] = field(default_factory=dict)
    waiting: Mapping[AttachmentKey, Issue] = field(default_factory=dict)
    findings: tuple[Issue, ...] | None = None
    pods: tuple[Issue, ...] | None = None
    asked: frozenset[AttachmentKey] | None = None
    audit: bool = False

    @property
    def settled(self) -> bool:
        """Nothing is left to do, and this was seen.

        What was bound after the kernel was converged, because something else was released first,
        is for the next pass.
        """
        planned = {a.key: a for a in self.inputs.attachments}
        return all(o.settled for o in self.outcomes.values()) and all(
            planned.get(a.key) == a
            for a in self.records.living
            if self.asked is None or a.key in self.asked
        )

    def with_outcomes(self, outcomes: Outcomes, findings: Iterable[Issue]) -> PassResult:
        """Add what followed the pass."""
        found = (*(self.findings or ()), *findings)
        return replace(self, outcomes=self.outcomes | outcomes, findings=found)


OF_ONE_POD = (ApplyError, NamespaceError, PodError)
"""Errors that say nothing of any other pod than their own."""


def undone(outcome: Outcome) -> tuple[Action, ...]:
    """What is left to do, now or later."""
    return (*outcome.remaining.actions, *outcome.remaining.deferred)


def not_in_place(outcomes: Sequence[Outcome]) -> frozenset[tuple[str, Key]]:
    """Kind and key of every object that is left to do, or was refused its place."""
    left = {(a.kind, a.key) for o in outcomes for a in undone(o)}
    return frozenset(
        left.union(f.about for o in outcomes for f in o.remaining.refusals if f.about)
    )


def touched_pods(inputs: Inputs, links: Outcome) -> frozenset[AttachmentKey]:
    """Name the pods whose host end was made anew, and whose namespace was left out.

    And those whose host end was changed, if what pods have in their namespaces is put right.
    """
    names = {
        a.key[0]
        for a in links.plan.actions
        if a.kind == Veth.kind and (a.verb is Verb.CREATE or inputs.document.pods.repair == "all")
    }
    visited = set(inputs.visited)
    return (
        frozenset(
            a.key for a in inputs.placed if a.veth in names and a.netns_alive and a not in visited
        )
        - inputs.kernel.unreadable
    )


def withhold(outcome: Outcome) -> Outcome:
    """What becomes of a plan that must wait: nothing was done, and why is said."""
    plan = conflist.withhold(outcome.remaining)
    return replace(outcome, desired=None, plan=plan, remaining=plan)


def find_waiting(outcomes: Outcomes) -> dict[AttachmentKey, Issue]:
    """Why wanted intents are not served, by key."""
    apart = {
        key: Issue(f"intent {key}", error.reason, str(error))
        for key, error in left_out(outcomes).items()
    }
    refusals = {r.subject: r for r in outcomes["attachment"].remaining.refusals}
    records = outcomes["attachment"].observed
    if not refusals or not isinstance(records, Records):
        return apart
    return apart | {
        i.key: refusals[f"intent {i.key}"]
        for i in records.intents
        if f"intent {i.key}" in refusals
    }


IN_PODS = ("link", "address", "neighbour", "route")
"""Domains that have objects in pods' namespaces; each builds upon those before it."""


def find_occupied(
    attachments: Iterable[Attachment], outcomes: Outcomes
) -> dict[AttachmentKey, Issue]:
    """Name the pods in whose namespace another owner has something in the place of ours."""
    links = {f.about for f in outcomes["link"].remaining.refusals}
    others = {
        str(f.about[1][0]): f
        for name in reversed(IN_PODS[1:])
        for f in outcomes[name].remaining.refusals
        if f.about and f.about[1] and f.about[1][0]
    }
    found = {
        a.key: Issue(
            f"intent {a.key}",
            "ObjectExists",
            f"{others[a.netns].subject}: {others[a.netns].message}",
        )
        for a in attachments
        if a.netns in others
    }
    return found | {
        a.key: Issue(
            f"intent {a.key}",
            "InterfaceExists",
            f"{a.netns} has a link {a.key.ifname} of another owner; it is not ours to replace",
        )
        for a in attachments
        if (PodLink.kind, (a.netns, a.key.ifname)) in links
    }


def find_difference(outcome: Outcome) -> Issue | None:
    """Say what is the first thing that a domain has found to differ; None if nothing does."""
    for error in outcome.errors:
        return Issue("kernel", type(error).__name__.removesuffix("Error"), str(error))
    for refusal in outcome.plan.refusals:
        return refusal
    for action in outcome.plan.actions:
        what = " ".join(map(str, action.key))
        return Issue(f"{action.kind} {what}", "Differs", f"{action.reason}; to do: {action}")
    return None
