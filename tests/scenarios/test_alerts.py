"""A real Prometheus scrapes a node and runs the alert rules while the lab's faults come and go."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from waiting import until

from lab import netns, pod
from lab.pod import PodError

pytestmark = pytest.mark.lab

MONITORING = Path(__file__).parents[2] / "deploy/monitoring"
DASHBOARD = MONITORING / "dashboard.json"
DAEMON, PROMETHEUS = "127.0.0.1:61680", "127.0.0.1:9090"

DOCUMENT = """\
apiVersion: node-network/v1alpha1
kind: NodeNetwork
warmPool: {addresses: {warm: 1, minimum: MINIMUM, surplus: 0}, cooldown: 2s}
snat: {mode: node, excludeCIDRs: []}
"""

QUICK = "250ms"  # between scrapes, and between evaluations

NEVER = ("internal_errors_total", "pods_waiting", "cni_add_phase_seconds_bucket")
"""Of what does not happen here: a bug, an ADD while Prometheus looks, a pod that is served."""

LAST = "NodeNetworkCondition"
"""Fires for what is left after an hour; all others are made quick here."""


def quick_rules() -> str:
    """Return the alert rules, with times of seconds in the place of minutes and hours."""
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
    for rule in rules["groups"][0]["rules"]:
        if rule["alert"] == "NodeNetworkDown":
            rule["for"] = "2s"  # a busy machine may take longer than one scrape may last
        elif rule["alert"] != LAST:
            rule.pop("for", None)
        # It may not make more than one in three seconds either.
        rule["expr"] = rule["expr"].replace("[10m]) > 2", "[10m]) > 0")
        rule["expr"] = re.sub(r"\[\d+[mh]\]", "[3s]", rule["expr"])
        rule["expr"] = re.sub(r"offset \d+h", "offset 3s", rule["expr"])
    return yaml.safe_dump(rules, width=10_000)


class Scraped:
    """A node, its reconciler and a Prometheus beside it."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster

    def query(self, path: str) -> Any:
        with netns.inside(self.cluster.lab.names.namespace("node1")):
            connection = HTTPConnection(PROMETHEUS, timeout=5)
            connection.connect()
        try:
            connection.request("GET", f"/api/v1/{path}")
            body = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        assert body["status"] == "success", body
        return body["data"]

    def firing(self) -> set[str]:
        found = self.query("alerts")["alerts"]
        return {a["labels"]["alertname"] for a in found if a["state"] == "firing"}

    def is_scraped(self) -> bool:
        try:
            return any(t["health"] == "up" for t in self.query("targets")["activeTargets"])
        except (OSError, ValueError):  # it starts, and says so in words
            return False

    def want(self, minimum: int) -> None:
        """Have the pool hold so many addresses."""
        self.cluster.config.write_text(DOCUMENT.replace("MINIMUM", str(minimum)))

    def switch(self, **switches: Any) -> None:
        self.cluster.lab.ask("faults", set=switches)

    @contextmanager
    def fault(self, alert: str, end: Callable[[], Any]) -> Iterator[None]:
        """What is done inside makes this alert fire, no other, and it ends with its fault."""
        began = time.monotonic()
        yield
        until(self.firing, lambda: f"{alert}\n{self.cluster.log()}")
        end()
        if self.cluster.answers():
            self.cluster.command("node1", "retry")
        until(lambda: not self.firing(), lambda: f"{alert} to end: {self.firing()}")
        ms = round((time.monotonic() - began) * 1000)
        fired = self.ask(f'count_over_time(ALERTS{{alertstate="firing"}}[{ms}ms])')
        told = {each["metric"]["alertname"] for each in fired}
        assert told == {alert}, self.cluster.log()

    def ask(self, expression: str) -> Any:
        return self.query(f"query?query={quote(expression)}")["result"]


@pytest.fixture
def scraped(idle: Any, tmp_path: Path) -> Iterator[Scraped]:
    (tmp_path / "alerts.yaml").write_text(quick_rules())
    job = {"job_name": "node-network", "static_configs": [{"targets": [DAEMON]}]}
    times = {"scrape_interval": QUICK, "scrape_timeout": QUICK, "evaluation_interval": QUICK}
    config = {"global": times, "rule_files": ["alerts.yaml"], "scrape_configs": [job]}
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
    argv = [
        "prometheus",
        f"--config.file={tmp_path / 'prometheus.yaml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address={PROMETHEUS}",
        "--log.level=warn",
    ]
    with (tmp_path / "log").open("w") as log:
        process = idle.lab.start("node1", argv, stdout=log, stderr=log)
        try:
            yield Scraped(idle)
        finally:
            process.terminate()
            process.wait(timeout=20)


@contextmanager
def netns_of(name: str) -> Iterator[None]:
    netns.make(name)
    try:
        yield
    finally:
        netns.remove(name)


def test_each_alert_fires_for_its_fault_and_for_it_alone(scraped: Scraped) -> None:
    cluster = scraped.cluster
    scraped.want(4)
    unavailable = {"code": "Unavailable", "count": 10_000}
    scraped.switch(errors=[{"action": "DescribeNetworkInterfaces", **unavailable}])
    cluster.launch("node1", "--listen", DAEMON)
    until(scraped.is_scraped, cluster.log)
    with scraped.fault("NodeNetworkNotReady", lambda: scraped.switch(errors=[])):
        pass

    with scraped.fault("NodeNetworkDocumentRefused", lambda: scraped.want(4)):
        cluster.config.write_text("kind: Nothing\n")

    with scraped.fault("NodeNetworkEc2Denied", lambda: scraped.switch(denied=[])):
        scraped.switch(denied=["AssignPrivateIpAddresses", "CreateNetworkInterface"])
        scraped.want(8)

    with scraped.fault("NodeNetworkEc2Throttled", lambda: scraped.switch(throttle={})):
        scraped.switch(throttle={"*": [0, 0]})
        scraped.want(12)

    with scraped.fault("NodeNetworkSubnetFull", lambda: scraped.switch(errors=[])):
        full = {"code": "InsufficientFreeAddressesInSubnet", "count": 10_000}
        calls = ("AssignPrivateIpAddresses", "CreateNetworkInterface")
        scraped.switch(errors=[{"action": call, **full} for call in calls])
        scraped.want(16)

    with scraped.fault("NodeNetworkNodeFull", lambda: scraped.want(27)):
        scraped.want(200)

    name = cluster.lab.names.namespace("pod-taken")
    with netns_of(name):
        cluster.ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", "other")

        def is_refused() -> bool:
            with pytest.raises(PodError, match="InterfaceExists"):
                pod.call(cluster.lab, "node1", "taken", "ADD")
            return bool(scraped.firing())

        with scraped.fault("NodeNetworkPodsRefused", lambda: None):
            until(is_refused)

    with scraped.fault("NodeNetworkFight", lambda: None):
        undo = ["ip", "rule", "delete", "priority", "1024"]
        until(lambda: cluster.lab.run("node1", undo).returncode and scraped.firing())

    with scraped.fault("NodeNetworkDown", lambda: cluster.launch("node1", "--listen", DAEMON)):
        cluster.stop()

    asked = re.findall(r"(?:node_network|process)_[a-z0-9_]+", DASHBOARD.read_text())
    missing = set(asked) - set(scraped.query("label/__name__/values"))
    assert missing <= {f"node_network_{name}" for name in NEVER}
