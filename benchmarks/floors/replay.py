"""What the kernel is asked for a pod: recorded once, and sent again by what does nothing else.

The product's own messages. One pass takes a pod's objects away and one gives them back, and what
is sent meanwhile is kept. A replay sends the same bytes to the same namespaces and waits for each
answer; links get the numbers that they had. Whoever makes these objects, in whatever language,
has the kernel do this.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import struct
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from benchmarks import testbed
from benchmarks.testbed import Testbed
from lab import netns
from lab.lifecycle import EXECUTABLE
from lab.topology import Names
from reconciler.core.attachment import Attachment
from reconciler.engine.plan import Change, Verb
from reconciler.node.environment import Environment
from reconciler.node.passes import LocalNode
from reconciler.targets.netlink import message
from reconciler.targets.netlink.nfnetlink import NFNL_MSG_BATCH_BEGIN
from reconciler.targets.state.directory import StateDirectory
from schemas.document import NodeNetwork

NEW_LINK, NEW, DELETED = 16, 0, 1
"""Of rtnetlink's types: four of each kind of object, the first makes one, the second ends it."""

IFLA_NET_NS_FD = struct.pack("=HH", 8, 28)
INDEX_AT, IFINFOMSG_BYTES = 4, 16
RECEIVE_BYTES = 1 << 16
RECORDS = 3
"""Files that an ADD has written, and a DEL as well: each with fsync, and renamed."""


@dataclass(frozen=True)
class Message:
    """Bytes for a namespace, by its inode, and a protocol of netlink."""

    where: int
    protocol: int
    data: bytes

    @property
    def kind(self) -> int:
        """Its type, or that of the first one of a transaction."""
        kind: int = message.HEADER.unpack_from(self.data)[1]
        return kind

    @property
    def is_change(self) -> bool:
        """Whether it changes anything, or only asks; each change is acknowledged."""
        if self.protocol == message.NETLINK_ROUTE:
            return self.kind % 4 in (NEW, DELETED)
        return self.kind == NFNL_MSG_BATCH_BEGIN


class Recorded(socket.socket):
    """A socket whose messages are kept.

    Attributes:
        where: the inode of its namespace.
        kept: of all of them.
    """

    where = 0
    kept: ClassVar[list[Message]] = []

    def send(self, data: bytes, flags: int = 0) -> int:  # type: ignore[override]
        """Send, and keep."""
        self.keep(data)
        return super().send(data, flags)

    def sendmsg(self, buffers: Iterable[bytes], *more: Any) -> int:  # type: ignore[override]
        """Send what is in several places, and keep."""
        data = b"".join(buffers)
        self.keep(data)
        return super().sendmsg([data], *more)

    def keep(self, data: bytes) -> None:
        """Keep what is sent: a transaction as a whole, messages of rtnetlink one by one."""
        at = 0
        while at < len(data):
            size = len(data)
            if self.proto == message.NETLINK_ROUTE:
                size = message.HEADER.unpack_from(data, at)[0]
            self.kept.append(Message(self.where, self.proto, bytes(data[at : at + size])))
            at += size + -size % 4


