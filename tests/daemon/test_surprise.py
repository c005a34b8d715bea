"""Anything may raise anything: the daemon goes on, and everything else is put right.

One daemon over the fakes, without threads: its passes are called one by one. Every call that a
target or a domain offers is broken in turn, in a daemon that runs and in one that starts.
"""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Callable
from dataclasses import fields, replace
from importlib import import_module
from ipaddress import ip_network
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, get_origin, get_type_hints

import pytest
from builders import SUBNET, eni, intent, node
from crash_injection import DROPPING, PLACES, PORTMAP, SETTINGS
from fake_cloud import FakeEc2, FakeImds, follow_attachments
from fake_directories import FakeDirectories
from fakes import (
    FakeConntrack,
    FakeNetlink,
    FakeNft,
    FakeRemains,
    FakeState,
    FakeSurroundings,
    FakeSysctl,
)

from reconciler.core.attachment import (
    Attachment,
    AttachmentKey,
    Cooling,
    IntentState,
    netns_identity,
    veth_name,
)
from reconciler.core.datapath import MAIN_TABLE
from reconciler.daemon import (
    kernel_loop,
    requests,
)
from reconciler.daemon.agent import Agent
from reconciler.daemon.duty import Conditions
from reconciler.daemon.telemetry import exposition
from reconciler.diagnostics.foreign import Foreign
from reconciler.diagnostics.stock_objects import Sighting, StockRule
from reconciler.domains.inputs import Inputs
from reconciler.domains.nat_objects import NftElement, NftTable
from reconciler.domains.route import Route
from reconciler.engine import converge
from reconciler.engine.plan import Change, Verb
from reconciler.errors import Issue
from reconciler.ipam.cloud import Limits
from reconciler.ipam.records import Records
from reconciler.node.environment import Ec2Target, Environment, State
from reconciler.targets.netlink import target as netlink

DOCUMENT = """\
apiVersion: node-network/v1alpha1
kind: NodeNetwork
takeOver: amazon-vpc-cni
routing: {acceptForwarded: true}
warmPool: {addresses: {warm: 3, minimum: 1, surplus: 0}, cooldown: 10s}
"""

LEFT = Sighting(rules=(StockRule(1024, MAIN_TABLE, mark=0x80, mask=0x80),))
RESTING = SUBNET[200]


class House:
    """A node with everything that is ever put right, and its daemon."""

    def __init__(self, directory: Path) -> None:
        self.now = 1000.0
        self.state = FakeState()
        first = eni(0, 0, primary=SUBNET[10])
        self.ec2 = FakeEc2(
            [first], Limits(3, 10), SUBNET, journal=self.state, clock=lambda: self.now
        )
        self.netlink = FakeNetlink()
        self.netlink.plug(first.mac, "eth0")
        self.nft = FakeNft()
        self.sysctl = FakeSysctl(dict(SETTINGS))
        self.conntrack = FakeConntrack()
        self.surroundings = FakeSurroundings(Foreign(forward=(DROPPING,)))
        self.remains = FakeRemains()
        self.files = FakeDirectories(PLACES, dict(PORTMAP))
        self._path = directory / "node-network.yaml"
        self._path.write_text(DOCUMENT)
        self.earlier: frozenset[threading.Thread] = frozenset()
        self._links: set[str] = set()
        self._pods = 0
        self.start()

    def start(self, *, events: bool = False, api: Any = None, node_name: str = "") -> None:
        """Start a daemon; what it knew before is in the records."""
        environment = Environment(
            imds=FakeImds(node(), self.ec2),
            make_ec2=lambda *_: self.ec2,
            netlink=self.netlink,
            nft=self.nft,
            sysctl=self.sysctl,
            conntrack=self.conntrack,
            surroundings=self.surroundings,
            remains=self.remains,
            files=self.files,
            now=lambda: self.now,
            clock=lambda: self.now,
            node_name=node_name,
        )
        kept = self._path.with_name("kept")
        self.agent = Agent(
            self._path, self.state, environment, keep_dir=kept, events=events, api=api
        )
        self.agent.parts.document.take_first()

    def work(self) -> None:
        """Let the daemon have two passes of each kind."""
        for _ in range(2):
            self.agent.kernel.pods_pass()
            self.agent.pool.run_pass(0)
            self._links = follow_attachments(self.netlink, self.ec2, self._links)
            self.agent.kernel.full_pass(audit=True)
            self.now += 100.0  # what was looked at is looked at again

    def begin_pod(self) -> None:
        self._pods += 1
        self.netlink.namespaces.add(f"/run/netns/pod{self._pods}@{self._pods}")
        self.state.put(intent(self._pods))
        self.agent.parts.requests._asked[intent(self._pods).key] = 0.0

    def disturb(self) -> None:
        """Take away what is ours everywhere, and give everybody something to do."""
        self.nft._objects.clear()
        self.sysctl.values["", "net/ipv4/ip_forward"] = "0"
        objects = self.netlink._objects
        for place in [k for k, o in objects.items() if isinstance(o, Route)]:
            del objects[place]
        self.files.files = dict(PORTMAP)
        self.surroundings.rules.clear()
        self.state.put(Cooling(RESTING, self.now + 10_000))
        self.conntrack.addresses.add(RESTING)
        self.remains.sighting = LEFT
        self.held = len(self.ec2.holds())
        self.begin_pod()
        self.begin_pod()

    def restored(self) -> set[str]:
        """Name the targets that are as the document wants them."""
        bound = {k for kind, k in self.state._records if kind == Attachment.kind}
        routes = [o for o in self.netlink._objects.values() if isinstance(o, Route)]
        facts = {
            "nft": bool(self.nft._objects),
            "sysctl": self.sysctl.values["", "net/ipv4/ip_forward"] == "1",
            "kernel": bool(routes),
            "files": len(self.files.files) == len(PORTMAP) + 3,
            "surroundings": bool(self.surroundings.rules),
            "state": intent(self._pods).key in bound,
            "conntrack": not self.conntrack.addresses,
            "remains": not self.remains.sighting.rules,
            "ec2": len(self.ec2.holds()) > self.held,
        }
        return {name for name, holds in facts.items() if holds}

    def errors(self) -> set[str]:
        """Name the subjects of internal errors."""
        conditions = self.agent.parts.conditions.all()
        return {str(c["subject"]) for c in conditions if c["reason"] == "InternalError"}


