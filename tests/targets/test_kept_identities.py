"""What is kept of egress identities for the next boot, on a disk that others may have changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import SUBNET

from reconciler.engine.plan import Change, Verb
from reconciler.ipam.identity import MAX_IDENTITIES, EgressIdentity
from reconciler.ipam.records import Records
from reconciler.targets.state.directory import StateDirectory
from reconciler.targets.state.kept_identities import MAX_KEPT_BYTES, KeptIdentities

PAY = EgressIdentity("pay", "", (SUBNET[12],), "eni-0", idle_since=5.0)
WEB = EgressIdentity("web", "front", (SUBNET[31],), "eni-1")


def started(tmp_path: Path) -> StateDirectory:
    """A reconciler's records; of one that ran before, it has ended."""
    made = StateDirectory(tmp_path / "run", tmp_path / "var")
    made.prepare()
    made.lock()
    return made


def put(state: StateDirectory, *records: EgressIdentity, verb: Verb = Verb.CREATE) -> None:
    assert state.apply([Change(verb, r, "test") for r in records]) == ()


def boot(tmp_path: Path) -> None:
    """``/run`` is empty after it."""
    shutil.rmtree(tmp_path / "run")


def test_after_a_boot_they_are_known_and_written_again(tmp_path: Path) -> None:
    put(started(tmp_path), PAY, WEB)
    boot(tmp_path)
    seen = started(tmp_path).observe()
    assert seen.identities == (PAY, WEB)
    assert set(seen.lost) == {PAY, WEB}  # the next pass writes them
    assert SUBNET[12] in seen.withheld(0.0)


def test_it_is_kept_before_its_record_is_written(tmp_path: Path) -> None:
    """A crash in between leaves the address to no other."""
    state = started(tmp_path)
    put(state, PAY)
    (tmp_path / "run/identities").rename(tmp_path / "run/gone")
    kept: list[tuple[EgressIdentity, ...]] = []
    keep = state.kept.keep
    state.kept.keep = lambda i: (keep(i), kept.append(KeptIdentities(tmp_path / "var").recall()))
    assert state.apply([Change(Verb.CREATE, WEB, "test")])  # the disk takes no record of it
    assert kept[0] == (PAY, WEB)
    assert kept[-1] == (PAY,)


def test_the_records_count_and_not_what_was_kept(tmp_path: Path) -> None:
    state = started(tmp_path)
    put(state, PAY, WEB)
    put(state, moved := replace(WEB, idle_since=7.0), verb=Verb.UPDATE)
    put(state, PAY, verb=Verb.DELETE)
    assert KeptIdentities(tmp_path / "var").recall() == (moved,)
    state.kept.keep((PAY, WEB))  # as a crash between the two may leave it
    reader = StateDirectory(state.root, tmp_path / "var")
    assert reader.observe().identities == (moved,)


def test_without_a_place_that_outlives_a_boot_they_are_kept_beside_the_records(
    tmp_path: Path,
) -> None:
    state = StateDirectory(tmp_path / "run")
    state.prepare()
    put(state, PAY)
    assert (tmp_path / "run/identities.json").stat().st_mode & 0o777 == 0o600


def test_a_disk_that_refuses_is_a_condition_until_it_takes_them(tmp_path: Path) -> None:
    state = started(tmp_path)
    (tmp_path / "var").write_text("not a directory")
    put(state, PAY)
    (told,) = state.reclaim()
    assert told.reason == "IdentitiesNotKept"
    assert "after a reboot" in told.message
    (tmp_path / "var").unlink()
    assert state.reclaim() == ()
    assert KeptIdentities(tmp_path / "var").recall() == (PAY,)


def change(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        body = json.loads(path.read_text())
        edit(body)
        path.write_text(json.dumps(body))

    return write


def of_first(**fields: object) -> Callable[[Path], None]:
    return change(lambda body: body["identities"][0].update(fields))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text("{"),
        lambda path: path.write_text("[]"),
        lambda path: path.write_bytes(b" " * (MAX_KEPT_BYTES + 1)),
        lambda path: path.chmod(0o666),
        lambda path: (path.unlink(), path.mkdir()),
        change(lambda body: body.update(version=2)),
        change(lambda body: body.update(identities=7)),
        of_first(namespace="../../etc/passwd"),
        of_first(namespace="a" * 64),
        of_first(group="A/B"),
        of_first(addresses=[]),
        of_first(addresses="10.0.1.12"),
        of_first(addresses=["10.0.1.12"] * 9),
        of_first(eni_id="e" * 5000),
        of_first(lost_since="NaN"),
    ],
)
def test_what_is_none_of_ours_is_not_believed(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    put(started(tmp_path), PAY)
    damage(tmp_path / "var/identities.json")
    boot(tmp_path)
    assert started(tmp_path).observe() == Records()


def test_no_more_are_believed_than_a_node_may_have(tmp_path: Path) -> None:
    kept = KeptIdentities(tmp_path)
    kept.keep([replace(PAY, namespace=f"n{n}") for n in range(MAX_IDENTITIES + 9)])
    assert len(KeptIdentities(tmp_path).recall()) == MAX_IDENTITIES
