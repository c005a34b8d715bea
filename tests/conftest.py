"""What tests share: builders of documents and inputs, and namespaces that always go away."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))  # for fakes and builders

from lab import netns

settings.register_profile(
    "suite",
    deadline=None,  # two busy cores say nothing about the code
    max_examples=int(os.environ.get("EXAMPLES", "60")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("suite")


@contextmanager
def namespace(hint: str = "t") -> Iterator[str]:
    """A network namespace of a name that no other test has."""
    name = f"nnt-{hint}-{uuid.uuid4().hex[:8]}"
    netns.make(name)
    try:
        yield name
    finally:
        netns.remove(name)


@pytest.fixture
def home() -> Iterator[str]:
    """Run the test's thread inside a namespace of its own."""
    with namespace("home") as name, netns.inside(name):
        yield name


@pytest.fixture
def pod() -> Iterator[str]:
    """Path of another namespace, for a pod."""
    with namespace("pod") as name:
        yield str(netns.path(name))
