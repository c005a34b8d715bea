"""What the chart renders, against the schemas of Kubernetes' three newest minors."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy.programs import program
from deploy.reduce_schemas import KINDS
from deploy.test_chart import CASES, HOOKS
from jsonschema import Draft202012Validator

render = program("render.py")

SCHEMAS = sorted((Path(__file__).parent / "schemas").glob("v*.json"))
OPERATORS = "monitoring.coreos.com/v1"
"""Of the Prometheus operator: its kinds are no release's."""


def validator(path: Path, kind: str) -> Draft202012Validator:
    schema = json.loads(path.read_text())
    return Draft202012Validator({"$ref": f"#/definitions/{KINDS[kind]}", **schema})


def rendered(case: str) -> Iterator[dict[str, Any]]:
    """Yield all manifests of Kubernetes' own kinds, those of hooks too."""
    for templates in (render.ORDER, HOOKS):
        for made in yaml.safe_load_all(render.render(CASES[case], templates=templates)):
            if made and made["apiVersion"] != OPERATORS:
                yield made


def test_there_are_three_minors_one_after_another() -> None:
    minors = [int(p.stem.removeprefix("v1.")) for p in SCHEMAS]
    assert len(minors) == 3
    assert minors == list(range(minors[0], minors[0] + 3))


def test_each_kind_that_is_rendered_has_a_schema_and_no_other() -> None:
    assert {m["kind"] for case in CASES for m in rendered(case)} == set(KINDS)


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda p: p.stem)
def test_everything_that_is_rendered_is_valid(path: Path) -> None:
    for case in CASES:
        for manifest in rendered(case):
            found = list(validator(path, manifest["kind"]).iter_errors(manifest))
            assert found == [], f"{case}, {manifest['kind']}"


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda p: p.stem)
@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("spec", "template", "spec", "hostNetwerk"), True),
        (("spec", "template", "spec", "hostNetwork"), "true"),
        (("spec", "template", "spec", "containers"), {}),
        (("spec", "updateStrategy", "rollingUpdate", "maxUnavailable"), []),
        (("spec", "selector"), None),
    ],
    ids=lambda value: str(value[-1]) if isinstance(value, tuple) else "",
)
def test_what_is_wrong_is_found(path: Path, place: tuple[str, ...], value: object) -> None:
    """A field that is not known, a wrong type, one that is missing."""
    (found,) = (m for m in rendered("defaults") if m["kind"] == "DaemonSet")
    manifest = inner = copy.deepcopy(found)
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    if value is None:
        del inner[place[-1]]
    assert not validator(path, "DaemonSet").is_valid(manifest)
