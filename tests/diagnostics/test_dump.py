"""A dump for maintainers: its bounds, what is replaced in it, and its index."""

from __future__ import annotations

import time

import pytest

from reconciler.diagnostics import dump
from reconciler.diagnostics.dump import Part, prepare, redact


@pytest.mark.parametrize(
    "secret",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9",
        "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        "hunter2hunter2",
    ],
)
def test_what_looks_like_a_credential_is_replaced_wherever_it_stands(secret: str) -> None:
    forms = (
        "AWS_SECRET_ACCESS_KEY={}",
        '"SecretAccessKey": "{}"',
        "Authorization: Bearer {}",
        "password = {}",
        "aws_session_token: '{}'",
    )
    for form in forms:
        said = redact(f"before {form.format(secret)} after")
        assert secret not in said, form
        assert said.startswith("before ")
        assert said.endswith(" after")


@pytest.mark.parametrize(
    "secret",
    ["AKIAIOSFODNN7EXAMPLE", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4"],
)
def test_what_is_known_by_its_form_needs_no_name(secret: str) -> None:
    assert redact(f"signed {secret} here") == f"signed {dump.REPLACED} here"


def test_ordinary_words_stay() -> None:
    text = '{"token": "nn-1", "reason": "UnauthorizedOperation", "pod": "default/secret-keeper-0"}'
    assert redact(text) == text


def test_the_index_says_what_is_in_it_what_is_not_and_why() -> None:
    index, *kept = prepare([Part("a.txt", "abc"), Part("b.json", why="no reconciler answers")])
    assert [p.name for p in kept] == ["a.txt"]
    assert "a.txt                3 bytes" in index.text
    assert "b.json               not in it: no reconciler answers" in index.text
    assert all(text in index.text for text in dump.LEFT_OUT)


def test_parts_and_all_of_them_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dump, "MOST_OF_ONE", size := 1000)
    monkeypatch.setattr(dump, "MOST_IN_ALL", 6 * size)
    index, *kept = prepare(Part(f"{n}.txt", "x" * (size + 10)) for n in range(8))
    assert [len(p.text) for p in kept] == [size] * (dump.MOST_IN_ALL // size)
    assert f"0.txt                {size} bytes, cut: there is more" in index.text
    assert "7.txt                not in it: the dump is full" in index.text
    many = (Part(f"{n}.txt", "x") for n in range(10_000))
    assert len(prepare(many)) == dump.MOST_PARTS + 1


def test_the_index_has_the_sizes_of_what_is_kept_and_how_much_was_replaced() -> None:
    key, plain = "AKIAIOSFODNN7EXAMPLE", "x" * 100
    parts = [Part("a.txt", f"{plain} {key} {key}\n"), Part("b.txt", "é" * 10)]
    index, *kept = prepare(parts)
    sizes = {p.name: len(p.text.encode()) for p in kept}
    assert f"a.txt                {sizes['a.txt']} bytes, 2 left out\n" in index.text
    assert f"b.txt                {sizes['b.txt']} bytes\n" in index.text
    assert sizes["a.txt"] < len(parts[0].text)


@pytest.mark.parametrize("before", [0, 5, 12, 19])
def test_a_credential_where_a_part_is_cut_is_replaced_as_well(
    monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """Half of one is not known by its form any more."""
    monkeypatch.setattr(dump, "MOST_OF_ONE", most := 1000)
    text = "x" * (most - before - 1) + " AKIAIOSFODNN7EXAMPLE " + "y" * 20_000
    _, kept = prepare([Part("a.txt", text)])
    assert len(kept.text) <= most
    assert "AKIA" not in kept.text


def test_what_is_replaced_by_more_does_not_exceed_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dump, "MOST_OF_ONE", most := 1000)
    _, kept = prepare([Part("a.txt", " password=abcd" * 71)])
    assert len(kept.text) <= most
    assert "abcd" not in kept.text


@pytest.mark.parametrize("word", ["secret", "eyJ-", "password ", "bearer ", "x" * 40 + " "])
def test_a_text_that_looks_like_secrets_all_over_is_read_once(word: str) -> None:
    """Process time, not the clock's: others may be busy on this machine."""
    began = time.process_time()
    redact(word * (40_000 // len(word)))
    assert time.process_time() - began < 1.0
