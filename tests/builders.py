"""Values for tests: documents, nodes, ENIs, attachments, and Hypothesis strategies for them."""

from __future__ import annotations

from ipaddress import IPv4Network, ip_address, ip_network
from typing import Any

from hypothesis import strategies as st

from reconciler.core.attachment import Attachment, AttachmentKey, Intent, IntentState, veth_name
from reconciler.core.datapath import IpAddress
from reconciler.core.facts import Eni, Node
from reconciler.domains.inputs import HostState, Inputs, KernelState
from reconciler.ipam.identity import EgressIdentity
from reconciler.ipam.pool_status import Ec2Inputs
from schemas.document import NodeNetwork

BEGIN_S = 1.7e9
"""Where simulated clocks begin, in 2023: Linux sets no clock to before 1970 (clock_settime(2)), so
none that is set back reads less than 0, which says "never" in records."""

SUBNET = IPv4Network("10.0.1.0/24")
VPC = (ip_network("10.0.0.0/16"), ip_network("100.64.0.0/16"))


def document(**parts: Any) -> NodeNetwork:
    """A valid document with some parts set."""
    head = {"apiVersion": "node-network/v1alpha1", "kind": "NodeNetwork"}
    return NodeNetwork.model_validate(head | parts)


def node(**fields: Any) -> Node:
    """An m5.large in zone a."""
    values: dict[str, Any] = {
        "instance_id": "i-1",
        "instance_type": "m5.large",
        "availability_zone": "us-east-1a",
        "primary_mac": mac(0),
        "vpc_cidrs": VPC,
    }
    return Node(**(values | fields))


def mac(index: int) -> str:
    """MAC of the ENI at a device index."""
    return f"02:aa:00:00:00:{index:02x}"


def eni(index: int | None = 0, secondaries: int = 9, **fields: Any) -> Eni:
    """An attached ENI of ours with so many pod addresses."""
    number = index or 0
    first = 10 + 20 * number
    values: dict[str, Any] = {
        "eni_id": f"eni-{number}",
        "mac": mac(number),
        "device_index": index,
        "status": "attached" if index is not None else "available",
        "subnet_id": "subnet-a",
        "subnet_cidr": SUBNET,
        "primary": SUBNET[first],
        "secondaries": tuple(SUBNET[first + 1 + i] for i in range(secondaries)),
        "security_groups": ("sg-1",),
        "attachment_id": f"eni-attach-{number}" if index is not None else None,
        "is_primary": index == 0,
    }
    return Eni(**(values | fields))


def key(number: int) -> AttachmentKey:
    """Identity of the pod of that number."""
    return AttachmentKey(f"pod{number}", "eth0")


def attachment(number: int, device: int = 0, netns: str = "", **fields: Any) -> Attachment:
    """A pod bound to an address of an ENI; ``address`` stands for a single one."""
    if "address" in fields:
        fields["addresses"] = (fields.pop("address"),)
    values: dict[str, Any] = {
        "key": key(number),
        "netns": netns or f"/run/netns/pod{number}",
        "addresses": (SUBNET[11 + 20 * device + number % 9],),
        "eni_id": f"eni-{device}",
        "veth": veth_name("nn", key(number)),
    }
    return Attachment(**(values | fields))


def intent(number: int, state: IntentState = IntentState.WANTED, **fields: Any) -> Intent:
    """What the runtime asked for a pod."""
    values: dict[str, Any] = {"netns": f"/run/netns/pod{number}", "netns_inode": number}
    return Intent(key(number), state, **(values | fields))


def inputs(devices: int = 3, attachments: tuple[Attachment, ...] = (), **fields: Any) -> Inputs:
    """A node with so many ENIs, all with links, and pods."""
    enis = tuple(eni(i) for i in range(devices))
    values: dict[str, Any] = {
        "document": document(),
        "node": node(),
        "enis": enis,
        "links": {e.mac: f"eth{e.device_index}" for e in enis},
        "attachments": attachments,
    }
    for group, of in (("kernel", KernelState), ("host", HostState)):
        values[group] = of(**{f: fields.pop(f) for f in of.__match_args__ if f in fields})
    return Inputs(**(values | fields))


networks = st.builds(
    lambda number, length: IPv4Network((number >> (32 - length) << (32 - length), length)),
    st.integers(0, 2**32 - 1),
    st.integers(4, 32),
)
addresses = st.integers(int(ip_address("10.0.0.0")), int(ip_address("10.0.255.255"))).map(
    ip_address
)


