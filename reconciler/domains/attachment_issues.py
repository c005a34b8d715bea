"""Why a pod gets no address yet, and what is wrong with records and addresses: as issues."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from reconciler.core.attachment import AttachmentKey, Intent, intent_name
from reconciler.core.datapath import FAMILIES, IpAddress, IpNetwork
from reconciler.errors import Issue
from reconciler.ipam.allocation import Supply, Unexplained, lacking
from reconciler.ipam.records import WITHHELD_S, Records, find_copies

MAX_NAMED = 20
"""Unreadable records, and addresses on the host, that get a condition each; the others are counted
in one more."""

NOT_GIVEN = "no pod is given it"


def exhausted(intent: Intent, supply: Supply, observed: Records, group: str = "") -> Issue:
    """No address is free on the ENIs of the pod's group."""
    held = {a for e in supply.enis for a in e.pod_addresses}
    where = f"{len(supply.enis)} ENIs"
    assigned, cooling = len(observed.attachments), len(observed.cooling)
    if group:
        where += f" of group {group}"
        names = {e.eni_id for e in supply.enis}
        assigned = sum(a.eni_id in names for a in observed.attachments)
        cooling = sum(any(e.holds(c.address) for e in supply.enis) for c in observed.cooling)
    if group and not supply.enis:
        message = (
            f"the node has no ENI of group {group} yet; it is served as soon as there is one, "
            f"unless a condition of the group says why it cannot be had"
        )
    elif missing := lacking(supply):
        message = (
            f"no ENI of {len(supply.enis)} has a prefix of {missing} yet; it is served "
            "as soon as EC2 has given one"
        )
    elif not any(FAMILIES[name].counted for name in supply.families):
        ranges = " and ".join(str(FAMILIES[name].node_local) for name in supply.egress)
        message = (
            f"no address is free on {where}, or none of {ranges or '-'} for egress: {assigned} "
            f"pods, {cooling} cooling; it is served as soon as one has cooled"
        )
    else:
        leaving = sum(any(a in q.network for q in observed.quarantined) for a in held)
        on_host = sum(any(a in network for network in supply.occupied) for a in held)
        reserved = sum(any(a in network for network in supply.reserved) for a in held)
        more = f", {leaving} quarantined" if leaving else ""
        more += f", {reserved} reserved" if reserved else ""
        more += f", {on_host} on the host" if on_host else ""
        message = (
            f"no address is free: {len(held)} held on {where}, {assigned} assigned, {cooling} "
            f"cooling{more}; it is served as soon as the pool has grown or an address has cooled"
        )
    return _of(intent, "AddressesExhausted", message)


WHY_NOT = {
    "unread": (
        "AddressesUnknown",
        "the routes of pods that amazon-vpc-cni-k8s may have left could not be read since the "
        "start, so no address is known to be free; it is served once they can be",
    ),
    "unexplained": (
        "AddressesUnknown",
        "the address of link {links} is not known, so no address is known to be free; it is "
        "served once that is known, or the link is gone",
    ),
    "undecided": (
        "RecordUnreadable",
        "what it was given is in {path}, which cannot be read, and the kernel has no link of it: "
        "nothing new is bound to it, because its pod may run with the old address; a DEL for this "
        "container, or removing that file, ends this",
    ),
    "netns_leaving": (
        "NetnsStillTaken",
        "{intent.netns} has {holder} until that is released, which is under way; it is served as "
        "soon as nothing of it is left",
    ),
    "netns_taken": (
        "NetnsTaken",
        "{intent.netns} already has {holder} for its way out; a second interface of ours in one "
        "namespace is not supported",
    ),
    "veth_taken": (
        "VethNameTaken",
        "link {veth} of pod {intent.pod} is still that of its sandbox {holder}; it is served as "
        "soon as a DEL, or the end of that sandbox's namespace, has released it",
    ),
    "sandbox_replaced": (
        "SandboxReplaced",
        "what this container had in its former namespace is being released; it is served in "
        "{intent.netns} as soon as nothing of that is left",
    ),
    "netns_gone": (
        "NetnsGone",
        "{intent.netns} is gone, not the namespace it was when the pod asked, or the host's own; "
        "a DEL for this container ends it",
    ),
}
"""Why a pod gets no address although some may be free: reason and message."""


def why_not(obstacle: str, intent: Intent, **facts: object) -> Issue:
    """Say which obstacle of ``WHY_NOT`` is in a pod's way."""
    reason, message = WHY_NOT[obstacle]
    return _of(intent, reason, message.format(intent=intent, **facts))


def _of(intent: Intent, reason: str, message: str) -> Issue:
    return Issue(intent_name(intent.key, intent.pod), reason, message)


