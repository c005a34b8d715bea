"""What EC2 tells the packet world, and when; calls over HTTP, a recorder for a fabric."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from lab.ec2.model import Backend
from lab.wire import EniView


class Recorder:
    """A wire that writes down what it is told, and what EC2 would say at that moment."""

    def __init__(self, cloud: Any) -> None:
        self._cloud = cloud
        self.told: list[tuple[str, EniView]] = []
        self.locked: list[bool] = []

    def plug(self, eni: EniView) -> None:
        self._note("plug", eni)

    def unplug(self, eni: EniView) -> None:
        self._note("unplug", eni)

    def readdress(self, eni: EniView) -> None:
        self._note("readdress", eni)

    def of(self, eni_id: str) -> list[str]:
        return [word for word, eni in self.told if eni.eni_id == eni_id]

    def last(self, eni_id: str) -> EniView:
        return [eni for _, eni in self.told if eni.eni_id == eni_id][-1]

    def _note(self, word: str, eni: EniView) -> None:
        self.told.append((word, eni))
        free: list[bool] = []

        def try_lock() -> None:
            free.append(self._cloud.lock.acquire(blocking=False))
            if free[0]:
                self._cloud.lock.release()

        other = threading.Thread(target=try_lock)
        other.start()
        other.join()
        self.locked.append(not free[0])


@pytest.fixture
def wire(ec2: Any, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder(ec2.cloud)
    monkeypatch.setattr(ec2.cloud, "wire", recorder)
    monkeypatch.setattr(Backend, "wire", recorder)
    return recorder


@pytest.fixture
def timers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What EC2 does later happens when the test says so."""
    waiting: list[Any] = []
    monkeypatch.setattr(Backend, "later", lambda self, delay_s, what: waiting.append(what))
    return waiting


def create(ec2: Any, **arguments: Any) -> str:
    made = ec2.client.create_network_interface(SubnetId=ec2.subnets["nodes-a"], **arguments)
    return str(made["NetworkInterface"]["NetworkInterfaceId"])


def attach(ec2: Any, eni: str, index: int = 1) -> str:
    answer = ec2.client.attach_network_interface(
        NetworkInterfaceId=eni, InstanceId=ec2.instance_id, DeviceIndex=index
    )
    return str(answer["AttachmentId"])


def status(ec2: Any, eni: str) -> str:
    answer = ec2.client.describe_network_interfaces(NetworkInterfaceIds=[eni])
    return str(answer["NetworkInterfaces"][0].get("Attachment", {}).get("Status", "available"))


def test_an_unattached_eni_is_no_business_of_the_wire(ec2, wire):
    eni = create(ec2)
    ec2.client.assign_private_ip_addresses(
        NetworkInterfaceId=eni, SecondaryPrivateIpAddressCount=1
    )
    ec2.client.delete_network_interface(NetworkInterfaceId=eni)
    assert wire.told == []


def test_launching_plugs_the_primary_with_its_address_and_device(ec2, wire):
    spec = {"DeviceIndex": 0, "SubnetId": ec2.subnets["hosts"], "PrivateIpAddress": "10.0.9.10"}
    made = ec2.client.run_instances(
        ImageId="ami-12c6146b",
        InstanceType="t3.micro",
        MinCount=1,
        MaxCount=1,
        NetworkInterfaces=[spec],
    )
    ((word, eni),) = wire.told
    assert word == "plug"
    assert (eni.device_index, str(eni.primary), str(eni.subnet_cidr)) == (
        0,
        "10.0.9.10",
        "10.0.9.0/24",
    )
    assert eni.instance_id == made["Instances"][0]["InstanceId"]
    assert next(e for e in ec2.cloud.enis() if e.eni_id == eni.eni_id).delete_on_termination