EVERYTHING = {
    "nft",
    "sysctl",
    "kernel",
    "files",
    "surroundings",
    "state",
    "conntrack",
    "remains",
    "ec2",
}

TARGETS = {
    "netlink": ("kernel", "link"),
    "nft": ("nft", "nat"),
    "sysctl": ("sysctl", "sysctl"),
    "conntrack": ("conntrack", "conntrack"),
    "surroundings": ("surroundings", ""),
    "forward": ("surroundings", "forward"),
    "remains": ("remains", "takeover"),
    "files": ("files", "executable"),
    "state": ("state", "attachment"),
    "ec2": ("ec2", "eni"),
}
"""By the fake's name: the target, and a domain of it, as the condition names it."""

DOMAINS = {
    "attachment": "state",
    "conntrack": "conntrack",
    "sysctl": "sysctl",
    "link": "kernel",
    "link-sysctl": "kernel",
    "address": "kernel",
    "neighbour": "kernel",
    "route": "kernel",
    "rule": "kernel",
    "nat": "nft",
    "source-check": "sysctl",
    "forward": "surroundings",
    "executable": "files",
    "conflist": "files",
    "boot-rule": "files",
    "takeover": "remains",
    "eni": "ec2",
    "quarantine": "",
    "creation": "",
}
"""By name: the target that its failure leaves as it was."""

NEEDED_BY = {
    "state": {"conntrack", "remains", "ec2"},
    "kernel": {"remains"},
    "nft": {"remains"},
    "sysctl": {"remains", "kernel"},
    "ec2": {"state"},
}
"""What a target is needed by: nothing rests or is asked of EC2 without records, the stock plugin's
things go only when all of ours is in its place, links have settings, and a second pod may need an
address that EC2 has not given yet."""

NEEDED_AT_FIRST: dict[Any, set[str]] = {
    **{name: {"files"} for name in ("kernel", "nft", "sysctl", "state")},
    ("remains", "observe"): {"files", "state"},
    ("state", "observe"): EVERYTHING,
}
"""The same of a daemon that has just started. A runtime is told of it once pods can be served. An
address may be in use by the stock plugin's pods until these were looked at once. And before the
records were read once, whatever the kernel has of pods would seem to be nobody's."""

CASES = [
    *((name, call) for name in TARGETS for call in ("observe", "apply")),
    *((name, call) for name in DOMAINS for call in ("desire", "plan")),
]


