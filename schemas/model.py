"""The base of all parts of the document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic.alias_generators import to_camel

from schemas.words import EMPTY


class Model(BaseModel):
    """A part of the document: frozen, strict about its keys, ``camelCase`` in YAML."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )

    def _faults(self) -> Iterator[str]:
        """Say which keys do not agree; a text may begin with the key: ``a.b: `` or ``a[3]: ``."""
        yield from ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if faults := list(self._faults()):
            raise ValueError("\n".join(faults))
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: Any, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Show defaults as in YAML; pydantic shows Python's (``PT30S``)."""
        made = handler(core_schema)
        written = cls.model_construct().model_dump(mode="json", warnings="none")
        for key, schema in handler.resolve_ref_schema(made)["properties"].items():
            if "default" not in schema:
                continue
            if key in written:
                schema["default"] = written[key]
            else:  # None, which a Sparse part neither writes nor reads
                del schema["default"]
                schema.update(schema.pop("anyOf")[0])
        return made


class Sparse(Model):
    """A part whose keys are absent or have a value.

    ``enis:`` without a value would otherwise count as absent, and another strategy would apply.
    """

    def _faults(self) -> Iterator[str]:
        for name, field in type(self).model_fields.items():
            if name in self.model_fields_set and getattr(self, name) is None:
                yield f"{field.alias}: {EMPTY}"

    @model_serializer(mode="wrap")
    def _write(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}
