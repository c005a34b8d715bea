"""The changes that can be asked of EC2, as actions: each knows its calls, and prints as a command.

What a call has no ClientToken for names what it is about, so that it can be repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from reconciler.core.datapath import IpAddress, IpNetwork
from reconciler.engine.plan import Key, Verb

AWS = "aws ec2"


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
            f"{AWS} create-network-interface --subnet-id {c.subnet_id}{what} "
            f"&& {AWS} attach-network-interface --device-index {c.device_index}"
        )


@dataclass(frozen=True, slots=True)
class AttachEni:
    """Attach an ENI of ours that is attached to nothing: a creation that was interrupted."""

    instance_id: str
    eni_id: str
    device_index: int
    reason: str
    verb: ClassVar[Verb] = Verb.UPDATE
    kind: ClassVar[str] = "eni"
    calls: ClassVar[tuple[str, ...]] = (
        "AttachNetworkInterface",
        "ModifyNetworkInterfaceAttribute",
    )

    @property
    def key(self) -> Key:
        """The ENI."""
        return (self.eni_id,)

    def __str__(self) -> str:
        return (
            f"{AWS} attach-network-interface --network-interface-id {self.eni_id} "
            f"--device-index {self.device_index}"
        )


@dataclass(frozen=True, slots=True)
class TieToInstance:
    """Have EC2 delete an ENI of ours with the instance, so that a dead node leaks none."""

    eni_id: str
    attachment_id: str
    reason: str
    verb: ClassVar[Verb] = Verb.UPDATE
    kind: ClassVar[str] = "eni"
    calls: ClassVar[tuple[str, ...]] = ("ModifyNetworkInterfaceAttribute",)

    @property
    def key(self) -> Key:
        """The ENI."""
        return (self.eni_id,)

    def __str__(self) -> str:
        return (
            f"{AWS} modify-network-interface-attribute --network-interface-id {self.eni_id} "
            f"--attachment AttachmentId={self.attachment_id},DeleteOnTermination=true"
        )


@dataclass(frozen=True, slots=True)
class AdoptEni:
    """Make an ENI of the stock plugin's ours: our tags first, then its own go.

    Attributes:
        tags: pairs in key order.
        obsolete: keys of the stock plugin's tags.
    """

    eni_id: str
    tags: tuple[tuple[str, str], ...]
    obsolete: tuple[str, ...]
    reason: str
    verb: ClassVar[Verb] = Verb.UPDATE
    kind: ClassVar[str] = "eni"
    calls: ClassVar[tuple[str, ...]] = ("CreateTags", "DeleteTags")

    @property
    def key(self) -> Key:
        """The ENI."""
        return (self.eni_id,)

    def __str__(self) -> str:
        tags = " ".join(f"Key={key},Value={value}" for key, value in self.tags)
        keys = " ".join(f"Key={key}" for key in self.obsolete)
        return (
            f"{AWS} create-tags --resources {self.eni_id} --tags {tags} "
            f"&& {AWS} delete-tags --resources {self.eni_id} --tags {keys}"
        )


@dataclass(frozen=True, slots=True)
class SetSecurityGroups:
    """Change an ENI's security groups, in place."""

    eni_id: str
    security_groups: tuple[str, ...]
    reason: str
    verb: ClassVar[Verb] = Verb.UPDATE
    kind: ClassVar[str] = "eni"
    calls: ClassVar[tuple[str, ...]] = ("ModifyNetworkInterfaceAttribute",)

    @property
    def key(self) -> Key:
        """The ENI."""
        return (self.eni_id,)

    def __str__(self) -> str:
        return (
            f"{AWS} modify-network-interface-attribute --network-interface-id {self.eni_id} "
            f"--groups {' '.join(self.security_groups)}"
        )


@dataclass(frozen=True, slots=True)
class AssignAddresses:
    """Give an ENI more single addresses: so many that EC2 chooses, or those that are named."""

    eni_id: str
    subnet_id: str
    reason: str
    count: int = 0
    addresses: tuple[IpAddress, ...] = ()
    verb: ClassVar[Verb] = Verb.CREATE
    kind: ClassVar[str] = "address"
    calls: ClassVar[tuple[str, ...]] = ("AssignPrivateIpAddresses",)

    @property
    def key(self) -> Key:
        """The ENI, and what is named."""
        return (self.eni_id, *map(int, self.addresses))

    def __str__(self) -> str:
        what = (
            f"--private-ip-addresses {' '.join(map(str, self.addresses))}"
            if self.addresses
            else f"--secondary-private-ip-address-count {self.count}"
        )
        return f"{AWS} assign-private-ip-addresses --network-interface-id {self.eni_id} {what}"


