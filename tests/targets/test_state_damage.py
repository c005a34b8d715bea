"""Records that are damaged, lost, edited or that the disk does not take."""

from __future__ import annotations

import json
import os
import shutil
import stat
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from builders import SUBNET, attachment, intent
from targets.test_state_contract import RECORDS, directory, nothing_more, put

from reconciler.core.attachment import AttachmentKey, Cooling
from reconciler.engine.plan import Change, Verb
from reconciler.ipam.ec2_action import Creation
from reconciler.ipam.records import WITHHELD_S, Records
from reconciler.ipam.release import Quarantine
from reconciler.targets.state.kind_records import MAX_UNREADABLE
from reconciler.targets.state.record_file import MAX_RECORDS


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
