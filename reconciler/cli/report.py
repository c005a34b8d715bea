"""Outcomes of domains, as text for people and as JSON for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from reconciler.engine.converge import Outcome, actions_of
from reconciler.engine.issue import Issue
from reconciler.engine.plan import Action, Keyed, Verb


def as_text(outcomes: Mapping[str, Outcome]) -> str:
    """One line an action or refusal; nothing when all is in sync."""
    lines = [action_line(action) for _, action in actions_of(outcomes)]
    return _joined(lines + list(_refusals(outcomes)) + list(_errors(outcomes)))


def remaining_text(outcomes: Mapping[str, Outcome]) -> str:
    """As ``as_text``, for what is left after applying."""
    lines = [action_line(a) for o in outcomes.values() for a in o.remaining.actions]
    return _joined(lines + list(_refusals(outcomes)) + list(_errors(outcomes)))


def as_json(outcomes: Mapping[str, Outcome], findings: Iterable[Issue] = ()) -> str:
    """Return the same as one JSON object (actions, refusals, errors, findings, foreign, calls)."""
    body = {
        "actions": [
            {
                "domain": domain,
                "verb": action.verb.name.lower(),
                "kind": action.kind,
                "key": list(action.key),
                "command": str(action),
                "reason": action.reason,
                "calls": list(action.calls),
            }
            for domain, action in actions_of(outcomes)
        ],
        "refusals": [
            {"domain": d, "subject": r.subject, "reason": r.reason, "message": r.message}
            for d, o in outcomes.items()
            for r in o.remaining.refusals
        ],
        "errors": [
            {"domain": d, "error": type(e).__name__, "message": str(e)}
            for d, o in outcomes.items()
            for e in o.errors
        ],
        "findings": _findings(findings),
        "foreign": [
            {"kind": f.kind, "key": list(f.key), "command": f.command(Verb.DELETE)}
            for f in _foreign(outcomes)
        ],
        "calls": dict(_calls(outcomes)),
    }
    return json.dumps(body, indent=2) + "\n"


def findings_json(findings: Iterable[Issue]) -> str:
    """Return findings as one JSON object."""
    return json.dumps({"findings": _findings(findings)}, indent=2) + "\n"


def _findings(findings: Iterable[Issue]) -> list[dict[str, str]]:
    return [{"subject": f.subject, "reason": f.reason, "message": f.message} for f in findings]


def action_line(action: Action) -> str:
    """``+ rule   ip rule add ...   # missing``, with the EC2 calls it costs."""
    calls = f" [EC2: {', '.join(action.calls)}]" if action.calls else ""
    return f"{action.verb} {action.kind:<11} {action}  # {action.reason}{calls}"


def applied(outcomes: Mapping[str, Outcome]) -> Iterator[str]:
    """What was done: in the first plan, and not in the last one."""
    for outcome in outcomes.values():
        left = {str(a) for a in outcome.remaining.actions}
        for action in outcome.plan.actions:
            if str(action) not in left:
                yield action_line(action)


def summary(outcomes: Mapping[str, Outcome]) -> str:
    """Count, as terraform does; empty when there is nothing to count."""
    verbs = Counter(action.verb for _, action in actions_of(outcomes))
    if not verbs:
        return ""
    calls = _calls(outcomes)
    cost = ", ".join(f"{count} {name}" for name, count in sorted(calls.items())) or "none"
    more = "; what new ENIs need on the node follows" if "CreateNetworkInterface" in calls else ""
    return (
        f"{verbs[Verb.CREATE]} to add, {verbs[Verb.UPDATE]} to change, "
        f"{verbs[Verb.DELETE]} to delete; EC2 calls: {cost}{more}"
    )


def foreign(outcomes: Mapping[str, Outcome]) -> Iterator[str]:
    """Name foreign objects, a line each."""
    for obj in _foreign(outcomes):
        # The command that would delete it identifies it.
        yield f"= {obj.kind:<13} {obj.command(Verb.DELETE)}  # foreign: not touched"


def finding_line(finding: Issue) -> str:
    """Return a finding as a line for people, its reason first."""
    return f"{finding.reason}: {finding.subject}: {finding.message}"


def findings(outcomes: Mapping[str, Outcome]) -> Iterator[Issue]:
    """Findings about foreign objects."""
    return (f for o in outcomes.values() for f in o.remaining.findings)


def exit_code(outcomes: Mapping[str, Outcome], *, remaining: bool = False) -> int:
    """0 in sync, 1 something differs or is refused, 2 something could not be read or done."""
    if any(o.errors for o in outcomes.values()):
        return 2
    plans = [o.remaining if remaining else o.plan for o in outcomes.values()]
    return 1 if any(plans) else 0


def _refusals(outcomes: Mapping[str, Outcome]) -> Iterator[str]:
    for outcome in outcomes.values():
        for refusal in outcome.remaining.refusals:
            yield f"! {refusal}"


def _errors(outcomes: Mapping[str, Outcome]) -> Iterator[str]:
    for domain, outcome in outcomes.items():
        for error in outcome.errors:
            yield f"? {domain}: {error}"


def _foreign(outcomes: Mapping[str, Outcome]) -> Iterator[Keyed]:
    return (obj for o in outcomes.values() for obj in o.remaining.foreign)


def _calls(outcomes: Mapping[str, Outcome]) -> Counter[str]:
    return Counter(call for _, action in actions_of(outcomes) for call in action.calls)


def _joined(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
