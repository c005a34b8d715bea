"""What a pass needs is computed or read once, and handed on."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from builders import SUBNET, eni, intent, key, node
from fake_cloud import FakeEc2
from fakes import FakeState
from node.test_passes import Simulation

from reconciler.core.attachment import AttachmentKey, IntentState
from reconciler.daemon import document
from reconciler.domains import address, attachment, link, nat, neighbour, route, sysctl
from reconciler.domains.address import LinkAddress
from reconciler.errors import ApplyError, ConflictError
from reconciler.ipam.cloud import Limits
from reconciler.ipam.pool import Demand
from reconciler.node import kernel_domains
from reconciler.node.gathering import Known
from schemas.apart import Here
from schemas.document import NodeNetwork
from schemas.problem import DocumentError, Problem

OF_PODS = (link, sysctl, address, neighbour, route, nat)

DOCUMENT = "apiVersion: node-network/v1alpha1\nkind: NodeNetwork\n"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each domain of pods has computed what it desires."""
    counted: Counter[str] = Counter()

    def counting(name: str, desire: Any) -> Any:
        def count(inputs: Any) -> Any:
            counted[name] += 1
            return desire(inputs)

        return count

    monkeypatch.setattr(attachment, "desire", counting("attachment", attachment.desire))
    for module in OF_PODS:
        name = "desire" if module is neighbour else "desire_pods"
        monkeypatch.setattr(module, name, counting(module.__name__, getattr(module, name)))
    return counted


def test_a_pods_objects_are_what_the_domains_of_pods_desire() -> None:
    sim = Simulation()
    sim.turn()
    sim.start_pod(1)
    inputs = sim.node.pods_pass(frozenset({intent(1).key})).inputs
    desired = frozenset[object]().union(*(d.objects(inputs) for d in sim.node.domains.of_pods()))
    assert len(desired) > 5
    assert desired == kernel_domains.pod_objects(inputs)


def test_an_add_computes_once_what_each_domain_desires(calls: Counter[str]) -> None:
    sim = Simulation()
    sim.turn()
    sim.start_pod(1)
    key: AttachmentKey = intent(1).key
    calls.clear()
    result = sim.node.pods_pass(frozenset({key}))
    assert result.done.keys() == {key}
    assert calls.pop("attachment") == 2, "to bind it, and to record it as finished"
    assert calls == {module.__name__: 1 for module in OF_PODS}


def test_a_pass_computes_once_what_each_pod_that_lacks_something_desires(
    calls: Counter[str],
) -> None:
    """Beside what it computes for all: whether a pod leaves, and whether it is in place."""
    sim = Simulation()
    sim.turn()
    for number in (1, 2):
        sim.start_pod(number)
    keys = frozenset({intent(1).key, intent(2).key})
    apply = sim.netlink.apply

    def refuse_addresses(actions: Any) -> Any:
        refused = [a for a in actions if a.kind == LinkAddress.kind]
        failures = apply([a for a in actions if a not in refused])
        return (*failures, *(ApplyError(str(a), "EIO", "") for a in refused))

    sim.netlink.apply = refuse_addresses  # type: ignore[method-assign]
    calls.clear()
    result = sim.node.pods_pass(keys)
    assert not result.settled
    assert not result.done
    del calls["attachment"]
    assert calls == {module.__name__: 1 + len(keys) for module in OF_PODS}


def test_an_idle_pool_pass_reads_records_and_routes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sim = Simulation()
    sim.turn()
    sim.turn(1.0)
    reads: Counter[str] = Counter()

    def count(name: str, read: Any) -> Any:
        def counting(*args: Any) -> Any:
            reads[name] += 1
            return read(*args)

        return counting

    monkeypatch.setattr(sim.state, "observe", count("records", sim.state.observe))
    routes = count("routes", sim.netlink.pod_addresses)
    monkeypatch.setattr(sim.netlink, "pod_addresses", routes)
    outcome = sim.node.pool.run(sim.document, look=False)
    assert outcome.settled
    assert sim.node.pool.demand == Demand(0, 0, 0)
    assert reads == {"records": 1, "routes": 1}


