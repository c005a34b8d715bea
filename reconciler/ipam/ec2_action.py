"""The changes that can be asked of EC2, as actions: each knows its calls, and prints as a command.

What a call has no ClientToken for names what it is about, so that it can be repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter
from typing import Any, ClassVar, Generic, TypeVar

from reconciler.core.datapath import IpAddress, IpNetwork
from reconciler.engine.plan import Key, Verb
from reconciler.ipam.cloud import GROUP_TAG

U = TypeVar("U", IpAddress, IpNetwork)
"""What is assigned and released: single addresses, or prefixes."""

IDLE_TIMEOUTS = ("TcpEstablishedTimeout", "UdpStreamTimeout", "UdpTimeout")
"""EC2's names of an ENI's idle timeouts, in the order in which an ENI has them here."""

ATTACH = ("AttachNetworkInterface", "ModifyNetworkInterfaceAttribute")


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
    def group(self) -> str:
        """The pod group that it is for; "" is that of no group."""
        return dict(self.tags).get(GROUP_TAG, "")

    @property
    def key(self) -> Key:
        return (self.token,)

    def command(self, verb: Verb) -> str:
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
    calls: ClassVar[tuple[str, ...]] = ("CreateNetworkInterface", *ATTACH)

    @property
    def key(self) -> Key:
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
        del format_spec  # there is none
        return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True, slots=True)
class _OnEni:
    """An action about one ENI.

    ``calls``: EC2 actions, in order; the node's role needs the right to each. ``command``: what is
    typed after ``aws ec2``, with the action's fields.
    """

    eni_id: str
    verb: ClassVar[Verb] = Verb.UPDATE
    kind: ClassVar[str] = "eni"
    calls: ClassVar[tuple[str, ...]]
    command: ClassVar[str]

    @property
    def key(self) -> Key:
        units = getattr(self, "units", ())
        return (self.eni_id, *(int(getattr(u, "network_address", u)) for u in units))

    def __str__(self) -> str:
        return f"aws ec2 {_Words().format(self.command, self)}"


@dataclass(frozen=True, slots=True)
class AttachEni(_OnEni):
    """Attach an ENI of ours that is attached to nothing: its creation was interrupted."""

    instance_id: str
    device_index: int
    reason: str
    calls = ATTACH
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

    ``tags``: pairs in key order. ``obsolete``: keys of the stock plugin's tags.
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
class SetIdleTimeouts(_OnEni):
    """Change how long EC2 tracks idle connections of an ENI.

    ``timeouts``: seconds of TCP established, UDP stream and UDP; 0 where EC2's own holds.
    """

    timeouts: tuple[int, int, int]
    reason: str
    calls = ("ModifyNetworkInterfaceAttribute",)

    @property
    def specification(self) -> dict[str, int]:
        """The timeouts to set, by EC2's names."""
        return {name: s for name, s in zip(IDLE_TIMEOUTS, self.timeouts, strict=True) if s}

    def __str__(self) -> str:
        what = ",".join(f"{name}={seconds}" for name, seconds in self.specification.items())
        return (
            f"aws ec2 modify-network-interface-attribute --network-interface-id {self.eni_id} "
            f"--connection-tracking-specification {what}"
        )


@dataclass(frozen=True, slots=True)
class _Assignment(_OnEni, Generic[U]):
    """Give an ENI more: as many as EC2 chooses, or those that are named.

    ``options`` are the command's, before the names and before the count.
    """

    subnet_id: str
    reason: str
    count: int = 0
    units: tuple[U, ...] = ()
    verb = Verb.CREATE
    calls = ("AssignPrivateIpAddresses",)
    command = "assign-private-ip-addresses --network-interface-id {0.eni_id} {0.what}"
    options: ClassVar[tuple[str, str]]

    @property
    def what(self) -> tuple[object, ...]:
        by_name, by_count = self.options
        return (by_name, *self.units) if self.units else (by_count, self.count)


class AssignAddresses(_Assignment[IpAddress]):
    """Give an ENI more single addresses."""

    kind = "address"
    options = ("--private-ip-addresses", "--secondary-private-ip-address-count")


class AssignPrefixes(_Assignment[IpNetwork]):
    """Give an ENI more prefixes."""

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
        return (self.eni_id, "ipv6", int(self.prefix.network_address) if self.prefix else 0)

    def __str__(self) -> str:
        what = f"--ipv6-prefixes {self.prefix}" if self.prefix else "--ipv6-prefix-count 1"
        return f"aws ec2 assign-ipv6-addresses --network-interface-id {self.eni_id} {what}"


@dataclass(frozen=True, slots=True)
class _Release(_OnEni, Generic[U]):
    """Give addresses or prefixes of an ENI back."""

    units: tuple[U, ...]
    reason: str
    verb = Verb.DELETE
    calls = ("UnassignPrivateIpAddresses",)
    command = (
        "unassign-private-ip-addresses --network-interface-id {0.eni_id} {0.option} {0.units}"
    )
    option: ClassVar[str]


class ReleaseAddresses(_Release[IpAddress]):
    """Give single addresses of an ENI back."""

    kind = "address"
    option = "--private-ip-addresses"


class ReleasePrefixes(_Release[IpNetwork]):
    """Give prefixes of an ENI back."""

    kind = "prefix"
    option = "--ipv4-prefixes"


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


Assignment = AssignAddresses | AssignPrefixes | DelegatePrefix
"""What adds to an ENI that is there."""

GiveBack = ReleaseAddresses | ReleasePrefixes | DetachEni
"""What takes from an ENI that is attached."""

Ec2Action = (
    AddEni
    | AttachEni
    | TieToInstance
    | AdoptEni
    | SetSecurityGroups
    | SetIdleTimeouts
    | Assignment
    | GiveBack
    | DeleteEni
)
