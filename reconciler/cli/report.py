"""Outcomes of domains, as text for people. As JSON: ``report_json``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import click

from reconciler.cli.screen import BOLD, DIM, GREEN, PIPE, RED, YELLOW, Screen
from reconciler.engine.converge import Outcome, actions_of
from reconciler.engine.plan import Action, Verb
from reconciler.errors import InternalError, Issue

Outcomes = Mapping[str, Outcome]


def as_text(outcomes: Outcomes, screen: Screen = PIPE, *, remaining: bool = False) -> str:
    """Return actions (or what remains of them), refusals and errors; nothing if all is in sync.

    In a pipe each is one line, for programs and ``grep``. On a terminal they are grouped by
    domain, coloured, and wrapped between words.
    """
    lines: list[str] = []
    for domain, outcome in outcomes.items():
        actions = (outcome.remaining if remaining else outcome.plan).actions
        if screen.width and actions:
            lines += [*([""] if lines else []), *_head(screen, domain, actions)]
        for action in actions:
            lines += _entry(screen, action) if screen.width else [action_line(action)]
    wrong = [f"! {refusal}" for o in outcomes.values() for refusal in o.remaining.refusals]
    wrong += [f"? {domain}: {error}" for domain, o in outcomes.items() for error in o.errors]
    if screen.width and wrong and lines:
        lines.append("")
    for text in wrong:
        style = RED if text.startswith("?") else YELLOW
        lines += (screen.paint(line, **style) for line in screen.wrap(text, rest="  "))
    return "".join(f"{line}\n" for line in lines)


COLOURS = {Verb.CREATE: GREEN, Verb.UPDATE: YELLOW, Verb.DELETE: RED}


def _head(screen: Screen, domain: str, actions: Sequence[Action]) -> Iterator[str]:
    counts = Counter(a.verb for a in actions)
    words = ((Verb.CREATE, "to add"), (Verb.UPDATE, "to change"), (Verb.DELETE, "to delete"))
    said = ", ".join(f"{counts[verb]} {word}" for verb, word in words if counts[verb])
    yield screen.paint(f"{domain}: {said}", **BOLD)


def _entry(screen: Screen, action: Action) -> Iterator[str]:
    """Yield an action as a terminal shows it: the command, and below it why, and what it costs.

    That something is added because it is missing goes without saying.
    """
    for line in screen.wrap(f"{action}", f"  {action.verb} ", "      "):
        yield screen.paint(line, **COLOURS[action.verb])
    why = f"{action.reason}{_cost(action)}"
    for line in screen.wrap(why, "    # ", "      ") if why != "missing" else ():
        yield screen.paint(line, **DIM)


def findings_json(findings: Iterable[Issue]) -> str:
    """Return findings as one JSON object."""
    return json.dumps({"findings": [issue_fields(f) for f in findings]}, indent=2) + "\n"


def issue_fields(issue: Issue) -> dict[str, Any]:
    """Return an issue as JSON has it."""
    return {name: getattr(issue, name) for name in ("subject", "reason", "message")}


def action_line(action: Action) -> str:
    """``+ rule   ip rule add ...   # missing``, with the EC2 calls it costs."""
    return f"{action.verb} {action.kind:<11} {action}  # {action.reason}{_cost(action)}"


def _cost(action: Action) -> str:
    return f" [EC2: {', '.join(action.calls)}]" if action.calls else ""


def applied(outcomes: Outcomes) -> Iterator[str]:
    """What was done: planned in a round, and not in the last one."""
    for outcome in outcomes.values():
        yield from map(action_line, done(outcome))


def done(outcome: Outcome) -> list[Action]:
    """Return what a domain has done: what it planned first, and does not plan any more."""
    left = {str(a) for a in outcome.remaining.actions}
    return [a for a in outcome.plan.actions if str(a) not in left]


def summary(outcomes: Outcomes) -> str:
    """Count, as terraform does; empty when there is nothing to count."""
    verbs = Counter(action.verb for _, action in actions_of(outcomes))
    if not verbs:
        return ""
    calls = calls_of(outcomes)
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


def refused(outcomes: Outcomes) -> str:
    """Say how much is refused; "" if nothing is."""
    number = sum(len(o.remaining.refusals) for o in outcomes.values())
    return f"{number} refused: wanted, and not done (the lines with !)" if number else ""


def exit_code(outcomes: Outcomes, *, remaining: bool = False, strict: bool = True) -> int:
    """0 in sync, 1 something differs, 2 something could not be read or done.

    What is refused differs if that is ``strict``.
    """
    if any(o.errors for o in outcomes.values()):
        return 2
    plans = [o.remaining if remaining else o.plan for o in outcomes.values()]
    return 1 if any(p.actions or (strict and p.refusals) for p in plans) else 0


def calls_of(outcomes: Outcomes) -> Counter[str]:
    """Count the EC2 calls that are planned, by action."""
    return Counter(call for _, action in actions_of(outcomes) for call in action.calls)


def show_tracebacks(outcomes: Outcomes) -> None:
    """Print the traceback of each unexpected exception, as the daemon logs it."""
    errors = [e for o in outcomes.values() for e in o.errors]
    for trace in dict.fromkeys(e.trace for e in errors if isinstance(e, InternalError)):
        click.echo(trace, err=True)
