"""The calls on ENIs as EC2 answers them, and the switches that make it misbehave."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import islice
from typing import TYPE_CHECKING, Any

import flask
from moto.core.responses import ActionResult, EmptyResult
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.responses import EC2Response
from moto.ec2.utils import add_tag_specification

from lab.ec2 import policy
from lab.ec2.model import EFA_ONLY, Interface, cards, limits, private_address_limit
from lab.faults import THROTTLED, Injected
from lab.wire import EniView

if TYPE_CHECKING:
    from lab.ec2 import Cloud

STATUS = {THROTTLED: 503, "UnauthorizedOperation": 403}
MAX_PAGE = 1000

INTERFACE_TYPES = ("interface", "efa", EFA_ONLY, "trunk")
"""What can be asked for (EC2 API reference, CreateNetworkInterface)."""

ADDRESS_PARAMETERS = (
    "PrivateIpAddress",
    "PrivateIpAddresses",
    "SecondaryPrivateIpAddressCount",
    "Ipv4Prefixes",
    "Ipv4PrefixCount",
    "Ipv6Addresses",
    "Ipv6AddressCount",
    "Ipv6Prefixes",
    "Ipv6PrefixCount",
)
"""What asks for addresses, when an ENI is made and later."""


PEERING_FILTERS = {
    "requester-vpc-info.vpc-id": ("RequesterVpcInfo", "VpcId"),
    "accepter-vpc-info.vpc-id": ("AccepterVpcInfo", "VpcId"),
    "status-code": ("Status", "Code"),
    "vpc-peering-connection-id": ("", "VpcPeeringConnectionId"),
}
"""Where a peering has what a filter asks for."""


class LostAnswerError(Exception):
    """The call had its effect; the connection must drop instead of answering."""


class FloodError(Exception):
    """The answer's body has no end."""


