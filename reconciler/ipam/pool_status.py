"""Pool status: one observation of EC2, measured against what is wanted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from reconciler.core.attachment import Attachment
from reconciler.core.datapath import FAMILIES, IpAddress, IpNetwork
from reconciler.core.facts import Eni, Node
from reconciler.ipam import pool
from reconciler.ipam.budget import CallBackoffs
from reconciler.ipam.cloud import PREFIX_SIZE, Choice, Cloud, Limits, Subnet, choose, is_excluded
from reconciler.ipam.ec2_action import Creation
from reconciler.ipam.identity import EgressIdentity
from reconciler.ipam.pool import Band, Demand, Space
from reconciler.ipam.release import Stock, Unit, take_stock, unit_networks
from reconciler.ipam.sources import Disagreements
from reconciler.ipam.start import NOTHING, Kept
from schemas.document import NodeNetwork
from schemas.pool import AddressTarget

HERE = {"attaching", "attached"}
"""EC2's words for an attachment that is, or is about to be."""

CREATION_TRUST_S = 600.0
"""Seconds for which a recorded creation is repeated until its ENI is seen; a token is good for
24 hours (EC2 Developer Guide, "Ensuring idempotency"), an observation stale for seconds."""


@dataclass(frozen=True, slots=True)
class Ec2Inputs:
    """What is known of the node's addresses, and of the calls about them.

    Attributes:
        used: addresses that a pod, a cooldown, a route or a connection holds.
        quarantined: networks with a record: they are being given back, or were just now.
        maybe_released: those of them that EC2 may have taken back already, whatever it shows.
        creations: ENIs that were asked for in the last hour.
        demands: of pod groups, by name; without those of no group.
        backoffs: EC2 actions that are not called for now.
        kept: what is not given back yet, because the node has just started.
        nonce: text that no other pass has; new ClientTokens are made of it.
        identities: addresses that namespaces have.
    """

    used: frozenset[IpAddress] = frozenset()
    quarantined: frozenset[IpNetwork] = frozenset()
    maybe_released: frozenset[IpNetwork] = frozenset()
    creations: tuple[Creation, ...] = ()
    demands: Mapping[str, Demand] = field(default_factory=dict)
    disagreements: Disagreements = field(default_factory=Disagreements)
    backoffs: CallBackoffs = field(default_factory=CallBackoffs)
    kept: Kept = NOTHING
    nonce: str = ""
    identities: tuple[EgressIdentity, ...] = ()


NO_EC2 = Ec2Inputs()


@dataclass(frozen=True, slots=True)
class Pool:
    """The pool that is wanted, and all that deciding about it needs.

    Attributes:
        document: for this node: overrides are resolved.
        tags: of new ENIs, in key order.
        limits: the document's, in place of EC2's.
        now: seconds since the epoch; for records, and what EC2 says of time.
        clock: monotonic seconds; for backoff and disagreements, which live in memory.
        take_over: the stock plugin's ENIs become ours.
        group: whose pods it serves; "" is those of no group.
        promised: device indices that pools before it get in the same plan.
    """

    node: Node
    document: NodeNetwork
    demand: Demand
    tags: tuple[tuple[str, str], ...]
    limits: Limits | None
    attachments: tuple[Attachment, ...]
    ec2: Ec2Inputs
    now: float
    clock: float
    take_over: bool = False
    group: str = ""
    promised: tuple[int, ...] = ()

    def is_of(self, group: str) -> bool:
        """Whether what is marked with a group's name is this pool's.

        What is marked with a name that the document does not have is of no group.
        """
        if not self.group:
            return all(group != g.name for g in self.document.pod_groups)
        return group == self.group

    @property
    def prefixes(self) -> bool:
        """Whether ENIs get prefixes rather than single addresses."""
        return self.document.eni.allocate == "prefixes"

    @property
    def gives_back(self) -> bool:
        """Whether EC2 may be asked to take anything back."""
        return self.document.ec2.mode == "full"

    @property
    def is_frozen(self) -> bool:
        """Whether EC2 may be asked for nothing at all."""
        return self.document.ec2.mode == "frozen"

    @property
    def counts(self) -> bool:
        """Whether pods need addresses that the pool must have in stock."""
        return any(FAMILIES[name].counted for name in self.document.families)

    @property
    def delegates(self) -> bool:
        """Whether pods need a prefix that is not counted, on each ENI that serves them."""
        return any(not FAMILIES[name].counted for name in self.document.families)

    @property
    def needs_prefix(self) -> bool:
        """Whether there must be one: of a pod group once a pod asks, or as its pool says."""
        strategy = self.document.warm_pool.strategy
        ahead = not isinstance(strategy, AddressTarget) or strategy.warm or strategy.minimum
        return not self.group or bool(ahead or self.demand.waiting)


