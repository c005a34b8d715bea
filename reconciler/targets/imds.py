"""The instance metadata service, version 2: what the node may know of itself for free.

It may answer anything. Standard library HTTP: a handful of small requests to a link-local address
needs no client. It follows no redirect and knows no proxy. What it lacks are bounds: it waits anew
for each byte, and reads headers, "100 Continue" and chunks for as long as they come. So each read
goes by a socket here that has what is left of one budget. Each text has its form and its bound.
"""

from __future__ import annotations

import http.client
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Any, TypeVar

from reconciler.core.datapath import IpNetwork, host_network
from reconciler.core.facts import Eni, Node
from reconciler.errors import ObserveError
from reconciler.ipam.cloud import Subnet
from reconciler.targets.ec2.decode import ID, place
from reconciler.targets.values import IPV4, IPV6, Type, like, network

ADDRESSES = {"ipv4": "169.254.169.254", "ipv6": "fd00:ec2::254"}
"""By the SDKs' AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE, in lower case; IPv4 if it is not set.

Source: EC2 user guide, "Access instance metadata"; plain HTTP, port 80.
"""

TOKEN_TTL_S = 300
"""Seconds a session token is good for; a token is used for one look and thrown away."""

MAX_INTERFACES = 128
"""Interfaces of one instance, on all network cards; the most that any type has are 64."""

MAX_ITEMS = 256
"""Lines of one list: an ENI holds at most 64 addresses or prefixes, and a VPC 50 CIDR blocks."""

MAC = like(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
INSTANCE_ID = like(r"i-[0-9A-Za-z]{1,32}")
INSTANCE_TYPE = like(r"[a-z0-9][a-z0-9.-]{0,63}")
NUMBER = like(r"[0-9]{1,3}")
"""A device index, or the index of a network card."""

TOKEN = like(r"[!-~]{1,1024}")
"""A session's token, which becomes a header's value; the real service's have 56 characters."""

PLACE = like(r"[a-z][a-z0-9-]{0,63}")
"""A region, which becomes part of a host's name, or a zone."""

VPC_CIDR = network(IPv4Network, range(16, 29))
"""A VPC's IPv4 CIDR block, or a subnet's (VPC user guide, "VPC CIDR blocks")."""

VPC_CIDR_IPV6 = network(IPv6Network, range(32, 65))
"""The same of IPv6, those an owner brings included. Source as above."""

SUBNET_CIDR_IPV6 = network(IPv6Network, range(44, 65))
"""The same of a subnet's (VPC user guide, "Subnet CIDR blocks")."""

PREFIX = network(IPv4Network, [28])
PREFIX_IPV6 = network(IPv6Network, [80])

Get = Callable[[str], str]
"""Reads one key below ``meta-data``; raises ``MissingError`` where there is none."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one look at a service may cost.

    ``total_bytes`` are all answers', headers included. ``request_s`` are one request's, from
    connecting to the last byte of its answer.
    """

    requests: int
    total_bytes: int
    body_bytes: int
    total_s: float
    request_s: float


BOUNDS = Bounds(requests=512, total_bytes=1 << 20, body_bytes=1 << 16, total_s=10.0, request_s=2.0)
"""A request never leaves the host's hypervisor, and answers have some hundred bytes: fifty
addresses of sixteen bytes are the longest. A look makes a few requests for each ENI."""


class Imds:
    """Reads instance metadata. Each method raises an ObserveError for what it does not get."""

    def __init__(self, address: str = "", port: int = 80) -> None:
        mode = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "").lower()
        self._address = address or ADDRESSES.get(mode, ADDRESSES["ipv4"])
        self._port = port

    def node(self) -> Node:
        """Read the node's identity and its VPC's CIDRs."""
        return self._read(read_node)

    def interfaces(self) -> frozenset[tuple[str, IpNetwork]]:
        """Read what every interface holds: (MAC, address as /32 or prefix), primaries left out.

        It is the second witness beside EC2; both lag, but not in the same way.
        """
        return self._read(read_interfaces)

    def enis(self) -> tuple[tuple[Eni, Subnet], ...]:
        """Read the ENIs on the first network card, in device order, each with its subnet.

        For a node that may not ask EC2. Metadata does not tell whose an ENI is; the result says
        ours of all. It does not tell either how much room a subnet has: the result says none.
        """
        return self._read(read_enis)

    def region(self) -> str:
        """Read the region the instance runs in."""
        return self._read(read_region)

    def _read(self, what: Callable[[Get], T]) -> T:
        connection = _Connection(self._address, self._port, BOUNDS)
        try:
            ttl = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_S)}
            token = read_token(connection.ask("PUT", "/latest/api/token", ttl))
            header = {"X-aws-ec2-metadata-token": token}
            return what(lambda key: connection.ask("GET", f"/latest/meta-data/{key}", header))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ObserveError(
                f"instance metadata at {self._address}", f"{type(error).__name__}: {error}"
            ) from error
        finally:
            connection.close()


