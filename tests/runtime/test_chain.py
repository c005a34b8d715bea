"""Plugins after ours in a configuration list: the reference ones, and one that nobody knows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from runtime.chain import Chain, PluginError, Sandbox
from waiting import until

from lab import netns
from lab.traffic import Receiver, probe

pytestmark = [pytest.mark.lab, pytest.mark.runtime]

NODE = "10.0.1.10"
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}

UNKNOWN = f"""\
#!{sys.executable} -IS
import json, os, sys
config = json.load(sys.stdin)
with open(config["notes"], "a") as notes:
    notes.write(json.dumps([os.environ["CNI_COMMAND"], config]) + "\\n")
if config.get("refuse") == os.environ["CNI_COMMAND"]:
    error = {{"cniVersion": config["cniVersion"], "code": 142, "msg": "I would rather not"}}
    print(json.dumps(error))
    sys.exit(1)
if os.environ["CNI_COMMAND"] == "ADD":
    result = config["prevResult"]
    result["dns"] = {{"domain": "unknown.example"}}
    print(json.dumps(result))
"""
"""A plugin that writes down what it is told, and changes the result."""


@pytest.fixture(scope="module")
def cluster(cluster: Any) -> Any:
    """Node 1 looks into its pods every second, so that a fight would be seen."""
    text = cluster.config.read_text().replace("cooldown: 2s", "cooldown: 0s")
    cluster.config.write_text(f"{text}reconcile: {{resync: 1s}}\n")
    until(lambda: cluster.status()["document"]["generation"] == 2, "the document")
    return cluster


@contextmanager
def started(chain: Chain, name: str, **runtime: Any) -> Iterator[Sandbox]:
    sandbox = chain.start(name, **runtime)
    try:
        yield sandbox
    finally:
        chain.delete(sandbox)


def outside(cluster: Any, address: str, port: int) -> str:
    namespace = cluster.lab.names.namespace("vpchost")
    return str(probe(namespace, address, port, timeout_s=1))


def inside(sandbox: Sandbox, *argv: str) -> str:
    command = ["nsenter", f"--net={netns.path(sandbox.namespace)}", *argv]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def nothing_is_left(cluster: Any) -> None:
    """Wait until the node holds no pod."""
    kinds = ("intents", "attachments", "cooling")
    until(lambda: not any(cluster.records(k) for k in kinds), "the releases")
    assert "node-network:" not in cluster.ip("link")
    assert cluster.ip("route", "show", "table", "512") == ""
    until(lambda: cluster.diff().stdout == "", lambda: str(cluster.diff().stdout))


def audits(cluster: Any) -> None:
    """Wait until the pods have been looked into twice from now on."""
    name = 'node_network_pass_seconds_count{pass="audit"}'

    def count() -> float:
        lines = cluster.status()["metrics"].splitlines()
        return sum(float(x.rpartition(" ")[2]) for x in lines if x.startswith(name))

    before = count()
    until(lambda: count() >= before + 2, "two more audits")


def test_a_host_port_is_reached_from_outside_on_pods_of_every_eni(
    cluster: Any, plugins: Path
) -> None:
    """Started at once, so portmap and we change the same node's ruleset at the same time."""
    chain = Chain(cluster.lab, "node1", plugins, [PORTMAP])

    def start(number: int) -> Sandbox:
        mapping = {"hostPort": 8000 + number, "containerPort": 7777, "protocol": "tcp"}
        return chain.start(f"port{number}", portMappings=[mapping])

    with ThreadPoolExecutor(4) as workers:
        made = list(workers.map(start, range(12)))
        try:
            enis = {c["eni"] for c in cluster.status()["attachments"]}
            assert len(enis) > 1
            for number, one in enumerate(made):
                with Receiver(one.namespace):
                    assert outside(cluster, NODE, 8000 + number) == "10.0.9.10"
        finally:
            list(workers.map(chain.delete, made))
    assert "refused" in outside(cluster, NODE, 8000)
    nothing_is_left(cluster)


def test_bandwidth_shapes_our_link_and_is_left_in_peace(cluster: Any, plugins: Path) -> None:
    bandwidth = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
    chain = Chain(cluster.lab, "node1", plugins, [PORTMAP, bandwidth])
    before = cluster.drift()
    limits = {"ingressRate": 8_000_000, "ingressBurst": 800_000}
    limits |= {"egressRate": 4_000_000, "egressBurst": 400_000}
    with started(chain, "shaped", bandwidth=limits) as one:
        assert one.result is not None
        veth = one.result["interfaces"][0]["name"]

        def disciplines() -> str:
            return str(cluster.lab.run("node1", ["tc", "qdisc", "show"]).stdout)

        shaped = disciplines()
        assert f"dev {veth} root" in shaped
        assert "rate 8Mbit" in shaped
        assert "rate 4Mbit" in shaped  # on an ifb of the plugin's own, fed by our link's ingress
        audits(cluster)
        assert disciplines() == shaped
        with Receiver(one.namespace):
            assert outside(cluster, one.address, 7777) == "10.0.9.10"
    assert cluster.drift() == before
    nothing_is_left(cluster)
    assert "rate" not in disciplines()
    assert "ifb" not in cluster.ip("-d", "link")