@st.composite
def strategies(draw: st.DrawFn) -> dict[str, Any]:
    """One of the pool's strategies, as the document spells it."""
    return draw(
        st.one_of(
            st.fixed_dictionaries(
                {
                    "addresses": st.fixed_dictionaries(
                        {
                            "warm": st.integers(0, 20),
                            "minimum": st.integers(0, 40),
                            "surplus": st.integers(0, 10),
                        }
                    )
                }
            ),
            st.fixed_dictionaries({"enis": st.fixed_dictionaries({"warm": st.integers(0, 2)})}),
        )
    )


FAMILY_LISTS = [["ipv4"], ["ipv6"], ["ipv4", "ipv6"], ["ipv6", "ipv4"]]


def egress_rules() -> st.SearchStrategy[dict[str, Any]]:
    """One of ``snat.rules``, as the document spells it."""
    return st.fixed_dictionaries(
        {
            "namespace": st.sampled_from(["pay-*", "*"]),
            "to": st.lists(networks.map(str), min_size=1, max_size=2),
            "as": st.sampled_from(["pod", "node", "dedicated"]),
        }
    )


@st.composite
def documents(draw: st.DrawFn) -> NodeNetwork:
    """Any valid document that matters to the planner."""
    mode = draw(st.sampled_from(["node", "external"]))
    families = draw(st.sampled_from(FAMILY_LISTS))
    others = [f for f in ("ipv4", "ipv6") if f not in families]
    snat: dict[str, Any] = {"mode": mode, "ports": draw(st.sampled_from(["random", "sequential"]))}
    if mode == "node" and "ipv4" in families:
        snat["excludeCIDRs"] = draw(st.lists(networks.map(str), max_size=8))
        snat["onlyCIDRs"] = draw(st.none() | st.lists(networks.map(str), min_size=1, max_size=4))
    if "ipv4" in families:
        snat["rules"] = draw(st.lists(egress_rules(), max_size=2))
    services = draw(st.lists(networks.map(str), max_size=2)) if "ipv4" in families else []
    eni_mtu = draw(st.integers(1280, 9001))
    return document(
        warmPool=draw(strategies()) | {"cooldown": draw(st.sampled_from(["0s", "30s"]))},
        eni={"mtu": eni_mtu, "max": draw(st.one_of(st.none(), st.integers(1, 5)))},
        maxPods=draw(st.one_of(st.none(), st.integers(1, 40))),
        snat=snat,
        routing={
            "externalServiceCIDRs": services,
            "markMask": draw(st.sampled_from(["0xff", "0xff0000"])),
        },
        families=families,
        egressFamilies=draw(st.sampled_from([[], others])),
        pods={"mtu": draw(st.one_of(st.none(), st.integers(1280, eni_mtu)))},
    )


@st.composite
def all_inputs(draw: st.DrawFn) -> Inputs:
    """A node in any shape: ENIs with and without links, pods on any of them."""
    devices = draw(st.integers(1, 4))
    pods = draw(st.lists(st.integers(0, 8), unique=True, max_size=6))
    names = st.sampled_from(["", "pay-a", "web"])
    bound = tuple(
        attachment(
            n,
            draw(st.integers(0, devices - 1)),
            addresses=draw(st.sampled_from(kinds(n))),
            pod=f"{namespace}/p{n}" if (namespace := draw(names)) else "",
        )
        for n in pods
    )
    identities = (EgressIdentity("pay-a", "", (SUBNET[31],), "eni-1"),)
    held = Ec2Inputs(identities=draw(st.sampled_from([(), identities])))
    value = inputs(devices, bound, document=draw(documents()))
    own = draw(st.sampled_from([(), (ip_address("2001:db8:1::10"),)]))
    enis = (eni(0, host_addresses=own), *value.enis[1:])
    missing = draw(st.sets(st.integers(1, 3), max_size=1))
    links = {m: name for m, name in value.links.items() if m not in {mac(i) for i in missing}}
    return inputs(devices, bound, document=value.document, links=links, enis=enis, ec2=held)


def kinds(number: int) -> list[tuple[IpAddress, ...]]:
    """What the pod of that number may have: either family, both, or one for egress besides."""
    ipv4, ipv6 = SUBNET[100 + number], ip_address(f"2001:db8:1:0:7::{number + 1:x}")
    return [
        (ipv4,),
        (ipv6,),
        (ipv4, ipv6),
        (ipv6, ip_address(f"169.254.172.{number + 1}")),
        (ipv4, ip_address(f"fd00::ac:{number + 1:x}")),
    ]