# -- what it answers; a ValueError says what is missing or is not what it must be -----------


def read_token(text: str) -> str:
    """Read a session's token."""
    return TOKEN.take("token", text)


def read_region(get: Get) -> str:
    """Read the region."""
    return PLACE.take("region", get("placement/region"))


def read_node(get: Get) -> Node:
    """Read the node's identity and its VPC's CIDRs.

    A CIDR block that is left out would have pods' packets translated that must not be, so all are
    read or none.
    """
    mac = MAC.take("mac", get("mac").lower())
    base = f"network/interfaces/macs/{mac}"
    cidrs = _list(get, f"{base}/vpc-ipv4-cidr-blocks", VPC_CIDR, needed=True)
    if not cidrs:
        raise ValueError("the VPC is said to have no CIDR, which no VPC has")
    cidrs_ipv6 = _list(get, f"{base}/vpc-ipv6-cidr-blocks", VPC_CIDR_IPV6)
    return Node(
        instance_id=INSTANCE_ID.take("instance-id", get("instance-id")),
        instance_type=INSTANCE_TYPE.take("instance-type", get("instance-type")),
        availability_zone=PLACE.take("zone", get("placement/availability-zone")),
        primary_mac=mac,
        vpc_cidrs=(*sorted(set(cidrs)), *sorted(set(cidrs_ipv6))),
        subnet_cidrs=(
            *_list(get, f"{base}/subnet-ipv4-cidr-block", VPC_CIDR),
            *_list(get, f"{base}/subnet-ipv6-cidr-blocks", SUBNET_CIDR_IPV6),
        ),
    )


def read_interfaces(get: Get) -> frozenset[tuple[str, IpNetwork]]:
    """Read what every interface holds; primary addresses are left out. Half a list is no witness.

    An interface without addresses has no key of them (aws/amazon-vpc-cni-k8s#3047).
    """
    held: set[tuple[str, IpNetwork]] = set()
    key = "network/interfaces/macs/"
    for name in _items(key, get(key), MAX_INTERFACES):
        mac = MAC.take(key, name.rstrip("/").lower())
        addresses = _list(get, f"{key}{mac}/local-ipv4s", IPV4, skip=1)
        held |= {(mac, host_network(address)) for address in addresses}
        held |= {(mac, prefix) for prefix in _list(get, f"{key}{mac}/ipv4-prefix", PREFIX)}
        held |= {(mac, prefix) for prefix in _list(get, f"{key}{mac}/ipv6-prefix", PREFIX_IPV6)}
    return frozenset(held)


def read_enis(get: Get) -> tuple[tuple[Eni, Subnet], ...]:
    """Read the ENIs on the first network card that have an address, and their subnets."""
    primary_mac = MAC.take("mac", get("mac").lower())
    zone = PLACE.take("zone", get("placement/availability-zone"))
    found = []
    key = "network/interfaces/macs/"
    for name in _items(key, get(key), MAX_INTERFACES):
        mac = MAC.take(key, name.rstrip("/").lower())
        base = f"{key}{mac}"
        card = _list(get, f"{base}/network-card", NUMBER) or ["0"]
        addresses = _list(get, f"{base}/local-ipv4s", IPV4)
        if addresses and int(card[0]) == 0:
            found.append(_eni(get, base, mac, mac == primary_mac, zone))
    return tuple(sorted(found, key=lambda pair: pair[0].device_index or 0))


