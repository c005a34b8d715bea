"""The changes that can be asked of EC2, as actions: each knows its calls, and prints as a command.

What a call has no ClientToken for names what it is about, so that it can be repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter
from typing import Any, ClassVar

from reconciler.core.datapath import IpAddress, IpNetwork
from reconciler.engine.plan import Key, Verb


@dataclass(frozen=True, slots=True)
class Creation:
    """An ENI that is being created, recorded before EC2 is asked.

    With the record, a restarted planner asks again with the same token and the same parameters,
    and EC2 answers with the same ENI instead of a second one.

    Attributes:
        token: EC2's ClientToken; the ENI carries it as a tag, too.
        addresses, prefixes: what it begins with beside its primary address; one of them is 0.
        ipv6_prefixes: the same; besides either.
        tags: pairs in key order.
        at: seconds since the epoch.
        done: the ENI was seen.
    """

    kind: ClassVar[str] = "creation"
    token: str
    device_index: int
    subnet_id: str
    security_groups: tuple[str, ...]
    addresses: int
    prefixes: int
    tags: tuple[tuple[str, str], ...]
    at: float
    done: bool = False
    ipv6_prefixes: int = 0

    @property
    def key(self) -> Key:
        """The token."""
        return (self.token,)

    def command(self, verb: Verb) -> str:
        """What is done to the record."""
        word = "forget" if verb is Verb.DELETE else "finish" if self.done else "record"
        return f"{word} creation {self.token}"


@dataclass(frozen=True, slots=True)
class AddEni:
    """Create an ENI with its addresses, attach it, and tie its life to the instance's."""

    instance_id: str
    creation: Creation
    reason: str
    verb: ClassVar[Verb] = Verb.CREATE
    kind: ClassVar[str] = "eni"
    calls: ClassVar[tuple[str, ...]] = (
        "CreateNetworkInterface",
        "AttachNetworkInterface",
        "ModifyNetworkInterfaceAttribute",
    )

    @property
    def key(self) -> Key:
        """The device index it will have."""
        return (self.creation.device_index,)

    def __str__(self) -> str:
        c = self.creation
        counts = {
            "ipv4-prefix-count": c.prefixes,
            "secondary-private-ip-address-count": c.addresses,
            "ipv6-prefix-count": c.ipv6_prefixes,
        }
        what = "".join(f" --{option} {count}" for option, count in counts.items() if count)
        return (
            f"aws ec2 create-network-interface --subnet-id {c.subnet_id}{what} "
            f"&& aws ec2 attach-network-interface --device-index {c.device_index}"
        )


class _Words(Formatter):
    """Writes a tuple as its words."""

    def format_field(self, value: Any, format_spec: str) -> str:
        """Ignore the format: there is none."""
        return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True, slots=True)
class _OnEni:
    """An action about one ENI.

    Attributes:
        calls: EC2 actions, in order; the node's role needs the right to each.
        command: what is typed after ``aws ec2``, with the action's fields.
        names: the field with the addresses or prefixes it is about.
    """

    eni_id: str
    verb: ClassVar[Verb] = Verb.UPDATE
    kind: ClassVar[str] = "eni"
    calls: ClassVar[tuple[str, ...]]
    command: ClassVar[str]
    names: ClassVar[str] = ""

    @property
    def key(self) -> Key:
        """The ENI, and what is named."""
        return (self.eni_id, *(int(getattr(n, "network_address", n)) for n in self.named))

    @property
    def named(self) -> tuple[Any, ...]:
        """The addresses or prefixes it is about; empty for most actions."""
        return getattr(self, self.names) if self.names else ()

    def __str__(self) -> str:
        return f"aws ec2 {_Words().format(self.command, self)}"


@dataclass(frozen=True, slots=True)
class AttachEni(_OnEni):
    """Attach an ENI of ours that is attached to nothing: its creation was interrupted."""

    instance_id: str
    device_index: int
    reason: str
    calls = ("AttachNetworkInterface", "ModifyNetworkInterfaceAttribute")
    command = (
        "attach-network-interface --network-interface-id {0.eni_id} "
        "--device-index {0.device_index}"
    )


@dataclass(frozen=True, slots=True)
class TieToInstance(_OnEni):
    """Have EC2 delete an ENI of ours with the instance, so that a dead node leaks none."""

    attachment_id: str
    reason: str
    calls = ("ModifyNetworkInterfaceAttribute",)
    command = (
        "modify-network-interface-attribute --network-interface-id {0.eni_id} "
        "--attachment AttachmentId={0.attachment_id},DeleteOnTermination=true"
    )


