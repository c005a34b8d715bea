"""The model's words in a process that only holds documents: fields with defaults, and no checks.

What stands here has pydantic's names, as far as a document in force is asked: its parts are
frozen, are compared and hashed by their fields, and are copied with other values.
``schemas.wire`` makes them of what was checked elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import Any, ClassVar, Self, TypeVar

F = TypeVar("F", bound=Callable[..., object])


class Unchecked:
    """What says how a value is checked or written; here it is neither."""

    def __init__(self, *_: object, **__: object) -> None: ...


AfterValidator = BeforeValidator = PlainValidator = Unchecked
PlainSerializer = WithJsonSchema = StringConstraints = Unchecked
ConfigDict = dict
StrictBool, StrictInt = bool, int


class Field:
    """A field's default, and nothing else of it. Without one, whoever makes a part gives a value.

    In an annotation it says what is allowed, which is not looked at.
    """

    __slots__ = ("default", "has_default")

    def __init__(self, **said: Any) -> None:
        self.default, self.has_default = said.get("default"), "default" in said


def model_serializer(**_: object) -> Callable[[F], F]:
    """Return what leaves a method as it is."""
    return lambda method: method


model_validator = model_serializer


def to_camel(name: str) -> str:
    """Return a name as it is: no key is read here."""
    return name


class BaseModel:
    """A part of a document.

    Attributes:
        model_fields: the fields by name, those of its bases first.
        model_fields_set: which of them the document says.
    """

    # Apart from what is compared.
    __slots__ = ("__dict__", "__weakref__", "model_fields_set")

    model_fields: ClassVar[dict[str, Field]] = {}
    model_fields_set: Set[str]

    def __init_subclass__(cls) -> None:
        fields = dict(cls.model_fields)
        for name, field in [*vars(cls).items()]:
            if isinstance(field, Field):
                fields[name] = field
                delattr(cls, name)  # a value is the instance's
        cls.model_fields = fields

    def __init__(self, **values: Any) -> None:
        self._fill(values, values.keys())

    @classmethod
    def model_construct(cls, fields_set: Set[str] | None = None, /, **values: Any) -> Self:
        """Make a part of checked values; ``fields_set``: those that the document says."""
        made = cls.__new__(cls)
        made._fill(values, values.keys() if fields_set is None else fields_set)
        return made

    def model_copy(self, *, update: Mapping[str, Any]) -> Self:
        """Return the part with other values."""
        given = {*self.model_fields_set, *update}
        return self.model_construct(given, **{**vars(self), **update})

    def _fill(self, values: Mapping[str, Any], given: Set[str]) -> None:
        fields = type(self).model_fields
        lacking = [n for n, field in fields.items() if not field.has_default and n not in values]
        if lacking or not values.keys() <= fields.keys():
            unknown = [n for n in values if n not in fields]
            raise TypeError(f"{type(self).__name__}: lacks {lacking}, does not know {unknown}")
        vars(self).update({n: values.get(n, field.default) for n, field in fields.items()})
        object.__setattr__(self, "model_fields_set", frozenset(given))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: {name}")

    __delattr__ = __setattr__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).values()))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({shown})"
