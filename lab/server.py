"""The lab's one process: EC2, instance metadata, the fabric, and the control socket.

It runs inside the fabric's namespace, so nodes reach EC2 as they reach a VPC endpoint and
metadata as they reach the hypervisor: with packets, by their ENIs.
"""

from __future__ import annotations

import json
import logging
import signal
import socketserver
import sys
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from werkzeug.serving import BaseWSGIServer, make_server

from lab import fabric, netns, topology
from lab.ec2 import Cloud
from lab.ec2_client import open_ec2
from lab.fabric import Fabric
from lab.faults import Faults
from lab.imds import Imds
from lab.topology import (
    EC2_ENDPOINT,
    EC2_PORT,
    IMDS,
    REGION,
    SUBNETS,
    VPC_CIDRS,
    VPC_IPV6_CIDR,
    Names,
    Subnet,
)
from lab.vpc import VpcChanges

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client

IMAGE = "ami-12c6146b"
"""One of moto's own images."""


class Lab:
    """Everything in the process.

    Attributes:
        instances: ids by name, those of terminated ones too.
    """

    def __init__(self, names: Names, types: Mapping[str, str]) -> None:
        self.names = names
        self._types = types
        self.faults = Faults()
        self.fabric = Fabric(names)
        self.cloud = Cloud(wire=self.fabric, faults=self.faults, region=REGION)
        self.instances: dict[str, str] = {}
        self._occupants: set[str] = set()
        self._vpc: VpcChanges | None = None

    def build(self) -> None:
        """Make the VPC, its subnets and instances."""
        ec2 = open_ec2()
        first, *more = map(str, VPC_CIDRS)
        vpc = ec2.create_vpc(CidrBlock=first, AmazonProvidedIpv6CidrBlock=True)["Vpc"]["VpcId"]
        self._vpc = VpcChanges(self.cloud, vpc)
        for cidr in more:
            ec2.associate_vpc_cidr_block(VpcId=vpc, CidrBlock=cidr)
        (block,) = self.cloud.ipv6_blocks(vpc)
        assert block == str(VPC_IPV6_CIDR)
        subnets = {s.name: self._make_subnet(ec2, vpc, s) for s in SUBNETS}
        for i in topology.instances(self._types):
            with self.fabric.launching(i.name):
                made_instances = ec2.run_instances(
                    ImageId=IMAGE,
                    InstanceType=i.type,  # type: ignore[arg-type]
                    MinCount=1,
                    MaxCount=1,
                    NetworkInterfaces=[
                        {
                            "DeviceIndex": 0,
                            "SubnetId": subnets[i.subnet],
                            "PrivateIpAddress": str(i.address),
                        }
                    ],
                    TagSpecifications=[
                        {
                            "ResourceType": "instance",
                            "Tags": [{"Key": "Name", "Value": i.name}],
                        }
                    ],
                )
            made = made_instances["Instances"][0]
            self.instances[i.name] = made["InstanceId"]
            ec2.assign_ipv6_addresses(
                NetworkInterfaceId=made["NetworkInterfaces"][0]["NetworkInterfaceId"],
                Ipv6Addresses=[str(i.ipv6_address)],
            )
        self.faults.reset_calls()

    def answer(  # noqa: C901, PLR0912 - a case for each request
        self, question: dict[str, Any]
    ) -> dict[str, Any]:
        """Do what the control socket asks.

        Raises:
            KeyError, ValueError: it asks for what there is not.
        """
        match question["do"]:
            case "ping":
                return {"lab": self.names.lab}
            case "status":
                return {"enis": self._enis(), "instances": self.instances}
            case "drops":
                return {"flows": [fabric.as_dict(f) for f in self.fabric.drops()]}
            case "passed":
                return {"flows": [fabric.as_dict(f) for f in self.fabric.passed()]}
            case "forget":
                self.fabric.forget()
                return {}
            case "faults":
                if question.get("clear"):
                    self.faults.clear()
                self.faults.set(**question.get("set", {}))
                return {"faults": self.faults.snapshot()}
            case "calls":
                return self._calls(reset=bool(question.get("reset")))
            case "callers":
                return {"callers": self.faults.callers()}
            case "vpc":
                assert self._vpc is not None
                return {"id": self._vpc.change(question["what"], **question["given"])}
            case "terminate":
                self._terminate(question["node"])
                return {}
            case "reboot":
                self._reboot(question["node"])
                return {}
            case other:
                raise ValueError(f"unknown request {other!r}")

    def _make_subnet(self, ec2: EC2Client, vpc: str, subnet: Subnet) -> str:
        made = ec2.create_subnet(
            VpcId=vpc,
            CidrBlock=str(subnet.cidr),
            Ipv6CidrBlock=str(subnet.ipv6_cidr),
            AvailabilityZone=subnet.zone,
        )
        subnet_id = made["Subnet"]["SubnetId"]
        ec2.create_tags(
            Resources=[subnet_id],
            Tags=[{"Key": "Name", "Value": subnet.name}, {"Key": "role", "Value": subnet.role}],
        )
        if subnet.occupied:
            occupant = ec2.create_network_interface(
                SubnetId=subnet_id,
                Description="another owner's, so that this subnet is not empty",
                PrivateIpAddresses=[
                    {"PrivateIpAddress": str(a), "Primary": a == subnet.occupied[0]}
                    for a in subnet.occupied
                ],
            )
            self._occupants.add(occupant["NetworkInterface"]["NetworkInterfaceId"])
        return subnet_id

    def _calls(self, *, reset: bool) -> dict[str, Any]:
        faults = self.faults
        counts = {
            "calls": faults.calls(),
            "failed": faults.failed(),
            "throttled": faults.throttled(),
        }
        if reset:
            faults.reset_calls()
        return counts

    def _terminate(self, node: str) -> None:
        """End an instance in EC2; what runs in its namespace lives on, without a link."""
        if node not in self.instances:
            raise ValueError(f"no such node {node!r}")
        self.cloud.terminate(self.instances[node])

    def _reboot(self, node: str) -> None:
        """Give an instance an empty kernel, and its links again; EC2 knows nothing of it."""
        if node not in self.instances:
            raise ValueError(f"no such node {node!r}")
        instance_id = self.instances[node]
        enis = [e for e in self.cloud.enis() if e.instance_id == instance_id]
        for eni in enis:
            self.fabric.unplug(eni)
        namespace = self.names.namespace(node)
        netns.remove(namespace)
        netns.make(namespace)
        for eni in sorted(enis, key=lambda e: e.device_index or 0):
            self.fabric.plug(eni)

    def _enis(self) -> list[dict[str, Any]]:
        """List all but those that subnets are occupied with; a test has no business with them."""
        owners = {instance_id: name for name, instance_id in self.instances.items()}
        return [
            {
                "id": e.eni_id,
                "instance": owners.get(e.instance_id or "", ""),
                "device": e.device_index,
                "status": e.status,
                "mac": e.mac,
                "type": e.interface_type,
                "primary": str(e.primary) if e.primary else "",
                "addresses": [str(a) for a in e.addresses],
                "prefixes": [str(p) for p in e.prefixes],
                "ipv6": [str(a) for a in e.ipv6_addresses],
                "ipv6Prefixes": [str(p) for p in e.ipv6_prefixes],
            }
            for e in self.cloud.enis()
            if e.eni_id not in self._occupants
        ]


