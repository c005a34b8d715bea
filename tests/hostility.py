"""What a hostile or careless neighbour does to a node, by the hundred thousand.

The kernel is told by netlink messages in batches: a program for each would be the load itself.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import wild

from benchmarks.burst import Aim, Burst
from lab import netns
from reconciler.targets.netlink.ruleset import Nfnetlink

RTM_NEWLINK, RTM_DELLINK = 16, 17
RTM_NEWADDR, RTM_DELADDR = 20, 21
RTM_NEWROUTE, RTM_DELROUTE = 24, 25
RTM_NEWRULE, RTM_DELRULE = 32, 33
NLM_F_REQUEST, NLM_F_ACK = 1, 4
NLM_F_CREATE_EXCL = 0x600
RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_LINK, RTN_UNICAST = 254, 4, 253, 1
RTA_DST, RTA_OIF, RTA_TABLE = 1, 4, 15
IFA_LOCAL = 2
IFLA_IFNAME, IFLA_LINKINFO, IFLA_IFALIAS, IFLA_GROUP, IFLA_INFO_KIND = 3, 18, 20, 27, 1
FRA_SRC, FRA_PRIORITY, FRA_TABLE, FRA_PROTOCOL, FR_ACT_TO_TBL = 2, 6, 15, 21, 1
BATCH = 1000
"""Messages in one system call: more do not fit into a socket's buffer (net.core.wmem_max)."""

AT_ONCE = 1024
"""Packets that sendmmsg(2) takes in one call."""

NOWHERE = IPv4Address("10.0.200.1")
"""Of the VPC, and of no ENI: what is sent there leaves the node and ends in the fabric."""

GROUP = 7777
"""Of the links a test makes; a whole group of links goes in one request."""


@contextmanager
def loop(where: str, *commands: str) -> Iterator[None]:
    """Somebody who does the same again and again, as fast as it goes."""
    lines = "\\n".join(commands * 50)
    script = f"while :; do printf '{lines}\\n'; done | ip -netns {where} -force -batch - >&2"
    with subprocess.Popen(
        ["sh", "-c", script], stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def open_flows(sender: str, count: int) -> None:
    """Open connections from a pod: packets to a port each, for which it needs no right at all."""
    for sent in range(0, count, AT_ONCE):
        burst = Burst(Aim(sender, NOWHERE, new=True), min(AT_ONCE, count - sent))
        try:
            burst.send()
        finally:
            burst.close()


def tracked(node: str) -> int:
    """Return how many connections a node has."""
    with netns.inside(node):
        return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())


@contextmanager
def long_lived_flows(node: str, seconds: int) -> Iterator[None]:
    """Let connections that nobody answers live for so long; end them all afterwards."""
    with netns.inside(node):
        timeout = Path("/proc/sys/net/netfilter/nf_conntrack_udp_timeout")
        before = timeout.read_text()
        timeout.write_text(str(seconds))
        try:
            yield
        finally:
            timeout.write_text(before)
            flush_connections()


def flush_connections() -> None:
    """Empty the connection table of this thread's namespace (ctnetlink: a delete of no tuple)."""
    nfnl_ct, delete = 1, 2
    message = struct.pack("=IHHII", 20, nfnl_ct << 8 | delete, NLM_F_REQUEST | NLM_F_ACK, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as s:
        s.send(message + struct.pack("=BBH", socket.AF_UNSPEC, 0, 0))
        _raise_for(s.recv(4096))


@contextmanager
def routes(
    where: str,
    device: str,
    count: int,
    first: IPv4Address,
    *,
    table: int = RT_TABLE_MAIN,
    protocol: int = RTPROT_STATIC,
) -> Iterator[None]:
    """Add host routes to a table of a namespace, and take them away again."""

    def send_all(send: Callable[[int, int, bytes], None], kind: int, flags: int) -> None:
        for number in range(count):
            head = struct.pack(
                "=BBBBBBBBI",
                socket.AF_INET, 32, 0, 0,
                0, protocol, RT_SCOPE_LINK, RTN_UNICAST, 0,
            )  # fmt: skip
            body = _attribute(RTA_DST, (first + number).packed)
            body += _attribute(RTA_TABLE, struct.pack("=I", table))
            send(kind, flags, head + body + link)

    with netns.inside(where):
        link = _attribute(RTA_OIF, struct.pack("=I", socket.if_nametoindex(device)))
        with _rtnetlink() as send:
            send_all(send, RTM_NEWROUTE, NLM_F_CREATE_EXCL)
    try:
        yield
    finally:
        with netns.inside(where), _rtnetlink() as send:
            send_all(send, RTM_DELROUTE, 0)


@contextmanager
def rules(
    where: str, count: int, first: IPv4Address, priority: int, protocol: int
) -> Iterator[None]:
    """Add rules for a source each, and take away again what is left of them."""

    def send_all(kind: int, flags: int) -> None:
        with netns.inside(where), _rtnetlink() as send:
            head = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 32, 0, 0, 0, 0, FR_ACT_TO_TBL, 0)
            head += _attribute(FRA_PRIORITY, struct.pack("=I", priority))
            head += _attribute(FRA_TABLE, struct.pack("=I", RT_TABLE_MAIN))
            head += _attribute(FRA_PROTOCOL, bytes([protocol]))
            for number in range(count):
                send(kind, flags, head + _attribute(FRA_SRC, (first + number).packed))

    send_all(RTM_NEWRULE, NLM_F_CREATE_EXCL)
    try:
        yield
    finally:
        send_all(RTM_DELRULE, 0)


