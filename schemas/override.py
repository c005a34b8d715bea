"""Overrides: other values for some nodes.

``set`` is a JSON merge patch (RFC 7396) of the document around it. It is kept as it was written:
``schemas.check`` applies it to the document, and checks the result.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Annotated, Any, Protocol

from schemas.value import Model, Sparse, as_json
from schemas.vocabulary import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
)

FIXED = ("apiVersion", "kind", "overrides")
"""Keys of the document that no override sets: they say what the document is."""


def parse_patch(value: object) -> str:
    """Read a partial document, and keep it as JSON.

    Raises:
        ValueError: it is no mapping of plain YAML values, or sets what it may not.
    """
    if not isinstance(value, dict):
        raise ValueError("must be a mapping of keys")
    if fixed := [key for key in FIXED if key in value]:
        faults = (f"{key}: belongs to the whole document; remove it here" for key in fixed)
        raise ValueError("\n".join(faults))
    return as_json(value)


Pattern = Annotated[str, StringConstraints(min_length=1)]
Patch = Annotated[
    str,
    BeforeValidator(parse_patch),
    PlainSerializer(json.loads, return_type=dict[str, Any]),
    WithJsonSchema({"type": "object"}),  # patch_schema says more
]


class Match(Sparse):
    """Which nodes: all patterns that are given must match, and one must be given.

    Patterns are the shell's: ``*``, ``?``, ``[a-z]``, ``[!a-z]``; case counts.
    """

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    instance_type: Pattern | None = Field(
        default=None, description="Pattern for the EC2 instance type, as m5.*. Default: any."
    )
    zone: Pattern | None = Field(
        default=None,
        description="Pattern for the availability zone's name, as us-east-1a. Default: any.",
    )
    node_name: Pattern | None = Field(
        default=None, description="Pattern for the node's name in Kubernetes. Default: any."
    )

    def _faults(self) -> Iterator[str]:
        yield from super()._faults()
        if not self.model_fields_set:
            yield "matches nothing in particular; give instanceType, zone or nodeName"


class Override(Model):
    """Other values for some nodes."""

    match: Match = Field(description="Which nodes.")
    patch: Patch = Field(
        alias="set",
        description="The keys of this document that differ there. Mappings are merged with those "
        "above; lists and single values replace them; null restores the default. Another warmPool "
        "strategy, or the other of subnets and subnetTags, replaces the one above.",
    )

    @property
    def changes(self) -> dict[str, Any]:
        """The patch as a tree of plain values, the caller's own."""
        tree: dict[str, Any] = json.loads(self.patch)
        return tree


def find_applying(
    document: HasOverrides, *, instance_type: str, zone: str, node_name: str
) -> dict[str, Override]:
    """Return the overrides that match a node, each by its place in the document."""
    return {
        f"overrides[{position}]": override
        for position, override in enumerate(document.overrides)
        if matches(override.match, instance_type=instance_type, zone=zone, node_name=node_name)
    }


class HasOverrides(Protocol):
    """A document, whose model is made of this one."""

    @property
    def overrides(self) -> tuple[Override, ...]: ...


def matches(match: Match, *, instance_type: str, zone: str, node_name: str) -> bool:
    """Return whether all patterns that are given match."""
    pairs = (
        (match.instance_type, instance_type),
        (match.zone, zone),
        (match.node_name, node_name),
    )
    return all(fnmatchcase(value, pattern) for pattern, value in pairs if pattern is not None)


def patch_schema(schema: dict[str, Any], parts: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON Schema of merge patches for what another schema describes.

    In a patch nothing is required, null removes any key, and what is absent is the base's.

    ``parts``: the schema's ``$defs``; none may refer to itself.
    """
    named = parts[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else {}
    patch = {k: v for k, v in (named | schema).items() if k not in _NOT_IN_A_PATCH}
    for keyword in ("properties", "patternProperties"):
        inner = {k: v for k, v in patch.get(keyword, {}).items() if k not in FIXED}
        if inner:
            patch[keyword] = {k: _or_null(patch_schema(v, parts)) for k, v in inner.items()}
    if isinstance(values := patch.get("additionalProperties"), dict):
        patch["additionalProperties"] = _or_null(values)
    return patch


_NOT_IN_A_PATCH = {"$schema", "$defs", "$ref", "default", "required", "dependentSchemas"}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    if "anyOf" in schema:  # an optional value, so null is among them already
        return schema
    choices = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
    return schema | {"type": [schema["type"], "null"]} | choices