class Response(EC2Response):  # type: ignore[misc]
    """EC2's front door.

    Attributes:
        cloud: set for the whole class by ``lab.ec2.install``.
    """

    cloud: Cloud

    def call_action(self) -> Any:
        """Answer one call, alone."""
        action = self._get_action()
        faults = self.cloud.faults
        with self.cloud.lock:
            if fault := faults.before(action, _caller()):
                return self._injected(fault)
            if ask := self._lacks(action):
                message = f"not authorized to perform ec2:{ask.action} on {ask.resource}"
                return self._refuse(EC2ClientError("UnauthorizedOperation", message))
            if _is_true(self._get_param("DryRun")):
                # moto knows it of some actions only.
                message = "Request would have succeeded, but DryRun flag is set."
                return self._refuse(EC2ClientError("DryRunOperation", message))
            try:
                answer = super().call_action()
            except NotImplementedError as error:
                return self._refuse(EC2ClientError("InvalidAction", str(error)))
            finally:
                self.cloud.remember()
            if fault := faults.after(action):
                return self._injected(fault)
            return answer

    def _lacks(self, action: str) -> policy.Ask | None:
        statements = self.cloud.faults.get("policy")
        if statements is None:
            return None
        return policy.refused(statements, action, self._get_params(), self.cloud.enis())

    def _injected(self, fault: Injected) -> Any:
        if fault.code is None:
            raise LostAnswerError
        status, headers, body = self._refuse(EC2ClientError(fault.code, fault.message))
        return max(fault.status, status), headers, body

    def _refuse(self, error: EC2ClientError) -> Any:
        status, headers, body = self.serialized(ActionResult(error))
        return STATUS.get(error.code, status), headers, body

    # -- describe -------------------------------------------------------------------------

    def describe_network_interfaces(self) -> ActionResult:
        """Answer from what was so many seconds ago, if the lab says so."""
        if how := self.cloud.faults.get("hostileEc2"):
            return _misbehave(how, self.cloud.enis())
        views = self.cloud.enis(lag_s=self.cloud.faults.get("staleEc2Seconds"))
        ids = self._get_param("NetworkInterfaceIds", [])
        for eni_id in ids:
            if eni_id not in {v.eni_id for v in views}:
                message = f"The networkInterface ID '{eni_id}' does not exist"
                raise EC2ClientError("InvalidNetworkInterfaceID.NotFound", message)
        wanted = self._get_param("Filters", [])
        chosen = [
            v
            for v in views
            if (not ids or v.eni_id in ids) and all(_matches(v, f) for f in wanted)
        ]
        page, token = self._page(chosen)
        limit = self.cloud.faults.get("truncateEc2")
        shown = page if limit is None else [_truncated(v, limit) for v in page]
        return ActionResult({"NetworkInterfaces": [describe(v) for v in shown]} | token)

    def describe_subnets(self) -> ActionResult:
        """As moto does, with pages, and with the right name for a subnet that is not there."""
        ids = set(self._get_param("SubnetIds", []))
        for subnet_id in sorted(ids - {s.id for s in self.ec2_backend.describe_subnets()}):
            message = f"The subnet ID '{subnet_id}' does not exist"
            raise EC2ClientError("InvalidSubnetID.NotFound", message)
        found = self.ec2_backend.describe_subnets(ids, self._filters_from_querystring())
        page, token = self._page(found)
        return ActionResult({"Subnets": page} | token)

    def describe_instance_types(self) -> ActionResult:
        """As moto does, with pages."""
        found = self.ec2_backend.describe_instance_types(
            self._get_param("InstanceTypes", []), self._filters_from_querystring()
        )
        page, token = self._page(found)
        return ActionResult({"InstanceTypes": page} | token)

    def describe_vpc_peering_connections(self) -> ActionResult:
        """With filters and pages, and with the CIDR blocks of both sides as EC2 has them."""
        found = [_peering(p) for p in self.ec2_backend.describe_vpc_peering_connections()]
        for wanted in self._get_param("Filters", []):
            name, values = wanted["Name"], wanted.get("Values", [])
            if name not in PEERING_FILTERS:
                raise EC2ClientError("InvalidParameterValue", f"The filter '{name}' is invalid")
            outer, inner = PEERING_FILTERS[name]
            found = [p for p in found if (p[outer] if outer else p)[inner] in values]
        return self._listed("VpcPeeringConnections", found)

    def describe_route_tables(self) -> ActionResult:
        """As moto does, with pages."""
        ids = self._get_param("RouteTableIds", [])
        filters = self._filters_from_querystring()
        return self._listed("RouteTables", self.ec2_backend.describe_route_tables(ids, filters))

    def describe_managed_prefix_lists(self) -> ActionResult:
        """As moto does, with pages."""
        found = self.ec2_backend.describe_managed_prefix_lists(
            self._get_param("PrefixListIds", []), self._filters_from_querystring()
        )
        return self._listed("PrefixLists", found)

    def get_managed_prefix_list_entries(self) -> ActionResult:
        """Of a version, with pages."""
        known = self.ec2_backend.get_managed_prefix_list_entries(self._get_param("PrefixListId"))
        if known is None:
            raise EC2ClientError("InvalidPrefixListID.NotFound", "The prefix list does not exist")
        version = self._get_int_param("TargetVersion", None) or known.version or 1
        return self._listed("Entries", known.entries.get(version, []))

    def _listed(self, key: str, items: list[Any]) -> ActionResult:
        """Return a page of a list, or of nothing or less if the lab says so."""
        action, faults = self._get_action(), self.cloud.faults
        if action in faults.get("shortEc2"):
            items = items[:-1]
        page, token = self._page([] if action in faults.get("emptyEc2") else items)
        return ActionResult({key: page} | token)

    def _page(self, items: list[Any]) -> tuple[list[Any], dict[str, str]]:
        size = min(int(self._get_param("MaxResults") or MAX_PAGE), MAX_PAGE)
        text = self._get_param("NextToken") or "page-0"
        start = text.removeprefix("page-")
        if not text.startswith("page-") or not start.isdigit() or int(start) > len(items):
            raise EC2ClientError("InvalidNextToken", f"The token '{text}' is invalid")
        end = int(start) + size
        return items[int(start) : end], {"NextToken": f"page-{end}"} if end < len(items) else {}

    # -- create, attach, detach, delete ---------------------------------------------------

    def create_network_interface(self) -> ActionResult:
        """Create once per ClientToken."""
        self.error_on_dryrun()
        token = self._get_param("ClientToken")
        request = json.dumps(self._get_params(), sort_keys=True, default=str)
        if token in self.cloud.tokens:
            known, eni_id = self.cloud.tokens[token]
            if known != request:
                message = "The parameters differ from those of the first call with this token"
                raise EC2ClientError("IdempotentParameterMismatch", message)
            eni = self.ec2_backend.get_network_interface(eni_id)
            return ActionResult({"NetworkInterface": describe(eni.view()), "ClientToken": token})
        eni = self._create()
        if token:
            self.cloud.tokens[token] = (request, eni.id)
        body: dict[str, Any] = {"NetworkInterface": describe(eni.view()) | {"Status": "pending"}}
        return ActionResult(body | ({"ClientToken": token} if token else {}))

    def _create(self) -> Interface:
        backend = self.ec2_backend
        subnet = backend.get_subnet(self._get_param("SubnetId"))
        interface_type = self._get_param("InterfaceType") or "interface"
        if interface_type not in INTERFACE_TYPES:
            message = f"The interface type '{interface_type}' is invalid"
            raise EC2ClientError("InvalidParameterValue", message)
        self._check_can_have_addresses(interface_type)
        eni: Interface = backend.create_network_interface(
            subnet,
            self._get_param("PrivateIpAddress"),
            self._get_param("PrivateIpAddresses", []),
            self._get_param("Groups", []),
            self._get_param("Description"),
            add_tag_specification(self._get_param("TagSpecifications", [])),
            secondary_ips_count=self._get_int_param("SecondaryPrivateIpAddressCount", 0),
            ipv6_addresses=[i["Ipv6Address"] for i in self._get_param("Ipv6Addresses", [])],
            ipv6_address_count=self._get_int_param("Ipv6AddressCount", 0),
            interface_type=interface_type,
        )
        try:
            self._add_prefixes(eni)
            self._add_ipv6_prefixes(eni)
        except EC2ClientError:
            eni.delete()
            raise
        return eni

    def delete_network_interface(self) -> EmptyResult:
        """Delete an ENI that is attached to nothing."""
        self.error_on_dryrun()
        self.ec2_backend.delete_network_interface(self._get_param("NetworkInterfaceId"))
        return EmptyResult()

    def attach_network_interface(self) -> ActionResult:
        """Attach to a network card, the first one unless another is named."""
        self.error_on_dryrun()
        card = int(self._get_param("NetworkCardIndex") or 0)
        eni = self.ec2_backend.get_network_interface(self._get_param("NetworkInterfaceId"))
        instance = self.ec2_backend.get_instance(self._get_param("InstanceId"))
        if not 0 <= card < cards(instance.instance_type):
            raise EC2ClientError("InvalidParameterValue", "The network card index is invalid")
        attachment_id = instance.attach_eni(eni, self._get_param("DeviceIndex"), card)
        return ActionResult({"AttachmentId": attachment_id, "NetworkCardIndex": card})

    def modify_network_interface_attribute(self) -> EmptyResult:
        """Change groups, description, source check, or whether the ENI dies with its instance."""
        self.error_on_dryrun()
        eni = self.ec2_backend.get_network_interface(self._get_param("NetworkInterfaceId"))
        attachment = self._get_param("Attachment") or {}
        if attachment:
            if attachment.get("AttachmentId") != eni.attachment_id:
                message = f"The attachment '{attachment.get('AttachmentId')}' does not exist"
                raise EC2ClientError("InvalidAttachmentID.NotFound", message)
            eni.delete_on_termination = _is_true(attachment.get("DeleteOnTermination"))
        for name, seconds in (self._get_param("ConnectionTrackingSpecification") or {}).items():
            eni.idle_timeouts[name] = int(seconds)
        check = (self._get_param("SourceDestCheck") or {}).get("Value")
        self.ec2_backend.modify_network_interface_attribute(
            eni.id,
            self._get_param("Groups", []),
            None if check is None else _is_true(check),
            (self._get_param("Description") or {}).get("Value"),
        )
        self._readdress(eni)
        return EmptyResult()

    # -- addresses ------------------------------------------------------------------------

    def assign_private_ip_addresses(self) -> ActionResult:
        """Add addresses or prefixes; the answer names the new ones only."""
        eni = self.ec2_backend.get_network_interface(self._get_param("NetworkInterfaceId"))
        self._check_can_have_addresses(eni.interface_type)
        explicit = [IPv4Address(a) for a in self._get_param("PrivateIpAddresses", [])]
        count = self._get_int_param("SecondaryPrivateIpAddressCount", 0) or 0
        self._check_room(eni, len(explicit) + count)
        fresh = [a for a in explicit if a not in eni.addresses]
        if _is_true(self._get_param("AllowReassignment")):
            self._take_from_others(eni, fresh)
        self.ec2_backend.claim(eni.subnet, fresh)
        fresh += self.ec2_backend.choose_addresses(eni.subnet, count, besides=fresh)
        eni.private_ip_addresses += [{"Primary": False, "PrivateIpAddress": str(a)} for a in fresh]
        prefixes = self._add_prefixes(eni)
        self._readdress(eni)
        return ActionResult(
            {
                "NetworkInterfaceId": eni.id,
                "AssignedPrivateIpAddresses": [{"PrivateIpAddress": str(a)} for a in fresh],
                "AssignedIpv4Prefixes": prefixes,
            }
        )

    def unassign_private_ip_addresses(self) -> EmptyResult:
        """Take addresses or prefixes away; never the primary."""
        eni = self.ec2_backend.get_network_interface(self._get_param("NetworkInterfaceId"))
        addresses = self._get_param("PrivateIpAddresses", [])
        prefixes = self._get_param("Ipv4Prefixes", [])
        held = {a["PrivateIpAddress"] for a in eni.private_ip_addresses if not a["Primary"]}
        held |= {p["Ipv4Prefix"] for p in eni.ipv4_prefixes}
        if unknown := [a for a in (*addresses, *prefixes) if a not in held]:
            message = (
                f"Some of {unknown} are not assigned to interface {eni.id}, or are its primary"
            )
            raise EC2ClientError("InvalidParameterValue", message)
        eni.private_ip_addresses = [
            a for a in eni.private_ip_addresses if a["PrivateIpAddress"] not in addresses
        ]
        eni.ipv4_prefixes = [p for p in eni.ipv4_prefixes if p["Ipv4Prefix"] not in prefixes]
        self._readdress(eni)
        return EmptyResult()

    def assign_ipv6_addresses(self) -> ActionResult:
        """Add IPv6 addresses or /80 prefixes; the answer names the new ones only."""
        eni = self.ec2_backend.get_network_interface(self._get_param("NetworkInterfaceId"))
        self._check_can_have_addresses(eni.interface_type)
        block = _ipv6_block(eni)
        fresh = list(self._get_param("Ipv6Addresses", []))
        count = self._get_int_param("Ipv6AddressCount", 0) or 0
        used = {a for e in self.ec2_backend.enis.values() for a in e.ipv6_addresses} | set(fresh)
        numbers = range(int(block.network_address) + 16, int(block.network_address) + (1 << 16))
        free = (str(IPv6Address(n)) for n in numbers if str(IPv6Address(n)) not in used)
        fresh += islice(free, count)
        eni.ipv6_addresses += fresh
        prefixes = self._add_ipv6_prefixes(eni)
        self._readdress(eni)
        return ActionResult(
            {
                "NetworkInterfaceId": eni.id,
                "AssignedIpv6Addresses": fresh,
                "AssignedIpv6Prefixes": [p["Ipv6Prefix"] for p in prefixes],
            }
        )

    def _add_prefixes(self, eni: Interface) -> list[dict[str, str]]:
        explicit = [
            IPv4Network(_text(p, "Ipv4Prefix")) for p in self._get_param("Ipv4Prefixes", [])
        ]
        count = self._get_int_param("Ipv4PrefixCount", 0) or 0
        self._check_room(eni, len(explicit) + count)
        for prefix in explicit:
            self.ec2_backend.claim(eni.subnet, list(prefix))
        chosen = explicit + self.ec2_backend.choose_prefixes(eni.subnet, count)
        added = [{"Ipv4Prefix": str(p)} for p in chosen]
        eni.ipv4_prefixes += added
        return added

    def _add_ipv6_prefixes(self, eni: Interface) -> list[dict[str, str]]:
        count = self._get_int_param("Ipv6PrefixCount", 0) or 0
        explicit = [_text(p, "Ipv6Prefix") for p in self._get_param("Ipv6Prefixes", [])]
        if not count and not explicit:
            return []
        used = {p["Ipv6Prefix"] for e in self.ec2_backend.enis.values() for p in e.ipv6_prefixes}
        blocks = _ipv6_block(eni).subnets(new_prefix=80)
        next(blocks)  # holds the single addresses
        chosen = [*explicit, *islice((str(b) for b in blocks if str(b) not in used), count)]
        added = [{"Ipv6Prefix": p} for p in chosen]
        eni.ipv6_prefixes += added
        return added

    def _check_can_have_addresses(self, interface_type: str) -> None:
        """Refuse addresses of an EFA-only ENI; EC2 documents that it does, not with which code."""
        if interface_type == EFA_ONLY and any(self._get_param(p) for p in ADDRESS_PARAMETERS):
            message = "EFA-only network interfaces do not support IP addresses."
            raise EC2ClientError("InvalidParameterCombination", message)

    def _check_room(self, eni: Interface, more: int) -> None:
        """An ENI's limit is its instance type's, so it holds once the ENI is attached."""
        if eni.instance is None or not more:
            return
        if len(eni.addresses) + len(eni.prefixes) + more > limits(eni.instance.instance_type)[1]:
            raise private_address_limit()

    def _take_from_others(self, eni: Interface, addresses: list[IPv4Address]) -> None:
        for other in self.ec2_backend.enis.values():
            taken = {str(a) for a in addresses} & {
                a["PrivateIpAddress"] for a in other.private_ip_addresses if not a["Primary"]
            }
            if other is not eni and taken:
                other.private_ip_addresses = [
                    a for a in other.private_ip_addresses if a["PrivateIpAddress"] not in taken
                ]
                self._readdress(other)

    def _readdress(self, eni: Interface) -> None:
        if eni.instance is not None and eni.attachment_status == "attached" and eni.has_link:
            self.cloud.wire.readdress(eni.view())


