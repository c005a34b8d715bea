"""Everything outside of a node, as one value: its targets and sources, and who makes EC2 calls."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from reconciler.engine.converge import Target
from reconciler.ipam.ec2_action import Creation
from reconciler.node.targets import (
    Connections,
    Directories,
    Ec2Target,
    Leftovers,
    Metadata,
    Neighbourhood,
    Network,
    Table,
)
from reconciler.targets.conntrack import Conntrack
from reconciler.targets.ec2.caller import Subprocess
from reconciler.targets.ec2.changes import Journal
from reconciler.targets.ec2.target import Ec2
from reconciler.targets.files.installation import HostDirectories
from reconciler.targets.foreign import Surroundings
from reconciler.targets.imds import Imds
from reconciler.targets.kernel import SysctlTree
from reconciler.targets.netlink.target import Netlink
from reconciler.targets.nftables.target import Nft
from reconciler.targets.stock_plugin import DIRECTORY, StockPluginTarget


def _stock_plugin() -> StockPluginTarget:
    return StockPluginTarget(Path(os.environ.get("NODE_NETWORK_AWS_NODE_DIR", str(DIRECTORY))))


@dataclass(frozen=True, slots=True)
class Environment:
    """Everything outside: the targets and the sources of one node.

    Attributes:
        make_ec2: from instance id, region and journal; called once metadata has answered.
        remains: what the stock plugin has left.
        files: the container runtime's directories; by default nothing is installed into them.
        now: seconds since the epoch; for what outlives a restart.
        clock: monotonic seconds; for all that lives in memory, because the wall clock may step.
        node_name: what the cluster calls the node; "" if it is not set.
    """

    imds: Metadata = field(default_factory=Imds)
    make_ec2: Callable[[str, str, Journal], Ec2Target] = Ec2
    netlink: Network = field(default_factory=Netlink)
    nft: Table = field(default_factory=Nft)
    sysctl: Target = field(default_factory=SysctlTree)
    conntrack: Connections = field(default_factory=Conntrack)
    surroundings: Neighbourhood = field(default_factory=Surroundings)
    remains: Leftovers = field(default_factory=_stock_plugin)
    files: Directories = field(default_factory=HostDirectories)
    now: Callable[[], float] = time.time
    clock: Callable[[], float] = time.monotonic
    node_name: str = ""


def apart(instance_id: str, region: str, journal: Journal) -> Ec2:
    """Return EC2 for a process that lives long: the calls are made by another, which does not."""
    return Ec2(instance_id, region, journal, caller=Subprocess(region))


def collector() -> Ec2:
    """Return EC2 for whoever collects leaked ENIs; it creates none, so it keeps no journal.

    Raises:
        ObserveError: instance metadata does not answer.
    """
    imds = Imds()
    return Ec2(imds.node().instance_id, imds.region(), _NoJournal())


class _NoJournal:
    def record(self, creation: Creation) -> None:
        raise AssertionError("a collector creates nothing")

    def forget(self, creation: Creation) -> None:
        raise AssertionError("a collector creates nothing")
