"""The inputs of a pass, completed once: document, records, EC2, links, and what explains them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from reconciler.core.attachment import (
    MAX_POD_ADDRESSES,
    Attachment,
    AttachmentKey,
    IntentState,
)
from reconciler.core.datapath import IpAddress
from reconciler.core.facts import Eni
from reconciler.core.predecessor import OWNER
from reconciler.domains.inputs import HostState, Inputs, KernelState
from reconciler.ipam.allocation import Unexplained
from reconciler.ipam.cloud import Cloud
from reconciler.ipam.pool_plan import adopted
from reconciler.ipam.records import Records, believe, find_copies, find_unrecorded
from reconciler.node.environment import Environment
from reconciler.node.known import Known
from reconciler.node.pool_inputs import Routed
from reconciler.node.stock_plugin import StockPlugin
from schemas.document import NodeNetwork

DEAD_S = 10.0
"""Seconds for which a pod's namespace and link must both be gone before its attachment is released
without a DEL: between the two a runtime may have lost it for good."""


class Gathering:
    """Gathers what both kinds of pass plan on.

    Args:
        environment: where it is looked for.
        known: of the node.
        stock: says what the stock plugin has left.
    """

    def __init__(self, environment: Environment, known: Known, stock: StockPlugin) -> None:
        self._environment = environment
        self._known = known
        self._stock = stock

    def inputs(
        self,
        document: NodeNetwork,
        records: Records,
        cloud: Cloud | None,
        routed: Routed | None = None,
        *,
        rehearsal: bool = False,
    ) -> Inputs:
        """Gather the inputs.

        Args:
            document: as it was written.
            records: as they were read.
            cloud: the last observation; handed over, because the pool's thread may replace it.
            routed: pods' addresses, if their routes were read already.
            rehearsal: as if EC2 had done already what it will be asked.

        Raises:
            NotReadyError: metadata has not answered yet.
            ObserveError: the kernel could not be read.
            ConflictError: overrides that match this node contradict each other.
        """
        node, netlink = self._known.identity(), self._environment.netlink
        enis: tuple[Eni, ...] = cloud.enis if cloud else ()
        links = netlink.links()
        known = {a.key for a in records.attachments}
        # A link that a record names is that record's, whatever its alias has become.
        veths = {a.veth for a in records.attachments}
        unexplained = {k: v for k, v in links.pods.items() if k not in known and v not in veths}
        addresses = self._addresses_of(unexplained.values(), enis, records, routed)
        unrecorded = find_unrecorded(unexplained, addresses, enis, records.intents, links.macs)
        records = records.joined(unrecorded)
        document = self._known.resolve(document)
        if rehearsal and document.take_over == OWNER:
            enis = tuple(adopted(e) if e.is_adoptable else e for e in enis)
        return Inputs(
            document=document,
            node=node,
            enis=enis,
            links=links.names,
            attachments=without_copies(records.living, links.pods),
            now=self._environment.now(),
            clock=self._environment.clock(),
            demand=records.demand,
            kernel=KernelState(
                linked=frozenset(links.pods),
                unrecorded=unrecorded,
                unexplained=tuple(
                    Unexplained(key, veth, links.macs.get(veth, ""))
                    for key, veth in sorted(unexplained.items())
                    if veth not in addresses and key not in records.released
                ),
            ),
            host=HostState(
                occupied=netlink.occupied(
                    {a for e in enis for a in e.pod_addresses},
                    {n for e in enis for n in e.ipv6_prefixes},
                ),
                predecessor=self._stock.consider(
                    records, enis, asked=document.take_over == OWNER, now=self._environment.clock()
                ),
            ),
        )

    def _addresses_of(
        self,
        links: Iterable[str],
        enis: Iterable[Eni],
        records: Records,
        routed: Routed | None,
    ) -> dict[str, tuple[IpAddress, ...]]:
        """Find out which addresses pods have whose links no record explains."""
        links = list(links)
        if not links:
            return {}
        netlink = self._environment.netlink
        if routed is None:
            routed = netlink.pod_addresses()
        found = {veth: a for veth, a in routed.items() if len(a) <= MAX_POD_ADDRESSES}
        taken = {own for a in records.attachments for own in a.addresses}
        taken |= {own for addresses in found.values() for own in addresses}
        if dumb := [veth for veth in links if veth not in found]:
            for link, candidates in netlink.addresses_behind(dumb).items():
                if believed := believe(candidates, enis, taken):
                    found[link] = believed
                    taken.update(believed)
        return found


class DeadPods:
    """Attachments of which namespace and link have been gone for a while.

    Attributes:
        until: when those that were seen so are released if no DEL comes; monotonic seconds.
    """

    def __init__(self) -> None:
        self.until: Mapping[AttachmentKey, float] = {}

    def find(self, records: Records, inputs: Inputs) -> frozenset[AttachmentKey]:
        """Return those for which no DEL will come, whether an intent still wants them or not."""
        gone_at = inputs.clock + DEAD_S
        asked = {i.key for i in records.intents}
        dead = {
            i.key for i in records.intents if i.state is IntentState.WANTED and not i.netns_alive
        }
        dead |= {a.key for a in records.attachments if a.key not in asked and not a.netns_alive}
        self.until = {key: self.until.get(key, gone_at) for key in dead - inputs.kernel.linked}
        return frozenset(key for key, until in self.until.items() if until <= inputs.clock)


def without_copies(
    attachments: Sequence[Attachment], linked: Iterable[AttachmentKey]
) -> tuple[Attachment, ...]:
    """Leave out attachments that name a link or an address that another has."""
    copies = find_copies(attachments, frozenset(linked))
    return tuple(a for a in attachments if a.key not in copies)
