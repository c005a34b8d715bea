"""The CNI executable as a runtime runs it, and a reconciler that answers as it is told to."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from lab.lifecycle import STATIC

REPLY: dict[str, Any] = {
    "ok": True,
    "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:02", "mtu": 9001, "sandbox": "x"}],
    "ips": [{"address": "10.0.1.9/32", "gateway": "169.254.1.1", "interface": 1}],
    "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}],
    "dns": {},
}

ROOT = Path(__file__).parents[1]
FORMS = {"python": [sys.executable, "-S", "-m", "cni"], "static": [str(STATIC)]}
"""The same program twice: as a package, and as what hosts get."""

form = "python"
"""Which of them ``run`` runs; the tests of the process are run with each."""


class Reconciler:
    """Answers on the socket as it is told to, and remembers what it was asked."""

    def __init__(self, state: Path, answer: Any) -> None:
        self.asked: list[Any] = []
        self._answer = answer
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(state / "node-network.sock"))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            # As the real one: whoever only left a hint is not there to hear the answer.
            gone = suppress(BrokenPipeError, ConnectionResetError)
            with gone, connection, connection.makefile("rwb") as stream:
                line = stream.readline()
                if line:
                    self.asked.append(json.loads(line))
                    self._answer(stream)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


def say(reply: dict[str, Any]) -> Any:
    def answer(stream: Any) -> None:
        stream.write(json.dumps(reply).encode() + b"\n")
        stream.flush()

    return answer


def run(
    state: Path,
    verb: str = "ADD",
    stdin: Any = None,
    *,
    within: Sequence[str] = (),
    **environ: str,
) -> tuple[int, Any]:
    """Run it; its output must be nothing or one JSON object, and it never says anything else.

    Args:
        state: its state directory.
        verb: what is asked.
        stdin: text for its standard input, or what its configuration has besides the usual.
        within: a program, with arguments, that starts it.
        environ: what its environment has besides the usual.
    """
    config = {"cniVersion": "1.0.0", "name": "n", "type": "node-network", "stateDir": str(state)}
    text = stdin if isinstance(stdin, str | bytes) else json.dumps(config | (stdin or {}))
    done = subprocess.run(
        [*within, *FORMS[form]],
        input=text.encode() if isinstance(text, str) else text,
        env={
            "PATH": "/usr/bin:/bin",
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": "pod1",
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": "/proc/self/ns/uts",  # any file that is not our network namespace
            "CNI_PATH": "/opt/cni/bin",
        }
        | environ,
        capture_output=True,
        cwd=ROOT,
        timeout=20,
    )
    assert done.stderr == b""
    return done.returncode, json.loads(done.stdout) if done.stdout else None


def at_once_s(state: Path, seconds: float) -> float:
    """Return in how many seconds a call is answered at once, on a machine as busy as this one.

    Args:
        state: its state directory.
        seconds: the limit where nothing else runs.
    """
    began = time.monotonic()
    run(state, "VERSION")
    return seconds + 5 * (time.monotonic() - began)


def intents(state: Path) -> dict[str, str]:
    return (
        {p.name: json.loads(p.read_text())["state"] for p in (state / "intents").glob("*")}
        if (state / "intents").exists()
        else {}
    )


json_values: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3)
    ),
    max_leaves=8,
)
