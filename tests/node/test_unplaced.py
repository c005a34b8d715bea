"""What an ADD is told whose pod is not in place: its own reasons, and no other pod's."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
from builders import attachment, intent, key
from fakes import RefusedError
from node.test_passes import Simulation

from reconciler.core.attachment import Attachment
from reconciler.daemon.duty import Conditions
from reconciler.daemon.requests import Requests
from reconciler.daemon.triggers import Triggers
from reconciler.domains import attachment_issues
from reconciler.domains.link import Veth
from reconciler.domains.route import Route
from reconciler.engine.converge import Outcome
from reconciler.engine.plan import Plan
from reconciler.errors import ApplyError, Issue, ObserveError
from reconciler.ipam.records import Records
from reconciler.node.pass_result import PassResult, find_unplaced


class Node(Simulation):
    """A kernel that refuses one pod's route and another pod's link."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.turn()
        for number, name in ((1, "one"), (2, "two"), (3, "three")):
            self.start_pod(number)
            self.state.put(intent(number, pod=f"default/{name}"))
        real = self.netlink._check
        names: dict[str, str] = {}

        def check(action: Any) -> None:
            o = action.object
            if isinstance(o, Veth):
                names[o.pod_netns.split("@")[0]] = o.name
                if o.name == names.get("/run/netns/pod2"):
                    raise RefusedError("EBUSY")
            if isinstance(o, Route) and o.netns == "" and o.device == names["/run/netns/pod1"]:
                raise RefusedError("EPERM")
            real(action)

        monkeypatch.setattr(self.netlink, "_check", check)

    def bound(self) -> dict[int, Attachment]:
        found = {a.key: a for a in self.state.observe().attachments}
        return {n: found[key(n)] for n in (1, 2, 3)}


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(monkeypatch)


@pytest.fixture
def conditions() -> Conditions:
    return Conditions()


@pytest.fixture
def requests(conditions: Conditions) -> Requests:
    return Requests(Triggers(), conditions, threading.Event())


def passes(node: Node) -> list[PassResult]:
    full = node.node.kernel_pass(node.document)
    return [full, node.node.pods_pass(frozenset({key(1), key(2), key(3)}))]


def test_each_pod_is_told_of_its_own_objects_by_its_name(node: Node) -> None:
    for result in passes(node):
        one, two, _ = node.bound().values()
        assert result.done.keys() == {key(3)}
        assert result.unplaced.keys() == {key(1), key(2)}
        told = result.unplaced[key(1)]
        assert (told.subject, told.reason) == (f"intent {key(1)} of pod default/one", "NotSettled")
        assert "EPERM" in told.message
        assert one.veth in told.message
        assert two.veth not in told.message
        told = result.unplaced[key(2)]
        assert "EBUSY" in told.message
        assert two.veth in told.message
        assert "EPERM" not in told.message
        assert one.veth not in told.message


def test_an_add_is_told_the_same_whatever_else_is_wrong_on_the_node(
    node: Node, requests: Requests, conditions: Conditions
) -> None:
    result = node.node.kernel_pass(node.document)
    for name, outcome in result.outcomes.items():
        conditions.report(name, outcome)
    assert "EBUSY" in "".join(c["text"] for c in conditions.all())
    requests.publish(result, 0.0)
    told = requests.await_attachment(key(1), 0.0)
    assert told == replace(result.unplaced[key(1)], message=result.unplaced[key(1)].message[:512])
    assert "EBUSY" not in str(told)


def test_a_pod_is_told_that_its_own_namespace_cannot_be_read_and_what_fails_for_all() -> None:
    failed = Outcome(errors=(ObserveError("the host's routes", "no memory"),))
    pods: dict[Attachment, list[Any]] = {attachment(1): [], attachment(2): []}
    found = find_unplaced(pods, [failed], {key(2): "it hangs"})
    first, second = (found[key(n)].message for n in (1, 2))
    assert (
        first
        == "cannot read the host's routes: no memory; nothing is changed until it can be read"
    )
    assert second.startswith(f"{first}; its namespace ")
    assert second.endswith("cannot be read: it hangs")
    assert find_unplaced(pods, [Outcome()], {}) == {}


def test_an_add_that_no_pass_has_come_to_is_told_only_what_keeps_every_pod_waiting(
    requests: Requests, conditions: Conditions
) -> None:
    others = Plan(refusals=(Issue("link nn2", "InterfaceExists", "of another owner"),))
    refused = ApplyError("ip link add nn2", "EEXIST", "File exists")
    conditions.report("link", Outcome(remaining=others, errors=(refused,)))
    conditions.note("pods", [Issue("pod default/two", "NamespaceUnreadable", "it hangs")])
    told = requests.await_attachment(key(1), 0.0)
    assert isinstance(told, Issue)
    assert told.message == "its objects were not seen in place within the budget"
    conditions.report("eni", Outcome(errors=(ObserveError("EC2", "denied"),)))
    conditions.note("watchdog", [Issue("the loop", "PassStuck", "for 12 s", for_all=True)])
    told = requests.await_attachment(key(1), 0.0)
    assert isinstance(told, Issue)
    assert told.message.startswith("EC2: cannot read EC2: denied; ")
    assert told.message.endswith("; the loop: for 12 s")


def test_what_one_pod_waits_for_names_that_pod() -> None:
    asks = intent(1, pod="default/one")
    told = attachment_issues.why_not("netns_gone", asks)
    assert told.subject == f"intent {key(1)} of pod default/one"
    first = replace(attachment(1), pod="default/one")
    copy = replace(attachment(2), veth=first.veth, pod="default/two")
    records = Records(attachments=(first, copy))
    (told,) = attachment_issues.on_copies(records, {key(1)})
    assert told.subject == f"attachment {key(2)} of pod default/two"
    assert f"address of {key(1)} of pod default/one, " in told.message


def test_a_pod_that_waits_for_an_address_is_told_so_by_its_name() -> None:
    sim = Simulation()
    for number in range(1, 60):
        sim.start_pod(number)
        sim.state.put(intent(number, pod=f"default/p{number}"))
    sim.turn()
    waiting = sim.node.kernel_pass(sim.document).waiting
    assert waiting
    assert all(f" of pod default/p{k.container_id[3:]}" in i.subject for k, i in waiting.items())
