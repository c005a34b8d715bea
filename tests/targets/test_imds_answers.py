"""Whatever instance metadata answers under a key that is read: it is read whole, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

import pytest

from reconciler.targets.imds import (
    MAX_INTERFACES,
    MissingError,
    read_enis,
    read_interfaces,
    read_node,
    read_region,
    read_token,
)

MAC = "02:aa:00:00:00:01"
BASE = f"network/interfaces/macs/{MAC}"
HOST = "10.0.1.10"
PREFIXES = ("10.0.1.64/28", "2001:db8:0:0:1::/80")
MOST_WORDS = 300

GOOD = {
    "token": "AQAEAFYlqQ==",
    "mac": MAC,
    "instance-id": "i-0123456789abcdef0",
    "instance-type": "u-6tb1.112xlarge",
    "placement/availability-zone": "us-east-1a",
    "placement/region": "us-gov-west-1",
    "network/interfaces/macs/": f"{MAC}/\n02:aa:00:00:00:02/",
    f"{BASE}/vpc-ipv4-cidr-blocks": "10.0.0.0/16\n100.64.0.0/16",
    f"{BASE}/vpc-ipv6-cidr-blocks": "2001:db8::/56",
    f"{BASE}/local-ipv4s": "10.0.1.10\n10.0.1.11\n10.0.1.12",
    f"{BASE}/ipv4-prefix": "10.0.1.64/28",
    f"{BASE}/ipv6-prefix": "2001:db8:0:0:1::/80",
    f"{BASE}/ipv6s": "2001:db8::10",
    f"{BASE}/device-number": "0",
    f"{BASE}/network-card": "0",
    f"{BASE}/interface-id": "eni-0123456789abcdef0",
    f"{BASE}/subnet-id": "subnet-0123456789abcdef0",
    f"{BASE}/vpc-id": "vpc-0123456789abcdef0",
    f"{BASE}/security-group-ids": "sg-2\nsg-1",
    f"{BASE}/subnet-ipv4-cidr-block": "10.0.1.0/24",
    f"{BASE}/subnet-ipv6-cidr-blocks": "2001:db8::/64",
}

MUTATIONS: dict[str, str | None] = {
    "absent": None,
    "empty": "",
    "spaces": " \n\t ",
    "text": "x",
    "number": "7",
    "negative": "-1",
    "not ascii": "né\u202e",
    "control characters": "\x1b[31m\x00\x07",
    "a path": "../../../../etc/passwd",
    "a host": "evil.example.com/",
    "a header": "x\r\nX-Injected: y",
    "huge": "x" * (1 << 20),
    "many words": "x " * 100_000,
    "many addresses": "10.0.1.1 " * 100_000,
    "everything": "0.0.0.0/0",
    "everything of ipv6": "::/0",
    "host bits": "10.0.1.1/16",
    "leading zeros": "010.000.001.001",
    "a page": "<html><body>Forbidden</body></html>",
    "json": '{"a": [1, 2]}',
    "another mac": "02:aa:00:00:00:09",
    "many macs": "\n".join(f"02:aa:00:00:{n >> 8:02x}:{n & 255:02x}/" for n in range(9999)),
}

READERS: dict[str, Callable[[Any], Any]] = {
    "token": lambda get: read_token(get("token")),
    "node": read_node,
    "region": read_region,
    "interfaces": read_interfaces,
    "enis": read_enis,
}


class Metadata:
    """Answers from a dictionary, and notes what was asked for."""

    def __init__(self, told: dict[str, str]) -> None:
        self.told = told
        self.asked: list[str] = []

    def __call__(self, key: str) -> str:
        self.asked.append(key)
        if key not in self.told:
            raise MissingError(f"GET {key}: HTTP 404")
        return self.told[key].strip()


def keys_read(reader: str) -> list[str]:
    metadata = Metadata(GOOD)
    READERS[reader](metadata)
    return sorted(set(metadata.asked) & GOOD.keys())


def test_what_is_right_is_read() -> None:
    node = read_node(Metadata(GOOD))
    assert (node.primary_mac, node.instance_type) == (MAC, "u-6tb1.112xlarge")
    assert [str(c) for c in node.vpc_cidrs] == ["10.0.0.0/16", "100.64.0.0/16", "2001:db8::/56"]
    assert read_region(Metadata(GOOD)) == "us-gov-west-1"
    held = ("10.0.1.11", "10.0.1.12", "10.0.1.64/28", "2001:db8:0:0:1::/80")
    assert read_interfaces(Metadata(GOOD)) == {(MAC, ip_network(n)) for n in held}


def test_enis_are_read_as_ec2_would_show_them() -> None:
    ((eni, subnet),) = read_enis(Metadata(GOOD))
    assert (eni.device_index, eni.is_primary, eni.mac, str(eni.primary)) == (0, True, MAC, HOST)
    assert [str(a) for a in eni.secondaries] == ["10.0.1.11", "10.0.1.12"]
    assert [str(p) for p in (*eni.prefixes, *eni.ipv6_prefixes)] == [*PREFIXES]
    assert (eni.security_groups, str(eni.subnet_cidr)) == (("sg-1", "sg-2"), "10.0.1.0/24")
    assert (subnet.zone, subnet.families, subnet.free) == ("us-east-1a", ("ipv4", "ipv6"), 0)


def test_enis_of_other_network_cards_are_left_out() -> None:
    assert read_enis(Metadata(GOOD | {f"{BASE}/network-card": "1"})) == ()


def test_an_address_outside_of_its_subnet_is_read_for_no_pod() -> None:
    with pytest.raises(ValueError, match=r"10\.0\.2\.11"):
        read_enis(Metadata(GOOD | {f"{BASE}/local-ipv4s": "10.0.1.10\n10.0.2.11"}))


@pytest.mark.parametrize("reader", READERS)
def test_no_key_can_end_it_or_be_read_in_part(reader: str) -> None:
    right = READERS[reader](Metadata(GOOD))
    keys = keys_read(reader)
    assert keys
    for key in keys:
        for name, text in MUTATIONS.items():
            told = {k: v for k, v in GOOD.items() if k != key}
            if text is not None:
                told[key] = text
            metadata = Metadata(told)
            try:
                found = READERS[reader](metadata)
            except ValueError as error:
                assert len(str(error)) <= MOST_WORDS, f"{key} {name}"
                assert str(error).isprintable(), f"{key} {name}"
                continue
            assert isinstance(found, type(right)), f"{key} {name}"
            assert len(str(found)) < 10_000, f"{key} {name}"
            assert str(found).isprintable(), f"{key} {name}"
            # Nothing that was answered leads to another place than an interface's.
            assert all(len(k) < 100 and k.isprintable() for k in metadata.asked), f"{key} {name}"


@pytest.mark.parametrize("block", ["0.0.0.0/0", "10.0.0.0/8", "x", "10.0.0.1/16", "::/0"])
def test_a_vpc_block_that_cannot_be_is_no_identity_at_all(block: str) -> None:
    key = f"{BASE}/vpc-ipv4-cidr-blocks"
    with pytest.raises(ValueError, match="vpc-ipv4-cidr-blocks"):
        read_node(Metadata(GOOD | {key: f"10.0.0.0/16\n{block}"}))


def test_half_a_list_is_no_witness() -> None:
    """Else what could not be read would be as good as what is not there."""
    with pytest.raises(ValueError, match="not an IPv4 address"):
        read_interfaces(Metadata(GOOD | {f"{BASE}/local-ipv4s": "10.0.1.10\nx\n10.0.1.12"}))


def test_interfaces_without_addresses_are_read_and_too_many_are_not() -> None:
    listing = "network/interfaces/macs/"
    macs = [f"02:bb:00:00:{n >> 8:02x}:{n & 255:02x}/" for n in range(MAX_INTERFACES)]
    assert read_interfaces(Metadata({listing: "\n".join(macs)})) == frozenset()
    with pytest.raises(ValueError, match="more than"):
        read_interfaces(Metadata({listing: "\n".join([*macs, MAC])}))
