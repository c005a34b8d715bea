"""What removes the CNI configuration at a boot: as we want it, and as systemd understands it."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from builders import inputs

from reconciler.core.facts import Installation
from reconciler.domains import boot_rule, conflist
from reconciler.domains.boot_rule import BootRule
from reconciler.engine.plan import Verb

PLACES = Installation("/etc/cni/net.d", "", "", "/run/node-network", "/etc/tmpfiles.d")


def desire(places: Installation = PLACES) -> frozenset[BootRule]:
    return boot_rule.desire(inputs(installation=places))


def test_it_is_wanted_where_the_configuration_is_ours_and_a_directory_is_named() -> None:
    (one,) = desire()
    assert one.path == "/etc/tmpfiles.d/node-network.conf"
    assert one.removes == "/etc/cni/net.d/10-node-network.conflist"
    assert one.text.splitlines()[-1] == "r! /etc/cni/net.d/10-node-network.conflist"
    assert (
        desire(replace(PLACES, tmpfiles_dir="")) == desire(replace(PLACES, conf_dir="")) == set()
    )


def test_a_path_that_cannot_be_said_in_one_word_is_not_said() -> None:
    assert desire(replace(PLACES, conf_dir="/etc/my cni")) == set()


def test_what_differs_is_written_and_nothing_is_deleted() -> None:
    (want,) = desire()
    other = replace(want, removes="")
    assert [a.verb for a in boot_rule.plan({want}, []).actions] == [Verb.CREATE]
    assert [a.verb for a in boot_rule.plan({want}, [other]).actions] == [Verb.UPDATE]
    assert boot_rule.plan({want}, [want]).actions == ()
    assert boot_rule.plan(set(), [want]).actions == ()


@pytest.mark.parametrize("name", ["net.d", "%t-100%", "a*b?[c]"])
def test_systemd_removes_the_configuration_at_a_boot_and_nothing_else(
    tmp_path: Path, name: str
) -> None:
    if shutil.which("systemd-tmpfiles") is None:
        pytest.skip("there is no systemd-tmpfiles")
    (rule,) = desire(replace(PLACES, conf_dir=f"/etc/{name}"))
    for path, text in ((rule.path, rule.text), (rule.removes, "{}")):
        (tmp_path / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path[1:]).write_text(text)
    ours = tmp_path / rule.removes[1:]
    others = {
        ours.with_name("10-aws.conflist"),
        tmp_path / "etc/net/10-node-network.conflist",
        tmp_path / "etc/aXbYc/10-node-network.conflist",
    }
    for other in others:
        other.parent.mkdir(exist_ok=True)
        other.touch()

    def run(*options: str) -> None:
        words = ["systemd-tmpfiles", f"--root={tmp_path}", "--create", "--remove", *options]
        subprocess.run([*words, boot_rule.NAME], check=True, capture_output=True)

    run()
    assert ours.exists(), "not while the node runs, as when a package is installed"
    run("--boot")
    assert not ours.exists()
    assert all(other.exists() for other in others)


def test_it_removes_what_the_daemon_writes() -> None:
    (rule,) = desire()
    (written,) = conflist.desire(inputs(installation=PLACES))
    assert rule.removes == written.path