def left_alone(target: str) -> set[str]:
    """Return what must be put right whatever becomes of a target."""
    return EVERYTHING - {target} - NEEDED_BY.get(target, set())


def fail(*_: Any, **__: Any) -> Any:
    raise KeyError("CidrBlock")


def break_target(house: House, name: str, call: str) -> None:
    fake = house.surroundings if name == "forward" else getattr(house, name)
    if name == "forward" or (name, call) == ("surroundings", "apply"):
        # One fake is both: who asks says what is desired.
        real = getattr(fake, call)
        setattr(fake, call, lambda *a: fail() if a else real(*a))
    elif (name, call) == ("surroundings", "observe"):
        real = fake.observe
        fake.observe = lambda *a: real(*a) if a else fail()
    else:
        setattr(fake, call, fail)
    if call == "observe":
        for also in ("observe_at", "glance"):
            if hasattr(fake, also):
                setattr(fake, also, fail)


Breaker = Callable[[House, str, str], None]


OF = "of"


class Pod(NamedTuple):
    """A pod, as what domains are given shows it."""

    key: AttachmentKey
    netns: str
    veth: str
    addresses: frozenset[Any]

    @classmethod
    def number(cls, number: int, house: House) -> Pod:
        """Return one that is bound."""
        bound = house.state._records[Attachment.kind, intent(number).key]
        return cls(bound.key, bound.netns, bound.veth, frozenset(bound.addresses))

    def is_in(self, *given: Any) -> bool:
        """Whether what a domain's desire or plan is given has something of it."""
        for each in given:
            if isinstance(each, Inputs) and self.key in {a.key for a in each.attachments}:
                return True
            if isinstance(each, Records):
                return self.key in {r.key for r in (*each.intents, *each.attachments)}
            if isinstance(each, frozenset) and any(map(self.has, each)):
                return True
        return False

    def has(self, o: Any) -> bool:
        """Whether an object is its own."""
        if netns := getattr(o, "netns", ""):
            return bool(netns == self.netns)
        if isinstance(o, NftElement):
            # What the node holds is ranges of all its addresses, and of no pod.
            return o.first in self.addresses and not o.set.startswith("held_")
        return self.veth in (getattr(o, "device", ""), *getattr(o, "name", "").split("/"))

    def objects(self, house: House) -> set[Any]:
        """Return what the kernel has of it."""
        objects = (*house.netlink._objects.values(), *house.nft._objects)
        return {o for o in objects if self.has(o)}


ELSEWHERE = {"fast-path": "node/test_fast_path", "state": "node/test_cleanup"}
"""Domains that this daemon makes nothing of, and the tests of those that run them."""

TARGETS_ELSEWHERE = {
    "nft.flows": "node/test_fast_path",
    "netlink.learnt": "a step of daemon/test_surprise_threads",
    "surroundings.latest": "likewise",
}


def makers() -> list[ModuleType]:
    """Every module that makes domains."""
    root = Path(converge.__file__).parents[1]
    texts = {path: path.read_text() for path in root.rglob("*.py")}
    names = (
        p.relative_to(root.parent).with_suffix("").parts for p in texts if has_domain(texts[p])
    )
    return [import_module(".".join(parts)) for parts in names]


def has_domain(text: str) -> bool:
    return bool(DOMAIN.search(text))


DOMAIN = re.compile(r'\bDomain\(\s*"([^"]+)"')


def domains() -> set[str]:
    """All domains that the code names."""
    return {name for m in makers() for name in DOMAIN.findall(Path(m.__file__ or "").read_text())}


def targets(of: type, name: str = "") -> set[str]:
    """All that is observed, or observed and changed, below the types of what is outside."""
    found = {name} if hasattr(of, "observe") else set()
    if name.count(".") < 1:
        parts = {
            n: get_type_hints(p.fget).get("return")
            for n, p in inspect.getmembers(of, lambda p: isinstance(p, property))
        }
        for part, kind in parts.items():
            if hasattr(get_origin(kind) or kind, "observe"):
                found.add(f"{name}.{part}")
    return found


def test_every_domain_and_every_target_of_the_code_is_let_raise() -> None:
    assert domains() == DOMAINS.keys() | ELSEWHERE.keys()
    hints = get_type_hints(Environment)
    outside = {f.name: get_origin(hints[f.name]) or hints[f.name] for f in fields(Environment)}
    found = set[str]().union(*(targets(kind, name) for name, kind in outside.items()))
    found |= targets(Ec2Target, "ec2") | targets(State, "state")
    tried = {{"forward": "surroundings.forward"}.get(name, name) for name in TARGETS}
    assert found == tried | TARGETS_ELSEWHERE.keys()


