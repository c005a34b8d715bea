"""iptables' legacy tables, read as the kernel holds them: nftables does not show them.

Only the filter table, which is short on every node; ``nat`` may hold tens of thousands of rules.
Structures: linux/netfilter_ipv4/ip_tables.h.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from pathlib import Path

from reconciler.core.forward import ForwardChain
from reconciler.errors import ObserveError

NAMES = Path("/proc/thread-self/net/ip_tables_names")
"""The legacy tables of this thread's namespace; asking for another one would make it."""

SO_GET_INFO, SO_GET_ENTRIES = 64, 65
INFO_SIZE = 84
"""``struct ipt_getinfo``: the table's name, hooks, entry and policy offsets, count and size."""

ENTRIES_HEADER = 40
"""``struct ipt_get_entries`` up to its entries."""

ENTRY_SIZE, TARGET_HEADER, HOOK_FORWARD = 112, 32, 2
ACCEPT, DROP = -2, -1
"""Verdicts of a standard target: minus the nf verdict, minus one."""

_libc = ctypes.CDLL(None, use_errno=True)


class LegacyTables:
    """The filter table of the network namespace that a thread is in."""

    def observe(self) -> tuple[frozenset[str], tuple[ForwardChain, ...]]:
        """Return the names of the users' chains, and the FORWARD chain if there is one.

        Raises:
            ObserveError: the kernel refused.
        """
        try:
            if "filter" not in NAMES.read_text().split():
                return frozenset(), ()
        except FileNotFoundError:
            return frozenset(), ()  # a kernel without legacy tables
        except OSError as error:
            raise ObserveError("legacy iptables", str(error)) from error
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as s:
                info = _ask(s, SO_GET_INFO, INFO_SIZE, b"filter")
                (size,) = struct.unpack_from("I", info, 80)
                header = struct.pack("32sI4x", b"filter", size)
                entries = _ask(s, SO_GET_ENTRIES, ENTRIES_HEADER + size, header)[ENTRIES_HEADER:]
        except OSError as error:
            raise ObserveError("legacy iptables' filter table", str(error)) from error
        return _decode(info, entries)


def _ask(s: socket.socket, option: int, size: int, question: bytes) -> bytes:
    # By libc: Python's own getsockopt hands the kernel no question.
    buffer = ctypes.create_string_buffer(question, size)
    length = ctypes.c_uint(size)
    code = _libc.getsockopt(s.fileno(), socket.IPPROTO_IP, option, buffer, ctypes.byref(length))
    if code != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return buffer.raw


def _decode(info: bytes, entries: bytes) -> tuple[frozenset[str], tuple[ForwardChain, ...]]:
    starts = struct.unpack_from("5I", info, 36)
    ends = struct.unpack_from("5I", info, 56)
    names: set[str] = set()
    accepts: set[tuple[str, str]] = set()
    drops = shut = False
    offset = 0
    while offset < len(entries):
        target_offset, next_offset = struct.unpack_from("HH", entries, offset + 88)
        target = offset + target_offset
        name = _text(entries[target + 2 : target + 31])
        if name == "ERROR":
            # Each chain of a user begins with one; its "error" is the chain's name.
            names.add(_text(entries[target + TARGET_HEADER : target + TARGET_HEADER + 30]))
        verdict = struct.unpack_from("i", entries, target + TARGET_HEADER)[0] if not name else 0
        entry = entries[offset:target]
        if offset == ends[HOOK_FORWARD]:
            drops = verdict == DROP
        elif starts[HOOK_FORWARD] <= offset < ends[HOOK_FORWARD] and not shut:
            shut = (verdict == DROP or name == "REJECT") and _asked(entry) == {}
            accepts |= _accepted(entry) if verdict == ACCEPT else set()
        offset += next_offset
    chain = ForwardChain("ip", "filter", "FORWARD", "legacy", drops, shut, frozenset(accepts))
    return frozenset(names - {"ERROR"}), (chain,)


def _accepted(entry: bytes) -> set[tuple[str, str]]:
    """Return the link that is all a rule asks for; nothing if it asks for more, or for none."""
    asked = _asked(entry)
    return set(asked.items()) if asked and len(asked) == 1 else set()


def _asked(entry: bytes) -> dict[str, str] | None:
    """Return the links that a rule asks for; None if it asks for anything else."""
    masks, protocol_and_flags = entry[8:16], entry[80:84]
    if any(masks) or any(protocol_and_flags) or not _only_comment(entry[ENTRY_SIZE:]):
        return None
    sides = {
        "iifname": (entry[16:32], entry[48:64]),
        "oifname": (entry[32:48], entry[64:80]),
    }
    return {way: _pattern(name, mask) for way, (name, mask) in sides.items() if any(mask)}


def _only_comment(matches: bytes) -> bool:
    """A comment is a match as well, and matches everything."""
    return not matches or (
        _text(matches[2:31]) == "comment" and struct.unpack_from("H", matches)[0] == len(matches)
    )


def _pattern(name: bytes, mask: bytes) -> str:
    """A mask that ends before the name's NUL is iptables' ``prefix+``."""
    length = len(mask.rstrip(b"\0"))
    text = _text(name)
    return text if length > len(text) else f"{text[:length]}*"


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode(errors="replace")
