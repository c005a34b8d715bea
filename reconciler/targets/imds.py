"""The instance metadata service, version 2: what the node may know of itself for free.

Standard library HTTP: a handful of small requests to a link-local address needs no client.
"""

from __future__ import annotations

import http.client
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from typing import TypeVar

from reconciler.core.datapath import IpNetwork, host_network
from reconciler.core.facts import Node
from reconciler.errors import ObserveError

ADDRESS = "169.254.169.254"
"""Source: EC2 user guide, "Access instance metadata"; plain HTTP, port 80."""

TOKEN_TTL_S = 300
"""Seconds a session token is good for; a token is used for one look and thrown away."""

Get = Callable[[str], str]
T = TypeVar("T")

TIMEOUT_S = 2.0
"""Seconds for one request: it never leaves the host's hypervisor."""


class Imds:
    """Reads instance metadata."""

    def __init__(self, address: str = ADDRESS, port: int = 80) -> None:
        self._address = address
        self._port = port

    def node(self) -> Node:
        """Read the node's identity and its VPC's CIDRs.

        Raises:
            ObserveError: the service did not answer, or a key is missing.
        """
        return self._read(_read_node)

    def interfaces(self) -> frozenset[tuple[str, IpNetwork]]:
        """Read what every interface holds: (MAC, address as /32 or prefix), primaries left out.

        It is the second witness beside EC2; both lag, but not in the same way.

        Raises:
            ObserveError: the service did not answer.
        """
        return self._read(_read_interfaces)

    def region(self) -> str:
        """Read the region the instance runs in.

        Raises:
            ObserveError: the service did not answer.
        """
        return self._read(lambda get: get("placement/region"))

    def _read(self, what: Callable[[Get], T]) -> T:
        """Open a session, read with it, close it."""
        connection = http.client.HTTPConnection(self._address, self._port, timeout=TIMEOUT_S)
        try:
            return what(self._session(connection))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ObserveError(
                f"instance metadata at {self._address}", f"{type(error).__name__}: {error}"
            ) from error
        finally:
            connection.close()

    def _session(self, connection: http.client.HTTPConnection) -> Get:
        """Open a session; the returned function reads one key below ``meta-data``."""
        ttl = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_S)}
        token = _request(connection, "PUT", "/latest/api/token", ttl)
        header = {"X-aws-ec2-metadata-token": token}
        return lambda key: _request(connection, "GET", f"/latest/meta-data/{key}", header)


def _read_node(get: Get) -> Node:
    mac = get("mac").lower()
    base = f"network/interfaces/macs/{mac}"
    cidrs = get(f"{base}/vpc-ipv4-cidr-blocks").split()
    if not cidrs:
        raise ValueError("the VPC is said to have no CIDR, which no VPC has")
    cidrs += _optional(get, f"{base}/vpc-ipv6-cidr-blocks").split()
    return Node(
        instance_id=get("instance-id"),
        instance_type=get("instance-type"),
        availability_zone=get("placement/availability-zone"),
        primary_mac=mac,
        vpc_cidrs=tuple(sorted((ip_network(c) for c in cidrs), key=lambda n: (n.version, n))),
    )


def _read_interfaces(get: Get) -> frozenset[tuple[str, IpNetwork]]:
    held: set[tuple[str, IpNetwork]] = set()
    for mac in get("network/interfaces/macs/").split():
        mac = mac.rstrip("/").lower()
        base = f"network/interfaces/macs/{mac}"
        _, *secondaries = _optional(get, f"{base}/local-ipv4s").split() or [""]
        prefixes = _optional(get, f"{base}/ipv4-prefix").split()
        prefixes += _optional(get, f"{base}/ipv6-prefix").split()
        held |= {(mac, host_network(ip_address(a))) for a in secondaries}
        held |= {(mac, ip_network(p)) for p in prefixes}
    return frozenset(held)


def _optional(get: Get, key: str) -> str:
    """Read a key that may not exist: a list without entries has none."""
    try:
        return get(key)
    except _MissingError:
        return ""


class _MissingError(ValueError):
    """There is no such key."""


def _request(
    connection: http.client.HTTPConnection, method: str, path: str, headers: dict[str, str]
) -> str:
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    body = response.read().decode()
    if response.status == http.HTTPStatus.NOT_FOUND:
        raise _MissingError(f"{method} {path}: HTTP {response.status}")
    if response.status != http.HTTPStatus.OK:
        raise ValueError(f"{method} {path}: HTTP {response.status}")
    return body.strip()