def _caller() -> str:
    """Return the address that a call comes from; empty if it comes by no connection."""
    return (flask.request.remote_addr or "") if flask.has_request_context() else ""


def _peering(peering: Any) -> dict[str, Any]:
    """Return a peering in the words of DescribeVpcPeeringConnections."""
    sides = {"RequesterVpcInfo": peering.vpc, "AccepterVpcInfo": peering.peer_vpc}
    return {
        "VpcPeeringConnectionId": peering.id,
        "Status": {"Code": peering._status.code, "Message": peering._status.message},
        "Tags": [{"Key": t["key"], "Value": t["value"]} for t in peering.get_tags()],
        **{
            key: {
                "OwnerId": vpc.owner_id,
                "VpcId": vpc.id,
                "CidrBlock": vpc.cidr_block,
                "CidrBlockSet": [
                    {"CidrBlock": a["cidr_block"]} for a in vpc.get_cidr_block_association_set()
                ],
            }
            for key, vpc in sides.items()
        },
    }


def describe(view: EniView) -> dict[str, Any]:
    """Return an ENI in the words of DescribeNetworkInterfaces."""
    body: dict[str, Any] = {
        "NetworkInterfaceId": view.eni_id,
        "MacAddress": view.mac,
        "SubnetId": view.subnet_id,
        "VpcId": view.vpc_id,
        "AvailabilityZone": view.availability_zone,
        "OwnerId": view.owner_id,
        "Description": view.description,
        "InterfaceType": view.interface_type,
        "RequesterManaged": False,
        "SourceDestCheck": view.source_dest_check,
        "Status": "in-use" if view.instance_id else "available",
        "PrivateIpAddresses": [
            {"Primary": a == view.primary, "PrivateIpAddress": str(a)} for a in view.addresses
        ],
        "Ipv4Prefixes": [{"Ipv4Prefix": str(p)} for p in view.prefixes],
        "Ipv6Addresses": [{"Ipv6Address": str(a)} for a in view.ipv6_addresses],
        "Ipv6Prefixes": [{"Ipv6Prefix": str(p)} for p in view.ipv6_prefixes],
        "Groups": [{"GroupId": g, "GroupName": g} for g in view.groups],
        "TagSet": [{"Key": k, "Value": v} for k, v in view.tags],
    }
    if view.idle_timeouts:
        body["ConnectionTrackingConfiguration"] = dict(view.idle_timeouts)
    if view.primary:
        body["PrivateIpAddress"] = str(view.primary)
    if view.instance_id:
        body["Attachment"] = {
            "AttachmentId": view.attachment_id,
            "InstanceId": view.instance_id,
            "InstanceOwnerId": view.owner_id,
            "DeviceIndex": view.device_index,
            "NetworkCardIndex": view.network_card,
            "Status": view.status,
            "DeleteOnTermination": view.delete_on_termination,
        }
    return body


