"""Whatever becomes of the records on disk, one kind of them or two: no running pod is cut.

The records are those of the real state directory, on a disk that refuses what a combination says;
the kernel is the fake that has signed the real one's contract, and notices each link that goes.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from ipaddress import ip_network
from itertools import combinations, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from builders import SUBNET, document, eni, key, node
from crash_fakes import Kernel
from fake_cloud import FakeEc2, FakeImds
from fakes import FakeConntrack, FakeNft, FakeRemains, FakeSurroundings, FakeSysctl

from reconciler.core.attachment import Cooling, IntentState
from reconciler.domains.link import Veth
from reconciler.egress.destinations import Egress
from reconciler.engine.plan import Change, Verb
from reconciler.errors import NotReadyError, ObserveError, ReconcilerError
from reconciler.ipam.cloud import Limits
from reconciler.ipam.ec2_action import Creation
from reconciler.ipam.release import Quarantine
from reconciler.node import views
from reconciler.node.environment import Environment
from reconciler.node.pass_result import PassResult
from reconciler.node.passes import LocalNode
from reconciler.targets.state import codec
from reconciler.targets.state.directory import LOOK, SOURCES, StateDirectory
from reconciler.targets.state.kept_identities import IDENTITIES
from reconciler.targets.state.kind_records import SECOND
from reconciler.targets.state.parts import StateParts
from reconciler.targets.state.set_aside import SET_ASIDE

RUNNING = (1, 2, 3)
NEW = 4
NAMED = 3
"""The pod whose namespace has an address of its own outside."""

OUTSIDE = SUBNET[11]
"""What that namespace has; its connections are known by it."""

RULE = {"namespace": "pay", "to": ["10.100.0.0/16"], "as": "dedicated"}

COOLING = SUBNET[15]
LEAVING = ip_network("10.0.1.16/32")
"""The two that a new pod would get next, in the order of addresses."""

FILES: dict[str, Callable[[Path], None]] = {
    "lost": Path.unlink,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "of a newer schema": lambda path: (
        path.write_text(path.read_text().replace('"version": 1', '"version": 2')) and None
    ),
}
SINGLE = {"look": LOOK, "sources": SOURCES, "kept": IDENTITIES}
"""Files that are no records, by what they are called here."""

KINDS = (*(kind.directory for kind in codec.KINDS), "look")
REMEMBERED = (SECOND, "sources", "kept")
"""What only helps where something else is lost; pairs with it are more than all others."""

ELSEWHERE = {
    "lock": "targets/test_lock",
    "node-network.sock": "daemon/test_server",
    "document.json": "targets/test_kept_document",
    SET_ASIDE: "targets/test_state_damage",
}
"""All else that the daemon writes, and which tests lose it."""

SHARE = int(os.environ.get("PAIRS_SHARE", "2"))
"""One of how many combinations is tried in each way."""

RARELY = int(os.environ.get("PAIRS_SHARE", "16"))
"""The same of those with what only helps."""

MISFORTUNES = [(kind, what) for kind in KINDS for what in (*FILES, "unwritable")]
MORE = [(kind, what) for kind in REMEMBERED for what in (*FILES, "unwritable")]


NOWHERE = [
    *({(SECOND, "lost"), (kind, "lost")} for kind in ("cooling", "quarantine")),
    *({("kept", one), ("identities", other)} for one, other in product(FILES, FILES)),
]
"""Pairs after which nothing that a daemon finds when it starts says what was."""


class Disk:
    """What the kernel answers below some paths, as a file system does that is read-only or full.

    An audit hook cannot be taken out again, so there is one for the process, that is told where.
    """

    def __init__(self) -> None:
        self.refused: tuple[str, ...] = ()
        self.number = errno.EROFS
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.refused:
            return
        writes = event in {"os.rename", "os.remove", "os.link", "os.mkdir", "os.utime"} or (
            event == "open"
            and isinstance(arguments[2], int)
            and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        if writes and str(arguments[0]).startswith(self.refused):
            raise OSError(self.number, os.strerror(self.number), arguments[0])


DISK = Disk()


class Node:
    """A node with three running pods, an address that cools and one that is given back."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now = 1000.0
        pool = {"addresses": {"warm": 5}, "cooldown": "30s"}
        self.document = document(warmPool=pool, snat={"rules": [RULE]})
        self.ec2 = FakeEc2([eni(0, 9)], Limits(1, 10), SUBNET, clock=lambda: self.now)
        self.kernel = Kernel()
        self.kernel.plug(self.ec2.enis[0].mac, "eth0")
        self.environment = Environment(
            imds=FakeImds(node(), self.ec2),
            make_ec2=lambda *_: self.ec2,
            netlink=self.kernel,
            nft=FakeNft(),
            sysctl=FakeSysctl({"net/ipv4/ip_forward": "1"}),
            conntrack=FakeConntrack(),
            surroundings=FakeSurroundings(),
            remains=FakeRemains(),
            now=lambda: self.now,
        )
        self.state = StateDirectory(root / "run")
        self.start()
        for number in RUNNING:
            self.begin_pod(number)
        self.daemon.pool.run(self.document)
        self.full_pass()
        held = (Cooling(COOLING, self.now + 20.0), Quarantine(LEAVING, self.now - 10.0))
        creation = Creation("t1", 1, "subnet-a", ("sg-1",), 9, 0, (), self.now, done=True)
        puts = [Change(Verb.CREATE, record, "test") for record in (*held, creation)]
        assert self.state.apply(puts) == ()
        self.full_pass()
        self.state.remember_egress(Egress())
        self.addresses = self.seen()
        assert len(self.addresses) == len(RUNNING)

    def start(self) -> None:
        """Another process takes over the directory; all it has is what is on disk."""
        if self.state._lock.fd is not None:
            os.close(self.state._lock.fd)
        self.state = StateDirectory(self.root / "run")
        with suppress(ReconcilerError):  # a daemon says so and is started again
            self.state.prepare()
        self.state.lock()
        self.daemon = LocalNode(self.state, self.environment)

    def begin_pod(self, number: int) -> None:
        """What a runtime and the executable do."""
        netns = self.root / f"pod{number}"
        netns.touch()
        inode = netns.stat().st_ino
        self.kernel.namespaces.add(f"{netns}@{inode}")
        self.kernel.running.add(key(number))
        self.write_intent(number, IntentState.WANTED, str(netns), inode)

    def end_pod(self, number: int) -> None:
        netns = self.root / f"pod{number}"
        self.kernel.running.discard(key(number))
        self.write_intent(number, IntentState.RELEASED, str(netns), netns.stat().st_ino)

    def write_intent(self, number: int, state: IntentState, netns: str, inode: int) -> None:
        body = {
            "version": 1,
            "containerID": key(number).container_id,
            "ifname": key(number).ifname,
            "state": state,
            "netns": netns,
            "netnsInode": inode,
            "podNamespace": "pay" if number == NAMED else "",
            "podName": "a" if number == NAMED else "",
        }
        path = self.state.intents / f"{key(number).container_id}:eth0.json"
        with suppress(OSError):  # the runtime is told, and tries again
            self.state.intents.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(body))

    def full_pass(self) -> PassResult | None:
        with suppress(NotReadyError):  # without a look nothing is planned, and nothing is cut
            return self.daemon.kernel_pass(self.document)
        return None

    def pods_pass(self, number: int) -> None:
        with suppress(NotReadyError):
            self.daemon.pods_pass(frozenset({key(number)}))

    def seen(self) -> dict[str, Any]:
        """Addresses that lead to the links of the running pods."""
        ways = self.kernel.pod_addresses()
        links = [o for o in self.kernel._objects.values() if isinstance(o, Veth)]
        alive = {f"node-network:{pod}" for pod in self.kernel.running}
        return {o.alias: ways.get(o.name, ()) for o in links if o.alias in alive}

    def suffer(self, kind: str, what: str) -> None:
        if what == "unwritable":
            below = self.root / "run" / SINGLE.get(kind, kind)
            DISK.refused = (*DISK.refused, str(below), str(self.root / "run" / f".{below.name}"))
            return
        found = paths(self, kind)
        assert found
        for path in found:
            FILES[what](path)

    def check(self, *, kept: frozenset[Any] = frozenset()) -> None:
        """Nothing that runs was touched, and nothing of it, or of what waits, is given again."""
        assert self.kernel.cut == []
        seen = self.seen()
        assert {a: seen[a] for a in self.addresses} == self.addresses, "renumbered"
        given = [own for held in self.kernel.pod_addresses().values() for own in held]
        assert len(given) == len(set(given)), "given twice"
        assert not kept & set(given), "given before its time"
        assert OUTSIDE not in given, "given to a pod, and a namespace has it"

    def audit(self) -> str:
        """What another process says that only looks."""
        seen = LocalNode(StateDirectory(self.root / "run"), self.environment)
        seen.known.cloud = seen.known.cloud or self.daemon.known.cloud
        return "\n".join(map(str, views.audit(seen, self.document)))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Node]:
    """In memory if there is such a place, as /run is: hundreds of lives sync many files."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else str(tmp_path)
    with TemporaryDirectory(dir=memory) as root:
        made = Node(Path(root))
        yield made
        DISK.refused = ()
        if made.state._lock.fd is not None:
            os.close(made.state._lock.fd)


@contextmanager
def snapshot(host: Node) -> Iterator[None]:
    """Give the node back as it was."""
    saved = host.root / "saved"
    shutil.copytree(host.root / "run", saved)
    objects, namespaces = dict(host.kernel._objects), set(host.kernel.namespaces)
    elements = set(host.environment.nft._objects)
    running, now, enis = set(host.kernel.running), host.now, list(host.ec2.enis)
    try:
        yield
    finally:
        DISK.refused = ()
        shutil.rmtree(host.root / "run", ignore_errors=True)
        saved.rename(host.root / "run")
        host.kernel._objects, host.kernel.namespaces = objects, namespaces
        host.kernel.running, host.now, host.ec2.enis = running, now, enis
        host.kernel.cut.clear()
        host.environment.nft._objects = elements


def live_through(host: Node, misfortunes: tuple[tuple[str, str], ...], *, restart: bool) -> None:
    """What the daemon does while it is so, and after it was mended."""
    for kind, what in sorted(misfortunes, key=lambda one: one[1] == "unwritable"):
        host.suffer(kind, what)
    if restart:
        host.start()
    kept = frozenset({COOLING, LEAVING[0]})
    host.full_pass()
    host.check(kept=kept)
    if said := disagreements(misfortunes):
        text = host.audit()
        assert said <= {word for word in WORDS if word in text}, text
    host.begin_pod(NEW)
    host.pods_pass(NEW)
    host.full_pass()
    host.check(kept=kept)
    DISK.refused = ()
    with suppress(ReconcilerError):
        host.daemon.pool.run(host.document)
    host.state.prepare()
    host.begin_pod(NEW)
    host.full_pass()
    host.check()
    result = host.full_pass()
    assert result is not None
    assert not [e for o in result.outcomes.values() for e in o.errors]
    assert {a.key for a in result.records.attachments} == set(map(key, (*RUNNING, NEW)))
    assert result.records.unwritten == frozenset()
    assert [i.addresses for i in result.records.identities] == [(OUTSIDE,)]
    host.check()


def test_what_has_waited_long_enough_leaves_nothing_that_a_restart_would_find(host: Node) -> None:
    second = host.root / "run" / SECOND
    assert {p.name for p in second.iterdir()} == {
        f"cooling-{COOLING}.json",
        f"quarantine-{LEAVING[0]}-32.json",
    }
    host.now += 1000.0
    host.daemon.pool.run(host.document)
    host.full_pass()
    assert not list(second.glob("cooling-*"))
    host.start()
    host.full_pass()
    assert host.state.observe().cooling == ()


def test_what_only_the_kernel_remembers_is_on_disk_before_the_node_is_said_to_be_settled(
    host: Node,
) -> None:
    """It was so one pass later: whoever believed the status and looked found no record."""
    shutil.rmtree(host.root / "run/attachments")
    shutil.rmtree(host.root / "run" / SECOND)
    host.start()
    result = host.full_pass()
    assert result is not None
    assert result.settled
    assert result.records.unwritten == frozenset()
    assert len(list((host.root / "run/attachments").glob("*.json"))) == len(RUNNING)


def test_no_connection_of_a_running_pod_ends_because_a_record_says_that_its_address_rests(
    host: Node,
) -> None:
    """A backup was put back; or a DEL came for a torn record that names the address as well."""
    (address,) = host.addresses["node-network:pod1/eth0"]
    talking = host.environment.conntrack.addresses
    rest = {"version": 1, "address": str(address), "until": host.now + 20.0}
    (host.root / "run/cooling" / f"{address}.json").write_text(json.dumps(rest))
    talking.add(address)
    host.full_pass()
    assert talking == {address}
    host.now += 30.0
    host.full_pass()
    assert not (host.root / "run/cooling" / f"{address}.json").exists()
    (host.root / "run/attachments/pod9:eth0.json").write_text(f'{{"addresses": ["{address}"]')
    host.full_pass()
    (host.root / "pod9").touch()
    host.end_pod(9)
    for _ in range(3):
        host.full_pass()
        host.now += 15.0
    assert talking == {address}
    host.check()


def test_a_link_that_a_record_names_is_of_that_pod_whatever_its_alias_says(host: Node) -> None:
    links = [o for o in host.kernel._objects.values() if isinstance(o, Veth)]
    for other in ("node-network:other/eth0", "node-network:pod2/eth0", "node-network:", ""):
        host.kernel.replace(replace(links[0], alias=other))
        result = host.full_pass()
        assert result is not None
        assert {a.key for a in result.records.attachments} == set(map(key, RUNNING))
        assert set(links) == {o for o in host.kernel._objects.values() if isinstance(o, Veth)}
        host.check()


@pytest.mark.parametrize("name", ["AAA", "zzz"])
@pytest.mark.parametrize("restart", [False, True], ids=["daemon runs", "daemon starts"])
def test_a_record_that_was_copied_takes_nothing_from_the_pod_it_was_copied_from(
    host: Node, restart: bool, name: str
) -> None:
    """Somebody has put a backup back under another name, that sorts before or after."""
    before = set(host.kernel._objects.values())
    for change in ({"veth": "nnother"}, {"addresses": ["10.0.1.17"]}, {}):
        path = host.root / "run/attachments/pod1:eth0.json"
        copy = json.loads(path.read_text()) | {"containerID": name} | change
        path.with_name(f"{name}:eth0.json").write_text(json.dumps(copy))
        if restart:
            host.start()
        for _ in range(3):
            result = host.full_pass()
            assert result is not None
            assert before == set(host.kernel._objects.values())
            host.check()
        refusals = [str(r) for r in result.outcomes["attachment"].remaining.refusals]
        assert any("AssignedTwice" in r and f"{name}/eth0" in r for r in refusals), refusals
        said = host.audit()
        assert "AssignedTwice" in said
        assert "ip link" not in said
        assert "ip route" not in said


def test_in_another_network_namespace_than_the_nodes_nothing_is_planned(host: Node) -> None:
    """There no pod has a link, as if all had to be made anew, with what is inside of pods."""
    there = dict(host.kernel._objects)
    paths = sorted((host.root / "run/attachments").iterdir())
    before = [path.read_text() for path in paths]
    host.start()
    host.kernel._objects.clear()
    with pytest.raises(ObserveError, match="hostNetwork: true"):
        host.full_pass()
    assert host.kernel._objects == {}
    assert [path.read_text() for path in paths] == before
    host.kernel._objects.update(there)
    host.full_pass()
    assert host.kernel._objects == there
    host.check()


WORDS = ("RecordUnreadable", "IntentUnreadable", "RecordLost")


def disagreements(misfortunes: tuple[tuple[str, str], ...]) -> set[str]:
    """What an audit must say: what is there and cannot be read, and what is only in the kernel."""
    said = set()
    unwritable = {kind for kind, what in misfortunes if what == "unwritable"}
    torn = {kind for kind, what in misfortunes if what not in ("lost", "unwritable")}
    lost = {kind for kind, what in misfortunes if what == "lost"}
    if "intents" in torn - lost:
        said.add("IntentUnreadable")
    if torn - lost - {"intents", "look", *REMEMBERED}:
        said.add("RecordUnreadable")
    if "attachments" in unwritable and "attachments" in lost | torn:
        said.add("RecordLost")
    return said


@pytest.mark.parametrize("restart", [False, True], ids=["daemon runs", "daemon starts"])
@pytest.mark.parametrize("kind", [*KINDS, *REMEMBERED])
def test_no_pod_is_cut_renumbered_or_doubled_whatever_becomes_of_the_records(
    host: Node, kind: str, restart: bool
) -> None:
    """Every kind of record, every misfortune, and every combination of two.

    Of these one half while the daemon runs and the other half before it starts; ``make soak`` has
    all of them in both ways.
    """
    alone = [(one,) for one in MISFORTUNES if one[0] == kind]
    pairs = [pair for pair in combinations(MISFORTUNES, 2) if pair[0][0] == kind]
    pairs = pairs[int(restart) % SHARE :: SHARE]
    alone += [(one,) for one in MORE if one[0] == kind]
    more = [*product(MORE, MISFORTUNES), *combinations(MORE, 2)]
    more = [pair for pair in more if pair[0][0] == kind]
    pairs += more[int(restart) % RARELY :: RARELY]
    for misfortunes in (*alone, *pairs):
        if restart and set(misfortunes) in NOWHERE:
            continue
        what = [w for of, w in misfortunes if w != "unwritable"]
        if len(misfortunes) == 2 and misfortunes[0][0] == misfortunes[1][0] and len(what) == 2:
            continue  # what is lost cannot be empty too
        with snapshot(host):
            host.start()
            host.full_pass()
            try:
                live_through(host, misfortunes, restart=restart)
            except BaseException as error:
                error.add_note(f"{misfortunes}")
                raise


@pytest.mark.parametrize("kind", KINDS)
def test_a_release_with_one_field_more_or_less_costs_no_pod_anything(
    host: Node, kind: str
) -> None:
    """Upgrade, downgrade and rollback with pods: each restart finds what another release wrote."""
    for change in changes(host, kind):
        with snapshot(host):
            for path in paths(host, kind):
                change(path)
            host.start()
            kept = frozenset({COOLING, LEAVING[0]})
            try:
                host.full_pass()
                host.check(kept=kept)
                host.begin_pod(NEW)
                host.pods_pass(NEW)
                host.full_pass()
                host.check(kept=kept)
                host.daemon.pool.run(host.document)
                host.full_pass()
                result = host.full_pass()
                assert result is not None
                bound = {a.key for a in result.records.attachments}
                assert bound == set(map(key, (*RUNNING, NEW)))
                assert not [e for o in result.outcomes.values() for e in o.errors]
                host.check()
            except BaseException as error:
                error.add_note(str(change))
                raise


def test_every_file_that_the_daemon_writes_is_lost_in_a_test(host: Node) -> None:
    run = host.root / "run"
    parts = StateParts(run, run)
    known = {p.name for p in (*parts._directories, *parts._files)}
    tried = {SINGLE.get(kind, kind) for kind in (*KINDS, *REMEMBERED)}
    assert known == tried | ELSEWHERE.keys()
    assert {p.name for p in run.iterdir()} <= known


def paths(host: Node, kind: str) -> list[Path]:
    run = host.root / "run"
    return [run / SINGLE[kind]] if kind in SINGLE else sorted((run / kind).glob("*.json"))


def changes(host: Node, kind: str) -> Iterator[Callable[[Path], None]]:
    """Yield what makes of a file one that another release wrote."""

    def rewrite(path: Path, where: tuple[Any, ...], *, more: bool) -> None:
        body = json.loads(path.read_text())
        within = body
        with suppress(LookupError, TypeError):  # of another that is no file of this shape
            for step in where[:-1]:
                within = within[step]
            if more:
                within[where[-1]] = {"a": [1, None]}
            else:
                del within[where[-1]]
        path.write_text(json.dumps(body))

    for where in objects_in(json.loads(paths(host, kind)[0].read_text())):
        yield partial(rewrite, where=(*where, "later"), more=True)
    for where in fields_in(json.loads(paths(host, kind)[0].read_text())):
        yield partial(rewrite, where=where, more=False)


def objects_in(body: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in it there is an object; of a list the first element stands for all."""
    if isinstance(body, dict):
        yield where
    for name, value in steps_of(body):
        yield from objects_in(value, (*where, name))


def fields_in(body: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in it there is a field, likewise."""
    for name, value in steps_of(body):
        if isinstance(body, dict):
            yield (*where, name)
        yield from fields_in(value, (*where, name))


def steps_of(body: Any) -> list[tuple[Any, Any]]:
    if isinstance(body, list):
        return list(enumerate(body[:1]))
    return list(body.items()) if isinstance(body, dict) else []
