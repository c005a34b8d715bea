"""Numbers and names of the datapath."""

from __future__ import annotations

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.attachment import IFNAMSIZ, AttachmentKey, veth_name
from reconciler.core.datapath import (
    FAMILIES,
    MAIN_TABLE,
    MAX_DEVICE_INDEX,
    Marks,
    eni_table,
    family_of,
    host_network,
    stable_mac,
)

text = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=64)


def test_the_primary_uses_main_and_every_other_eni_its_own_table() -> None:
    tables = [eni_table(index) for index in range(MAX_DEVICE_INDEX + 1)]
    assert tables[0] == MAIN_TABLE
    assert len(set(tables)) == len(tables)


def test_no_eni_can_have_the_mark_of_the_primary() -> None:
    for mask in (0xFF, 0xFF0000, 0xFF000000):
        marks = Marks(mask)
        every = {marks.of(index) for index in range(MAX_DEVICE_INDEX + 1)}
        assert len(every) == MAX_DEVICE_INDEX + 1
        assert all(mark and not mark & marks.others for mark in every)


@given(text, text)
def test_a_mac_is_unicast_and_locally_administered(a: str, b: str) -> None:
    first = int(stable_mac(a, b)[:2], 16)
    assert first & 0b11 == 0b10
    assert stable_mac(a, b) == stable_mac(a, b)


@given(text, text)
def test_a_veth_name_fits_the_kernel(container: str, ifname: str) -> None:
    name = veth_name("nn", AttachmentKey(container, ifname))
    assert name.startswith("nn")
    assert len(name) <= IFNAMSIZ


def test_families_are_data() -> None:
    assert family_of(ip_address("2001:db8::1")) is FAMILIES["ipv6"]
    assert str(host_network(ip_address("2001:db8::1"))) == "2001:db8::1/128"
    assert str(host_network(ip_address("192.0.2.1"))) == "192.0.2.1/32"
