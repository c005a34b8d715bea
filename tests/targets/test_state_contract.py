"""What the state directory promises, of the disk and of the fake alike."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from builders import SUBNET, attachment, eni, intent, key, node
from fakes import FakeState

from reconciler.core.attachment import AttachmentKey, Cooling, IntentState
from reconciler.engine.plan import Change, Verb
from reconciler.errors import LockedError, ObserveError, StateError
from reconciler.ipam.cloud import Cloud, Limits, Subnet
from reconciler.ipam.ec2_action import Creation
from reconciler.ipam.identity import EgressIdentity
from reconciler.ipam.records import Records
from reconciler.ipam.release import Quarantine
from reconciler.targets.netlink.namespaces import open_namespace
from reconciler.targets.state.directory import StateDirectory
from reconciler.targets.state.record_file import write_atomically


@pytest.fixture(params=["fake", "disk"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if request.param == "fake":
        yield FakeState()
        return
    directory = StateDirectory(tmp_path / "run")
    directory.prepare()
    yield directory


RECORDS = [
    attachment(2, addresses=(ip_address("10.0.1.13"), ip_address("2001:db8::13"))),
    attachment(1, pod="default/web-0"),
    Cooling(ip_address("10.0.1.9"), 12.5),
    Cooling(ip_address("2001:db8::1"), 99.0),
    attachment(3, kept_macs=("02:11:00:00:00:01", "02:11:00:00:00:02")),
    Cooling(ip_address("10.0.1.8"), 13.5, spares=True),
    EgressIdentity("pay", "", (ip_address("10.0.1.14"), ip_address("2001:db8::14")), "eni-1"),
    EgressIdentity("pay", "front", (ip_address("10.0.1.15"),), "eni-2", idle_since=7.5),
]


def put(state: Any, *records: Any) -> None:
    assert state.apply([Change(Verb.CREATE, r, "test") for r in records]) == ()


def test_nothing_is_an_empty_observation(state: Any) -> None:
    assert state.observe() == Records()


def test_records_come_back_as_they_were_written_in_key_order(state: Any) -> None:
    put(state, *RECORDS)
    seen = state.observe()
    assert seen.attachments == (RECORDS[1], RECORDS[0], RECORDS[4])
    assert seen.attachments[2].host_mac == "02:11:00:00:00:01"
    assert seen.cooling == (RECORDS[5], RECORDS[2], RECORDS[3])
    assert seen.identities == (RECORDS[6], RECORDS[7])


def test_an_intent_comes_back_with_its_state(state: Any, tmp_path: Path) -> None:
    here = tmp_path / "netns"
    here.touch()
    wanted = intent(1, netns=str(here), netns_inode=here.stat().st_ino, pod="default/web-0")
    released = intent(2, IntentState.RELEASED, netns="", netns_inode=0, netns_alive=False)
    put(state, wanted, released)
    assert state.observe().intents == (wanted, released)


def test_deleting_twice_is_the_same_as_once(state: Any) -> None:
    put(state, *RECORDS)
    gone = [Change(Verb.DELETE, r, "test") for r in RECORDS]
    assert state.apply(gone) == ()
    assert state.apply(gone) == ()
    assert state.observe() == Records()


def directory(tmp_path: Path) -> StateDirectory:
    made = StateDirectory(tmp_path / "run")
    made.prepare()
    return made


@contextmanager
def nothing_more() -> Iterator[None]:
    """No file of this process may grow: the kernel refuses as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("inode", [0, Path("/proc/thread-self/ns/net").stat().st_ino])
def test_the_hosts_own_namespace_is_never_a_pods(tmp_path: Path, inode: int) -> None:
    """Its eth0 would get the pod's MAC and address: the host would lose its network."""
    state = directory(tmp_path)
    netns = "/proc/self/ns/net"
    put(state, intent(1, netns=netns, netns_inode=inode))
    put(state, attachment(2, netns=f"{netns}@{inode}" if inode else netns))
    for _ in range(2):  # as read, and as remembered
        seen = state.observe()
        assert [r.netns_alive for r in (*seen.intents, *seen.attachments)] == [False, False]
    with pytest.raises(FileNotFoundError):
        open_namespace(netns)


