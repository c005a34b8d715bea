"""iptables' tables as text: the door to the ``iptables`` programs, of both backends.

The kernel keeps both apart: what ``iptables-legacy`` wrote, ``iptables-nft`` does not see. Only
what another plugin left is ever removed; nothing is added.
"""

from __future__ import annotations

import os
import resource
import subprocess
import threading
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from reconciler.diagnostics.stock_objects import IptablesChain, IptablesRule
from reconciler.engine.plan import Change
from reconciler.errors import ApplyError
from reconciler.targets.iptables.legacy import IPV4, table_names

TABLES = ("nat", "mangle")
"""The tables that the stock plugin writes to."""

LOCK_S = 5
"""Seconds to wait for the lock that every other program of iptables holds for milliseconds."""

TIMEOUT_S = 20
"""Seconds for one program: with tens of thousands of rules it takes some."""

MAX_LINES = 300_000
"""Lines that are kept of one table: 10,000 services make half as many."""

MAX_LINE = 1 << 16
"""Bytes of one line; a rule's text has a few hundred."""

MAX_MEMORY = 256 << 20
"""Bytes that a program may allocate. If memory runs out all the same, it is the first to go."""

Place = tuple[str, str]
"""Backend and table."""

Removal = Change[IptablesRule | IptablesChain]


class Iptables:
    """The nat and mangle tables of this network namespace, in both backends."""

    def observe(
        self, nft_tables: Collection[str], telling: str = "", limit: int = MAX_LINES
    ) -> tuple[Mapping[Place, tuple[str, ...]], Mapping[Place, str]]:
        """Read chains and rules, by backend and table, as ``iptables-save`` writes them.

        Args:
            nft_tables: names of nftables tables of family ip; iptables-nft keeps its own there.
            telling: only lines with this in them are kept.
            limit: a table with more of them is not read.

        Returns:
            the lines; and for tables that could not be read, why.

        Raises:
            ObserveError: the list of legacy tables cannot be read.
        """
        saved: dict[Place, tuple[str, ...]] = {}
        unlisted: dict[Place, str] = {}
        for backend, there in (("nft", nft_tables), ("legacy", table_names(IPV4))):
            program = f"iptables-{backend}-save"
            for table in (t for t in TABLES if t in there):
                lines, why = _list([program, "-t", table], telling.encode(), limit)
                if why:
                    unlisted[backend, table] = why
                else:
                    saved[backend, table] = lines
        return saved, unlisted

    def apply(self, actions: Sequence[Removal]) -> tuple[ApplyError, ...]:
        """Remove rules and chains: one transaction for each backend and table."""
        places: dict[Place, list[Removal]] = defaultdict(list)
        for action in actions:
            places[action.object.backend, action.object.table].append(action)
        failures: list[ApplyError] = []
        for (backend, table), group in places.items():
            # The nft backend has the kernel's transactions, and no lock.
            argv = [f"iptables-{backend}-restore", "--noflush", "-w", str(LOCK_S)]
            if why := _run(argv, "\n".join(_script(table, group))):
                failures += [ApplyError(str(a), "TransactionRefused", why) for a in group]
        return tuple(failures)


def _script(table: str, actions: Sequence[Removal]) -> Iterator[str]:
    """What refers to chains goes first, then what is in them, then they."""
    objects = [a.object for a in actions]
    chains = [o for o in objects if isinstance(o, IptablesChain)]
    yield f"*{table}"
    yield from (f"-D {o.chain} {o.text}" for o in objects if isinstance(o, IptablesRule))
    yield from (f"-F {o.name}" for o in chains)
    yield from (f"-X {o.name}" for o in chains)
    yield "COMMIT\n"


def _list(argv: list[str], telling: bytes, limit: int) -> tuple[tuple[str, ...], str]:
    """Run a program that lists a table; return lines of it, or why not."""
    kept: list[str] = []
    # In memory: a full pipe would stop it, and a container's root is read-only.
    with os.fdopen(os.memfd_create("said"), "w+b") as said:
        try:
            program = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=said)
        except FileNotFoundError:
            return (), f"there is no {argv[0]}"
        except OSError as error:
            return (), str(error)
        timer = threading.Timer(TIMEOUT_S, program.kill)  # it ends reading as well
        try:
            timer.start()
        except RuntimeError as error:  # no thread can be started
            with program:
                program.kill()
            return (), str(error)
        try:
            _restrict(program.pid)
            assert program.stdout is not None
            with program.stdout as lines:
                while (line := lines.readline(MAX_LINE)) and len(kept) <= limit:
                    if line.startswith((b":", b"-A ")) and telling in line:
                        kept.append(line.decode(errors="backslashreplace").rstrip("\n"))
                if line:
                    program.kill()
        finally:
            code = program.wait()
            timer.cancel()
        if len(kept) > limit:
            return (), f"it has more than {limit} lines"
        if code != 0:
            said.seek(0)
            return (), _words(said.read(MAX_LINE)) or f"{argv[0]} ended with {code}"
    return tuple(kept), ""


def _restrict(pid: int) -> None:
    """Let a program have no more than it needs; one that has ended needs nothing."""
    with suppress(OSError):
        resource.prlimit(pid, resource.RLIMIT_DATA, (MAX_MEMORY, MAX_MEMORY))
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000")


def _run(argv: list[str], text: str) -> str:
    """Run a program with a text to read; return why it failed, if it did."""
    try:
        subprocess.run(
            argv, input=text.encode(), capture_output=True, timeout=TIMEOUT_S, check=True
        )
    except subprocess.CalledProcessError as error:
        return _words(error.stderr) or str(error)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return ""


def _words(said: bytes) -> str:
    return " ".join(said.decode(errors="backslashreplace").split())[:256]
