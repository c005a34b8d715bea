"""What ``diff -o json`` and ``apply -o json`` print, as a published format."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from schemas.answer import VERSION, Part, schema_of


class ActionEntry(Part):
    """One change to one object."""

    domain: str = Field(description="Who plans it: nat, route, eni, ...")
    verb: Literal["create", "update", "delete"]
    kind: str = Field(description="The object's noun: nft-element, route, eni, ...")
    key: list[int | str] = Field(description="The object's identity among those of its kind.")
    command: str = Field(description="What an operator would type.")
    reason: str
    calls: list[str] = Field(description="EC2 calls that it costs, by name, in order.")
    before: dict[str, Any] | None = Field(
        description="The object's fields as observed; null if it is not there. Which fields an "
        "object has is its kind's matter, and no part of this format's version."
    )
    after: dict[str, Any] | None = Field(
        description="The same as desired; null if it is to be deleted, and where EC2 decides what "
        "becomes of it: then arguments says what is asked."
    )
    arguments: dict[str, Any] | None = Field(
        default=None, description="Of an EC2 action: what is asked. Null for all others."
    )


class IssueEntry(Part):
    """One fact that an operator should know of."""

    subject: str
    reason: str = Field(description="Stable CamelCase word, the same in conditions and metrics.")
    message: str


class RefusalEntry(IssueEntry):
    """What is wanted and not done, and why. It is no difference."""

    domain: str


class ErrorEntry(Part):
    """What could not be read or done."""

    domain: str
    error: str = Field(description="The error's class.")
    message: str


class ForeignEntry(Part):
    """An object of another owner; it is not touched."""

    kind: str
    key: list[int | str]
    command: str = Field(description="What would delete it.")


class Summary(Part):
    """How much there is of each."""

    create: int
    update: int
    delete: int
    refused: int


class Diff(Part):
    """What differs on one node from its document."""

    format_version: Literal[1] = Field(
        default=1,
        description=VERSION,
    )
    actions: list[ActionEntry] = Field(description="In the order in which they are applied.")
    refusals: list[RefusalEntry]
    errors: list[ErrorEntry]
    findings: list[IssueEntry] = Field(description="About objects of other owners.")
    foreign: list[ForeignEntry]
    calls: dict[str, int] = Field(description="EC2 calls that all actions cost, by name.")
    summary: Summary
    meanings: list[str] = Field(description="What it comes to, in sentences for people.")


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the answer."""
    return schema_of(Diff)