def test_attaching_plugs_and_detaching_unplugs_once(ec2, wire):
    eni = create(ec2, SecondaryPrivateIpAddressCount=2, Ipv4PrefixCount=1)
    attachment = attach(ec2, eni)
    assert wire.of(eni) == ["plug"]
    plugged = wire.last(eni)
    assert (plugged.instance_id, plugged.device_index) == (ec2.instance_id, 1)
    assert (len(plugged.addresses), len(plugged.prefixes)) == (3, 1)
    assert plugged.addresses[0] == plugged.primary
    ec2.client.detach_network_interface(AttachmentId=attachment)
    assert wire.of(eni) == ["plug", "unplug"]
    assert wire.last(eni).device_index == 1, "the wire must know which link goes"


@pytest.mark.usefixtures("timers")
def test_a_refused_attachment_plugs_nothing(ec2, wire):
    eni = create(ec2)
    with pytest.raises(ec2.client.exceptions.ClientError):
        attach(ec2, eni, 0)
    assert wire.told == []


def test_the_link_is_there_before_ec2_says_attached(ec2, wire, timers):
    ec2.cloud.faults.set(attachDelaySeconds=1)
    eni = create(ec2)
    attach(ec2, eni)
    assert (wire.of(eni), status(ec2, eni)) == ([], "attaching")
    with ec2.cloud.lock:
        timers.pop()()
    assert wire.last(eni).status == "attaching", "as EC2 saw it when the link was made"
    assert (wire.of(eni), status(ec2, eni)) == (["plug"], "attached")


def test_the_link_stays_until_a_slow_detachment_is_done(ec2, wire, timers):
    eni = create(ec2)
    attachment = attach(ec2, eni)
    ec2.cloud.faults.set(detachDelaySeconds=1)
    ec2.client.detach_network_interface(AttachmentId=attachment)
    assert (wire.of(eni), status(ec2, eni)) == (["plug"], "detaching")
    with ec2.cloud.lock:
        timers.pop()()
    assert (wire.of(eni), status(ec2, eni)) == (["plug", "unplug"], "available")


def test_asking_twice_for_a_slow_detachment_unplugs_once(ec2, wire, timers):
    eni = create(ec2)
    attachment = attach(ec2, eni)
    ec2.cloud.faults.set(detachDelaySeconds=1)
    for _ in range(2):
        ec2.client.detach_network_interface(AttachmentId=attachment)
    for finish in timers:
        finish()
    assert wire.of(eni) == ["plug", "unplug"]


def test_a_slow_attachment_that_was_detached_meanwhile_plugs_nothing(ec2, wire, timers):
    ec2.cloud.faults.set(attachDelaySeconds=1)
    eni = create(ec2)
    ec2.client.detach_network_interface(AttachmentId=attach(ec2, eni))
    timers.pop()()
    assert "plug" not in wire.of(eni)
    assert status(ec2, eni) == "available"


def test_every_change_of_an_attached_enis_addresses_is_told(ec2, wire):
    eni = create(ec2)
    attach(ec2, eni)
    ec2.client.assign_private_ip_addresses(
        NetworkInterfaceId=eni, PrivateIpAddresses=["10.0.1.77"]
    )
    assert "10.0.1.77" in map(str, wire.last(eni).addresses)
    prefix = ec2.client.assign_private_ip_addresses(NetworkInterfaceId=eni, Ipv4PrefixCount=1)
    held = prefix["AssignedIpv4Prefixes"][0]["Ipv4Prefix"]
    assert [str(p) for p in wire.last(eni).prefixes] == [held]
    ec2.client.unassign_private_ip_addresses(NetworkInterfaceId=eni, Ipv4Prefixes=[held])
    assert wire.last(eni).prefixes == ()
    ec2.client.unassign_private_ip_addresses(
        NetworkInterfaceId=eni, PrivateIpAddresses=["10.0.1.77"]
    )
    assert len(wire.last(eni).addresses) == 1
    ec2.client.modify_network_interface_attribute(
        NetworkInterfaceId=eni, SourceDestCheck={"Value": False}
    )
    assert wire.last(eni).source_dest_check is False
    assert wire.of(eni) == ["plug"] + ["readdress"] * 5


