"""What the state directory promises, of the disk and of the fake alike."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import stat
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
from builders import SUBNET, attachment, document, eni, inputs, intent, key, node
from fakes import FakeState

from reconciler.core.attachment import AttachmentKey, Cooling, IntentState
from reconciler.domains import attachment as attachment_domain
from reconciler.engine.plan import Change, Verb
from reconciler.errors import LockedError, ObserveError, StateError
from reconciler.ipam.cloud import Cloud, Limits, Subnet
from reconciler.ipam.ec2_action import Creation
from reconciler.ipam.records import WITHHELD_S, Records
from reconciler.ipam.release import Quarantine
from reconciler.targets.netlink.namespaces import open_namespace
from reconciler.targets.state import record_file
from reconciler.targets.state.directory import StateDirectory
from reconciler.targets.state.kind_records import MAX_UNREADABLE, IntentRecords
from reconciler.targets.state.record_file import MAX_RECORDS, write_atomically


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
    assert seen.cooling == (RECORDS[2], RECORDS[3])


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


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"version": 2}',
        '{"version": Infinity}',
        '{"version": 1}',
        '{"version": 1, "address": "x"}',
    ],
)
def test_a_record_that_cannot_be_read_is_set_aside_by_the_one_writer_and_named(
    tmp_path: Path, content: str
) -> None:
    state = directory(tmp_path)
    put(state, attachment(2))
    path = state.root / "attachments" / "pod1:eth0.json"
    path.write_text(content)
    assert state.observe().attachments == (attachment(2),)
    assert path.read_text() == content, "without the lock it is left where it is"
    state.lock()
    records = state.observe()
    assert records.attachments == (attachment(2),)
    (aside,) = records.set_aside
    assert not path.exists()
    assert Path(aside.path).read_text() == content
    assert state.observe().set_aside == (aside,)
    Path(aside.path).unlink()
    assert state.observe().set_aside == ()


def test_addresses_that_can_be_made_out_in_a_torn_record_are_named(tmp_path: Path) -> None:
    state = directory(tmp_path)
    state.lock()
    torn = '{"version": 1, "addresses": ["10.0.1.77", "2001:db8::7"], "netns": "/run/netns/x", "e'
    (state.root / "attachments" / "pod1:eth0.json").write_text(torn)
    (state.root / "cooling" / "10.0.1.78.json").write_bytes(bytes(90))
    (state.root / "quarantine" / "10.0.1.80-28.json").write_text("")
    records = state.observe()
    named = {str(a) for record in records.set_aside for a in record.addresses}
    assert {"10.0.1.77", "2001:db8::7", "10.0.1.78", "10.0.1.80"} == named
    since = records.set_aside[0].since
    assert ip_address("10.0.1.77") in records.withheld(since + WITHHELD_S - 1)
    assert records.withheld(since + WITHHELD_S + 60) == frozenset()


BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()

IN_PLACE: dict[str, Any] = {
    "symlink": lambda path: path.symlink_to("/dev/zero"),
    "symlink to itself": lambda path: path.symlink_to(path.name),
    "symlink to a file": lambda path: path.symlink_to("/etc/passwd"),
    "hard link": lambda path: path.hardlink_to(_elsewhere(path)),
    "fifo": os.mkfifo,
    "directory": lambda path: path.mkdir(),
    "socket": lambda path: os.mknod(path, 0o600 | stat.S_IFSOCK),
    "device": lambda path: os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5)),
    "endless": lambda path: path.write_text('{"padding": "' + "x" * 1_000_000),
    "nested": lambda path: path.write_text("[" * 10_000),
    "zeros": lambda path: path.write_bytes(bytes(4096)),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe{"),
    "an array": lambda path: path.write_text("[1]"),
    "no time": lambda path: path.write_text(
        '{"version": 1, "address": "10.0.1.50", "until": NaN, "network": "10.0.1.64/28", '
        '"since": Infinity}'
    ),
    "no clock": lambda path: path.write_text(
        '{"version": 1, "address": "10.0.1.50", "until": 5, "network": "10.0.1.64/28", "since": 5,'
        f'"clock": {{"boot": "{BOOT}", "offset": NaN}}}}'
    ),
    "lists for texts": lambda path: path.write_text('{"version": 1, "addresses": [[]]}'),
    "endless texts": lambda path: path.write_text(
        json.dumps({"version": 1, "addresses": ["10.0.1.9"], "eniID": "e" * 5000, "veth": "v"})
    ),
    "a later schema": lambda path: path.write_text('{"version": 2}'),
}


def _elsewhere(path: Path) -> Path:
    other = path.with_name("other")
    other.write_text("another program's")
    return other


@pytest.mark.parametrize("kind", ["intents", "attachments", "cooling", "quarantine", "creations"])
@pytest.mark.parametrize("what", IN_PLACE)
def test_whatever_stands_in_the_place_of_a_record_concerns_its_own_object_only(
    tmp_path: Path, kind: str, what: str
) -> None:
    """It is never waited for, nor followed, nor read beyond a record's size."""
    state = directory(tmp_path)
    state.lock()
    others = (*RECORDS, intent(5, netns_alive=False))
    put(state, *others)
    names = {"cooling": "10.0.1.50", "quarantine": "10.0.1.64-28", "creations": "t"}
    path = state.root / kind / f"{names.get(kind, 'pod9:eth0')}.json"
    IN_PLACE[what](path)
    records = state.observe()
    assert {a.key for a in records.attachments} == {a.key for a in RECORDS[:2]} | {RECORDS[4].key}
    assert [i.key for i in records.intents] == [intent(5).key]
    if kind == "intents":
        assert len(records.unreadable) == 1
        return
    (aside,) = records.set_aside
    assert not os.path.lexists(path)
    assert os.path.lexists(aside.path)
    told = {"cooling": ip_address("10.0.1.50"), "quarantine": ip_network("10.0.1.64/28")}
    known = [*(c.address for c in records.cooling), *(q.network for q in records.quarantined)]
    assert (told.get(kind) in known) == (kind in told), "its name says what it was about"
    assert aside.attachment == (AttachmentKey("pod9", "eth0") if kind == "attachments" else None)