def test_a_reused_netns_path_is_not_alive(tmp_path: Path) -> None:
    state, here = directory(tmp_path), tmp_path / "netns"
    here.touch()
    put(state, intent(1, netns=str(here), netns_inode=here.stat().st_ino + 1))
    assert [i.netns_alive for i in state.observe().intents] == [False]


def test_two_threads_that_write_one_record_do_not_write_one_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: set[str] = set()
    rename = Path.replace

    def noted(self: Path, target: Any) -> Path:
        names.add(self.name)
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", noted)
    path = tmp_path / "x.json"
    write_atomically(path, {})
    other = threading.Thread(target=write_atomically, args=(path, {}))
    other.start()
    other.join()
    assert len(names) == 2


def test_a_name_that_is_not_utf8_is_told_so_that_it_can_be_printed(tmp_path: Path) -> None:
    state = directory(tmp_path)
    state.lock()
    for kind in ("intents", "attachments"):
        with open(os.fsencode(state.root / kind) + b"/\xff:eth0.json", "wb") as f:  # noqa: PTH123
            f.write(b"{")
    records = state.observe()
    (intent_text,) = records.unreadable
    (aside,) = records.set_aside
    for text in (intent_text, str(aside.attachment)):
        assert "\\xff" in text
        text.encode()


def test_directories_that_others_may_enter_are_closed(tmp_path: Path) -> None:
    made = StateDirectory(tmp_path / "run")
    (made.root / "intents").mkdir(parents=True)
    (made.root / "intents").chmod(0o777)
    made.prepare()
    assert (made.root / "intents").stat().st_mode & 0o777 == 0o700


def test_a_record_of_a_release_before_ipv6_is_read_with_its_one_address(tmp_path: Path) -> None:
    state = directory(tmp_path)
    put(state, attachment(1))
    path = state.root / "attachments" / "pod1:eth0.json"
    body = json.loads(path.read_text())
    (body["address"],) = body.pop("addresses")
    path.write_text(json.dumps(body))
    assert state.observe().attachments == (attachment(1),)


def test_half_written_files_are_not_records(tmp_path: Path) -> None:
    state = directory(tmp_path)
    (state.intents / ".pod1:eth0.json.77.tmp").write_text("{")
    assert state.observe() == Records()


def test_a_failed_write_stops_what_relies_on_it_and_leaves_nothing(tmp_path: Path) -> None:
    """Cooldown before release: if it cannot be recorded, the attachment stays."""
    state = directory(tmp_path)
    held = attachment(1)
    put(state, held)
    (state.root / "cooling").rmdir()
    failures = state.apply(
        [
            Change(Verb.CREATE, Cooling(held.addresses[0], 1.0), "released"),
            Change(Verb.DELETE, held, "given back"),
        ]
    )
    assert [f.reason for f in failures] == ["ENOENT", "ENOENT"]
    assert state.observe().attachments == (held,)


def test_records_are_for_root_alone(tmp_path: Path) -> None:
    state = directory(tmp_path)
    for kind in ("intents", "attachments", "cooling"):
        assert (state.root / kind).stat().st_mode & 0o077 == 0


def test_a_second_reconciler_is_refused_by_name(tmp_path: Path) -> None:
    first = directory(tmp_path)
    first.lock()
    with pytest.raises(LockedError, match=str(os.getpid())):
        StateDirectory(first.root).lock()


def test_the_lock_of_a_killed_reconciler_is_free(tmp_path: Path) -> None:
    state = directory(tmp_path)
    program = (
        "import os, sys; from pathlib import Path\n"
        "from reconciler.targets.state.directory import StateDirectory\n"
        "s = StateDirectory(Path(sys.argv[1])); s.lock(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, str(state.root)], check=False)
    state.lock()
    assert (state.root / "lock").read_text() == str(os.getpid())


def test_a_directory_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="free or remount"):
        StateDirectory(tmp_path / "file" / "run").prepare()


def test_unknown_fields_of_a_record_do_no_harm(tmp_path: Path) -> None:
    state = directory(tmp_path)
    put(state, attachment(1))
    path = state.root / "attachments" / "pod1:eth0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"later": 1}))
    assert state.observe().attachments == (replace(attachment(1)),)


