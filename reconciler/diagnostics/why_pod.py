"""Why a pod has what it has, and what an address of this node is for: in words, with settings."""

from __future__ import annotations

from collections.abc import Iterator

from reconciler.core.attachment import Attachment, netns_path
from reconciler.core.datapath import IpAddress, is_node_local
from reconciler.core.facts import Eni
from reconciler.diagnostics.why import Where, name_eni, name_pod, objects_of, snat_of
from reconciler.domains.inputs import Inputs
from reconciler.errors import UnknownPodError
from reconciler.ipam.life import Pod, State, pods_of
from reconciler.ipam.records import Records
from schemas.group import group_of

STATES = {
    State.WANTED: "waits for an address",
    State.UNREADABLE: "its record cannot be read, so nothing new is bound to it",
    State.BOUND: "has its address; not all of its objects were seen in place yet",
    State.READY: "all of its objects were seen in place, and its ADD was answered",
    State.REPLACED: "its former sandbox is being released; a later one waits",
    State.RELEASED: "a DEL has come, and its objects are being removed",
    State.WITHDRAWN: "a DEL has come, and nothing is bound",
}
"""What each state means, as docs/architecture.md has it."""

ENDS = (
    "with a DEL of its container, or ten seconds after its namespace and link are both gone; then "
    "each address cools for {cooldown} at least, by {where}"
)


def find(records: Records, text: str) -> Pod:
    """Return the pod that a person means, one that only waits included.

    The text is ``namespace/name``, a name, an address, or the start of a container ID.

    Raises:
        UnknownPodError: there is none, or more than one.
    """
    pods = [p for of in pods_of(records).values() for p in of]
    found = [p for p in pods if text in _names(p) or p.key.container_id.startswith(text)]
    if len(found) != 1:
        raise UnknownPodError(text, [_named(p) for p in found or pods])
    return found[0]


def _names(pod: Pod) -> Iterator[str]:
    name = _pod_of(pod)
    yield from (name, name.rpartition("/")[2]) if name else ()
    yield from map(str, pod.attachment.addresses if pod.attachment else ())


def _pod_of(pod: Pod) -> str:
    parts = (pod.attachment.pod if pod.attachment else "", pod.intent.pod if pod.intent else "")
    return next(filter(None, parts), "")


def _named(pod: Pod) -> str:
    return _pod_of(pod) or str(pod.key)


def list_pods(records: Records) -> Iterator[tuple[str, str]]:
    """Yield each pod of a node, and its state with its addresses, in the order of the names."""
    pods = [p for of in pods_of(records).values() for p in of]
    for pod in sorted(pods, key=lambda p: (_named(p), p.key)):
        held = pod.attachment
        where = f"{' '.join(map(str, held.addresses))} on {held.eni_id}; " if held else ""
        yield _named(pod), f"{where}{pod.state}: {STATES.get(pod.state, 'nothing is recorded')}"


def explain_pod(
    pod: Pod, inputs: Inputs, where: Where, *, since: str = ""
) -> Iterator[tuple[str, str]]:
    """Yield headings and texts about a pod.

    ``since``: when its intent was written, as text; "" if that is not known.
    """
    yield "pod", f"{_named(pod)}, interface {pod.key.ifname} of container {pod.key.container_id}"
    yield "state", f"{pod.state}: {STATES.get(pod.state, 'nothing is recorded')}"
    if since:
        yield "since", f"{since}, when its intent was written last"
    yield "group", _group(pod, inputs, where)
    if (a := pod.attachment) is not None:
        yield from _of_attachment(a, inputs, where)
    cooldown = inputs.document.warm_pool.cooldown.total_seconds()
    ends = ENDS.format(cooldown=f"{cooldown:g} s", where=where("warmPool", "cooldown"))
    yield "ends", ends if pod.attachment else "with a DEL of its container, or when it is served"


