"""Where a pod's packets should come, as rows, and what was seen of each. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from reconciler.core.attachment import Attachment
from reconciler.core.datapath import INSTANCE_METADATA, IpAddress, family_of
from reconciler.domains.inputs import Inputs

HTTP, DNS, ANY_PORT = 80, 53, 9
"""Ports: of instance metadata, of a resolver, and one on which a pod seldom listens (discard):
that a connection to it is refused shows that packets come and go."""

MOST_TARGETS = 64  # that are named


@dataclass(frozen=True, slots=True)
class Target:
    """Something to reach. ``is_dns``: by a question of DNS over UDP, else by TCP."""

    name: str
    address: IpAddress
    port: int
    is_dns: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What was seen: reached, refused on the way (False), or no answer at all (None)."""

    reached: bool | None
    text: str


def parse(text: str) -> Target:
    """Read ``ADDRESS``, ``ADDRESS:PORT``, ``[ADDRESS]:PORT`` or ``dns:ADDRESS``.

    Raises:
        ValueError: it is none of these.
    """
    if text.startswith("dns:"):
        return Target(text, ip_address(text.removeprefix("dns:").strip("[]")), DNS, is_dns=True)
    try:
        return Target(text, ip_address(text.strip("[]")), ANY_PORT)
    except ValueError:
        where, _, port = text.rpartition(":")
    number = int(port) if port.isascii() and port.isdigit() else 0
    if not 0 < number < 1 << 16:
        raise ValueError(
            f"{text!a} is neither ADDRESS, ADDRESS:PORT nor dns:ADDRESS; names are not resolved"
        )
    return Target(text, ip_address(where.strip("[]")), number)


def rows(inputs: Inputs, pod: Attachment, named: Iterable[Target]) -> Iterator[Target]:
    """Yield what is tried from a pod: the node, another pod here, metadata, and what was named."""
    versions = {a.version for a in pod.vpc_addresses}
    primary = inputs.primary
    for version in sorted(versions):
        if primary is not None and (host := primary.host_address(version)) is not None:
            yield Target("this node", host, ANY_PORT)
        others = (o for a in inputs.attachments if a.key != pod.key for o in a.vpc_addresses)
        if other := next((o for o in others if o.version == version), None):
            yield Target("another pod of this node", other, ANY_PORT)
    for own in pod.addresses:
        yield Target("instance metadata", INSTANCE_METADATA[family_of(own).name], HTTP)
    yield from (t for t in named if t.address.version in _versions(pod))


def _versions(pod: Attachment) -> set[int]:
    return {a.version for a in pod.addresses}


def unfit(pod: Attachment, named: Iterable[Target]) -> Iterator[tuple[Target, Answer]]:
    """Yield what was named and cannot be tried: the pod has no address of that family."""
    for target in named:
        if (version := target.address.version) not in _versions(pod):
            yield target, Answer(None, f"not tried: the pod has no IPv{version} address")
