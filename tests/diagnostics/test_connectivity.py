"""What is tried from a pod, and how it is named on the command line."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from builders import attachment, inputs

from reconciler.diagnostics.connectivity import ANY_PORT, DNS, Target, parse, rows, unfit


@pytest.mark.parametrize(
    ("text", "address", "port", "is_dns"),
    [
        ("10.0.0.1", "10.0.0.1", ANY_PORT, False),
        ("10.0.0.1:443", "10.0.0.1", 443, False),
        ("2001:db8::1", "2001:db8::1", ANY_PORT, False),
        ("[2001:db8::1]:443", "2001:db8::1", 443, False),
        ("dns:10.0.0.2", "10.0.0.2", DNS, True),
    ],
)
def test_targets_are_named_by_address_port_and_kind(
    text: str, address: str, port: int, is_dns: bool
) -> None:
    assert parse(text) == Target(text, ip_address(address), port, is_dns)


@pytest.mark.parametrize("text", ["", "web", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:65536", "dns:x"])
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(text)


def test_a_pod_is_tried_with_its_node_another_pod_metadata_and_what_was_named() -> None:
    one, two = attachment(1), attachment(2, 1)
    named = [parse("10.9.0.1:443"), parse("[2001:db8::1]:443")]
    found = list(rows(inputs(2, (one, two)), one, named))
    assert [(t.name, str(t.address)) for t in found] == [
        ("this node", "10.0.1.10"),
        ("another pod of this node", str(two.addresses[0])),
        ("instance metadata", "169.254.169.254"),
        ("10.9.0.1:443", "10.9.0.1"),  # of a family that the pod has no address of, none
    ]
    ((target, answer),) = unfit(one, named)  # it is said, and not passed over
    assert (target, answer.reached) == (named[1], None)
    assert answer.text == "not tried: the pod has no IPv6 address"
    alone = [t.name for t in rows(inputs(1, (one,)), one, ())]
    assert alone == ["this node", "instance metadata"]
