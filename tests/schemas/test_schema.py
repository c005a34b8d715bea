"""The generated JSON Schema says to editors what the models say to the reconciler."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from document_strategies import HEAD, documents, patches
from hypothesis import given
from jsonschema import Draft202012Validator

from schemas.document import NodeNetwork
from schemas.load import DocumentError, dump, load

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "schemas/node-network.schema.json").read_text())
EDITOR = Draft202012Validator(SCHEMA)


def test_the_schema_itself_is_valid() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_the_shipped_document_is_valid_in_an_editor() -> None:
    EDITOR.validate(yaml.safe_load((ROOT / "config/node-network.yaml").read_text()))


@given(documents())
def test_what_the_reconciler_accepts_an_editor_accepts(document: NodeNetwork) -> None:
    EDITOR.validate(yaml.safe_load(dump(document)))


@pytest.mark.parametrize(
    "part",
    [
        {"snat": {"excludeCIDR": []}},
        {"snat": {"mode": "nobody"}},
        {"snat": {"excludeCIDRs": ["here/there"]}},
        {"snat": {"excludeCIDRs": ["@peer"]}},
        {"snat": {"onlyCIDRs": ["pl-x"]}},
        {"warmPool": {"cooldown": "30"}},
        {"warmPool": {"warm": 4}},
        {"warmPool": {"addresses": {"warm": -1}}},
        {"warmPool": {"addresses": {"warm": "4"}}},
        {"warmPool": {"addresses": {"surplus": 1001}}},
        {"warmPool": {"addresses": None}},
        {"warmPool": {"enis": {"warm": 16}}},
        {"warmPool": {"enis": {"minimum": 1}}},
        {"warmPool": {"addresses": {}, "enis": {}}},
        {"warmPool": {"addresses": {}, "prefixes": {}}, "eni": {"allocate": "prefixes"}},
        {"warmPool": {"enis": {}, "prefixes": {}}, "eni": {"allocate": "prefixes"}},
        {"warm_pool": {}},
        {"maxPods": 0},
        {"cluster": "a b"},
        {"eni": {"mtu": 100}},
        {"eni": {"max": 0}},
        {"eni": {"tags": {"aws:x": "y"}}},
        {"eni": {"allocate": "blocks"}},
        {"eni": {"usePrimary": "yes"}},
        {"eni": {"subnets": ["sg-1"]}},
        {"eni": {"subnetTags": {"a": 1}}},
        {"eni": {"securityGroups": ["subnet-1"]}},
        {"eni": {"securityGroups": [f"sg-{i}" for i in range(17)]}},
        {"instanceTypes": {"m5": {"enis": 3, "addressesPerEni": 10}}},
        {"instanceTypes": {"m5.large": {"enis": 3}}},
        {"instanceTypes": {"m5.large": {"enis": 0, "addressesPerEni": 10}}},
        {"instanceTypes": {"m5.large": {"enis": 3, "addressesPerEni": 10, "x": 1}}},
        {"instanceTypes": []},
        {"overrides": {}},
        {"overrides": [{"set": {}}]},
        {"overrides": [{"match": {"zone": "a"}}]},
        {"overrides": [{"match": {}, "set": {}}]},
        {"overrides": [{"match": {"zone": None}, "set": {}}]},
        {"overrides": [{"match": {"zone": ""}, "set": {}}]},
        {"overrides": [{"match": {"colour": "a"}, "set": {}}]},
        {"overrides": [{"match": {"zone": "a"}, "set": []}]},
        {"overrides": [{"match": {"zone": "a"}, "set": {"colour": 1}}]},
        {"overrides": [{"match": {"zone": "a"}, "set": {"colour": None}}]},
        {"overrides": [{"match": {"zone": "a"}, "set": {"kind": "NodeNetwork"}}]},
        {"overrides": [{"match": {"zone": "a"}, "set": {"overrides": []}}]},
        {"overrides": [{"match": {"zone": "a"}, "set": {"eni": {"mtu": 1}}}]},
        {"overrides": [{"match": {"zone": "a"}, "set": {"eni": {"allocate": "blocks"}}}]},
        {"overrides": [{"match": {"zone": "a"}, "set": {"instanceTypes": {"m5": {}}}}]},
        {"pods": {"vethPrefix": "Toolong"}},
        {"cni": {"network": "a/b"}},
        {"cni": {"versions": []}},
        {"cni": {"versions": ["1.2.0"]}},
        {"cni": {"budget": "60"}},
        {"cni": {"logFile": "cni.log"}},
        {"cni": {"logLevel": "loud"}},
        {"cni": {"chain": ["portmap"]}},
        {"cni": {"chain": [{"snat": True}]}},
        {"cni": {"chain": [{"type": "../portmap"}]}},
        {"cni": {"chain": [{"type": "portmap", "capabilities": ["portMappings"]}]}},
        {"cni": {"chain": [{"type": "portmap", "capabilities": {"portMappings": "yes"}}]}},
        {"families": []},
        {"families": ["ipv5"]},
        {"colour": "blue"},
    ],
    ids=str,
)
def test_what_an_editor_refuses_the_reconciler_refuses(part: dict[str, Any]) -> None:
    assert not EDITOR.is_valid(HEAD | part)
    with pytest.raises(DocumentError):
        load(yaml.safe_dump(HEAD | part), "f.yaml")


@given(documents(overrides=False), patches())
def test_what_an_override_may_set_an_editor_accepts(
    document: NodeNetwork, changes: dict[str, Any]
) -> None:
    tree = yaml.safe_load(dump(document))
    EDITOR.validate(tree | {"overrides": [{"match": {"zone": "a"}, "set": changes}]})


def test_an_editor_lets_an_override_drop_one_strategy_and_name_another() -> None:
    changes = {"warmPool": {"addresses": None, "enis": {"warm": 1}}}
    tree = HEAD | {"overrides": [{"match": {"zone": "a"}, "set": changes}]}
    EDITOR.validate(tree)
    load(yaml.safe_dump(tree), "f.yaml")


def test_every_default_that_an_editor_shows_is_what_the_document_would_say() -> None:
    written = yaml.safe_load(dump(NodeNetwork.model_validate(HEAD)))
    shown = {key: body["default"] for key, body in SCHEMA["properties"].items() if key not in HEAD}
    assert shown == {key: value for key, value in written.items() if key not in HEAD}
    for name in ("Eni", "Snat", "Pods", "Cni", "Reconcile"):
        fields = SCHEMA["$defs"][name]["properties"]
        assert {key: body["default"] for key, body in fields.items()} == written[name.lower()]
    assert SCHEMA["$defs"]["WarmPool"]["properties"]["cooldown"]["default"] == "30s"


def test_an_editor_completes_what_an_override_may_set_but_fills_in_no_defaults() -> None:
    patch = copy.deepcopy(SCHEMA["$defs"]["Override"]["properties"]["set"])
    assert set(patch["properties"]) == set(SCHEMA["properties"]) - {
        "apiVersion",
        "kind",
        "overrides",
    }
    assert "description" in patch["properties"]["eni"]["properties"]["mtu"]
    assert '"default"' not in json.dumps(patch)
    # A list is replaced whole, so its entries are whole.
    del patch["properties"]["cni"]["properties"]["chain"]["items"]["required"]
    assert '"required"' not in json.dumps(patch)


def test_every_field_of_the_document_is_explained() -> None:
    def fields(schema: dict[str, Any]) -> Any:
        yield from schema.get("properties", {}).items()
        for model in schema.get("$defs", {}).values():
            yield from fields(model)

    def explained(body: dict[str, Any]) -> bool:
        model = SCHEMA["$defs"].get(body.get("$ref", "").rpartition("/")[2], {})
        return bool(body.get("description") or model.get("description"))

    unexplained = [name for name, body in fields(SCHEMA) if not explained(body)]
    assert unexplained == []
