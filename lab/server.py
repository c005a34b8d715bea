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
from collections.abc import Callable
from typing import Any

import boto3
from botocore.config import Config
from werkzeug.serving import BaseWSGIServer, make_server

from lab import fabric
from lab.ec2 import Cloud
from lab.fabric import Fabric
from lab.faults import Faults
from lab.imds import Imds
from lab.topology import EC2_ENDPOINT, EC2_PORT, IMDS, INSTANCES, REGION, SUBNETS, VPC_CIDRS, Names

IMAGE = "ami-12c6146b"
"""One of moto's own images."""


class Lab:
    """Everything in the process."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.faults = Faults()
        self.fabric = Fabric(names)
        self.cloud = Cloud(wire=self.fabric, faults=self.faults, region=REGION)
        self.instances: dict[str, str] = {}

    def build(self) -> None:
        """Make the VPC, its subnets and instances."""
        ec2 = boto3.client(
            "ec2",
            region_name=REGION,
            endpoint_url=f"http://{EC2_ENDPOINT}:{EC2_PORT}",
            aws_access_key_id="lab",
            aws_secret_access_key="lab",
            config=Config(retries={"total_max_attempts": 1}),
        )
        first, *more = map(str, VPC_CIDRS)
        vpc = ec2.create_vpc(CidrBlock=first)["Vpc"]["VpcId"]
        for cidr in more:
            ec2.associate_vpc_cidr_block(VpcId=vpc, CidrBlock=cidr)
        subnets = {}
        for s in SUBNETS:
            made = ec2.create_subnet(VpcId=vpc, CidrBlock=str(s.cidr), AvailabilityZone=s.zone)
            subnets[s.name] = made["Subnet"]["SubnetId"]
            ec2.create_tags(Resources=[subnets[s.name]], Tags=[{"Key": "Name", "Value": s.name}])
        for i in INSTANCES:
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
            self.instances[i.name] = made_instances["Instances"][0]["InstanceId"]
        self.faults.reset_calls()

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
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
                calls, failed = self.faults.calls(), self.faults.failed()
                if question.get("reset"):
                    self.faults.reset_calls()
                return {"calls": calls, "failed": failed}
            case other:
                raise ValueError(f"unknown request {other!r}")

    def _enis(self) -> list[dict[str, Any]]:
        owners = {instance_id: name for name, instance_id in self.instances.items()}
        return [
            {
                "id": e.eni_id,
                "instance": owners.get(e.instance_id or "", ""),
                "device": e.device_index,
                "status": e.status,
                "mac": e.mac,
                "primary": str(e.primary),
                "addresses": [str(a) for a in e.addresses],
                "prefixes": [str(p) for p in e.prefixes],
            }
            for e in self.cloud.enis()
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
    """Serve until SIGTERM."""
    names = Names(sys.argv[1])
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    lab = Lab(names)
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
