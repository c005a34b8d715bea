"""Attachments: who gets which address, and when it is given back.

The binding is recorded before anything is done to the kernel, and the record goes only after
nothing of it is left there. An address therefore always has a witness: a crash at any point
leaves either the record or nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

from reconciler.core.attachment import (
    Attachment,
    AttachmentKey,
    Cooling,
    Intent,
    IntentState,
    netns_identity,
    netns_inode,
    pod_veth_name,
    veth_name,
)
from reconciler.core.datapath import (
    FAMILIES,
    MAC_STAMP,
    IpAddress,
    IpNetwork,
    family_of,
    is_node_local,
)
from reconciler.core.facts import Eni
from reconciler.domains.inputs import Inputs, Unexplained
from reconciler.engine.issue import Issue
from reconciler.engine.plan import Action, Change, Plan, Verb
from reconciler.ipam.records import WITHHELD_S, Records, SetAside, find_copies

MAX_NAMED = 20
"""Unreadable records, and addresses on the host, that get a condition each; the others are counted
in one more."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """What may be given, and the terms.

    Attributes:
        enis: those that serve pods, in the order in which they are filled.
        veth_of_pod: host veths are called after their pods, not after their sandboxes.
        flows: addresses that conntrack still has connections of.
        dead: attachments whose namespace is gone for so long that no DEL will come.
        adoptions: pods of the stock plugin's that become ours, each with its intent.
        elsewhere: addresses that pods of the stock plugin's hold.
        unread: which those are is not known, so nothing is given.
        unexplained: links of ours whose address is unknown, so nothing is given either.
        occupied: what the host takes for its own.
        clear: attachments of which nothing is left in the kernel.
        finished: attachments of which everything was seen in place.
        linked: attachments that have a link on the host.
        cooldown_s: seconds a released address cools down.
        now: seconds since the epoch.
        families: of which each pod gets one address of its ENI, in this order.
        egress: of which it gets one that is good on this node only.
    """

    enis: tuple[Eni, ...]
    veth_prefix: str
    veth_of_pod: bool
    flows: frozenset[IpAddress]
    dead: frozenset[AttachmentKey]
    adoptions: tuple[tuple[Attachment, Intent], ...]
    elsewhere: frozenset[IpAddress]
    clear: frozenset[AttachmentKey]
    cooldown_s: float
    now: float
    families: tuple[str, ...] = ("ipv4",)
    egress: tuple[str, ...] = ()
    unread: bool = False
    unexplained: tuple[Unexplained, ...] = ()
    occupied: Mapping[IpNetwork, str] = field(default_factory=dict)
    finished: frozenset[AttachmentKey] = frozenset()
    linked: frozenset[AttachmentKey] = frozenset()


def desire(inputs: Inputs) -> Allocation:
    """Addresses of ENIs that EC2 and the kernel both show; lowest device first."""
    use_primary = inputs.document.eni.use_primary
    return Allocation(
        enis=tuple(eni for eni, _ in inputs.pod_enis if not eni.is_primary or use_primary),
        veth_prefix=inputs.document.pods.veth_prefix,
        veth_of_pod=inputs.document.pods.veth_name == "pod",
        flows=inputs.flows,
        dead=inputs.dead,
        adoptions=inputs.predecessor.adoptions,
        elsewhere=inputs.predecessor.held,
        clear=inputs.clear,
        cooldown_s=inputs.document.warm_pool.cooldown.total_seconds(),
        now=inputs.now,
        families=inputs.document.families,
        egress=inputs.egress,
        unread=inputs.predecessor.unread,
        unexplained=inputs.unexplained,
        occupied=inputs.occupied,
        finished=inputs.finished,
        linked=inputs.pods,
    )


def plan(desired: Allocation, observed: Records) -> Plan:
    """Bind what is wanted, release what was given back, end what has cooled."""
    return (
        _rewrite(observed)
        + _complete(observed)
        + _adopt(desired, observed)
        + _expire(desired, observed)
        + _end_cooldowns(desired, observed)
        + _release(desired, observed)
        + _bind(desired, observed, observed)
        + _finish(desired, observed)
        + _begin_again(desired, observed)
        + _keep(desired, observed)
        + _name_unexplained(desired)
        + _name_occupied(desired, observed)
        + _name_copies(desired, observed)
        + _leave_out(observed)
    )


def plan_pods(keys: Collection[AttachmentKey], desired: Allocation, observed: Records) -> Plan:
    """What these pods wait for: bind what is wanted, release what was given back."""
    asked = observed.among(keys)
    return _release(desired, asked) + _bind(desired, asked, observed) + _finish(desired, asked)


def find_unrecorded(
    pods: Mapping[AttachmentKey, str],
    addresses: Mapping[str, tuple[IpAddress, ...]],
    enis: Iterable[Eni],
    intents: Iterable[Intent],
    macs: Mapping[str, str],
) -> tuple[Attachment, ...]:
    """Rebuild attachments from what the kernel has of them.

    Absence is no release: the state directory may have been wiped, or be another one than usual,
    while pods run. A link of which no address is known is left out.

    Args:
        pods: host ends of links that no record explains.
        addresses: of the pod behind each host end.
        enis: what EC2 last showed.
        intents: say where a pod's namespace is, if the runtime still asks for it.
        macs: of the host ends, by name: one without our stamp was kept in a take-over.
    """
    paths = {i.key: netns_identity(i.netns, i.netns_inode) for i in intents if i.netns_alive}
    enis = list(enis)
    unrecorded = []
    for key, veth in sorted(pods.items()):
        found = tuple(sorted(addresses.get(veth, ()), key=is_node_local))
        if not found:
            continue
        eni = next((e for e in enis for a in found if e.holds(a)), None)
        mac = macs.get(veth, "")
        unrecorded.append(
            Attachment(
                key=key,
                netns=paths.get(key, ""),
                netns_alive=key in paths,
                addresses=found,
                eni_id=eni.eni_id if eni else "",
                veth=veth,
                kept_macs=("" if mac.startswith(MAC_STAMP) else mac, ""),
            )
        )
    return tuple(unrecorded)


def believe(
    addresses: Iterable[IpAddress], enis: Iterable[Eni], taken: Collection[IpAddress]
) -> tuple[IpAddress, ...]:
    """Return what a pod's own link says of its address; nothing if that is no proof.

    A pod may put on its link whatever it likes. So it counts only if of each family exactly one
    can be the pod's: one that an ENI holds, or that is good on this node only, and that no other
    pod has.

    Args:
        addresses: that were read in the pod's namespace.
        enis: what EC2 last showed.
        taken: what others have.
    """
    enis = list(enis)
    possible = [
        a
        for a in dict.fromkeys(addresses)
        if a not in taken and (is_node_local(a) or any(e.holds(a) for e in enis))
    ]
    kinds = [(a.version, is_node_local(a)) for a in possible]
    certain = len(set(kinds)) == len(kinds) and not all(map(is_node_local, possible))
    return tuple(possible) if certain else ()


def _rewrite(observed: Records) -> Plan:
    """Write again what is known and not on disk, of every kind.

    Nothing waits for it: until it is written the record counts as it is known, and each pass tries
    again.
    """
    return Plan(
        tuple(
            Change(Verb.CREATE, record, "it is known, but its record is not on disk")
            for record in observed.lost
        )
    )


def _complete(observed: Records) -> Plan:
    """Tell a rebuilt attachment where its pod is, once an intent says it.

    The kernel does not know the path. An intent that could not be read when the attachment was
    rebuilt, because another release wrote it, may be readable by now.
    """
    nameless = {a.key: a for a in observed.attachments if not a.netns}
    if not nameless:
        return Plan()
    taken = {a.netns for a in observed.attachments}
    actions: list[Action] = []
    for intent in observed.intents:
        before = nameless.get(intent.key)
        netns = netns_identity(intent.netns, intent.netns_inode)
        wanted = intent.state is IntentState.WANTED and intent.netns_alive
        if before is not None and wanted and netns not in taken:
            taken.add(netns)
            after = replace(before, netns=netns, pod=before.pod or intent.pod, netns_alive=True)
            actions.append(Change(Verb.UPDATE, after, "its intent says where it is", before))
    return Plan(tuple(actions))


def _adopt(desired: Allocation, observed: Records) -> Plan:
    """Record the stock plugin's pods as ours, as if they had asked us for what they have."""
    bound = {a.key for a in observed.attachments}
    asked = {i.key for i in observed.intents}
    reason = "a pod of the stock plugin's"
    actions: list[Action] = []
    for attachment, intent in desired.adoptions:
        if attachment.key not in bound:
            actions.append(Change(Verb.CREATE, attachment, reason))
        if intent.key not in asked:
            actions.append(Change(Verb.CREATE, intent, reason))
    return Plan(tuple(actions))


