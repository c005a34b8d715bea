"""The chart, and what is made from it; with Helm and kubectl where they can be had."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy.programs import DEPLOY, program
from deploy.reduce_schemas import KINDS
from jsonschema import Draft202012Validator

from deploy import tools

ROOT = DEPLOY.parent
HOOKS = ("validate",)
render = program("render.py")

CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "take-over": {"document": {"takeOver": "amazon-vpc-cni"}},
    "everything": {
        "image": {"repository": "registry:5000/nn", "digest": "sha256:" + "a" * 64},
        "imagePullSecrets": [{"name": "pull"}],
        "document": {
            "snat": {"excludeCIDRs": ["10.0.0.0/8"]},
            "eni": {"tags": {"team": "net"}},
            "overrides": [{"match": {"nodeName": "a*"}, "set": {"pods": {"mtu": 1400}}}],
        },
        "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/a"}},
        "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "listen": {"host": "0.0.0.0", "port": 9000},
        "cni": {
            "binDir": "/var/lib/rancher/bin",
            "confDir": "/var/lib/rancher/net.d",
            "tmpfilesDir": "",
        },
        "hostFiles": [],
        "seLinuxOptions": {"type": "super_t"},
        "maxUnavailable": 1,
        "nodeSelector": {"a": "b"},
        "affinity": {"nodeAffinity": {}},
        "podAnnotations": {"a": "1"},
        "podLabels": {"b": "2"},
    },
    "told": {"document": {"kubernetes": {"report": True}}},
    "taint": {"document": {"kubernetes": {"report": True, "startupTaint": "a/b"}}},
    "not told": {"document": {"kubernetes": {"report": False}}},
    "metrics": {"metrics": {"enabled": True, "port": 9100}},
    "metrics of one address": {
        "metrics": {"enabled": True, "host": "$(HOST_IP)"},
        "env": [{"name": "HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}],
    },
    "scraped": {
        "metrics": {
            "enabled": True,
            "podMonitor": {"enabled": True, "interval": "1m", "labels": {"release": "p"}},
        }
    },
    "tag": {"image": {"tag": "v1"}, "tolerations": []},
}


def manifests(text: str) -> dict[str, Any]:
    """Return manifests by kind."""
    found = [m for m in yaml.safe_load_all(text) if m]
    assert len({m["kind"] for m in found}) == len(found)
    return {m["kind"]: m for m in found}


def test_what_is_made_from_the_chart_is_up_to_date() -> None:
    for path, text in render.derived().items():
        assert path.read_text() == text, f"{path.name}: run deploy/render.py"


def test_versions_are_the_products() -> None:
    product = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((render.CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == product
    assert f"ARG VERSION={product}\n" in (DEPLOY / "Dockerfile").read_text()


@pytest.mark.parametrize("case", CASES)
def test_the_schema_takes_what_is_right(case: str) -> None:
    defaults = yaml.safe_load((render.CHART / "values.yaml").read_text())
    values = render.merged(defaults, CASES[case])
    Draft202012Validator(render.values_schema()).validate(values)
    manifests(render.render(CASES[case]))


@pytest.mark.parametrize(
    "values",
    [
        {"imag": {}},
        {"image": {"repository": "a b"}},
        {"image": {"repository": "a:tag"}},
        {"document": {"snat": {"mod": "node"}}},
        {"document": {"eni": {"tags": {"aws:x": "1"}}}},
        {"env": [{"name": "NODE_NAME", "value": "x"}]},
        {"listen": {"port": 0}},
        {"maxUnavailable": "0%"},
        {"metrics": {"port": 0}},
        {"metrics": {"host": "a name"}},
        {"metrics": {"podMonitor": {"enabled": True}}},
        {"metrics": {"enabled": True, "podMonitor": {"interval": "soon"}}},
        {"hostFiles": [{"name": "a", "path": "etc", "type": "Directory"}]},
    ],
    ids=json.dumps,
)
def test_the_schema_refuses_what_is_wrong(values: dict[str, Any]) -> None:
    defaults = yaml.safe_load((render.CHART / "values.yaml").read_text())
    validator = Draft202012Validator(render.values_schema())
    assert not validator.is_valid(render.merged(defaults, values))


def test_a_service_account_has_no_token_and_nothing_asks_for_rights() -> None:
    made = manifests(render.render())
    assert set(made) == {"ServiceAccount", "ConfigMap", "DaemonSet"}
    assert made["ServiceAccount"]["automountServiceAccountToken"] is False
    assert made["DaemonSet"]["spec"]["template"]["spec"]["automountServiceAccountToken"] is False


@pytest.mark.parametrize(
    ("settings", "rights"),
    [
        (None, None),
        ({"report": False}, None),
        ({"report": True}, {"get nodes", "patch nodes/status", "create events"}),
        (
            {"report": True, "startupTaint": "a/b"},
            {"get nodes", "patch nodes/status", "create events", "patch nodes"},
        ),
    ],
)
def test_a_token_and_rights_come_only_with_the_documents_word(
    settings: dict[str, Any] | None, rights: set[str] | None
) -> None:
    """They are those that the requests name, and no others."""
    document = {} if settings is None else {"kubernetes": settings}
    made = manifests(render.render({"document": document}))
    pod = made["DaemonSet"]["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is (rights is not None)
    assert made["ServiceAccount"]["automountServiceAccountToken"] is False
    if rights is None:
        assert set(made) == {"ServiceAccount", "ConfigMap", "DaemonSet"}
        return
    rules = made["ClusterRole"]["rules"]
    granted = {f"{v} {r}" for rule in rules for r in rule["resources"] for v in rule["verbs"]}
    assert granted == rights
    assert all(rule["apiGroups"] == [""] for rule in rules)
    (subject,) = made["ClusterRoleBinding"]["subjects"]
    assert subject["namespace"] == "kube-system"


def test_the_rights_are_those_that_are_asked_for() -> None:
    source = "".join(p.read_text() for p in (ROOT / "reconciler/cluster").glob("*.py"))
    made = manifests(render.render(CASES["taint"]))["ClusterRole"]["rules"]
    granted = {f"{v} {r}" for rule in made for r in rule["resources"] for v in rule["verbs"]}
    verbs = "get|list|watch|create|patch|update|delete"
    assert set(re.findall(rf'"((?:{verbs}) [a-z/]+)"', source)) == granted


def test_metrics_are_for_other_nodes_only_where_that_is_asked_for() -> None:
    """And then nothing else is."""
    for case, made in ((c, manifests(render.render(values))) for c, values in CASES.items()):
        (container,) = made["DaemonSet"]["spec"]["template"]["spec"]["containers"]
        told = [a for a in container["args"] if a.startswith("--metrics-listen=")]
        hosts = {"metrics": "", "scraped": "", "metrics of one address": "$(HOST_IP)"}
        assert bool(told) == ("ports" in container) == (case in hosts)
        assert ("PodMonitor" in made) == (case == "scraped")
        if told:
            (port,) = container["ports"]
            assert told == [f"--metrics-listen={hosts[case]}:{port['containerPort']}"]
            assert port["hostPort"] == port["containerPort"]
            assert "--listen=127.0.0.1:61680" in container["args"]


def test_a_pod_monitor_finds_the_pods_and_their_port() -> None:
    made = manifests(render.render(CASES["scraped"]))
    monitor, template = made["PodMonitor"], made["DaemonSet"]["spec"]["template"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert [endpoint["port"]] == [p["name"] for p in template["spec"]["containers"][0]["ports"]]
    labels = template["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert monitor["metadata"]["namespace"] == "kube-system"
    assert monitor["metadata"]["labels"]["release"] == "p"


Tool = Callable[..., str]


@pytest.fixture(scope="module")
def tool() -> Tool:
    """Run Helm or kubectl; skip where they cannot be had."""
    try:
        directory = tools.fetch()
    except tools.MissingError as error:
        pytest.skip(str(error))

    def run(name: str, *words: str, fails: bool = False) -> str:
        done = subprocess.run(
            [str(directory / name / name), *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode != 0) == fails, done.stderr
        return done.stderr if fails else done.stdout

    return run


def template(tool: Tool, values: dict[str, Any], directory: Path, *options: str) -> dict[str, Any]:
    """Return what Helm makes of the chart."""
    file = directory / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    words = ("template", "node-network", str(render.CHART), "-n", "kube-system", "-f", str(file))
    return manifests(tool("helm", *words, *options))


@pytest.mark.parametrize("case", CASES)
def test_helm_makes_the_same(case: str, tool: Tool, tmp_path: Path) -> None:
    values = CASES[case]
    made = template(tool, values, tmp_path, "--no-hooks")
    assert made == manifests(render.render(values))
    hooks = template(tool, values, tmp_path, "--show-only", "templates/validate.yaml")
    assert hooks == manifests(render.render(values, templates=HOOKS))


@pytest.mark.parametrize("case", CASES)
def test_the_document_is_checked_before_anything_is_changed(case: str, tmp_path: Path) -> None:
    hooks = manifests(render.render(CASES[case], templates=HOOKS))
    config, job = hooks["ConfigMap"], hooks["Job"]
    assert config["data"] == manifests(render.render(CASES[case]))["ConfigMap"]["data"]
    for each, weight in ((config, "-1"), (job, "0")):
        notes = each["metadata"]["annotations"]
        assert notes["helm.sh/hook"] == "pre-install,pre-upgrade,pre-rollback"
        assert notes["helm.sh/hook-weight"] == weight
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["volumes"] == [
        {"name": "document", "configMap": {"name": config["metadata"]["name"]}}
    ]
    verb, path = container["args"]
    (mount,) = container["volumeMounts"]
    file = tmp_path / Path(path).relative_to(mount["mountPath"])
    file.write_text(config["data"][file.name])
    words = [sys.executable, "-m", "reconciler", verb, str(file)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_check_can_be_left_out() -> None:
    assert manifests(render.render({"validate": False}, templates=HOOKS)) == {}


def test_helm_finds_nothing_wrong_and_refuses_a_wrong_document(tool: Tool) -> None:
    chart = str(render.CHART)
    assert "0 chart(s) failed" in tool("helm", "lint", chart)
    wrong = ("template", "x", chart, "--set", "document.snat.mod=node")
    assert "additional properties 'mod' not allowed" in tool("helm", *wrong, fails=True)


def test_kustomize_makes_the_same(tool: Tool) -> None:
    made = manifests(tool("kubectl", "kustomize", str(DEPLOY / "kustomize/base")))
    assert made == manifests((DEPLOY / "daemonset.yaml").read_text())


def with_component(tool: Tool, directory: Path, component: str) -> dict[str, Any]:
    """Return what Kustomize makes of the base with one of our components."""
    shutil.copytree(DEPLOY / "kustomize", directory / "kustomize")
    overlay = directory / "overlay"
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text(
        f"resources: [../kustomize/base]\ncomponents: [../kustomize/{component}]\n"
    )
    return manifests(tool("kubectl", "kustomize", str(overlay)))


def test_kustomizes_component_adds_what_the_chart_adds_for_reports(
    tool: Tool, tmp_path: Path
) -> None:
    made = with_component(tool, tmp_path, "report")
    wanted = manifests(render.render(CASES["taint"]))
    for kind in ("DaemonSet", "ClusterRole", "ClusterRoleBinding"):
        assert made[kind] == wanted[kind]


def test_kustomizes_component_adds_what_the_chart_adds_for_metrics(
    tool: Tool, tmp_path: Path
) -> None:
    made = with_component(tool, tmp_path, "metrics")
    values = {"metrics": {"enabled": True, "podMonitor": {"enabled": True}}}
    wanted = manifests(render.render(values))
    assert (made["DaemonSet"], made["PodMonitor"]) == (wanted["DaemonSet"], wanted["PodMonitor"])


def test_kustomizes_component_has_a_proxy_ask_the_reconciler_for_metrics(
    tool: Tool, tmp_path: Path
) -> None:
    made = with_component(tool, tmp_path, "metrics-proxy")
    daemon_set = made["DaemonSet"]
    for path in (Path(__file__).parent / "schemas").glob("v*.json"):
        schema = {"$ref": f"#/definitions/{KINDS['DaemonSet']}", **json.loads(path.read_text())}
        assert list(Draft202012Validator(schema).iter_errors(daemon_set)) == []
    pod = daemon_set["spec"]["template"]["spec"]
    reconciler, proxy = pod["containers"]
    told = dict(word.removeprefix("--").split("=", 1) for word in proxy["args"])
    (listening,) = (a for a in reconciler["args"] if a.startswith("--listen="))
    assert told["upstream"] == f"http://{listening.partition('=')[2]}/"
    assert not [a for a in reconciler["args"] if a.startswith("--metrics-listen")]
    (port,) = proxy["ports"]
    assert told["secure-listen-address"] == f":{port['containerPort']}"
    metrics = render.render({"metrics": {"enabled": True, "podMonitor": {"enabled": True}}})
    (open_port,) = manifests(metrics)["DaemonSet"]["spec"]["template"]["spec"]["containers"][0][
        "ports"
    ]
    assert port == open_port, "the PodMonitor, and the firewall's rule, are the same"
    (rule,) = made["ClusterRole"]["rules"]
    assert rule["nonResourceURLs"] == [told["allow-paths"]]
    (subject,) = made["ClusterRoleBinding"]["subjects"]
    assert (
        subject["name"] == pod["serviceAccountName"] == made["ServiceAccount"]["metadata"]["name"]
    )
    (mount,) = proxy["volumeMounts"]
    assert mount["name"] in {v["name"] for v in pod["volumes"]}
    assert pod["automountServiceAccountToken"] is False


def test_kustomizes_component_adds_what_the_chart_adds_for_a_take_over(
    tool: Tool, tmp_path: Path
) -> None:
    made = with_component(tool, tmp_path, "take-over")
    wanted = manifests(render.render(CASES["take-over"]))
    assert made["DaemonSet"] == wanted["DaemonSet"]
