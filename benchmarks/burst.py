"""Bursts of UDP packets by sendmmsg(2), and what each costs in CPU time.

A packet that enters a veth pair is carried on in softirq on the sender's own CPU, through every
namespace on its way until one drops it, before its system call goes on. So the sender's CPU time
is that of the whole path, and other processes do not add to it, however busy the machine is.
"""

from __future__ import annotations

import ctypes
import json
import socket
import struct
import time
from dataclasses import dataclass
from ipaddress import IPv4Address

import nftables

from lab import netns

SINK = "sink"
PORT = 9999
MAX_PORT = 65535
WARM = 10
"""Packets of an open connection that go before those that are measured."""

_libc = ctypes.CDLL(None, use_errno=True)


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


class _Header(ctypes.Structure):
    """``struct msghdr``."""

    _fields_ = [
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("iov", ctypes.POINTER(_Iovec)),
        ("iov_length", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    ]


class _Message(ctypes.Structure):
    """``struct mmsghdr``."""

    _fields_ = [("header", _Header), ("sent", ctypes.c_uint32)]


class BurstError(Exception):
    """Packets were not sent, or did not arrive: what was measured means nothing."""


@dataclass(frozen=True, slots=True)
class Aim:
    """Where a burst goes.

    Attributes:
        sender: the namespace it is sent from.
        source: empty for what the sender's routes say.
        new: every packet opens a connection of its own, by its destination port.
    """

    sender: str
    destination: IPv4Address
    source: str = ""
    new: bool = False


class Burst:
    """Packets that are laid out once and sent many times.

    Attributes:
        sent: packets so far.
    """

    def __init__(self, aim: Aim, size: int) -> None:
        with netns.inside(aim.sender):
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((aim.source, 0))
        self.sent = 0
        self._size = size
        self._aim = aim
        ports = [MAX_PORT - i if aim.new else PORT for i in range(size)]
        self._names = [_sockaddr(aim.destination, port) for port in ports]
        if not aim.new:
            self._socket.connect((str(aim.destination), PORT))
        self._payload = ctypes.create_string_buffer(b"x", 1)
        self._iovec = _Iovec(ctypes.addressof(self._payload), 1)
        self._messages = (_Message * size)()
        for message, name in zip(self._messages, self._names, strict=True):
            header = message.header
            header.iov, header.iov_length = ctypes.pointer(self._iovec), 1
            if aim.new:
                header.name, header.name_length = ctypes.addressof(name), len(name)

    def send(self) -> float:
        """Send all and return nanoseconds of CPU time per packet.

        Raises:
            BurstError: the kernel did not take them all.
        """
        if not self._aim.new:
            self._hand_over(WARM)  # opens the connection, if it was forgotten
        began = time.thread_time_ns()
        self._hand_over(self._size)
        return (time.thread_time_ns() - began) / self._size

    def _hand_over(self, count: int) -> None:
        sent = _libc.sendmmsg(self._socket.fileno(), self._messages, count, 0)
        self.sent += max(sent, 0)
        if sent != count:
            raise BurstError(f"sendmmsg sent {sent} of {count}, errno {ctypes.get_errno()}")

    def close(self) -> None:
        """Close its socket."""
        self._socket.close()


class Sink:
    """Counts and drops what comes in by some links, before anything else looks at it."""

    def __init__(self, namespace: str, links: list[str]) -> None:
        with netns.inside(namespace):
            self._nft = nftables.Nftables()
            devices = ", ".join(f'"{link}"' for link in links)
            self._command(
                f"table netdev {SINK} {{ counter {SINK} {{ }}; chain {SINK} {{ "
                f"type filter hook ingress devices = {{ {devices} }} priority 0; policy accept; "
                f"meta protocol ip counter name {SINK} drop; }}; }}"
            )
        self._nft.set_json_output(True)

    def count(self) -> int:
        """Return how many packets have come in."""
        listing = json.loads(self._command(f"list counter netdev {SINK} {SINK}"))
        packets: int = next(e["counter"]["packets"] for e in listing["nftables"] if "counter" in e)
        return packets

    def _command(self, text: str) -> str:
        code, output, error = self._nft.cmd(text)
        if code != 0:
            raise BurstError(f"nft: {error}")
        return str(output)


def _sockaddr(address: IPv4Address, port: int) -> ctypes.Array[ctypes.c_char]:
    packed = (
        struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + address.packed + bytes(8)
    )
    return ctypes.create_string_buffer(packed, len(packed))