def on_links(links: tuple[Unexplained, ...]) -> Iterator[Issue]:
    """Name the links of ours whose address is unknown."""
    for link in links:
        yield Issue(
            f"link {link.veth}",
            "AddressUnknown",
            f"it is of {link.key}, of which neither a record nor a route is left, and "
            "which address it has could be read neither from the host's neighbours nor in its "
            "namespace; it is kept, and no pod is given an address meanwhile; end that "
            "container, or delete the link",
        )


def on_host(occupied: Mapping[IpNetwork, str], observed: Records) -> Iterator[Issue]:
    """Name the addresses that the host keeps from pods, and whom it cuts off."""
    holders = {own: a.pod or str(a.key) for a in observed.living for own in a.addresses}
    holders |= {own: str(i.owner) for i in observed.identities for own in i.addresses}
    named = sorted(occupied.items(), key=lambda o: (o[0].version, o[0]))
    for network, where in named[:MAX_NAMED]:
        cut_off = sorted(whose for own, whose in holders.items() if own in network)
        hurt = f"packets for {', '.join(cut_off)} end at the host" if cut_off else NOT_GIVEN
        what = network.network_address if network.prefixlen == network.max_prefixlen else network
        yield Issue(
            f"address {what}",
            "AddressOnHost",
            f"an ENI holds it for pods, but the host takes it for its own: {where}; "
            f"{hurt}; remove it from there",
        )
    if len(named) > MAX_NAMED:
        more = f"{len(named) - MAX_NAMED} more addresses for pods are on the host"
        yield Issue("addresses", "AddressOnHost", more)


def on_reserved(reserved: Collection[IpNetwork], observed: Records) -> Iterator[Issue]:
    """Name the pods that were given an address before the document reserved it."""
    for a in observed.living:
        if own := [str(own) for own in a.addresses if any(own in n for n in reserved)]:
            yield Issue(
                f"attachment {a.key}",
                "AddressReserved",
                f"{a.pod or a.key} has {' and '.join(own)}, which reservedAddresses names since; "
                "it keeps it while it runs: restart the pod",
            )


def on_copies(observed: Records, linked: Collection[AttachmentKey]) -> Iterator[Issue]:
    """Name the records that are ignored, because what they name is another pod's."""
    pods = {a.key: a.pod for a in observed.living}
    for key, holder in find_copies(observed.living, linked).items():
        of_pod, to_pod = (f" of pod {pods[k]}" if pods.get(k) else "" for k in (key, holder))
        yield Issue(
            f"attachment {key}{of_pod}",
            "AssignedTwice",
            f"its record names a link or an address of {holder}{to_pod}, whose link is there; "
            "nothing is made for it; if it was copied or put back by hand, it is released "
            "once its namespace has ended, or else end one of these pods",
        )


def on_files(observed: Records) -> Iterator[Issue]:
    """Name the records that cannot be read; all others are served."""
    for what in observed.unreadable:
        yield Issue(
            f"intent {what.partition(': ')[0]}",
            "IntentUnreadable",
            f"{what}; a DEL for its container, or removing the file, ends this",
        )
    for record in observed.set_aside[:MAX_NAMED]:
        yield Issue(
            f"record {record.path}",
            "RecordUnreadable",
            "it could not be read and was set aside; what the kernel has of it is kept, "
            f"and no pod is given {_spell(record.addresses)} for {WITHHELD_S / 60:.0f} minutes; "
            "look why, then remove the file",
        )
    if (more := len(observed.set_aside) - MAX_NAMED) > 0:
        yield Issue(
            "records",
            "RecordUnreadable",
            f"{more} more could not be read and were set aside beside "
            f"{observed.set_aside[0].path}; look why, then remove the files",
        )
    for path, what in observed.crowded:
        yield Issue(
            f"directory {path}",
            "TooManyFiles",
            f"{what}: pods that ask are served by name, and records that are known come "
            "first; remove what neither a runtime nor the reconciler has put there",
        )


def _spell(addresses: frozenset[IpAddress]) -> str:
    ordered = sorted(addresses, key=lambda a: (a.version, int(a)))
    return ", ".join(map(str, ordered)) or "an address that the kernel shows in use"


def on_groups(pods: list[str]) -> Iterator[Issue]:
    """Name the pods that started before the document put them into another group."""
    if pods:
        named = ", ".join(pods[:MAX_NAMED])
        more = f" and {len(pods) - MAX_NAMED} more" if len(pods) > MAX_NAMED else ""
        yield Issue(
            f"{len(pods)} pods",
            "GroupChanged",
            f"the document puts them into another group than their ENI's, on which they stay "
            f"until they restart: {named}{more}",
        )


def kept(names: list[str], addresses: list[str]) -> Iterator[Issue]:
    """Name the pods that keep what the document would give another of."""
    for what, pods in (("names of their links", names), ("addresses they have", addresses)):
        if pods:
            message = f"they keep the {what} until they restart: {', '.join(pods)}"
            yield Issue(f"{len(pods)} pods", "KeptUntilRestart", message)