@dataclass(frozen=True, slots=True)
class AssignPrefixes:
    """Give an ENI more prefixes: so many that EC2 chooses, or those that are named."""

    eni_id: str
    subnet_id: str
    reason: str
    count: int = 0
    prefixes: tuple[IpNetwork, ...] = ()
    verb: ClassVar[Verb] = Verb.CREATE
    kind: ClassVar[str] = "prefix"
    calls: ClassVar[tuple[str, ...]] = ("AssignPrivateIpAddresses",)

    @property
    def key(self) -> Key:
        """The ENI, and what is named."""
        return (self.eni_id, *(int(p.network_address) for p in self.prefixes))

    def __str__(self) -> str:
        what = (
            f"--ipv4-prefixes {' '.join(map(str, self.prefixes))}"
            if self.prefixes
            else f"--ipv4-prefix-count {self.count}"
        )
        return f"{AWS} assign-private-ip-addresses --network-interface-id {self.eni_id} {what}"


@dataclass(frozen=True, slots=True)
class DelegatePrefix:
    """Give an ENI one IPv6 prefix: one that EC2 chooses, or the one that is named."""

    eni_id: str
    subnet_id: str
    reason: str
    prefix: IpNetwork | None = None
    verb: ClassVar[Verb] = Verb.CREATE
    kind: ClassVar[str] = "prefix"
    calls: ClassVar[tuple[str, ...]] = ("AssignIpv6Addresses",)

    @property
    def key(self) -> Key:
        """The ENI, the family, and what is named."""
        return (self.eni_id, "ipv6", int(self.prefix.network_address) if self.prefix else 0)

    def __str__(self) -> str:
        what = f"--ipv6-prefixes {self.prefix}" if self.prefix else "--ipv6-prefix-count 1"
        return f"{AWS} assign-ipv6-addresses --network-interface-id {self.eni_id} {what}"


@dataclass(frozen=True, slots=True)
class ReleaseAddresses:
    """Give single addresses of an ENI back."""

    eni_id: str
    addresses: tuple[IpAddress, ...]
    reason: str
    verb: ClassVar[Verb] = Verb.DELETE
    kind: ClassVar[str] = "address"
    calls: ClassVar[tuple[str, ...]] = ("UnassignPrivateIpAddresses",)

    @property
    def key(self) -> Key:
        """The ENI and the addresses."""
        return (self.eni_id, *map(int, self.addresses))

    def __str__(self) -> str:
        return (
            f"{AWS} unassign-private-ip-addresses --network-interface-id {self.eni_id} "
            f"--private-ip-addresses {' '.join(map(str, self.addresses))}"
        )


@dataclass(frozen=True, slots=True)
class ReleasePrefixes:
    """Give prefixes of an ENI back."""

    eni_id: str
    prefixes: tuple[IpNetwork, ...]
    reason: str
    verb: ClassVar[Verb] = Verb.DELETE
    kind: ClassVar[str] = "prefix"
    calls: ClassVar[tuple[str, ...]] = ("UnassignPrivateIpAddresses",)

    @property
    def key(self) -> Key:
        """The ENI and the prefixes."""
        return (self.eni_id, *(int(p.network_address) for p in self.prefixes))

    def __str__(self) -> str:
        return (
            f"{AWS} unassign-private-ip-addresses --network-interface-id {self.eni_id} "
            f"--ipv4-prefixes {' '.join(map(str, self.prefixes))}"
        )


@dataclass(frozen=True, slots=True)
class DetachEni:
    """Detach an ENI of ours that no pod uses; it is deleted once it is free."""

    eni_id: str
    attachment_id: str
    reason: str
    verb: ClassVar[Verb] = Verb.DELETE
    kind: ClassVar[str] = "eni"
    calls: ClassVar[tuple[str, ...]] = ("DetachNetworkInterface",)

    @property
    def key(self) -> Key:
        """The ENI."""
        return (self.eni_id,)

    def __str__(self) -> str:
        return f"{AWS} detach-network-interface --attachment-id {self.attachment_id}"


@dataclass(frozen=True, slots=True)
class DeleteEni:
    """Delete an ENI of ours that is attached to nothing."""

    eni_id: str
    reason: str
    verb: ClassVar[Verb] = Verb.DELETE
    kind: ClassVar[str] = "eni"
    calls: ClassVar[tuple[str, ...]] = ("DeleteNetworkInterface",)

    @property
    def key(self) -> Key:
        """The ENI."""
        return (self.eni_id,)

    def __str__(self) -> str:
        return f"{AWS} delete-network-interface --network-interface-id {self.eni_id}"


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
