"""The instance metadata service, version 2: what the node may know of itself for free."""

from __future__ import annotations

import http.client
import os
from collections.abc import Callable
from typing import TypeVar

from reconciler.core.datapath import IpNetwork
from reconciler.core.facts import Node
from reconciler.errors import ObserveError
from reconciler.targets.imds.answers import (
    Get,
    read_interfaces,
    read_node,
    read_region,
    read_token,
)
from reconciler.targets.imds.bounded_http import BoundedHttp, Bounds

ADDRESSES = {"ipv4": "169.254.169.254", "ipv6": "fd00:ec2::254"}
"""By the SDKs' AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE, in lower case; IPv4 if it is not set.

Source: EC2 user guide, "Access instance metadata"; plain HTTP, port 80.
"""

TOKEN_TTL_S = 300
"""Seconds a session token is good for; a token is used for one look and thrown away."""

T = TypeVar("T")

BOUNDS = Bounds(requests=512, total_bytes=1 << 20, body_bytes=1 << 16, total_s=10.0, request_s=2.0)
"""A request never leaves the host's hypervisor, and answers have some hundred bytes: fifty
addresses of sixteen bytes are the longest. A look makes a few requests for each ENI."""


class Imds:
    """Reads instance metadata."""

    def __init__(self, address: str = "", port: int = 80) -> None:
        mode = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "").lower()
        self._address = address or ADDRESSES.get(mode, ADDRESSES["ipv4"])
        self._port = port

    def node(self) -> Node:
        """Read the node's identity and its VPC's CIDRs.

        Raises:
            ObserveError: the service did not answer, or a key is missing.
        """
        return self._read(read_node)

    def interfaces(self) -> frozenset[tuple[str, IpNetwork]]:
        """Read what every interface holds: (MAC, address as /32 or prefix), primaries left out.

        It is the second witness beside EC2; both lag, but not in the same way.

        Raises:
            ObserveError: the service did not answer.
        """
        return self._read(read_interfaces)

    def region(self) -> str:
        """Read the region the instance runs in.

        Raises:
            ObserveError: the service did not answer.
        """
        return self._read(read_region)

    def _read(self, what: Callable[[Get], T]) -> T:
        """Open a session, read with it, close it."""
        connection = BoundedHttp(self._address, self._port, BOUNDS)
        try:
            return what(self._session(connection))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ObserveError(
                f"instance metadata at {self._address}", f"{type(error).__name__}: {error}"
            ) from error
        finally:
            connection.close()

    def _session(self, connection: BoundedHttp) -> Get:
        """Open a session; the returned function reads one key below ``meta-data``."""
        ttl = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_S)}
        token = read_token(connection.request("PUT", "/latest/api/token", ttl))
        header = {"X-aws-ec2-metadata-token": token}
        return lambda key: connection.request("GET", f"/latest/meta-data/{key}", header)
