"""What a restart finds: EC2 that does not answer, records that are lost, a directory mistyped."""

from __future__ import annotations

import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from waiting import until

from lab import lifecycle, netns, pod
from lab.pod import PodError
from lab.traffic import Receiver, Stream, probe
from reconciler.daemon.client import ask

pytestmark = pytest.mark.lab

VPC_HOST = "10.0.9.10"
DENIED = {"denied": ["DescribeNetworkInterfaces"]}


def datapath(cluster: Any) -> list[str]:
    """Everything of ours on node1."""
    lists = [
        cluster.ip("-o", "link"),
        cluster.ip("rule"),
        cluster.ip("route", "show", "table", "all", "proto", "201"),
        cluster.ruleset(),
    ]
    return [line for text in lists for line in text.splitlines()]


def on_secondary(cluster: Any) -> Any:
    """Start pods until one is on a secondary ENI, and return that one."""
    while True:
        one = cluster.add()
        if one.device:
            return one


def test_a_restart_changes_nothing_though_ec2_cannot_be_read(idle: Any) -> None:
    """The last observation is remembered.

    Without ENIs a node would seem to need none of their routes.
    """
    idle.start()
    one = on_secondary(idle)
    with (
        Receiver(idle.lab.names.namespace("vpchost")),
        Stream(one.namespace, VPC_HOST) as stream,
    ):
        before = datapath(idle)
        idle.stop()
        idle.lab.ask("faults", set=DENIED)
        try:
            idle.launch()
            until(idle.answers, "an answer")
            until(lambda: idle.status()["conditions"], "the condition")
            assert datapath(idle) == before
            assert stream.exchange("still here")
            two = idle.add()  # from what was last seen, and no EC2 call
            assert probe(two.namespace, VPC_HOST).source == two.address
        finally:
            idle.lab.ask("faults", clear=True)
    assert "not desired" not in (idle.state() / "log").read_text()


def test_apply_without_ec2_says_so_and_touches_nothing(idle: Any) -> None:
    idle.start()
    on_secondary(idle)
    idle.stop()
    for remembered in (True, False):
        if not remembered:
            (idle.state() / "look.json").unlink()
        before = datapath(idle)
        idle.lab.ask("faults", set=DENIED)
        for verb in ("diff", "apply"):
            done = idle.command("node1", verb, "-f", str(idle.config))
            assert done.returncode == 2
            assert "UnauthorizedOperation" in done.stdout
            assert "delete" not in done.stdout + done.stderr
        idle.lab.ask("faults", clear=True)
        assert datapath(idle) == before


def test_the_first_start_without_ec2_waits_and_then_converges(idle: Any) -> None:
    idle.lab.ask("faults", set=DENIED)
    idle.launch()
    until(idle.answers, "an answer")
    until(lambda: {"NotReady"} <= {c["reason"] for c in idle.status()["conditions"]}, "conditions")
    assert [line for line in datapath(idle) if "201" in line or "node_network" in line] == []
    idle.lab.ask("faults", clear=True)
    until(idle.is_settled, idle.log, patience_s=60)


def test_lost_records_are_rebuilt_from_the_kernel_and_their_pods_keep_running(idle: Any) -> None:
    idle.start()
    made = [idle.add() for _ in range(12)]
    one = made[-1]
    assert one.device
    with (
        Receiver(idle.lab.names.namespace("vpchost")),
        Stream(one.namespace, VPC_HOST) as stream,
    ):
        before = datapath(idle)
        idle.stop()
        for kind in ("attachments", "intents"):
            shutil.rmtree(idle.state() / kind)
        idle.start()
        assert datapath(idle) == before
        assert stream.exchange("still here")
    addresses = {p.address for p in made}

    def recorded() -> set[str]:
        return {a for r in idle.records("attachments") for a in r["addresses"]}

    until(lambda: recorded() == addresses, lambda: str(recorded()))
    assert idle.add().address not in addresses
    idle.delete(one)
    assert one.address not in "\n".join(datapath(idle))


def test_a_del_for_a_pod_whose_record_is_lost_still_releases_it(idle: Any) -> None:
    idle.start()
    one = idle.add()
    idle.stop()
    shutil.rmtree(idle.state() / "attachments")
    pod.call(idle.lab, "node1", one.name, "DEL")
    idle.start()
    until(lambda: not idle.holds(one), "the release")
    assert one.address not in "\n".join(datapath(idle))


def test_a_mistyped_state_directory_costs_no_pod_its_link(idle: Any, tmp_path: Any) -> None:
    idle.start()
    for _ in range(3):
        idle.add()
    idle.stop()
    before = datapath(idle)
    typo = tmp_path / "typo"
    argv = ["apply", "-f", str(idle.config), "--state-dir", str(typo)]
    done = idle.command("node1", *argv)
    assert done.returncode == 0, done.stderr
    assert datapath(idle) == before
    (line,) = idle.diff().stdout.splitlines()  # the runtime was told of the other directory
    assert f'plugins[0].stateDir "{typo}" ->' in line


def test_a_state_directory_that_is_a_file_is_an_error(idle: Any, tmp_path: Any) -> None:
    wrong = tmp_path / "file"
    wrong.write_text("")
    for verb in ("diff", "apply", "run"):
        argv = [verb, "-f", str(idle.config), "--state-dir", str(wrong)]
        done = idle.command("node1", *argv)
        assert done.returncode == 2
        assert str(wrong) in done.stdout + done.stderr