class _Control(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    lab: Lab


class _Exchange(socketserver.StreamRequestHandler):
    server: _Control

    def handle(self) -> None:
        """Answer questions until the other side is done."""
        for line in self.rfile:
            try:
                with self.server.lab.cloud.lock:
                    answer = {"ok": True} | self.server.lab.answer(json.loads(line))
            except (KeyError, ValueError, TypeError, RuntimeError) as error:
                answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
            self.wfile.write(json.dumps(answer).encode() + b"\n")


def main() -> None:
    """Serve until SIGTERM; arguments are the lab's name and pairs of a node and its type."""
    serve(Names(sys.argv[1]), dict(pair.split("=", 1) for pair in sys.argv[2:]))


def serve(names: Names, types: Mapping[str, str]) -> None:
    """Serve a lab until SIGTERM, from inside the fabric's namespace."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    lab = Lab(names, types)
    lab.fabric.build()
    servers: list[BaseWSGIServer] = [
        make_server(str(EC2_ENDPOINT), EC2_PORT, lab.cloud.app, threaded=True),
        make_server(str(IMDS), 80, Imds(lab.cloud), threaded=True),
    ]
    for server in servers:
        _serve(server.serve_forever)
    lab.build()
    # The control socket appears last: who can ask, finds everything there.
    with _Control(str(names.control), _Exchange) as control:
        control.lab = lab
        _serve(control.serve_forever)
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        stop.wait()


def _serve(forever: Callable[[], None]) -> None:
    threading.Thread(target=forever, daemon=True).start()


if __name__ == "__main__":
    main()
