"""When the fast path is there, and that no pod waits for it."""

from __future__ import annotations

import pytest
from builders import attachment, document, inputs
from fakes import FakeFlows

from reconciler.diagnostics.foreign import Foreign
from reconciler.domains import fast_path
from reconciler.domains.fast_path import FlowLink, FlowTable
from reconciler.engine.backoff import Backoffs
from reconciler.ipam.records import Records
from reconciler.node.fast_path import FastPath
from reconciler.node.pass_result import PassResult

POD, NEXT = attachment(1, 0), attachment(2, 0)
WHOLE = {FlowTable(), FlowLink("eth0"), FlowLink(POD.veth)}


class World:
    """A node of one ENI and one pod."""

    def __init__(self, **kernel: str) -> None:
        self.flows = FakeFlows(**kernel)
        self.looks = 0
        self.queues: set[tuple[str, str]] = set()
        self.others: Foreign | None = Foreign()
        self.step = FastPath(self.flows, self.look, lambda: self.others)

    def look(self) -> set[tuple[str, str]]:
        self.looks += 1
        return self.queues

    def result(self, mode: str, *pods: object) -> PassResult:
        now = inputs(1, (POD,), document=document(datapath={"fastPath": mode}))
        return PassResult({}, 0.0, Records(), now, {p.key: p for p in (POD, *pods)})  # type: ignore[attr-defined]

    def run(self, mode: str = "auto") -> tuple[str, ...]:
        result = self.step.run(self.result(mode), Backoffs())
        assert all(o.settled for o in result.outcomes.values())
        return tuple(f.reason for f in result.findings or ())


def test_off_is_the_default_and_costs_one_look() -> None:
    assert document().datapath.fast_path == "off"
    world = World()
    assert world.run("off") == ()
    world.flows.observe = None  # type: ignore[assignment,method-assign]
    assert world.run("off") == ()
    assert not world.looks
    world.step.follow(world.result("off", NEXT))
    assert world.flows.objects == set()


def test_auto_puts_it_there_and_off_takes_it_away() -> None:
    world = World()
    assert world.run() == ()
    assert world.flows.objects == WHOLE
    assert world.run("off") == ()
    assert world.flows.objects == set()
    assert world.run() == ()
    assert world.flows.objects == WHOLE


def test_a_pod_that_starts_is_put_into_it_after_it_was_served() -> None:
    world = World()
    world.run()
    world.step.follow(world.result("auto", NEXT))
    assert world.flows.objects == WHOLE | {FlowLink(NEXT.veth)}


def test_without_flowtables_there_is_a_condition_and_nothing_else() -> None:
    world = World(refuses="the kernel refuses one: no")
    assert world.run() == ("NoFlowtables",)
    world.step.follow(world.result("auto", NEXT))
    assert world.flows.objects == set()


@pytest.mark.parametrize(
    "disturb",
    [
        lambda w: w.queues.add((POD.veth, "tbf")),
        lambda w: setattr(w, "others", None),
        lambda w: setattr(w, "others", Foreign(unread=(("iptables", "it failed"),))),
    ],
)
def test_while_others_look_at_each_packet_it_is_gone(disturb: object) -> None:
    world = World()
    world.run()
    disturb(world)  # type: ignore[operator]
    assert world.run() == ("FastPathHeld",)
    assert world.flows.objects == set()
    world.step.follow(world.result("auto", NEXT))
    assert world.flows.objects == set()
    world.queues, world.others = {("docker0", "tbf")}, Foreign()  # no link of ours
    assert world.run() == ()
    assert world.flows.objects == WHOLE


@pytest.mark.parametrize("call", ["observe", "apply", "desire", "plan"])
def test_whatever_raises_its_domain_fails_alone_and_is_whole_again_afterwards(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("CidrBlock")

    world = World()
    with monkeypatch.context() as broken:
        broken.setattr(world.flows if call in ("observe", "apply") else fast_path, call, fail)
        try:
            outcome = world.step.run(world.result("auto"), Backoffs()).outcomes["fast-path"]
        except KeyError:  # what it judges by; the duty around the step names it
            assert call == "desire"
        else:
            assert [f"{call} of fast-path" in str(e) for e in outcome.errors] == [True]
            assert outcome.failed
    assert world.run() == ()
    assert world.flows.objects == WHOLE
