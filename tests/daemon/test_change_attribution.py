"""Who else changes the network is named, whatever it calls itself."""

from __future__ import annotations

import os
from pathlib import Path

from reconciler.daemon import triggers


def test_a_process_whose_name_is_no_text_is_named_all_the_same() -> None:
    comm = Path("/proc/self/comm")
    before = comm.read_bytes()
    try:
        comm.write_bytes(b"x\xff\xfe")
        assert triggers._name(os.getpid()) == rf"x\xff\xfe (pid {os.getpid()})"
    finally:
        comm.write_bytes(before)