def test_fields_of_another_release_survive_what_this_one_writes(tmp_path: Path) -> None:
    state = directory(tmp_path)
    put(state, intent(1))
    path = state.intents / "pod1:eth0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"later": {"a": 1}}))
    (before,) = state.observe().intents
    after = replace(before, state=IntentState.RELEASED)
    assert state.apply([Change(Verb.UPDATE, after, "gone", before)]) == ()
    body = json.loads(path.read_text())
    assert (body["state"], body["later"]) == ("released", {"a": 1})


def test_two_attachments_never_share_a_record(tmp_path: Path) -> None:
    state = directory(tmp_path)
    one = replace(attachment(1), key=AttachmentKey("x", "eth0.1"))
    two = replace(attachment(2), key=AttachmentKey("x.eth0", "1"))
    put(state, one, two)
    assert state.observe().attachments == (one, two)


def test_quarantine_and_creations_come_back_as_they_were_written(state: Any) -> None:
    leaving = [
        Quarantine(ip_network("10.0.1.7/32"), 5.0),
        Quarantine(ip_network("10.0.1.16/28"), 6.5),
    ]
    begun = Creation("t1", 1, "subnet-1", ("sg-1", "sg-2"), 9, 0, (("a", "b"),), 7.0)
    put(state, *leaving, begun)
    records = state.observe()
    assert sorted(records.quarantined, key=lambda q: q.since) == leaving
    assert records.creations == (begun,)
    state.forget(begun)
    state.record(replace(begun, done=True))
    assert state.observe().creations == (replace(begun, done=True),)


def test_a_look_comes_back_as_it_was_and_a_torn_one_is_none(tmp_path: Path) -> None:
    state = directory(tmp_path)
    assert state.recall() is None
    prefixed = replace(eni(1), prefixes=(ip_network("10.0.1.64/28"),), created_at=3.0)
    subnet = Subnet("subnet-a", "us-east-1a", SUBNET, 7, 3, (("k", "v"),))
    look = Cloud((eni(0), prefixed, eni(None)), Limits(3, 10), {"subnet-a": subnet})
    state.remember(node(), look)
    assert state.recall() == (node(), look)
    (state.root / "look.json").write_text("{")
    assert state.recall() is None


def test_a_look_at_some_keys_reads_those_and_keeps_the_others(state: Any) -> None:
    put(state, *RECORDS)
    before = state.observe()
    changed = replace(RECORDS[1], pod="default/web-1")
    put(state, changed, replace(RECORDS[0], pod="default/other"), Cooling(SUBNET[99], 1.0))
    now = state.observe_at({changed.key}, before)
    assert now.attachments == (changed, RECORDS[0], RECORDS[4])
    assert SUBNET[99] in {c.address for c in now.cooling}
    state.apply([Change(Verb.DELETE, changed, "test")])
    assert state.observe_at({changed.key}, now).attachments == (RECORDS[0], RECORDS[4])


def test_a_record_that_was_replaced_by_one_of_the_same_size_and_time_is_read_anew(
    tmp_path: Path,
) -> None:
    directory = StateDirectory(tmp_path)
    directory.prepare()
    put(directory, attachment(1, pod="default/web-0"))
    path = next((tmp_path / "attachments").iterdir())
    stamp = path.stat().st_mtime_ns
    assert directory.observe().attachments[0].pod == "default/web-0"
    put(directory, attachment(1, pod="default/web-1"))
    os.utime(path, ns=(stamp, stamp))
    assert directory.observe().attachments[0].pod == "default/web-1"


def test_a_namespace_that_ends_is_noticed_though_its_record_is_the_same(tmp_path: Path) -> None:
    directory = StateDirectory(tmp_path / "state")
    directory.prepare()
    here = tmp_path / "netns"
    here.touch()
    put(directory, intent(1, netns=str(here), netns_inode=here.stat().st_ino))
    assert directory.observe().intents[0].netns_alive
    here.unlink()
    assert not directory.observe().intents[0].netns_alive


HOUR_S, TEN_YEARS_S = 3600.0, 10 * 365 * 86400.0


