"""``validate``'s warnings, and ``explain address`` about what is excluded from SNAT."""

from __future__ import annotations

import json
import time
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from builders import eni, node
from click.testing import CliRunner

from reconciler.cli.main import main
from reconciler.egress.destinations import Egress
from reconciler.egress.source import Entry, Source
from reconciler.ipam.cloud import Cloud, Limits
from reconciler.targets.state.directory import StateDirectory

HEAD = "apiVersion: node-network/v1alpha1\nkind: NodeNetwork\n"


def run(*argv: str) -> Any:
    return CliRunner().invoke(main, argv)


def test_validate_warns_where_more_is_excluded_than_anybody_means(tmp_path: Path) -> None:
    file = tmp_path / "node-network.yaml"
    file.write_text(f"{HEAD}snat: {{excludeCIDRs: [0.0.0.0/1, 128.0.0.0/1]}}\n")
    done = run("validate", str(file))
    assert done.exit_code == 0
    assert f"{file}: warning: snat: ExcludesEverything: every destination sees" in done.stderr
    body = json.loads(run("validate", "-o", "json", str(file)).stdout)
    assert body["errors"] == []
    assert len(body["warnings"]) == 1


def test_validate_warns_of_a_cooldown_that_a_client_outlasts_only_where_it_was_set(
    tmp_path: Path,
) -> None:
    file = tmp_path / "node-network.yaml"
    said = {}
    for text in ("{}", "{cooldown: 10s}", "{cooldown: 2m}"):
        file.write_text(f"{HEAD}warmPool: {text}\n")
        done = run("validate", str(file))
        assert done.exit_code == 0
        said[text] = done.stderr
    assert said["{}"] == said["{cooldown: 2m}"] == ""
    assert "warning: warmPool.cooldown 10s: a client on another node" in said["{cooldown: 10s}"]


RULES = """snat:
  rules:
    - {namespace: pay-*, to: [203.0.113.0/24], as: pod}
    - {namespace: pay-eu, to: [203.0.113.7], as: node}
    - {namespace: "*", to: ["@peering"], as: dedicated}
"""


def test_validate_warns_of_rules_that_cannot_do_what_they_say(tmp_path: Path) -> None:
    file = tmp_path / "node-network.yaml"
    file.write_text(f"{HEAD}{RULES.replace('pay-eu', 'pay-*')}")
    done = run("validate", str(file))
    assert done.exit_code == 0
    assert "warning: snat.rules[0]: NoWayBack: as pod sends private addresses" in done.stderr
    told = "warning: snat.rules[1]: RuleNeverMatches: snat.rules[0] decides wherever it would"
    assert told in done.stderr
    assert "rules[2]" not in done.stderr
    cost = (
        "snat.rules[2]: each namespace that has pods on a node takes one ipv4 address of the pool"
    )
    assert cost in done.stdout
    assert "prefix" not in done.stdout
    file.write_text(f"{HEAD}families: [ipv4, ipv6]\n{RULES}")
    told = json.loads(run("validate", "-o", "json", str(file)).stdout)["rules"]
    assert "one ipv6 address of an ENI's prefix, which costs nothing" in told[0]


def test_explain_address_names_the_rules_and_their_namespaces(tmp_path: Path) -> None:
    file = tmp_path / "node-network.yaml"
    file.write_text(HEAD + RULES)
    entry = Entry(ip_network("10.100.0.0/16"), "pcx-1", "shared")
    egress = Egress("vpc-1", (Source("@peering", (entry,), time.time()),))
    state = StateDirectory(tmp_path / "state")
    state.prepare()
    state.remember(node(), Cloud((eni(0),), Limits(3, 10), {}))
    state.remember_egress(egress)
    where = ("-f", str(file), "--state-dir", str(state.root))
    said = run("explain", "address", "203.0.113.7", *where).stdout.splitlines()
    assert said == [
        "namespaces pay-*: 203.0.113.7 sees the pod's own address, by snat.rules[0] "
        "203.0.113.0/24",
        "namespaces pay-eu: 203.0.113.7 sees the node's address, by snat.rules[1] 203.0.113.7/32",
        "203.0.113.7 sees the node's address, beyond the VPC and not excluded",
    ]
    said = run("explain", "address", "10.100.0.7", *where).stdout.splitlines()
    assert said[0] == (
        "namespaces *: 10.100.0.7 sees an address of the namespace's own on each node, by "
        'snat.rules[2] @peering pcx-1, "shared" 10.100.0.0/16'
    )


def test_explain_address_names_the_source_and_how_old_it_is(tmp_path: Path) -> None:
    file = tmp_path / "node-network.yaml"
    file.write_text(f'{HEAD}snat: {{excludeCIDRs: ["@peering", "@routes"]}}\n')
    entry = Entry(ip_network("10.100.0.0/16"), "pcx-1", "shared")
    egress = Egress("vpc-1", (Source("@peering", (entry,), time.time()), Source("@routes")))
    state = StateDirectory(tmp_path / "state")
    state.prepare()
    state.remember(node(), Cloud((eni(0),), Limits(3, 10), {}))
    state.remember_egress(egress)
    where = ("-f", str(file), "--state-dir", str(state.root))
    said = run("explain", "address", "10.100.0.7", *where).stdout.splitlines()
    assert said[0] == (
        '10.100.0.7 sees the pod\'s own address, by snat.excludeCIDRs @peering pcx-1, "shared" '
        "10.100.0.0/16"
    )
    assert said[1].startswith("@peering: 1 CIDRs, as EC2 told ")
    assert said[2:] == [
        "@routes: not known yet",
        "! snat source @routes: SourceUnknown: EC2 has not told what it stands for yet; what was "
        "excluded before it was named stays, and nothing else",
    ]
    said = run("explain", "address", "192.0.2.1", *where).stdout.splitlines()
    assert said[0] == "192.0.2.1 sees the node's address, beyond the VPC and not excluded"
