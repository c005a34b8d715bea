"""The chart in a real cluster: install, a refused document, upgrade, rollback, uninstall."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from deploy.programs import DEPLOY
from e2e.left import watched
from waiting import until

from deploy import tools
from lab.kubernetes.cluster import Cluster, KubectlError
from lab.kubernetes.images import RECONCILER
from lab.kubernetes.places import ADMINISTRATOR, CONTROL
from lab.topology import EC2_ENDPOINT, EC2_PORT

pytestmark = pytest.mark.long

CHART = str(DEPLOY / "chart/node-network")
SPACE = ("-n", "kube-system")
DAEMON = "daemonset/node-network"

CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN = (1 << number for number in (12, 13, 21))
"""linux/capability.h"""

WRONG = {"snat": {"mode": "external", "excludeCIDRs": ["10.0.0.0/8"]}}
"""What the schema of the values does not find, and the document's own check does."""

Helm = Callable[..., str]


@pytest.fixture(scope="module")
def bare() -> Iterator[Cluster]:
    """A cluster of this file's own: Helm takes over nothing that somebody else has applied."""
    with watched(lambda _: None) as made:
        yield made


@pytest.fixture(scope="module")
def helm(bare: Cluster) -> Helm:
    """Run Helm as the administrator, with a document."""
    try:
        program = tools.fetch() / "helm/helm"
    except tools.MissingError as error:
        pytest.skip(str(error))
    repository, _, tag = RECONCILER.rpartition(":")
    endpoint = {"name": "AWS_ENDPOINT_URL_EC2", "value": f"http://{EC2_ENDPOINT}:{EC2_PORT}"}
    values = bare.places.control / "values.yaml"

    def run(*words: str, document: dict[str, Any] | None = None, fails: bool = False) -> str:
        image = {"repository": repository, "tag": tag}
        body = {"image": image, "env": [endpoint], "document": document or {}}
        values.write_text(yaml.safe_dump(body))
        config = f"--kubeconfig={bare.places.kubeconfig(ADMINISTRATOR)}"
        files = ["-f", str(values)] if words[0] in ("install", "upgrade") else []
        done = subprocess.run(
            bare.lab.command(CONTROL, [str(program), config, *SPACE, *words, *files]),
            env=os.environ | {"HOME": str(bare.places.control)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert (done.returncode != 0) == fails, done.stderr
        return done.stderr if fails else done.stdout

    return run


def nodes_ready(bare: Cluster) -> bool:
    """Whether all nodes are."""
    nodes = json.loads(bare.kubectl("get", "nodes", "-o", "json"))["items"]
    conditions = [c for n in nodes for c in n["status"]["conditions"] if c["type"] == "Ready"]
    return bool(conditions) and all(c["status"] == "True" for c in conditions)


def rolled_out(bare: Cluster) -> None:
    """Wait for the DaemonSet."""
    bare.kubectl(*SPACE, "rollout", "status", DAEMON, "--timeout=120s")


def inside(bare: Cluster, *words: str) -> str:
    """Run a command in one of the DaemonSet's containers."""
    return bare.kubectl(*SPACE, "exec", DAEMON, "--", *words)


def capabilities(bare: Cluster) -> dict[str, int]:
    """What the daemon may, by set."""
    lines = inside(bare, "cat", "/proc/1/status").splitlines()
    return {x.split(":")[0]: int(x.split()[1], 16) for x in lines if x.startswith("Cap")}


def document(bare: Cluster) -> dict[str, Any]:
    """The document in the cluster."""
    config = json.loads(bare.kubectl(*SPACE, "get", "configmap", "node-network", "-o", "json"))
    found: dict[str, Any] = yaml.safe_load(config["data"]["node-network.yaml"])
    return found


def test_the_api_server_takes_the_manifest_to_the_letter(bare: Cluster) -> None:
    text = (DEPLOY / "daemonset.yaml").read_text()
    bare.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", text=text)


def test_a_first_installation_with_a_refused_document_installs_nothing(
    bare: Cluster, helm: Helm
) -> None:
    assert "pre-install" in helm("install", "node-network", CHART, document=WRONG, fails=True)
    log = bare.kubectl(*SPACE, "logs", "job/node-network-validate")
    assert "snat.excludeCIDRs: has no effect in mode external" in log
    with pytest.raises(KubectlError, match="NotFound"):
        bare.kubectl(*SPACE, "get", DAEMON)


def test_the_next_attempt_installs_it_and_the_daemon_has_what_it_needs_and_no_more(
    bare: Cluster, helm: Helm
) -> None:
    helm("upgrade", "--install", "node-network", CHART)
    rolled_out(bare)
    until(lambda: nodes_ready(bare), "Ready")
    granted = CAP_NET_ADMIN | CAP_SYS_ADMIN
    assert {v for k, v in capabilities(bare).items() if k in ("CapEff", "CapPrm", "CapBnd")} == {
        granted
    }
    assert "Seccomp:\t2" in inside(bare, "cat", "/proc/1/status")
    with pytest.raises(KubectlError, match="Read-only file system"):
        inside(bare, "touch", "/opt/new")
    with pytest.raises(KubectlError, match="Read-only file system"):
        inside(bare, "sh", "-c", "echo 1 >/proc/sys/kernel/panic")
    assert inside(bare, "cat", "/proc/sys/net/ipv4/ip_forward") == "1\n"
    for words in (("ip", "rule"), ("nft", "list", "ruleset"), ("node-network", "status")):
        inside(bare, *words)


def deployed(helm: Helm) -> str:
    """The number of the revision that is in force."""
    (line,) = (
        each
        for each in json.loads(helm("history", "node-network", "-o", "json"))
        if each["status"] == "deployed"
    )
    return str(line["revision"])


def test_an_upgrade_with_a_refused_document_changes_nothing(bare: Cluster, helm: Helm) -> None:
    before = document(bare)
    assert "pre-upgrade" in helm("upgrade", "node-network", CHART, document=WRONG, fails=True)
    assert document(bare) == before


def test_a_rollback_to_a_refused_document_changes_nothing(bare: Cluster, helm: Helm) -> None:
    """Helm goes back by one revision, which is the refused one if an upgrade came since."""
    helm("upgrade", "node-network", CHART)
    before, revision = document(bare), deployed(helm)
    helm("rollback", "node-network", fails=True)
    assert document(bare) == before
    # Helm takes the rollback for unfinished until another one has succeeded.
    helm("rollback", "node-network", revision)
    helm("upgrade", "node-network", CHART)
    assert document(bare) == before


def test_an_edit_restarts_no_daemon_and_a_rollback_takes_it_back(
    bare: Cluster, helm: Helm
) -> None:
    def pods() -> set[str]:
        label = "app.kubernetes.io/name=node-network"
        return set(bare.kubectl(*SPACE, "get", "pods", "-o", "name", "-l", label).split())

    before, daemons, revision = document(bare), pods(), deployed(helm)
    helm("upgrade", "node-network", CHART, document={"snat": {"mode": "external"}})
    assert document(bare)["snat"]["mode"] == "external"
    helm("rollback", "node-network", revision)
    assert document(bare) == before
    assert pods() == daemons


def test_a_take_over_adds_what_it_needs_and_a_rollback_takes_it_away(
    bare: Cluster, helm: Helm
) -> None:
    revision = deployed(helm)
    helm("upgrade", "node-network", CHART, document={"takeOver": "amazon-vpc-cni"})
    rolled_out(bare)
    assert capabilities(bare)["CapEff"] & CAP_NET_RAW
    assert "COMMIT" in inside(bare, "iptables-legacy-save", "-t", "nat")
    helm("rollback", "node-network", revision)
    rolled_out(bare)
    until(lambda: capabilities(bare)["CapEff"] == CAP_NET_ADMIN | CAP_SYS_ADMIN, "the rollback")


def test_nothing_is_left_in_the_cluster(bare: Cluster, helm: Helm) -> None:
    helm("uninstall", "node-network", "--wait")
    left = bare.kubectl(*SPACE, "get", "daemonset,configmap,job,serviceaccount", "-o", "name")
    ours = {line for line in left.splitlines() if "/node-network" in line}
    assert ours <= {"job.batch/node-network-validate"}, "a check that failed stays for an hour"