def _misbehave(how: str, views: tuple[EniView, ...]) -> ActionResult:
    """Answer what EC2 never would."""
    if how == "flood":
        raise FloodError
    if how == "fields":
        wrong = {
            "PrivateIpAddress": "x" * 100_000,
            "Ipv4Prefixes": [{"Ipv4Prefix": "0.0.0.0/0"}],
            "TagSet": [{"Key": "\u202e", "Value": "y" * 10_000}] * 100,
        }
        return ActionResult({"NetworkInterfaces": [describe(v) | wrong for v in views]})
    addresses = tuple(views[0].subnet_cidr.hosts())[:50]
    full = describe(replace(views[0], addresses=addresses))
    return ActionResult({"NetworkInterfaces": [full] * 100, "NextToken": "and-one-more"})


def _truncated(view: EniView, limit: int) -> EniView:
    """Return an ENI with its primary address and at most so many of everything else."""
    return replace(
        view,
        addresses=view.addresses[: 1 + limit],
        prefixes=view.prefixes[:limit],
        ipv6_addresses=view.ipv6_addresses[:limit],
        ipv6_prefixes=view.ipv6_prefixes[:limit],
    )


def _matches(view: EniView, wanted: dict[str, Any]) -> bool:
    """Apply one filter; a value may end in a star."""
    name, values = wanted["Name"], wanted.get("Values", [])
    return any(_fits(have, value) for have in _filter_values(view, name) for value in values)