@pytest.mark.parametrize("restart", [False, True], ids=["process lives", "another process"])
@pytest.mark.parametrize("step_s", [-TEN_YEARS_S, -HOUR_S, HOUR_S, TEN_YEARS_S])
def test_what_waits_waits_no_other_time_though_the_clock_is_set(
    tmp_path: Path, step_s: float, restart: bool
) -> None:
    """Neither longer nor shorter: the time since boot tells how much the clock was set."""
    steps = [0.0]
    state = StateDirectory(tmp_path / "run", offset=lambda: 1e9 + steps[0])
    state.prepare()
    state.lock()
    rest = Cooling(SUBNET[9], 1030.0)
    leaving = Quarantine(ip_network("10.0.1.7/32"), 1000.0, asked=0.0, gone=1010.0)
    begun = Creation("t1", 1, "subnet-1", ("sg-1",), 9, 0, (), 1000.0)
    put(state, rest, leaving, begun)
    assert state.observe().cooling == (rest,)
    with nothing_more():
        changed = replace(leaving, asked=1020.0)
        assert state.apply([Change(Verb.UPDATE, changed, "test", leaving)])
    steps[0] = step_s
    if restart:
        assert state._lock.fd is not None
        os.close(state._lock.fd)
        state = StateDirectory(tmp_path / "run", offset=lambda: 1e9 + steps[0])
        state.lock()
    for _ in range(2):
        records = state.observe()
        assert records.cooling == (Cooling(SUBNET[9], 1030.0 + step_s),)
        (moved,) = records.quarantined
        assert (moved.since, moved.gone) == (1000.0 + step_s, 1010.0 + step_s)
        assert moved.asked == (0.0 if restart else 1020.0 + step_s)
        assert records.creations == (replace(begun, at=1000.0 + step_s),)
    put(state, *records.cooling)
    assert state.observe().cooling == records.cooling, "it is written by the clock of now"
    steps[0] = step_s + 0.4
    assert state.observe().cooling == records.cooling, "a clock that is slewed was not set"


def test_after_a_boot_only_the_wall_clock_is_left(tmp_path: Path) -> None:
    state = directory(tmp_path)
    put(state, Cooling(SUBNET[9], 1030.0))
    (path,) = (state.root / "cooling").iterdir()
    body = json.loads(path.read_text())
    for clock in (
        {"boot": "another", "offset": 5.0},
        {},
        [],
        "x",
        {"boot": body["clock"]["boot"]},
    ):
        path.write_text(json.dumps(body | {"clock": clock}))
        assert StateDirectory(state.root).observe().cooling == (Cooling(SUBNET[9], 1030.0),)


def test_what_cannot_be_moved_is_named_where_it_is_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a disk that is full, or read-only: others are served, and the log is not filled."""
    state = directory(tmp_path)
    state.lock()
    put(state, attachment(2))
    shutil.rmtree(state.root / "unreadable")
    (state.root / "unreadable").touch()
    path = state.root / "attachments" / "pod1:eth0.json"
    path.write_text('{"version": 2, "addresses": ["10.0.1.77"]}')
    for _ in range(3):
        records = state.observe()
        (aside,) = records.set_aside
        assert (aside.path, aside.attachment) == (str(path), key(1))
        assert records.attachments == (attachment(2),)
    assert records.withheld(aside.since) == {ip_address("10.0.1.77")}
    assert len([r for r in caplog.records if "cannot be read" in r.message]) == 1
    assert "cannot be moved" in caplog.records[-1].why  # type: ignore[attr-defined]
    put(state, attachment(1))
    assert state.observe() == Records(attachments=(attachment(1), attachment(2)))


@pytest.mark.parametrize("kind", ["attachments", "cooling", "quarantine", "creations"])
def test_what_was_read_once_is_known_whatever_is_in_its_directorys_place(
    tmp_path: Path, kind: str
) -> None:
    state = directory(tmp_path)
    put(state, *RECORDS, Quarantine(ip_network("10.0.1.16/28"), 6.5))
    shutil.copytree(state.root, tmp_path / "another")
    state.lock()
    before = state.observe()
    shutil.rmtree(state.root / kind)
    (state.root / kind).touch()
    assert replace(state.observe(), unwritten=frozenset()) == before
    started = StateDirectory(tmp_path / "another")
    started.lock()
    shutil.rmtree(started.root / kind)
    (started.root / kind).touch()
    with pytest.raises(ObserveError, match=kind):
        started.observe()