NOTHING_COUNTED = Band(
    0, 0, 0, (("families", 0, "families has none whose addresses are counted"),), "families"
)
"""What a node of IPv6 alone holds in stock."""


@dataclass(frozen=True, slots=True)
class Room:
    """What the instance has of ENIs, for all pod groups together.

    Attributes:
        enis: how many more it may have.
        foreign: those that are not ours.
        others: those that pools of other groups have or get, the primary left out.
        indices: device indices that something has or gets.
    """

    enis: int
    foreign: int
    others: int
    indices: frozenset[int]


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """One observation of EC2, measured against the document.

    Attributes:
        enis: ours that are or will soon be attached, in device order.
        pending: creations that are recorded and not yet seen.
        fitting: ids of ENIs that pods may get addresses of.
        needed: those of them that stay although they hold nothing in stock. Where nothing is
            counted the first one stays, because its prefix serves every pod.
    """

    limits: Limits | None
    enis: tuple[Eni, ...]
    choice: Choice
    spaces: Mapping[str, Space]
    band: Band
    stock: Stock
    room: Room
    pending: tuple[Creation, ...]
    fitting: frozenset[str]
    needed: frozenset[str]
    observed: Cloud

    @property
    def room_for_enis(self) -> int:
        return self.room.enis

    @property
    def foreign(self) -> int:
        return self.room.foreign

    @property
    def others(self) -> int:
        return self.room.others

    @property
    def slots(self) -> int:
        return self.limits.slots if self.limits else 0

    @property
    def coming(self) -> int:
        return sum(c.addresses + c.prefixes * PREFIX_SIZE for c in self.pending)

    @property
    def counted(self) -> int:
        """Addresses that count for what is wanted: held or coming, and not to be exchanged."""
        return self.stock.settled + self.coming

    @property
    def misplaced(self) -> tuple[Eni, ...]:
        """Secondary ENIs that pods get no more addresses of, because of their subnet."""
        return tuple(e for e in self.enis if not e.is_primary and e.eni_id not in self.fitting)

    @property
    def shortfall(self) -> int:
        """Addresses to grow by; zero or less if there are enough."""
        return self.band.aim - self.counted if self.counted < self.band.low else 0

    def free_slots(self, eni: Eni) -> int:
        """Addresses or prefixes that an ENI can still take."""
        if eni.eni_id not in self.fitting:
            return 0
        return max(self.slots - len(eni.secondaries) - len(eni.prefixes), 0)


def find_pool_status(desired: Pool, observed: Cloud) -> PoolStatus:
    """Measure one observation against what is wanted."""
    limits = desired.limits or observed.limits
    primary = observed.primary
    choice = choose(
        observed.subnets,
        zone=desired.node.availability_zone,
        primary=primary.subnet_id if primary else "",
        listed=desired.document.eni.subnets,
        selector=desired.document.eni.subnet_tags,
        excluded=desired.document.eni.exclude_subnet_tags,
        by_room=desired.document.eni.subnet_order == "most-free",
        families=desired.document.families,
    )
    spaces = {name: _space(desired, s) for name, s in observed.subnets.items()}
    enis = tuple(
        e
        for e in observed.enis
        if e.owned and e.device_index is not None and e.status in HERE and desired.is_of(e.group)
    )
    fits = [e.eni_id for e in enis if _fits(e, desired, observed, choice)]
    fitting = frozenset(fits)
    homes = {e.subnet_id for e in enis if e.eni_id in fitting}
    blocks = any(space.blocks for name, space in spaces.items() if name in homes)

    def unwanted(unit: Unit) -> bool:
        if unit.eni.eni_id not in fitting:
            return True
        # Where a subnet has no whole block left, single addresses are the kind to have. A prefix
        # is never exchanged: each of its addresses is as good as a single one, and an instance
        # may have had it from its launch (Karpenter's ``ipPrefixCount``).
        return desired.prefixes and blocks and not unit.is_prefix

    stock = take_stock(
        enis,
        used=desired.ec2.used,
        quarantined=desired.ec2.quarantined,
        unwanted=unwanted,
        prefixes=desired.prefixes,
    )
    stock = replace(stock, held=stock.held - _unreachable(desired, enis))
    slots = limits.slots if limits else 0
    band = NOTHING_COUNTED
    if desired.counts:
        band = pool.band(
            desired.document.warm_pool.strategy,
            desired.demand,
            per_eni=slots * (PREFIX_SIZE if desired.prefixes else 1),
            max_pods=desired.document.most_pods,
        )
    tokens = {e.creation for e in observed.enis if e.creation}
    coming = tuple(
        c
        for c in desired.ec2.creations
        if not c.done and c.token not in tokens and desired.now - c.at < CREATION_TRUST_S
    )
    pending = tuple(c for c in coming if desired.is_of(c.group))
    return PoolStatus(
        limits=limits,
        enis=enis,
        choice=choice,
        spaces=spaces,
        band=band,
        stock=stock,
        room=_find_room(desired, observed, limits, coming),
        pending=pending,
        fitting=fitting,
        needed=frozenset(fits if desired.counts else fits[:1]),
        observed=observed,
    )


