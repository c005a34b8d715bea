"""Times in records: by the wall clock, which may be set, and by the time since boot, which not."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from reconciler.core.attachment import Attachment, Cooling, Intent
from reconciler.ipam.ec2_action import Creation
from reconciler.ipam.records import SetAside
from reconciler.ipam.release import Quarantine

STEP_S = 1.0
"""Seconds by which the clock must have left the time since boot behind, or run ahead of it, to
have been set. NTP slews by 500 ppm at most (adjtimex(2)): less than this in half an hour."""

TIMES: dict[type, tuple[str, ...]] = {
    Cooling: ("until",),
    Quarantine: ("since", "asked", "gone"),
    Creation: ("at",),
    SetAside: ("since",),
}
"""The fields of each kind of record that are times."""

T = TypeVar("T", bound=Intent | Attachment | Cooling | Quarantine | Creation | SetAside)


class Clock:
    """The wall clock, held against the time since boot, which cannot be set.

    A record says by both when it was written. So long as the node has not booted since, a step of
    the clock in between is known, and the record's times are moved by it. After a boot only the
    wall clock is left; no pod has survived it.

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

    def stamp(self, record: object) -> dict[str, Any]:
        """Return what a record with times says of the clock it was written by."""
        if type(record) not in TIMES:
            return {}
        return {"clock": {"boot": self._boot, "offset": self._offset}}

    def shifted(self, record: T, body: dict[str, Any]) -> T:
        """Return a record with its times moved by the steps since it was written."""
        stamp = body.get("clock")
        if not isinstance(stamp, dict) or not self._boot or stamp.get("boot") != self._boot:
            return record
        delta = self._offset - seconds_of(stamp.get("offset", self._offset))
        return record if abs(delta) < STEP_S else shift(record, delta)


def shift(record: T, delta: float) -> T:
    """Move the times of a record; 0 says that something never was, and is no time."""
    times = {name: at for name in TIMES.get(type(record), ()) if (at := getattr(record, name))}
    return replace(record, **{name: at + delta for name, at in times.items()})


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
