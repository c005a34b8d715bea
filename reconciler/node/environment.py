"""Everything outside of a node: its targets and sources, and what is asked of each, as types.

The real ones and the tests' fakes are held to these types. ``observe`` raises an ``ObserveError``
for what cannot be read, and ``apply`` returns what failed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from reconciler.core.attachment import Attachment
from reconciler.core.datapath import IpAddress, IpNetwork
from reconciler.core.facts import Eni, Installation, Node
from reconciler.diagnostics.foreign import Foreign
from reconciler.diagnostics.ruleset import Ruleset
from reconciler.diagnostics.stock_objects import Leftover, PodEnd, Sighting
from reconciler.domains.conntrack import ConntrackFlush, Flow, OpenTo
from reconciler.domains.fast_path import FlowObject
from reconciler.domains.forward import ForwardAccept
from reconciler.domains.inputs import Links
from reconciler.domains.nat_objects import NftElement, NftLink, NftObject
from reconciler.domains.neighbour import Learnt
from reconciler.egress.destinations import Egress
from reconciler.egress.observation import Answers, Question
from reconciler.engine.converge import ObjectTarget, Target
from reconciler.engine.plan import Change
from reconciler.errors import ApplyError, Issue
from reconciler.ipam.cloud import Cloud, Limits, Subnet
from reconciler.ipam.ec2_action import Creation, Ec2Action
from reconciler.ipam.pool_status import Pool
from reconciler.targets.conntrack import Conntrack
from reconciler.targets.ec2.caller import Subprocess
from reconciler.targets.ec2.calls import CallFailure
from reconciler.targets.ec2.changes import Journal
from reconciler.targets.ec2.tally import Tally
from reconciler.targets.ec2.target import Ec2
from reconciler.targets.files.installation import HostDirectories, Installed, Seen
from reconciler.targets.foreign import Latest, Surroundings
from reconciler.targets.imds import Imds
from reconciler.targets.kernel import PROC_SYS, KernelTarget, SettingsTarget, SysctlTree
from reconciler.targets.netlink.decode import KernelObject
from reconciler.targets.netlink.removals import Removals
from reconciler.targets.netlink.target import Netlink
from reconciler.targets.nftables.target import Nft
from reconciler.targets.scoped import RecordsTarget
from reconciler.targets.stock_plugin import DIRECTORY, StockPluginTarget


class State(RecordsTarget, Journal, Protocol):
    """The state directory: the records, and what else outlives this process.

    ``hand_over`` takes a release that the executable could not write down. ``hold`` makes
    attachments known that only the kernel remembers. ``reclaim`` makes again what others have
    removed of the directory, and says so. ``sweep`` removes what a process that died has left.
    """

    @property
    def root(self) -> Path: ...
    @property
    def is_own(self) -> bool: ...
    def reclaim(self) -> tuple[Issue, ...]: ...
    def sweep(self) -> None: ...
    def hand_over(self, release: dict[str, Any]) -> None: ...
    def hold(self, attachments: Iterable[Attachment]) -> None: ...
    def recall(self) -> tuple[Node, Cloud] | None: ...
    def remember(self, node: Node, cloud: Cloud) -> None: ...
    def recall_egress(self) -> Egress: ...
    def remember_egress(self, egress: Egress) -> None: ...


class Metadata(Protocol):
    """Instance metadata; ``interfaces`` is what each interface holds, by MAC.

    ``enis`` are those on the first network card, each with its subnet.
    """

    def node(self) -> Node: ...
    def region(self) -> str: ...
    def interfaces(self) -> frozenset[tuple[str, IpNetwork]]: ...
    def enis(self) -> tuple[tuple[Eni, Subnet], ...]: ...


class SourcesTarget(Protocol):
    """The VPC that the document's sources are derived from; ``calls`` counts by action."""

    @property
    def calls(self) -> Mapping[str, int]: ...
    def look(self, question: Question) -> Answers: ...


class Ec2Target(Target[Pool, Cloud, Ec2Action], Protocol):
    """EC2, of one instance.

    ``suppose`` takes an earlier look for what EC2 would show now; ``told`` is the last look with
    what EC2 has answered since. ``know`` takes over what an earlier process has asked. ``drain``
    returns what failed and which actions succeeded since it was last called. ``tally`` counts all
    calls, those for sources too.
    """

    @property
    def calls(self) -> Mapping[str, int]: ...
    @property
    def tally(self) -> Tally: ...
    @property
    def sources(self) -> SourcesTarget: ...
    @property
    def drain(self) -> Callable[[], tuple[tuple[CallFailure, ...], tuple[str, ...]]]: ...
    def suppose(self, cloud: Cloud) -> None: ...
    def told(self) -> Cloud: ...
    def know(self, instance_type: str, limits: Limits) -> None: ...


