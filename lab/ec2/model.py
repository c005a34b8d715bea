"""moto's interface, instance and backend, with the rules EC2 enforces and moto does not.

Subclasses are set into moto's modules by ``lab.ec2.install``; moto's serialiser picks fields by
class *name*, so each takes the name of its parent.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import islice
from typing import Any

from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models import EC2Backend
from moto.ec2.models.elastic_network_interfaces import NetworkInterface
from moto.ec2.models.instance_types import INSTANCE_TYPES
from moto.ec2.models.instances import Instance
from moto.ec2.models.subnets import Subnet

from lab.ec2 import allocation
from lab.faults import Faults
from lab.wire import EniView, Wire, WireError

DEFAULT_LIMITS = (2, 2)

CARD_PLACES = 1000
"""Apart from each other: the places of two network cards among an instance's interfaces, which
moto keeps by one number."""

EFA_ONLY = "efa-only"
"""Type of an ENI without a network device, hence without addresses and link (EC2 user guide,
"Elastic Fabric Adapter")."""


class Interface(NetworkInterface):  # type: ignore[misc]
    """An ENI whose addresses are chosen once, lowest free first, and never twice."""

    def __init__(
        self,
        ec2_backend: Any,
        subnet: Any,
        private_ip_address: Any,
        private_ip_addresses: list[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        subnet = ec2_backend.get_subnet(subnet) if isinstance(subnet, str) else subnet
        self.ipv4_prefixes: list[dict[str, str]] = []
        self.ipv6_prefixes: list[dict[str, str]] = []
        self.attachment_status = "attached"
        self.network_card = 0
        self.idle_timeouts: dict[str, int] = {}
        interface_type = kwargs.pop("interface_type", "interface")
        count = int(kwargs.pop("secondary_ips_count", 0) or 0)
        requested = _requested(private_ip_address, private_ip_addresses or [])
        has_link = interface_type != EFA_ONLY
        chosen = ec2_backend.first_addresses(subnet, *requested, count) if has_link else []
        texts = [str(a) for a in chosen]
        listed = [{"Primary": t == texts[0], "PrivateIpAddress": t} for t in texts]
        super().__init__(ec2_backend, subnet, "".join(texts[:1]), listed, **kwargs)
        if not has_link:
            # moto has made one up.
            self.private_ip_address = None
            self.private_ip_addresses.clear()
        self.interface_type = interface_type

    @property
    def has_link(self) -> bool:
        """Whether the instance sees a network device."""
        return bool(self.interface_type != EFA_ONLY)

    @property
    def addresses(self) -> list[IPv4Address]:
        """All private IPv4 addresses, the primary first."""
        return [IPv4Address(a["PrivateIpAddress"]) for a in self.private_ip_addresses]

    @property
    def prefixes(self) -> list[IPv4Network]:
        """Delegated IPv4 prefixes."""
        return [IPv4Network(p["Ipv4Prefix"]) for p in self.ipv4_prefixes]

    @property
    def group_set(self) -> Any:
        """The ENI's own groups; moto adds the instance's."""
        return self._group_set

    def view(self) -> EniView:
        """Return what this ENI is now."""
        instance = self.instance
        return EniView(
            eni_id=self.id,
            mac=self.mac_address.lower(),
            subnet_id=self.subnet.id,
            subnet_cidr=IPv4Network(self.subnet.cidr_block),
            vpc_id=self.subnet.vpc_id,
            availability_zone=self.subnet.availability_zone,
            owner_id=self.owner_id,
            description=self.description,
            status=self.attachment_status if instance else "available",
            primary=IPv4Address(self.private_ip_address) if self.has_link else None,
            addresses=tuple(self.addresses),
            prefixes=tuple(self.prefixes),
            ipv6_addresses=tuple(IPv6Address(a) for a in self.ipv6_addresses),
            ipv6_prefixes=tuple(IPv6Network(p["Ipv6Prefix"]) for p in self.ipv6_prefixes),
            groups=tuple(g.id for g in self._group_set),
            tags=tuple(sorted((t["key"], t["value"]) for t in self.get_tags())),
            source_dest_check=bool(self.source_dest_check),
            instance_id=instance.id if instance else None,
            device_index=self.device_index if instance else None,
            attachment_id=self.attachment_id,
            delete_on_termination=bool(self.delete_on_termination),
            interface_type=self.interface_type,
            network_card=self.network_card,
            idle_timeouts=tuple(sorted(self.idle_timeouts.items())),
        )

    def delete(self) -> None:
        """Delete, as part of the instance's end."""
        self.ec2_backend.enis.pop(self.id, None)
        self.ec2_backend.tags.pop(self.id, None)


