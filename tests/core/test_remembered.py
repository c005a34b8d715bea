"""What pure functions remember between passes, and when they forget it."""

from __future__ import annotations

from reconciler.core.remembered import RememberedWhileAsked


def test_what_passes_ask_for_is_computed_once_and_forgotten_when_none_does() -> None:
    computed: list[int] = []

    def double(number: int) -> int:
        computed.append(number)
        return 2 * number

    remembered = RememberedWhileAsked(double)
    for _ in range(3):
        assert [remembered(number) for number in (1, 2, 1)] == [2, 4, 2]
        remembered.end_pass()
    assert computed == [1, 2]
    remembered(1)
    remembered.end_pass()
    remembered(1)
    remembered.end_pass()
    assert remembered(2) == 4
    assert computed == [1, 2, 2], "not asked for in a whole pass"


def test_arguments_that_are_equal_are_the_same() -> None:
    remembered = RememberedWhileAsked(lambda listed: object())
    assert remembered((1, 2)) is remembered((1, 2))
    assert remembered((1, 2)) is not remembered((1, 3))
