"""What ``validate`` and ``explain`` say of pod groups."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from builders import document, eni, node
from click.testing import CliRunner

from reconciler.cli.main import main
from reconciler.ipam.cloud import Cloud, Limits
from reconciler.ipam.group_cost import cost
from reconciler.targets.state.directory import StateDirectory

HEAD = """\
apiVersion: node-network/v1alpha1
kind: NodeNetwork
instanceTypes: {m9.large: {enis: 3, addressesPerEni: 10}}
"""


def run(*argv: str) -> Any:
    return CliRunner().invoke(main, argv)


def groups(*parts: str) -> str:
    return f"podGroups: [{', '.join(f'{{match: {{pod: a}}, {part}}}' for part in parts)}]\n"


def test_validate_says_what_groups_cost(tmp_path: Path) -> None:
    file = tmp_path / "node-network.yaml"
    warm = "name: web, warmPool: {addresses: {warm: 10}}"
    file.write_text(HEAD + groups("name: pay", "name: two"))
    done = run("validate", str(file))
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        f"{file}: m9.large: 3 ENIs, of 9 pod addresses each: 1 is the primary",
        f"{file}: group pay: 1 once a pod asks",
        f"{file}: group two: 1 once a pod asks",
        f"{file}: left for all else: 3 - 1 - 0 = 2",
        f"{file}: valid",
    ]
    file.write_text(HEAD + groups(warm))
    body = json.loads(run("validate", "-o", "json", str(file)).stdout)
    assert "group web: 2 for 10 addresses that it holds before a pod asks" in body["groups"]


def test_validate_warns_where_not_all_groups_can_have_pods_on_one_node(tmp_path: Path) -> None:
    file = tmp_path / "node-network.yaml"
    file.write_text(HEAD + groups("name: a", "name: b", "name: c"))
    done = run("validate", str(file))
    assert done.exit_code == 0
    assert "pods of at most 2 of 3 groups run on one node at a time" in done.stderr


def test_validate_refuses_what_can_never_be_held(tmp_path: Path) -> None:
    file = tmp_path / "node-network.yaml"
    many = "warmPool: {addresses: {minimum: 12}}"
    file.write_text(HEAD + groups(f"name: a, {many}", f"name: b, {many}"))
    done = run("validate", str(file))
    assert done.exit_code == 2
    assert "m9.large has 3 ENIs, and groups hold addresses on 2 + 2 besides" in done.output


def test_a_prefix_counts_as_sixteen_addresses() -> None:
    group = {"name": "a", "match": {"pod": "a"}, "warmPool": {"addresses": {"warm": 100}}}
    found = cost(document(podGroups=[group], eni={"allocate": "prefixes"}), "t", Limits(3, 10))
    assert "of 144 pod addresses each" in found.lines[0]
    assert "1 for 100 addresses" in found.lines[1]


def test_explain_address_says_what_each_group_sees(tmp_path: Path) -> None:
    file = tmp_path / "node-network.yaml"
    file.write_text(HEAD + groups("name: pay, snat: {excludeCIDRs: [10.100.0.0/16]}"))
    state = StateDirectory(tmp_path / "state")
    state.prepare()
    state.remember(node(), Cloud((eni(0),), Limits(3, 10), {}))
    where = ("-f", str(file), "--state-dir", str(tmp_path / "state"))
    done = run("explain", "address", "10.100.0.10", *where)
    assert done.stdout.splitlines() == [
        "10.100.0.10 sees the node's address, beyond the VPC and not excluded",
        "group pay: 10.100.0.10 sees the pod's own address, by snat.excludeCIDRs 10.100.0.0/16",
    ]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("warmPool: {addresses: {warm: 0}}\n", "warm 0 and minimum 0 hold no free address"),
        ("warmPool: {addresses: {minimum: 41}}\nmaxPods: 40\n", "more than maxPods 40"),
        ("warmPool: {addresses: {minimum: 40}}\nmaxPods: 40\n", ""),
        ("warmPool: {addresses: {warm: 0, minimum: 1}}\n", ""),
        ("warmPool: {enis: {warm: 0}}\n", ""),
    ],
)
def test_validate_warns_of_a_pool_of_the_wrong_size(tmp_path: Path, more: str, said: str) -> None:
    file = tmp_path / "node-network.yaml"
    file.write_text("apiVersion: node-network/v1alpha1\nkind: NodeNetwork\n" + more)
    done = run("validate", str(file))
    assert done.exit_code == 0
    assert (said in done.stderr) if said else not done.stderr


def test_validate_takes_a_config_map_and_names_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "map.yaml"
    inside = "".join(f"    {line}\n" for line in (HEAD + "maxPods: no").splitlines())
    head = "apiVersion: v1\nkind: ConfigMap\ndata:\n  node-network.yaml: |\n"
    file.write_text(head + inside)
    done = run("validate", str(file))
    assert done.exit_code == 2
    assert f"{file}:8:14: maxPods: YAML reads no as a boolean" in done.stderr
    file.write_text(head + inside.replace("no\n", "20\n"))
    assert run("validate", str(file)).stdout.splitlines()[-1] == f"{file}: valid"
