"""Connection tracking through ctnetlink: the second door to ``pyroute2``.

Of its own, because it speaks to another subsystem (nfnetlink) with another socket.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Collection, Iterable, Iterator, Sequence
from ipaddress import ip_address
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple, NFCTSocket

from reconciler.core.datapath import IpAddress
from reconciler.core.plan import Change
from reconciler.domains.conntrack import Flow, Silence
from reconciler.errors import ApplyError, ObserveError

TUPLES = ("CTA_TUPLE_ORIG", "CTA_TUPLE_REPLY")
AF = {4: socket.AF_INET, 6: socket.AF_INET6}
ENDS = ("CTA_IP_V4_SRC", "CTA_IP_V4_DST", "CTA_IP_V6_SRC", "CTA_IP_V6_DST")


class Conntrack:
    """The connections of this network namespace."""

    def observe(self, desired: Iterable[Silence]) -> frozenset[Flow]:
        """Return which of the desired addresses have connections; without any, nothing is read.

        Raises:
            ObserveError: the table could not be read.
        """
        wanted = frozenset[IpAddress]().union(*(d.addresses for d in desired))
        if not wanted:
            return frozenset()
        found: set[IpAddress] = set()
        try:
            for family in _families(wanted):
                with _Socket(family) as ct:
                    found |= {a for entry in ct.dump() for a in _addresses(entry)}
        except (NetlinkError, OSError) as error:
            raise ObserveError("conntrack", str(error)) from error
        return frozenset(Flow(a) for a in found & wanted)

    def apply(self, actions: Sequence[Change[Flow]]) -> tuple[ApplyError, ...]:
        """Delete every connection from or to each address."""
        doomed = {a.object.address: a for a in actions}
        failures: dict[IpAddress, ApplyError] = {}
        try:
            for family in _families(doomed):
                with _Socket(family) as ct:
                    refused = _end(ct, doomed.keys())
                for address, error in refused.items():
                    failures[address] = ApplyError.from_errno(
                        str(doomed[address]), error.code, os.strerror(error.code), error
                    )
        except (NetlinkError, OSError) as error:
            number = getattr(error, "code", None) or getattr(error, "errno", None) or 0
            return tuple(ApplyError.from_errno(str(a), number, str(error), error) for a in actions)
        return tuple(failures.values())


def _families(addresses: Iterable[IpAddress]) -> list[int]:
    """Return the families to ask for: a dump shows one at a time."""
    return sorted({AF[a.version] for a in addresses})


class _Socket:
    """A ctnetlink socket for one family that is closed again."""

    def __init__(self, family: int) -> None:
        self._family = family

    def __enter__(self) -> Any:
        self._socket = NFCTSocket(nfgen_family=self._family)
        return self._socket

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def _end(ct: Any, doomed: Collection[IpAddress]) -> dict[IpAddress, NetlinkError]:
    """Delete what has a doomed end; return what could not be, by that end."""
    refused: dict[IpAddress, NetlinkError] = {}
    for entry in list(ct.dump()):
        for address in _addresses(entry).intersection(doomed):
            if error := _delete(ct, entry):
                refused[address] = error
    return refused


def _delete(ct: Any, entry: Any) -> NetlinkError | None:
    """Delete one entry by its own tuple; one that is gone by now is deleted."""
    try:
        family = entry["nfgen_family"]
        original = NFCTAttrTuple.from_netlink(family, entry.get_attr(TUPLES[0]))
        ct.entry("del", tuple_orig=original)
    except NetlinkError as error:
        return None if error.code == errno.ENOENT else error
    return None


def _addresses(entry: Any) -> set[IpAddress]:
    return set(_ends(entry))


def _ends(entry: Any) -> Iterator[IpAddress]:
    for name in TUPLES:
        ip: Any = entry.get_attr(name).get_attr("CTA_TUPLE_IP")
        for end in ENDS:
            if value := ip.get_attr(end):
                yield ip_address(value)
