"""Accepts connections on one socket and reads a request from each, in one thread, within bounds.

Connections cost one thread and a bounded number of descriptors and bytes, however many are open
and however slowly they write or read. When all places are taken, the connection that has been open
longest is closed for the next one. While none may be closed, nothing is accepted: connections wait
in the kernel's queue. Requests that must wait are answered by ``Workers``.
"""

from __future__ import annotations

import resource
import selectors
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue

from reconciler.daemon import telemetry
from reconciler.daemon.duty import Duties

SHARE, OWN = 8, 128
"""Of the descriptors that this process may have, a listener's connections get all but ``OWN``, or
one in ``SHARE`` if that is more: the daemon needs some forty itself, or no pod is served."""

PAUSE_S = 0.1
"""Seconds in which nothing is accepted when there is no place, unless one becomes free."""

TURN_S = 5.0  # seconds after which the thread says that it is alive, if no connection comes
SPARE_THREADS = 4  # workers that are kept for the next connections

Take = Callable[[socket.socket, bytes], bytes | None]
"""Takes a connection and its request; returns what to answer. None: the connection is now another
thread's, which closes it by ``Listener.close``."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of what connections may cost.

    Attributes:
        request_s: seconds from the connection's beginning until its whole request must be here.
        grace_s: seconds in which a connection is not closed for another, so that a burst of
            clients that are about to ask does not cut its own.
    """

    connections: int  # open at once, those of other threads included
    request_bytes: int  # of one request; a longer one is passed on with one byte more
    request_s: float
    answer_s: float  # seconds in which the other side must have read its answer
    grace_s: float


@dataclass(slots=True)
class _Connection:
    """A connection that this thread reads from, or writes to."""

    socket: socket.socket
    since: float  # monotonic seconds at which it was accepted, or its answer begun
    deadline: float  # monotonic seconds at which it is cut
    received: bytearray = field(default_factory=bytearray)
    unsent: memoryview | None = None  # of its answer; None while its request is read


