"""Chromium, driven by the DevTools protocol over a pipe: the browser's descriptors 3 and 4."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless=new",
    "--no-sandbox",  # the tests are root's
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--remote-debugging-pipe",
)


class Browser:
    """One page of a running browser."""

    def __init__(self, answers: FileIO, commands: FileIO) -> None:
        self._from, self._to = answers, commands
        self._number = 0
        self._rest = b""
        self._session = ""
        self.errors: list[str] = []
        """What the page's console said, and what it threw."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Accessibility"):
            self._call(f"{domain}.enable")

    def go(self, url: str) -> None:
        """Open a page."""
        self._call("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        """Return an expression's value."""
        told = self._call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def press(self, key: str, text: str = "") -> None:
        """Press a key; ``text``: what it types."""
        self._call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, text=text)
        self._call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)

    def tree(self) -> list[dict[str, Any]]:
        """Return what a screen reader is told: roles and names."""
        nodes = self._call("Accessibility.getFullAXTree")["nodes"]
        return [
            {"role": n["role"]["value"], "name": n.get("name", {}).get("value", "")}
            for n in nodes
            if not n.get("ignored")
        ]

    def resize(self, width: int, height: int) -> None:
        """Give the page another size, in CSS pixels."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def prefer(self, scheme: str) -> None:
        """Have the user prefer light or dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._call("Emulation.setEmulatedMedia", features=features)

    def picture(self, path: Path) -> None:
        """Write what is seen, as PNG."""
        data = self._call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        while True:
            told = self._read()
            if told.get("id") == self._number:
                assert "error" not in told, told
                result: dict[str, Any] = told["result"]
                return result
            if told.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.errors.append(json.dumps(told["params"]))

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = self._from.read(1 << 16)
            assert more, "the browser has ended"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\0")
        told: dict[str, Any] = json.loads(line)
        return told


@contextmanager
def browse(profile: Path) -> Iterator[Browser]:
    """Start a browser in this thread's network namespace; it ends with the block."""
    program = shutil.which("chromium")
    assert program, "chromium is not installed: make setup"
    their_read, write = os.pipe()
    read, their_write = os.pipe()
    # The browser reads commands from 3 and writes answers to 4.
    shell = f'exec 3<&{their_read} 4>&{their_write}; exec {program} "$@"'
    argv = ["bash", "-c", shell, "chromium", *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(
        argv,
        pass_fds=(their_read, their_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(their_read)
    os.close(their_write)
    try:
        with os.fdopen(read, "rb", 0) as answers, os.fdopen(write, "wb", 0) as commands:
            yield Browser(answers, commands)
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait(timeout=10)
