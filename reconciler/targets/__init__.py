"""Input and output, one library each: ``observe()`` and ``apply()``.

A target decides nothing. A library is imported here only, each by the modules that are its door.
"""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    """A package whose ``__init__`` runs when something of it is asked for that is no submodule."""

    def __init__(self, spec: ModuleSpec) -> None:
        super().__init__(spec.name)
        self.__spec__ = spec
        self.__path__ = list(spec.submodule_search_locations or ())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_ran" in vars(self):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        try:
            return import_module(f"{self.__name__}.{name}")
        except ModuleNotFoundError:
            self._ran = True
            assert self.__spec__ is not None
            assert self.__spec__.loader is not None
            self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def _postpone(name: str) -> None:
    """Have a package's submodules imported without all the rest of it.

    pyroute2's ``__init__`` imports everything it has, its database and its event loop included:
    twelve megabytes in every daemon, of which nothing is used but what encodes messages.
    """
    spec = None if name in sys.modules else find_spec(name)
    if spec is not None:
        sys.modules[name] = _Package(spec)


_postpone("pyroute2")
