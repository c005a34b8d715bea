"""Which pods something is for, by what the runtime calls them."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from schemas.value import Model, Sparse
from schemas.vocabulary import ConfigDict, Field, StringConstraints

MAX_PATTERN = 253
"""Characters; a pod's name has no more (Kubernetes, "Object Names and IDs")."""

MAX_ENTRIES = 100

Pattern = Annotated[str, StringConstraints(min_length=1, max_length=MAX_PATTERN)]


class PodMatch(Sparse):
    """Which pods: all patterns that are given must match, and one must be given.

    Patterns are the shell's: ``*``, ``?``, ``[a-z]``, ``[!a-z]``; case counts.
    """

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    namespace: Pattern | None = Field(
        default=None, description="Pattern for the pod's namespace, as pay-*. Default: any."
    )
    pod: Pattern | None = Field(
        default=None, description="Pattern for the pod's name, as web-*. Default: any."
    )

    def _faults(self) -> Iterator[str]:
        yield from super()._faults()
        if not self.model_fields_set:
            yield "matches no pod in particular; give namespace or pod"

    def matches(self, namespace: str, pod: str) -> bool:
        """Return whether a pod is one of these."""
        pairs = ((self.namespace, namespace), (self.pod, pod))
        return all(fnmatchcase(value, pattern) for pattern, value in pairs if pattern is not None)


class MetadataAccess(Model):
    """What some pods may do with instance metadata."""

    match: PodMatch = Field(description="Which pods.")
    access: Literal["deny", "allow"] = Field(
        description="deny: connections to the instance metadata service are refused at once. "
        "allow: they are not."
    )
