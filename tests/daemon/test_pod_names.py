"""Every condition, and what an ADD is told, names the pod, whatever of it has failed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from builders import intent
from daemon.test_surprise import House

from reconciler.core.attachment import veth_name
from reconciler.daemon.server import Question, answer
from reconciler.errors import ApplyError

PODS = range(1, 4)


def pod_name(number: int) -> str:
    return f"team/p{number}"


class Failing:
    """A target that applies nothing of what one kind of object asks for."""

    def __init__(self, target: Any, kind: str) -> None:
        self._apply, self._kind = target.apply, kind
        self.failed = 0
        target.apply = self.apply

    def apply(self, actions: Sequence[Any]) -> tuple[ApplyError, ...]:
        left = [a for a in actions if a.kind != self._kind]
        failed = [a for a in actions if a.kind == self._kind]
        self.failed += len(failed)
        errors = (ApplyError(str(a), "EPERM", "Operation not permitted") for a in failed)
        return (*self._apply(left), *errors)


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        *(("netlink", k) for k in ("veth", "pod-link", "address", "neighbour", "route")),
        ("nft", "nft-element"),
    ],
)
def test_what_fails_of_a_pods_objects_is_a_condition_that_names_the_pod(
    tmp_path: Path, target: str, kind: str
) -> None:
    house = House(tmp_path)
    house.work()
    failing = Failing(getattr(house, target), kind)
    for number in PODS:
        house.netlink.namespaces.add(f"/run/netns/pod{number}@{number}")
        house.state.put(intent(number, pod=pod_name(number)))
    house.work()
    assert failing.failed
    conditions = house.agent.parts.conditions.all()
    marks = marks_of(house)
    named = 0
    for each in conditions:
        text = f"{each['subject']}: {each['text']}"
        for number, words in marks.items():
            if any(word in text.split() for word in words):
                assert pod_name(number) in text, text
                named += 1
    assert named, conditions
    for number in PODS:
        told = ask(house, number)
        assert pod_name(number) in f"{told['msg']} {told['details']}", told


def marks_of(house: House) -> dict[int, set[str]]:
    """Return what texts call each pod by, beside its name."""
    bound = {r.key: r for (kind, _), r in house.state._records.items() if kind == "attachment"}
    marks = {}
    for number in PODS:
        key = intent(number).key
        addresses = bound[key].addresses if key in bound else ()
        marks[number] = {
            str(key),
            key.container_id,
            veth_name("nn", key),
            f"--net=/run/netns/pod{number}",
            *(text for a in addresses for text in (str(a), f"{a}/32")),
        }
    return marks


def ask(house: House, number: int) -> dict[str, Any]:
    key = intent(number).key
    body = {"do": "add", "containerID": key.container_id, "ifname": key.ifname}
    body |= {"pod": pod_name(number), "budgetSeconds": 0.000001}
    return answer(house.agent, Question.parse(json.dumps(body).encode()))


def test_an_add_that_no_pass_has_come_to_names_its_pod(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.work()
    told = ask(house, 1)
    assert told["details"].endswith(f"of pod {pod_name(1)}")