def test_an_edited_document_is_validated_once(
    tmp_path: Path,
) -> None:
    """However often the file is looked at, and however many passes work on it."""
    validated: list[str] = []

    class Counting(Here):
        def load(self, text: str, source: str) -> NodeNetwork:
            validated.append(text)
            return super().load(text, source)

    path, edits = tmp_path / "node-network.yaml", (f"{DOCUMENT}", f"{DOCUMENT}maxPods: 20\n")
    path.write_text(edits[0])
    reading = document.Reader(path, lambda: None, Counting())
    reading.look_first()
    path.write_text(edits[1])
    for _ in range(3):
        reading.look_again()
    taken = reading.take()
    assert taken is not None
    assert taken.document is not None
    assert validated == list(edits)
    sim = Simulation()
    sim.turn()
    assert sim.node.known.resolve(taken.document) is sim.node.known.resolve(taken.document)


def test_overrides_that_contradict_each_other_are_applied_once() -> None:
    """Each time costs a process, and every pass asks."""
    asked: list[NodeNetwork] = []

    class Refusing(Here):
        def resolve(self, document: NodeNetwork, **_: str) -> NodeNetwork:
            asked.append(document)
            raise DocumentError([Problem("node", 0, 0, "", "they contradict each other")])

    known, document = Known(FakeState(), Refusing()), Simulation().document
    known.identify(node())
    for _ in range(2):
        with pytest.raises(ConflictError, match="contradict"):
            known.resolve(document)
    assert len(asked) == 1


TARGETS = {"records": "state", "kernel": "netlink", "elements": "nft"}

ADD = {
    "look at records": 5, "look at kernel": 2, "look at elements": 2,
    "change of records": 2, "change of kernel": 1, "change of elements": 1,
}  # fmt: skip
DEL = ADD | {"look at records": 1, "change of records": 0}
AFTER = {"look at records": 3, "look at kernel": 1, "look at elements": 1, "change of records": 1}

FEW, MANY = 3, 150
FOR_EACH = (4, 0, 0)
"""Functions that are called for each other pod: whose namespaces and addresses are taken."""


def crowded(pods: int) -> Simulation:
    """A node with some pods, and links that are deleted apart."""
    only = FakeEc2([eni(0, 0, primary=SUBNET[10])], Limits(1, 200), SUBNET, clock=lambda: sim.now)
    sim = Simulation(only, warmPool={"addresses": {"warm": 4}, "cooldown": "0s"})
    for number in range(10, 10 + pods):
        sim.start_pod(number)
    for _ in range(4):
        sim.turn(1.0)
    assert len(sim.state.observe().attachments) == pods
    sim.netlink.removals.apart = True
    return sim


def lived(sim: Simulation, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Counter[str], int]]:
    """Let a pod come and go; of each pass what it has asked, and how many functions it called."""
    done: Counter[str] = Counter()
    called = [0]

    def counting(what: str, how: Any) -> Any:
        def count(*args: Any) -> Any:
            done[what] += 1
            sys.setprofile(None)  # what a fake calls is no matter
            answer = how(*args)
            sys.setprofile(profile)
            return answer

        return count

    def profile(_: Any, event: str, __: Any) -> None:
        called[0] += event == "call"

    for what, name in TARGETS.items():
        target = sim.state if name == "state" else getattr(sim.node.environment, name)
        for verb, method in (("look at", "observe_at"), ("change of", "apply")):
            how = counting(f"{verb} {what}", getattr(target, method))
            monkeypatch.setattr(target, method, how)
    found = []
    for step in (
        lambda: sim.start_pod(1),
        lambda: sim.state.put(intent(1, IntentState.RELEASED)),
        sim.netlink.removals.turn,
    ):
        step()
        done.clear()
        called[0] = 0
        sys.setprofile(profile)
        result = sim.node.pods_pass([key(1)])
        sys.setprofile(None)
        assert result.served
        found.append((+done, called[0]))
    assert len(sim.state.observe().attachments) == len(sim.node.pods_pass([]).records.living)
    return found


def test_a_pods_life_takes_so_many_looks_and_changes_and_no_more_where_many_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few, many = (lived(crowded(pods), monkeypatch) for pods in (FEW, MANY))
    assert [done for done, _ in few] == [Counter(x) for x in (ADD, +Counter(DEL), AFTER)]
    assert [done for done, _ in many] == [done for done, _ in few]
    for (_, alone), (_, beside), each in zip(few, many, FOR_EACH, strict=True):
        assert beside <= alone + each * (MANY - FEW) + 20, "functions that were called"