def _eni(get: Get, base: str, mac: str, is_primary: bool, zone: str) -> tuple[Eni, Subnet]:
    primary, *secondaries = _list(get, f"{base}/local-ipv4s", IPV4, needed=True)
    subnet_id = ID.take("subnet-id", get(f"{base}/subnet-id"))
    cidr = VPC_CIDR.take("subnet", get(f"{base}/subnet-ipv4-cidr-block"))
    ipv6_cidrs = _list(get, f"{base}/subnet-ipv6-cidr-blocks", SUBNET_CIDR_IPV6)
    families = ("ipv4", "ipv6") if ipv6_cidrs else ("ipv4",)
    vpc_id = ID.take("vpc-id", get(f"{base}/vpc-id"))
    prefixes = _list(get, f"{base}/ipv4-prefix", PREFIX)
    ipv6_prefixes = _list(get, f"{base}/ipv6-prefix", PREFIX_IPV6)
    host_addresses = _list(get, f"{base}/ipv6s", IPV6)
    eni = Eni(
        eni_id=ID.take("interface-id", get(f"{base}/interface-id")),
        mac=mac,
        device_index=int(NUMBER.take("device-number", get(f"{base}/device-number"))),
        status="attached",
        subnet_id=subnet_id,
        subnet_cidr=cidr,
        primary=primary,
        secondaries=tuple(sorted(secondaries)),
        security_groups=tuple(sorted(_list(get, f"{base}/security-group-ids", ID))),
        prefixes=tuple(sorted(prefixes)),
        ipv6_prefixes=tuple(sorted(ipv6_prefixes)),
        host_addresses=tuple(host_addresses),
        is_primary=is_primary,
    )
    subnet = Subnet(subnet_id, zone, cidr, 0, 0, (), families, vpc_id, is_described=False)
    return place(eni, {subnet_id: subnet}), subnet


def _list(get: Get, key: str, kind: Type[T], *, skip: int = 0, needed: bool = False) -> list[T]:
    """Read a list; one without entries has no key, unless it is needed."""
    try:
        text = get(key)
    except MissingError:
        if needed:
            raise
        return []
    return [kind.take(key, item) for item in _items(key, text)[skip:]]


def _items(key: str, text: str, most: int = MAX_ITEMS) -> list[str]:
    found = text.split(maxsplit=most)
    if len(found) > most:
        raise ValueError(f"{key} has more than {most} entries")
    return found


# -- requests -----------------------------------------------------------------------------


class MissingError(ValueError):
    """There is no such key: HTTP 404."""


class _Connection(http.client.HTTPConnection):
    """One look at a service: requests over a connection that is opened when it is needed."""

    def __init__(self, address: str, port: int, bounds: Bounds) -> None:
        super().__init__(address, port)
        self._bounds = bounds
        self._requests = bounds.requests
        self._bytes = bounds.total_bytes
        self._end = self._request_end = time.monotonic() + bounds.total_s

    def ask(self, method: str, path: str, headers: dict[str, str]) -> str:
        """Return the answer's text, without white space around it."""
        what, bounds = f"{method} {path}", self._bounds
        if not self._requests:
            raise ValueError(f"one look makes at most {bounds.requests} requests")
        self._requests -= 1
        self._request_end = min(self._end, time.monotonic() + bounds.request_s)
        most = bounds.body_bytes
        try:
            self.request(method, path, headers=headers)
            response = self.getresponse()
            # Never all of it at once: that many bytes are set aside before the first one comes.
            body = response.read(most + 1)
        except TimeoutError as error:
            raise TimeoutError(
                f"{what}: not answered within {bounds.request_s:g} s, or all requests not within "
                f"{bounds.total_s:g} s"
            ) from error
        if len(body) > most:
            raise ValueError(f"{what}: the answer has more than {most} bytes")
        if response.length:
            raise http.client.IncompleteRead(body, response.length)
        if response.status == http.HTTPStatus.NOT_FOUND:
            raise MissingError(f"{what}: HTTP {response.status}")
        if response.status != http.HTTPStatus.OK:
            raise ValueError(f"{what}: HTTP {response.status}")
        return body.decode().strip()

    def connect(self) -> None:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        # An IP address, so that no resolver is asked.
        self.sock: Any = _Socket(self, family)  # in the place of a socket, of which it has a part
        self.sock.settimeout(self.seconds())
        self.sock.connect((self.host, self.port))

    def seconds(self) -> float:
        """Return how long the next system call may wait."""
        left = self._request_end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def spend(self, count: int) -> None:
        """Count bytes of an answer."""
        self._bytes -= count
        if self._bytes < 0:
            raise ValueError(f"the answers have more than {self._bounds.total_bytes} bytes")


class _Socket(socket.socket):
    """A socket whose every read and write is within a look's bounds."""

    def __init__(self, look: _Connection, family: socket.AddressFamily) -> None:
        super().__init__(family, socket.SOCK_STREAM)
        self._look = look

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        self.settimeout(self._look.seconds())
        super().sendall(data, flags)

    def recv_into(self, *buffer: Any) -> int:
        """Read; files of a socket call this one (``socket.SocketIO``)."""
        self.settimeout(self._look.seconds())
        count = super().recv_into(*buffer)
        self._look.spend(count)
        return count
