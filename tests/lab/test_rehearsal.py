"""The commands by which an operator rehearses an incident do what they say."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import fork_server, lab_name

from cni.exchange import SOCKET
from lab import lifecycle, pod_log
from lab.cli_rehearsal import BREAKAGES, NUMBERS
from lab.faults import SWITCHES
from lab.lifecycle import Lab
from reconciler.cli.main import main

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def own_lab() -> Iterator[Lab]:
    made = lifecycle.up(lab_name("r"), start=fork_server.start)
    try:
        yield made
    finally:
        lifecycle.down(made.names.lab)


def run(lab: Lab, *words: str) -> str:
    named = [] if words == ("ls",) else ["--name", lab.names.lab]
    at = 2 if words[0] in ("pod", "fault") else 1
    done = CliRunner().invoke(main, ["lab", *words[:at], *named, *words[at:]])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_lab_is_listed(own_lab: Lab) -> None:
    assert own_lab.names.lab in run(own_lab, "ls").split()


@pytest.mark.parametrize(
    ("words", "switches"),
    [
        (("throttle", "--rate", "0.5"), {"throttle": {"*": [1, 0.5]}}),
        (("deny", "CreateTags"), {"denied": ["CreateTags"]}),
        *(((command, "3"), {switch: 3}) for command, switch, *_ in NUMBERS),
    ],
    ids=lambda w: w[0] if isinstance(w, tuple) else "",
)
def test_a_fault_is_in_force_and_listed_until_it_is_cleared(
    own_lab: Lab, words: tuple[str, ...], switches: dict[str, object]
) -> None:
    run(own_lab, "fault", *words)
    assert switches.items() <= own_lab.ask("faults")["faults"].items()
    assert next(iter(switches)) in run(own_lab, "fault", "list")
    run(own_lab, "fault", "clear")
    assert own_lab.ask("faults")["faults"] == SWITCHES
    assert run(own_lab, "fault", "list") == ""


def test_a_route_needs_a_target_and_a_destination(own_lab: Lab) -> None:
    for words, why in (
        (("10.9.0.0/16", ""), "'' is no target: tgw, vgw, igw, or an id like pcx-0123"),
        (("", "tgw"), "'' is no destination: a CIDR, or a prefix list like pl-0123"),
        (("10.9.0.1/16", "igw"), "'10.9.0.1/16' is no destination"),
    ):
        named = ["lab", "route", "add", "--name", own_lab.names.lab, *words]
        done = CliRunner().invoke(main, named)
        assert done.exit_code == 2
        assert why in done.output


def test_subnets_without_room_refuse_addresses_and_enis(own_lab: Lab) -> None:
    run(own_lab, "fault", "exhaust")
    errors = own_lab.ask("faults")["faults"]["errors"]
    run(own_lab, "fault", "clear")
    assert {e["action"] for e in errors} == {"AssignPrivateIpAddresses", "CreateNetworkInterface"}
    assert {e["code"] for e in errors} == {"InsufficientFreeAddressesInSubnet"}


def test_a_node_is_left_as_the_stock_plugin_leaves_it_and_broken_as_others_do(
    own_lab: Lab,
) -> None:
    told = run(own_lab, "stock", "node2", "--pods", "1")
    first, second = (line.split()[-1] for line in told.splitlines())
    listed = run(own_lab, "pod", "list").splitlines()
    assert listed == [f"- s0x0 {first}", f"- s1x0 {second}"]
    checkpoint = own_lab.names.stock_plugin("node2") / "ipam.json"
    assert first in checkpoint.read_text()
    for what, commands in BREAKAGES.items():
        done = run(own_lab, "break", "node2", what)
        assert done.splitlines() == list(commands)  # and no error among them


def test_what_was_logged_about_a_pod_is_shown_as_one_story(
    own_lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the executable, with no reconciler there, and of a reconciler that writes to a file."""
    lab = own_lab.names.lab
    add = ["lab", "pod", "add", "--name", lab, "--start", "0.1", "node1", "web"]
    assert "code 11" in CliRunner().invoke(main, add).output
    log, container = tmp_path / "node1.log", f"{lab}-web"
    log.write_text(
        f"2020-01-01T00:00:00.000Z INFO add answered key={container}/eth0 attempt=a\n"
        f"2020-01-01T00:00:00.001Z INFO add answered key={container}2/eth0 attempt=b\n"
        '{"time": "2020-01-01T00:00:00.002Z", "message": "x", "pod": "default/web"}\n'
    )
    assert pod_log.find_reconciler(own_lab.names, "node1") is None
    answering = socket.socket(socket.AF_UNIX)
    answering.bind(str(own_lab.names.node_state("node1") / SOCKET))
    answering.listen()
    with answering:
        assert pod_log.find_reconciler(own_lab.names, "node1") == os.getpid()
        monkeypatch.setattr(pod_log, "reconcilers_log", lambda _: log)
        shown = run(own_lab, "pod", "logs", "web").splitlines()
    whose = [line.partition("  ")[0].strip() for line in shown]
    assert whose == ["reconciler of node1"] * 2 + ["cni on node1"]
    assert "attempt=a" in shown[0]
    assert f"container={container}" in shown[2]
    assert "code=11" in shown[2]
    unknown = CliRunner().invoke(main, ["lab", "pod", "logs", "--name", own_lab.names.lab, "no"])
    assert unknown.exit_code == 2
    assert "nothing was logged about pod no" in unknown.output