def _expire(desired: Allocation, observed: Records) -> Plan:
    """Release what no DEL will come for: its namespace has been gone for a while.

    If even its intent is gone, one is written as a DEL would have: from there on it is as any.
    """
    reason = "its namespace is gone, and no DEL came"
    asked = {i.key for i in observed.intents}
    expired: list[Action] = [
        Change(Verb.UPDATE, replace(i, state=IntentState.RELEASED), reason, i)
        for i in observed.intents
        if i.key in desired.dead and i.state is IntentState.WANTED and not i.netns_alive
    ]
    expired += [
        Change(
            Verb.CREATE, Intent(a.key, IntentState.RELEASED, "", 0), "it is not wanted any more"
        )
        for a in observed.attachments
        if a.key in desired.dead and a.key not in asked and not a.netns_alive
    ]
    return Plan(tuple(expired))


def _end_cooldowns(desired: Allocation, observed: Records) -> Plan:
    """End a cooldown when its time is over and no connection of the old pod is left.

    A client that retries with the same ports would be sent the old pod's way for as long as
    conntrack remembers it (amazon-vpc-cni-k8s #3634). None waits longer than a cooldown from now:
    what says so was written before the clock was set back, or the document shortened it.
    """
    longest = desired.now + desired.cooldown_s
    actions: list[Action] = []
    for c in observed.cooling:
        if c.until > longest:
            reason = f"no cooldown is longer than {desired.cooldown_s:g} s"
            actions.append(Change(Verb.UPDATE, replace(c, until=longest), reason, c))
        elif c.until <= desired.now and c.address not in desired.flows:
            actions.append(Change(Verb.DELETE, c, "cooldown over"))
    return Plan(tuple(actions))