CHANGES_IN_EC2 = ("Create", "Attach", "Assign", "Unassign", "Detach", "Delete")


def test_after_a_reboot_the_same_pods_start_again_and_ec2_is_asked_for_nothing(idle: Any) -> None:
    """``/run`` and every namespace are gone; ENIs and addresses are still assigned."""
    idle.start()
    before = [idle.add() for _ in range(20)]
    every, enis = idle.lab.enis(), idle.lab.enis("node1")
    room = sum(len(e["addresses"]) - 1 for e in enis)
    assert len(before) > room / 2, "were these still counted, they would not fit in again"
    ours = ("node-network:", "proto 201", "node_network", "512:")
    assert all(word in "\n".join(datapath(idle)) for word in ours)
    lifecycle.reboot(idle.lab, "node1")
    idle.stop()
    assert not any(netns.path(one.namespace).exists() for one in before)
    assert [line for line in datapath(idle) if any(word in line for word in ours)] == []
    assert idle.records("attachments") == idle.records("intents") == []
    # A runtime may be faster than the daemon: the configuration on the disk is still there.
    with pytest.raises(PodError) as refused:
        pod.add(idle.lab, "node1", "early", budget_s=1)
    assert refused.value.error["code"] == 11
    idle.lab.ask("calls", reset=True)
    idle.start()
    # Each its own sandbox again; a runtime that keeps the id of some is no trouble.
    again = [
        pod.add(idle.lab, "node1", one.name if n % 2 else f"again{n}", pod_name=one.name)
        for n, one in enumerate(before)
    ]
    until(idle.is_settled, idle.log)
    held = {a for e in enis for a in e["addresses"]} - {e["primary"] for e in enis}
    addresses = {one.address for one in again}
    assert len(addresses) == len(before)
    assert addresses <= held
    assert {a for r in idle.records("attachments") for a in r["addresses"]} == addresses
    assert idle.records("cooling") == idle.records("quarantine") == []
    pool = {
        "assigned": 20,
        "allocatable": room - 20,
        "cooling": 0,
        "quarantined": 0,
        "dedicated": 0,
    }
    assert idle.status()["pool"] == pool
    calls = idle.lab.ask("calls")["calls"]
    assert "DescribeNetworkInterfaces" in calls
    assert [c for c in calls if c.startswith(CHANGES_IN_EC2)] == []
    assert idle.lab.enis() == every
    done = idle.command("node1", "audit", "-f", str(idle.config), "--apart", "0.2")
    assert (done.returncode, done.stdout) == (0, "")
    with Receiver(idle.lab.names.namespace("vpchost")):
        for one in again:
            assert probe(one.namespace, VPC_HOST).source == one.address


def test_no_add_fails_while_the_reconciler_is_replaced_again_and_again(idle: Any) -> None:
    """As in a rollout and after a crash, while pods start all the time."""
    idle.start()
    ended, failed = threading.Event(), []

    def come_and_go() -> None:
        while not ended.is_set():
            try:
                idle.delete(idle.add())
            except PodError as error:
                failed.append(error)

    with ThreadPoolExecutor(3) as runtimes:
        working = [runtimes.submit(come_and_go) for _ in range(3)]
        try:
            for sent in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM):
                idle.stop(number=sent)
                ended.wait(1)  # as long as a runtime takes to start the next container
                idle.launch()
                until(idle.answers)
        finally:
            ended.set()
    for each in working:
        each.result()
    assert failed == []


def test_after_a_reboot_what_pods_had_is_kept_until_they_have_come_back(idle: Any) -> None:
    """It was detached while they were queueing, and the last of them waited for a minute."""
    text = idle.config.read_text()
    idle.config.write_text(text.replace("minimum: 24", "minimum: 0") + "reconcile: {resync: 1s}\n")
    idle.least = 2
    idle.start()
    before = [idle.add() for _ in range(20)]
    until(idle.is_settled, idle.log)
    every = idle.lab.enis()
    lifecycle.reboot(idle.lab, "node1")
    idle.stop()
    idle.lab.ask("calls", reset=True)
    idle.launch()
    until(idle.answers, "an answer")

    def reasons() -> set[str]:
        return {c["reason"] for c in idle.status()["conditions"]}

    until(lambda: reasons() == {"DemandUnknown"}, lambda: str(idle.status()["conditions"]))
    (told,) = idle.status()["conditions"]
    assert "addresses beyond 2" in told["text"]
    until(lambda: idle.status()["settled"], idle.log)
    assert ask(idle.socket(), {"do": "ready"})["ok"]
    for one in before[:10]:
        pod.add(idle.lab, "node1", f"again-{one.name}", pod_name=one.name)
    assert idle.records("quarantine") == []
    for one in before[10:]:
        pod.add(idle.lab, "node1", f"again-{one.name}", pod_name=one.name)
    until(lambda: reasons() == set(), lambda: str(idle.status()["conditions"]))
    assert idle.records("quarantine") == []
    assert [c for c in idle.lab.ask("calls")["calls"] if c.startswith(CHANGES_IN_EC2)] == []
    assert idle.lab.enis() == every
