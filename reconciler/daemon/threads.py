"""Which threads the daemon has, and what guards each field that two of them touch.

A value goes from one thread to another whole and frozen, or is a field under one lock of one
small class. ``tests/daemon/test_thread_table.py`` holds the code against this table.

Locks are taken in this order, never the other way round: ``PoolPass.binding``, then
``StateDirectory._memory``; ``Requests._changed`` and ``Checks._changed``, then those of
``PodHints``, ``Triggers`` and ``Conditions``. All others are taken alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

THREADS = {
    "K": "MainThread: the kernel loop; before the others start it makes everything",
    "P": "pool: the pool loop",
    "R": "reader: reads the document, and keeps the one in force",
    "W": "watches: keeps the watches, looks whether directory and socket are our own, has the "
    "kernel ask for neighbours again",
    "C": "cooldowns: ends connections of addresses that cool",
    "V": "links: deletes the links of pods that are gone",
    "O": "others: looks at other owners' rules",
    "E": "sources: asks EC2 what the document's sources stand for",
    "A": "cluster: tells the API server; nothing waits for it",
    "D": "watchdog: looks at the others",
    "N": "kernel-watch: hears notifications of rtnetlink and nftables",
    "F": "observer and emitters of the watchdog library: notifications of files",
    "S": "the socket: its listener",
    "H": "health, and metrics: their listeners",
    "X": "exchange: one question on the socket each",
    "T": "a timer: ends the process that calls EC2",
    "G": "signals: ends the daemon",
    "L": "log: writes lines",
}

WHOLE = "whole"
"""Replaced as a whole: the value is frozen, or never changed once it is there. The writer's thread
replaces it; every other method reads it once, and works on what it has read."""

ONCE = "once"  # set once: None until the writer's thread sets it; it stays

STEPS = "steps"
"""A primitive of ``threading``, or a container of which each call is one step of the interpreter.
Assigned once, when the object is made."""

ONE = "one"  # only that thread touches it, though others touch other fields of the object


class Shared(NamedTuple):
    """Fields of one class that are guarded alike."""

    cls: str  # module below ``reconciler``, and class
    lock: str  # the field that holds their lock; or ``WHOLE``, ``ONCE``, ``STEPS`` or ``ONE``
    fields: tuple[str, ...]
    threads: str  # letters of ``THREADS``
    held: tuple[str, ...] = ()  # called under the lock; of ``WHOLE`` and ``ONCE``, the writer's
    besides: tuple[str, ...] = ()  # methods that need no lock


ALL = "KPRWCVOEADNSHXG"

ROWS = """\
# class | lock | threads | fields | held | besides
# Requests and hints.
daemon.requests.Requests | _changed | KPXH | _asked _looked _done _waiting _unplaced _answered
    _published_at _served_at | _verdict _explain _forget_gone
daemon.requests.PodHints | _lock | KX | _released _differing
daemon.requests.Checks | _changed | KX | _asked _found | _was_checked
daemon.triggers.Triggers | _condition | KPRWCVOENFXG | _marks
# What loops tell others.
daemon.document.InForce | whole | KPRXAH | accepted | take_first _fall_back _accept
daemon.document.InForce | whole | HR | _wanted | find_settings
daemon.document.InForce | whole | RH | _described | describe_wanted
daemon.document.Reader | whole | RK | _last _unchecked | look_first look_again _put_off
daemon.document.Reader | one | K | _taken
daemon.kernel_loop.KernelLoop | whole | KXAH | progress | turn full_pass _publish _finish
    _end_cooldowns _judge_others
daemon.kernel_loop.KernelLoop | one | K | _schedule _hints _is_untidy _links _leaving
    _ledger _work
daemon.pool_loop.PoolLoop | whole | PKXH | planned_for report outlook | run_pass
    _await_hint
daemon.pool_loop.PoolLoop | whole | KPXH | wanted | learn
daemon.pool_loop.PoolLoop | one | P | _failures _hints _owes_observation
daemon.triggers.ChangeAttribution | whole | NKP | _seen | hear
daemon.cluster.Refusals | _lock | XA | _events
daemon.cluster.Reporter | one | A | _seen _ledger _failed _calls _waited _numbers _settings
    _is_cut_off
# What every loop reports to.
daemon.duty.Conditions | _lock | ALL | _known _for_all _traced _records _names
daemon.drift.DriftTracker | _lock | KPX | _settled _inside _attached _repaired | _follow_enis
    _count_all _is_drift
