"""What nobody planned for: hidden namespaces, foreign objects in the way, pods that misbehave."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import wild
from waiting import until

from lab import netns, pod
from lab.pod import PodError
from lab.traffic import Receiver, Stream, probe
from reconciler.domains.nat_objects import NftElement
from reconciler.targets.netlink.ruleset import Nfnetlink
from reconciler.targets.nftables.target import Nft

pytestmark = pytest.mark.lab

VPC_HOST = "10.0.9.10"


def inside(one: Any, *argv: str) -> None:
    command = ["nsenter", f"--net={netns.path(one.namespace)}", *argv]
    subprocess.run(command, check=True, capture_output=True)


def reasons(cluster: Any) -> list[str]:
    return [c["reason"] for c in cluster.status()["conditions"]]


@contextmanager
def living(one: Any) -> Iterator[None]:
    """Keep a pod's namespace alive by a process in it."""
    command = ["nsenter", f"--net={netns.path(one.namespace)}", "sleep", "60"]
    with subprocess.Popen(command) as process:
        where = netns.path(one.namespace).stat().st_ino
        until(lambda: Path(f"/proc/{process.pid}/ns/net").stat().st_ino == where, "the process")
        try:
            yield
        finally:
            process.send_signal(signal.SIGKILL)


def test_a_namespace_that_cannot_be_seen_any_more_is_not_a_dead_pod(cluster: Any) -> None:
    with cluster.pods(1) as (one,), Receiver(cluster.lab.names.namespace("vpchost")):
        before = cluster.drift()
        with Stream(one.namespace, VPC_HOST) as stream, living(one):
            subprocess.run(["umount", "-l", netns.path(one.namespace)], check=True)
            cluster.ip("rule", "delete", "priority", "512")  # makes it look at everything
            until(lambda: cluster.drift() > before, "the repair")
            until(lambda: reasons(cluster) == ["NetnsGone"], "the condition")
            assert stream.exchange("still here")
        assert cluster.drift() == before + 1


def test_a_pod_that_died_without_a_del_is_one_condition_and_no_drift(cluster: Any) -> None:
    one = cluster.add()
    before = cluster.drift()
    netns.remove(one.namespace)
    until(lambda: reasons(cluster) == ["NetnsGone"], "the condition")
    cluster.ip("rule", "delete", "priority", "512")
    until(lambda: cluster.drift() > before, "the repair")
    assert cluster.drift() == before + 1
    pod.call(cluster.lab, "node1", one.name, "DEL")
    until(lambda: not cluster.status()["conditions"], "its end")
    until(lambda: not cluster.holds(one), "the release")


def ruleset(cluster: Any) -> str:
    return str(cluster.lab.run("node1", ["nft", "list", "ruleset"]).stdout)


IN_THE_WAY = {
    "a link": (102, "InterfaceExists", ("link add eth0 type veth peer name far0",)),
    "a default route": (
        106,
        "ObjectExists",
        (
            "link add net1 type veth peer name far0",
            "address add 192.0.2.2/24 dev net1",
            "link set net1 up",
            "route add default via 192.0.2.1",
        ),
    ),
}
"""By what another owner has put into a pod's namespace: code, reason, and how it was put there."""


@pytest.mark.parametrize("what", IN_THE_WAY)
def test_an_object_in_the_way_fails_the_pod_at_once_with_a_code_of_its_own(
    cluster: Any, what: str
) -> None:
    code, reason, commands = IN_THE_WAY[what]
    number = next(cluster._numbers)
    namespace = cluster.lab.names.namespace(f"pod-p{number}")
    netns.make(namespace)
    try:
        for command in commands:
            argv = ["nsenter", f"--net={netns.path(namespace)}", "ip", *command.split()]
            subprocess.run(argv, check=True)
        # Longer than the test has: 11 after that time would not be heard.
        with pytest.raises(PodError, match=rf"{reason}: .* another owner") as caught:
            pod.call(cluster.lab, "node1", f"p{number}", "ADD", budget_s=110)
        assert caught.value.error["code"] == code
    finally:
        netns.remove(namespace)
    until(lambda: cluster.status()["settled"] and not cluster.status()["conditions"], "calm")