def test_an_address_that_changes_its_eni_is_told_for_both(ec2, wire):
    one, two = create(ec2, PrivateIpAddresses=[{"PrivateIpAddress": "10.0.1.77"}]), create(ec2)
    attach(ec2, one, 1)
    attach(ec2, two, 2)
    wire.told.clear()
    ec2.client.assign_private_ip_addresses(
        NetworkInterfaceId=two, PrivateIpAddresses=["10.0.1.77"], AllowReassignment=True
    )
    told = [(eni.eni_id, "10.0.1.77" in map(str, eni.addresses)) for _, eni in wire.told]
    assert told == [(one, False), (two, True)], "never on both at a time"


def test_a_refused_assignment_tells_nothing(ec2, wire):
    eni = create(ec2)
    attach(ec2, eni)
    wire.told.clear()
    with pytest.raises(ec2.client.exceptions.ClientError):
        ec2.client.assign_private_ip_addresses(
            NetworkInterfaceId=eni, PrivateIpAddresses=["10.0.2.77"]
        )
    assert wire.told == []


def test_an_efa_only_eni_has_no_link_and_a_trunk_has_one(ec2, wire):
    efa, trunk = create(ec2, InterfaceType="efa-only"), create(ec2, InterfaceType="trunk")
    attachment = attach(ec2, efa, 1)
    attach(ec2, trunk, 2)
    ec2.client.modify_network_interface_attribute(
        NetworkInterfaceId=efa, SourceDestCheck={"Value": False}
    )
    assert status(ec2, efa) == "attached"
    assert (wire.of(efa), wire.of(trunk)) == ([], ["plug"])
    ec2.client.detach_network_interface(AttachmentId=attachment)
    assert status(ec2, efa) == "available"


def test_an_eni_that_died_with_its_instance_while_attaching_is_not_plugged(ec2, wire, timers):
    ec2.cloud.faults.set(attachDelaySeconds=1)
    eni = create(ec2)
    ec2.client.modify_network_interface_attribute(
        NetworkInterfaceId=eni,
        Attachment={"AttachmentId": attach(ec2, eni), "DeleteOnTermination": True},
    )
    ec2.client.terminate_instances(InstanceIds=[ec2.instance_id])
    timers.pop()()
    assert "plug" not in wire.of(eni)


def test_terminating_unplugs_every_eni_also_what_stays(ec2, wire):
    stays = create(ec2)
    attach(ec2, stays)
    primary = next(e.eni_id for e in ec2.cloud.enis() if e.device_index == 0)
    wire.told.clear()
    ec2.client.terminate_instances(InstanceIds=[ec2.instance_id])
    assert sorted((word, eni.eni_id) for word, eni in wire.told) == sorted(
        [("unplug", primary), ("unplug", stays)]
    )
    assert [e.eni_id for e in ec2.cloud.enis()] == [stays]


def test_nobody_else_acts_on_ec2_while_the_wire_does(ec2, wire):
    eni = create(ec2)
    attachment = attach(ec2, eni)
    ec2.client.assign_private_ip_addresses(
        NetworkInterfaceId=eni, SecondaryPrivateIpAddressCount=1
    )
    ec2.client.detach_network_interface(AttachmentId=attachment)
    ec2.client.terminate_instances(InstanceIds=[ec2.instance_id])
    assert wire.locked == [True] * 4


def test_an_injected_error_before_the_effect_leaves_the_wire_alone(ec2, wire):
    eni = create(ec2)
    lost = {"action": "AttachNetworkInterface", "code": "InternalError"}
    ec2.cloud.faults.set(errors=[lost])
    with pytest.raises(ec2.client.exceptions.ClientError):
        attach(ec2, eni)
    assert wire.told == []
    attach(ec2, eni)
    assert wire.of(eni) == ["plug"]


def test_an_attachment_whose_answer_was_lost_is_plugged(ec2, wire):
    eni = create(ec2)
    lost = {"action": "AttachNetworkInterface", "code": "InternalError", "when": "after"}
    ec2.cloud.faults.set(errors=[lost])
    with pytest.raises(ec2.client.exceptions.ClientError):
        attach(ec2, eni)
    assert (wire.of(eni), status(ec2, eni)) == (["plug"], "attached")
