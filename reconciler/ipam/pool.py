"""The pool's arithmetic: how many addresses to hold, and where the missing ones fit.

A target is a function of what is used, never an increment, so a lost or repeated event cannot
make it drift. Growing begins below ``low`` and ends at ``aim``; giving back begins above ``high``
and ends at ``aim``. Between ``low`` and ``high`` nothing happens: for a constant demand the pool
reaches a fixed point, because neither of the two ever leads to where the other begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from reconciler.core.datapath import FAMILIES
from reconciler.ipam.cloud import PREFIX_SIZE, Limits
from schemas.document import NodeNetwork
from schemas.pool import AddressTarget, EniTarget, PrefixTarget, Strategy


@dataclass(frozen=True, slots=True)
class Demand:
    """What the pool must cover, in addresses.

    ``cooling``: released, not yet to be given out again. ``waiting``: intents, and namespaces
    that lack a dedicated address; ``waiting_in``: of pod groups, each with how many.
    """

    assigned: int = 0
    cooling: int = 0
    waiting: int = 0
    waiting_in: tuple[tuple[str, int], ...] = ()
    dedicated: int = 0

    @property
    def total(self) -> int:
        """All that is used; what is held beyond it is allocatable."""
        return self.assigned + self.cooling + self.waiting + self.dedicated

    @property
    def of_no_pod(self) -> int:  # it comes on top of any number of pods
        return self.cooling + self.dedicated

    def __str__(self) -> str:
        text = f"assigned {self.assigned} + cooling {self.cooling} + waiting {self.waiting}"
        return f"{text} + dedicated {self.dedicated}" if self.dedicated else text


@dataclass(frozen=True, slots=True)
class Band:
    """How many pod addresses the node should hold, those in use included.

    ``low``, ``aim``, ``high``: addresses; ``low <= aim <= high``. ``terms``: what was compared, as
    (name, addresses, how it comes about). ``binds``: the name of the term that decided.
    """

    low: int
    aim: int
    high: int
    terms: tuple[tuple[str, int, str], ...]
    binds: str


def band(strategy: Strategy, demand: Demand, *, per_eni: int, max_pods: int | None) -> Band:
    """Return the target.

    ``per_eni``: pod addresses that one more ENI would bring. ``max_pods``: what cools or is
    dedicated serves none of them, so it comes on top. What is in use is held in any case.
    """
    used = demand.total
    if isinstance(strategy, AddressTarget):
        found = _by_addresses(strategy, demand)
    else:
        found = _by_units(strategy, demand, per_eni=per_eni)
    if max_pods is None:
        return found
    cap = max(max_pods + demand.of_no_pod, used)
    dedicated = f" + dedicated {demand.dedicated}" if demand.dedicated else ""
    term = ("maxPods", cap, f"maxPods {max_pods} + cooling {demand.cooling}{dedicated}, at most")
    low, aim, high = (min(bound, cap) for bound in (found.low, found.aim, found.high))
    binds = "maxPods" if cap < found.low else found.binds
    return Band(low, aim, high, (*found.terms, term), binds)


def _by_addresses(target: AddressTarget, demand: Demand) -> Band:
    free = demand.total + target.warm
    terms = (
        ("minimum", target.minimum, "minimum"),
        ("warm", free, f"{demand} + warm {target.warm}"),
    )
    return Band(
        low=max(target.minimum, free),
        aim=max(target.minimum, free + target.surplus // 2),
        high=max(target.minimum, free + target.surplus),
        terms=terms,
        binds=max(terms, key=lambda term: term[1])[0],
    )


def _by_units(target: EniTarget | PrefixTarget, demand: Demand, *, per_eni: int) -> Band:
    """Hold whole ENIs or prefixes; one more before any goes, so that a boundary costs no call."""
    by_enis = isinstance(target, EniTarget)
    name, unit = ("ENIs", max(per_eni, 1)) if by_enis else ("prefixes", PREFIX_SIZE)
    low = unit * (-(-demand.total // unit) + target.warm)
    terms = ((name, low, f"{name} of {unit} addresses for {demand}, + warm {target.warm}"),)
    return Band(low, low, low + unit, terms, name)


@dataclass(frozen=True, slots=True)
class Space:
    """What a subnet has left.

    ``blocks``: whole aligned /28 blocks without an address in use; ``apart``: ``free`` has none of
    their addresses.
    """

    free: int
    blocks: int = 0
    apart: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """An ENI that can take more.

    ``slots``: addresses or prefixes that its instance type still allows it.
    """

    subnet_id: str
    slots: int


@dataclass(frozen=True, slots=True)
class Share:
    """What one ENI gets."""

    subnet_id: str
    addresses: int = 0
    prefixes: int = 0

    def __bool__(self) -> bool:
        return bool(self.addresses or self.prefixes)


@dataclass(frozen=True, slots=True)
class Growth:
    """How a shortfall is met.

    Attributes:
        shares: what each given place gets, in the same order.
        creations: what each ENI to create begins with: addresses or prefixes, never both, because
            one call asks for one kind.
        unmet: addresses that no slot and no subnet leaves room for.
        full: subnets that could not give what was asked of them, with the reason.
    """

    shares: tuple[Share, ...] = ()
    creations: tuple[Share, ...] = ()
    unmet: int = 0
    full: tuple[tuple[str, str], ...] = ()


def grow(
    shortfall: int,
    *,
    places: Sequence[Place],
    spaces: Mapping[str, Space],
    candidates: Sequence[str],
    new_enis: int,
    slots: int,
    prefixes: bool,
) -> Growth:
    """Spread a shortfall: existing ENIs first, in order, then as few new ENIs as possible.

    ``slots`` of an ENI hold an address or a prefix each. With ``prefixes`` single addresses are
    asked for only where a subnet has no whole block. The first candidate that has room gets the
    next new ENI.
    """
    ledger = _Ledger(
        shortfall,
        [_Plot(place.subnet_id, place.slots) for place in places],
        {name: max(space.free, 0) for name, space in spaces.items()},
        {name: space.blocks for name, space in spaces.items()},
        frozenset(name for name, space in spaces.items() if space.apart),
        new_enis if slots > 0 else 0,
    )
    for kind in ("prefixes", "addresses") if prefixes else ("addresses",):
        ledger.spread(kind, candidates, slots)
    shares = [Share(plot.subnet_id, plot.addresses, plot.prefixes) for plot in ledger.plots]
    return Growth(
        tuple(shares[: len(places)]),
        tuple(s for s in shares[len(places) :] if s),
        max(ledger.short - ledger.deferred, 0),
        tuple(sorted(ledger.full.items())),
    )


@dataclass
class _Plot:
    """A place while it is being filled."""

    subnet_id: str
    slots: int
    fresh: bool = False
    addresses: int = 0
    prefixes: int = 0


@dataclass
class _Ledger:
    """The books of one growth; lives only inside ``grow``."""

    short: int
    plots: list[_Plot]
    free: dict[str, int]
    blocks: dict[str, int]
    apart: frozenset[str]
    new_enis: int
    full: dict[str, str] = field(default_factory=dict)

    @property
    def deferred(self) -> int:
        """Addresses for which an ENI that is created now will have slots."""
        return sum(p.slots for p in self.plots if p.fresh and p.prefixes)

    def spread(self, kind: str, candidates: Sequence[str], slots: int) -> None:
        """Fill what is there, then new ENIs, until nothing is missing or nothing helps."""
        for plot in self.plots:
            if not (plot.fresh and kind == "addresses"):
                self._fill(plot, kind)
        while self.short > self.deferred and self.new_enis > 0:
            subnet_id = next((s for s in candidates if self._has_room(s, kind)), None)
            if subnet_id is None:
                return
            self.new_enis -= 1
            self.free[subnet_id] -= 1  # its primary address
            self.plots.append(_Plot(subnet_id, slots, fresh=True))
            self._fill(self.plots[-1], kind)

    def _has_room(self, subnet_id: str, kind: str) -> bool:
        free, blocks = self.free.get(subnet_id, 0), self.blocks.get(subnet_id, 0)
        if kind == "addresses":
            has_room, why = free >= 2, f"{free} addresses free"
        elif subnet_id in self.apart and blocks > 0:
            has_room, why = free > 0, f"{free} addresses free"  # the ENI itself has one
        else:
            has_room = blocks > 0 and free > PREFIX_SIZE
            why = self._no_block(subnet_id, free)
        if not has_room:
            self.full[subnet_id] = why
        return has_room

    def _fill(self, plot: _Plot, kind: str) -> None:
        if self.short <= 0 or plot.slots <= 0:
            return
        where = plot.subnet_id
        free, blocks = self.free.get(where, 0), self.blocks.get(where, 0)
        if kind == "prefixes":
            wanted = min(-(-self.short // PREFIX_SIZE), plot.slots)
            apart = where in self.apart
            count = min(wanted, blocks if apart else min(blocks, free // PREFIX_SIZE))
            taken = count * PREFIX_SIZE
            self.blocks[where] = blocks - count
            plot.prefixes += count
            free += taken if apart else 0
            why = self._no_block(where, free - taken)
        else:
            wanted = min(self.short, plot.slots)
            count = taken = min(wanted, free)
            plot.addresses += count
            why = "no address free"
        if count < wanted:
            self.full[where] = why
        self.free[where] = free - taken
        plot.slots -= count
        self.short -= taken

    def _no_block(self, subnet_id: str, free: int) -> str:
        if subnet_id in self.apart:
            return f"no whole /28 free in its CIDR reservations ({free} addresses outside are)"
        return f"no whole /28 free ({free} addresses are)"


CLIENT_RETRY_S = 120
"""Seconds for which the kernel keeps a connection attempt that nothing has answered
(``nf_conntrack_tcp_timeout_syn_sent``, and ``tcp_syn_retries`` 6), on the client's node too."""


