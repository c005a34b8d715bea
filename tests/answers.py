"""Answers of EC2, made from the SDK's own model, and a caller that gives them."""

from __future__ import annotations

import copy
import json
from collections import Counter
from functools import cache
from typing import Any

import botocore.session

from reconciler.ipam.cloud import INSTANCE_TAG
from reconciler.targets.ec2.caller import Ec2CallError

Path = tuple[str | int, ...]

MACS = ["02:aa:00:00:00:00", "02:aa:00:00:00:01", "02:aa:00:00:00:02", "02:aa:00:00:00:03"]


@cache
def model() -> Any:
    return botocore.session.get_session().get_service_model("ec2")


def sample(shape: Any, depth: int = 6) -> Any:
    """Every field of an answer, with any value of its type."""
    match shape.type_name:
        case "structure":
            members = shape.members.items() if depth else ()
            return {name: sample(member, depth - 1) for name, member in members}
        case "list":
            return [sample(shape.member, depth - 1)] if depth else []
        case "boolean":
            return False
        case "integer" | "long" | "double" | "float":
            return 1
        case _:
            return "2026-01-01T00:00:00+00:00" if shape.type_name == "timestamp" else "text"


def made(operation: str, result: str, *objects: dict[str, Any]) -> dict[str, Any]:
    """An answer with these objects, all other fields filled in."""
    shape = model().operation_model(operation).output_shape
    each = sample(shape.members[result].member)
    return {result: [merged(each, o) for o in objects]}


def merged(base: Any, over: dict[str, Any]) -> dict[str, Any]:
    result = copy.deepcopy(base)
    for key, value in over.items():
        nested_too = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if nested_too else value
        if value is None:
            del result[key]
    return result


def interface(number: int, **fields: Any) -> dict[str, Any]:
    first = 10 + 20 * number
    listed = [{"PrivateIpAddress": f"10.0.1.{first}", "Primary": True}]
    return {
        "NetworkInterfaceId": f"eni-{number}",
        "MacAddress": MACS[number],
        "SubnetId": "subnet-a",
        "VpcId": "vpc-1",
        "InterfaceType": "interface",
        "Status": "in-use",
        "PrivateIpAddress": f"10.0.1.{first}",
        "PrivateIpAddresses": listed + fields.pop("more", []),
        "Ipv4Prefixes": [],
        "Ipv6Prefixes": [{"Ipv6Prefix": f"2001:db8:1:0:{number}::/80"}],
        "Ipv6Addresses": [{"Ipv6Address": f"2001:db8:1::{number + 1:x}"}],
        "Groups": [{"GroupId": "sg-1", "GroupName": "nodes"}],
        "TagSet": [{"Key": INSTANCE_TAG, "Value": "i-1"}],
        "Attachment": {
            "AttachmentId": f"eni-attach-{number}",
            "InstanceId": "i-1",
            "DeviceIndex": number,
            "NetworkCardIndex": 0,
            "Status": "attached",
            "DeleteOnTermination": True,
        },
    } | fields


def answers() -> dict[str, dict[str, Any]]:
    """A node with two ENIs of ours; pods use all of the second one's."""
    return json.loads(as_json())  # type: ignore[no-any-return]


@cache
def as_json() -> str:
    return json.dumps(make_answers())


def make_answers() -> dict[str, dict[str, Any]]:
    ours = interface(
        1,
        more=[{"PrivateIpAddress": "10.0.1.31"}, {"PrivateIpAddress": "10.0.1.32"}],
        Ipv4Prefixes=[{"Ipv4Prefix": "10.0.1.64/28"}],
    )
    primary = interface(0, Ipv4Prefixes=[{"Ipv4Prefix": "10.0.1.48/28"}], TagSet=[])
    described = made("DescribeNetworkInterfaces", "NetworkInterfaces", primary, ours)
    subnets = made(
        "DescribeSubnets",
        "Subnets",
        {
            "SubnetId": "subnet-a",
            "VpcId": "vpc-1",
            "AvailabilityZone": "us-east-1a",
            "CidrBlock": "10.0.1.0/24",
            "AvailableIpAddressCount": 120,
            "Tags": [{"Key": "pods", "Value": "yes"}],
            "Ipv6CidrBlockAssociationSet": [
                {
                    "Ipv6CidrBlock": "2001:db8:1::/64",
                    "Ipv6CidrBlockState": {"State": "associated"},
                }
            ],
        },
    )
    types = made(
        "DescribeInstanceTypes",
        "InstanceTypes",
        {
            "NetworkInfo": {
                "MaximumNetworkInterfaces": 3,
                "Ipv4AddressesPerInterface": 10,
                "NetworkCards": [{"NetworkCardIndex": 0, "MaximumNetworkInterfaces": 3}],
            }
        },
    )
    created = interface(2, Attachment=None, Status="available")
    shape = model().operation_model("CreateNetworkInterface").output_shape
    return {
        "describe_network_interfaces": described,
        "describe_subnets": subnets,
        "describe_instance_types": types,
        "get_subnet_cidr_reservations": {
            "SubnetIpv4CidrReservations": [],
            "SubnetIpv6CidrReservations": [],
        },
        "create_network_interface": merged(sample(shape), {"NetworkInterface": created}),
        "attach_network_interface": {"AttachmentId": "eni-attach-2", "NetworkCardIndex": 0},
        "assign_private_ip_addresses": {
            "NetworkInterfaceId": "eni-1",
            "AssignedPrivateIpAddresses": [{"PrivateIpAddress": "10.0.1.33"}],
            "AssignedIpv4Prefixes": [{"Ipv4Prefix": "10.0.1.80/28"}],
        },
        "assign_ipv6_addresses": {"AssignedIpv6Prefixes": ["2001:db8:1:0:9::/80"]},
    }


class Tracked(dict[str, Any]):
    """An object that notes which of its fields are read."""

    def __init__(self, body: dict[str, Any], at: Path, touched: set[Path]) -> None:
        super().__init__({k: track(v, (*at, k), touched) for k, v in body.items()})
        self._at, self._touched = at, touched

    def __getitem__(self, key: str) -> Any:
        self._touched.add((*self._at, key))
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._touched.add((*self._at, key))
        return super().get(key, default)


def track(value: Any, at: Path, touched: set[Path]) -> Any:
    if isinstance(value, dict):
        return Tracked(value, at, touched)
    if isinstance(value, list):
        return [track(entry, (*at, i), touched) for i, entry in enumerate(value)]
    return value


class Scripted:
    """Makes no calls: answers as told, and notes what it was asked."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.told = told
        self.asked: Counter[str] = Counter()
        self.filters: list[Any] = []
        self.touched: set[Path] = set()
        self.track = False
        self.refuses = ""

    def __call__(self, operation: str, method: str, arguments: dict[str, Any]) -> Any:
        self.asked[method] += 1
        self.filters += arguments.get("Filters", [])
        if self.refuses:
            raise Ec2CallError(operation, self.refuses, "test", refused=True)
        if method == "describe_network_interfaces" and "available" in str(arguments["Filters"]):
            return {"NetworkInterfaces": []}
        answer = self.told.get(method, {})
        return track(answer, (method,), self.touched) if self.track else answer