def _unreachable(desired: Pool, enis: Iterable[Eni]) -> int:
    """Count what no pod can get although a pod has some of its prefix: its ENI's group is gone."""
    used = desired.ec2.used
    prefixes = [p for e in enis if e.group != desired.group for p in e.prefixes]
    counts = [(sum(a in used for a in p), p.num_addresses) for p in prefixes]
    return sum(size - count for count, size in counts if count)


def _find_room(
    desired: Pool, observed: Cloud, limits: Limits | None, coming: Sequence[Creation]
) -> Room:
    """Find out what is left; ``coming``: creations of any group that are not seen yet."""
    attached = [e for e in observed.enis if e.device_index is not None]
    most = desired.document.eni.max
    limit = limits.enis if limits else 0
    limit = limit if most is None else min(limit, most)
    promised = desired.promised
    taken = len(attached) + len(observed.unread_enis) + len(coming) + len(promised)
    theirs = [e.group for e in attached if e.owned and not e.is_primary]
    theirs += [c.group for c in coming]
    indices = [e.device_index for e in attached] + [c.device_index for c in coming]
    indices += [u.device_index for u in observed.unread_enis]
    return Room(
        enis=max(limit - taken, 0),
        foreign=sum(not e.owned for e in attached),
        others=sum(not desired.is_of(group) for group in theirs) + len(promised),
        indices=frozenset({*promised, *(i for i in indices if i is not None)}),
    )


def kept(desired: Pool, at: PoolStatus) -> Kept:
    """Return what is not given back yet, because the node has just started.

    An ENI that is attached and that no pod may get addresses of helps no pod that is still to
    come. Of what EC2 was asked to take back it is not known whether it is still there.
    """
    known = desired.ec2.kept
    enis = [e for e in at.observed.enis if e.eni_id in known.enis and desired.is_of(e.group)]
    enis = [e for e in enis if e.device_index is None or e.eni_id in at.fitting]
    networks = known.networks.intersection(n for e in enis for n in unit_networks(e))
    networks -= desired.ec2.maybe_released
    return Kept(frozenset(e.eni_id for e in enis), networks, known.until)


def _fits(eni: Eni, desired: Pool, observed: Cloud, choice: Choice) -> bool:
    """Whether the document wants this ENI's addresses for pods."""
    if eni.group != desired.group:
        return False  # the document has its group no more
    if eni.is_primary:
        home = observed.subnets.get(eni.subnet_id)
        able = home is None or (
            set(desired.document.families) <= set(home.families)
            and not is_excluded(home, desired.document.eni.exclude_subnet_tags)
        )
        return desired.document.eni.use_primary and able
    if desired.is_frozen:
        return True  # only EC2 tells what subnets are tagged with, and no other ENI can be had
    return eni.subnet_id in choice.subnets


def _space(desired: Pool, known: Subnet) -> Space:
    no_blocks = desired.ec2.backoffs.of(f"prefixes:{known.subnet_id}", desired.clock)
    full = desired.ec2.backoffs.of(f"addresses:{known.subnet_id}", desired.clock)
    blocks = 0 if no_blocks or not desired.prefixes else known.blocks or 0
    return Space(0 if full else known.free, blocks, known.blocks_apart)
