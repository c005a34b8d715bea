"""Secondary ENIs follow the primary's security groups: said before, one call for each, once."""

from __future__ import annotations

from dataclasses import replace

from builders import SUBNET, eni
from fake_cloud import FakeEc2
from simulation import Simulation

from reconciler.ipam.cloud import Limits
from reconciler.node import views

CALL = "ModifyNetworkInterfaceAttribute"


def test_diff_shows_what_follows_from_the_primarys_groups_and_each_eni_costs_one_call() -> None:
    held = [eni(0, 9, primary=SUBNET[10]), eni(1, 9), eni(2, 9), replace(eni(3, 9), owned=False)]
    sim = Simulation(
        FakeEc2(held, Limits(5, 10), SUBNET), warmPool={"addresses": {"warm": 27, "surplus": 0}}
    )
    for one in held[1:]:
        sim.netlink.plug(one.mac, f"eth{one.device_index}")
    for _ in range(3):
        sim.turn()
    before = sim.ec2.calls[CALL]
    sim.ec2.enis[0] = replace(sim.ec2.enis[0], security_groups=("sg-9", "sg-2"))
    sim.now += sim.document.reconcile.ec2_resync.total_seconds()

    planned = views.diff(sim.node, sim.document)["eni"].remaining.actions
    wanted = "aws ec2 modify-network-interface-attribute --network-interface-id"
    assert [str(a) for a in planned] == [
        f"{wanted} {one.eni_id} --groups sg-2 sg-9" for one in held[1:3]
    ]
    assert sim.ec2.calls[CALL] == before, "it was only shown"

    sim.turn()
    assert sim.ec2.calls[CALL] - before == 2
    followed = {e.eni_id: sorted(e.security_groups) for e in sim.ec2.enis[1:]}
    assert followed[held[1].eni_id] == followed[held[2].eni_id] == ["sg-2", "sg-9"]
    assert followed[held[3].eni_id] == sorted(held[3].security_groups), "another's"
    for _ in range(3):
        sim.turn()
    assert sim.ec2.calls[CALL] - before == 2
    assert views.diff(sim.node, sim.document)["eni"].remaining.actions == ()
