"""What the VPC asks of a connection, read of EC2 (the lab's, over HTTP), and with distrust."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

import pytest
from targets.test_ec2_contract import over_http

from lab.vpc import VpcChanges
from reconciler.diagnostics.vpc import Flow, VpcStep, follow
from reconciler.targets.ec2 import way as reader
from reconciler.targets.ec2.caller import Ec2CallError, InProcess
from reconciler.targets.ec2.calls import Calls
from reconciler.targets.ec2.way import Ways
from reconciler.targets.values import MalformedError

PEER = IPv4Address("10.100.0.10")


class Vpc:
    """The node's VPC, and a peered one of the same AWS account with a host."""

    def __init__(self, ec2: Any) -> None:
        self.ec2, self.client = ec2, ec2.client
        over_http(ec2)
        enis = self.client.describe_network_interfaces()["NetworkInterfaces"]
        mine = [e for e in enis if e.get("Attachment", {}).get("InstanceId") == ec2.instance_id]
        (self.eni,) = (e for e in mine if e["Attachment"]["DeviceIndex"] == 0)
        changes = VpcChanges(ec2.cloud, ec2.vpc_id)
        with ec2.cloud.lock:
            self.peering = changes.change("peering create", cidr="10.100.0.0/16", tag="shared")
        side = self.client.describe_vpc_peering_connections()["VpcPeeringConnections"][0]
        self.peer_vpc = side["AccepterVpcInfo"]["VpcId"]
        made = self.client.create_subnet(VpcId=self.peer_vpc, CidrBlock="10.100.0.0/24")
        self.peer_subnet = made["Subnet"]["SubnetId"]
        self.client.create_network_interface(SubnetId=self.peer_subnet, PrivateIpAddress=str(PEER))

    def table(self, vpc_id: str) -> str:
        found = self.client.describe_route_tables(
            Filters=[
                {"Name": "vpc-id", "Values": [vpc_id]},
                {"Name": "association.main", "Values": ["true"]},
            ]
        )
        return str(found["RouteTables"][0]["RouteTableId"])

    def route(self, vpc_id: str, cidr: str) -> None:
        self.client.create_route(
            RouteTableId=self.table(vpc_id),
            DestinationCidrBlock=cidr,
            VpcPeeringConnectionId=self.peering,
        )

    def steps(self) -> list[VpcStep]:
        way = Ways(Calls(InProcess("us-east-1"), lambda: 0.0)).look(
            self.eni["NetworkInterfaceId"], PEER
        )
        source = IPv4Address(self.eni["PrivateIpAddress"])
        return follow(Flow(source, PEER, 6, 443), way)

    def stops(self) -> list[str]:
        return [s.text for s in self.steps() if s.stops]


@pytest.fixture
def vpc(ec2: Any) -> Vpc:
    return Vpc(ec2)


def test_a_peered_host_is_reached_once_routes_lead_both_ways_and_its_group_lets_it_in(
    vpc: Vpc,
) -> None:
    ours, theirs = vpc.table(vpc.ec2.vpc_id), vpc.table(vpc.peer_vpc)
    said = vpc.stops()
    assert f"{ours} of {vpc.eni['SubnetId']} has no route to {PEER}: the VPC drops it" in said
    vpc.route(vpc.ec2.vpc_id, "10.100.0.0/16")
    said = vpc.stops()
    back = vpc.eni["PrivateIpAddress"]
    assert f"{theirs} of {vpc.peer_subnet} has no route to {back}: the VPC drops it" in said
    vpc.route(vpc.peer_vpc, "10.0.0.0/16")
    (closed,) = vpc.stops()  # a default group lets in what is in the same group
    assert closed.startswith("none of sg-")
    (group,) = vpc.client.describe_security_groups(
        Filters=[{"Name": "vpc-id", "Values": [vpc.peer_vpc]}]
    )["SecurityGroups"]
    vpc.client.authorize_security_group_ingress(
        GroupId=group["GroupId"],
        IpPermissions=[
            {
                "IpProtocol": "tcp",
                "FromPort": 443,
                "ToPort": 443,
                "IpRanges": [{"CidrIp": "10.0.0.0/16"}],
            }
        ],
    )
    assert [s for s in vpc.steps() if s.stops is not False] == []
    acls = vpc.client.describe_network_acls(
        Filters=[{"Name": "association.subnet-id", "Values": [vpc.peer_subnet]}]
    )["NetworkAcls"]
    vpc.client.create_network_acl_entry(
        NetworkAclId=acls[0]["NetworkAclId"],
        RuleNumber=50,
        Protocol="6",
        RuleAction="deny",
        Egress=False,
        CidrBlock="10.0.0.0/8",
        PortRange={"From": 443, "To": 443},
    )
    (denied,) = vpc.stops()
    assert denied.endswith(f"of {vpc.peer_subnet}, rule 50, does not let it in")


@pytest.mark.parametrize(
    "action", ["DescribeSecurityGroups", "DescribeNetworkAcls", "DescribeRouteTables"]
)
def test_what_may_not_be_read_is_named_and_the_rest_is_followed(vpc: Vpc, action: str) -> None:
    vpc.ec2.cloud.faults.set(denied=[action])
    way = Ways(Calls(InProcess("us-east-1"), lambda: 0.0)).look(
        vpc.eni["NetworkInterfaceId"], PEER
    )
    assert {u.partition(": ")[0] for u in way.unread} == {action}
    assert all("UnauthorizedOperation" in u for u in way.unread)
    parts = (way.ours.groups, way.ours.acl, way.ours.table)
    assert sum(part is None for part in parts) == 1


def test_an_eni_of_ours_that_may_not_be_described_is_an_error(vpc: Vpc) -> None:
    vpc.ec2.cloud.faults.set(denied=["DescribeNetworkInterfaces"])
    with pytest.raises(Ec2CallError):
        vpc.steps()


@pytest.mark.parametrize(
    ("decode", "body"),
    [
        (reader.decode_group, {"GroupId": "sg-1\n"}),
        (
            reader.decode_group,
            {"GroupId": "sg-1", "IpPermissions": [{"IpProtocol": "tcp", "IpRanges": [{}]}]},
        ),
        (reader.decode_group, {"GroupId": "sg-1", "IpPermissions": [{"IpProtocol": "999"}]}),
        (reader.decode_group, {"GroupId": "sg-1", "IpPermissions": [{}] * 1001}),
        (reader.decode_acl, {"NetworkAclId": "acl-1"}),
        (
            reader.decode_acl,
            {
                "NetworkAclId": "acl-1",
                "Entries": [{"RuleNumber": 0, "CidrBlock": "10.0.0.0/8", "Protocol": "-1"}],
            },
        ),
        (reader.decode_table, {"RouteTableId": "rtb-1", "Routes": [{"State": None}]}),
        (reader.decode_peering, {"VpcPeeringConnectionId": "pcx-1", "Status": {}}),
    ],
)
def test_an_answer_of_another_form_is_not_read(decode: Any, body: dict[str, Any]) -> None:
    with pytest.raises(MalformedError):
        decode(body)
