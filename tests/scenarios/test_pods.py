"""Pods come and go through the real executable; the reconciler comes and goes too."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from lab import flows, netns, pod
from lab.pod import PodError
from lab.traffic import Receiver, Stream, probe

pytestmark = pytest.mark.lab

VPC_HOST = "10.0.9.10"


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
def test_a_pod_gets_an_address_in_the_words_of_its_version(cluster: Any, version: str) -> None:
    one = cluster.add(version=version)
    try:
        host, inside = one.result["interfaces"]
        (ip,) = one.result["ips"]
        assert one.result["cniVersion"] == version
        assert ("version" in ip) == (version == "0.4.0")
        assert ("mtu" in inside) == (version == "1.1.0")
        assert inside["sandbox"] == str(netns.path(one.namespace))
        assert ip["address"].endswith("/32")
        links = json.loads(cluster.ip("-j", "link", "show", "dev", host["name"]))
        assert links[0]["address"] == host["mac"]
        assert links[0]["ifalias"] == f"node-network:{cluster.lab.names.lab}-{one.name}/eth0"
    finally:
        cluster.delete(one)


def test_what_del_leaves_behind_is_a_cooling_address_and_nothing_else(cluster: Any) -> None:
    before = cluster.ip("-o", "link")
    one = cluster.add()
    cluster.delete(one)
    assert one.address in [r["address"] for r in cluster.records("cooling")]
    assert cluster.ip("-o", "link") == before
    assert cluster.ip("route", "show", "table", "512") == ""
    assert one.address not in cluster.ruleset()


def test_del_twice_and_del_of_a_stranger_succeed(cluster: Any) -> None:
    one = cluster.add()
    cluster.delete(one)
    pod.call(cluster.lab, "node1", one.name, "DEL")
    pod.call(cluster.lab, "node1", "neverseen", "DEL")


def test_a_late_del_of_a_dead_sandbox_frees_nothing_that_lives(cluster: Any) -> None:
    with cluster.pods(1) as (living,):
        pod.call(cluster.lab, "node1", "neverseen", "DEL")
        with Receiver(cluster.lab.names.namespace("vpchost")):
            assert probe(living.namespace, VPC_HOST).source == living.address


def test_del_is_honoured_though_the_namespace_is_gone(cluster: Any) -> None:
    one = cluster.add()
    netns.remove(one.namespace)
    pod.call(cluster.lab, "node1", one.name, "DEL")
    until(lambda: not cluster.holds(one), "the release")


def test_a_burst_is_answered_whole_and_no_address_is_given_twice(cluster: Any) -> None:
    with ThreadPoolExecutor(8) as workers:
        made = list(workers.map(lambda _: cluster.add(), range(16)))
    try:
        assert len({p.address for p in made}) == 16
    finally:
        for one in made:
            cluster.delete(one)


def test_a_full_node_refuses_with_the_planners_reason_and_leaves_nothing(idle: Any) -> None:
    """27 pod addresses fit an m5.large; the pool grows past its minimum for them."""
    idle.start()
    with ThreadPoolExecutor(8) as workers:
        made = list(workers.map(lambda _: idle.add(), range(27)))
    assert len({p.address for p in made}) == 27
    with pytest.raises(PodError, match="code 11: AddressesExhausted") as caught:
        idle.add(budget_s=3)
    assert "27 held on 3 ENIs, 27 assigned, 0 cooling" in str(caught.value)
    assert "the pool cannot grow: PoolLimitReached: 30 addresses wanted, 27 held" in str(
        caught.value
    )
    until(lambda: len(idle.records("intents")) == 27, "the refused intent's end")
    (condition, *_) = until(lambda: idle.status()["conditions"], "a condition")
    assert condition["reason"] in {"PoolLimitReached", "AddressesExhausted"}
    netns.remove(made[0].namespace)
    pod.call(idle.lab, "node1", made[0].name, "DEL")
    assert idle.add(budget_s=10).address == made[0].address  # after its cooldown of 2 s


def test_without_a_reconciler_add_says_try_again_at_once_and_leaves_nothing(idle: Any) -> None:
    began = time.monotonic()
    with pytest.raises(PodError, match="code 11: NotRunning: the reconciler is not running"):
        idle.add()
    assert time.monotonic() - began < 5
    assert list(idle.state().rglob("*.json")) == []


def test_a_del_without_a_reconciler_is_kept_and_honoured_later(idle: Any) -> None:
    idle.start()
    one = idle.add()
    idle.stop()
    pod.delete(idle.lab, "node1", one.name)
    assert [i["state"] for i in idle.records("intents")] == ["released"]
    idle.start()
    until(lambda: not idle.records("attachments") + idle.records("intents"), "the release")
    assert one.address not in idle.ruleset()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
def test_pods_do_not_notice_a_restart(idle: Any, number: int) -> None:
    idle.start()
    made = [idle.add() for _ in range(12)]
    source = made[-1]
    with (
        Receiver(idle.lab.names.namespace("vpchost")),
        Stream(source.namespace, VPC_HOST) as open_,
    ):
        before = idle.lab.run("node1", ["nft", "-s", "list", "ruleset"]).stdout
        idle.stop(number=number)
        assert open_.exchange("nobody watches")
        idle.start()
        assert open_.exchange("somebody does again")
        assert probe(source.namespace, VPC_HOST).source == source.address
        assert idle.lab.run("node1", ["nft", "-s", "list", "ruleset"]).stdout == before
    assert idle.drift() == 0
    fresh = idle.add()
    assert fresh.address not in {p.address for p in made}


def test_two_reconcilers_do_not_run_at_once(cluster: Any) -> None:
    done = cluster.command("node1", "run", "-f", str(cluster.config))
    assert done.returncode == 2
    assert "already reconciles this node" in done.stderr
    until(lambda: cluster.status()["settled"], cluster.log)  # it may be at an earlier test's pods


def test_a_stray_request_on_the_socket_is_refused_politely(cluster: Any) -> None:
    import socket

    for line in (b"\n", b"nonsense\n", b"[]\n", b'{"do": "dance"}\n', b'{"do": "add"}\n'):
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(5)
            s.connect(str(cluster.socket()))
            s.sendall(line)
            assert json.loads(s.recv(65536))["ok"] is False
    assert cluster.socket().stat().st_mode & 0o077 == 0


def test_the_pods_own_namespace_holds_what_it_needs_and_no_more(cluster: Any) -> None:
    with cluster.pods(1) as (one,):

        def inside(*words: str) -> list[dict[str, Any]]:
            argv = ["nsenter", f"--net={netns.path(one.namespace)}", "ip", "-j", *words]
            done = subprocess.run(argv, check=True, capture_output=True, text=True)
            body: list[dict[str, Any]] = json.loads(done.stdout or "[]")
            return body

        host, _ = one.result["interfaces"]
        routes = {(r["dst"], r.get("gateway")) for r in inside("route")}
        assert routes == {("default", "169.254.1.1"), ("169.254.1.1", None)}
        (neighbour,) = inside("neighbour", "show", "nud", "permanent")
        assert (neighbour["dst"], neighbour["lladdr"]) == ("169.254.1.1", host["mac"])
        (link,) = [x for x in inside("link") if x["ifname"] == "eth0"]
        assert (link["mtu"], link["operstate"]) == (9001, "UP")


def test_metrics_count_addresses_by_state_and_calls_by_action(cluster: Any) -> None:
    def metrics() -> dict[str, float]:
        lines = cluster.status()["metrics"].splitlines()
        pairs = [line.rpartition(" ") for line in lines if not line.startswith("#")]
        return {name: float(value) for name, _, value in pairs}

    def addresses(state: str) -> float:
        found = metrics().items()
        of = [v for k, v in found if k.startswith("node_network_addresses{") and state in k]
        return sum(of)

    until(lambda: addresses("cooling") == 0, "the end of earlier pods' cooldowns")
    made = 'action="CreateNetworkInterface",outcome="ok"'
    with cluster.pods(2) as (one, _):
        assert addresses("assigned") == 2
        assert addresses("allocatable") >= 22
        cluster.delete(one)
        until(lambda: addresses("cooling") == 1, "one address cooling")
    assert metrics()[f"node_network_ec2_calls_total{{{made}}}"] == 2


def test_a_pod_with_50000_connections_leaves_while_others_come(cluster: Any) -> None:
    """The table is the kernel's: the daemon reads none of it, and pods do not wait for it."""
    node = cluster.lab.names.namespace("node1")
    memory = Memory(cluster._running["node1"].pid)
    with cluster.pods(1) as (neighbour,):
        one = cluster.add()
        with netns.inside(node):
            before = flows.count()
            flows.open_many(ip_address(neighbour.address), 500)
            flows.open_many(ip_address(one.address), 50_000)
        memory.reset()
        pod.delete(cluster.lab, "node1", one.name)
        with cluster.pods(4):
            pass
        until(
            lambda: one.address not in [r["address"] for r in cluster.records("cooling")], "rest"
        )
        with netns.inside(node):
            assert 500 <= flows.count() < before + 5_000, "its own have ended, and no others"
        assert memory.growth_mib() < 8
    with netns.inside(node):
        flows.close_all()


class Memory:
    """How much a process has ever had resident, since it was last reset."""

    def __init__(self, pid: int) -> None:
        self._proc = Path(f"/proc/{pid}")
        self._before = 0.0

    def reset(self) -> None:
        (self._proc / "clear_refs").write_text("5")
        self._before = self._peak_mib()

    def growth_mib(self) -> float:
        return self._peak_mib() - self._before

    def _peak_mib(self) -> float:
        lines = (self._proc / "status").read_text().splitlines()
        return next(int(x.split()[1]) for x in lines if x.startswith("VmHWM")) / 1024