@dataclass(frozen=True, slots=True)
class AdoptEni(_OnEni):
    """Make an ENI of the stock plugin's ours: add our tags first, then remove its own.

    Attributes:
        tags: pairs in key order.
        obsolete: keys of the stock plugin's tags.
    """

    tags: tuple[tuple[str, str], ...]
    obsolete: tuple[str, ...]
    reason: str
    calls = ("CreateTags", "DeleteTags")

    def __str__(self) -> str:
        tags = " ".join(f"Key={key},Value={value}" for key, value in self.tags)
        keys = " ".join(f"Key={key}" for key in self.obsolete)
        return (
            f"aws ec2 create-tags --resources {self.eni_id} --tags {tags} "
            f"&& aws ec2 delete-tags --resources {self.eni_id} --tags {keys}"
        )


@dataclass(frozen=True, slots=True)
class SetSecurityGroups(_OnEni):
    """Change an ENI's security groups, in place."""

    security_groups: tuple[str, ...]
    reason: str
    calls = ("ModifyNetworkInterfaceAttribute",)
    command = (
        "modify-network-interface-attribute --network-interface-id {0.eni_id} "
        "--groups {0.security_groups}"
    )


@dataclass(frozen=True, slots=True)
class _Assignment(_OnEni):
    """Give an ENI more: as many as EC2 chooses, or those that are named.

    Attributes:
        options: of the command, before the names and before the count.
    """

    subnet_id: str
    reason: str
    count: int = 0
    verb = Verb.CREATE
    calls = ("AssignPrivateIpAddresses",)
    command = "assign-private-ip-addresses --network-interface-id {0.eni_id} {0.what}"
    options: ClassVar[tuple[str, str]]

    @property
    def what(self) -> tuple[object, ...]:
        """The option, and the names or the count."""
        by_name, by_count = self.options
        return (by_name, *self.named) if self.named else (by_count, self.count)


@dataclass(frozen=True, slots=True)
class AssignAddresses(_Assignment):
    """Give an ENI more single addresses."""

    addresses: tuple[IpAddress, ...] = ()
    names = "addresses"
    kind = "address"
    options = ("--private-ip-addresses", "--secondary-private-ip-address-count")


@dataclass(frozen=True, slots=True)
class AssignPrefixes(_Assignment):
    """Give an ENI more prefixes."""

    prefixes: tuple[IpNetwork, ...] = ()
    names = "prefixes"
    kind = "prefix"
    options = ("--ipv4-prefixes", "--ipv4-prefix-count")


@dataclass(frozen=True, slots=True)
class DelegatePrefix(_OnEni):
    """Give an ENI one IPv6 prefix: one that EC2 chooses, or the one that is named."""

    subnet_id: str
    reason: str
    prefix: IpNetwork | None = None
    verb = Verb.CREATE
    kind = "prefix"
    calls = ("AssignIpv6Addresses",)

    @property
    def key(self) -> Key:
        """The ENI, the family, and what is named."""
        return (self.eni_id, "ipv6", int(self.prefix.network_address) if self.prefix else 0)

    def __str__(self) -> str:
        what = f"--ipv6-prefixes {self.prefix}" if self.prefix else "--ipv6-prefix-count 1"
        return f"aws ec2 assign-ipv6-addresses --network-interface-id {self.eni_id} {what}"


@dataclass(frozen=True, slots=True)
class ReleaseAddresses(_OnEni):
    """Give single addresses of an ENI back."""

    addresses: tuple[IpAddress, ...]
    reason: str
    names = "addresses"
    verb = Verb.DELETE
    kind = "address"
    calls = ("UnassignPrivateIpAddresses",)
    command = (
        "unassign-private-ip-addresses --network-interface-id {0.eni_id} "
        "--private-ip-addresses {0.addresses}"
    )


@dataclass(frozen=True, slots=True)
class ReleasePrefixes(_OnEni):
    """Give prefixes of an ENI back."""

    prefixes: tuple[IpNetwork, ...]
    reason: str
    names = "prefixes"
    verb = Verb.DELETE
    kind = "prefix"
    calls = ("UnassignPrivateIpAddresses",)
    command = (
        "unassign-private-ip-addresses --network-interface-id {0.eni_id} "
        "--ipv4-prefixes {0.prefixes}"
    )


@dataclass(frozen=True, slots=True)
class DetachEni(_OnEni):
    """Detach an ENI of ours that no pod uses; it is deleted once it is free."""

    attachment_id: str
    reason: str
    verb = Verb.DELETE
    calls = ("DetachNetworkInterface",)
    command = "detach-network-interface --attachment-id {0.attachment_id}"


@dataclass(frozen=True, slots=True)
class DeleteEni(_OnEni):
    """Delete an ENI of ours that is attached to nothing."""

    reason: str
    verb = Verb.DELETE
    calls = ("DeleteNetworkInterface",)
    command = "delete-network-interface --network-interface-id {0.eni_id}"


Ec2Action = (
    AddEni
    | AttachEni
    | TieToInstance
    | AdoptEni
    | SetSecurityGroups
    | AssignAddresses
    | AssignPrefixes
    | DelegatePrefix
    | ReleaseAddresses
    | ReleasePrefixes
    | DetachEni
    | DeleteEni
)
