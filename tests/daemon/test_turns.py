"""Pods that ask at once: each is answered with its part, in the order in which they came."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from builders import inputs, intent, key
from daemon.test_surprise import House

from reconciler.core.attachment import AttachmentKey
from reconciler.daemon.duty import Conditions
from reconciler.daemon.kernel_loop import BATCH
from reconciler.daemon.requests import Requests, in_parts
from reconciler.daemon.triggers import Triggers
from reconciler.engine.converge import Outcome
from reconciler.errors import Issue
from reconciler.ipam.records import Records
from reconciler.node.pass_result import PassResult

TAKEN = Issue("intent", "NetnsTaken", "another pod has its namespace")


def result_of(*keys: AttachmentKey, waiting: dict[AttachmentKey, Issue]) -> PassResult:
    """What a pass over some pods has found, of which none has got anything."""
    records = Records(tuple(intent(int(k.container_id.removeprefix("pod"))) for k in keys))
    outcomes = {"attachment": Outcome(observed=records)}
    asked = frozenset(keys)
    return PassResult(outcomes, 0.0, records, inputs(), waiting=waiting, asked=asked)


@pytest.fixture
def requests() -> Requests:
    return Requests(Triggers(), Conditions(), threading.Event())


def test_the_first_of_many_pods_does_not_wait_for_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(tmp_path)
    house.work()
    parts = house.agent.parts
    for _ in range(BATCH + 4):
        house.begin_pod()
    came = [*parts.requests.asked]
    told: list[tuple[tuple[AttachmentKey, ...], set[AttachmentKey]]] = []
    serve = parts.node.pods_pass

    def watch(keys: Any, **options: Any) -> PassResult:
        told.append((tuple(keys), {*parts.requests._looked}))
        return serve(keys, **options)

    monkeypatch.setattr(parts.node, "pods_pass", watch)
    house.agent.kernel.pods_pass()
    (first, _), (second, answered) = told
    assert [*first, *second] == came
    assert len(first) == BATCH
    assert answered == {*first}, "they were told before the second part was begun"
    assert {*parts.requests._looked} == {*came}


def test_what_a_pass_over_some_pods_finds_is_told_to_no_other(requests: Requests) -> None:
    requests._asked |= {key(1): 1.0, key(2): 1.0}
    requests.publish(result_of(key(1), waiting={key(1): TAKEN}), 2.0)
    assert requests._verdict(key(1), 1.0) == TAKEN
    assert requests._verdict(key(2), 1.0) is None, "no pass has come to it yet"
    requests.publish(result_of(key(2), waiting={}), 3.0)
    assert requests._verdict(key(1), 1.0) == TAKEN
    assert requests.reasons == ("NetnsTaken", "Pending")


def test_what_an_earlier_add_was_refused_for_refuses_no_later_one(requests: Requests) -> None:
    requests._asked |= {key(1): 1.0, key(2): 1.0}
    requests.publish(result_of(key(1), waiting={key(1): TAKEN}), 2.0)
    requests._asked[key(1)] = 4.0
    requests.publish(result_of(key(2), waiting={}), 5.0)
    assert requests._verdict(key(1), 4.0) is None


def test_those_that_wait_for_an_address_come_before_those_that_no_pass_has_come_to(
    requests: Requests,
) -> None:
    requests._asked |= {key(n): 1.0 for n in (9, 3, 7)}
    requests.publish(result_of(key(9), key(7), waiting={}), 2.0)
    requests._asked |= {key(n): 3.0 for n in (5, 1)}
    assert in_parts(requests.asked, 2) == [(key(9), key(7), key(3), key(5)), (key(1),)]
    requests._asked.clear()
    assert in_parts(requests.asked, 2) == [()]
