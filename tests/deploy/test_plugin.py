"""The kubectl plugin, with a kubectl of the test's own, and the real program behind it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from deploy.programs import DEPLOY

PLUGIN = DEPLOY / "kubectl-node_network"

DOCUMENT = "apiVersion: node-network/v1alpha1\nkind: NodeNetwork\n"
WRONG = DOCUMENT + "snat:\n  excludeCIDR: []\n"

KUBECTL = """#!{python}
import json, os, subprocess, sys
words = sys.argv[1:]
with open({calls!r}, "a") as f:
    f.write(json.dumps(words) + "\\n")
world = json.load(open({world!r}))
while words and words[0].startswith("--"):
    words.pop(0)
if words[:2] == ["get", "pods"]:
    node = next((w.partition("spec.nodeName=")[2] for w in words if "nodeName" in w), "")
    for name, where, ending in world["pods"]:
        if node in ("", where):
            print(name, ending)
    sys.exit(world.get("code", 0))
if words[:2] == ["get", "configmap"]:
    sys.stdout.write(world["document"])
    sys.exit(0)
assert words[0] == "exec", words
command = words[words.index("--") + 1 :]
assert command[0] == "node-network"
if command[1] == "validate":
    sys.exit(subprocess.run([sys.executable, "-m", "reconciler", *command[1:]]).returncode)
print("asked:", *command, repr(sys.stdin.read()))
sys.exit(world.get("exit", 0))
"""


class Cluster:
    """What kubectl shows, and what it was asked."""

    def __init__(self, directory: Path) -> None:
        self.world: dict[str, Any] = {
            "pods": [["old", "node1", "2026-01-01T00:00:00Z"], ["new", "node1", ""]],
            "document": DOCUMENT,
        }
        self._calls, self._world = directory / "calls", directory / "world"
        program = directory / "bin/kubectl"
        program.parent.mkdir()
        program.write_text(
            KUBECTL.format(python=sys.executable, calls=str(self._calls), world=str(self._world))
        )
        program.chmod(0o755)
        self._path = f"{program.parent}:{os.environ['PATH']}"

    def run(self, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """Run the plugin."""
        self._world.write_text(json.dumps(self.world))
        self._calls.write_text("")
        return subprocess.run(
            [str(PLUGIN), *words],
            input=text,
            capture_output=True,
            text=True,
            env=os.environ | {"PATH": self._path},
            cwd=DEPLOY.parent,
            check=False,
        )

    @property
    def calls(self) -> list[list[str]]:
        """What kubectl was asked last."""
        return [json.loads(line) for line in self._calls.read_text().splitlines()]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_a_document_is_checked_by_the_program_in_a_pod_that_stays(
    cluster: Cluster, tmp_path: Path
) -> None:
    path = tmp_path / "a b.yaml"
    path.write_text(WRONG)
    done = cluster.run("validate", "-f", str(path))
    assert (done.returncode, done.stdout) == (2, "")
    said = f"{path}:4:3: snat.excludeCIDR: unknown key; did you mean 'excludeCIDRs'?"
    assert said in done.stderr.splitlines()
    assert cluster.calls[-1][:4] == ["--namespace=kube-system", "exec", "--stdin", "new"]
    path.write_text(DOCUMENT)
    done = cluster.run("validate", "-f", str(path))
    assert (done.returncode, done.stdout) == (0, f"{path}: valid\n")


def test_a_document_comes_from_standard_input_or_from_the_cluster(cluster: Cluster) -> None:
    assert cluster.run("validate", "-f", "-", text=DOCUMENT).returncode == 0
    assert cluster.run("validate", "-f", "-", text=WRONG).returncode == 2
    assert cluster.run("validate").returncode == 0
    cluster.world["document"] = WRONG
    done = cluster.run("validate")
    assert done.returncode == 2
    assert "excludeCIDR: unknown key" in done.stderr


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_node_is_asked_by_its_own_pod_and_the_exit_status_is_the_commands(
    cluster: Cluster, code: int
) -> None:
    cluster.world["pods"] += [["there", "node2", ""]]
    cluster.world["exit"] = code
    for words in (("diff",), ("status", "-o", "json"), ("retry",)):
        name, *more = words
        done = cluster.run("--context=c", "-n", "net", name, "node2", *more, text="unread")
        assert done.returncode == code
        assert done.stdout == f"asked: node-network {' '.join(words)} ''\n"
        assert cluster.calls[-1][:5] == [
            *("--context=c", "--namespace=net", "exec", "--stdin", "there"),
        ]


def test_another_document_is_compared_with_a_node(cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "edited.yaml"
    path.write_text(DOCUMENT)
    cluster.world["exit"] = 1
    done = cluster.run("diff", "node1", "-f", str(path))
    assert done.returncode == 1
    assert done.stdout == f"asked: node-network diff -f - {DOCUMENT!r}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["status", "node9"], "no reconciler runs on node node9 in namespace kube-system"),
        (["diff"], "name a node"),
        (["diff", "-f", "x"], "name a node"),
        (["validate", "-f", "/nowhere/at/all"], "/nowhere/at/all: cannot be read"),
        (["validate", "x"], "validate takes -f FILE"),
        (["dance"], "there is no command dance"),
        ([], "COMMAND"),
    ],
    ids=lambda o: " ".join(o) if isinstance(o, list) else "",
)
def test_what_cannot_be_done_is_said_and_never_looks_like_a_difference(
    cluster: Cluster, words: list[str], said: str
) -> None:
    done = cluster.run(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert not any("exec" in call for call in cluster.calls)


def test_a_cluster_that_does_not_answer_is_said(cluster: Cluster) -> None:
    cluster.world |= {"pods": [], "code": 1}
    done = cluster.run("retry", "node1")
    assert done.returncode == 2
    assert "cannot be listed" in done.stderr
