"""Intents and attachments: what a pod asked for, and what it was given."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar, NamedTuple

from reconciler.core.datapath import ALIAS, IpAddress, is_node_local, stable_mac
from reconciler.engine.plan import Key, Verb

IFNAMSIZ = 15  # longest interface name, without the terminating NUL (linux/if.h)


MAX_VETH_PREFIX = 4
"""Characters of ``pods.vethPrefix`` at most; the rest of a host veth's name is a hash."""

MAX_POD_ADDRESSES = 8
"""Addresses of a pod: it has one of each family, and one for egress. A record, the routes to a
link or the host's neighbours on it that say more are not believed."""

POD_DIGITS = 11
"""Hexadecimal digits in the name of a host veth that is called after its pod. Calico's choice, and
the stock plugin's: libcalico-go ``VethNameForWorkload``."""


class AttachmentKey(NamedTuple):
    """Identity of an attachment. Source: CNI specification, "Attachment parameters"."""

    container_id: str
    ifname: str

    def __str__(self) -> str:
        return f"{self.container_id}/{self.ifname}"


def intent_name(key: AttachmentKey, pod: str) -> str:
    """Return how conditions and errors call what a pod asked for; ``pod`` is "" if unknown."""
    return f"intent {key} of pod {pod}" if pod else f"intent {key}"


class IntentState(StrEnum):
    """What the runtime last asked for this key."""

    WANTED = "wanted"
    RELEASED = "released"


@dataclass(frozen=True, slots=True)
class Intent:
    """One CNI call, as recorded."""

    kind: ClassVar[str] = "intent"
    key: AttachmentKey
    state: IntentState
    netns: str  # path of the pod's network namespace; empty for a release that did not name it
    # its inode when the intent was written, 0 if unknown: a path can be reused
    netns_inode: int = 0
    # the path still leads to that inode; read again with every observation
    netns_alive: bool = True
    pod: str = ""  # ``namespace/name``, empty when the runtime did not say
    attempt: str = ""  # the ADD that wrote it; empty if none did
    # the trace that ADD is part of, empty if it is part of none; for the log
    trace: str = field(default="", compare=False)

    def command(self, verb: Verb) -> str:
        return f"{'forget' if verb is Verb.DELETE else 'record'} {self.state} intent {self.key}"


@dataclass(frozen=True, slots=True)
class Attachment:
    """An intent plus what it was given. Recorded before any kernel change.

    All names and MACs follow from the key and the prefix that was in force when it was bound, so
    a restart, or a change of the document, never renames the link of a running pod. A pod that was
    taken over from the stock plugin keeps the name and MACs it has.

    Attributes:
        netns: the pod's namespace as ``path@inode`` (see ``netns_identity``); "" if it was rebuilt
            from the kernel, which does not know the path.
        addresses: one for each family, in the document's order; never empty.
        eni_id: the ENI that held the addresses when they were bound, all of them the same one, so
            that every family leaves by it; "" if none was found. Its device index is not
            recorded: an ENI that is attached again may get another one.
        veth: name of the host end of its link.
        netns_alive: the namespace can be reached; read again with every observation.
        kept_macs: of the host's and the pod's end, where they do not follow from the key; "" for
            one that does.
        unfinished: not everything of it was seen in place yet, so its ADD was not answered; or its
            link is being made anew. What is in the pod's namespace is ours until then.
    """

    kind: ClassVar[str] = "attachment"
    key: AttachmentKey
    netns: str
    addresses: tuple[IpAddress, ...]
    eni_id: str
    veth: str
    pod: str = ""
    netns_alive: bool = field(default=True, compare=False)
    kept_macs: tuple[str, str] = ("", "")
    unfinished: bool = field(default=False, compare=False)

    @property
    def vpc_addresses(self) -> tuple[IpAddress, ...]:
        """Those that EC2 gave: by which other hosts reach the pod."""
        return tuple(a for a in self.addresses if not is_node_local(a))

    @property
    def alias(self) -> str:
        """What the host veth's alias says: whose it is."""
        return link_alias(self.key)

    @property
    def host_mac(self) -> str:
        """MAC of the host end; the pod's permanent neighbour entry holds it."""
        return self.kept_macs[0] or stable_mac(str(self.key), "host")

    @property
    def pod_mac(self) -> str:
        """MAC of the pod's end."""
        return self.kept_macs[1] or stable_mac(str(self.key), "pod")

    @property
    def is_pod_mac_known(self) -> bool:
        """Not if its record was rebuilt from a host end that is not of our making."""
        return not self.kept_macs[0] or bool(self.kept_macs[1])

    def command(self, verb: Verb) -> str:
        what = " and ".join(map(str, self.addresses))
        if verb is Verb.DELETE:
            return f"release {what} from {self.key}"
        if verb is Verb.UPDATE:
            return f"record {self.key} as {'un' if self.unfinished else ''}finished"
        return f"bind {what} on {self.eni_id} to {self.key}"