def _fits(have: str, value: str) -> bool:
    return have.startswith(value[:-1]) if value.endswith("*") else have == value


def _filter_values(view: EniView, name: str) -> Iterable[str]:
    if name.startswith("tag:"):
        return [v for k, v in view.tags if k == name[4:]]
    values: dict[str, list[str]] = {
        "network-interface-id": [view.eni_id],
        "attachment.instance-id": [view.instance_id or ""],
        "attachment.attachment-id": [view.attachment_id or ""],
        "attachment.device-index": [str(view.device_index)],
        "attachment.status": [view.status],
        "status": ["in-use" if view.instance_id else "available"],
        "subnet-id": [view.subnet_id],
        "vpc-id": [view.vpc_id],
        "availability-zone": [view.availability_zone],
        "mac-address": [view.mac],
        "description": [view.description],
        "group-id": list(view.groups),
        "interface-type": [view.interface_type],
        "requester-managed": ["false"],
        "tag-key": [k for k, _ in view.tags],
        "private-ip-address": [str(view.primary)] if view.primary else [],
        "addresses.private-ip-address": [str(a) for a in view.addresses],
    }
    if name not in values:
        raise EC2ClientError("InvalidParameterValue", f"The filter '{name}' is invalid")
    return values[name]


def _ipv6_block(eni: Interface) -> IPv6Network:
    associations = list(eni.subnet.ipv6_cidr_block_associations.values())
    if not associations:
        raise EC2ClientError("InvalidParameterValue", "The subnet has no IPv6 CIDR block")
    return IPv6Network(associations[0]["ipv6CidrBlock"])


def _text(item: Any, key: str) -> str:
    return str(item[key]) if isinstance(item, dict) else str(item)


def _is_true(value: Any) -> bool:
    return str(value).lower() == "true"
