"""Records as a value."""

from __future__ import annotations

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