def test_a_second_interface_in_a_pod_is_refused_at_once_and_the_first_goes_on(
    cluster: Any,
) -> None:
    with cluster.pods(1) as (one,):
        with pytest.raises(PodError, match="NetnsTaken: ") as caught:
            pod.call(
                cluster.lab,
                "node1",
                one.name,
                "ADD",
                budget_s=110,
                environ={"CNI_IFNAME": "net1"},
            )
        assert caught.value.error["code"] == 105
        pod.call(cluster.lab, "node1", one.name, "DEL", environ={"CNI_IFNAME": "net1"})
        assert one.address in cluster.ip("route", "show", "table", "all")


def test_a_route_in_the_way_fails_the_pod_with_that_reason(idle: Any) -> None:
    idle.start()
    first = idle.lab.enis("node1")[0]["addresses"][1]
    idle.ip("route", "add", f"{first}/32", "dev", "eth0", "table", "512", "proto", "static")
    with pytest.raises(PodError, match=r"ForeignObject|stands in its place"):
        idle.add(budget_s=3)


def test_a_pod_that_churns_its_own_network_harms_no_other(cluster: Any) -> None:
    """Entries without their link, seen in the middle of a dump, once ended the daemon."""
    script = (
        "while :; do ip link add x0 type veth peer name x1; ip link set x0 up;"
        "ip neighbour add 192.0.2.1 lladdr 02:00:00:00:00:01 dev x0;"
        "ip link delete x0; done"
    )
    with cluster.pods(1) as (bad,), Receiver(cluster.lab.names.namespace("vpchost")):
        command = ["nsenter", f"--net={netns.path(bad.namespace)}", "sh", "-c", script]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(command, start_new_session=True, **quiet) as churn:
            try:
                deadline = time.monotonic() + 4
                while time.monotonic() < deadline:
                    one = cluster.add()
                    assert probe(one.namespace, VPC_HOST).source == one.address
                    cluster.delete(one)
            finally:
                os.killpg(churn.pid, signal.SIGKILL)
        assert cluster.answers()


def test_a_torn_record_is_rebuilt_from_the_kernel_and_its_address_stays_its_pods(
    cluster: Any,
) -> None:
    with cluster.pods(2) as (one, other), Receiver(cluster.lab.names.namespace("vpchost")):
        records = cluster.state() / "attachments"
        (path,) = records.glob(f"*{one.name}:eth0.json")
        before = json.loads(path.read_text())
        path.write_text(path.read_text()[:60])
        cluster.ip("rule", "delete", "priority", "1024")  # something happens
        until(lambda: len(content(path)) > 60, cluster.log)
        after = json.loads(path.read_text())
        assert after["addresses"] == before["addresses"]
        assert (after["veth"], after["eniID"]) == (before["veth"], before["eniID"])
        with cluster.pods(3) as more:
            assert one.address not in {p.address for p in more}
        assert probe(one.namespace, VPC_HOST).source == one.address
        assert probe(other.namespace, VPC_HOST).source == other.address
        (condition,) = until(lambda: cluster.status()["conditions"])
        assert condition["reason"] == "RecordUnreadable"
        aside = Path(condition["subject"].removeprefix("record "))
        aside.unlink()
        cluster.ip("rule", "delete", "priority", "1024")
        until(lambda: cluster.status()["settled"] and not cluster.status()["conditions"])


def content(path: Path) -> str:
    """Return what is in a file; nothing while it is being replaced."""
    with suppress(FileNotFoundError):
        return path.read_text()
    return ""


def test_an_address_that_only_a_torn_record_remembers_is_given_to_nobody(cluster: Any) -> None:
    with cluster.pods(1) as (one,):
        gone = one.address  # the next pod would get it, for its cooldown is over by then
    until(lambda: cluster.status()["pool"]["cooling"] == 0)
    # The type allows 27. Some of them may be on their way back to EC2, and one is withheld.
    free = min(cluster.status()["pool"]["allocatable"], 20)
    torn = cluster.state() / "attachments" / "dead:eth0.json"
    torn.write_text(f'{{"version": 1, "addresses": ["{gone}"], "conta')
    aside = cluster.state() / "unreadable" / "attachments-dead:eth0.json"
    cluster.ip("rule", "delete", "priority", "1024")
    until(aside.exists, cluster.log)
    try:
        with cluster.pods(free) as everybody:
            assert gone not in {p.address for p in everybody}
    finally:
        aside.unlink()


