"""What the fast path's target promises, of the real kernel and of the fake alike.

Where the kernel has no flowtables only the fake, and that the kernel says so; ``make e2e-kernel``
runs this file on one that has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from conftest import namespace
from fakes import FakeFlows
from pyroute2 import IPRoute

from lab import netns
from reconciler.core.datapath import FLOWS
from reconciler.domains import fast_path
from reconciler.domains.fast_path import FlowLink, FlowTable
from reconciler.engine.converge import Domain, always, converge
from reconciler.targets.expected import Expected, Verdict
from reconciler.targets.netlink import nf_tables as nft
from reconciler.targets.netlink.message import HEADER
from reconciler.targets.netlink.nfnetlink import FAMILY, NFNL_SUBSYS_NFTABLES, NUMBERS
from reconciler.targets.netlink.ruleset import Nfnetlink
from reconciler.targets.nftables.flows import Flows


@pytest.fixture(params=["fake", pytest.param("kernel", marks=pytest.mark.kernel)])
def target(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "fake":
        yield FakeFlows()
        return
    with namespace("flows") as name, netns.inside(name):
        flows = Flows()
        if flows.refusal():
            pytest.skip("this kernel has no flowtables")
        with IPRoute() as ip:
            for link in ("a", "b"):
                ip.link("add", ifname=link, kind="veth", peer={"ifname": f"{link}x"})
        yield flows


def reach(target: Any, *desired: Any) -> frozenset[Any]:
    """Converge to these, see it settled, and return what is there."""
    domain = Domain("fast-path", always(frozenset(desired)), fast_path.plan, target)
    assert converge([domain], None)["fast-path"].settled
    found: frozenset[Any] = target.observe()
    return found


def test_what_was_written_is_seen_and_goes(target: Any) -> None:
    assert target.refusal() == ""
    assert target.observe() == frozenset()
    for desired in (
        {FlowTable(), FlowLink("a")},
        {FlowTable(), FlowLink("a"), FlowLink("b")},
        {FlowTable(), FlowLink("b")},
        {FlowTable()},
        set(),
    ):
        assert reach(target, *desired) == desired


@pytest.mark.kernel
def test_a_kernel_without_flowtables_says_so_once_and_nothing_is_there() -> None:
    with namespace("flows") as name, netns.inside(name):
        flows = Flows()
        why = flows.refusal()
        if not why:
            pytest.skip("this kernel has flowtables")
        assert why.startswith("the kernel refuses one: ")
        assert flows.observe() == frozenset()
        assert Nfnetlink().list_tables("inet") == frozenset()


@pytest.mark.parametrize(
    ("kind", "table", "verdict"),
    [
        (nft.NFT_MSG_NEWFLOWTABLE, FLOWS, Verdict.EXPLAINED),
        (nft.NFT_MSG_NEWFLOWTABLE, "other", Verdict.OTHERS),
        (nft.NFT_MSG_DELTABLE, FLOWS, Verdict.OTHERS),
    ],
)
def test_a_pods_link_that_is_put_into_it_starts_nothing(
    kind: int, table: str, verdict: Verdict
) -> None:
    body = FAMILY.pack(NUMBERS["inet"], 0, 0) + nft.string(nft.NFTA_TABLE_NAME, table)
    size = HEADER.size + len(body)
    told = HEADER.pack(size, NFNL_SUBSYS_NFTABLES << 8 | kind, 0, 0, 0) + body
    assert Expected(is_whole=True).judge([told + bytes(-size % 4)], lambda _: "") is verdict