class LabSubnet(Subnet):  # type: ignore[misc]
    """A subnet that counts what is free."""

    @property
    def available_ip_address_count(self) -> int:
        """Addresses EC2 could still give out, prefixes counted by the address."""
        return int(self.ec2_backend.free_count(self))

    def reserved(self, *kinds: str) -> list[IPv4Network]:
        """Return the IPv4 CIDR reservations of some types."""
        found = (r.cidr for r in self._cidr_reservations if r.reservation_type in kinds)
        return [cidr for cidr in found if isinstance(cidr, IPv4Network)]

    @property
    def ipv6_cidr_block_association_set(self) -> list[dict[str, Any]]:
        """The IPv6 blocks; moto wraps the state of each twice."""
        blocks: list[dict[str, Any]] = super().ipv6_cidr_block_association_set
        return [b | {"ipv6CidrBlockState": {"state": "associated"}} for b in blocks]


class LabInstance(Instance):  # type: ignore[misc]
    """An instance that keeps its type's limits and has its ENIs plugged in."""

    def prep_nics(self, nic_spec: Any, *args: Any, **kwargs: Any) -> None:
        """Make the first interfaces; one that EC2 makes itself dies with the instance."""
        super().prep_nics(nic_spec, *args, **kwargs)
        for nic in self.nics.values():
            nic.delete_on_termination = True

    def attach_eni(self, eni: Interface, device_index: int, network_card: int = 0) -> str:
        """Attach, if EC2 would; the link is there before the status says so.

        Each network card counts its device indices anew. At index 0 of the lab's further cards are
        EFA-only ENIs alone, which have no link.

        Kinder than EC2 in one thing: it attaches an EFA to a stopped instance only (EC2 user
        guide, "Create and attach an Elastic Fabric Adapter"), and the lab's are never stopped.
        """
        place = network_card * CARD_PLACES + int(device_index)
        backend = self.ec2_backend
        if self._state.name == "terminated":
            message = f"The terminated instance '{self.id}' is not in a valid state."
            raise EC2ClientError("IncorrectInstanceState", message)
        if eni.instance is not None:
            raise EC2ClientError("InvalidParameterValue", f"Interface: [{eni.id}] in use.")
        if eni.subnet.availability_zone != self._placement.zone:
            message = (
                f"You may not attach a network interface to an instance if they are not in the "
                f"same availability zone ({eni.id})"
            )
            raise EC2ClientError("InvalidParameterCombination", message)
        if network_card and eni.has_link and not int(device_index):
            message = "The lab has EFA-only network interfaces at that index only."
            raise EC2ClientError("Unsupported", message)
        if place in self.nics:
            where = f"device index '{device_index}'"
            message = f"Instance '{self.id}' already has an interface attached at {where}."
            raise EC2ClientError("InvalidParameterValue", message)
        enis, per_eni = limits(self.instance_type)
        count = sum(nic.network_card == network_card for nic in self.nics.values())
        if count >= enis:
            message = f"Interface count {count + 1} exceeds the limit for {self.instance_type}"
            raise EC2ClientError("AttachmentLimitExceeded", message)
        if len(eni.addresses) + len(eni.prefixes) > per_eni:
            raise private_address_limit()
        attachment_id: str = super().attach_eni(eni, place)
        eni.device_index, eni.network_card = int(device_index), network_card
        delay = backend.faults.get("attachDelaySeconds") if place else 0
        if delay:
            eni.attachment_status = "attaching"
            backend.later(delay, lambda: backend.finish_attach(eni, attachment_id))
        else:
            backend.finish_attach(eni, attachment_id)
        return attachment_id

    def detach_eni(self, eni: Interface) -> None:
        """Detach at once: the link goes first."""
        self.ec2_backend.wire.unplug(eni.view())
        self.let_go(eni)
        eni.attachment_status = "attached"

    def let_go(self, eni: Interface) -> None:
        """Forget an attachment."""
        eni.device_index += eni.network_card * CARD_PLACES  # where moto has put it
        eni.network_card = 0
        super().detach_eni(eni)

    def terminate(self) -> Any:
        """End the instance; an ENI without DeleteOnTermination becomes available."""
        for nic in list(self.nics.values()):
            keep = not nic.delete_on_termination
            self.ec2_backend.wire.unplug(nic.view())
            if keep:
                self.let_go(nic)
        return super().terminate()