def _group(pod: Pod, inputs: Inputs, where: Where) -> str:
    name = group_of(_pod_of(pod), inputs.document.pod_groups)
    for number, group in enumerate(inputs.document.pod_groups):
        if group.name == name:
            return f"{name}, by {where('podGroups', number)}"
    return "none: no entry of podGroups matches it" if inputs.document.pod_groups else "none"


def _of_attachment(a: Attachment, inputs: Inputs, where: Where) -> Iterator[tuple[str, str]]:
    eni = next((e for e in inputs.enis if e.eni_id == a.eni_id), None)
    for own in a.addresses:
        yield "address", f"{own}: {_source(own, eni, inputs, where)}"
    link = f"{a.veth}, the host end; the other is in {netns_path(a.netns) or 'a namespace'}"
    yield "link", link
    yield "snat", snat_of(inputs, a)
    yield from (("object", command) for command in objects_of(inputs, a))


def _source(own: IpAddress, eni: Eni | None, inputs: Inputs, where: Where) -> str:
    if is_node_local(own):
        return f"for egress alone, good on this node only, by {where('egressFamilies')}"
    if eni is None:
        return "of an ENI that EC2 shows here no more"
    names = dict(inputs.pod_enis)
    subnet = f"{eni.subnet_id}, {'by ' + where('eni', 'subnets') if not eni.is_primary else ''}"
    return (
        f"the first free one on {name_eni(eni, names.get(eni, ''))} in subnet "
        f"{subnet.rstrip(', ')}, when it asked"
    )


def own_address(
    address: IpAddress, records: Records, inputs: Inputs, where: Where
) -> Iterator[str]:
    """Say what an address of this node is for; nothing if no ENI of it has the address."""
    holder = next((e for e in inputs.enis if e.holds(address)), None)
    for eni in inputs.enis:
        if address in (eni.primary, *eni.host_addresses):
            yield f"it is the node's own address on {name_eni(eni)}: no pod is given it"
    if holder is not None:
        prefix = next((n for n in (*holder.prefixes, *holder.ipv6_prefixes) if address in n), None)
        of = f"{prefix} of {name_eni(holder)}" if prefix else name_eni(holder)
        yield f"EC2 has assigned it to this node: {of} in {holder.subnet_id}"
    states = list(_states(address, records, inputs, where))
    yield from states
    if holder is not None and not states:
        yield "allocatable: the next pod may get it"


def _states(address: IpAddress, records: Records, inputs: Inputs, where: Where) -> Iterator[str]:
    for a in records.attachments:
        if address in a.addresses:
            yield f"assigned: {name_pod(a)} has it, with link {a.veth}; it ends with its DEL"
    for i in records.identities:
        if address in i.addresses:
            yield f"dedicated to {i.owner}, by {where('snat', 'rules')}: no pod is given it"
    for c in records.cooling:
        if c.address == address:
            left = max(c.until - inputs.now, 0.0)
            ended = "a namespace had it" if c.spares else "its pod has ended"
            yield (
                f"cooling: {ended}; allocatable in {left:.0f} s, by "
                f"{where('warmPool', 'cooldown')}, once conntrack has no entry of it"
            )
    for q in records.quarantined:
        if address in q.network:
            age = max(inputs.now - q.since, 0.0)
            asked = "EC2 was asked to take it back" if q.asked else "EC2 is asked to take it back"
            yield (
                f"quarantined for {age:.0f} s, with {q.network}: the pool does not need it, by "
                f"{where('warmPool')}; {asked}, unless a pod needs it first"
            )
    yield from _withheld(address, inputs, where)


def _withheld(address: IpAddress, inputs: Inputs, where: Where) -> Iterator[str]:
    for number, network in enumerate(inputs.document.reserved_addresses):
        if network.version == address.version and address in network:
            yield f"reserved, by {where('reservedAddresses', number)}: no pod is given it"
    for network, place in inputs.host.occupied.items():
        if network.version == address.version and address in network:
            yield f"on the host: {place}; no pod is given it"
