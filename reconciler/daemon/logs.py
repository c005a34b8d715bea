"""The log: events as lines of text or JSON, written by a thread that no caller waits for."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from math import isfinite
from typing import Any

from reconciler.daemon.telemetry import LOG_DROPPED
from reconciler.errors import FOREIGN_TEXT, ReconcilerError, boundary

MOST_WAITING = 1 << 20
"""Bytes of lines that wait while they are not read or the disk is full: some hours of a healthy
node, a second of a failing one."""

AGAIN_S, FLUSH_S = 1.0, 1.0
"""Seconds until it is tried again after a line could not be written, and for which the end of the
process waits for what is not written yet."""

WRITE_BYTES = 4096
"""Bytes that are written at once: a pipe takes as many whole (PIPE_BUF in pipe(7))."""

STDERR = 2


def configure(*, verbose: bool = False, form: str = "text") -> None:
    """Send events to stderr, one line each, in a thread of its own; ``form`` is of ``FORMS``."""
    while (unused := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        pass  # of a process without stderr the next file would get its number, and our lines
    os.close(unused)
    root = logging.getLogger()
    root.handlers[:] = [LogWriter(STDERR, FORMS[form]())]
    root.setLevel(logging.WARNING)
    logging.getLogger("reconciler").setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.captureWarnings(capture=True)
    # Python would write to stderr by itself, and wait there.
    sys.unraisablehook = lambda raised: logging.getLogger(__name__).error(
        "an exception outside of any caller: %r in %r", raised.exc_value, raised.object
    )


class LogWriter(logging.Handler):
    """Writes lines in a thread of its own, so that no caller waits.

    If the reader has stopped or the disk is full, lines wait, up to a limit. Lines beyond it are
    dropped and counted, until all that waits is written; the next line says how many.
    """

    def __init__(self, descriptor: int, form: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(form)
        self._descriptor = descriptor
        self._changed = threading.Condition()
        self._waiting: list[bytes] = []
        self._bytes = self._dropped = 0
        threading.Thread(target=self._write_on, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line, or drop it."""
        try:
            with boundary("a line of the log"):
                text = self.format(record)
        except ReconcilerError as error:
            text = str(error)
        line = f"{text}\n".encode(errors="backslashreplace")
        with self._changed:
            if self._dropped or self._bytes + len(line) > MOST_WAITING:
                self._dropped += 1
                LOG_DROPPED.inc()
                return
            self._waiting.append(line)
            self._bytes += len(line)
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all is written, but not for long."""
        with self._changed:
            self._changed.wait_for(lambda: not self._bytes, FLUSH_S)

    def _write_on(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                lines = b"".join(self._waiting)
                self._waiting.clear()
            self._write(lines)
            with self._changed:
                self._bytes -= len(lines)
                dropped = 0 if self._waiting else self._dropped
                self._dropped -= dropped
                self._changed.notify_all()
            if dropped:
                logging.getLogger(__name__).warning(
                    "lines of this log were dropped, because those before could not be written",
                    extra={"lines": dropped},
                )

    def _write(self, lines: bytes) -> None:
        while lines:
            try:
                lines = lines[os.write(self._descriptor, lines[:WRITE_BYTES]) :]
            except OSError:  # there is no other place to say it
                time.sleep(AGAIN_S)


class KeyValue(logging.Formatter):
    """``2026-01-01T00:00:00Z INFO message key=value ...``; values are quoted when they need it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        words = [_time_of(record), record.levelname, record.getMessage()]
        words += [f"{key}={_word(value)}" for key, value in _fields_of(record).items()]
        line = " ".join(words)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class Json(logging.Formatter):
    """One JSON object: ``time``, ``level``, ``logger``, ``message``, and the event's fields.

    A traceback is the field ``exception``. Numbers stay numbers; all else is text.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        body: dict[str, Any] = {
            "time": _time_of(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            body["exception"] = self.formatException(record.exc_info)[-MOST_OF_TRACE:]
        for key, value in _fields_of(record).items():
            is_plain = isinstance(value, int) or (isinstance(value, float) and isfinite(value))
            body.setdefault(key, value if is_plain else str(value)[:FOREIGN_TEXT])
        return json.dumps(body)


FORMS: Mapping[str, type[logging.Formatter]] = {"text": KeyValue, "json": Json}
"""What ``--log-format`` names."""

MOST_OF_TRACE = 8192
"""Characters kept of a traceback in JSON, its end: a collector of logs cuts longer lines (CRI
splits at 16 KiB), and half an object is none."""

STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
"""What every record has; all else are an event's own fields."""


def _time_of(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    return at.replace("+00:00", "Z")


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in STANDARD}


def _word(value: object) -> str:
    text = str(value)[:FOREIGN_TEXT]
    return json.dumps(text) if not text or any(c in text for c in ' "=\n') else text