def test_a_del_ends_the_add_that_waits_for_the_same_pod(idle: Any) -> None:
    text = idle.config.read_text().replace("minimum: 24", "minimum: 0")
    idle.config.write_text(text.replace("excludeCIDRs: []", "excludeCIDRs: []\neni: {max: 1}"))
    idle.launch()
    until(idle.answers, "an answer")
    until(lambda: idle.status()["settled"], "calm")
    for _ in range(9):
        idle.add()
    name = f"p{next(idle._numbers)}"
    netns.make(idle.lab.names.namespace(f"pod-{name}"))
    seen: list[Any] = []

    def add() -> None:
        try:
            pod.call(idle.lab, "node1", name, "ADD", budget_s=60)
        except PodError as error:
            seen.append(error)

    thread = threading.Thread(target=add)
    thread.start()
    container = f"{idle.lab.names.lab}-{name}"
    until(lambda: container in {r["containerID"] for r in idle.records("intents")}, "the intent")
    began = time.monotonic()
    pod.call(idle.lab, "node1", name, "DEL")
    thread.join()
    assert time.monotonic() - began < 30
    assert "Withdrawn" in str(seen[0])
    until(lambda: container not in json.dumps(idle.records("intents")), "its end")


def test_a_document_behind_a_link_or_in_a_new_directory_is_still_read(
    idle: Any, tmp_path: Any
) -> None:
    """No notification comes; the next full look reads it."""
    text = idle.config.read_text() + "reconcile: {resync: 1s}\n"
    real = tmp_path / "real" / "document.yaml"
    real.parent.mkdir()
    real.write_text(text)
    idle.config.unlink()
    idle.config.symlink_to(real)
    idle.start()
    real.write_text(text.replace("excludeCIDRs: []", "excludeCIDRs: [192.0.2.0/24]"))
    until(lambda: "192.0.2.0/24" in ruleset(idle), "the edit")
    home = idle.config.parent / "home"
    home.mkdir()
    moved = home / "d.yaml"
    moved.write_text(text)
    idle.stop()
    idle.config = moved
    idle.start()
    shutil.rmtree(home)
    home.mkdir()
    moved.write_text(text.replace("excludeCIDRs: []", "excludeCIDRs: [198.51.100.0/24]"))
    until(lambda: "198.51.100.0/24" in ruleset(idle), "the edit in a new directory")


def test_rulesets_that_no_program_would_write_end_nothing_and_hide_nothing(cluster: Any) -> None:
    """Names that are no text, a set that is the end of libnftables, also in our own table."""
    daemon = cluster._running["node1"]
    with netns.inside(cluster.lab.names.namespace("node1")):
        kernel = Nfnetlink()
        for table in (b"fatal", b"\xff\xfe"):
            wild.make_table(kernel, table)
        wild.make_fatal_set(kernel, b"fatal")
        wild.make_fatal_set(kernel, b"node_network", "inet")
        wild.make_chain(kernel, b"\xff\xfe", b"\xfd", hook=2)
        wild.make_rule(kernel, b"\xff\xfe", b"\xfd", comment=b"\xfc")
    dropped = r"chain ip \xff\xfe \xfd"
    try:
        until(lambda: [c for c in cluster.status()["conditions"] if c["subject"] == dropped])
        with cluster.pods(2):
            pass
        before = cluster.config.read_text()
        cluster.config.write_text(before.replace("mode: node", "mode: external"))
        until(lambda: "0.0.0.0/0" in map(str, kept(cluster)))
        cluster.config.write_text(before)
        until(lambda: "0.0.0.0/0" not in map(str, kept(cluster)))
    finally:
        for table in (b"fatal", b"\xff\xfe"):
            wild.remove_table(kernel, table)
    until(cluster.is_settled)
    assert daemon.poll() is None, "the same process"
    assert cluster.lab.run("node1", ["nft", "list", "ruleset"]).returncode == 0


def kept(cluster: Any) -> list[str]:
    """What sees pods' own addresses, by our own reading."""
    with netns.inside(cluster.lab.names.namespace("node1")):
        return [o.text for o in Nft().observe() if isinstance(o, NftElement)]