def _release(desired: Allocation, observed: Records) -> Plan:
    """Cooldown first, then the binding, then the intent: at every point the address is held."""
    actions: list[Action] = []
    superseded = observed.superseded
    going = [i for i in observed.intents if i.state is IntentState.RELEASED or i.key in superseded]
    if not going:
        return Plan()
    bound = {a.key: a for a in observed.attachments}
    cooling = {c.address for c in observed.cooling}
    undecided = observed.undecided
    for intent in going:
        is_released = intent.state is IntentState.RELEASED
        attachment = bound.get(intent.key)
        if attachment is not None:
            if attachment.key not in desired.clear:
                continue  # the kernel comes first
            until = desired.now + desired.cooldown_s
            actions += [
                Change(Verb.CREATE, Cooling(address, until), "released")
                for address in attachment.addresses
                if address not in cooling and desired.cooldown_s > 0
            ]
            reason = "the runtime gave it back" if is_released else "its sandbox is no more"
            actions.append(Change(Verb.DELETE, attachment, reason))
        if (record := undecided.get(intent.key)) is not None and is_released:
            actions += _put_away(record, attachment, cooling, desired)
        if is_released:
            actions.append(Change(Verb.DELETE, intent, "done"))
    return Plan(tuple(actions))


def _put_away(
    record: SetAside,
    attachment: Attachment | None,
    cooling: Collection[IpAddress],
    desired: Allocation,
) -> Iterator[Action]:
    """End what an unreadable record stands for; what it seems to name is cooled down too.

    Without the cooldown its addresses would be free at once: it is the record that kept them.
    """
    until = desired.now + desired.cooldown_s
    known = set(attachment.addresses) if attachment else set()
    for address in sorted(record.addresses - known, key=lambda a: (a.version, int(a))):
        if address not in cooling and desired.cooldown_s > 0:
            yield Change(Verb.CREATE, Cooling(address, until), "released, by a torn record")
    yield Change(Verb.DELETE, record, "the runtime gave back what it was about")


