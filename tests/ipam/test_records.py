"""Records as a value."""

from __future__ import annotations

from dataclasses import replace

from builders import attachment, intent, key
from hypothesis import given
from hypothesis import strategies as st

from reconciler.ipam.records import BY_KEY, Records

numbers = st.sets(st.integers(0, 30), max_size=12)


@given(intents=numbers, bound=numbers, asked=numbers)
def test_what_is_among_keys_is_all_of_them_and_nothing_else(
    intents: set[int], bound: set[int], asked: set[int]
) -> None:
    records = Records(
        intents=tuple(sorted(map(intent, intents), key=BY_KEY)),
        attachments=tuple(sorted(map(attachment, bound), key=BY_KEY)),
    )
    keys = frozenset(map(key, asked))
    found = records.among(keys)
    assert found.intents == tuple(i for i in records.intents if i.key in keys)
    assert found.attachments == tuple(a for a in records.attachments if a.key in keys)
    assert found.released == records.released & keys


def test_records_that_are_only_equal_are_not_taken_for_the_same() -> None:
    one = Records(intents=(intent(1),), attachments=(attachment(1), attachment(2)))
    assert one.is_like(replace(one))
    changed = replace(attachment(2), netns_alive=False)
    assert changed == attachment(2), "that its namespace has gone is on no disk"
    assert not one.is_like(replace(one, attachments=(one.attachments[0], changed)))
    assert not one.is_like(replace(one, attachments=one.attachments[:1]))
    assert not one.is_like(replace(one, unwritten=frozenset({("attachment", key(1))})))
