"""The words that the model is written in: pydantic's, or those of a process that only holds it.

pydantic and the validators it builds are a quarter of the daemon's memory and of its start, and
are needed for a moment when the document changes. So the daemon has it checked by another process
(``schemas.apart``), and its own classes of the same model are plain (``schemas.held``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import schemas

if TYPE_CHECKING or schemas.checks:
    from pydantic import (
        AfterValidator,
        BaseModel,
        BeforeValidator,
        ConfigDict,
        Field,
        PlainSerializer,
        PlainValidator,
        StrictBool,
        StrictInt,
        StringConstraints,
        WithJsonSchema,
        model_serializer,
        model_validator,
    )
    from pydantic.alias_generators import to_camel
else:
    from schemas.held import (
        AfterValidator,
        BaseModel,
        BeforeValidator,
        ConfigDict,
        Field,
        PlainSerializer,
        PlainValidator,
        StrictBool,
        StrictInt,
        StringConstraints,
        WithJsonSchema,
        model_serializer,
        model_validator,
        to_camel,
    )

__all__ = [
    "AfterValidator",
    "BaseModel",
    "BeforeValidator",
    "ConfigDict",
    "Field",
    "PlainSerializer",
    "PlainValidator",
    "StrictBool",
    "StrictInt",
    "StringConstraints",
    "WithJsonSchema",
    "model_serializer",
    "model_validator",
    "to_camel",
]
