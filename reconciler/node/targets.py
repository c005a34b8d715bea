"""What a node asks of each of its targets. The real ones and the tests' fakes are held to it.

``observe`` raises an ``ObserveError`` for what cannot be read, and ``apply`` returns what failed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from reconciler.core.attachment import Attachment
from reconciler.core.datapath import IpAddress, IpNetwork
from reconciler.core.facts import Node
from reconciler.core.installation import Installation
from reconciler.core.predecessor import Leftover, PodEnd, Sighting
from reconciler.diagnostics.foreign import Foreign
from reconciler.diagnostics.ruleset import Ruleset
from reconciler.domains.conntrack import ConntrackFlush, Flow
from reconciler.domains.inputs import Links
from reconciler.domains.nat import NftElement, NftObject
from reconciler.engine.converge import Target
from reconciler.engine.issue import Issue
from reconciler.engine.plan import Change
from reconciler.errors import ApplyError
from reconciler.ipam.cloud import Cloud, Limits
from reconciler.ipam.ec2_action import Creation, Ec2Action
from reconciler.ipam.pool_status import Pool
from reconciler.targets.ec2.calls import CallFailure
from reconciler.targets.foreign import Latest
from reconciler.targets.kernel import KernelTarget
from reconciler.targets.scoped import RecordsTarget


class State(RecordsTarget, Protocol):
    """The state directory: the records, and what else outlives this process."""

    @property
    def root(self) -> Path:
        """Where it is."""

    @property
    def is_own(self) -> bool:
        """Whether this process still has its lock."""

    def reclaim(self) -> tuple[Issue, ...]:
        """Make again what others have removed of it, and say so."""

    def sweep(self) -> None:
        """Remove what a process that died has left of its writing."""

    def hand_over(self, release: dict[str, Any]) -> None:
        """Take a release that the executable could not write down."""

    def hold(self, attachments: Iterable[Attachment]) -> None:
        """Know attachments that only the kernel remembers."""

    def recall(self) -> tuple[Node, Cloud] | None:
        """Return what was last remembered."""

    def remember(self, node: Node, cloud: Cloud) -> None:
        """Keep it for the next process."""

    def record(self, creation: Creation) -> None:
        """Write down an ENI before EC2 is asked for it."""

    def forget(self, creation: Creation) -> None:
        """Take it out: it has certainly not happened."""


class Metadata(Protocol):
    """Instance metadata."""

    def node(self) -> Node:
        """Return the node's identity and VPC CIDRs."""

    def region(self) -> str:
        """Return the region."""

    def interfaces(self) -> frozenset[tuple[str, IpNetwork]]:
        """Return what each interface holds, by MAC."""


class Ec2Target(Protocol):
    """EC2, of one instance."""

    @property
    def calls(self) -> Mapping[str, int]:
        """Calls made so far, by action."""

    def observe(self, desired: Iterable[Pool]) -> Cloud:
        """Look at ENIs, and at what else the plan depends on."""

    def suppose(self, cloud: Cloud) -> None:
        """Take an earlier look for what EC2 would show now."""

    def told(self) -> Cloud:
        """Return the last look with what EC2 has answered since."""

    def apply(self, actions: Sequence[Ec2Action]) -> tuple[ApplyError, ...]:
        """Make calls."""

    def know(self, instance_type: str, limits: Limits) -> None:
        """Take over what an earlier process has asked."""

    @property
    def drain(self) -> Callable[[], tuple[tuple[CallFailure, ...], tuple[str, ...]]]:
        """Returns what failed and which actions succeeded since it was last called."""


class Network(KernelTarget, Protocol):
    """Links, addresses, neighbours, routes and rules."""

    def links(self) -> Links:
        """Return the host's links."""

    def pod_addresses(self) -> dict[str, tuple[IpAddress, ...]]:
        """Addresses by host end, as the pods' routes say."""

    def addresses_behind(self, links: Iterable[str]) -> Mapping[str, tuple[IpAddress, ...]]:
        """Addresses that may be those of the pods behind some links."""

    def occupied(
        self, addresses: Collection[IpAddress], networks: Collection[IpNetwork]
    ) -> Mapping[IpNetwork, str]:
        """What the host takes for its own of these, each with where that is said."""


class Table(Protocol):
    """Our nftables table."""

    def observe(self, desired: Iterable[NftObject] = ()) -> frozenset[NftObject]:
        """Look at all of it."""

    def observe_at(self, places: Iterable[NftElement]) -> frozenset[NftObject]:
        """Look for some elements alone."""

    def apply(self, actions: Sequence[Change[NftObject]]) -> tuple[ApplyError, ...]:
        """Change it in one transaction."""


class Connections(Protocol):
    """Conntrack's entries."""

    def observe(self, desired: Iterable[ConntrackFlush]) -> frozenset[Flow]:
        """Return which addresses have some."""

    def apply(self, actions: Sequence[Change[Flow]]) -> tuple[ApplyError, ...]:
        """End them."""


class Neighbourhood(Protocol):
    """Other owners on the node."""

    @property
    def forward(self) -> Target:
        """Our rules in their forward chains."""

    def observe(self) -> Foreign:
        """Return the latest look."""

    @property
    def latest(self) -> Latest[Foreign]:
        """Refreshes it."""

    def chains(self) -> tuple[Ruleset, tuple[str, ...]]:
        """Every chain of theirs; and what could not be looked at."""


class Leftovers(Protocol):
    """What the stock plugin has left."""

    def observe(self, desired: Iterable[object] = ()) -> Sighting:
        """Look at everything that could be its own."""

    def glance(self) -> Sighting:
        """Look at all but iptables."""

    def find_ends(self, veths: Iterable[str]) -> Mapping[str, PodEnd]:
        """Find the other ends of host links."""

    def apply(self, actions: Sequence[Change[Leftover]]) -> tuple[ApplyError, ...]:
        """Remove some of it."""


class Directories(Target, Protocol):
    """The container runtime's directories."""

    @property
    def places(self) -> Installation:
        """Where they are, and what is installed."""
