"""The instance metadata service, version 2, for every instance of the lab.

It knows who asks by the source address, as the real one knows it by the interface.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from typing import Any

from lab.ec2 import Cloud, InstanceView
from lab.wire import EniView

MAX_TTL_S = 21600
"""Seconds; the longest life of a token (EC2 user guide, "Use IMDSv2")."""

ROLE = "node-network-lab"

TOKEN_PATH = "/latest/api/token"

TTL_HEADER = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"
"""Real metadata repeats a token's life in its answer, and SDKs take no token without it
(aws-sdk-go-v2 ``feature/ec2/imds``)."""

TTL_VARIABLE = "HTTP_X_AWS_EC2_METADATA_TOKEN_TTL_SECONDS"
"""The same header of a request, as WSGI calls it."""

Tree = dict[str, Any]


class Imds:
    """A WSGI application."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._lock = threading.Lock()
        self._tokens: dict[str, float] = {}

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Answer one request."""
        if how := self._cloud.faults.get("hostileImds"):
            return _misbehave(how, start_response)
        status, body = self._answer(environ)
        content = body.encode()
        headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(content)))]
        if environ["PATH_INFO"] == TOKEN_PATH and status.startswith("200"):
            headers.append((TTL_HEADER, environ[TTL_VARIABLE]))
        start_response(status, headers)
        return [content]

    def _answer(self, environ: dict[str, Any]) -> tuple[str, str]:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        if path == TOKEN_PATH:
            return self._token(method, environ.get(TTL_VARIABLE, ""))
        if method != "GET":
            return "405 Method Not Allowed", ""
        if not self._is_valid(environ.get("HTTP_X_AWS_EC2_METADATA_TOKEN", "")):
            return "401 Unauthorized", ""
        caller = self._cloud.eni_by_address(IPv4Address(environ["REMOTE_ADDR"]))
        if caller is None or caller.instance_id is None or not path.startswith("/latest/"):
            return "404 Not Found", ""
        found = _find(self._tree(caller.instance_id), path.removeprefix("/latest/"))
        return ("200 OK", found) if found is not None else ("404 Not Found", "")

    def _token(self, method: str, ttl: str) -> tuple[str, str]:
        if method != "PUT":
            return "405 Method Not Allowed", ""
        if not ttl.isdigit() or not 1 <= int(ttl) <= MAX_TTL_S:
            return "400 Bad Request", ""
        token = secrets.token_urlsafe(32)
        now = time.monotonic()
        with self._lock:
            self._tokens = {t: end for t, end in self._tokens.items() if end > now}
            self._tokens[token] = now + int(ttl)
        return "200 OK", token

    def _is_valid(self, token: str) -> bool:
        with self._lock:
            return self._tokens.get(token, 0.0) > time.monotonic()

    def _tree(self, instance_id: str) -> Tree:
        faults = self._cloud.faults
        views = self._cloud.enis(lag_s=faults.get("staleImdsSeconds"))
        enis = [e for e in views if e.instance_id == instance_id and e.status == "attached"]
        instance = self._cloud.instance(instance_id)
        primary = next((e for e in enis if e.device_index == 0 and not e.network_card), None)
        if primary is None:
            return {}
        limit = faults.get("truncateImds")
        told = [] if faults.get("emptyImds") else enis
        return {
            "meta-data": {
                "ami-id": instance.image_id,
                "hostname": f"ip-{str(primary.primary).replace('.', '-')}.ec2.internal",
                "iam": {"security-credentials": {ROLE: _credentials()}},
                "instance-id": instance_id,
                "instance-type": instance.instance_type,
                "local-ipv4": str(primary.primary),
                "mac": primary.mac,
                "network": {
                    "interfaces": {"macs": {e.mac: _interface(e, instance, limit) for e in told}}
                },
                "placement": {
                    "availability-zone": instance.availability_zone,
                    "region": instance.region,
                },
            },
            "dynamic": {
                "instance-identity": {
                    "document": json.dumps(
                        {
                            "instanceId": instance_id,
                            "instanceType": instance.instance_type,
                            "region": instance.region,
                            "availabilityZone": instance.availability_zone,
                            "privateIp": str(primary.primary),
                        }
                    )
                }
            },
        }


def _misbehave(how: str, start_response: Callable[..., Any]) -> Iterator[bytes]:
    """Answer with more than anybody can take, or more slowly than anybody can wait."""
    length = [("Content-Length", str(10**12))]
    filler = [(f"X-{number}", "x" * 60_000) for number in range(90)]
    start_response("200 OK", filler if how == "headers" else length)
    while True:
        time.sleep(1.0 if how == "slow" else 0.0)
        yield b"x" * (1 if how == "slow" else 1 << 16)


def _interface(eni: EniView, instance: InstanceView, limit: int | None) -> Tree:
    tree: Tree = {
        "device-number": str(eni.device_index),
        "interface-id": eni.eni_id,
        "mac": eni.mac,
        "network-card": str(eni.network_card),
        "owner-id": eni.owner_id,
        "security-group-ids": "\n".join(eni.groups),
        "subnet-id": eni.subnet_id,
        "subnet-ipv4-cidr-block": str(eni.subnet_cidr),
        "vpc-id": eni.vpc_id,
        "vpc-ipv4-cidr-block": instance.vpc_cidrs[0],
        "vpc-ipv4-cidr-blocks": "\n".join(instance.vpc_cidrs),
    }
    if instance.vpc_ipv6_cidrs:
        tree["vpc-ipv6-cidr-blocks"] = "\n".join(instance.vpc_ipv6_cidrs)
    # A key without a value does not exist: real IMDS answers 404, also for the addresses of an
    # EFA-only ENI (aws/amazon-vpc-cni-k8s#3047).
    if eni.addresses:
        tree["local-ipv4s"] = "\n".join(map(str, eni.addresses[:limit]))
    if eni.prefixes:
        tree["ipv4-prefix"] = "\n".join(map(str, eni.prefixes[:limit]))
    if eni.ipv6_addresses:
        tree["ipv6s"] = "\n".join(map(str, eni.ipv6_addresses[:limit]))
    if eni.ipv6_prefixes:
        tree["ipv6-prefix"] = "\n".join(map(str, eni.ipv6_prefixes[:limit]))
    return tree


def _credentials() -> str:
    now = datetime.now(UTC)
    return json.dumps(
        {
            "Code": "Success",
            "Type": "AWS-HMAC",
            "AccessKeyId": "ASIALABLABLABLABLAB0",
            "SecretAccessKey": "no-secret-in-a-lab",
            "Token": "no-token-in-a-lab",
            "LastUpdated": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "Expiration": (now + timedelta(hours=6)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
    )


def _find(tree: Tree, path: str) -> str | None:
    """Return a key's text, or the listing of a directory with slashes after sub-directories."""
    node: Any = tree
    for part in filter(None, path.split("/")):
        if not isinstance(node, dict) or part not in node:
            return None
        node = node[part]
    if isinstance(node, dict):
        return "\n".join(f"{k}/" if isinstance(v, dict) else k for k, v in node.items())
    return str(node)
