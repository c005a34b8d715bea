"""iptables' tables as text: the door to the ``iptables`` programs, of both backends.

The two are different worlds in one kernel: what ``iptables-legacy`` wrote, ``iptables-nft`` does
not see. Only what another plugin left is ever removed; nothing is added.
"""

from __future__ import annotations

import shutil
import subprocess
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from reconciler.core.plan import Change
from reconciler.core.predecessor import IptablesChain, IptablesRule
from reconciler.errors import ApplyError, ObserveError

TABLES = ("nat", "mangle")
"""The tables that the stock plugin writes to."""

LEGACY = Path("/proc/thread-self/net/ip_tables_names")
"""Lists the legacy tables of this namespace. To list such a table's rules, or to find it absent,
``iptables-legacy`` would first make it, and a hook of NAT with it."""

LOCK_S = 5
"""Seconds to wait for the lock that every other program of iptables holds for milliseconds."""

TIMEOUT_S = 20

Place = tuple[str, str]
"""Backend and table."""


class Iptables:
    """The nat and mangle tables of this network namespace, in both backends."""

    def observe(
        self, nft_tables: Collection[str]
    ) -> tuple[Mapping[Place, tuple[str, ...]], Mapping[Place, str]]:
        """Read chains and rules, by backend and table, as ``iptables-save`` writes them.

        Args:
            nft_tables: names of nftables tables of family ip; iptables-nft keeps its own there.

        Returns:
            the lines; and for tables that could not be read, why.

        Raises:
            ObserveError: nobody can tell which tables there are.
        """
        saved: dict[Place, tuple[str, ...]] = {}
        unlisted: dict[Place, str] = {}
        for backend, table in _places(nft_tables):
            program = f"iptables-{backend}-save"
            if shutil.which(program) is None:
                unlisted[backend, table] = f"there is no {program}"
                continue
            done = _run([program, "-t", table])
            if done.returncode != 0:
                unlisted[backend, table] = _words(done)
                continue
            lines = done.stdout.splitlines()
            saved[backend, table] = tuple(x for x in lines if x.startswith((":", "-A ")))
        return saved, unlisted

    def apply(
        self, actions: Sequence[Change[IptablesRule | IptablesChain]]
    ) -> tuple[ApplyError, ...]:
        """Remove rules and chains: one transaction for each backend and table."""
        places: dict[Place, list[Change[IptablesRule | IptablesChain]]] = defaultdict(list)
        for action in actions:
            places[action.object.backend, action.object.table].append(action)
        return tuple(
            failure
            for (backend, table), group in places.items()
            for failure in self._restore(backend, table, group)
        )

    def _restore(
        self,
        backend: str,
        table: str,
        actions: Sequence[Change[IptablesRule | IptablesChain]],
    ) -> Iterator[ApplyError]:
        program = f"iptables-{backend}-restore"
        # The nft backend has the kernel's transactions, and no lock.
        wait = ["-w", str(LOCK_S)]
        done = _run([program, "--noflush", *wait], "\n".join(_script(table, actions)))
        if done.returncode != 0:
            why = _words(done)
            yield from (ApplyError(str(a), "TransactionRefused", why) for a in actions)


def _places(nft_tables: Collection[str]) -> Iterator[Place]:
    yield from (("nft", table) for table in TABLES if table in nft_tables)
    try:
        names = LEGACY.read_text().split()
    except FileNotFoundError:
        return  # the kernel has no legacy tables
    except OSError as error:
        raise ObserveError(str(LEGACY), str(error)) from error
    yield from (("legacy", table) for table in TABLES if table in names)


def _script(table: str, actions: Sequence[Change[IptablesRule | IptablesChain]]) -> Iterator[str]:
    """What refers to chains goes first, then what is in them, then they."""
    objects = [a.object for a in actions]
    chains = [o for o in objects if isinstance(o, IptablesChain)]
    yield f"*{table}"
    yield from (f"-D {o.chain} {o.text}" for o in objects if isinstance(o, IptablesRule))
    yield from (f"-F {o.name}" for o in chains)
    yield from (f"-X {o.name}" for o in chains)
    yield "COMMIT\n"


def _run(argv: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            argv, input=text, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(argv, 1, "", str(error))


def _words(done: subprocess.CompletedProcess[str]) -> str:
    return " ".join(done.stderr.split())[:256]
