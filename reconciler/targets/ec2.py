"""EC2: the door to ``boto3`` and ``botocore``.

Endpoint, credentials and proxies follow the SDK's own rules (``AWS_ENDPOINT_URL_EC2`` and the
rest), so whatever an operator knows of them holds here. The SDK never retries for us: the loop
looks again before it repeats anything, and only a look can tell whether a call whose answer was
lost has happened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.parsers import ResponseParserError

from reconciler.core.datapath import IpNetwork
from reconciler.core.facts import Eni
from reconciler.domains.eni import (
    CREATED_TAG,
    INSTANCE_TAG,
    UNMANAGED_TAG,
    AddEni,
    AssignAddresses,
    AttachEni,
    Cloud,
    EniAction,
    Limits,
    Pool,
    TieToInstance,
)
from reconciler.errors import ApplyError, ObserveError

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_ec2.type_defs import NetworkInterfaceTypeDef

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 20
"""Seconds; EC2 answers in well under one, and a hung call must not hold the loop for a minute."""

PAGE_SIZE = 100
"""Items per page: unpaginated DescribeNetworkInterfaces is blocked in large accounts
(amazon-vpc-resource-controller-k8s #188)."""

HOPELESS = {
    "UnauthorizedOperation",
    "AuthFailure",
    "InvalidClientTokenId",
    "OptInRequired",
    "IdempotentParameterMismatch",
}
"""Codes where the same call fails the same way until a person acts."""


class Ec2:
    """The ENIs of one instance.

    Attributes:
        calls: EC2 calls made since the start, by action; for ``status`` and the benchmarks.
    """

    def __init__(self, instance_id: str, region: str) -> None:
        self._instance_id = instance_id
        self._region = region
        self._client: EC2Client | None = None
        self._limits: dict[str, Limits] = {}
        self.calls: Counter[str] = Counter()

    def observe(self, desired: Iterable[Pool]) -> Cloud:
        """Describe the instance's ENIs, those of ours that are attached to nothing, their subnets.

        Raises:
            ObserveError: EC2 did not answer, refused, or does not know the instance type.
        """
        instance_type = next(iter(desired)).node.instance_type
        try:
            interfaces = self._interfaces()
            subnets = self._subnets(sorted({i["SubnetId"] for i in interfaces}))
            limits = self._instance_limits(instance_type)
        except IndexError as error:
            raise ObserveError("EC2", f"it does not know {instance_type}") from error
        except ClientError as error:
            code, message = _said(error)
            raise ObserveError("EC2", f"{error.operation_name}: {code}: {message}") from error
        except (BotoCoreError, ResponseParserError) as error:
            # Not EC2's own words: a proxy's page, for one.
            raise ObserveError("EC2", f"{type(error).__name__}: {str(error)[:256]}") from error
        try:
            enis = [_decode(i, subnets[i["SubnetId"]][0], self._instance_id) for i in interfaces]
        except (LookupError, ValueError) as error:
            # Half an answer is none: eventual consistency can show an ENI before its subnet.
            raise ObserveError("EC2", f"its answer lacks {error}") from error
        enis.sort(key=lambda e: (e.device_index is None, e.device_index or 0, e.eni_id))
        return Cloud(
            enis=tuple(enis),
            limits=limits,
            free_addresses={subnet: free for subnet, (_, free) in subnets.items()},
        )

    def apply(self, actions: Sequence[EniAction]) -> tuple[ApplyError, ...]:
        """Carry out actions in order; one that fails does not stop the others."""
        failures = []
        for action in actions:
            try:
                self._apply_one(action)
            except (ClientError, BotoCoreError, ResponseParserError) as error:
                failures.append(_translate(action, error))
        return tuple(failures)

    def _apply_one(self, action: EniAction) -> None:
        match action:
            case AddEni():
                eni_id = self._create(action)
                attachment = self._attach(eni_id, action.instance_id, action.device_index)
                self._tie(eni_id, attachment)
            case AttachEni():
                attachment = self._attach(action.eni_id, action.instance_id, action.device_index)
                self._tie(action.eni_id, attachment)
            case TieToInstance():
                self._tie(action.eni_id, action.attachment_id)
            case AssignAddresses():
                self._call(
                    "assign_private_ip_addresses",
                    NetworkInterfaceId=action.eni_id,
                    SecondaryPrivateIpAddressCount=action.count,
                )

    def _create(self, action: AddEni) -> str:
        created = datetime.now(UTC).replace(microsecond=0).isoformat()
        tags = [*action.tags, (CREATED_TAG, created)]
        answer = self._call(
            "create_network_interface",
            SubnetId=action.subnet_id,
            Groups=list(action.security_groups),
            Description=f"node-network {action.instance_id}",
            SecondaryPrivateIpAddressCount=action.addresses,
            ClientToken=action.client_token,
            TagSpecifications=[
                {
                    "ResourceType": "network-interface",
                    "Tags": [{"Key": key, "Value": value} for key, value in tags],
                }
            ],
        )
        return str(answer["NetworkInterface"]["NetworkInterfaceId"])

    def _attach(self, eni_id: str, instance_id: str, device_index: int) -> str:
        answer = self._call(
            "attach_network_interface",
            NetworkInterfaceId=eni_id,
            InstanceId=instance_id,
            DeviceIndex=device_index,
        )
        return str(answer["AttachmentId"])

    def _tie(self, eni_id: str, attachment_id: str) -> None:
        self._call(
            "modify_network_interface_attribute",
            NetworkInterfaceId=eni_id,
            Attachment={"AttachmentId": attachment_id, "DeleteOnTermination": True},
        )

    def _interfaces(self) -> list[NetworkInterfaceTypeDef]:
        """Two questions, because EC2 joins filters by AND: attached here, or ours and free."""
        attached = self._pages(
            "describe_network_interfaces",
            "NetworkInterfaces",
            Filters=[{"Name": "attachment.instance-id", "Values": [self._instance_id]}],
        )
        free = self._pages(
            "describe_network_interfaces",
            "NetworkInterfaces",
            Filters=[
                {"Name": f"tag:{INSTANCE_TAG}", "Values": [self._instance_id]},
                {"Name": "status", "Values": ["available"]},
            ],
        )
        return list({i["NetworkInterfaceId"]: i for i in [*free, *attached]}.values())

    def _subnets(self, subnet_ids: list[str]) -> dict[str, tuple[IpNetwork, int]]:
        """Return CIDR and free addresses by subnet id."""
        if not subnet_ids:
            return {}
        answer = self._call("describe_subnets", SubnetIds=subnet_ids)
        return {
            s["SubnetId"]: (ip_network(s["CidrBlock"]), int(s["AvailableIpAddressCount"]))
            for s in answer["Subnets"]
        }

    def _instance_limits(self, instance_type: str) -> Limits:
        """Ask once: the limits of a type never change."""
        if instance_type not in self._limits:
            answer = self._call("describe_instance_types", InstanceTypes=[instance_type])
            info = answer["InstanceTypes"][0]["NetworkInfo"]
            self._limits[instance_type] = Limits(
                enis=int(info["MaximumNetworkInterfaces"]),
                addresses_per_eni=int(info["Ipv4AddressesPerInterface"]),
            )
        return self._limits[instance_type]

    def _pages(self, method: str, result: str, **arguments: Any) -> list[Any]:
        items: list[Any] = []
        token: dict[str, str] = {}
        while True:
            answer = self._call(method, MaxResults=PAGE_SIZE, **arguments, **token)
            items += answer[result]
            if not answer.get("NextToken"):
                return items
            token = {"NextToken": answer["NextToken"]}

    def _call(self, method: str, **arguments: Any) -> Any:
        if self._client is None:
            self._client = _make_client(self._region)
        function: Callable[..., Any] = getattr(self._client, method)
        self.calls[_operation(method)] += 1
        return function(**arguments)


def _make_client(region: str) -> EC2Client:
    return boto3.session.Session().client(
        "ec2",
        region_name=region,
        config=Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries={"total_max_attempts": 1},
        ),
    )


