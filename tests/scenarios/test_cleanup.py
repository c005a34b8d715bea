"""An uninstallation: what ``cleanup`` takes from a node, and what it leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from lab import netns, pod

pytestmark = pytest.mark.lab

DROPPING = (
    "table ip other { chain filtering { type filter hook forward priority 0; policy drop; }; }"
)


def seen(cluster: Any) -> dict[str, Any]:
    """What of the node can be compared with an earlier time."""
    state = cluster.state()
    links = json.loads(cluster.ip("-j", "link"))
    names = cluster.lab.names
    places = (names.plugins("node1"), names.configurations("node1"), state)
    return {
        # ENIs' links come and go by EC2.
        "links": {x["ifname"] for x in links if not x["ifname"].startswith("eth")},
        "addresses": cluster.ip("-4", "-o", "addr"),
        "rules": cluster.ip("rule") + cluster.ip("-6", "rule"),
        "routes": cluster.ip("-4", "route", "show", "table", "all"),
        "neighbours": cluster.ip("neigh", "show", "nud", "permanent"),
        "nft": cluster.lab.run("node1", ["nft", "-s", "list", "ruleset"]).stdout,
        "files": {str(p) for place in places for p in place.rglob("*")} - {f"{state}/log"},
    }


def cleanup(cluster: Any, *words: str) -> Any:
    return cluster.command("node1", "cleanup", *words)


def test_it_leaves_the_node_as_it_was_before(idle: Any) -> None:
    cluster = idle
    cluster.lab.run("node1", ["nft", DROPPING], check=True)
    before = seen(cluster)
    assert cleanup(cluster).returncode == 0, "nothing of ours is there yet"
    cluster.config.write_text(cluster.config.read_text() + "routing: {acceptForwarded: true}\n")
    cluster.start()
    one, other = cluster.add(pod_name="web"), cluster.add()
    # Threads of their own write them, one of them once EC2 has told which VPC this is.
    for name in ("sources.json", "var/document.json"):
        until((cluster.state() / name).exists, name)
    settled = seen(cluster)
    assert all(settled[what] != before[what] for what in before)

    running = cleanup(cluster, "--yes")
    assert running.returncode == 2
    assert "already reconciles this node" in running.stderr
    assert seen(cluster) == settled, "refused while the daemon runs"

    cluster.stop()
    stopped = seen(cluster)
    shown = cleanup(cluster)
    assert shown.returncode == 1
    assert "2 pods are alive" in shown.stderr
    assert "default/web" in shown.stderr
    assert "sysctl -w net/ipv4/ip_forward=1  # stays" in shown.stderr
    assert "node-network gc" in shown.stderr
    alive = cleanup(cluster, "--yes")
    assert alive.returncode == 2
    assert "2 pods are alive" in alive.stderr
    assert seen(cluster) == stopped, "refused while pods are alive, and nothing by a look"

    conflist = cluster.lab.names.configurations("node1") / "10-node-network.conflist"
    conflist.write_text("{}")  # by its name it is ours, whatever is in it
    for each in (one, other):
        pod.delete(cluster.lab, "node1", each.name)  # with no daemon there
        assert not netns.path(each.namespace).exists()
    done = cleanup(cluster, "--yes")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert seen(cluster) == before
    again = cleanup(cluster, "--yes")
    assert (again.returncode, again.stdout) == (0, "")
    assert "- " not in again.stderr, "nothing is left to remove"
    assert seen(cluster) == before


def test_by_force_pods_that_are_alive_lose_their_network(idle: Any) -> None:
    cluster = idle
    before = seen(cluster)
    cluster.start()
    one = cluster.add()
    cluster.stop()
    try:
        done = cleanup(cluster, "--yes", "--force")
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert seen(cluster) == before
    finally:
        netns.remove(one.namespace)


def test_what_is_lost_of_the_records_is_found_in_the_kernel(idle: Any) -> None:
    cluster = idle
    before = seen(cluster)
    cluster.start()
    one = cluster.add()
    cluster.stop()
    for directory in (p for p in Path(cluster.state()).iterdir() if p.is_dir()):
        shutil.rmtree(directory)
    refused = cleanup(cluster, "--yes")
    assert "1 pods are alive" in refused.stderr
    netns.remove(one.namespace)
    until(lambda: one.name not in cluster.ip("link"), "the end of its link, in the kernel's time")
    assert cleanup(cluster, "--yes").returncode == 0
    left = seen(cluster)
    assert {k: v for k, v in left.items() if k != "files"} == {
        k: v for k, v in before.items() if k != "files"
    }