def _bind(desired: Allocation, asked: Records, observed: Records) -> Plan:
    others = [a for a, _ in desired.adoptions]
    bound = {a.key for a in (*asked.attachments, *others)}
    wanted = [i for i in asked.intents if i.state is IntentState.WANTED]
    lost = [i for i in wanted if i.key in bound and not i.netns_alive]
    replaced = [i for i in wanted if i.key in asked.superseded and i.netns_alive]
    refusals = [*map(_netns_gone, lost), *map(_sandbox_replaced, replaced)]
    new = [i for i in wanted if i.key not in bound]
    if not new:
        return Plan(refusals=tuple(refusals))
    held = (*observed.attachments, *others)
    # By number: an address computes its hash anew each time, and each pod looks at all there are.
    taken = {int(address) for a in held for address in a.addresses}
    taken.update(int(c.address) for c in observed.cooling)
    taken.update(map(int, desired.elsewhere | observed.withheld(desired.now)))
    namespaces = _namespaces(held)
    veths = {a.veth: a.key for a in held}
    undecided = observed.undecided
    leaving = [*(q.network for q in observed.quarantined), *desired.occupied]
    offers = _offers(desired, taken, leaving)
    actions: list[Action] = []
    for intent in new:
        netns = netns_identity(intent.netns, intent.netns_inode)
        veth = _veth(intent.key, intent.pod, desired)
        if not intent.netns_alive:
            refusals.append(_netns_gone(intent))
        elif intent.key in undecided:
            refusals.append(_undecided(intent, undecided[intent.key]))
        elif holder := namespaces.get(netns) or namespaces.get(intent.netns_inode or netns):
            is_leaving = holder in observed.released
            refusals.append((_netns_leaving if is_leaving else _netns_taken)(intent, holder))
        elif veth in veths:
            refusals.append(_veth_taken(intent, veth, veths[veth]))
        elif desired.unread:
            refusals.append(_unread(intent))
        elif desired.unexplained:
            refusals.append(_unexplained(intent, desired.unexplained))
        elif offer := next(offers, None):
            actions.append(_binding(intent, *offer, veth=veth))
            namespaces[intent.netns_inode or netns] = veths[veth] = intent.key
        else:
            refusals.append(_exhausted(intent, desired, observed))
    return Plan(tuple(actions), tuple(refusals))


def _namespaces(held: Iterable[Attachment]) -> dict[str | int, AttachmentKey]:
    """Say whose each namespace is: by its identity, and by its inode while it lives.

    A namespace has as many paths as somebody gives it. The inode of one that is gone is another
    one's next.
    """
    held = list(held)
    found: dict[str | int, AttachmentKey] = {a.netns: a.key for a in held}
    found.update((netns_inode(a.netns), a.key) for a in held if a.netns_alive)
    found.pop(0, None)  # of one whose inode is not known
    return found


def _name_unexplained(desired: Allocation) -> Plan:
    return Plan(
        refusals=tuple(
            Issue(
                subject=f"link {link.veth}",
                reason="AddressUnknown",
                message=f"it is of {link.key}, of which neither a record nor a route is left, and "
                "which address it has could be read neither from the host's neighbours nor in its "
                "namespace; it is kept, and no pod is given an address meanwhile; end that "
                "container, or delete the link",
            )
            for link in desired.unexplained
        )
    )


def _name_occupied(desired: Allocation, observed: Records) -> Plan:
    """Say which addresses the host keeps from pods, and whom that cuts off."""
    holders = {own: a for a in observed.living for own in a.addresses}
    named = sorted(desired.occupied.items(), key=lambda o: (o[0].version, o[0]))
    refusals = []
    for network, where in named[:MAX_NAMED]:
        pods = sorted(a.pod or str(a.key) for own, a in holders.items() if own in network)
        hurt = f"packets for {', '.join(pods)} end at the host" if pods else "no pod is given it"
        what = network.network_address if network.prefixlen == network.max_prefixlen else network
        refusals.append(
            Issue(
                subject=f"address {what}",
                reason="AddressOnHost",
                message=f"an ENI holds it for pods, but the host takes it for its own: {where}; "
                f"{hurt}; remove it from there",
            )
        )
    if len(named) > MAX_NAMED:
        more = f"{len(named) - MAX_NAMED} more addresses for pods are on the host"
        refusals.append(Issue("addresses", "AddressOnHost", more))
    return Plan(refusals=tuple(refusals))


