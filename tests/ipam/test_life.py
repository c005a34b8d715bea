"""An attachment's life: every row of the table is reached, and nothing happens beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from builders import attachment, inputs, intent

from reconciler.core.attachment import Attachment, Intent, IntentState
from reconciler.domains import attachment as domain
from reconciler.domains.inputs import Predecessor
from reconciler.engine.plan import Change, Plan, Verb
from reconciler.ipam.life import LIFE, Cause, Event, State, Transition, pods_of
from reconciler.ipam.records import Records, SetAside

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"

POD = attachment(1, 1)
KEY = POD.key
ASKED = intent(1)
LATER = replace(ASKED, netns=f"{ASKED.netns}-again")
TORN = SetAside("unreadable/attachments/x", 0.0, frozenset(attachment(2, 2).addresses), KEY)


def state(records: Records) -> State:
    return next((s for s, pods in pods_of(records).items() if pods), State.NONE)


def starts() -> Iterator[Records]:
    """Everything that may be recorded of one attachment."""
    intents = [(), (ASKED,), (LATER,), (replace(ASKED, state=IntentState.RELEASED),)]
    bound = [(), (POD,), (replace(POD, unfinished=True),)]
    for i, a, torn in product(intents, bound, [(), (TORN,)]):
        yield Records(intents=i, attachments=a, set_aside=torn)


def rows(before: State, after: State, *causes: Cause) -> list[Transition]:
    return [t for t in LIFE if before in t.before and after in t.after and t.cause in causes]


def applied(plan: Plan, records: Records) -> Records:
    """What is on disk after a plan."""
    kinds = {"intent": "intents", "attachment": "attachments", "unreadable-record": "set_aside"}
    for action in plan.actions:
        assert isinstance(action, Change)
        if (field := kinds.get(action.kind)) is None:
            continue
        others = tuple(o for o in getattr(records, field) if o.key != action.key)
        made = () if action.verb is Verb.DELETE else (action.object,)
        records = replace(records, **{field: (*others, *made)})
    return records


def written(plan: Plan) -> list[str]:
    """Verbs and kinds; a first intent is written like any other."""
    words = [f"{a.verb}{a.kind}".replace("+intent", "~intent") for a in plan.actions]
    return list(dict.fromkeys(words))


def facts() -> Iterator[dict[str, Any]]:
    """What a pass may have seen of the kernel, and does not contradict itself."""
    mine = frozenset({KEY})
    for linked, finished, clear, dead, adopted, free in product([False, True], repeat=6):
        if (finished and not linked) or (clear and linked) or (dead and (linked or adopted)):
            continue
        unfinished = replace(POD, unfinished=True)
        yield {
            "linked": mine if linked else frozenset(),
            "finished": mine if finished else frozenset(),
            "clear": mine if clear else frozenset(),
            "dead": mine if dead else frozenset(),
            "predecessor": Predecessor(adoptions=((unfinished, ASKED),) if adopted else ()),
            "enis": inputs(1).enis if free else (),
        }


def test_a_pass_makes_the_transitions_of_the_table_and_no_other() -> None:
    reached: dict[tuple[State, Event, State], set[str]] = {}
    for records, seen in product(starts(), facts()):
        if seen["dead"]:
            records = replace(
                records,
                intents=tuple(replace(i, netns_alive=False) for i in records.intents),
                attachments=tuple(replace(a, netns_alive=False) for a in records.attachments),
            )
        released = any(i.state is IntentState.RELEASED for i in records.intents)
        adopted = bool(seen["predecessor"].adoptions)
        if adopted and (released or records.attachments):
            continue  # a take-over leaves them out (tests/migration/test_takeover.py)
        before = state(records)
        plan = domain.plan(domain.desire(inputs(1, **{"now": 100.0} | seen)), records)
        after = state(applied(plan, records))
        if before is after:
            continue
        found = rows(before, after, Cause.MIGRATION if adopted else Cause.PASS)
        assert len(found) == 1, (before, after, [str(a) for a in plan.actions])
        (row,) = found
        words = iter(row.writes.split())
        assert all(word in words for word in written(plan)), (row, written(plan))
        reached.setdefault((before, row.event, after), set()).update(written(plan))
    for row in (t for t in LIFE if t.cause in {Cause.PASS, Cause.MIGRATION}):
        did = [reached.get((b, row.event, a)) for b, a in product(row.before, row.after)]
        assert None not in did, row
        assert set(row.writes.split()) == set().union(*(d for d in did if d)), row


def test_the_runtime_makes_the_transitions_of_the_table_and_no_other() -> None:
    reached = set()
    for records, asked in product(starts(), (ASKED, LATER, None)):
        before = state(records)
        held: tuple[Attachment, ...] = records.attachments
        if asked is None:
            event = Event.DEL
            wish = Intent(KEY, IntentState.RELEASED, ASKED.netns)
        else:
            event = Event.ADD_LATER if held and asked is LATER else Event.ADD
            wish = asked
        after = state(replace(records, intents=(wish,)))
        if before is after:
            continue
        events = {t.event for t in rows(before, after, Cause.RUNTIME)}
        assert event in events, (before, event, after)
        reached.add((before, event, after))
    assert reached == pairs(Cause.RUNTIME)


def test_lost_records_make_the_transitions_of_the_table_and_no_other() -> None:
    reached = set()
    for records in starts():
        before = state(records)
        if records.attachments:
            event = Event.TEAR
            after = state(replace(records, attachments=(), set_aside=(TORN,)))
        else:
            event = Event.REBUILD
            asked = records.intents[0] if records.intents else ASKED
            after = state(records.joined([replace(POD, netns=asked.netns)]))
        if before is after:
            continue
        assert event in {t.event for t in rows(before, after, Cause.LOSS)}, (before, after)
        reached.add((before, event, after))
    assert reached == pairs(Cause.LOSS)


def pairs(cause: Cause) -> set[tuple[State, Event, State]]:
    return {
        (before, t.event, after)
        for t in LIFE
        if t.cause is cause
        for before, after in product(t.before, t.after)
    }


def test_an_address_is_witnessed_until_nothing_of_it_is_left() -> None:
    """No row removes an attachment's record before its cooldown is written."""
    for row in LIFE:
        words = row.writes.split()
        if "-attachment" in words:
            assert words.index("+cooling") < words.index("-attachment"), row
            assert "-intent" not in words or words[-1] == "-intent", row


def test_the_page_shows_the_table() -> None:
    page = PAGE.read_text()
    for t in LIFE:
        before, after = (", ".join(states) for states in (t.before, t.after))
        writes = f"`{t.writes}`" if t.writes else "-"
        line = f"| {before} | {t.event} | {t.cause} | {after} | {writes} |"
        assert line in page, line