def test_a_record_that_is_lost_is_known_and_written_again(tmp_path: Path) -> None:
    """Nobody else writes it: whoever removed it has released nothing."""
    state = directory(tmp_path)
    state.lock()
    creation = Creation("t1", 1, "subnet-1", ("sg-1",), 9, 0, (), 7.0)
    everything = (*RECORDS, Quarantine(ip_network("10.0.1.16/28"), 6.5), creation)
    put(state, *everything)
    before = state.observe()
    shutil.rmtree(state.root)
    lost = state.observe()
    assert replace(lost, unwritten=frozenset()) == before
    assert set(lost.lost) == set(everything)
    again = [Change(Verb.CREATE, r, "lost") for r in lost.lost]
    assert len(state.apply(again)) == len(again), "its directory is not there"
    assert state.observe() == lost
    state.prepare()
    assert state.apply(again) == ()
    assert state.observe() == before
    put_away = [Change(Verb.DELETE, r, "done") for r in everything]
    assert state.apply(put_away) == ()
    assert state.observe() == Records(), "what the reconciler removes is gone"


def test_only_the_one_writer_knows_what_is_lost(tmp_path: Path) -> None:
    """For whoever only looks, a record that went between two looks was released."""
    state = directory(tmp_path)
    put(state, *RECORDS)
    assert state.observe().attachments
    shutil.rmtree(state.root)
    assert state.observe() == Records()


def test_no_edit_of_a_record_gives_a_pod_that_runs_another_address(tmp_path: Path) -> None:
    """What it was given is known, and is written again; without a reconciler an edit counts."""
    state = directory(tmp_path)
    state.lock()
    given = attachment(1)
    put(state, given, Cooling(SUBNET[9], 1e9))
    for part in ({"addresses": ["10.0.1.200"]}, {"veth": "nnother"}, {"netns": "/proc/1/ns/net"}):
        edit(state.root / "attachments" / "pod1:eth0.json", part)
        for records in (state.observe(), state.observe_at({given.key}, Records())):
            assert records.attachments == (given,)
            assert records.lost == (given,)
    put(state, given)
    assert state.observe().lost == ()
    edit(state.root / "cooling" / f"{SUBNET[9]}.json", {"until": 5.0})
    assert [c.until for c in state.observe().cooling] == [5.0]
    edit(state.root / "attachments" / "pod1:eth0.json", {"addresses": ["10.0.1.200"]})
    (seen,) = directory(tmp_path).observe().attachments
    assert [str(a) for a in seen.addresses] == ["10.0.1.200"]


def edit(path: Path, part: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | part))


def test_a_change_that_the_disk_does_not_take_counts_and_is_tried_again(tmp_path: Path) -> None:
    state = directory(tmp_path)
    state.lock()
    put(state, Cooling(SUBNET[9], 1e10))
    (before,) = state.observe().cooling
    after = replace(before, until=5.0)
    with nothing_more():
        assert state.apply([Change(Verb.UPDATE, after, "the clock was set back", before)])
    records = state.observe()
    assert records.cooling == (after,)
    assert records.lost == (after,)
    put(state, after)
    assert state.observe() == Records(cooling=(after,))


