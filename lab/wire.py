"""What EC2 tells the packet fabric."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Protocol


@dataclass(frozen=True, slots=True)
class EniView:
    """One ENI as it is at one moment.

    Attributes:
        status: "available", or the attachment's: attaching, attached, detaching.
        primary: None on an EFA-only ENI, which has no address and no link.
        addresses: all private IPv4 addresses, the primary first.
        tags: pairs in key order.
        idle_timeouts: those that were set, in seconds, by EC2's names.
    """

    eni_id: str
    mac: str
    subnet_id: str
    subnet_cidr: IPv4Network
    vpc_id: str
    availability_zone: str
    owner_id: str
    description: str
    status: str
    primary: IPv4Address | None
    addresses: tuple[IPv4Address, ...]
    prefixes: tuple[IPv4Network, ...]
    ipv6_addresses: tuple[IPv6Address, ...]
    ipv6_prefixes: tuple[IPv6Network, ...]
    groups: tuple[str, ...]
    tags: tuple[tuple[str, str], ...]
    source_dest_check: bool
    instance_id: str | None = None
    device_index: int | None = None
    attachment_id: str | None = None
    delete_on_termination: bool = False
    interface_type: str = "interface"
    network_card: int = 0
    idle_timeouts: tuple[tuple[str, int], ...] = ()

    def holds(self, address: IPv4Address) -> bool:
        """Whether a packet with this source may leave by this ENI."""
        return address in self.addresses or any(address in p for p in self.prefixes)


class WireError(Exception):
    """A link cannot be made; EC2 then refuses what asked for it."""


class Wire(Protocol):
    """Called with the cloud's lock held, so that packets and EC2 never disagree."""

    def plug(self, eni: EniView) -> None:
        """Make the link; called before EC2 says "attached".

        Raises:
            WireError: it cannot be made.
        """
        ...

    def unplug(self, eni: EniView) -> None:
        """Remove the link."""
        ...

    def readdress(self, eni: EniView) -> None:
        """Addresses, prefixes or the source check of an attached ENI have changed."""
        ...


class NoWire:
    """No packet fabric: for tests of EC2 alone."""

    def plug(self, eni: EniView) -> None:
        """Do nothing."""

    def unplug(self, eni: EniView) -> None:
        """Do nothing."""

    def readdress(self, eni: EniView) -> None:
        """Do nothing."""