daemon.drift.DriftTracker | whole | KP | backoffs | clear forget_backoffs
    book _count_all
daemon.duty.Watchdog | steps | ALL | _passes _heard _ended _thread
daemon.duty.Watchdog | one | D | _logged
daemon.telemetry.Bounded | steps | ALL | _known
daemon.logs.LogWriter | _changed | ALL | _waiting _bytes _dropped
# The socket, and watches.
daemon.listener.Workers | _lock | SXK | _idle _busy
daemon.listener.Workers | steps | SXK | _work
daemon.server.Server | whole | KW | _listener _place | reclaim stop
daemon.listener.Listener | steps | SHXK | _returned _ended _thread
daemon.ledger.Notifications | _lock | NK | _told _size _heard_at _is_lost | _lose
daemon.triggers.KernelWatch | steps | NWK | _ended
daemon.triggers.KernelWatch | one | W | _thread
daemon.triggers.KernelWatch | one | N | _sockets
daemon.parts.Parts | steps | ALL | stopping
daemon.parts.Upkeep | steps | KW | properties
# The node.
node.gathering.Known | whole | PKRXAHW | facts cloud | identify see remember
node.gathering.Known | whole | PKE | _resolved | resolve
node.gathering.Known | whole | RPKE | _applied | _apply
daemon.source_loop.SourceLoop | one | E | _hints
node.gathering.Known | whole | EKPXH | egress | learn
node.gathering.Known | whole | APKEX | kubelet_pods | learn_pods
node.gathering.Known | one | P | _remembered
node.source_pass.SourcePass | one | E | _asked _failures _due_at
node.pool_pass.PoolPass | steps | PK | binding
node.pool_pass.PoolPass | once | PXEH | _controller _ec2 | learn
node.pool_pass.PoolPass | one | P | _is_deaf demand
node.pool_schedule.PoolSchedule | whole | PX | left waits_to_shrink | leave postpones_shrinking
node.pool_schedule.PoolSchedule | one | P | called_at grown_at readings
targets.foreign.Latest | whole | KO | _last | _refresh wait
targets.foreign.Surroundings | whole | KO | _with_ours | _observe
targets.foreign.Latest | steps | KO | _asked _stopped
targets.state.record_file.Lock | whole | KPWX | fd | take
#   lock: no other thread runs yet
#   _records: chooses one of them, and touches nothing of it
#   hand_over: names a file; what is kept, is kept under the lock
targets.state.directory.StateDirectory | _memory | KPX | _intents _attachments _aside _ours
    _clock | _with_others | lock _records hand_over
targets.state.kept_document.KeptDocument | one | R | _written
targets.state.kept_identities.KeptIdentities | one | K | _wanted _written
node.neighbours.NeighboursAgain | one | W | _asked
node.cooldown.Cooldowns | _changed | KC | _ended _quiet _outcome _failures _idle_until _stopping
    | _due_s
node.stock_plugin.StockPlugin | _lock | KP | _look _unseen | _renew
core.remembered.Remembered | whole | KP | _last | __call__
core.remembered.RememberedWhileAsked | whole | KP | _known | __call__ end_pass
targets.netlink.queries.Queries | one | K | _unread_rules
targets.netlink.removals.Removals | _changed | KV | _under_way _failed _stopping
targets.conntrack.Conntrack | whole | PC | _filters_looks _filters_deletions | _find_busy _end
#   C alone deletes; P looks
#   of sources another object than of ENIs
targets.ec2.calls.Calls | steps | PEX | made
targets.ec2.calls.Calls | one | PE | _failures _successes _buckets
targets.ec2.tally.Tally | _lock | PEXH | _calls
targets.ec2.sources.VpcSources | one | E | _lists
targets.ec2.caller.Early | _lock | PET | _process | start
targets.ec2.caller.Subprocess | _lock | PET | _process _questions _idle | _ask _running _end
"""


def _read(rows: str) -> Iterator[Shared]:
    lines = [line for line in rows.splitlines() if not line.startswith("#")]
    for row in "\n".join(lines).replace("\n    ", " ").splitlines():
        cls, lock, threads, *names = row.split(" | ")
        fields, *methods = (tuple(each.split()) for each in names)
        yield Shared(cls, lock, fields, threads.replace("ALL", ALL), *methods)


TABLE = tuple(_read(ROWS))
