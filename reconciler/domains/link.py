"""Links: ENIs as the kernel sees them, and the veth pairs that lead to pods.

An ENI's link comes and goes with its attachment in EC2; only its settings are ours. A veth pair
is ours from creation to deletion. Its two ends are two objects, because they live in two
namespaces and each can drift alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from reconciler.core.attachment import (
    IFNAMSIZ,
    MAX_VETH_PREFIX,
    POD_DIGITS,
    link_alias,
    netns_path,
    nsenter,
)
from reconciler.core.datapath import ALIAS, ENI_GROUP, MAC_STAMP, POD_GROUP
from reconciler.domains.inputs import Inputs
from reconciler.engine.plan import Action, Change, Key, Plan, Verb, compare, merge


@dataclass(frozen=True, slots=True)
class EniLink:
    """The link of an ENI in the host namespace, found by its MAC."""

    kind: ClassVar[str] = "link"
    stays: ClassVar[str] = "a link comes and goes with its ENI, and these settings with it"
    mac: str
    name: str
    mtu: int
    up: bool = True
    group: int = ENI_GROUP

    @property
    def key(self) -> Key:
        """MAC and name: another owner's link may carry the same MAC."""
        return (self.mac, self.name)

    def command(self, verb: Verb) -> str:
        """``ip link set eth1 mtu 9001 …``; an ENI's link is never made or deleted by us."""
        if verb is Verb.DELETE:
            return f"ip link set {self.name} down"
        settings = f"mtu {self.mtu} group {self.group}"
        return f"ip link set {self.name} {settings} {'up' if self.up else 'down'}"


@dataclass(frozen=True, slots=True)
class Veth:
    """The host end of a pod's veth pair.

    ``alias``: whose it is; ours begin with ``node-network``. ``pod_netns``, ``pod_name``,
    ``pod_mac``: where the other end goes when the pair is made.

    ``accept_local``: the kernel need not look up the sources of what comes by it, where its
    ``rp_filter`` is off, too (``fib_validate_source``): our ruleset looks at them.
    """

    kind: ClassVar[str] = "veth"
    name: str
    mac: str
    mtu: int
    alias: str
    up: bool = True
    accept_local: bool = False
    group: int = 0
    pod_netns: str = field(default="", compare=False)
    pod_name: str = field(default="", compare=False)
    pod_mac: str = field(default="", compare=False)

    @property
    def key(self) -> Key:
        return (self.name,)

    def command(self, verb: Verb) -> str:
        settings = f"mtu {self.mtu} address {self.mac} group {self.group} alias {self.alias}"
        sysctl = f"sysctl -w net/ipv4/conf/{self.name}/accept_local={self.accept_local:d}"
        match verb:
            case Verb.CREATE:
                peer = f"peer {self.pod_name} address {self.pod_mac}"
                where = f"netns {netns_path(self.pod_netns)}"
                return f"ip link add {self.name} {settings} type veth {peer} {where}; {sysctl}"
            case Verb.UPDATE:
                up = "up" if self.up else "down"
                return f"ip link set {self.name} {settings} {up}; {sysctl}"
            case Verb.DELETE:
                return f"ip link delete {self.name}"


@dataclass(frozen=True, slots=True)
class PodLink:
    """The pod's end of its veth pair.

    ``veth``: name of the host end, which must be remade if this end is lost; "" for a link of
    another owner.
    """

    kind: ClassVar[str] = "pod-link"
    netns: str
    name: str
    mac: str
    mtu: int
    up: bool = True
    veth: str = field(default="", compare=False)

    @property
    def key(self) -> Key:
        return (self.netns, self.name)

    def command(self, verb: Verb) -> str:
        where = f"{nsenter(self.netns)}ip link"
        if verb is Verb.DELETE:
            return f"{where} delete {self.name}"
        settings = f"address {self.mac} mtu {self.mtu} {'up' if self.up else 'down'}"
        return f"{where} set {self.name} {settings}"


Link = EniLink | Veth | PodLink


KINDS: tuple[type[Link], ...] = (EniLink, Veth, PodLink)


def desire(inputs: Inputs) -> frozenset[Link]:
    """Every ENI's link up with the document's MTU; one veth pair per attachment."""
    eni_mtu = inputs.document.eni.mtu
    enis = {EniLink(eni.mac, name, eni_mtu) for eni, name in inputs.pod_enis}
    return frozenset(enis | desire_pods(inputs))


