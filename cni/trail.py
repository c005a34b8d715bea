"""The log of calls: one line each, in a file or in the journal.

A log that cannot be written makes no call fail.
"""

from __future__ import annotations

import os
import socket
import time

from cni import strict_json

MAX_BYTES = 1 << 20  # of the log file; then it is renamed to ``.1``, in place of an older one
MAX_VALUE = 512  # characters of one value

JOURNAL = "/run/systemd/journal/socket"
"""Where systemd's journal takes datagrams (its "Native Journal Protocol")."""

LEVELS = {"debug": 0, "info": 1, "error": 2, "none": 3}

PRIORITIES = ("7", "6", "3")  # of syslog, by level


def write(config: dict[str, object], level: str, fields: dict[str, str]) -> None:
    """Write a line where the network's configuration says.

    Args:
        config: of the network. ``logFile`` is a path or ``journal``; without it nothing is logged.
            ``logLevel`` is ``debug``, ``info``, ``error`` (calls that failed), or ``none``.
        level: of this line.
        fields: by name, in order; empty ones are left out.
    """
    target, least = config.get("logFile"), config.get("logLevel", "info")
    threshold = LEVELS.get(least, LEVELS["info"]) if isinstance(least, str) else LEVELS["info"]
    if not isinstance(target, str) or LEVELS[level] < threshold:
        return
    line = " ".join(f"{key}={_quote(value)}" for key, value in fields.items() if value)
    try:
        if target == "journal":
            _send(line, level, fields)
        elif target.startswith("/"):
            now = time.time()
            at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
            _append(target, f"{at}.{int(now % 1 * 1000):03}Z {level.upper()} {line}\n")
    except (OSError, ValueError):
        return


def _append(path: str, line: str) -> None:
    # Not through a link, and not waiting for the reader of a pipe.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
    try:
        fd = os.open(path, flags, 0o640)
    except FileNotFoundError:
        os.mkdir(path.rpartition("/")[0], 0o755)
        fd = os.open(path, flags, 0o640)
    try:
        os.write(fd, line.encode(errors="backslashreplace"))
        found = os.fstat(fd)
        # If another process has renamed it meanwhile, this path is a new file.
        if found.st_size > MAX_BYTES and os.stat(path).st_ino == found.st_ino:
            os.rename(path, f"{path}.1")
    finally:
        os.close(fd)


def _send(line: str, level: str, fields: dict[str, str]) -> None:
    entry = {
        "MESSAGE": line,
        "PRIORITY": PRIORITIES[LEVELS[level]],
        "SYSLOG_IDENTIFIER": "node-network-cni",
        **{f"CNI_{key.upper()}": value for key, value in fields.items() if value},
    }
    # A value with a line break in it would need the protocol's binary form.
    text = "".join(f"{key}={_flat(value)}\n" for key, value in entry.items())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.setblocking(False)
        s.sendto(text.encode(errors="backslashreplace"), JOURNAL)


def _flat(value: str) -> str:
    return "".join(c if c.isprintable() else " " for c in value)


def _quote(value: str) -> str:
    text = value[:MAX_VALUE]
    plain = text.isprintable() and not any(c in ' "=' for c in text)
    return text if plain else strict_json.write(text)
