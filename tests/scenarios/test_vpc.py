"""The VPC changes under a running node."""

from __future__ import annotations

from typing import Any

import pytest
from waiting import until

from lab.topology import PEER_CIDR, PEER_HOST
from lab.traffic import Receiver, Stream, probe

pytestmark = pytest.mark.lab

NODE = "10.0.1.10"


def test_its_cidrs_are_excluded_as_they_come_and_go_and_nothing_is_cut(idle: Any) -> None:
    """What joins the VPC sees pods from then on; what leaves it sees the node again."""
    text = idle.config.read_text()
    idle.config.write_text(text + "reconcile: {resync: 1s}\n")
    idle.start()
    (vpc,) = idle.aws("describe_vpcs", Filters=[{"Name": "cidr", "Values": ["10.0.0.0/16"]}])[
        "Vpcs"
    ]
    pods = [idle.add() for _ in range(11)]
    by_device = {one.device: one for one in pods}
    peer = str(PEER_HOST)
    with Receiver(idle.lab.names.namespace("peer")):
        for one in (by_device[0], by_device[1]):
            where = one.namespace
            with Stream(where, peer) as before:
                assert before.source == NODE
                joined = idle.aws(
                    "associate_vpc_cidr_block", VpcId=vpc["VpcId"], CidrBlock=str(PEER_CIDR)
                )["CidrBlockAssociation"]
                until(lambda w=where, own=one.address: probe(w, peer).source == own, idle.log)
                with Stream(where, peer) as during:
                    assert before.exchange("the CIDR has joined")
                    idle.aws("disassociate_vpc_cidr_block", AssociationId=joined["AssociationId"])
                    until(lambda w=where: probe(w, peer).source == NODE, idle.log)
                    assert before.exchange("and left")
                    assert during.exchange("and left")
                    assert during.source == one.address
    assert idle.lab.drops() == []
