"""Cut Kubernetes' OpenAPI documents to the kinds that the chart renders.

    go mod download k8s.io/kubernetes@v1.37.2
    python tests/deploy/reduce_schemas.py ~/go/pkg/mod/k8s.io/kubernetes@v1.37.2

writes ``schemas/v1.37.json`` beside this file: JSON Schema, as strict as ``kubectl
--validate=strict``: a field that the release does not know is an error. For a new minor, run it
for that one, and remove the oldest.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "schemas"

KINDS = {
    "ClusterRole": "io.k8s.api.rbac.v1.ClusterRole",
    "ClusterRoleBinding": "io.k8s.api.rbac.v1.ClusterRoleBinding",
    "ConfigMap": "io.k8s.api.core.v1.ConfigMap",
    "DaemonSet": "io.k8s.api.apps.v1.DaemonSet",
    "Job": "io.k8s.api.batch.v1.Job",
    "ServiceAccount": "io.k8s.api.core.v1.ServiceAccount",
}
"""Kinds of Kubernetes' own; a PodMonitor's schema is the Prometheus operator's."""

POINTER = "#/definitions/"
KEPT = ("type", "enum", "required", "$ref")

NOT_AS_SAID: dict[str, dict[str, Any]] = {
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": {"type": ["integer", "string"]},
    "io.k8s.apimachinery.pkg.api.resource.Quantity": {"type": ["number", "string"]},
}
"""Types that OpenAPI 2 cannot say."""


def reduced(schema: dict[str, Any]) -> dict[str, Any]:
    """Return what of a schema decides."""
    made = {key: schema[key] for key in KEPT if key in schema}
    if "properties" in schema:
        fields = schema["properties"].items()
        made["properties"] = {name: reduced(field) for name, field in sorted(fields)}
        made["additionalProperties"] = False
    elif isinstance(of := schema.get("additionalProperties"), dict):
        made["additionalProperties"] = reduced(of)
    if "items" in schema:
        made["items"] = reduced(schema["items"])
    return made


def references(schema: Any) -> set[str]:
    """Name the definitions that a schema refers to."""
    return set(re.findall(rf'"{POINTER}([^"]+)"', json.dumps(schema)))


def cut(document: dict[str, Any]) -> dict[str, Any]:
    """Return the definitions of ``KINDS``, and all that they refer to."""
    found: dict[str, Any] = {}
    todo = set(KINDS.values())
    while todo:
        name = todo.pop()
        found[name] = NOT_AS_SAID.get(name) or reduced(document["definitions"][name])
        todo |= references(found[name]) - found.keys()
    return found


def main(module: Path) -> None:
    """Write the schema of a release's module."""
    document = json.loads((module / "api/openapi-spec/swagger.json").read_text())
    release = re.search(r"@(v\d+\.\d+)\.", module.name)
    if release is None:
        raise SystemExit(f"{module} is no directory of a release's module")
    lines = ",\n".join(
        f"{json.dumps(name)}: {json.dumps(schema, separators=(',', ':'))}"
        for name, schema in sorted(cut(document).items())
    )
    HERE.mkdir(exist_ok=True)
    (HERE / f"{release[1]}.json").write_text(f'{{"definitions": {{\n{lines}\n}}}}\n')


if __name__ == "__main__":
    main(Path(sys.argv[1]))
