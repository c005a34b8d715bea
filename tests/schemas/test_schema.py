"""The generated JSON Schema says to editors what the models say to the reconciler."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from builders import documents
from hypothesis import given
from jsonschema import Draft202012Validator

from schemas.document import NodeNetwork
from schemas.load import DocumentError, dump, load

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "schemas/node-network.schema.json").read_text())
HEAD = {"apiVersion": "node-network/v1alpha1", "kind": "NodeNetwork"}
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
        {"warmPool": {"cooldown": "30"}},
        {"warmPool": {"warm": -1}},
        {"warmPool": {"warm": "4"}},
        {"eni": {"mtu": 100}},
        {"eni": {"max": 0}},
        {"eni": {"tags": {"aws:x": "y"}}},
        {"pods": {"vethPrefix": "Toolong"}},
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