def test_what_cannot_be_written_stops_what_relies_on_it_and_no_other(tmp_path: Path) -> None:
    state = directory(tmp_path)
    one, two = attachment(1), attachment(2)
    put(state, one, two)
    (state.root / "cooling" / f"{one.addresses[0]}.json").mkdir()
    failures = state.apply(
        [
            Change(Verb.CREATE, Cooling(one.addresses[0], 1.0), "released"),
            Change(Verb.DELETE, one, "given back"),
            Change(Verb.CREATE, Cooling(two.addresses[0], 1.0), "released"),
            Change(Verb.DELETE, two, "given back"),
        ]
    )
    assert [f.reason for f in failures] == ["EISDIR", "EISDIR"]
    assert state.observe().attachments == (one,)


def test_a_hundred_thousand_files_of_another_are_counted_and_pods_found_by_name(
    tmp_path: Path,
) -> None:
    state = directory(tmp_path)
    put(state, intent(1, netns_alive=False))
    assert len(state.observe().intents) == 1
    junk = state.intents / "junk:eth0.json"
    junk.touch()
    for number in range(MAX_RECORDS + 500):
        os.link(junk, state.intents / f"a{number}:eth0.json")
    put(state, intent(2, netns_alive=False))
    records = state.observe()
    assert intent(1).key in {i.key for i in records.intents}
    assert len(records.unreadable) == MAX_UNREADABLE + 1
    ((crowded, what),) = records.crowded
    assert crowded == str(state.intents)
    assert f"of which {MAX_RECORDS}" in what
    assert intent(2).key in {i.key for i in state.observe_at({intent(2).key}, records).intents}


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


WANTED: dict[str, Any] = {
    "version": 1,
    "state": "wanted",
    "containerID": "a",
    "ifname": "b",
    "netns": "/x",
    "netnsInode": 3,
    "attempt": "one",
}


def write_intent(directory: StateDirectory, **fields: Any) -> Path:
    path = directory.intents / "a:b.json"
    path.write_text(json.dumps(WANTED | fields))
    return path


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[" * 100_000,
        "\0",
        "null",
        json.dumps(WANTED | {"netnsInode": float("inf")}),
        json.dumps(WANTED | {"netns": "/\0"}),
        json.dumps(WANTED | {"state": ["wanted"]}),
        json.dumps(WANTED | {"containerID": "another"}),
        json.dumps(WANTED | {"padding": "x" * 100_000}),
    ],
    ids=lambda text: text[:40].strip("\0"),
)
def test_an_intent_that_cannot_be_understood_is_named_and_keeps_nobody_else_waiting(
    tmp_path: Path, content: str
) -> None:
    state = directory(tmp_path)
    put(state, intent(1))
    path = state.intents / "a:b.json"
    path.write_text(content)
    records = state.observe()
    assert [i.key for i in records.intents] == [intent(1).key]
    (named,) = records.unreadable
    assert named.startswith(f"{path}: ")
    again = state.observe_at({intent(1).key}, records)
    assert again.unreadable == (named,)
    write_intent(state)
    assert state.observe().unreadable == ()


def test_a_name_that_is_no_file_makes_nobody_wait(tmp_path: Path) -> None:
    state = directory(tmp_path)
    os.mkfifo(state.intents / "a:b.json")
    assert len(state.observe().unreadable) == 1


def test_an_intent_that_was_replaced_meanwhile_is_neither_forgotten_nor_changed(
    tmp_path: Path,
) -> None:
    """A container is started again as soon as its DEL was recorded."""
    state = directory(tmp_path)
    path = write_intent(state, state="released")
    (seen,) = state.observe().intents
    write_intent(state, attempt="two")
    for change in (
        Change(Verb.DELETE, seen, "done"),
        Change(Verb.UPDATE, replace(seen, netns="/y"), "test", seen),
    ):
        (failure,) = state.apply([change])
        assert "meanwhile" in str(failure)
    assert json.loads(path.read_text())["attempt"] == "two"