def early_reuse(document: NodeNetwork) -> str:
    """Say that ``warmPool.cooldown`` was set to less than a client's attempts last; "" if not."""
    cooldown_s = document.warm_pool.cooldown.total_seconds()
    if "cooldown" not in document.warm_pool.model_fields_set or cooldown_s >= CLIENT_RETRY_S:
        return ""
    return (
        f"warmPool.cooldown {cooldown_s:g}s: a client on another node repeats its attempt to "
        f"connect to an ended pod for {CLIENT_RETRY_S}s, and then reaches the pod that has the "
        "address next; set 2m where that matters, at the cost of one address held for each pod "
        "that ended meanwhile"
    )


def wrong_size(document: NodeNetwork) -> str:
    """Say that the pool holds no free address, or would hold what no pod gets; "" if neither."""
    strategy, pods = document.warm_pool.strategy, document.most_pods
    if not isinstance(strategy, AddressTarget):
        return ""
    if not strategy.warm and not strategy.minimum:
        return (
            "warmPool.addresses: warm 0 and minimum 0 hold no free address: each pod waits for a "
            "call of EC2's, some seconds, and as long as EC2 throttles or refuses; set warm to 1 "
            "or more"
        )
    if pods is not None and strategy.minimum > pods:
        return (
            f"warmPool.addresses: minimum {strategy.minimum} is more than maxPods {pods}, and no "
            f"more than maxPods are held; lower minimum to {pods}, or raise maxPods"
        )
    return ""