def _name_copies(desired: Allocation, observed: Records) -> Plan:
    """Say for which records nothing is done, because what they name is another pod's."""
    return Plan(
        refusals=tuple(
            Issue(
                subject=f"attachment {key}",
                reason="AssignedTwice",
                message=f"its record names a link or an address of {holder}, whose link is there; "
                "nothing is made for it; if it was copied or put back by hand, it is released "
                "once its namespace has ended, or else end one of these pods",
            )
            for key, holder in find_copies(observed.living, desired.linked).items()
        )
    )


def _finish(desired: Allocation, observed: Records) -> Plan:
    """Record that everything was seen in place, before the ADD is answered.

    From then on the pod's namespace is the pod's: whoever starts next must know it.
    """
    return Plan(
        tuple(
            Change(Verb.UPDATE, replace(a, unfinished=False), "everything of it is in place", a)
            for a in observed.living
            if a.unfinished and a.key in desired.finished
        )
    )


def _begin_again(desired: Allocation, observed: Records) -> Plan:
    """Record that a link is gone and is made anew, with all that ADD would put into it.

    Both of its ends are gone then, so nothing of the pod's own is in the way. Before it is made,
    because a crash must not leave a link without an address.
    """
    adopted = {a.key for a, _ in desired.adoptions}
    return Plan(
        tuple(
            Change(Verb.UPDATE, replace(a, unfinished=True), "its link is gone", a)
            for a in observed.living
            if not a.unfinished
            and a.netns_alive
            and a.key not in desired.linked | desired.finished
            and a.key not in adopted
        )
    )


def _keep(desired: Allocation, observed: Records) -> Plan:
    """Name the pods that keep what they have started with, whatever the document says now.

    Others know a running pod by the name of its link, and its runtime by its addresses. Pods that
    were taken over have names of the stock plugin's, which is no news.
    """
    families = {*desired.families, *desired.egress}
    names: list[str] = []
    addresses: list[str] = []
    for a in observed.living:
        who = a.pod or str(a.key)
        if not any(a.kept_macs) and a.veth != _veth(a.key, a.pod, desired):
            names.append(f"{who} ({a.veth})")
        if {family_of(own).name for own in a.addresses} != families:
            addresses.append(f"{who} ({', '.join(map(str, a.addresses))})")
    return Plan(
        findings=tuple(
            Issue(f"{len(pods)} pods", "KeptUntilRestart", f"{what}: {', '.join(pods)}")
            for what, pods in (
                ("they keep the names of their links until they restart", names),
                ("they keep the addresses they have until they restart", addresses),
            )
            if pods
        )
    )


def _leave_out(observed: Records) -> Plan:
    """Name what cannot be understood; all others are served."""
    intents = [
        Issue(
            subject=f"intent {what.partition(': ')[0]}",
            reason="IntentUnreadable",
            message=f"{what}; a DEL for its container, or removing the file, ends this",
        )
        for what in observed.unreadable
    ]
    records = [
        Issue(
            subject=f"record {record.path}",
            reason="RecordUnreadable",
            message="it could not be read and was set aside; what the kernel has of it is kept, "
            f"and no pod is given {_spell(record.addresses)} for {WITHHELD_S / 60:.0f} minutes; "
            f"look "
            "why, then remove the file",
        )
        for record in observed.set_aside[:MAX_NAMED]
    ]
    if (more := len(observed.set_aside) - MAX_NAMED) > 0:
        records.append(
            Issue(
                subject="records",
                reason="RecordUnreadable",
                message=f"{more} more could not be read and were set aside beside "
                f"{observed.set_aside[0].path}; look why, then remove the files",
            )
        )
    crowded = [
        Issue(
            subject=f"directory {path}",
            reason="TooManyFiles",
            message=f"{what}: pods that ask are served by name, and records that are known come "
            "first; remove what neither a runtime nor the reconciler has put there",
        )
        for path, what in observed.crowded
    ]
    return Plan(refusals=(*intents, *records, *crowded))


