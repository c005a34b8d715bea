"""What the sysctl target promises, of /proc/sys and of the fake alike."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from conftest import namespace
from fakes import FakeSysctl

from lab import netns
from reconciler.domains.sysctl import Sysctl
from reconciler.engine.plan import Change, Verb
from reconciler.targets.kernel import PROC_SYS, SysctlTree

FORWARD = "net/ipv4/ip_forward"
LOOSE = "net/ipv4/conf/lo/rp_filter"
LOST = "net/ipv4/conf/eth9/rp_filter"


KERNELS = [
    pytest.param(each, marks=pytest.mark.kernel) for each in ("kernel", "mounted elsewhere")
]


@contextmanager
def mounted(at: Path) -> Iterator[Path]:
    """The host's /proc/sys/net at another place, as a container has it."""
    (at / "net").mkdir()
    subprocess.run(["mount", "--bind", "/proc/sys/net", str(at / "net")], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at / "net")], check=True)


@pytest.fixture(params=["fake", *KERNELS])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if request.param == "fake":
        yield FakeSysctl({FORWARD: "0", LOOSE: "0"})
        return
    elsewhere = (
        mounted(tmp_path) if request.param == "mounted elsewhere" else nullcontext(PROC_SYS)
    )
    with elsewhere as root, namespace("sysctl") as name, netns.inside(name):
        yield SysctlTree(root)


def write(name: str, value: str, where: str = "") -> Change[Sysctl]:
    return Change(Verb.UPDATE, Sysctl(name, value, where), "test")


def test_settings_come_back_as_they_were_written(target: Any) -> None:
    wanted = {Sysctl(FORWARD, "1"), Sysctl(LOOSE, "2")}
    assert target.apply([write(s.name, s.value) for s in wanted]) == ()
    assert target.observe(wanted) == wanted


def test_only_what_is_desired_is_read(target: Any) -> None:
    assert {s.name for s in target.observe([Sysctl(LOOSE, "2")])} == {LOOSE}


def test_a_setting_of_a_missing_link_is_left_out_and_refused_by_name(target: Any) -> None:
    assert target.observe([Sysctl(LOST, "2")]) == frozenset()
    (failure,) = target.apply([write(LOST, "2")])
    assert failure.reason == "ENOENT"


NO_IPV6 = "net/ipv6/conf/lo/disable_ipv6"


def test_a_pods_settings_are_its_own(target: Any, pod: str) -> None:
    inside, outside = Sysctl(NO_IPV6, "1", pod), Sysctl(NO_IPV6, "0")
    assert target.apply([write(NO_IPV6, "1", pod), write(NO_IPV6, "0")]) == ()
    assert target.observe([inside, outside]) == {inside, outside}
    assert target.apply([write(NO_IPV6, "0", pod)]) == ()
    assert target.observe([inside]) == {Sysctl(NO_IPV6, "0", pod)}


@pytest.mark.kernel
def test_a_pod_that_is_gone_is_named(home: str) -> None:
    del home
    lost, here = Sysctl(NO_IPV6, "0", "/run/netns/nobody"), Sysctl("net/ipv4/ip_forward", "1")
    seen = SysctlTree().observe([lost, here])
    assert seen.unread_places.keys() == {"/run/netns/nobody"}
    assert {o.name for o in seen} == {here.name}, "all others are read"
