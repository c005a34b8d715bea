"""rtnetlink: a socket that reads tables within bounds, and changes entries.

``IPRoute`` of pyroute2 runs an event loop for each message it reads, and decodes some forty
attributes of each link. Both would be paid for every pod on the node at every look. Here one plain
socket is asked.

How much is in a table is up to whoever writes into it. So the kernel is asked with filters
(NETLINK_GET_STRICT_CHK, Linux 4.20), its answer is looked at message by message, and what is not
wanted is never kept; bytes, tries and time of each question have a bound (decision 21).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable
from enum import Enum

from reconciler.errors import ObserveError
from reconciler.targets.netlink import message
from reconciler.targets.netlink.message import Bounds, KernelError, Meter
from reconciler.targets.netlink.tables import (
    AF,
    Attributes,
    Facts,
    Table,
    comparable,
    decode_entry,
    pack_entry,
)

SOL_NETLINK, NETLINK_GET_STRICT_CHK = 270, 12

Told = tuple[bytes, ...]
"""Entries of a table, without counters and ages."""

UNITED_ATTEMPTS = 3
"""Tries after which what several interrupted dumps have shown together is taken for the whole,
where one entry too many does no harm (``Table.identity``)."""

HOST_BOUNDS = Bounds(256 << 20, message.DUMP_ATTEMPTS, 5.0)
"""For the host's tables: 200,000 routes are some 15 MB, and a dump of them takes half a second.
Nothing of it is kept but what is wanted."""

POD_BOUNDS = Bounds(1 << 20, 5, 1.0)
"""For one question to a pod's namespace: some 10,000 entries. What we put there is a handful."""

CHANGE_BOUNDS = Bounds(message.RECEIVE_BYTES, 1, float("inf"))
"""For the answer to one change. It may take as long as others hold the kernel's lock: what has
become of a change that is not waited for is not known."""

GONE = {errno.ENODEV, errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL}
"""What the kernel answers if an object does not exist."""

NO_FAMILY = {errno.EAFNOSUPPORT}
"""What a kernel without IPv6 answers."""

UNREACHABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL}
"""What the kernel answers if there is no route, or one that rejects packets."""


class How(Enum):
    """Ways to change an entry: its message's distance from the request to read, and flags.

    Source: linux/rtnetlink.h: RTM_NEW* and RTM_DEL* come before RTM_GET*.
    """

    SET = (-2, 0)
    CREATE = (-2, message.NLM_F_CREATE | message.NLM_F_EXCL)
    REPLACE = (-2, message.NLM_F_CREATE | message.NLM_F_REPLACE)
    DELETE = (-1, 0)


class Rtnetlink(message.Socket):
    """A socket into the namespace its thread was in when it was made.

    Everything raises ``KernelError`` if the kernel refuses, and ``ObserveError`` if a table never
    stands still or is beyond the bounds. A question that goes beyond them leaves the socket of no
    use.
    """

    def __init__(self, bounds: Bounds = HOST_BOUNDS) -> None:
        super().__init__(message.NETLINK_ROUTE)
        self._bounds = bounds
        # Without it the kernel ignores filters, and shows the whole table.
        self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)

    def dump(self, table: Table, filters: Attributes = (), **fields: int) -> list[Facts]:
        """Read a table, as ``read`` does, and decode it."""
        return [
            decode_entry(table, entry) for entry in self.read(table, filters, None, (), **fields)
        ]

    def get(self, table: Table, attributes: Attributes, **fields: int) -> Facts | None:
        """Read and decode one entry; None if there is no such thing."""
        told = self.read_one(table, attributes, GONE | UNREACHABLE, **fields)
        return decode_entry(table, told[0]) if told else None

    def read(
        self,
        table: Table,
        filters: Attributes = (),
        takes: Callable[[bytes], bool] | None = None,
        absent: Collection[int] = (),
        **fields: int,
    ) -> Told:
        """Read a table, again if the kernel says that it changed meanwhile.

        The kernel looks after filters and fields; of routes and rules without a ``family`` it
        shows those of one only. ``absent`` are errors that mean that there is no such table.
        """
        body = pack_entry(table, fields, table.asks + filters)
        meter = Meter(table.name, self._bounds)
        united: dict[object, bytes] = {}
        limit = UNITED_ATTEMPTS if table.identity else message.DUMP_ATTEMPTS
        attempts = min(self._bounds.attempts, limit)
        for _ in range(attempts):
            told: list[bytes] = []
            try:
                for whole in self.ask(table.get, message.NLM_F_DUMP, body, meter):
                    entry = whole[message.HEADER.size :]
                    if table.takes is not None and not table.takes(entry):
                        continue
                    if takes is None or takes(entry):
                        told.append(comparable(table, entry))
            except message.InterruptedDumpError:
                if table.identity:
                    united |= {table.identity(entry): entry for entry in told}
                continue
            except KernelError as error:
                if error.errno in absent:
                    return ()
                raise
            return tuple(told)
        if table.identity:
            return tuple(united.values())
        raise ObserveError(table.name, f"they changed during each of {attempts} dumps")

    def read_all(
        self,
        table: Table,
        filters: Attributes = (),
        takes: Callable[[bytes], bool] | None = None,
        families: Iterable[str] = AF,
        **fields: int,
    ) -> Told:
        """Read a table of both families, as ``read`` does; nothing if there is no such table."""
        return tuple(
            entry
            for family in families
            for entry in self.read(table, filters, takes, GONE, family=AF[family], **fields)
        )

    def read_one(
        self,
        table: Table,
        attributes: Attributes,
        absent: Collection[int] = GONE,
        **fields: int,
    ) -> Told:
        """Read one entry; nothing if it is none of the wanted, or an error says it is absent."""
        body = pack_entry(table, fields, attributes)
        try:
            answer = list(self.ask(table.get, 0, body, Meter(table.name, self._bounds)))
        except KernelError as error:
            if error.errno in absent:
                return ()
            raise
        entries = (whole[message.HEADER.size :] for whole in answer)
        return tuple(comparable(table, e) for e in entries if not table.takes or table.takes(e))

    def change(self, table: Table, how: How, attributes: Attributes, **fields: int) -> None:
        """Make, change or delete one entry."""
        self.send(table, how, pack_entry(table, fields, attributes))

    def send(self, table: Table, how: How, body: bytes) -> None:
        """Make, change or delete one entry, as the kernel told it."""
        distance, flags = how.value
        meter = Meter(table.name, CHANGE_BOUNDS)
        for _ in self.ask(table.get + distance, flags | message.NLM_F_ACK, body, meter):
            pass