def desire_pods(inputs: Inputs) -> frozenset[Link]:
    """The pods' part of it: both ends of each pair."""
    pod_mtu = inputs.document.pod_mtu
    is_guarded = inputs.document.pods.spoofing == "deny"
    links: set[Link] = {
        Veth(
            a.veth,
            a.host_mac,
            pod_mtu,
            a.alias,
            accept_local=is_guarded,
            group=POD_GROUP,
            pod_netns=a.netns,
            pod_name=a.key.ifname,
            pod_mac=a.pod_mac,
        )
        for a in inputs.placed
    }
    # Whose address is not known is kept as it is: absence is no release.
    unexplained = inputs.kernel.unexplained
    links |= {
        Veth(u.veth, u.mac, pod_mtu, link_alias(u.key), group=POD_GROUP) for u in unexplained
    }
    pods = (
        PodLink(a.netns, a.key.ifname, a.pod_mac, pod_mtu, veth=a.veth) for a in inputs.visited
    )
    return frozenset(links.union(pods))


def is_owned(link: Link) -> bool:
    """A host end is ours by its alias, a pod's end by its host end, an ENI's by what EC2 says."""
    match link:
        case EniLink():
            return True
        case Veth():
            return link.alias.startswith(f"{ALIAS}:") or is_unfinished(link.name, link.mac)
        case PodLink():
            return link.veth != ""


def claims(link: Link, wanted: Iterable[Link]) -> bool:
    """Whether a host end without an alias is the one that a taken-over attachment wants.

    Its MAC was recorded before anything was done to it; no other owner's link has it.
    """
    return (
        isinstance(link, Veth)
        and not link.alias
        and any(isinstance(w, Veth) and (w.name, w.mac) == (link.name, link.mac) for w in wanted)
    )


def is_unfinished(name: str, mac: str) -> bool:
    """Whether a link is a host end of ours that has not got its alias yet.

    The kernel takes no alias when it makes a link, so a crash can come in between. The MAC with
    our stamp and the shape of the name are there from the beginning.
    """
    digits = name[MAX_VETH_PREFIX:]
    return (
        mac.startswith(MAC_STAMP)
        and POD_DIGITS < len(name) <= IFNAMSIZ
        and not digits.strip("0123456789abcdef")
    )


def plan(desired: Iterable[Link], observed: Iterable[Link]) -> Plan:
    """Compare, and remake a pair whose pod end is gone.

    A veth pair is deleted as a whole, so a host end without its pod end means that the pod's end
    was moved or renamed, and only a new pair can replace it. For the same reason no pod's end is
    ever deleted by itself.
    """
    desired, observed = frozenset(desired), frozenset(observed)
    if desired <= observed and not any(isinstance(o, Veth) for o in observed - desired):
        return Plan()
    wanted = {(o.kind, o.key) for o in desired}
    # An ENI that is not ours, or not yet ready, keeps whatever settings it has; and what else a
    # pod's namespace holds is the pod's, or another plugin's.
    relevant = [o for o in observed if isinstance(o, Veth) or (o.kind, o.key) in wanted]
    ends = {(o.netns, o.name) for o in relevant if isinstance(o, PodLink)}
    lost = {
        o.veth for o in desired if isinstance(o, PodLink) and (o.netns, o.name) not in ends
    } & {o.name for o in relevant if isinstance(o, Veth) and is_owned(o)}
    remake: list[Action] = [
        Change(Verb.DELETE, o, "its pod end is gone; a pair can only be made whole")
        for o in sorted(relevant, key=lambda o: o.key)
        if isinstance(o, Veth) and o.name in lost
    ]
    rest = [o for o in relevant if not (isinstance(o, Veth) and o.name in lost)]
    back = _rename(desired, rest)
    moved = {o for change in back for o in (change.object, change.was)}
    # Host ends first: making one makes the pod's end, whose own settings follow.
    parts = {
        kind.kind: compare(
            [o for o in desired if isinstance(o, kind) and o not in moved],
            [o for o in rest if isinstance(o, kind) and o not in moved],
            owned=lambda o: is_owned(o) or claims(o, desired),
        )
        for kind in (EniLink, Veth, PodLink)
    }
    return Plan((*remake, *back)) + merge(parts)


def _rename(desired: Iterable[Link], observed: Iterable[Link]) -> list[Change[Link]]:
    """Give renamed host ends their names back.

    Making the pair anew would remove the pod's end with all that the pod has configured on it.
    """
    observed = list(observed)
    taken = {o.name for o in observed if isinstance(o, Veth)}
    wanted = {(o.alias, o.mac): o for o in desired if isinstance(o, Veth) and o.name not in taken}
    names = {o.name for o in desired if isinstance(o, Veth)}
    return [
        Change(Verb.UPDATE, wanted.pop((o.alias, o.mac)), f"it was renamed to {o.name}", o)
        for o in sorted(observed, key=lambda o: o.key)
        if isinstance(o, Veth) and (o.alias, o.mac) in wanted and o.name not in names
    ]
