"""A state directory, and a reconciler on its socket."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import executable
import pytest
from executable import Reconciler


@pytest.fixture(scope="module", params=executable.FORMS)
def form(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run the tests of a module with each form of the program."""
    executable.form = request.param
    yield
    executable.form = "python"


@pytest.fixture
def state() -> Iterator[Path]:
    # Not tmp_path: a socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="nnt-") as directory:
        yield Path(directory)


@pytest.fixture
def serve(state: Path) -> Iterator[Any]:
    made: list[Reconciler] = []

    def start(answer: Any) -> Reconciler:
        made.append(Reconciler(state, answer))
        return made[-1]

    yield start
    for each in made:
        each.close()
