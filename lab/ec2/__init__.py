"""EC2 for the lab: moto's wire format and objects, with EC2's rules put in."""

from __future__ import annotations

import lab.ec2.loader  # noqa: F401  # isort: skip

import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address
from itertools import repeat
from typing import Any

import moto.ec2.models.amis as moto_amis
import moto.ec2.models.elastic_network_interfaces as moto_interfaces
import moto.ec2.models.instances as moto_instances
import moto.ec2.models.subnets as moto_subnets
import moto.ec2.models.vpcs as moto_vpcs
from moto.core import DEFAULT_ACCOUNT_ID
from moto.ec2 import urls
from moto.ec2.models import ec2_backends
from moto.moto_server.werkzeug_app import create_backend_app

from lab.ec2.model import Backend, Interface, LabInstance, LabSubnet
from lab.ec2.response import FloodError, LostAnswerError, Response
from lab.faults import Faults
from lab.topology import IPV6_POOL, VPC_IPV6_CIDR
from lab.wire import EniView, Wire

FLOOD_PARTS = 8000
"""Of 256 KiB each: a body of 2 GB is without an end to whoever has less memory."""

HISTORY_S = 120.0
"""Seconds of past that stale reads can reach back to."""

Environ = dict[str, Any]
StartResponse = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class InstanceView:
    """What instance metadata tells of an instance."""

    instance_id: str
    instance_type: str
    availability_zone: str
    region: str
    image_id: str
    vpc_id: str
    vpc_cidrs: tuple[str, ...]
    vpc_ipv6_cidrs: tuple[str, ...] = ()


class Cloud:
    """EC2 in one region. One per process: moto's classes are replaced for good.

    Attributes:
        lock: held for every call; whoever reads several things takes it.
        tokens: ClientToken to (request, ENI id).
    """

    def __init__(self, *, wire: Wire, faults: Faults, region: str = "us-east-1") -> None:
        self.wire = wire
        self.faults = faults
        self.region = region
        self.lock = threading.RLock()
        self.tokens: dict[str, tuple[str, str]] = {}
        self._history: list[tuple[float, tuple[EniView, ...]]] = []
        _install(self)
        self._moto = create_backend_app("ec2")

    @property
    def backend(self) -> Backend:
        """Moto's backend of this region."""
        return ec2_backends[DEFAULT_ACCOUNT_ID][self.region]  # type: ignore[no-any-return]

    def app(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """EC2 as a WSGI application; a lost answer drops the connection."""
        try:
            answer: Iterable[bytes] = self._moto(environ, start_response)
        except LostAnswerError:
            connection = environ.get("werkzeug.socket")
            if connection is not None:
                connection.shutdown(socket.SHUT_RDWR)
            raise ConnectionAbortedError("the answer is lost on purpose") from None
        except FloodError:
            start_response("200 OK", [("Content-Type", "text/xml")])
            return repeat(b"<a>" * 87_381, FLOOD_PARTS)
        return answer

    def enis(self, *, lag_s: float = 0.0) -> tuple[EniView, ...]:
        """Return every ENI as it is now, or as it was so many seconds ago."""
        with self.lock:
            if lag_s:
                limit = time.monotonic() - lag_s
                past = [views for at, views in self._history if at <= limit]
                return past[-1] if past else ()
            return tuple(e.view() for e in self.backend.enis.values())

    def remember(self) -> None:
        """Keep the present for stale reads; called after every call."""
        now = time.monotonic()
        views = self.enis()
        if not self._history or self._history[-1][1] != views:
            self._history.append((now, views))
        recent = [i for i, (at, _) in enumerate(self._history) if at >= now - HISTORY_S]
        # The newest entry older than the window is what the window's start looked like.
        del self._history[: max(recent[0] - 1, 0) if recent else len(self._history) - 1]

    def eni_by_address(self, address: IPv4Address) -> EniView | None:
        """Return the attached ENI that holds an address."""
        return next((e for e in self.enis() if e.instance_id and e.holds(address)), None)

    def instance(self, instance_id: str) -> InstanceView:
        """Describe an instance."""
        with self.lock:
            instance = self.backend.get_instance(instance_id)
            vpc = self.backend.get_vpc(instance.vpc_id)
            associated = vpc.get_cidr_block_association_set()
            return InstanceView(
                instance_id=instance_id,
                instance_type=instance.instance_type,
                availability_zone=instance._placement.zone,
                region=self.region,
                image_id=instance.image_id,
                vpc_id=instance.vpc_id,
                vpc_cidrs=tuple(
                    a["cidr_block"]
                    for a in associated
                    if a["cidr_block_state"]["state"] == "associated"
                ),
                vpc_ipv6_cidrs=self.ipv6_blocks(instance.vpc_id),
            )

    def ipv6_blocks(self, vpc_id: str) -> tuple[str, ...]:
        """Return the IPv6 CIDR blocks of a VPC."""
        with self.lock:
            vpc = self.backend.get_vpc(vpc_id)
            blocks = vpc.get_cidr_block_association_set(ipv6=True)
            return tuple(b["cidr_block"] for b in blocks)

    def free_ipv6_block(self) -> str:
        """Return the first /56 of Amazon's that no VPC has."""
        used = {b for vpc_id in self.backend.vpcs for b in self.ipv6_blocks(vpc_id)}
        blocks = map(str, IPV6_POOL.subnets(new_prefix=VPC_IPV6_CIDR.prefixlen))
        return next(b for b in blocks if b not in used)

    def terminate(self, instance_id: str) -> None:
        """Terminate an instance as an operator does by hand: no switch delays or counts it."""
        with self.lock:
            self.backend.terminate_instances([instance_id])
            self.remember()

    def reset(self) -> None:
        """Forget everything."""
        with self.lock:
            for eni in list(self.backend.enis.values()):
                if eni.instance is not None:
                    self.wire.unplug(eni.view())
            ec2_backends.reset()
            self.tokens.clear()
            self._history.clear()
            self.faults.clear()
            self.faults.reset_calls()


def _install(cloud: Cloud) -> None:
    """Put our classes in the places moto looks them up in (moto 5.2.5; hence the exact pin)."""
    ours_for_theirs = {
        "NetworkInterface": Interface,
        "Instance": LabInstance,
        "Subnet": LabSubnet,
    }
    for theirs, ours in ours_for_theirs.items():
        ours.__name__ = theirs  # the serialiser aliases fields by class name
    moto_interfaces.NetworkInterface = Interface
    moto_instances.Instance = LabInstance
    moto_subnets.Subnet = LabSubnet
    moto_vpcs.random_ipv6_cidr = cloud.free_ipv6_block
    # The lab needs no images, and moto reads 1,300 of them whenever it forgets everything.
    moto_amis.AmiBackend._load_amis = lambda _: None
    Backend.wire, Backend.faults, Backend.lock = cloud.wire, cloud.faults, cloud.lock
    Response.cloud = cloud
    ec2_backends.backend = Backend
    for account in ec2_backends.values():
        account.backend = Backend
        account.clear()
    urls.url_paths["{0}/"] = Response.dispatch
