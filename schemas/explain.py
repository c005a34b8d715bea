"""What the commands of ``explain`` print with ``-o json``, as a published format.

They write it without these models: of conditions alone nothing is imported that takes long.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from schemas.answer import VERSION, Part, schema_of

Subject = Literal["address", "condition", "pod", "pool", "route", "rule", "set"]


class Explanation(Part):
    """One thing that is said."""

    about: str = Field(
        description="What it is about: a heading (state, snat, cure), an object's command, a set, "
        "an element, a pod; empty for a line of its own."
    )
    text: str = Field(description="In words for people, with numbers and lines of the document.")
    parts: list[Explanation] = Field(description="What belongs to it, in order.")


class Explain(Part):
    """Why something of a node is as it is."""

    format_version: Literal[1] = Field(description=VERSION)
    subject: Subject
    name: str | None = Field(description="Which one was asked for; null: all of them.")
    explained: list[Explanation]


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the answer."""
    return schema_of(Explain)
