"""``node-network import``: the stock plugin's settings become a document that is valid."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from reconciler.cli.main import MODULES, main
from reconciler.importing.stock_settings import SettingsError, StockSettings, read
from reconciler.importing.stock_variables import OURS, VARIABLES, page
from reconciler.importing.translate import Note, translate
from reconciler.importing.written import write
from schemas.document import NodeNetwork
from schemas.load import load

ROOT = Path(__file__).parents[2]

V1_12 = {
    "DISABLE_TCP_EARLY_DEMUX": "false",
    "ADDITIONAL_ENI_TAGS": "{}",
    "AWS_VPC_CNI_NODE_PORT_SUPPORT": "true",
    "AWS_VPC_ENI_MTU": "9001",
    "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG": "false",
    "AWS_VPC_K8S_CNI_EXTERNALSNAT": "false",
    "AWS_VPC_K8S_CNI_LOG_FILE": "/host/var/log/aws-routed-eni/ipamd.log",
    "AWS_VPC_K8S_CNI_LOGLEVEL": "DEBUG",
    "AWS_VPC_K8S_CNI_RANDOMIZESNAT": "prng",
    "AWS_VPC_K8S_CNI_VETHPREFIX": "eni",
    "AWS_VPC_K8S_PLUGIN_LOG_FILE": "/var/log/aws-routed-eni/plugin.log",
    "AWS_VPC_K8S_PLUGIN_LOG_LEVEL": "DEBUG",
    "DISABLE_INTROSPECTION": "false",
    "DISABLE_METRICS": "false",
    "ENABLE_POD_ENI": "false",
    "ENABLE_PREFIX_DELEGATION": "false",
    "WARM_ENI_TARGET": "1",
    "WARM_PREFIX_TARGET": "1",
    "DISABLE_NETWORK_RESOURCE_PROVISIONING": "false",
    "ENABLE_IPv4": "true",
    "ENABLE_IPv6": "false",
}
"""The published defaults of v1.12.1 (``charts/aws-vpc-cni/values.yaml``)."""

V1_15 = V1_12 | {"VPC_CNI_VERSION": "v1.15.1"}

V1_23 = V1_15 | {
    "VPC_CNI_VERSION": "v1.23.1",
    "ENABLE_SUBNET_DISCOVERY": "true",
    "NETWORK_POLICY_ENFORCING_MODE": "standard",
    "CLUSTER_ENDPOINT": "",
}


def daemon_set(env: Mapping[str, str], name: str = "aws-node") -> dict[str, Any]:
    listed: list[Any] = [{"name": k, "value": v} for k, v in env.items()]
    listed.append({"name": "MY_NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "x"}}})
    pod = {
        "initContainers": [
            {"name": "aws-vpc-cni-init", "env": [{"name": "ENABLE_IPv6", "value": "false"}]}
        ],
        "containers": [{"name": name, "env": listed}, {"name": "aws-eks-nodeagent"}],
    }
    metadata = {"name": "aws-node"}
    return {"kind": "DaemonSet", "metadata": metadata, "spec": {"template": {"spec": pod}}}


def eni_config(name: str, subnet: str, *groups: str) -> dict[str, Any]:
    spec = {"subnet": subnet, "securityGroups": list(groups)}
    return {"kind": "ENIConfig", "metadata": {"name": name}, "spec": spec}


def imported(*bodies: Any) -> tuple[NodeNetwork, str]:
    """Return the document and its text; it is valid."""
    settings = read([("test", yaml.safe_dump_all(bodies))])
    text = "\n".join(write(*translate(settings)))
    return load(text, "test"), text


def notes(text: str) -> str:
    return text.partition("# Not translated")[2]


@pytest.mark.parametrize("env", [V1_12, V1_15, V1_23], ids=["v1.12.1", "v1.15.1", "v1.23.1"])
def test_published_defaults_hold_one_whole_eni_ready_and_need_little_attention(
    env: dict[str, str],
) -> None:
    document, text = imported(daemon_set(env))
    assert document.warm_pool.enis is not None
    assert document.warm_pool.enis.warm == 1
    assert "WARM_ENI_TARGET=1" in text
    told = [line.split()[2].rstrip(":") for line in notes(text).splitlines()[1:]]
    assert told == ["ENABLE_SUBNET_DISCOVERY", "AWS_MANAGE_ENIS_NON_SCHEDULABLE"]


def pool(env: dict[str, str]) -> dict[str, Any]:
    found = imported(daemon_set(V1_12 | env))[0].warm_pool.model_dump(by_alias=True)
    return {k: v for k, v in found.items() if v is not None and k != "cooldown"}


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"WARM_ENI_TARGET": "2"}, {"enis": {"warm": 2}}),
        ({"WARM_ENI_TARGET": "-1"}, {"enis": {"warm": 1}}),
        ({"WARM_ENI_TARGET": "many"}, {"enis": {"warm": 1}}),
        ({"WARM_IP_TARGET": "5"}, {"addresses": {"warm": 5, "minimum": 0, "surplus": 0}}),
        ({"MINIMUM_IP_TARGET": "3"}, {"addresses": {"warm": 0, "minimum": 3, "surplus": 0}}),
        (
            {"WARM_ENI_TARGET": "0", "WARM_IP_TARGET": "5", "MINIMUM_IP_TARGET": "3"},
            {"addresses": {"warm": 5, "minimum": 3, "surplus": 0}},
        ),
        ({"ENABLE_PREFIX_DELEGATION": "true"}, {"prefixes": {"warm": 1}}),
        (
            {"ENABLE_PREFIX_DELEGATION": "true", "WARM_IP_TARGET": "8"},
            {"addresses": {"warm": 8, "minimum": 0, "surplus": 0}},
        ),
        (
            {"ENABLE_PREFIX_DELEGATION": "true", "WARM_PREFIX_TARGET": "0"},
            {"enis": {"warm": 1}},
        ),
    ],
)
def test_of_interacting_targets_the_one_that_wins_there_wins_here(
    env: dict[str, str], expected: dict[str, Any]
) -> None:
    assert pool(env) == expected


def test_the_winner_is_named_with_what_it_beats() -> None:
    _, text = imported(daemon_set(V1_12 | {"WARM_IP_TARGET": "5"}))
    assert "warm: 5  # WARM_IP_TARGET=5, wins over WARM_ENI_TARGET and WARM_PREFIX_TARGET" in text


def test_excluded_cidrs_are_kept_and_what_the_stock_plugin_skips_is_named() -> None:
    excluded = "10.0.0.0/8, 192.168.1.1/16,10.0.0.0/8,fd00::/8,x"
    document, text = imported(
        daemon_set({"AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS": excluded, "WARM_IP_TARGET": "1"})
    )
    assert [str(c) for c in document.snat.exclude_cidrs] == ["10.0.0.0/8", "192.168.0.0/16"]
    assert "no IPv4 CIDRs: fd00::/8, x" in notes(text)


def test_external_snat_leaves_out_what_would_have_no_effect() -> None:
    env = {
        "AWS_VPC_K8S_CNI_EXTERNALSNAT": "true",
        "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS": "10.0.0.0/8",
        "AWS_VPC_K8S_CNI_RANDOMIZESNAT": "none",
    }
    document, text = imported(daemon_set(env))
    assert (document.snat.mode, document.snat.exclude_cidrs) == ("external", ())
    assert document.snat.ports == "sequential"
    assert "EXCLUDE_SNAT_CIDRS has no effect" in notes(text)


def test_custom_networking_becomes_an_override_for_each_zone() -> None:
    env = {
        "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG": "true",
        "ENI_CONFIG_LABEL_DEF": "topology.kubernetes.io/zone",
    }
    listed = {
        "kind": "List",
        "items": [
            eni_config("us-west-2a", "subnet-a", "sg-1"),
            eni_config("us-west-2b", "subnet-b"),
            eni_config("default", "subnet-d"),
            eni_config("gpu", "subnet-e"),
        ],
    }
    document, text = imported(daemon_set(env), listed)
    assert not document.eni.use_primary
    assert document.eni.subnets == ("subnet-d",)
    zones = [(o.match.zone, o.changes["eni"]) for o in document.overrides]
    assert zones == [
        ("us-west-2a", {"subnets": ["subnet-a"], "securityGroups": ["sg-1"]}),
        ("us-west-2b", {"subnets": ["subnet-b"]}),
    ]
    assert "ENIConfig gpu is not named after a zone" in notes(text)
    assert "ENI_CONFIG_LABEL_DEF" not in notes(text)


VALUES = {
    "init": {"env": {"DISABLE_TCP_EARLY_DEMUX": True, "ENABLE_IPv6": False}},
    "env": {"AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG": "true", "ENABLE_PREFIX_DELEGATION": "true"},
    "eniConfig": {
        "create": True,
        "subnets": {"eu-central-1a": {"id": "subnet-1", "securityGroups": ["sg-1"]}},
    },
    "enableNetworkPolicy": "true",
}


@pytest.mark.parametrize("write_as", [yaml.safe_dump, json.dumps], ids=["values", "add-on"])
def test_the_charts_values_and_an_add_ons_configuration_say_the_same(write_as: Any) -> None:
    made = translate(read([("test", write_as(VALUES))]))
    document = load("\n".join(write(*made)), "test")
    assert (document.eni.allocate, document.eni.use_primary) == ("prefixes", False)
    assert [o.match.zone for o in document.overrides] == ["eu-central-1a"]
    assert (document.pods.veth_prefix, document.pods.veth_name) == ("eni", "pod")
    assert "DISABLE_TCP_EARLY_DEMUX=true" in "".join(n.text for n in made[1])


FOUND = [
    {"WARM_ENI_TARGET": "0", "ENABLE_POD_ENI": "true"},
    {"ENABLE_IPv6": "true", "ENABLE_IPv4": "false", "ENABLE_PREFIX_DELEGATION": "true"},
    {"ENABLE_V6_EGRESS": "true"},
    {"AWS_VPC_ENI_MTU": "1500", "POD_MTU": "1400"},
    {"AWS_VPC_ENI_MTU": "600"},
    {"ADDITIONAL_ENI_TAGS": '{"team": "net", "x.k8s.amazonaws.com/y": "z"}'},
    {"ADDITIONAL_ENI_TAGS": "team=net"},
    {"ENABLE_BANDWIDTH_PLUGIN": "true", "DISABLE_POD_V6": "true"},
    {"AWS_VPC_K8S_PLUGIN_LOG_FILE": "stderr", "AWS_VPC_K8S_PLUGIN_LOG_LEVEL": "info"},
    {"AWS_VPC_K8S_PLUGIN_LOG_FILE": "/var/log/x.log", "AWS_VPC_K8S_PLUGIN_LOG_LEVEL": "WARN"},
    {"ENABLE_IMDS_ONLY_MODE": "true", "CLUSTER_NAME": "prod"},
    {"AWS_VPC_K8S_CNI_CONNMARK": "0x8000", "AWS_VPC_K8S_CNI_VETHPREFIX": "veth"},
    {"AWS_EXTERNAL_SERVICE_CIDRS": "172.20.0.0/16", "MAX_ENI": "3", "IP_COOLDOWN_PERIOD": "10"},
    {"AWS_VPC_K8S_CNI_VETHPREFIX": "pod", "NO_SUCH_VARIABLE": "1", "MAX_ENI": "-1"},
]


@pytest.mark.parametrize("env", FOUND, ids=lambda env: next(iter(env)))
def test_configurations_as_people_have_them_give_a_valid_document(env: dict[str, str]) -> None:
    imported(daemon_set(V1_23 | env))


@given(st.dictionaries(st.sampled_from([v.name for v in VARIABLES]), st.text(max_size=40)))
def test_no_value_of_any_variable_breaks_the_document(env: dict[str, str]) -> None:
    lines, notes = translate(StockSettings(env))
    text = "\n".join(write(lines, notes))
    body = yaml.safe_load(text)
    assert body["kind"] == "NodeNetwork"
    assert all(isinstance(note, Note) for note in notes)
    assert text.count("\n# - ") == len(notes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kind: Deployment\nmetadata: {name: coredns}\n", "nothing here is of amazon-vpc-cni"),
        ("kind: ConfigMap\nmetadata: {name: x}\n", "ConfigMap x"),
        ("", "nothing here"),
        ("a: [", "not YAML"),
        ("a: &x [1]\nb: *x\n", "aliases"),
        ("[" * 3000, "not YAML"),
        ("env: {A: b}\n---\n" * 1001, "more than 1000 objects"),
        ("env: {A: b}\n# " + "x" * (8 << 20), "more than"),
    ],
    ids=["other", "ConfigMap", "empty", "broken", "alias", "deep", "many", "large"],
)
def test_what_cannot_be_read_is_an_error_that_says_why(text: str, expected: str) -> None:
    with pytest.raises(SettingsError, match=expected):
        read([("test", text)])


def test_the_command_reads_files_and_standard_input(tmp_path: Path) -> None:
    (tmp_path / "ds.yaml").write_text(yaml.safe_dump(daemon_set({"WARM_IP_TARGET": "7"})))
    runner = CliRunner()
    by_file = runner.invoke(main, ["import", str(tmp_path / "ds.yaml")])
    by_stream = runner.invoke(main, ["import"], input=(tmp_path / "ds.yaml").read_bytes())
    assert by_file.exit_code == by_stream.exit_code == 0
    assert by_file.stdout == by_stream.stdout
    assert load(by_file.stdout, "test").warm_pool.strategy.warm == 7
    missing = runner.invoke(main, ["import", str(tmp_path / "none")])
    assert missing.exit_code == 2
    assert "Traceback" not in missing.output
    assert "import" in MODULES


# -- the table --------------------------------------------------------------------------------


def fields(model: Any, path: str = "") -> set[str]:
    """Return the paths of all fields of the document, those of models within included."""
    found = set()
    for name, field in model.model_fields.items():
        here = f"{path}{field.alias or name}"
        inner = getattr(field.annotation, "model_fields", None)
        found |= fields(field.annotation, f"{here}.") if inner else {here}
    return found


def test_every_field_of_the_document_is_in_the_table_and_no_other() -> None:
    told = {path for variable in VARIABLES for path in variable.ours} | OURS.keys()
    known = fields(NodeNetwork)
    missing = {f for f in known if not any(t == f or t.startswith(f"{f}.") for t in told)}
    assert not missing, "say in stock_variables what of the stock plugin it replaces, or in OURS"
    unknown = {t for t in told if t not in known and t.rpartition(".")[0] not in known}
    assert not unknown


def test_the_page_is_made_from_the_table() -> None:
    made = "".join(page())
    assert (ROOT / "docs/parity.md").read_text() == made, (
        "run python -m reconciler.importing.stock_variables > docs/parity.md"
    )