@contextmanager
def churning_addresses(where: str, device: str, network: IPv4Network) -> Iterator[None]:
    """Add and delete addresses on a link without end."""

    def churn(ended: threading.Event) -> None:
        with netns.inside(where), _rtnetlink() as send:
            head = struct.pack("=BBBBI", socket.AF_INET, 32, 0, 0, socket.if_nametoindex(device))
            while not ended.is_set():
                for address in network:
                    body = head + _attribute(IFA_LOCAL, address.packed)
                    send(RTM_NEWADDR, NLM_F_CREATE_EXCL, body)
                    send(RTM_DELADDR, 0, body)

    with in_background(churn):
        yield


@contextmanager
def links(where: str, count: int, alias: str = "") -> Iterator[None]:
    """Add links that nobody of ours knows; as pairs, which go fastest.

    Args:
        where: they are to be.
        count: of them.
        alias: of every other one, its number added.
    """
    pair = _attribute(IFLA_LINKINFO, _attribute(IFLA_INFO_KIND, b"veth\0"))
    group = _attribute(IFLA_GROUP, struct.pack("=I", GROUP))
    with netns.inside(where):
        with _rtnetlink() as send:
            for number in range(count // 2):
                name = _attribute(IFLA_IFNAME, f"other{number}".encode() + b"\0")
                send(RTM_NEWLINK, NLM_F_CREATE_EXCL, bytes(16) + name + group + pair)
                if alias:
                    named = _attribute(IFLA_IFALIAS, f"{alias}{number}/eth0".encode())
                    send(RTM_NEWLINK, 0, bytes(16) + name + named)
        try:
            yield
        finally:
            with netns.inside(where), _rtnetlink() as send:
                send(RTM_DELLINK, 0, bytes(16) + group)


@contextmanager
def wild_ruleset(where: str, hooks: int) -> Iterator[None]:
    """Have a table of names that are no text, hooked chains, and a set that ends libnftables."""
    table = b"\xff\xfe"
    with netns.inside(where):
        kernel = Nfnetlink()
        wild.make_table(kernel, table)
        wild.make_fatal_set(kernel, table)
        wild.make_chain(kernel, table, b"\xfd")
        wild.make_rule(kernel, table, b"\xfd", comment=b"\xfc")
        for number in range(hooks):
            wild.make_chain(kernel, table, b"\xfc%d" % number, hook=2)
    try:
        yield
    finally:
        with netns.inside(where):
            wild.remove_table(kernel, table)


@contextmanager
def files(places: Iterable[Path], count: int, ending: str = ".json") -> Iterator[None]:
    """Put files into directories that are nothing of what is looked for there."""
    made: list[Path] = []
    for place in places:
        made += [place / f"zz-{number}{ending}" for number in range(count)]
        for path in made[-count:]:
            path.write_text("{}")
        fifo, deep, large = (place / f"zz-{odd}{ending}" for odd in ("fifo", "deep", "large"))
        made += [fifo, deep, large]
        os.mkfifo(fifo)
        deep.write_text("[" * 10_000)
        with large.open("wb") as file:
            file.truncate(1 << 40)  # sparse
    try:
        yield
    finally:
        for path in made:
            path.unlink(missing_ok=True)  # what is no record is set aside


@contextmanager
def churning_files(places: Sequence[Path]) -> Iterator[None]:
    """Write, rename and remove files in directories without end."""

    def churn(ended: threading.Event) -> None:
        while not ended.is_set():
            for place in places:
                old, new = place / ".zz-old", place / "zz-new"
                old.write_text("other")
                old.rename(new)
                new.unlink()

    with in_background(churn):
        yield


@contextmanager
def in_background(what: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run something in a thread that is told when to end; what it raises is raised here."""
    ended = threading.Event()
    raised: list[BaseException] = []

    def run() -> None:
        try:
            what(ended)
        except BaseException as error:  # noqa: BLE001 - raised again below, in the test's thread
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if raised:
        raise raised[0]


@contextmanager
def connections(count: int, connect: Callable[[], socket.socket], text: bytes) -> Iterator[None]:
    """Hold connections open, each of which has said some text that is not all of a question.

    One that is refused or closed at once is as good: nobody waits for it.
    """
    with ExitStack() as stack:
        for _ in range(count):
            with suppress(OSError):
                s = stack.enter_context(connect())
                s.setblocking(False)
                s.send(text)
        yield


@contextmanager
def _rtnetlink() -> Iterator[Callable[[int, int, bytes], None]]:
    """Yield a function that sends a message, many of them at a time; refusals are not read."""
    waiting: list[bytes] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as s:

        def flush() -> None:
            s.send(b"".join(waiting))
            waiting.clear()

        def send(kind: int, flags: int, body: bytes) -> None:
            head = struct.pack("=IHHII", 16 + len(body), kind, NLM_F_REQUEST | flags, 1, 0)
            waiting.append(head + body)
            if len(waiting) == BATCH:
                flush()

        yield send
        if waiting:
            flush()


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _raise_for(answer: bytes) -> None:
    (error,) = struct.unpack_from("=i", answer, 16)
    if error:
        raise OSError(-error, "netlink")
