"""What ``status -o json`` prints, as a published format.

The daemon writes it without these models, and the command reads it without them: both are to be
quick. The tests hold what a daemon says against them.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from schemas.answer import VERSION, Part, schema_of


class DocumentEntry(Part):
    """The document in force."""

    path: str
    generation: int = Field(description="How many were accepted on this node so far.")
    accepted_at: str = Field(description="RFC 3339.")
    refused: str | None = Field(
        description="What is wrong with the file as it is now; null if it is this document."
    )


class PolicyEntry(Part):
    """An SNAT policy in force."""

    group: str = Field(description="The pod group that it is for; empty for pods of no group.")
    mode: str
    exclude_cidrs: list[str] = Field(alias="excludeCIDRs", description="The first 50.")
    excluded: int = Field(description="How many there are.")
    only_cidrs: list[str] | None = Field(alias="onlyCIDRs", description="The first 50.")


class RuleEntry(Part):
    """One of ``snat.rules``."""

    namespace: str
    to: list[str] = Field(description="The first 50.")
    number: int = Field(description="How many there are.")
    identity: str = Field(alias="as", description="Whose address the destinations see.")


class Near(Part):
    """How much of a limit is used."""

    used: int
    most: int


class AddressLimit(Near):
    """The same of addresses."""

    text: str = Field(description="How the limit comes about.")


class PodLimit(Part):
    """Pods on this network, and maxPods; null if it is not set."""

    used: int
    most: int | None


class LimitsEntry(Part):
    """What the instance type and the document allow."""

    instance_type: str
    enis: Near
    addresses: AddressLimit | None = Field(description="Null where none are counted: IPv6 alone.")
    pods: PodLimit


class TargetEntry(Part):
    """Addresses to hold for the pods there are: of the pool of no group."""

    low: int = Field(description="Below it the pool grows.")
    aim: int
    high: int = Field(description="Above it addresses are given back.")


class ConditionEntry(Part):
    """Something that is wrong now."""

    subject: str
    reason: str = Field(description="Stable CamelCase word, the same in errors and metrics.")
    text: str = Field(description="What is wrong, with its numbers, and what to do next.")
    since: str = Field(description="RFC 3339.")
    age_seconds: int


class ObstacleEntry(Part):
    """Why no pod can start on the node, as CNI's STATUS says it."""

    subject: str
    reason: str = Field(description="Stable CamelCase word: Starting, NotAvailable, Limited.")
    message: str


class EniEntry(Part):
    """An ENI that is attached to this instance, or ours."""

    id: str
    device: int | None
    status: str = Field(description="Of the attachment, in EC2's words.")
    owned: bool = Field(description="False: another's; it is not touched.")
    group: str
    subnet: str
    primary: str
    addresses: int = Field(description="For pods, those of prefixes included.")
    pod_addresses: list[str] = Field(description="The first 50 single ones.")
    prefixes: list[str]


class OtherCardEntry(Part):
    """An ENI of this instance on another network card than the first: it is left alone."""

    id: str
    card: int
    device: int | None
    type: str = Field(description="EC2's word, as efa-only; empty if it is not known.")


class AttachmentEntry(Part):
    """A pod that has its addresses. In the order of the pods' names."""

    pod: str = Field(description="namespace/name, or the container's identity.")
    addresses: list[str]
    eni: str
    device: int | None
    veth: str


class IdentityEntry(Part):
    """A namespace that has an address of its own, by snat.rules."""

    namespace: str
    group: str = Field(description="Of the pods that it is for; empty if they are of none.")
    addresses: list[str]
    eni: str
    device: int | None
    state: Literal["in use", "idle", "lost"] = Field(
        description="idle: the namespace has no pod here. lost: EC2 no longer shows it."
    )


class RepairEntry(Part):
    """Things of ours that another writer had changed, and that one pass has put right."""

    at: str = Field(description="RFC 3339.")
    age_seconds: int
    domain: str
    kind: str
    verb: Literal["create", "update", "delete"] = Field(description="What was done to them.")
    count: int
    actions: list[str] = Field(
        description="The first ones, as commands that an operator would type."
    )
    reason: str = Field(description="Of the first one.")
    by: list[str] = Field(
        description="Who else has changed the network in the ten seconds before, the latest "
        "first; a hint, no proof."
    )


class LookEntry(Part):
    """When something was last observed."""

    of: str = Field(description="node: the whole of it; ec2.")
    age_seconds: int


class SourceRange(Part):
    """A CIDR that a source stands for."""

    cidr: str
    via: str
    label: str
    missed_at: float | None


class SourceEntry(Part):
    """A source of the document, such as @peering."""

    name: str
    looked_at: float | None = Field(description="Seconds since the epoch.")
    age_seconds: int | None
    failure: str | None
    entries: int = Field(description="How many CIDRs it stands for.")
    shown: list[SourceRange] = Field(description="The first 50.")


class Status(Part):
    """What the reconciler of a node says of itself."""

    format_version: Literal[1] = Field(description=VERSION)
    version: str = Field(description="Of the program; empty if it is not known.")
    uptime_seconds: int
    document: DocumentEntry
    settled: bool = Field(description="Nothing is left to do, by the document in force.")
    pool: dict[str, int] = Field(description="Addresses for pods, by state.")
    target: TargetEntry | None = Field(description="Null until EC2 was observed.")
    exhausted_in_seconds: int | None = Field(
        description="Until no address is left, at the rate of the last quarter of an hour; null "
        "if use does not grow."
    )
    snat: list[PolicyEntry] = Field(description="Empty before the first pass.")
    snat_rules: list[RuleEntry] = Field(
        description="In order: the first that matches decides, before all policies."
    )
    limits: LimitsEntry | None = Field(description="Null while they are not known.")
    conditions: list[ConditionEntry]
    enis: list[EniEntry] = Field(description="Those on the first network card.")
    other_cards: list[OtherCardEntry]
    attachments: list[AttachmentEntry]
    packets_refused: dict[str, int] = Field(description="Packets of pods, by reason.")
    cooling: list[str] = Field(description="Addresses that no pod is given yet.")
    ec2_calls: dict[str, int] = Field(alias="ec2Calls", description="Made so far, by action.")
    ec2_budget: dict[str, int] = Field(
        alias="ec2Budget",
        description="Calls that the node's own budget allows at once, by action.",
    )
    sources: list[SourceEntry]
    looks: list[LookEntry]
    repaired: list[RepairEntry] = Field(description="The last 50, the latest first.")
    metrics: str = Field(description="As /metrics shows them.")
    obstacle: ObstacleEntry | None = Field(
        default=None, description="Why no pod can start on this node; null if they can."
    )
    identities: list[IdentityEntry] = Field(
        default_factory=list, description="Dedicated addresses, in the order of the namespaces."
    )
    shortened: dict[str, int] = Field(
        default_factory=dict,
        description="By list, how many entries were left out of an answer that was too long.",
    )


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the answer."""
    return schema_of(Status)