@dataclass(frozen=True, slots=True)
class Cooling:
    """A released address in cooldown: it is not given out yet.

    ``until`` is in seconds since the epoch; the wall clock, because it must outlive a restart.
    ``spares``: connections that still use it are waited for, and not ended.
    """

    kind: ClassVar[str] = "cooling"
    address: IpAddress
    until: float
    spares: bool = False

    @property
    def key(self) -> Key:
        return (self.address.version, int(self.address))

    def command(self, verb: Verb) -> str:
        words = {Verb.CREATE: "begin", Verb.UPDATE: "shorten", Verb.DELETE: "end"}
        return f"{words[verb]} cooldown of {self.address}"


def netns_identity(path: str, inode: int) -> str:
    """Return what a namespace is known by: ``path@inode``, or the path if the inode is unknown.

    A path can be used again for another namespace within milliseconds of the first one's end. With
    the inode, what was meant for the dead pod cannot reach the living one.
    """
    return f"{path}@{inode}" if inode else path


def is_superseded(attachment: Attachment, intent: Intent) -> bool:
    """Whether an intent is of a later sandbox than the attachment of its key.

    A container keeps its ID when it is started again, in another namespace; what it had in the
    old one is to be released then, and nothing of it may be found in the new one. A path that is
    another name of the same living namespace makes no other sandbox.
    """
    if intent.state is not IntentState.WANTED or not intent.netns_alive or not attachment.netns:
        return False
    if attachment.netns == netns_identity(intent.netns, intent.netns_inode):
        return False
    path, inode = netns_path(attachment.netns), netns_inode(attachment.netns)
    if inode and inode == intent.netns_inode:
        return path != intent.netns and not attachment.netns_alive
    return bool(inode and intent.netns_inode) or path != intent.netns


def netns_path(identity: str) -> str:
    """Return the path in a namespace's identity, for people to use."""
    path, at, inode = identity.rpartition("@")
    return path if at and inode.isdigit() else identity


def nsenter(identity: str) -> str:
    """Begin a command that is run in a namespace; "" in the host's."""
    return f"nsenter --net={netns_path(identity)} " if identity else ""


def netns_inode(identity: str) -> int:
    """Return the inode in a namespace's identity, 0 if it is unknown."""
    _, at, inode = identity.rpartition("@")
    return int(inode) if at and inode.isdigit() else 0


def link_alias(key: AttachmentKey) -> str:
    """Return what the alias of an attachment's host veth says."""
    return f"{ALIAS}:{key}"


def alias_key(alias: str) -> AttachmentKey | None:
    """Return the attachment that an alias names; None if it is not one of ours."""
    start, _, key = alias.partition(":")
    container_id, slash, ifname = key.rpartition("/")
    if start != ALIAS or not slash:
        return None
    return AttachmentKey(container_id, ifname)


def veth_name(prefix: str, key: AttachmentKey) -> str:
    """Return the host veth's name: the prefix and as much of a hash as fits into a name."""
    return (prefix + hashlib.sha256(str(key).encode()).hexdigest())[:IFNAMSIZ]


def pod_veth_name(prefix: str, pod: str) -> str:
    """Return the name by which Calico knows the host veth of a pod, whatever its sandbox is.

    The prefix is Calico's FELIX_INTERFACEPREFIX, the pod ``namespace/name``.
    """
    namespace, _, name = pod.partition("/")
    digest = hashlib.sha1(f"{namespace}.{name}".encode(), usedforsecurity=False).hexdigest()
    return prefix + digest[:POD_DIGITS]