class LearntTarget(Protocol):
    """Neighbours that the kernel has learnt, of some networks on links with some MACs."""

    def observe(
        self, macs: Collection[str], networks: Iterable[IpNetwork]
    ) -> frozenset[Learnt]: ...
    def ask_again(self, neighbours: Iterable[Learnt]) -> tuple[ApplyError, ...]: ...


class Network(KernelTarget[KernelObject], Protocol):
    """Links, addresses, neighbours, routes and rules.

    ``pod_addresses`` is by host end, as the pods' routes say; ``addresses_behind`` what may be the
    addresses of the pods behind some links. ``occupied`` is what the host takes for its own of
    these, each with where that is said. ``queues`` names links whose packets tc does something to.
    ``removals`` are pods' links that are being deleted.
    """

    @property
    def learnt(self) -> LearntTarget: ...
    @property
    def removals(self) -> Removals: ...
    def links(self) -> Links: ...
    def pod_addresses(self) -> dict[str, tuple[IpAddress, ...]]: ...
    def addresses_behind(self, links: Iterable[str]) -> Mapping[str, tuple[IpAddress, ...]]: ...
    def queues(self) -> frozenset[tuple[str, str]]: ...
    def occupied(
        self, addresses: Collection[IpAddress], networks: Collection[IpNetwork]
    ) -> Mapping[IpNetwork, str]: ...


class FlowTarget(ObjectTarget[FlowObject], Protocol):
    """The flowtable; ``refusal`` says why the kernel takes none, or ""."""

    def refusal(self) -> str: ...


class Table(ObjectTarget[NftObject], Protocol):
    """Our nftables table; ``observe_at`` looks for some elements alone.

    ``count`` returns how many packets each of its counters has counted. ``flows`` is the table of
    the fast path.
    """

    @property
    def flows(self) -> FlowTarget: ...
    def observe_at(self, places: Iterable[NftElement | NftLink], /) -> frozenset[NftObject]: ...
    def count(self) -> Mapping[str, int]: ...


class Connections(Target[ConntrackFlush, frozenset[Flow], Change[Flow]], Protocol):
    """Conntrack's entries; ``count`` answers None if that would take long."""

    def count(self, questions: Sequence[OpenTo]) -> tuple[int, ...] | None: ...


class Neighbourhood(Protocol):
    """Other owners on the node; ``forward`` is our rules in their forward chains.

    ``observe`` returns the latest look, and ``latest`` refreshes it. ``chains`` has every chain of
    theirs, and what could not be looked at.
    """

    @property
    def forward(self) -> ObjectTarget[ForwardAccept]: ...
    @property
    def latest(self) -> Latest[Foreign]: ...
    def observe(self) -> Foreign: ...
    def chains(self) -> tuple[Ruleset, tuple[str, ...]]: ...


class Leftovers(Target[object, Sighting, Change[Leftover]], Protocol):
    """What the stock plugin has left; ``glance`` looks at all but iptables.

    ``find_ends`` finds the other ends of host links.
    """

    def glance(self) -> Sighting: ...
    def find_ends(self, veths: Iterable[str]) -> Mapping[str, PodEnd]: ...


class Directories(Target[Installed, frozenset[Seen], Change[Installed]], Protocol):
    """The container runtime's directories, and what is installed there."""

    @property
    def places(self) -> Installation: ...


def _stock_plugin() -> StockPluginTarget:
    return StockPluginTarget(Path(os.environ.get("NODE_NETWORK_AWS_NODE_DIR", str(DIRECTORY))))


def _settings() -> SysctlTree:
    return SysctlTree(Path(os.environ.get("NODE_NETWORK_PROC_SYS", str(PROC_SYS))))


@dataclass(frozen=True, slots=True)
class Environment:
    """The targets and the sources of one node."""

    imds: Metadata = field(default_factory=Imds)
    # from instance id, region and journal; called once metadata has answered
    make_ec2: Callable[[str, str, Journal], Ec2Target] = Ec2
    netlink: Network = field(default_factory=Netlink)
    nft: Table = field(default_factory=Nft)
    sysctl: SettingsTarget = field(default_factory=_settings)
    conntrack: Connections = field(default_factory=Conntrack)
    surroundings: Neighbourhood = field(default_factory=Surroundings)
    remains: Leftovers = field(default_factory=_stock_plugin)  # what the stock plugin has left
    # the container runtime's directories; by default nothing is installed into them
    files: Directories = field(default_factory=HostDirectories)
    now: Callable[[], float] = time.time  # seconds since the epoch; for what outlives a restart
    # monotonic seconds; for all that lives in memory, because the wall clock may step
    clock: Callable[[], float] = time.monotonic
    node_name: str = ""  # what the cluster calls the node; "" if it is not set


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

    forget = record
