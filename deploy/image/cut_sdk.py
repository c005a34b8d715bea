"""Leaves of the AWS SDK's data what EC2 needs: ``python3 cut_sdk.py SITE-PACKAGES``.

botocore ships the models of four hundred services, which is most of its size. What stays is EC2's
newest model, and what the credential chain may call to get credentials: STS for a role by a
web identity or another role, SSO and sign-in for people who exec into the container.

EC2's model has 830 operations, of which the reconciler calls 21. The SDK reads all of it and makes
a method of each operation whenever it starts: a third of the time and most of the memory. Its list
of endpoints names those of three hundred services in every region: 7 MiB in each process.
"""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILES = ("_retry", "endpoints", "partitions", "sdk-default-configuration")
"""What every client reads, without its endings."""

OPERATIONS = (
    *("AssignIpv6Addresses", "AssignPrivateIpAddresses", "AttachNetworkInterface"),
    *("CreateNetworkInterface", "CreateTags", "DeleteNetworkInterface", "DeleteTags"),
    *("DescribeInstanceTypes", "DescribeInstances", "DescribeManagedPrefixLists"),
    *("DescribeNetworkAcls", "DescribeNetworkInterfaces", "DescribeRouteTables"),
    *("DescribeSecurityGroups", "DescribeSubnets", "DescribeVpcPeeringConnections"),
    *("DetachNetworkInterface", "GetManagedPrefixListEntries", "GetSubnetCidrReservations"),
    *("ModifyNetworkInterfaceAttribute", "UnassignPrivateIpAddresses"),
)
"""Of EC2. A test compares them with what is called."""

SERVICES = ("ec2", "signin", "sso", "sso-oidc", "sts")
ENDPOINTS = ("ec2", "oidc", "portal.sso", "signin", "sts")
"""The same services as the list of endpoints calls them: ``endpointPrefix`` of their models."""


def cut(site_packages: Path) -> None:
    """Remove what is not needed from botocore's and boto3's data.

    Raises:
        FileNotFoundError: there is no botocore, or something that is needed is not there.
    """
    data = site_packages / "botocore/data"
    for name in FILES:
        if not list(data.glob(f"{name}.json*")):
            raise FileNotFoundError(f"{data} has no {name}")
    for service in SERVICES:
        *old, newest = sorted(p for p in (data / service).iterdir() if p.is_dir())
        for version in old:
            shutil.rmtree(version)
        # An example says how a call is written, and is no part of the model.
        for examples in newest.glob("examples-*"):
            examples.unlink()
    (model,) = (data / "ec2").glob("*/service-2.json.gz")
    cut_model(model)
    cut_endpoints(data / "endpoints.json")
    for path in data.iterdir():
        if path.is_dir() and path.name not in SERVICES:
            shutil.rmtree(path)
        elif path.is_file() and path.name.partition(".")[0] not in FILES:
            path.unlink()
    # Models of boto3's "resources"; only its client is used.
    for directory in ("data", "examples"):
        shutil.rmtree(site_packages / "boto3" / directory, ignore_errors=True)


def cut_model(path: Path) -> None:
    """Leave of a model our operations, and the shapes that they reach; no documentation.

    Raises:
        KeyError: the model lacks an operation.
    """
    model = json.loads(gzip.decompress(path.read_bytes()))
    operations = {name: model["operations"][name] for name in OPERATIONS}
    shapes: dict[str, Any] = {}
    waiting = list(shapes_in(operations))
    while waiting:
        name = waiting.pop()
        if name not in shapes:
            shapes[name] = model["shapes"][name]
            waiting += shapes_in(shapes[name])
    ordered = {name: shapes[name] for name in sorted(shapes)}
    cut = without_documentation({**model, "operations": operations, "shapes": ordered})
    # Of the same model the same bytes: the image is reproducible.
    path.write_bytes(gzip.compress(json.dumps(cut).encode(), mtime=0))


def cut_endpoints(path: Path) -> None:
    """Leave of the endpoints those of our services, in every region."""
    endpoints = json.loads(path.read_bytes())
    for partition in endpoints["partitions"]:
        services = partition["services"]
        partition["services"] = {name: services[name] for name in ENDPOINTS if name in services}
    path.write_text(json.dumps(endpoints))


def shapes_in(value: Any) -> Iterator[str]:
    """Yield the shapes that a part of a model names."""
    if isinstance(value, dict):
        if isinstance(name := value.get("shape"), str):
            yield name
        for inner in value.values():
            yield from shapes_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from shapes_in(inner)


def without_documentation(value: Any) -> Any:
    """Return a part of a model without its texts for people."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k != "documentation" or not isinstance(v, str)}
        return {k: without_documentation(v) for k, v in kept.items()}
    return [without_documentation(v) for v in value] if isinstance(value, list) else value


if __name__ == "__main__":
    cut(Path(sys.argv[1]))