@pytest.fixture
def seen() -> set[str]:
    """The names of all domains that were ever made."""
    return set()


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, seen: set[str]) -> dict[str, Any]:
    """Which call of which domain raises, and ``OF``, with which pod; may be filled at any time."""
    which: dict[str, Any] = {}

    def make(name: str, *parts: Any, **options: Any) -> converge.Domain:
        seen.add(name)
        made = converge.Domain(name, *parts, **options)

        def call(kind: str) -> Callable[..., Any]:
            real = getattr(made, kind)

            def called(*a: Any) -> Any:
                is_meant = which.get(name) == kind and (OF not in which or which[OF].is_in(*a))
                return fail() if is_meant else real(*a)

            return called

        return converge.Domain(
            name, call("desire"), call("plan"), made.target, made.kinds, made.atomic
        )

    for module in makers():
        monkeypatch.setattr(module, "Domain", make)
    return which


def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    """Return a daemon that has served a pod."""
    monkeypatch.setattr(kernel_loop, "ANSWER_S", 0.0)
    made = House(tmp_path)
    made.begin_pod()
    made.work()
    return made


@pytest.fixture
def house(tmp_path: Path, broken: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> House:
    return begun(tmp_path, monkeypatch)


def test_without_a_surprise_everything_is_put_right(house: House, seen: set[str]) -> None:
    """And these are all the domains there are."""
    house.disturb()
    house.work()
    assert house.restored() == EVERYTHING
    assert house.errors() == set()
    assert seen - ELSEWHERE.keys() == DOMAINS.keys()


@pytest.mark.parametrize("start", ["running", "starting"])
@pytest.mark.parametrize(("name", "call"), CASES)
def test_whatever_raises_everything_else_is_put_right_and_a_condition_names_it(
    house: House, broken: dict[str, Any], name: str, call: str, start: str
) -> None:
    house.disturb()
    if call in ("observe", "apply"):
        target, domain = TARGETS[name]
        break_target(house, name, call)
    else:
        target, domain = DOMAINS[name], name
        broken[name] = call
    if start == "starting":
        house.start()
    house.work()
    expected = left_alone(target)
    if start == "starting":
        expected -= NEEDED_AT_FIRST.get((target, call), set()) | NEEDED_AT_FIRST.get(target, set())
    assert expected - house.restored() == set()
    assert [e for e in house.errors() if f"{call} of" in e and domain in e], house.errors()
    assert "node_network_internal_errors_total{" in exposition()


OF_PODS = sorted(DOMAINS.keys() - {"eni", "quarantine", "creation"})
"""Domains of the loop that serves pods."""

OWN = {"attachment", "link", "address", "neighbour", "route", "nat"}
"""Those of them that have something of each pod of IPv4."""


@pytest.mark.parametrize("call", ["desire", "plan"])
@pytest.mark.parametrize("name", OF_PODS)
def test_one_pods_data_that_makes_a_domain_raise_concerns_that_pod_alone(
    house: House, broken: dict[str, Any], name: str, call: str
) -> None:
    """Of three that run: one leaves, one is repaired, a new one comes; the odd one is kept."""
    house.begin_pod()
    house.begin_pod()
    house.work()
    leaving, odd, other = (Pod.number(n, house) for n in (1, 2, 3))
    before, whole = odd.objects(house), other.objects(house)
    broken.update({name: call, OF: odd})
    house.state.put(replace(intent(1), state=IntentState.RELEASED))
    for o in whole:
        if isinstance(o, Route) and not o.netns:
            del house.netlink._objects[type(o), o.key]
        if isinstance(o, NftElement):
            house.nft._objects.remove(o)
    house.nft._objects.remove(NftTable())
    house.nft._objects.add(NftTable(flags=("dormant",)))  # it takes a new one
    house.begin_pod()
    house.work()
    new = Pod.number(4, house)
    assert odd.objects(house) == before
    assert other.objects(house) == whole
    assert len(new.objects(house)) == len(whole)
    assert not leaving.objects(house)
    assert (Attachment.kind, leaving.key) not in house.state._records
    assert new.addresses.isdisjoint(odd.addresses | other.addresses)
    assert house.agent.parts.requests._done[new.key][0].addresses == tuple(new.addresses)
    assert house.errors() <= {f"pod {odd.key}"}
    if name in OWN - {"address"}:  # that is in its namespace, which is not looked at any more
        assert house.errors()
    broken.clear()
    house.work()
    assert house.errors() == set()
    assert odd.objects(house) == before


@pytest.mark.parametrize("name", ["link", "neighbour", "route", "nat"])
def test_one_that_leaves_and_makes_a_plan_raise_holds_up_no_other(
    house: House, broken: dict[str, Any], name: str
) -> None:
    house.begin_pod()
    house.work()
    odd, other = (Pod.number(n, house) for n in (1, 2))
    broken.update({name: "plan", OF: odd})
    house.state.put(replace(intent(1), state=IntentState.RELEASED))
    house.begin_pod()
    house.work()
    assert house.agent.parts.requests._done.keys() >= {other.key, Pod.number(3, house).key}
    is_bound = (Attachment.kind, odd.key) in house.state._records
    assert is_bound is bool(odd.objects(house))  # its address is free when nothing of it is left
    broken.clear()
    house.agent.parts.drift.clear()
    house.work()
    assert not odd.objects(house)
    assert house.errors() == set()


@pytest.mark.parametrize("call", ["desire", "plan"])
@pytest.mark.parametrize("name", sorted(OWN))
def test_an_add_whose_data_makes_a_domain_raise_is_told_why(
    house: House, broken: dict[str, Any], name: str, call: str
) -> None:
    house.begin_pod()
    asked = intent(house._pods)
    key, netns = asked.key, netns_identity(asked.netns, asked.netns_inode)
    addresses = frozenset(house.ec2.holds()) - Pod.number(1, house).addresses
    broken.update({name: call, OF: Pod(key, netns, veth_name("nn", key), addresses)})
    house.work()
    refusal = house.agent.parts.requests.await_attachment(key, 0.001)
    if isinstance(refusal, Issue):
        assert refusal.reason == "InternalError"
        assert f"{call} of {name}" in refusal.message
    else:
        assert (name, call) == ("attachment", "desire")  # it takes no pods
    broken.clear()
    house.work()
    assert house.agent.parts.requests._done.keys() >= {key}
    assert house.errors() == set()


@pytest.mark.parametrize(("name", "call"), [c for c in CASES if c[1] in ("observe", "apply")])
def test_one_surprise_at_whichever_call_leaves_nothing_behind(
    house: House, name: str, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first call, the second, and so on, until one is never reached."""
    fake = house.surroundings if name == "forward" else getattr(house, name)
    real = getattr(fake, call)
    for number in range(MOST_CALLS):
        house.disturb()
        calls = iter(range(1000))

        def once(*arguments: Any, now: Any = calls, at: int = number) -> Any:
            if next(now) == at:
                fail()
            return real(*arguments)

        with monkeypatch.context() as broken:
            broken.setattr(fake, call, once)
            house.work()
        house.agent.parts.drift.clear()  # as if what rests by now had rested enough
        house.work()
        assert house.restored() == EVERYTHING, (number, house.restored())
        assert house.errors() == set()
        if next(calls) <= number:
            return


MOST_CALLS = 6
"""How many of them are tried; later ones are like earlier ones."""


def test_what_checks_have_found_is_kept_for_those_that_wait_for_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "CONVERGE_S", 0.0)
    for number in range(9):
        house.agent.parts.checks._asked.add(intent(number).key)
        house.agent.kernel._run_checks()
    assert len(house.agent.parts.checks._found) == 1
    house.agent.parts.checks.check(intent(1).key)
    assert not house.agent.parts.checks._asked


def test_an_object_that_cannot_be_put_into_the_kernel_for_no_known_reason_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of one pod: all others' objects are in the same list."""
    done: list[Any] = []

    def apply_one(_: Any, action: Change[Any]) -> None:
        if action.object.device == "odd":
            raise KeyError("device")
        done.append(action.object.device)

    monkeypatch.setattr(netlink, "apply_one", apply_one)
    network = ip_network("10.0.1.9/32")
    actions = [
        Change(Verb.CREATE, Route("", MAIN_TABLE, network, device), "test")
        for device in ("first", "odd", "last")
    ]
    (failure,) = netlink.Netlink().apply(actions)
    assert done == ["first", "last"]
    assert (failure.action, failure.reason) == (str(actions[1]), "InternalError")
    before = exposition().count("apply of a kernel object")
    Conditions().report("route", converge.Outcome(errors=(failure,)))
    assert exposition().count("apply of a kernel object") > before
