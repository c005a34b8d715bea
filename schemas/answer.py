"""What the published formats of answers share."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

VERSION = "Raised when a key is removed or means something else; keys may be added without."
"""Of an answer's ``formatVersion``."""


class Part(BaseModel):
    """A part of an answer: ``camelCase`` in JSON."""

    model_config = ConfigDict(
        frozen=True, alias_generator=to_camel, validate_by_name=True, serialize_by_alias=True
    )


def schema_of(model: type[Part]) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of an answer."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return head | model.model_json_schema(by_alias=True, mode="serialization")
