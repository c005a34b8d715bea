"""Types of the fields of EC2's answers; the SDK checks nothing of them."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

from reconciler.core.datapath import MAX_DEVICE_INDEX
from reconciler.ipam.cloud import PREFIX_SIZE
from reconciler.targets.values import like, network, number

ID = like(r"(eni|eni-attach|subnet|sg|vpc)-[0-9A-Za-z-]{1,48}")
WORD = like(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""A zone, a type or a status."""

MAC = like(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")
TOKEN = like(r"[ -~]{1,8192}")
"""A page's token: EC2 calls it opaque, and it is printable."""

PREFIX = network(IPv4Network, [33 - PREFIX_SIZE.bit_length()])
"""A delegated IPv4 prefix; one of another length would be spelt out to more addresses."""

PREFIX_IPV6 = network(IPv6Network, [80])
SUBNET_CIDR = network(IPv4Network, range(16, 29))
"""A subnet's IPv4 CIDR block (VPC user guide, "Subnet sizing")."""

SUBNET_CIDR_IPV6 = network(IPv6Network, range(44, 65))
"""The same of IPv6. Source as above."""

DEVICE_INDEX = number(0, MAX_DEVICE_INDEX)
CARD_INDEX = number(0, 1 << 16)
"""Index of a network card; those that are not used are seen all the same."""

FREE = number(0, 1 << 16)
"""Free addresses of a subnet."""

TYPE_ENIS = number(1, 128)
"""ENIs on one network card of an instance type: as many as there are marks for."""

TYPE_ADDRESSES = number(1, 256)
"""IPv4 addresses that a type allows on one ENI."""
