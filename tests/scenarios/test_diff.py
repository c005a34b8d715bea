"""``diff``: nothing, one line, or an error that names its place; and never a change."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from waiting import until

pytestmark = pytest.mark.lab


def world(cluster: Any) -> dict[str, Any]:
    """Everything a node holds, in the words of other tools."""
    lab = cluster.lab
    state = cluster.state()
    files = {
        str(p.relative_to(state)): (p.read_bytes(), p.stat().st_mtime_ns)
        for p in sorted(state.rglob("*"))
        if p.is_file() and p.name not in {"log"}
    }
    return {
        "links": cluster.ip("-d", "-j", "link"),
        # IPv4 only: the kernel finishes a new link's IPv6 addresses in its own time.
        "addresses": cluster.ip("-4", "-j", "address"),
        "routes": cluster.ip("-4", "-j", "route", "show", "table", "all"),
        "rules": cluster.ip("-j", "rule"),
        "nft": lab.run("node1", ["nft", "-s", "-j", "list", "ruleset"]).stdout,
        "forward": lab.run("node1", ["cat", "/proc/sys/net/ipv4/ip_forward"]).stdout,
        "enis": lab.enis(),
        "files": files,
    }


@contextmanager
def unchanged(cluster: Any) -> Iterator[None]:
    """See that nothing is changed meanwhile; the reconciler, which may do so, keeps still."""
    until(cluster.is_settled, "a node in sync")
    with cluster.still():
        before = world(cluster)
        yield
        assert world(cluster) == before


def edited(cluster: Any, tmp_path: Path, old: str, new: str) -> Path:
    text = cluster.config.read_text()
    assert old in text
    path = tmp_path / "edited.yaml"
    path.write_text(text.replace(old, new))
    return path


def test_in_sync_prints_nothing_and_exits_0(cluster: Any) -> None:
    with cluster.pods(3), unchanged(cluster):
        done = cluster.diff()
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_one_cidr_more_is_one_line_and_exit_1(cluster: Any, tmp_path: Path) -> None:
    config = edited(cluster, tmp_path, "excludeCIDRs: []", "excludeCIDRs: [192.0.2.0/24]")
    with unchanged(cluster):
        done = cluster.diff("node1", config)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "+ nft-element nft add element inet node_network no_snat_ipv4 { 192.0.2.0/24 }  # missing"
    ]
    assert done.stderr.splitlines() == [
        "192.0.2.0/24 will see pod addresses, no longer the node's address.",
        "1 to add, 0 to change, 0 to delete; EC2 calls: none",
    ]


def test_a_broken_file_names_file_line_and_key_and_exits_2(cluster: Any, tmp_path: Path) -> None:
    config = edited(cluster, tmp_path, "excludeCIDRs: []", "excludeCIDR: []\n  mode: no")
    with unchanged(cluster):
        for command in ("diff", "apply", "run"):
            done = cluster.command("node1", command, "-f", str(config))
            assert done.returncode == 2
            assert done.stdout == ""
        done = cluster.diff("node1", config)
    assert f"{config}:6:3: snat.excludeCIDR: unknown key; did you mean 'excludeCIDRs'?" in (
        cluster.diff("node1", edited(cluster, tmp_path, "excludeCIDRs", "excludeCIDR")).stderr
    )
    assert f"{config}:7:3: snat.mode: stands twice, first in line 5" in done.stderr


def test_growth_is_shown_with_its_calls_and_costs_none(cluster: Any, tmp_path: Path) -> None:
    config = edited(cluster, tmp_path, "minimum: 24", "minimum: 26")
    with unchanged(cluster):
        cluster.lab.ask("calls", reset=True)
        done = cluster.diff("node1", config, "-o", "json")
        made = cluster.lab.ask("calls")["calls"]
    assert done.returncode == 1
    body = json.loads(done.stdout)
    assert body["calls"] == {"AssignPrivateIpAddresses": 1}
    (action,) = body["actions"]
    assert (action["domain"], action["verb"]) == ("eni", "create")
    assert action["reason"].startswith("pool holds 24 of 26 addresses; subnet-")
    assert "--secondary-private-ip-address-count 2" in action["command"]
    assert {name for name in made if not name.startswith("Describe")} == set()


def test_more_than_the_node_can_hold_is_refused_with_the_arithmetic(
    cluster: Any, tmp_path: Path
) -> None:
    config = edited(cluster, tmp_path, "minimum: 24", "minimum: 99")
    done = cluster.diff("node1", config)
    assert done.returncode == 1
    assert "! pool of i-" in done.stdout
    assert "PoolLimitReached: 99 addresses wanted, 24 held" in done.stdout
    assert "3 ENIs x 9 = 27" in done.stdout
    assert "1 refused: wanted, and not done" in done.stderr


def test_validate_needs_no_node(cluster: Any, tmp_path: Path) -> None:
    done = cluster.command("node1", "validate", str(cluster.config))
    assert (done.returncode, done.stdout) == (0, f"{cluster.config}: valid\n")
    missing = cluster.command("node1", "validate", str(tmp_path / "none.yaml"))
    assert missing.returncode == 2
    assert "none.yaml" in missing.stderr


def test_without_ec2_or_metadata_there_is_an_error_and_no_change(cluster: Any) -> None:
    with unchanged(cluster):
        cluster.lab.ask("faults", set={"denied": ["DescribeNetworkInterfaces"]})
        try:
            done = cluster.diff()
        finally:
            cluster.lab.ask("faults", clear=True)
    assert done.returncode == 2
    assert "UnauthorizedOperation" in done.stdout


def test_apply_next_to_a_running_reconciler_is_refused(cluster: Any) -> None:
    done = cluster.command("node1", "apply", "-f", str(cluster.config))
    assert done.returncode == 2
    assert "already reconciles this node" in done.stderr


def test_apply_converges_once_says_what_it_did_and_is_done(idle: Any) -> None:
    first = idle.command("node1", "apply", "-f", str(idle.config))
    assert (first.returncode, first.stdout) == (0, ""), first.stderr
    assert "ip rule add priority 512 lookup 512 protocol 201" in first.stderr
    again = idle.command("node1", "apply", "-f", str(idle.config))
    assert (again.returncode, again.stdout) == (0, "")
    (last,) = again.stderr.splitlines()
    assert last.startswith("in sync: nothing to do, in ")
    assert idle.diff().returncode == 0


@pytest.mark.parametrize(
    "cidrs",
    [
        ["0.0.0.0/0", "10.1.2.3"],
        ["10.1.2.3/16", "10.1.2.3", "10.1.2.3/32", "192.0.2.99/25", "192.0.2.128/25"],
    ],
    ids=str,
)
def test_ten_times_over_nothing_differs(idle: Any, cidrs: list[str]) -> None:
    """Whatever way a CIDR is written, it is there once (the stock plugin flapped: #3658)."""
    text = idle.config.read_text()
    idle.config.write_text(text.replace("[]", json.dumps(cidrs)))
    apply = ("node1", "apply", "-f", str(idle.config))
    assert idle.command(*apply).returncode == 0
    done = idle.diff()
    assert (done.returncode, done.stdout) == (0, "")
    for _ in range(10):
        done = idle.command(*apply)
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr.startswith("in sync: nothing to do, in ")


def test_status_of_a_node_without_reconciler_says_what_to_do(idle: Any) -> None:
    done = idle.command("node1", "status")
    assert done.returncode == 2
    assert "is 'node-network run' running?" in done.stderr