class Backend(EC2Backend):  # type: ignore[misc]
    """EC2's state in one region.

    Attributes:
        wire, faults: set for the whole class by ``lab.ec2.install``.
    """

    wire: Wire
    faults: Faults
    lock: threading.RLock

    @property
    def _url_module(self) -> Any:
        from moto.ec2 import urls

        return urls

    def create_network_interface(self, subnet: Any, *args: Any, **kwargs: Any) -> Interface:
        """Make an ENI attached to nothing."""
        names = ["private_ip_address", "private_ip_addresses", "group_ids", "description", "tags"]
        kwargs |= dict(zip(names, args, strict=False))
        kwargs.setdefault("private_ip_address", None)
        for group_id in kwargs.get("group_ids") or []:
            if not self.get_security_group_from_id(group_id):
                message = f"The security group '{group_id}' does not exist"
                raise EC2ClientError("InvalidGroup.NotFound", message)
        eni = Interface(self, subnet, **kwargs)
        self.enis[eni.id] = eni
        return eni

    def delete_network_interface(self, eni_id: str) -> None:
        """Delete an ENI that is attached to nothing, and its tags."""
        eni = self.get_network_interface(eni_id)
        if eni.instance is not None:
            message = f"Network interface '{eni_id}' is currently in use."
            raise EC2ClientError("InvalidParameterValue", message)
        eni.delete()

    def detach_network_interface(self, attachment_id: str) -> None:
        """Detach a secondary ENI, after a delay if the lab has one set."""
        eni = next((e for e in self.enis.values() if e.attachment_id == attachment_id), None)
        if eni is None or eni.instance is None:
            message = f"The attachment '{attachment_id}' does not exist"
            raise EC2ClientError("InvalidAttachmentID.NotFound", message)
        if eni.device_index == 0 and eni.network_card == 0:
            message = "The network interface at device index 0 cannot be detached."
            raise EC2ClientError("OperationNotPermitted", message)
        delay = self.faults.get("detachDelaySeconds")
        if delay:
            eni.attachment_status = "detaching"
            self.later(delay, lambda: self.finish_detach(eni, attachment_id))
        else:
            eni.instance.detach_eni(eni)

    def finish_attach(self, eni: Interface, attachment_id: str) -> None:
        """Plug the link in, then say that it is attached; without a link it is not."""
        if eni.attachment_id != attachment_id or eni.id not in self.enis:
            return
        try:
            if eni.has_link:
                self.wire.plug(eni.view())
        except WireError as error:
            eni.instance.let_go(eni)
            raise EC2ClientError("Unsupported", str(error)) from error
        eni.attachment_status = "attached"

    def finish_detach(self, eni: Interface, attachment_id: str) -> None:
        """Let go of an ENI that was being detached."""
        if eni.attachment_id == attachment_id and eni.instance is not None:
            eni.instance.detach_eni(eni)

    def later(self, delay_s: float, what: Any) -> None:
        """Do something after a while, under the lock."""

        def locked() -> None:
            with self.lock:
                what()

        timer = threading.Timer(delay_s, locked)
        timer.daemon = True
        timer.start()

    # -- addresses ------------------------------------------------------------------------

    def taken(self, subnet: Any) -> set[int]:
        """Return the numbers of all addresses in use in a subnet, prefixes spelt out."""
        numbers: set[int] = set()
        for eni in self.enis.values():
            if eni.subnet.id == subnet.id:
                numbers |= {int(a) for a in eni.addresses}
                for prefix in eni.prefixes:
                    first = int(prefix.network_address)
                    numbers |= set(range(first, first + prefix.num_addresses))
        return numbers

    def free_count(self, subnet: Any) -> int:
        """Return how many addresses EC2 counts as free: none that are reserved for prefixes."""
        apart = {int(a) for network in subnet.reserved("prefix") for a in network}
        usable = allocation.usable(IPv4Network(subnet.cidr_block))
        return len(set(usable) - self.taken(subnet) - apart)

    def choose_addresses(
        self, subnet: Any, count: int, besides: Iterable[IPv4Address] = ()
    ) -> list[IPv4Address]:
        """Choose free addresses; all of them or none."""
        taken = self.taken(subnet) | {int(a) for a in besides}
        taken |= {int(a) for n in subnet.reserved("prefix", "explicit") for a in n}
        free = allocation.free_addresses(IPv4Network(subnet.cidr_block), taken)
        chosen = list(islice(free, count))
        if len(chosen) < count:
            message = (
                "The specified subnet does not have enough free addresses to satisfy the request."
            )
            raise EC2ClientError("InsufficientFreeAddressesInSubnet", message)
        return chosen

    def first_addresses(
        self,
        subnet: Any,
        primary: IPv4Address | None,
        secondaries: list[IPv4Address],
        count: int,
    ) -> list[IPv4Address]:
        """Choose the addresses of a new ENI, the primary first; all of them or none."""
        if primary is None:
            primary = self.choose_addresses(subnet, 1, besides=secondaries)[0]
        else:
            self.claim(subnet, [primary])
        self.claim(subnet, secondaries)
        chosen = [primary, *secondaries]
        return chosen + self.choose_addresses(subnet, count, besides=chosen)

    def claim(self, subnet: Any, addresses: list[IPv4Address]) -> None:
        """Refuse explicit addresses that are not in the subnet, reserved, or in use."""
        allowed = allocation.usable(IPv4Network(subnet.cidr_block))
        taken = self.taken(subnet)
        for address in addresses:
            if int(address) not in allowed:
                message = f"Address {address} does not fall within the subnet's address range"
                raise EC2ClientError("InvalidParameterValue", message)
            if int(address) in taken:
                message = f"Address {address} is in use."
                raise EC2ClientError("InvalidIPAddress.InUse", message)

    def choose_prefixes(self, subnet: Any, count: int) -> list[IPv4Network]:
        """Choose free /28 blocks; all of them or none; where some are reserved for it, of those.

        Two different errors, as AWS support told Cilium (cilium/cilium#31016): one when the
        subnet is full, another when it has room but no whole block.
        """
        taken, reserved = self.taken(subnet), subnet.reserved("prefix")
        if not reserved:
            taken |= {int(a) for network in subnet.reserved("explicit") for a in network}
        blocks = allocation.free_prefixes(IPv4Network(subnet.cidr_block), taken)
        fitting = (b for b in blocks if not reserved or any(map(b.subnet_of, reserved)))
        chosen = list(islice(fitting, count))
        if len(chosen) == count:
            return chosen
        if not reserved and self.free_count(subnet) < 16 * count:
            message = "There aren't sufficient free Ipv4 addresses or prefixes"
            raise EC2ClientError("InvalidParameterValue", message)
        message = (
            "The specified subnet does not have enough free cidr blocks to satisfy the request."
        )
        raise EC2ClientError("InsufficientCidrBlocks", message)


