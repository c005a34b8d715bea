"""Collected only when this folder is named: in an emulated machine (``make e2e-kernel``)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """An emulated machine takes its time, and has the kernel that is asked for."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(900))
            if not os.environ.get("NODE_NETWORK_VM"):
                item.add_marker(pytest.mark.skip("runs in an emulated machine: make e2e-kernel"))