class _Places:
    """The connections to one listening socket: those that are served here, and those of others.

    Only the listener's thread calls it.
    """

    def __init__(self, name: str, listening: socket.socket, bounds: Bounds) -> None:
        self._name, self.listening, self._bounds = name, listening, bounds
        self._taken = 0
        self._resume_at: float | None = None
        self.held: dict[int, _Connection] = {}
        self.selector = selectors.DefaultSelector()
        self.selector.register(listening, selectors.EVENT_READ)

    def due_at(self) -> list[float]:
        """Return the monotonic seconds at which something must be done that no event tells of."""
        dues = [c.deadline for c in self.held.values()]
        return dues if self._resume_at is None else [*dues, self._resume_at]

    def accept(self) -> None:
        """Accept a connection, if there is a place for it or one can be made."""
        if len(self.held) + self._taken >= self._room() and not self._make_room():
            return
        try:
            accepted, _ = self.listening.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # it went away while it waited
        except OSError:  # no descriptor or no memory is left (accept(2))
            self._make_room()
            return
        accepted.setblocking(False)
        now = time.monotonic()
        connection = _Connection(accepted, now, now + self._bounds.request_s)
        self.hold(connection, selectors.EVENT_READ)

    def _room(self) -> int:
        """Return how many connections there may be; the limit may be changed from outside."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY:
            return self._bounds.connections
        return min(self._bounds.connections, max(soft // SHARE, soft - OWN))

    def _make_room(self) -> bool:
        """Cut the connection that has been open longest; if that may not be, pause.

        Then nothing is accepted for a while, or until another thread gives a place back.
        """
        now = time.monotonic()
        oldest = next(iter(self.held.values()), None)
        resume_at = oldest.since + self._bounds.grace_s if oldest else now + PAUSE_S
        if oldest and resume_at <= now:
            self.cut(oldest, "crowded out")
            return True
        self.selector.unregister(self.listening)
        self._resume_at = resume_at
        return False

    def resume(self) -> None:
        """Cut what is late; accept again when the pause is over."""
        now = time.monotonic()
        for connection in [c for c in self.held.values() if c.deadline <= now]:
            self.cut(connection, "late")
        if self._resume_at is not None and self._resume_at <= now:
            self._resume_at = None
            self.selector.register(self.listening, selectors.EVENT_READ)

    def hold(self, connection: _Connection, event: int) -> None:
        """Serve a connection from here on: read from it, or write to it."""
        self.held[connection.socket.fileno()] = connection
        self.selector.register(connection.socket, event)

    def let_go(self, connection: _Connection) -> None:
        """Leave a connection, with its place, to another thread.

        Before that knows of it: it may close it, and its number be given away again.
        """
        self.selector.unregister(connection.socket)
        del self.held[connection.socket.fileno()]
        self._taken += 1

    def take_back(self) -> None:
        """Have a place back that another thread had."""
        self._taken -= 1
        if self._resume_at is not None:
            self._resume_at = 0.0

    def cut(self, connection: _Connection, why: str) -> None:
        """End a connection before it was answered."""
        telemetry.CONNECTIONS_CUT.labels(self._name, why).inc()
        self.end(connection)

    def end(self, connection: _Connection) -> None:
        """Close a connection; its place is free."""
        self.let_go(connection)
        connection.socket.close()
        self.take_back()

    def close(self) -> None:
        """Stop listening; close all connections but those of other threads."""
        for each in (*(c.socket for c in self.held.values()), self.listening):
            each.close()
        self.selector.close()


class Listener:
    """Serves one listening socket.

    Args:
        name: what it is, for the log, the metric and the thread.
        listening: bound and listening already; it is closed by ``stop``.
        is_whole: whether what has come so far is a whole request; what came before the other side
            stopped talking is one, too.
        take: called with each request in the listener's own thread, so it must not wait.
        duties: reports what fails, and hears that the thread is alive.
    """

    def __init__(
        self,
        name: str,
        listening: socket.socket,
        bounds: Bounds,
        is_whole: Callable[[bytearray], bool],
        take: Take,
        duties: Duties,
    ) -> None:
        self._name, self._bounds, self._duties = name, bounds, duties
        self._is_whole, self._take = is_whole, take
        self._returned: deque[None] = deque()
        self._ended = threading.Event()
        self._wakes, self._wake = socket.socketpair()
        for each in (listening, self._wakes, self._wake):
            each.setblocking(False)
        self._places = _Places(name, listening, bounds)
        self._places.selector.register(self._wakes, selectors.EVENT_READ)
        words = (name, self._turn, self._ended)
        self._thread = threading.Thread(target=duties.heard, args=words, name=name, daemon=True)

    def start(self) -> None:
        """Begin to accept."""
        self._thread.start()

    def stop(self) -> None:
        """End accepting, and close all connections but those with other threads."""
        self._ended.set()
        self._rouse()
        if self._thread.ident is not None:
            self._thread.join()
        self._places.close()
        for each in (self._wakes, self._wake):
            each.close()

    def close(self, connection: socket.socket) -> None:
        """Close a connection that another thread has taken; its place is free again."""
        connection.close()
        self._returned.append(None)
        self._rouse()

    def _rouse(self) -> None:
        with suppress(OSError):  # it is full, so that it wakes; or this has ended
            self._wake.send(b"x")

    def _turn(self) -> None:
        places = self._places
        now = time.monotonic()
        due_s = max(min([*places.due_at(), now + TURN_S]) - now, 0.0)
        ready = {key.fd for key, _ in places.selector.select(due_s)}
        if self._wakes.fileno() in ready:
            self._wakes.recv(4096)
        for connection in [places.held[fd] for fd in ready if fd in places.held]:
            self._go_on(connection)
        if places.listening.fileno() in ready:
            places.accept()  # last: who has asked meanwhile need not make room any more
        while self._returned:
            self._returned.popleft()
            places.take_back()
        places.resume()

    def _go_on(self, connection: _Connection) -> None:
        try:
            if connection.unsent is None:
                self._read(connection)
            else:
                self._write(connection)
        except BlockingIOError:
            return
        except OSError:
            self._places.end(connection)  # the other side is gone

    def _read(self, connection: _Connection) -> None:
        received, most = connection.received, self._bounds.request_bytes
        part = connection.socket.recv(most + 1 - len(received))
        received += part
        if part and len(received) <= most and not self._is_whole(received):
            return
        if len(received) > most:
            telemetry.CONNECTIONS_CUT.labels(self._name, "too long").inc()
        reply: bytes | None = b""  # if it fails
        self._places.let_go(connection)
        with self._duties.over(f"a request to {self._name}"):
            reply = self._take(connection.socket, bytes(received))
        if reply is None:
            return
        self._places.take_back()
        if not reply:
            connection.socket.close()
            return
        connection.unsent = memoryview(reply)
        connection.since = time.monotonic()
        connection.deadline = connection.since + self._bounds.answer_s
        self._places.hold(connection, selectors.EVENT_WRITE)
        self._go_on(connection)

    def _write(self, connection: _Connection) -> None:
        assert connection.unsent is not None
        sent = connection.socket.send(connection.unsent)
        connection.unsent = connection.unsent[sent:]
        if not connection.unsent:
            with suppress(OSError):
                connection.socket.shutdown(socket.SHUT_WR)
            self._places.end(connection)


class Workers:
    """Runs what waits in threads, so many of a kind at once, of which a few are kept for the next.

    A pod waits for a thread to start as long as for a link of its to be made.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle = 0
        self._busy: Counter[str] = Counter()
        self._work: SimpleQueue[tuple[str, Callable[[], None]] | None] = SimpleQueue()

    def run(self, kind: str, most: int, what: Callable[[], None]) -> bool:
        """Have a thread do something; False if it does so much of this kind already."""
        with self._lock:
            if self._busy[kind] >= most:
                return False
            if self._idle:
                self._idle -= 1
            else:
                threading.Thread(target=self._go, name="exchange", daemon=True).start()
            self._busy[kind] += 1
        self._work.put((kind, what))
        return True

    def stop(self) -> None:
        """End the threads that are idle."""
        with self._lock:
            for _ in range(self._idle):
                self._work.put(None)
            self._idle = 0

    def _go(self) -> None:
        while work := self._work.get():
            kind, what = work
            try:
                what()  # what it raises ends this thread only
            finally:
                with self._lock:
                    self._busy[kind] -= 1
            with self._lock:
                if self._idle >= SPARE_THREADS:
                    return
                self._idle += 1
