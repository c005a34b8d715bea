"""What a pass over the kernel has done, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from reconciler.core.attachment import Attachment, AttachmentKey, intent_name
from reconciler.domains.inputs import Inputs
from reconciler.domains.left_out import left_out
from reconciler.domains.link import PodLink, Veth
from reconciler.engine.converge import Outcome, Outcomes
from reconciler.engine.plan import Key, Keyed, Verb
from reconciler.errors import ApplyError, Issue
from reconciler.ipam.records import Records


class Inspect(Enum):
    """Into which pods' namespaces is looked after a pass, for what was changed in them."""

    NONE = "none"
    SOME = "some"  # in turn
    ALL = "all"


@dataclass(frozen=True, slots=True)
class PassResult:
    """What one pass over the kernel did."""

    outcomes: Outcomes
    observed_at: float  # monotonic seconds at which it began to look: older hints are answered
    records: Records  # intents and attachments after it
    inputs: Inputs  # what was last planned on
    # attachments of which every object was seen in its place
    done: Mapping[AttachmentKey, Attachment] = field(default_factory=dict)
    # why each wanted intent has no attachment yet
    waiting: Mapping[AttachmentKey, Issue] = field(default_factory=dict)
    # why the objects of an attachment are not in their place; of those that were never seen so
    unplaced: Mapping[AttachmentKey, Issue] = field(default_factory=dict)
    # what other owners have that hurts us; None if not looked for
    findings: tuple[Issue, ...] | None = None
    pods: tuple[Issue, ...] | None = None  # what pods have done in their own namespaces; likewise
    # the attachments that were looked at alone; None for a full pass
    asked: frozenset[AttachmentKey] | None = None
    # what pods that leave may have had on the host
    gone: frozenset[Keyed] = frozenset()
    inspect: Inspect = Inspect.NONE

    @property
    def settled(self) -> bool:
        """Nothing is left to do, and this was seen.

        What was bound after the kernel was converged, because something else was released first,
        is for the next pass.
        """
        return all(o.settled for o in self.outcomes.values()) and self._is_planned

    @property
    def served(self) -> bool:
        """Nothing is left to do but to wait for links that go: their end is told."""
        outcomes = self.outcomes.values()
        return all(o.settled or o.is_under_way for o in outcomes) and self._is_planned

    @property
    def leaving(self) -> dict[AttachmentKey, str]:
        """The attachments whose link is being deleted, each with its name."""
        begun = self.outcomes["link"].remaining.begun if "link" in self.outcomes else ()
        names = {str(a.key[0]) for a in begun}
        bound = self.records.attachments if names else ()
        return {a.key: a.veth for a in bound if a.veth in names}

    @property
    def _is_planned(self) -> bool:
        planned = {a.key: a for a in self.inputs.attachments}
        return all(
            planned.get(a.key) == a
            for a in self.records.living
            if self.asked is None or a.key in self.asked
        )

    def followed_by(self, later: PassResult) -> PassResult:
        """Return this pass over everything, as a later one over some pods has left it.

        What that one has served was planned on, too. For all else a full pass follows.
        """
        asked = later.asked or frozenset()
        served = later.inputs.attachments if later.served else ()
        attachments = [a for a in self.inputs.attachments if a.key not in asked]
        attachments += (a for a in served if a.key in asked)
        inputs = replace(self.inputs, attachments=tuple(attachments))
        return replace(self, records=later.records, inputs=inputs)

    def with_outcomes(self, outcomes: Outcomes, findings: Iterable[Issue]) -> PassResult:
        """Add what followed the pass."""
        found = (*(self.findings or ()), *findings)
        return replace(self, outcomes=self.outcomes | outcomes, findings=found)


MOST_CAUSES = 4  # that are told of one attachment