def test_an_intent_that_is_replaced_while_it_is_removed_is_there_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at the file, and then the unlink, would take what was put there in between."""
    state = directory(tmp_path)
    path = write_intent(state, state="released")
    (seen,) = state.observe().intents
    check = IntentRecords._check_unchanged

    def replaced_after(self: IntentRecords, where: Path, intent: Any) -> None:
        check(self, where, intent)
        write_intent(state, attempt="two")

    monkeypatch.setattr(IntentRecords, "_check_unchanged", replaced_after)
    state.apply([Change(Verb.DELETE, seen, "done")])
    assert json.loads(path.read_text())["attempt"] == "two"
    assert [p.name for p in state.intents.iterdir()] == [path.name]


def test_what_a_killed_reconciler_had_put_aside_is_gone_with_the_next_one(tmp_path: Path) -> None:
    state = directory(tmp_path)
    (state.intents / ".a:b.json.aside").write_text("{}")
    state.lock()
    assert not list(state.intents.iterdir())


def test_a_release_that_could_not_be_written_is_written_or_remembered(tmp_path: Path) -> None:
    state = directory(tmp_path)
    path = write_intent(state)
    released = WANTED | {"state": "released"}
    (wanted,) = state.observe().intents
    with nothing_more():
        state.hand_over(released)
    assert json.loads(path.read_text())["state"] == "wanted"
    (told,) = state.observe().intents
    assert told.state is IntentState.RELEASED
    assert state.observe_at({told.key}, Records((wanted,))).intents == (told,)
    assert state.apply([Change(Verb.DELETE, told, "done")]) == ()
    assert not path.exists()
    write_intent(state, attempt="two")
    assert state.observe().intents[0].state is IntentState.WANTED, "another ADD is another wish"
    state.hand_over(released | {"attempt": "two"})
    assert json.loads(path.read_text())["state"] == "released"


def test_releases_that_are_handed_over_while_others_look_are_neither_lost_nor_in_their_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look walks what was handed over; a release that comes in between waits for its end."""
    state = directory(tmp_path)
    write_intent(state)
    (wanted,) = state.observe().intents
    with nothing_more():
        state.hand_over(WANTED | {"state": "released"})
    late = WANTED | {"state": "released", "containerID": "late"}
    (state.intents / "late:b.json").write_text(json.dumps(WANTED | {"containerID": "late"}))
    comes: list[threading.Thread] = []

    class Walked(dict[Any, Any]):
        def items(self) -> Any:
            for item in list(super().items()):
                yield item
                if not comes:
                    comes.append(threading.Thread(target=state.hand_over, args=(late,)))
                    comes[0].start()
                    comes[0].join(0.2)

    monkeypatch.setattr(record_file, "write_atomically", refuse)
    state._intents._handed_over = Walked(state._intents._handed_over)
    state.observe()
    comes[0].join()
    assert {i.state for i in state.observe().intents} == {IntentState.RELEASED}
    assert {i.key.container_id for i in state.observe().intents} == {
        wanted.key.container_id,
        "late",
    }


def refuse(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


ODD = ["\udcff", "\ud800", "a\udfff\ud800b"]


@pytest.mark.parametrize("odd", ODD)
def test_a_lone_surrogate_in_a_pods_name_is_spelt_out_wherever_it_goes(
    tmp_path: Path, odd: str
) -> None:
    """It has ended the daemon: the link's name is a hash of the pod's, and a hash is of bytes."""
    state = directory(tmp_path)
    told = {"podNamespace": "n", "podName": odd, "attempt": odd, "traceparent": f"00-{odd}"}
    write_intent(state, netns=str(tmp_path), netnsInode=tmp_path.stat().st_ino, **told)
    records = state.observe()
    (read,) = records.intents
    assert read.pod.startswith("n/")
    for text in (read.pod, read.attempt, read.trace):
        text.encode()
    desired = attachment_domain.desire(inputs(2, document=document(pods={"vethName": "pod"})))
    plan = attachment_domain.plan(desired, records)
    assert state.apply(plan.actions) == ()
    (bound,) = state.observe().attachments
    assert bound.pod == read.pod


@pytest.mark.parametrize("odd", ODD)
def test_a_key_that_no_kernel_could_be_told_concerns_its_own_intent_alone(
    tmp_path: Path, odd: str
) -> None:
    state = directory(tmp_path)
    write_intent(state)
    body = json.dumps(WANTED | {"containerID": odd})
    name = f"{odd}:b.json" if odd == "\udcff" else "x:b.json"  # a file's name can be so, or not
    (state.intents / name).write_text(body)
    records = state.observe()
    assert [i.key.container_id for i in records.intents] == [WANTED["containerID"]]
    (told,) = records.unreadable
    told.encode()


@contextmanager
def nothing_more() -> Iterator[None]:
    """No file of this process may grow: the kernel refuses as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "release",
    [
        {},
        [],
        "x",
        WANTED,
        WANTED | {"state": "released", "containerID": "../../x"},
        WANTED | {"state": "released", "ifname": "../x"},
    ],
)
def test_what_is_no_release_is_not_taken_over(tmp_path: Path, release: Any) -> None:
    state = directory(tmp_path)
    with pytest.raises((ValueError, KeyError, TypeError)):
        state.hand_over(release)
    assert list(tmp_path.rglob("*.json")) == []


def test_what_killed_writers_left_is_swept_and_what_is_being_written_is_not(
    tmp_path: Path,
) -> None:
    state = directory(tmp_path)
    left, fresh = state.intents / ".a:b.json.1.tmp", state.intents / ".a:b.json.2.tmp"
    for path in (left, fresh):
        path.write_text("{")
    os.utime(left, (1, 1))
    kept = write_intent(state)
    os.utime(kept, (1, 1))
    state.sweep()
    assert not left.exists()
    assert fresh.exists()
    assert kept.exists()


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
