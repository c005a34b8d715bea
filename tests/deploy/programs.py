"""Programs of ``deploy/``, which is no package, as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

DEPLOY = Path(__file__).parents[2] / "deploy"


def program(path: str) -> ModuleType:
    """Load a program below ``deploy/``."""
    name = f"deploy_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, DEPLOY / path)
    assert spec is not None
    assert spec.loader is not None
    made = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made