def test_a_sysctl_that_tuning_sets_stays(cluster: Any, plugins: Path) -> None:
    name = "net.ipv4.conf.eth0.arp_filter"
    chain = Chain(cluster.lab, "node1", plugins, [{"type": "tuning", "sysctl": {name: "1"}}])
    before = cluster.drift()
    with started(chain, "tuned") as one:
        audits(cluster)
        assert inside(one, "sysctl", "-n", name) == "1"
        with Receiver(one.namespace):
            assert outside(cluster, one.address, 7777) == "10.0.9.10"
    assert cluster.drift() == before
    nothing_is_left(cluster)


@pytest.fixture
def unknown(plugins: Path, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A plugin that nobody knows."""
    executable = plugins / "unknown"
    executable.write_text(UNKNOWN)
    executable.chmod(0o755)
    yield {"type": "unknown", "notes": str(tmp_path / "notes")}
    executable.unlink()


def told(unknown: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    lines = Path(unknown["notes"]).read_text().splitlines()
    return [(verb, config) for verb, config in map(json.loads, lines)]


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
def test_a_later_plugin_is_given_our_result_and_may_change_it(
    cluster: Any, plugins: Path, unknown: dict[str, Any], version: str
) -> None:
    chain = Chain(cluster.lab, "node1", plugins, [unknown], version=version)
    with started(chain, "plain") as one:
        assert one.result is not None
        assert one.result["dns"] == {"domain": "unknown.example"}
        ((verb, config),) = told(unknown)
        assert verb == "ADD"
        assert config["prevResult"]["ips"][0]["address"] == f"{one.address}/32"
        assert config["prevResult"]["cniVersion"] == version
    assert [verb for verb, _ in told(unknown)] == ["ADD", "DEL"]
    nothing_is_left(cluster)


def test_what_a_runtime_offers_goes_to_those_that_declare_it(
    cluster: Any, plugins: Path, unknown: dict[str, Any]
) -> None:
    """We declare nothing and are told nothing; what we declare without a use is no error."""
    mapping = {"hostPort": 8099, "containerPort": 7777, "protocol": "tcp"}
    capabilities = {"capabilities": {"portMappings": True, "bandwidth": True}}
    for name, own in {"silent": {}, "vocal": capabilities}.items():
        chain = Chain(cluster.lab, "node1", plugins, [unknown | capabilities], own=own)
        with started(chain, name, portMappings=[mapping], ipRanges=[]):
            assert told(unknown)[-1][1]["runtimeConfig"] == {"portMappings": [mapping]}
    nothing_is_left(cluster)


def test_if_a_later_plugin_fails_the_runtimes_del_gives_everything_back(
    cluster: Any, plugins: Path, unknown: dict[str, Any]
) -> None:
    chain = Chain(cluster.lab, "node1", plugins, [PORTMAP, unknown | {"refuse": "ADD"}])
    mapping = {"hostPort": 8098, "containerPort": 7777, "protocol": "tcp"}
    with pytest.raises(PluginError, match="ADD by unknown: code 142"):
        chain.start("refused", portMappings=[mapping])
    assert [verb for verb, _ in told(unknown)] == ["ADD", "DEL"]
    assert not netns.path(cluster.lab.names.namespace("pod-refused")).exists()
    nothing_is_left(cluster)


def test_if_a_later_plugin_fails_at_del_the_runtimes_next_del_gives_everything_back(
    cluster: Any, plugins: Path, unknown: dict[str, Any]
) -> None:
    """Until then the pod keeps what it has: libcni stops at the plugin that fails."""
    chain = Chain(cluster.lab, "node1", plugins, [unknown | {"refuse": "DEL"}])
    one = chain.start("stuck")
    with pytest.raises(PluginError, match="DEL by unknown"):
        chain.delete(one)
    with Receiver(one.namespace):
        assert outside(cluster, one.address, 7777) == "10.0.9.10"
    chain.plugins[1] = unknown
    chain.delete(one)
    nothing_is_left(cluster)


def test_check_of_a_chain_passes_and_names_whose_part_differs(
    cluster: Any, plugins: Path, unknown: dict[str, Any]
) -> None:
    name = "net.ipv4.conf.eth0.arp_filter"
    tuning = {"type": "tuning", "sysctl": {name: "1"}}
    chain = Chain(cluster.lab, "node1", plugins, [tuning, unknown])
    with started(chain, "checked") as one:
        chain.check(one)
        verb, config = told(unknown)[-1]
        assert (verb, config["prevResult"]) == ("CHECK", one.result)
        inside(one, "sysctl", "-w", f"{name}=0")
        with pytest.raises(PluginError, match="CHECK by tuning"):
            chain.check(one)
        netns.remove(one.namespace)
        with pytest.raises(PluginError, match="CHECK by node-network"):
            chain.check(one)
    nothing_is_left(cluster)
