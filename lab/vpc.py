"""What is around the lab's VPC, and changes while it runs: peerings, routes, prefix lists.

Only EC2's answers change: the fabric always connects the peer, so that a test sees which address a
pod's packet has there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

from moto.ec2.exceptions import EC2ClientError

from lab.ec2 import Cloud
from lab.topology import PEER_CIDR

VIA = {"tgw": "transit gateway", "vgw": "virtual private gateway", "igw": "internet gateway"}
"""Targets of routes that are made when they are first named."""


class VpcChanges:
    """Changes what EC2 tells of the VPC's surroundings; the caller holds the cloud's lock."""

    def __init__(self, cloud: Cloud, vpc_id: str) -> None:
        self._cloud = cloud
        self._vpc_id = vpc_id
        self._targets: dict[str, str] = {}

    def change(self, what: str, **given: Any) -> str:
        """Make a change; return the id of what was made or changed.

        Raises:
            ValueError: there is no such change, or EC2 refuses it.
        """
        changes: dict[str, Callable[..., str]] = {
            "peering create": self._create_peering,
            "peering delete": self._delete_peering,
            "route add": self._add_route,
            "route delete": self._delete_route,
            "prefix-list create": self._create_list,
            "prefix-list add": self._add_entry,
            "prefix-list remove": self._remove_entry,
        }
        if what not in changes:
            raise ValueError(f"no such change: {what!r}; there are {', '.join(changes)}")
        try:
            return changes[what](**given)
        except EC2ClientError as error:
            raise ValueError(str(error)) from error

    def _create_peering(self, cidr: str = str(PEER_CIDR), tag: str = "") -> str:
        """A VPC with a CIDR block, and an active peering with it."""
        backend = self._cloud.backend
        peer = backend.create_vpc(cidr)
        tags = {"Name": tag} if tag else {}
        made = backend.create_vpc_peering_connection(backend.get_vpc(self._vpc_id), peer, tags)
        backend.accept_vpc_peering_connection(made.id)
        return str(made.id)

    def _delete_peering(self, peering: str) -> str:
        self._cloud.backend.delete_vpc_peering_connection(peering)
        return peering

    def _add_route(self, cidr: str, via: str) -> str:
        """Into the main route table; ``via``: a word of ``VIA``, or the id of a peering or ENI."""
        if not cidr.startswith("pl-") and not _is_network(cidr):
            raise ValueError(f"{cidr!r} is no destination: a CIDR, or a prefix list like pl-0123")
        target = self._targets.get(via) or self._make_target(via)
        key = {"tgw": "transit_gateway_id", "pcx": "vpc_peering_connection_id"}.get(
            target[:3], "interface_id" if target.startswith("eni") else "gateway_id"
        )
        where = {"destination_prefix_list_id" if cidr.startswith("pl-") else "": cidr}
        where.pop("", None)
        to = None if where else cidr
        self._cloud.backend.create_route(self._main, to, **where, **{key: target})
        return target

    def _make_target(self, via: str) -> str:
        backend = self._cloud.backend
        match via:
            case "tgw":
                made = backend.create_transit_gateway("the lab's", {}, [])
                subnets = [s.id for s in backend.describe_subnets() if s.vpc_id == self._vpc_id]
                backend.create_transit_gateway_vpc_attachment(made.id, self._vpc_id, subnets[:1])
            case "vgw":
                made = backend.create_vpn_gateway()
            case "igw":
                made = backend.create_internet_gateway()
            case other if re.fullmatch(r"[a-z]+-[0-9a-z]+", other):
                return other
            case other:
                raise ValueError(f"{other!r} is no target: tgw, vgw, igw, or an id like pcx-0123")
        self._targets[via] = made.id
        return str(made.id)

    def _delete_route(self, cidr: str) -> str:
        is_list = cidr.startswith("pl-")
        listed = {"destination_prefix_list_id": cidr} if is_list else {}
        self._cloud.backend.delete_route(self._main, None if is_list else cidr, **listed)
        return self._main

    @property
    def _main(self) -> str:
        filters = {"vpc-id": [self._vpc_id], "association.main": ["true"]}
        (table,) = self._cloud.backend.describe_route_tables(filters=filters)
        return str(table.id)

    def _create_list(self, cidrs: list[str], tag: str = "") -> str:
        entries = [{"Cidr": c, "Description": tag} for c in cidrs]
        made = self._cloud.backend.create_managed_prefix_list("IPv4", entries, "100", tag or "lab")
        return str(made.id)

    def _add_entry(self, prefix_list: str, cidr: str, tag: str = "") -> str:
        return self._modify(prefix_list, add=[{"Cidr": cidr, "Description": tag}])

    def _remove_entry(self, prefix_list: str, cidr: str) -> str:
        return self._modify(prefix_list, remove=[{"Cidr": cidr}])

    def _modify(self, name: str, add: Any = (), remove: Any = ()) -> str:
        backend = self._cloud.backend
        known = backend.managed_prefix_lists[name]
        backend.modify_managed_prefix_list(
            list(add), list(remove), name, prefix_list_name=known.prefix_list_name
        )
        return name


def _is_network(text: str) -> bool:
    try:
        ip_network(text)
    except ValueError:
        return False
    return True