def _operation(method: str) -> str:
    return "".join(word.capitalize() for word in method.split("_"))


def _decode(interface: NetworkInterfaceTypeDef, cidr: IpNetwork, instance_id: str) -> Eni:
    attachment = interface.get("Attachment")
    here = attachment if attachment and attachment.get("InstanceId") == instance_id else None
    index = here["DeviceIndex"] if here else None
    tags = {t["Key"]: t["Value"] for t in interface.get("TagSet", [])}
    ours = tags.get(INSTANCE_TAG) == instance_id and tags.get(UNMANAGED_TAG) != "true"
    addresses = interface.get("PrivateIpAddresses", [])
    return Eni(
        eni_id=interface["NetworkInterfaceId"],
        mac=interface["MacAddress"].lower(),
        device_index=index,
        status=here["Status"] if here else interface["Status"],
        subnet_id=interface["SubnetId"],
        subnet_cidr=cidr,
        primary=ip_address(interface["PrivateIpAddress"]),
        secondaries=tuple(
            sorted(ip_address(a["PrivateIpAddress"]) for a in addresses if not a.get("Primary"))
        ),
        security_groups=tuple(sorted(g["GroupId"] for g in interface.get("Groups", []))),
        attachment_id=here["AttachmentId"] if here else None,
        delete_on_termination=bool(attachment and attachment.get("DeleteOnTermination")),
        # The primary is part of the instance; nobody else can own it.
        owned=ours or index == 0,
    )


def _said(error: ClientError) -> tuple[str, str]:
    """Return code and message; an answer that is not EC2's own may have neither."""
    body = error.response.get("Error", {})
    return str(body.get("Code", "Unknown")), str(body.get("Message", error))[:256]


def _translate(
    action: EniAction, error: ClientError | BotoCoreError | ResponseParserError
) -> ApplyError:
    if isinstance(error, ClientError):
        code, message = _said(error)
        failure = ApplyError(str(action), code, message, retryable=code not in HOPELESS)
    else:
        # The call may have happened: the next look at EC2 tells.
        lost = isinstance(error, HTTPClientError | ResponseParserError)
        reason = "AnswerLost" if lost else type(error).__name__
        failure = ApplyError(str(action), reason, str(error)[:256])
    failure.__cause__ = error
    return failure
