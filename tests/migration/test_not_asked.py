"""What a node knows of the take-over that no document asks for: nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

PASSES = """
import sys
from pathlib import Path

from test_takeover_order import Taken

from reconciler.node import views
from reconciler.targets.stock_plugin import StockPluginTarget

taken = Taken(sys.argv[1] == "asked", StockPluginTarget(Path("/nonexistent")))
for _ in range(3):
    taken.turn()
    taken.now += 100  # the stock plugin's leftovers are looked for again
views.diff(taken.node, taken.document)
print(*(m for m in sys.modules if m.startswith("reconciler.")))
"""
"""Passes of a node in memory, but for the look at what the stock plugin has left: the kernel's."""


@pytest.mark.parametrize("asked", ["asked", "unasked"])
def test_nothing_of_the_migration_is_imported_before_a_document_asks_for_it(asked: str) -> None:
    """So nothing of it can be called, and nothing of it can fail a pass."""
    path = [str(HERE), str(HERE.parent), str(HERE.parents[1])]
    environment = {"PYTHONPATH": ":".join(path), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", PASSES, asked],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    migration = {"reconciler.migration", "reconciler.migration.takeover"}
    of_take_over = migration | {"reconciler.targets.remains"}
    loaded = of_take_over & set(done.stdout.split())
    assert loaded == (of_take_over if asked == "asked" else set())