def not_in_place(outcomes: Sequence[Outcome]) -> frozenset[tuple[str, Key]]:
    """Kind and key of every object that is left to do, or was refused its place."""
    left = {(a.kind, a.key) for o in outcomes for a in o.undone}
    refusals = [f for o in outcomes for f in o.remaining.refusals]
    return frozenset(left.union(f.about for f in refusals if f.about))


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
    touched = [a for a in inputs.placed if a.veth in names and a.netns_alive]
    return frozenset(a.key for a in touched if a not in visited) - inputs.kernel.unreadable


def find_waiting(outcomes: Outcomes) -> dict[AttachmentKey, Issue]:
    """Why wanted intents are not served, by key."""
    apart = {
        key: Issue(error.subject, error.reason, str(error))
        for key, error in left_out(outcomes).items()
    }
    refusals = {r.subject: r for r in outcomes["attachment"].remaining.refusals}
    records = outcomes["attachment"].observed
    if not refusals or not isinstance(records, Records):
        return apart
    named = {i.key: refusals.get(intent_name(i.key, i.pod)) for i in records.intents}
    return apart | {key: refusal for key, refusal in named.items() if refusal}


IN_PODS = ("address", "neighbour", "route")
"""Domains that have objects in pods' namespaces beside links; each builds upon those before it."""


def find_occupied(
    attachments: Iterable[Attachment], outcomes: Outcomes
) -> dict[AttachmentKey, Issue]:
    """Name the pods in whose namespace another owner has something in the place of ours."""
    links = {f.about for f in outcomes["link"].remaining.refusals}
    others = {
        str(f.about[1][0]): f
        for name in reversed(IN_PODS)
        for f in outcomes[name].remaining.refusals
        if f.about and f.about[1] and f.about[1][0]
    }
    found: dict[AttachmentKey, Issue] = {}
    for a in attachments:
        intent = intent_name(a.key, a.pod)
        if (PodLink.kind, (a.netns, a.key.ifname)) in links:
            why = (
                f"{a.netns} has a link {a.key.ifname} of another owner; it is not ours to replace"
            )
            found[a.key] = Issue(intent, "InterfaceExists", why)
        elif other := others.get(a.netns):
            found[a.key] = Issue(intent, "ObjectExists", f"{other.subject}: {other.message}")
    return found


def find_unplaced(
    pods: Mapping[Attachment, Iterable[Keyed]],
    outcomes: Sequence[Outcome],
    unread: Mapping[AttachmentKey, str],
) -> dict[AttachmentKey, Issue]:
    """Say why attachments are not in place: by their own objects, and by what fails for every pod.

    Args:
        pods: each with the objects it has in the kernel.
        outcomes: of the kernel's domains.
        unread: why the namespaces of pods cannot be read.
    """
    for_all = [str(e) for o in outcomes for e in o.errors if not e.of_one_pod]
    found: dict[AttachmentKey, Issue] = {}
    for a, objects in pods.items():
        own = frozenset((o.kind, o.key) for o in objects)
        texts = [text for o in outcomes for text in _why_left(own, o)]
        if why := unread.get(a.key):
            texts.insert(0, f"its namespace {a.netns} cannot be read: {why}")
        if causes := list(dict.fromkeys((*for_all, *texts)))[:MOST_CAUSES]:
            name = intent_name(a.key, a.pod)
            found[a.key] = Issue(name, "NotSettled", "; ".join(causes))
    return found


def _why_left(own: frozenset[tuple[str, Key]], outcome: Outcome) -> Iterator[str]:
    """Say what is left to do of some objects, each with the error that it failed by."""
    errors = {e.action: e for e in outcome.errors if isinstance(e, ApplyError)}
    for action in outcome.undone:
        if (action.kind, action.key) in own:
            error = errors.get(str(action))
            yield str(error) if error else f"{action}: {action.reason}; not done yet"
    for refusal in outcome.remaining.refusals:
        if refusal.about in own:
            yield f"{refusal.subject}: {refusal.message}"


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