def _open_recorded(protocol: int, groups: int = 0) -> socket.socket:
    made = Recorded(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    made.where = _here()
    if groups:
        made.bind((0, groups))
    return made


def _here() -> int:
    return Path("/proc/thread-self/ns/net").stat().st_ino


class Pod:
    """One pod of a node that comes and goes by replay.

    Attributes:
        adds, deletes: its messages.
    """

    def __init__(self, bed: Testbed, names: Names) -> None:
        self._state = names.state / bed.node
        self._spot = bed.last
        state = StateDirectory(self._state)
        last = _leave(bed, state)[0]
        adds = _return(bed, state, last)
        self._descriptor = os.open(netns.path(bed.last.netns), os.O_RDONLY | os.O_CLOEXEC)
        self._sockets: dict[tuple[int, int], socket.socket] = {}
        for name in (bed.node, bed.last.netns):
            with netns.inside(name):
                for protocol in (message.NETLINK_ROUTE, message.NETLINK_NETFILTER):
                    self._sockets[_here(), protocol] = message.open_socket(protocol)
        with netns.inside(bed.last.netns):
            inner = socket.if_nametoindex("eth0")
        with netns.inside(bed.node):
            own = {name: number for number, name in socket.if_nameindex()}
        self.adds = [self._with_numbers(each, own, inner) for each in adds]
        self.deletes = _leave(bed, state)[1]

    def _with_numbers(self, each: Message, own: dict[str, int], inner: int) -> Message:
        """Have a pair of links made with the numbers that it had, in the namespace it was in."""
        at = each.data.find(IFLA_NET_NS_FD)
        if each.protocol != message.NETLINK_ROUTE or each.kind != NEW_LINK or at < 0:
            return each
        data = bytearray(each.data)
        struct.pack_into("=i", data, at + 4, self._descriptor)
        begin = message.HEADER.size + IFINFOMSG_BYTES + message.ATTRIBUTE.size
        name = each.data[begin : each.data.index(b"\0", begin)].decode()  # its first attribute
        struct.pack_into("=i", data, message.HEADER.size + INDEX_AT, own[name])
        peer = each.data.index(b"eth0\0") - message.ATTRIBUTE.size - IFINFOMSG_BYTES
        struct.pack_into("=i", data, peer + INDEX_AT, inner)
        return Message(each.where, each.protocol, bytes(data))

    def come(self) -> tuple[float, float]:
        """Let it come; return seconds, and of CPU."""
        return self._send(self.adds)

    def go(self) -> tuple[float, float]:
        """Let it go; return seconds, and of CPU."""
        return self._send(self.deletes)

    def _send(self, messages: Sequence[Message]) -> tuple[float, float]:
        began, cpu = time.perf_counter(), time.thread_time()
        for number in range(RECORDS):
            self._write(f"replay{number}")
        for each in messages:
            connection = self._sockets[each.where, each.protocol]
            connection.send(each.data)
            waits = True
            while waits:  # for the acknowledgement of the last, or a refusal
                for kind, _, _, _, body in message.split(connection.recv(RECEIVE_BYTES)):
                    if kind == message.NLMSG_ERROR and (code := message.code_of(body)):
                        raise OSError(code, os.strerror(code), f"message {each.kind}")
                    waits = False
        return time.perf_counter() - began, time.thread_time() - cpu

    def _write(self, name: str) -> None:
        path = self._state / name
        fd = os.open(f"{path}.fresh", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.write(fd, bytes(400))
        os.fsync(fd)
        os.close(fd)
        Path(f"{path}.fresh").rename(path)

    def close(self) -> None:
        """Close what is open."""
        os.close(self._descriptor)
        for each in self._sockets.values():
            each.close()


def _leave(bed: Testbed, state: StateDirectory) -> tuple[Attachment, list[Message]]:
    """Take the last pod away; return what it was, and what was sent."""
    (last,) = (a for a in state.observe().attachments if a.addresses == (bed.last.address,))
    where = str(state.root)
    config = {"cniVersion": "1.0.0", "name": "n", "type": "node-network", "stateDir": where}
    call = {
        "CNI_COMMAND": "DEL",
        "CNI_CONTAINERID": last.key.container_id,
        "CNI_NETNS": str(netns.path(bed.last.netns)),
        "CNI_IFNAME": last.key.ifname,
        "CNI_PATH": "/",
    }
    subprocess.run([EXECUTABLE], input=json.dumps(config), text=True, env=call, check=True)
    return last, _pass(bed, state)


def _return(bed: Testbed, state: StateDirectory, last: Attachment) -> list[Message]:
    """Give it back; return what was sent."""
    if errors := state.apply([Change(Verb.CREATE, last, "the pod is there")]):
        raise RuntimeError(str(errors))
    return _pass(bed, state)


def _pass(bed: Testbed, state: StateDirectory) -> list[Message]:
    document = NodeNetwork.model_validate(testbed.document_of(bed))
    with _recording() as kept, netns.inside(bed.node):
        LocalNode(state, Environment()).kernel_pass(document)
    changes = [each for each in kept if each.is_change]
    if not changes:
        raise RuntimeError(f"{bed.node}: nothing was changed")
    return changes


@contextmanager
def _recording() -> Iterator[list[Message]]:
    plain, message.open_socket = message.open_socket, _open_recorded
    Recorded.kept = []
    try:
        yield Recorded.kept
    finally:
        message.open_socket = plain


def dump_ms(where: str, times: int = 20) -> float:
    """Return the CPU of one look at links, routes and rules that are told apart, not decoded."""
    asked = ((18, 16), (26, 12), (34, 12))  # RTM_GETLINK, RTM_GETROUTE, RTM_GETRULE; their bodies
    taken = []
    with netns.inside(where), message.Socket(message.NETLINK_ROUTE) as connection:
        for _ in range(times):
            began = time.thread_time()
            for kind, size in asked:
                for _entry in connection.ask(kind, message.NLM_F_DUMP, bytes(size)):
                    pass
            taken.append(1000 * (time.thread_time() - began))
    return statistics.median(taken)
