"""What one thread counts or keeps, and another one takes; at every point of both."""

from __future__ import annotations

from typing import Any

from baton import Lock, expose
from daemon.test_threads import Point, Scene, walk, without_it_fails

from reconciler.daemon.cluster import Refusals
from reconciler.daemon.ledger import Notifications
from reconciler.errors import Issue
from reconciler.ipam.budget import Bucket
from reconciler.targets.ec2.tally import Tally


@without_it_fails
def test_calls_of_two_threads_are_all_counted(kind: type[Lock]) -> None:
    def scene(point: Point) -> Scene:
        class Slow(dict[str, Any]):
            def get(self, *arguments: Any) -> Any:
                found = super().get(*arguments)
                point()
                return found

        tally = Tally()
        tally._calls = Slow()
        tally._lock = lock = kind()  # type: ignore[assignment]

        def note() -> None:
            tally.note("X", "ok", Bucket(1.0, 0.0))

        def check() -> None:
            assert tally.all()["X"].outcomes == {"ok": 2}

        return Scene(note, note, check, (lock,))

    assert walk(scene) > 1


@without_it_fails
def test_what_is_heard_while_the_loop_forgets_what_it_has_weighed_stays(kind: type[Lock]) -> None:
    def scene(point: Point) -> Scene:
        heard = Notifications()
        heard._lock = lock = kind()  # type: ignore[assignment]
        heard.begin()
        heard.hear(b"first")
        told = heard.told()
        assert told == (b"first",)
        expose(heard, point, "_told", "_size")

        def check() -> None:
            assert heard.told() == (b"second",)
            assert heard._size == len(b"second")

        return Scene(lambda: heard.forget(told), lambda: heard.hear(b"second"), check, (lock,))

    assert walk(scene) > 3


@without_it_fails
def test_an_add_that_is_refused_while_refusals_are_told_is_told_once(kind: type[Lock]) -> None:
    def scene(point: Point) -> Scene:
        refusals = Refusals(lambda: 1.0)
        refusals._lock = lock = kind()  # type: ignore[assignment]

        def refuse() -> None:
            refusals.note("n/p", "u", Issue("x", "PoolExhausted", "none is free"))

        refuse()
        expose(refusals, point, "_events")
        told: list[int] = []

        def take() -> None:
            told.extend(e.count for e in refusals.take())

        def check() -> None:
            take()
            assert sum(told) == 2

        return Scene(take, refuse, check, (lock,))

    assert walk(scene) > 3