HOST_NETWORK_PODS = 2
"""Pods without an address of their own that every node runs (kube-proxy and this one); kubelet's
figures for EC2 count them (amazon-eks-ami ``eni-max-pods.txt``: ENIs x (addresses - 1) + 2)."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a node can serve.

    ``pods``: those on the host's network included.
    """

    pods: int
    text: str


def capacity(document: NodeNetwork, limits: Limits, *, foreign: int = 0) -> Capacity:
    """Return how many pods a node of these limits can serve."""
    counted = any(FAMILIES[name].counted for name in document.families)
    addresses, text = (
        most_addresses(document, limits, foreign=foreign)
        if counted
        else (2**48, "one IPv6 prefix x 2^48")
    )
    more = f"{HOST_NETWORK_PODS} on the host's network"
    return Capacity(addresses + HOST_NETWORK_PODS, f"{text} + {more}")


def most_addresses(
    document: NodeNetwork, limits: Limits, *, foreign: int = 0, others: int = 0
) -> tuple[int, str]:
    """Return how many addresses for pods a node can hold, and how that comes about.

    ``foreign``: ENIs on the instance that are not ours. ``others``: those of other pod groups.
    """
    most = document.eni.max
    enis = limits.enis if most is None else min(limits.enis, most)
    usable = max(enis - foreign - others - (not document.eni.use_primary), 0)
    prefixes = document.eni.allocate == "prefixes"
    less = f" - {foreign} foreign" if foreign else ""
    less += f" - {others} of other groups" if others else ""
    less += "" if document.eni.use_primary else " - the primary"
    size = f" x {PREFIX_SIZE}" if prefixes else ""
    count = usable * limits.slots * (PREFIX_SIZE if prefixes else 1)
    held = f"({enis} ENIs{less})" if less else f"{enis} ENIs"
    return count, f"{held} x {limits.slots}{size}"


def overcommitted(
    document: NodeNetwork, instance_type: str, limits: Limits, *, foreign: int = 0
) -> str:
    """Say that ``maxPods`` is more than the node can serve; "" if it is not."""
    found = capacity(document, limits, foreign=foreign)
    if document.most_pods is None or document.most_pods <= found.pods:
        return ""
    return (
        f"{document.most_pods} pods are more than {instance_type} can serve, {found.pods}: "
        f"{found.text}; lower maxPods and kubelet's --max-pods"
    )


FEW_CPUS, MOST_PODS_OF_FEW, MOST_PODS = 30, 110, 250
"""What EKS lets kubelet take by the number of CPUs, whatever addresses there are (amazon-eks-ami
``max-pods-calculator.sh``); Kubernetes itself is tested with 110 pods a node."""


def advised(document: NodeNetwork, found: Capacity, cpus: int) -> int:
    """Return what kubelet's ``maxPods`` should be on a node with so many CPUs."""
    by_cpus = MOST_PODS_OF_FEW if cpus <= FEW_CPUS else MOST_PODS
    return min(found.pods, by_cpus, document.most_pods or found.pods)


def beyond(kubelet: int, instance_type: str, found: Capacity) -> str:
    """Say that kubelet takes more pods than the node can serve; "" if it does not."""
    if kubelet <= found.pods:
        return ""
    return (
        f"kubelet takes {kubelet} pods, and {instance_type} can serve {found.pods}: {found.text}; "
        "the scheduler sends pods that will wait for addresses: give kubelet the number that "
        "'node-network max-pods' prints"
    )
