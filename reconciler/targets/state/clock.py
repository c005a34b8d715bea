"""Times in records: by the wall clock, which may be set, and by the time since boot, which not."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from reconciler.core.attachment import Cooling
from reconciler.ipam.ec2_action import Creation
from reconciler.ipam.release import Quarantine

STEP_S = 1.0
"""Seconds by which the clock must have left the time since boot behind, or run ahead of it, to
have been set. NTP slews by 500 ppm at most (adjtimex(2)): less than this in half an hour."""

T = TypeVar("T", Cooling, Quarantine, Creation)


class Clock:
    """The wall clock, held against the time since boot, which nobody can set.

    A record says by both when it was written. So long as the node has not booted since, a step of
    the clock in between is known, and the record's times are moved by it. After a boot only the
    wall clock is left; no pod has outlived it.

    Args:
        boot: identity of this boot; "" if it cannot be read, and then nothing is moved.
        offset: seconds from boot's clock to the wall clock's.
    """

    def __init__(self, boot: str, offset: Callable[[], float]) -> None:
        self._boot = boot
        self._read = offset
        self._offset = offset()

    def follow(self) -> float:
        """Return by how many seconds the clock was set since the last time; 0 if it was not."""
        now = self._read()
        delta = now - self._offset
        if abs(delta) < STEP_S:
            return 0.0
        self._offset = now
        return delta

    def stamp(self) -> dict[str, Any]:
        """Return what a record says of the clock it was written by."""
        return {"boot": self._boot, "offset": self._offset}

    def shifted(self, record: T, body: dict[str, Any]) -> T:
        """Return a record with its times moved by the steps since it was written."""
        stamp = body.get("clock")
        if not isinstance(stamp, dict) or not self._boot or stamp.get("boot") != self._boot:
            return record
        delta = self._offset - seconds_of(stamp.get("offset", self._offset))
        return record if abs(delta) < STEP_S else shift(record, delta)


def shift(record: T, delta: float) -> T:
    """Move the times of a record; those that say that something was never are no times."""
    match record:
        case Cooling():
            return replace(record, until=record.until + delta)
        case Quarantine():
            asked, gone = record.asked, record.gone
            return replace(
                record,
                since=record.since + delta,
                asked=asked + delta if asked else 0.0,
                gone=gone + delta if gone else 0.0,
            )
        case Creation():
            return replace(record, at=record.at + delta)
        case _:
            return record


def boot_id() -> str:
    """Return what the kernel calls this boot; "" if it cannot be read."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def clock_offset() -> float:
    """Return the wall clock less the time since boot, time asleep included."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def seconds_of(value: Any) -> float:
    """Return a time of a record.

    Raises:
        ValueError: it is none: JSON may say NaN, which is neither before nor after anything.
    """
    seconds = float(value)
    if not math.isfinite(seconds):
        raise ValueError(f"{value} is no time")
    return seconds
