"""What the runtime's directories promise, those of a disk and the fake's alike."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_directories import FakeDirectories

from reconciler.core.facts import Installation
from reconciler.domains import boot_rule
from reconciler.domains.boot_rule import BootRule
from reconciler.domains.conflist import NAME, Conflist, OtherConf, Plugins, normal
from reconciler.domains.executable import Executable
from reconciler.engine.plan import Change, Verb
from reconciler.errors import ObserveError
from reconciler.targets.files.installation import INTERIM, HostDirectories
from schemas.cni import TYPE

CONTENT = normal('{"name": "n", "plugins": [{"type": "node-network"}]}')


class World:
    """The target, and what somebody else does to its directories."""

    def __init__(self, root: Path, *, is_real: bool) -> None:
        self.conf, self.plugins = root / "net.d", root / "bin"
        self.program = root / "shipped"
        self.program.write_bytes(b"#!/bin/sh\nsleep 60\n")
        self.tmpfiles = root / "tmpfiles.d"
        self.places = Installation(
            *map(str, (self.conf, self.plugins, self.program, "/run/node-network", self.tmpfiles))
        )
        self.is_real = is_real
        self.target: Any = (HostDirectories if is_real else FakeDirectories)(self.places)

    @property
    def conflist(self) -> Conflist:
        return Conflist(str(self.conf / NAME), CONTENT)

    @property
    def executable(self) -> Executable:
        return Executable(str(self.plugins / TYPE), str(self.program))

    @property
    def boot_rule(self) -> BootRule:
        return BootRule(str(self.tmpfiles / boot_rule.NAME), str(self.conf / NAME))

    def write(self, directory: Path, name: str, text: str, mode: str = "0644") -> None:
        if self.is_real:
            directory.mkdir(exist_ok=True)
            (directory / name).write_text(text)
            (directory / name).chmod(int(mode, 8))
        else:
            self.target.files[str(directory / name)] = (text, mode)

    def seen(self, kind: type) -> set[Any]:
        return {o for o in self.target.observe([]) if isinstance(o, kind)}


@pytest.fixture(params=["fake", "disk"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    return World(tmp_path, is_real=request.param == "disk")


@pytest.fixture
def disk(tmp_path: Path) -> World:
    return World(tmp_path, is_real=True)


def create(*objects: Any) -> list[Change[Any]]:
    return [Change(Verb.CREATE, o, "test") for o in objects]


def test_directories_that_are_not_there_yet_hold_nothing(world: World) -> None:
    assert world.target.observe([]) == {Plugins(str(world.plugins), frozenset())}


def test_what_was_written_is_seen_and_twice_is_the_same_as_once(world: World) -> None:
    for _ in range(2):
        assert world.target.apply(create(world.executable, world.conflist)) == ()
        assert world.seen(Executable) == {world.executable}
        assert world.seen(Conflist) == {world.conflist}
    (plugins,) = world.seen(Plugins)
    assert plugins.names == {TYPE}


def test_what_is_removed_is_gone_and_twice_is_the_same_as_once(world: World) -> None:
    world.target.apply(create(world.executable, world.conflist))
    world.write(world.conf, "99-other.conflist", "{}")
    for _ in range(2):
        gone = (world.conflist, world.executable)
        assert world.target.apply([Change(Verb.DELETE, o, "test") for o in gone]) == ()
        assert not world.seen(Executable) | world.seen(Conflist)
    assert {o.name for o in world.seen(OtherConf)} == {"99-other.conflist"}


def test_what_is_removed_at_a_boot_is_written_put_back_and_removed(world: World) -> None:
    for _ in range(2):
        assert world.target.apply(create(world.boot_rule)) == ()
        assert world.seen(BootRule) == {world.boot_rule}
    world.write(world.tmpfiles, boot_rule.NAME, "r! /etc/passwd", "0600")
    (seen,) = world.seen(BootRule)
    assert (seen.removes, seen.mode) == ("", "0600")
    assert world.target.apply(create(world.boot_rule)) == ()
    assert world.seen(BootRule) == {world.boot_rule}
    assert world.target.apply([Change(Verb.DELETE, world.boot_rule, "test")]) == ()
    assert world.seen(BootRule) == set()


def test_the_same_in_another_writing_is_the_same(world: World) -> None:
    world.write(world.conf, NAME, json.dumps(json.loads(CONTENT), indent=7))
    assert world.seen(Conflist) == {world.conflist}


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a": 1', "nul", "\x00"])
def test_what_is_no_json_is_seen_as_such(world: World, text: str) -> None:
    world.write(world.conf, NAME, text)
    (seen,) = world.seen(Conflist)
    assert seen.content == ""
    assert world.target.apply(create(world.conflist)) == ()
    assert world.seen(Conflist) == {world.conflist}


def test_a_changed_mode_and_another_program_are_seen(world: World) -> None:
    world.write(world.conf, NAME, CONTENT, "0600")
    world.write(world.plugins, TYPE, "another", "0755")
    assert {o.mode for o in world.seen(Conflist)} == {"0600"}
    assert {o.copy_of for o in world.seen(Executable)} == {""}


def test_other_owners_files_are_named_with_what_they_say_and_left_alone(world: World) -> None:
    world.write(world.conf, "10-aws.conflist", '{"plugins": [{"type": "aws-cni"}]}')
    world.write(world.conf, "00-multus.conf", "not JSON")
    world.write(world.conf, "README", "no configuration")
    world.write(world.plugins, "portmap", "")
    assert world.seen(OtherConf) == {
        OtherConf("10-aws.conflist", frozenset({"aws-cni"})),
        OtherConf("00-multus.conf"),
    }
    before = world.seen(OtherConf)
    world.target.apply(create(world.executable, world.conflist))
    assert world.seen(OtherConf) == before
    (plugins,) = world.seen(Plugins)
    assert plugins.names == {TYPE, "portmap"}


def test_nothing_is_looked_at_where_nothing_is_to_be_installed(world: World) -> None:
    world.write(world.conf, NAME, CONTENT)
    world.target.places = Installation()
    assert world.target.observe([]) == frozenset()


# -- of the disk alone ---------------------------------------------------------------------


def test_a_running_executable_is_replaced_and_runs_on(disk: World) -> None:
    disk.target.apply(create(disk.executable))
    # A script would not be busy: the kernel runs its interpreter.
    sleep = Path("/bin/sleep").read_bytes()
    disk.program.write_bytes(sleep)
    disk.target.apply(create(disk.executable))
    with subprocess.Popen([disk.plugins / TYPE, "60"]) as running:
        try:
            disk.program.write_bytes(sleep + b"\0")
            (seen,) = disk.seen(Executable)
            assert seen.copy_of == ""
            assert disk.target.apply(create(disk.executable)) == ()
            assert disk.seen(Executable) == {disk.executable}
            assert running.poll() is None
        finally:
            running.kill()


def test_an_executable_that_has_not_changed_is_not_read_again(disk: World) -> None:
    disk.target.apply(create(disk.executable))
    assert disk.seen(Executable) == {disk.executable}
    before = disk.target._compared
    disk.seen(Executable)
    assert disk.target._compared is before
    # As long as it was, and as old: only the inode tells.
    times = disk.program.stat()
    (disk.plugins / TYPE).write_bytes(b"#!/bin/sh\nsleep 61\n")
    os.utime(disk.plugins / TYPE, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert {o.copy_of for o in disk.seen(Executable)} == {""}


def test_a_reader_sees_the_old_or_the_new_and_never_a_part(disk: World) -> None:
    """As containerd does, which reads the directory whenever something in it changes."""
    long = Conflist(disk.conflist.path, normal(json.dumps({"a": ["x" * 100] * 2000})))
    disk.target.apply(create(disk.conflist))
    ended = threading.Event()

    def rewrite() -> None:
        for i in range(60):
            assert disk.target.apply(create(long if i % 2 else disk.conflist)) == ()
        ended.set()

    writer = threading.Thread(target=rewrite)
    writer.start()
    while not ended.is_set():
        found = [p for p in disk.conf.iterdir() if p.suffix in {".conf", ".conflist", ".json"}]
        assert [p.name for p in found] == [NAME]
        assert normal(found[0].read_text()) in (CONTENT, long.content)
    writer.join()


@pytest.fixture
def full(disk: World) -> Iterator[World]:
    """A world whose directory of configurations has room for nothing more."""
    disk.conf.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(disk.conf)], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk.conf)], check=True)


@pytest.mark.kernel
def test_on_a_full_disk_the_old_configuration_stays_and_nothing_half_written(full: World) -> None:
    full.target.apply(create(full.conflist))
    large = Conflist(full.conflist.path, normal(json.dumps({"a": "x" * 30_000})))
    (failure,) = full.target.apply(create(large))
    assert failure.reason == "ENOSPC"
    assert "free some space" in failure.message
    assert full.seen(Conflist) == {full.conflist}
    assert [p.name for p in full.conf.iterdir()] == [NAME]


@pytest.mark.kernel
def test_a_read_only_directory_is_an_error_that_says_what_to_do(full: World) -> None:
    full.target.apply(create(full.conflist))
    subprocess.run(["mount", "-o", "remount,ro", str(full.conf)], check=True)
    changed = Conflist(full.conflist.path, normal('{"name": "other"}'))
    (failure,) = full.target.apply(create(changed))
    assert failure.reason == "EROFS"
    assert "mount the directory writable" in failure.message
    assert full.seen(Conflist) == {full.conflist}


def test_without_its_executable_no_configuration_is_written(disk: World) -> None:
    disk.plugins.write_text("a file in the directory's place")
    with pytest.raises(ObserveError, match="remove the file that has a directory's name"):
        disk.target.observe([])
    failures = disk.target.apply(create(disk.executable, disk.conflist))
    assert {f.reason for f in failures} <= {"EEXIST", "ENOTDIR"}
    assert len(failures) == 2
    assert not disk.conf.exists()


def test_a_directory_in_a_files_place_is_named(disk: World) -> None:
    (disk.conf / NAME).mkdir(parents=True)
    with pytest.raises(ObserveError, match=f"{NAME}: it is a directory; remove it"):
        disk.target.observe([])
    (failure,) = disk.target.apply(create(disk.conflist))
    assert failure.reason == errno.errorcode[errno.EISDIR]
    assert [p.name for p in disk.conf.iterdir()] == [NAME]


def test_what_stands_in_the_place_of_the_boot_rule_hinders_nothing_else(disk: World) -> None:
    (disk.tmpfiles / boot_rule.NAME).mkdir(parents=True)
    (failure,) = disk.target.apply(create(disk.executable, disk.conflist, disk.boot_rule))
    assert failure.reason == "EISDIR"
    assert disk.seen(Conflist) == {disk.conflist}
    assert {o.removes for o in disk.seen(BootRule)} == {""}


def test_an_executable_that_was_not_shipped_is_named(disk: World) -> None:
    disk.program.unlink()
    with pytest.raises(ObserveError, match="--cni-executable"):
        disk.target.observe([])


def test_a_link_or_a_pipe_in_a_files_place_is_replaced_and_not_followed(disk: World) -> None:
    elsewhere = disk.conf.parent / "elsewhere"
    elsewhere.write_text("kept")
    disk.conf.mkdir()
    (disk.conf / NAME).symlink_to(elsewhere)
    assert disk.target.apply(create(disk.conflist)) == ()
    assert elsewhere.read_text() == "kept"
    (disk.conf / NAME).unlink()
    os.mkfifo(disk.conf / NAME)
    (seen,) = disk.seen(Conflist)
    assert seen.content == ""
    assert disk.target.apply(create(disk.conflist)) == ()
    assert disk.seen(Conflist) == {disk.conflist}


def test_what_a_killed_process_has_left_is_used_up(disk: World) -> None:
    disk.conf.mkdir()
    disk.plugins.mkdir()
    for directory in (disk.conf, disk.plugins):
        for name in INTERIM:
            (directory / name).write_text("half")
    assert disk.seen(OtherConf) == set()
    assert disk.target.apply(create(disk.executable, disk.conflist)) == ()
    assert f".{NAME}.tmp" not in {p.name for p in disk.conf.iterdir()}
    assert f".{TYPE}.tmp" not in {p.name for p in disk.plugins.iterdir()}
