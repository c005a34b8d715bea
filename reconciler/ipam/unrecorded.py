"""Attachments without a record: what the kernel, or the pod's own link, says of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from reconciler.core.attachment import Attachment, AttachmentKey, Intent, netns_identity
from reconciler.core.datapath import MAC_STAMP, IpAddress, is_node_local
from reconciler.core.facts import Eni


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
