"""Which threads the daemon has, and what guards each field that two of them touch.

A value goes from one thread to another whole and frozen, or is a field under one lock of one
small class. ``tests/daemon/test_thread_table.py`` holds the code against this table.

Locks are taken in this order, never the other way round: ``PoolPass.binding``, then
``StateDirectory._memory``; ``Requests._changed`` and ``Checks._changed``, then those of
``PodHints``, ``Triggers`` and ``Conditions``. All others are taken alone.
"""

from __future__ import annotations

from dataclasses import dataclass

THREADS = {
    "K": "MainThread: the kernel loop; before the others start it makes everything",
    "P": "pool: the pool loop",
    "R": "reader: reads the document",
    "W": "watches: keeps the watches, looks whether directory and socket are still our own",
    "C": "cooldowns: ends connections of addresses that cool",
    "O": "others: looks at other owners' rules",
    "D": "watchdog: looks at the others",
    "N": "kernel-watch: hears notifications of rtnetlink and nftables",
    "F": "observer and emitters of the watchdog library: notifications of files",
    "S": "the socket: its listener",
    "H": "health: its listener",
    "X": "exchange: one question on the socket each",
    "T": "a timer: ends the process that calls EC2",
    "G": "signals: ends the daemon",
    "L": "log: writes lines",
}

WHOLE = "replaced as a whole"
"""The value is frozen, or never changed once it is there. The writer's thread replaces it; every
other method reads it once, and works on what it has read."""

ONCE = "set once"
"""None until the writer's thread sets it; it stays."""

STEPS = "steps"
"""A primitive of ``threading``, or a container of which each call is one step of the interpreter.
Assigned once, when the object is made."""

ONE = "one thread"
"""Only that thread touches it, though others touch other fields of the object."""


@dataclass(frozen=True, slots=True)
class Shared:
    """Fields of one class that are guarded alike.

    Attributes:
        cls: module below ``reconciler``, and class.
        lock: the field that holds their lock; or ``WHOLE``, ``ONCE``, ``STEPS`` or ``ONE``.
        threads: letters of ``THREADS``.
        held: methods that are called with the lock held; for ``WHOLE`` and ``ONCE``, those of the
            writer.
        besides: methods that need no lock, each with the reason.
    """

    cls: str
    lock: str
    fields: tuple[str, ...]
    threads: str
    held: tuple[str, ...] = ()
    besides: tuple[tuple[str, str], ...] = ()


ALL = "KPRWCODNSHXG"

