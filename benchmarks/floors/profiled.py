"""A program: the reconciler, whose threads have names the kernel knows, and may be profiled.

``python profiled.py PLACE HOW ARGUMENT...`` runs ``node-network ARGUMENT...``. Whenever somebody
writes into the pipe PLACE.ask, it writes PLACE anew: the modules that are loaded, and, if HOW is
``profile``, what each function of each thread has taken of CPU so far.
"""

from __future__ import annotations

import cProfile
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

profiles: list[tuple[str, cProfile.Profile]] = []
place, how = Path(sys.argv[1]), sys.argv[2]


def watched(run: Callable[..., None]) -> Callable[..., None]:
    """Return what runs a thread under its name, and its profile."""

    def begin(self: object) -> None:
        name = threading.current_thread().name
        number = threading.get_native_id()
        if number != os.getpid():  # the process keeps its own
            Path(f"/proc/self/task/{number}/comm").write_text(name[:15])
        if how != "profile":
            return run(self)
        profile = cProfile.Profile(time.thread_time)
        profiles.append((name, profile))
        return profile.runcall(run, self)

    return begin


def listen() -> None:
    """Tell whenever it is asked: by no signal, because the first one ends the reconciler."""
    while True:
        place.with_suffix(".ask").read_bytes()
        tell()


def tell() -> None:
    """Write what is known so far."""
    functions: dict[str, list[float]] = {}
    for thread, profile in tuple(profiles):
        for entry in profile.getstats():
            code = entry.code
            name = code if isinstance(code, str) else f"{code.co_filename}:{code.co_qualname}"
            own, whole, calls = functions.get(f"{thread} {name}", (0.0, 0.0, 0))
            functions[f"{thread} {name}"] = [
                own + entry.inlinetime, whole + entry.totaltime, calls + entry.callcount
            ]  # fmt: skip
    fresh = place.with_suffix(".fresh")
    fresh.write_text(json.dumps({"modules": list(sys.modules), "functions": functions}))
    fresh.rename(place)


def main() -> None:
    """Run the reconciler."""
    sys.argv = ["node-network", *sys.argv[3:]]
    os.mkfifo(place.with_suffix(".ask"), 0o600)
    threading.Thread(target=listen, name="profiled", daemon=True).start()
    threading.Thread.run = watched(threading.Thread.run)  # type: ignore[method-assign]
    from reconciler.__main__ import enter

    watched(lambda _: enter())(None)


if __name__ == "__main__":
    main()