def _spell(addresses: frozenset[IpAddress]) -> str:
    ordered = sorted(addresses, key=lambda a: (a.version, int(a)))
    return ", ".join(map(str, ordered)) or "an address that the kernel shows in use"


def _veth(key: AttachmentKey, pod: str, desired: Allocation) -> str:
    """Return the name of the host end; a sandbox of no pod has only its own to be called by."""
    if desired.veth_of_pod and pod:
        return pod_veth_name(desired.veth_prefix, pod)
    return veth_name(desired.veth_prefix, key)


def _offers(
    desired: Allocation, taken: Collection[int], leaving: Collection[IpNetwork]
) -> Iterator[tuple[Eni, tuple[IpAddress, ...]]]:
    """Yield what a pod can get, lowest first: an ENI, and one address of each family.

    All addresses of a pod are of one ENI, so that it leaves by the same in every family.
    """
    local = [_hosts(FAMILIES[name].node_local, taken) for name in desired.egress]
    for place, eni in enumerate(desired.enis):
        earlier = desired.enis[:place]
        others = {n for e in earlier for n in e.ipv6_prefixes} | set(leaving)
        whole = [n for n in eni.ipv6_prefixes if n not in others]
        streams = [
            _staying(_held(name, eni, whole, taken), earlier, leaving) for name in desired.families
        ]
        for addresses in zip(*streams, *local, strict=False):
            yield eni, addresses


def _staying(
    free: Iterable[IpAddress], earlier: Collection[Eni], leaving: Collection[IpNetwork]
) -> Iterator[IpAddress]:
    """Leave out what goes, and what was offered: during a move two ENIs may show the same.

    An ENI may hold hundreds; they are looked through only as far as they are asked for.
    """
    return (
        a
        for a in free
        if not any(a in n for n in leaving) and not any(e.holds(a) for e in earlier)
    )


def _held(
    family: str, eni: Eni, whole: Iterable[IpNetwork], taken: Collection[int]
) -> Iterator[IpAddress]:
    """Yield what an ENI has free of a family: single addresses, then those of prefixes."""
    version = FAMILIES[family].version
    single = (a for a in eni.secondaries if int(a) not in taken and a.version == version)
    prefixes = (_free(p, taken) for p in eni.prefixes if p.version == version)
    networks = (_hosts(n, taken) for n in whole if n.version == version)
    return chain(single, *prefixes, *networks)


def _free(network: IpNetwork, taken: Collection[int], spared: int = 0) -> Iterator[IpAddress]:
    """Yield a network's addresses, but for some at both ends; never all of them at once."""
    first = int(network.network_address)
    numbers = range(first + spared, first + network.num_addresses - spared)
    return (network[number - first] for number in numbers if number not in taken)


def _hosts(network: IpNetwork, taken: Collection[int]) -> Iterator[IpAddress]:
    """Leave out the first and the last, which are no host's."""
    return _free(network, taken, spared=1)


def _binding(
    intent: Intent, eni: Eni, addresses: tuple[IpAddress, ...], *, veth: str
) -> Change[Attachment]:
    attachment = Attachment(
        key=intent.key,
        netns=netns_identity(intent.netns, intent.netns_inode),
        addresses=addresses,
        eni_id=eni.eni_id,
        veth=veth,
        pod=intent.pod,
        unfinished=True,
    )
    return Change(Verb.CREATE, attachment, f"wanted by {intent.pod or intent.key}")


