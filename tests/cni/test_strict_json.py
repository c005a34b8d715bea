"""What the executable takes for JSON, beside what ``json`` does; and what it writes."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cni import strict_json

PARTS = ["{", "}", "[", "]", ":", ",", '"', "\\", "/", " ", "\t", "\n", "-", "+", ".", "e", "E"]
PARTS += ["0", "1", "20", "u", "00e9", "d83d", "dE00", "true", "false", "null", "NaN", "Infinity"]
PARTS += ["\0", "\x1f", "\x7f", "\xa0", "\u0660", "\u2028", "\ufeff", "\ud800", "𝄞", '"a":', "\\u"]

values: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec=None)), inner),
    max_leaves=12,
)


def known(text: str) -> str:
    """What ``json`` makes of a text, where RFC 8259 allows it; as text, in which types show."""

    def refuse(word: str) -> float:
        raise ValueError(word)

    def finite(word: str) -> float:
        return float(word) if math.isfinite(float(word)) else refuse(word)

    try:
        return repr(json.loads(text, parse_constant=refuse, parse_float=finite))
    except ValueError:
        return "refused"


def ours(text: str) -> str:
    try:
        return repr(strict_json.read(text))
    except ValueError:
        return "refused"


@settings(max_examples=400)
@given(st.lists(st.sampled_from(PARTS), max_size=12).map("".join))
@example("")
@example("1 2")
@example("[1,]")
@example('{"a":1,}')
@example('{"a" 1}')
@example("{1: 2}")
@example("{'a': 1}")
@example('{"a": 1, "a": [2], "a": 3}')
@example("[01]")
@example("[-]")
@example("[-0, -0.0, 1.5E+2, 1e-2]")
@example("[1.]")
@example("[.5]")
@example("[1e]")
@example("[+1]")
@example("[1_0]")
@example("[\u0661]")
@example("1e999")
@example("-Infinity")
@example('"\\ud834\\udd1e \\ud834 \\udd1e \\ud834\\u0041"')
@example('"\\ud834\\u+dd1"')
@example('"\\x41"')
@example('"\\u00e"')
@example('"\\u 0e9"')
@example('"a\nb"')
@example('"a\x7fb\u2028"')
@example('"\\"')
@example('"\\\\" ')
@example("\ufeff{}")
@example("\xa0{}")
@example("tru")
@example("True")
@example("nullnull")
@example("// no\n1")
@example("9" * 4300)
@example("9" * 4301)
def test_it_refuses_what_json_refuses_and_takes_the_rest_for_the_same(text: str) -> None:
    assert ours(text) == known(text)


@settings(max_examples=80)
@given(values, st.booleans(), st.none() | st.integers(0, 3))
def test_what_it_writes_is_what_json_writes_and_it_reads_all_ways(
    value: Any, is_ascii: bool, indent: int | None
) -> None:
    assert strict_json.write(value) == json.dumps(value)
    text = json.dumps(value, ensure_ascii=is_ascii, indent=indent)
    assert ours(text) == repr(value)


@settings(max_examples=100)
@given(values, st.data())
def test_a_text_that_was_cut_or_altered_is_judged_as_by_json(value: Any, data: Any) -> None:
    text = json.dumps(value)
    at = data.draw(st.integers(0, len(text)))
    for altered in (text[:at], text[:at] + data.draw(st.sampled_from(PARTS)) + text[at + 1 :]):
        assert ours(altered) == known(altered)


def test_depth_is_bounded_both_ways() -> None:
    deep: Any = []
    for _ in range(strict_json.MAX_DEPTH - 1):
        deep = [deep] if len(repr(deep)) % 4 else {"a": deep}
    text = json.dumps(deep)
    assert strict_json.write(strict_json.read(text)) == text
    for more in (f"[{text}]", f'{{"a": {text}}}', "[" * 2_000_000, '{"a":' * 500_000):
        with pytest.raises(ValueError, match="deeper than 300"):
            strict_json.read(more)
    with pytest.raises(ValueError, match="deeper than 300"):
        strict_json.write([deep])


@pytest.mark.parametrize("value", [math.nan, math.inf, [-math.inf]])
def test_a_number_that_is_none_is_not_written(value: Any) -> None:
    with pytest.raises(ValueError, match="not finite"):
        strict_json.write(value)


@pytest.mark.parametrize("value", [{1, 2}, b"a", {"a": object()}])
def test_what_json_has_no_word_for_is_not_written(value: Any) -> None:
    with pytest.raises(TypeError):
        strict_json.write(value)


@pytest.mark.parametrize(
    ("text", "where"),
    [("", "line 1 column 1 (char 0)"), ('{\n "a": 1,\n}', "line 3 column 1 (char 11)")],
)
def test_a_refusal_says_where(text: str, where: str) -> None:
    with pytest.raises(ValueError, match="expected") as refusal:
        strict_json.read(text)
    assert where in str(refusal.value)