def limits(instance_type: str) -> tuple[int, int]:
    """Return ENIs on network card 0 and IPv4 addresses per ENI; a prefix counts as one address.

    The type's own number of ENIs is the sum over its network cards.
    """
    info = INSTANCE_TYPES.get(instance_type, {}).get("NetworkInfo", {})
    card = next(iter(info.get("NetworkCards", [])), info)
    return (
        int(card.get("MaximumNetworkInterfaces", DEFAULT_LIMITS[0])),
        int(info.get("Ipv4AddressesPerInterface", DEFAULT_LIMITS[1])),
    )


def cards(instance_type: str) -> int:
    """Return how many network cards a type has."""
    info = INSTANCE_TYPES.get(instance_type, {}).get("NetworkInfo", {})
    return max(len(info.get("NetworkCards", [])), 1)


def private_address_limit() -> EC2ClientError:
    """Return EC2's refusal of more addresses than an ENI of this type can hold."""
    return EC2ClientError(
        "PrivateIpAddressLimitExceeded", "Number of private addresses will exceed limit."
    )


def _requested(
    primary: Any, addresses: list[dict[str, Any]]
) -> tuple[IPv4Address | None, list[IPv4Address]]:
    """Sort explicit addresses of a request into primary and secondaries."""
    chosen = IPv4Address(primary) if primary else None
    secondaries = []
    for item in addresses:
        address = IPv4Address(item["PrivateIpAddress"])
        if chosen is None and str(item.get("Primary")).lower() == "true":
            chosen = address
        elif address != chosen:
            secondaries.append(address)
    return chosen, secondaries
