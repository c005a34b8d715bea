"""Outcomes of domains, as text for people and as JSON for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import click

from reconciler.engine.converge import Outcome, actions_of
from reconciler.engine.plan import Action, Verb
from reconciler.errors import InternalError, Issue

Outcomes = Mapping[str, Outcome]


def as_text(outcomes: Outcomes, *, remaining: bool = False) -> str:
    """One line an action (or what remains of them) or refusal; nothing when all is in sync."""
    lines = [
        action_line(action)
        for outcome in outcomes.values()
        for action in (outcome.remaining if remaining else outcome.plan).actions
    ]
    lines += [f"! {refusal}" for o in outcomes.values() for refusal in o.remaining.refusals]
    lines += [f"? {domain}: {error}" for domain, o in outcomes.items() for error in o.errors]
    return "".join(f"{line}\n" for line in lines)


def as_json(outcomes: Outcomes, findings: Iterable[Issue] = ()) -> str:
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
            {"domain": domain, **_issue(refusal)}
            for domain, outcome in outcomes.items()
            for refusal in outcome.remaining.refusals
        ],
        "errors": [
            {"domain": domain, "error": type(e).__name__, "message": str(e)}
            for domain, outcome in outcomes.items()
            for e in outcome.errors
        ],
        "findings": [_issue(finding) for finding in findings],
        "foreign": [
            {"kind": f.kind, "key": list(f.key), "command": f.command(Verb.DELETE)}
            for outcome in outcomes.values()
            for f in outcome.remaining.foreign
        ],
        "calls": dict(_calls(outcomes)),
    }
    return json.dumps(body, indent=2) + "\n"


def findings_json(findings: Iterable[Issue]) -> str:
    """Return findings as one JSON object."""
    return json.dumps({"findings": [_issue(f) for f in findings]}, indent=2) + "\n"


def _issue(issue: Issue) -> dict[str, Any]:
    return {name: getattr(issue, name) for name in ("subject", "reason", "message")}


def action_line(action: Action) -> str:
    """``+ rule   ip rule add ...   # missing``, with the EC2 calls it costs."""
    calls = f" [EC2: {', '.join(action.calls)}]" if action.calls else ""
    return f"{action.verb} {action.kind:<11} {action}  # {action.reason}{calls}"


def applied(outcomes: Outcomes) -> Iterator[str]:
    """What was done: in the first plan, and not in the last one."""
    for outcome in outcomes.values():
        left = {str(a) for a in outcome.remaining.actions}
        yield from (action_line(a) for a in outcome.plan.actions if str(a) not in left)


def summary(outcomes: Outcomes) -> str:
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


def foreign(outcomes: Outcomes) -> Iterator[str]:
    """Name foreign objects, a line each."""
    for obj in (obj for o in outcomes.values() for obj in o.remaining.foreign):
        # The command that would delete it identifies it.
        yield f"= {obj.kind:<13} {obj.command(Verb.DELETE)}  # foreign: not touched"


def finding_lines(findings: Iterable[Issue]) -> Iterator[str]:
    """Yield findings as lines for people, the reason first."""
    return (f"! {f.reason}: {f.subject}: {f.message}" for f in findings)


def findings(outcomes: Outcomes) -> Iterator[Issue]:
    """Findings about foreign objects."""
    return (f for o in outcomes.values() for f in o.remaining.findings)


def exit_code(outcomes: Outcomes, *, remaining: bool = False) -> int:
    """0 in sync, 1 something differs or is refused, 2 something could not be read or done."""
    if any(o.errors for o in outcomes.values()):
        return 2
    plans = [o.remaining if remaining else o.plan for o in outcomes.values()]
    return 1 if any(plans) else 0


def _calls(outcomes: Outcomes) -> Counter[str]:
    return Counter(call for _, action in actions_of(outcomes) for call in action.calls)


def show_tracebacks(outcomes: Outcomes) -> None:
    """Print the traceback of each unexpected exception, as the daemon logs it."""
    errors = [e for o in outcomes.values() for e in o.errors]
    for trace in dict.fromkeys(e.trace for e in errors if isinstance(e, InternalError)):
        click.echo(trace, err=True)