def _exhausted(intent: Intent, desired: Allocation, observed: Records) -> Issue:
    held = {a for e in desired.enis for a in e.pod_addresses}
    networks = [q.network for q in observed.quarantined]
    leaving = {a for a in held if any(a in network for network in networks)}
    if lacking := _lacking(desired):
        return Issue(
            subject=f"intent {intent.key}",
            reason="AddressesExhausted",
            message=f"no ENI of {len(desired.enis)} has a prefix of {lacking} yet; it is served "
            "as soon as EC2 has given one",
        )
    if not any(FAMILIES[name].counted for name in desired.families):
        ranges = " and ".join(str(FAMILIES[name].node_local) for name in desired.egress)
        return Issue(
            subject=f"intent {intent.key}",
            reason="AddressesExhausted",
            message=f"no address is free on {len(desired.enis)} ENIs, or none of {ranges or '-'} "
            f"for egress: {len(observed.attachments)} pods, {len(observed.cooling)} cooling; it "
            "is served as soon as one has cooled",
        )
    quarantined = f", {len(leaving)} quarantined" if leaving else ""
    on_host = sum(any(a in network for network in desired.occupied) for a in held)
    quarantined += f", {on_host} on the host" if on_host else ""
    return Issue(
        subject=f"intent {intent.key}",
        reason="AddressesExhausted",
        message=f"no address is free: {len(held)} held on {len(desired.enis)} ENIs, "
        f"{len(observed.attachments)} assigned, {len(observed.cooling)} cooling{quarantined}; "
        "it is served as soon as the pool has grown or an address has cooled",
    )


def _unread(intent: Intent) -> Issue:
    return Issue(
        subject=f"intent {intent.key}",
        reason="AddressesUnknown",
        message="the routes of pods that amazon-vpc-cni-k8s may have left could not be read since "
        "the start, so no address is known to be free; it is served once they can be",
    )


def _unexplained(intent: Intent, links: tuple[Unexplained, ...]) -> Issue:
    more = f" and of {len(links) - 1} more" if len(links) > 1 else ""
    return Issue(
        subject=f"intent {intent.key}",
        reason="AddressesUnknown",
        message=f"the address of link {links[0].veth}{more} is not known, so no address is known "
        "to be free; it is served once that is known, or the link is gone",
    )


def _lacking(desired: Allocation) -> str:
    """Name the families that no ENI has a prefix of."""
    held = {family_of(n).name for e in desired.enis for n in e.ipv6_prefixes}
    missing = [n for n in desired.families if not FAMILIES[n].counted and n not in held]
    return " and ".join(missing)


def _undecided(intent: Intent, record: SetAside) -> Issue:
    return Issue(
        subject=f"intent {intent.key}",
        reason="RecordUnreadable",
        message=f"what it was given is in {record.path}, which cannot be read, and the kernel has "
        "no link of it: nothing new is bound to it, because its pod may run with the old address; "
        "a DEL for this container, or removing that file, ends this",
    )


def _netns_leaving(intent: Intent, holder: AttachmentKey) -> Issue:
    return Issue(
        subject=f"intent {intent.key}",
        reason="NetnsStillTaken",
        message=f"{intent.netns} has {holder} until that is released, which is under way; it is "
        "served as soon as nothing of it is left",
    )


def _netns_taken(intent: Intent, holder: AttachmentKey) -> Issue:
    return Issue(
        subject=f"intent {intent.key}",
        reason="NetnsTaken",
        message=f"{intent.netns} already has {holder} for its way out; a second interface of ours "
        "in one namespace is not supported",
    )


def _veth_taken(intent: Intent, veth: str, holder: AttachmentKey) -> Issue:
    return Issue(
        subject=f"intent {intent.key}",
        reason="VethNameTaken",
        message=f"link {veth} of pod {intent.pod} is still that of its sandbox {holder}; it is "
        "served as soon as a DEL, or the end of that sandbox's namespace, has released it",
    )


def _sandbox_replaced(intent: Intent) -> Issue:
    return Issue(
        subject=f"intent {intent.key}",
        reason="SandboxReplaced",
        message=f"what this container had in its former namespace is being released; it is served "
        f"in {intent.netns} as soon as nothing of that is left",
    )


def _netns_gone(intent: Intent) -> Issue:
    return Issue(
        subject=f"intent {intent.key}",
        reason="NetnsGone",
        message=f"{intent.netns} is gone, not the namespace it was when the pod asked, or the "
        "host's own; a DEL for this container ends it",
    )