TABLE = (
    # Requests and hints.
    Shared(
        "daemon.requests.Requests",
        "_changed",
        (
            *("_asked", "_done", "_waiting", "_withdrawn", "_answered"),
            *("_published_at", "_served_at"),
        ),
        "KPX",
        held=("_verdict", "_explain", "_forget_gone"),
    ),
    Shared("daemon.requests.PodHints", "_lock", ("_released", "_differing"), "KX"),
    Shared(
        "daemon.requests.Checks", "_changed", ("_asked", "_found"), "KX", held=("_was_checked",)
    ),
    Shared("daemon.triggers.Triggers", "_condition", ("_marks",), "KPRWCONFXG"),
    # What loops tell others.
    Shared("daemon.document.InForce", WHOLE, ("accepted",), "KPX", held=("_accept",)),
    Shared("daemon.document.Reader", WHOLE, ("_last",), "RK", held=("look_first", "look_again")),
    Shared("daemon.document.Reader", ONE, ("_taken",), "K"),
    Shared(
        "daemon.kernel_loop.KernelLoop",
        WHOLE,
        ("progress",),
        "KX",
        held=("turn", "full_pass", "_publish", "_finish"),
    ),
    Shared(
        "daemon.kernel_loop.KernelLoop", ONE, ("_schedule", "_hints", "_is_untidy", "_links"), "K"
    ),
    Shared(
        "daemon.pool_loop.PoolLoop", WHOLE, ("planned_for", "report"), "PKX", held=("run_pass",)
    ),
    Shared("daemon.pool_loop.PoolLoop", ONE, ("_failures", "_hints", "_owes_observation"), "P"),
    Shared("daemon.triggers.ChangeAttribution", WHOLE, ("_seen",), "NKP", held=("hear",)),
    # What every loop reports to.
    Shared("daemon.duty.Conditions", "_lock", ("_known", "_traced"), ALL),
    Shared(
        "daemon.drift.DriftTracker",
        "_lock",
        ("_settled", "_inside", "_attached"),
        "KP",
        held=("_book", "_book_pods", "_follow_enis", "_count_all", "_is_drift"),
    ),
    Shared(
        "daemon.drift.DriftTracker",
        WHOLE,
        ("backoffs",),
        "KP",
        held=("clear", "_book", "_count_all"),
    ),
    Shared("daemon.duty.Watchdog", STEPS, ("_passes", "_heard", "_ended", "_thread"), ALL),
    Shared("daemon.duty.Watchdog", ONE, ("_logged",), "D"),
    Shared("daemon.telemetry.LogWriter", "_changed", ("_waiting", "_bytes", "_dropped"), ALL),
    # The socket, and watches.
    Shared("daemon.listener.Workers", "_lock", ("_idle", "_busy"), "SXK"),
    Shared("daemon.listener.Workers", STEPS, ("_work",), "SXK"),
    Shared("daemon.server.Server", WHOLE, ("_listener", "_place"), "KW", held=("reclaim", "stop")),
    Shared("daemon.listener.Listener", STEPS, ("_returned", "_ended", "_thread"), "SHXK"),
    Shared("daemon.triggers.KernelWatch", STEPS, ("_ended",), "NWK"),
    Shared("daemon.triggers.KernelWatch", ONE, ("_thread",), "W"),
    Shared("daemon.triggers.KernelWatch", ONE, ("_sockets",), "N"),
    Shared("daemon.parts.Parts", STEPS, ("stopping",), ALL),
    Shared("daemon.parts.Upkeep", STEPS, ("properties",), "KW"),
    # The node.
    Shared(
        "node.known.Known", WHOLE, ("facts", "cloud"), "PKX", held=("identify", "see", "remember")
    ),
    Shared("node.known.Known", WHOLE, ("_resolved",), "PK", held=("resolve",)),
    Shared("node.known.Known", ONE, ("_remembered",), "P"),
    Shared("node.pool_pass.PoolPass", STEPS, ("binding",), "PK"),
    Shared("node.pool_pass.PoolPass", ONCE, ("_controller", "_ec2"), "PX", held=("learn",)),
    Shared("node.pool_pass.PoolPass", ONE, ("_is_deaf", "demand"), "P"),
    Shared(
        "node.pool_schedule.PoolSchedule",
        WHOLE,
        ("left", "waits_to_shrink"),
        "PX",
        held=("leave", "postpones_shrinking"),
    ),
    Shared("node.pool_schedule.PoolSchedule", ONE, ("called_at", "grown_at", "readings"), "P"),
    Shared("targets.latest.Latest", WHOLE, ("_last",), "KO", held=("_refresh", "wait")),
    Shared("targets.foreign.Surroundings", WHOLE, ("_with_ours",), "KO", held=("_observe",)),
    Shared("targets.latest.Latest", STEPS, ("_asked", "_stopped"), "KO"),
    Shared("targets.state.ownership.Lock", WHOLE, ("fd",), "KPWX", held=("take",)),
    Shared(
        "targets.state.directory.StateDirectory",
        "_memory",
        ("_intents", "_attachments", "_aside", "_ours", "_clock"),
        "KPX",
        held=("_with_others",),
        besides=(
            ("lock", "no other thread runs yet"),
            ("_records", "chooses one of them, and touches nothing of it"),
            ("hand_over", "names a file; what is kept, is kept under the lock"),
        ),
    ),
    Shared(
        "node.cooldown.Cooldowns",
        "_changed",
        ("_ended", "_quiet", "_outcome", "_failures", "_idle_until", "_stopping"),
        "KC",
        held=("_due_s",),
    ),
    Shared("node.stock_plugin.StockPlugin", "_lock", ("_look", "_unseen"), "KP", held=("_renew",)),
    Shared("core.remembered.Remembered", WHOLE, ("_last",), "KP", held=("__call__",)),
    Shared("targets.netlink.queries.Queries", STEPS, ("_memory",), "KP"),
    Shared("targets.netlink.queries.Queries", ONE, ("_unread_rules",), "K"),
    Shared(
        "targets.conntrack.Conntrack",
        WHOLE,
        ("_filters_looks", "_filters_deletions"),
        "PC",
        held=("_find_busy", "_end"),
    ),
    Shared("targets.ec2.calls.Calls", STEPS, ("made",), "PX"),
    Shared("targets.ec2.calls.Calls", ONE, ("_failures", "_successes", "_buckets"), "P"),
    Shared(
        "targets.ec2.caller.Subprocess",
        "_lock",
        ("_process", "_questions", "_idle"),
        "PT",
        held=("_ask", "_running", "_end"),
    ),
)
