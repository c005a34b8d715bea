"""Probes and metrics of the running daemon, as kubelet and Prometheus ask for them."""

from __future__ import annotations

import http.client
import json
from typing import Any

import pytest
from waiting import until

from lab import netns

pytestmark = pytest.mark.lab

LISTEN = "127.0.0.1:61680"


def get(cluster: Any, path: str) -> tuple[int, str]:
    """Ask the daemon of node1, from its own host."""
    with netns.inside(cluster.lab.names.namespace("node1")):
        connection = http.client.HTTPConnection(LISTEN, timeout=5)
        connection.connect()
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def answers(cluster: Any) -> bool:
    try:
        return get(cluster, "/livez")[0] > 0
    except OSError:
        return False


def test_alive_at_once_ready_with_the_first_convergence_and_still_so_without_ec2(
    idle: Any,
) -> None:
    describe = ["DescribeNetworkInterfaces", "DescribeInstances", "DescribeSubnets"]
    idle.lab.ask("faults", set={"denied": describe})
    idle.launch("node1", "--listen", LISTEN, "--log-format", "json")
    until(lambda: answers(idle))
    assert get(idle, "/livez") == (200, "ok\n")
    until(lambda: not get(idle, "/readyz")[1].startswith("node: Starting"))
    status, text = get(idle, "/readyz")
    assert (status, text.startswith("node: NotAvailable")) == (503, True), text
    idle.lab.ask("faults", set={"denied": []})
    until(lambda: get(idle, "/readyz") == (200, "ok\n"))
    idle.lab.ask("faults", set={"denied": describe})
    idle.ip("rule", "delete", "priority", "512")
    until(lambda: 'node_network_drift_repaired_total{domain="rule"' in get(idle, "/metrics")[1])
    assert [get(idle, path)[0] for path in ("/livez", "/readyz", "/none")] == [200, 200, 404]
    until(lambda: "drift repaired" in idle.logged(), "the line of the log")
    lines = idle.logged().rpartition("\n")[0].splitlines()
    assert "drift repaired" in {json.loads(line)["message"] for line in lines}


def test_an_address_nobody_can_listen_on_is_an_error_that_names_it(idle: Any) -> None:
    for listen in ("61680", "nobody", "127.0.0.1:99999", "192.0.2.1:80"):
        done = idle.command("node1", "run", "-f", str(idle.config), "--listen", listen)
        assert (done.returncode, done.stdout) == (2, ""), listen
        assert f"cannot listen on {listen!r}" in done.stderr or f"on {listen}:" in done.stderr
