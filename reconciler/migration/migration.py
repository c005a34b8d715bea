"""Taking over from the stock plugin: what it has left, observed seldom and removed last."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from reconciler.core.facts import Eni
from reconciler.core.predecessor import PodEnd, Predecessor, Sighting
from reconciler.domains.inputs import Inputs
from reconciler.domains.left_out import converge, dry_run
from reconciler.engine.converge import Domain, Outcome
from reconciler.errors import ReconcilerError, boundary
from reconciler.ipam.records import Records
from reconciler.migration import takeover
from reconciler.targets.scoped import ObservedTarget

REMAINS_S = 60.0
"""Seconds between looks while nothing of the stock plugin's is to be done."""

REFUSED_S = 5.0
"""The same while the take-over is refused."""


@dataclass(frozen=True, slots=True)
class _Look:
    """The last observation.

    Attributes:
        asked: the document asked for the take-over then; None before there was a look.
        at: when it was, in monotonic seconds.
        good_s: seconds for which it is good enough.
        whole: the next one is at iptables, too: while there is something to be seen.
    """

    seen: Sighting = field(default_factory=Sighting)
    ends: Mapping[str, PodEnd] = field(default_factory=dict)
    asked: bool | None = None
    at: float = 0.0
    good_s: float = 0.0
    whole: bool = True


class Migration:
    """Remembers the last observation between the passes of both loops.

    Args:
        remains: the target that looks.
    """

    def __init__(self, remains: Any) -> None:
        self._remains = remains
        self._lock = threading.Lock()
        self._look = _Look()
        self._unseen: tuple[ReconcilerError, ...] = ()

    def consider(
        self, records: Records, enis: Iterable[Eni], *, asked: bool, now: float
    ) -> Predecessor:
        """Look for the stock plugin's pods, and say what becomes of them.

        An observation that fails leaves the last one in force, and nothing of the stock plugin's
        is removed meanwhile.

        Args:
            records: intents and attachments.
            enis: what EC2 last showed.
            asked: the document asks for the take-over.
            now: monotonic seconds.
        """
        with self._lock:
            look = self._look
            if now - look.at >= look.good_s or look.asked != asked:
                try:
                    with boundary("observe of takeover"):
                        look = self._renew(look, records, asked=asked, now=now)
                except ReconcilerError as error:
                    self._unseen = (error,)
                    if look.asked is None:
                        return Predecessor(unread=True)
                else:
                    self._look, self._unseen = look, ()
            return takeover.consider(look.seen, look.ends, asked=asked, enis=enis, records=records)

    def retire(self, inputs: Inputs, records: Records, *, in_place: bool) -> Outcome:
        """Remove what the stock plugin has left, or say what is there.

        Args:
            inputs: what the pass over the kernel planned on.
            records: intents and attachments after it.
            in_place: everything of ours was seen in its place.
        """
        with self._lock:
            look = self._look
            ready = (
                in_place
                and not self._unseen
                and inputs.predecessor.taking_over
                and not inputs.predecessor.refusals
                and not takeover.unexplained(look.seen, records)
                and {a.eni_id for a in records.living} - {""}
                <= {e.eni_id for e, _ in inputs.pod_enis}
            )
            target = ObservedTarget(self._remains, look.seen)
            domain = Domain("takeover", takeover.desire, takeover.plan, target)
            outcome = (converge if ready else dry_run)([domain], inputs)["takeover"]
            seen = outcome.observed if isinstance(outcome.observed, Sighting) else look.seen
            good_s = REMAINS_S
            if outcome.remaining.refusals:
                good_s = REFUSED_S
            elif outcome.remaining.actions:
                good_s = 0.0
            whole = bool(outcome.plan or outcome.plan.foreign)
            self._look = replace(look, seen=seen, good_s=good_s, whole=whole)
            return replace(outcome, errors=(*outcome.errors, *self._unseen))

    def _renew(self, look: _Look, records: Records, *, asked: bool, now: float) -> _Look:
        if look.whole or look.asked != asked:
            seen = self._remains.observe()
        else:
            glance = self._remains.glance()
            seen = replace(glance, saved=look.seen.saved, unlisted=look.seen.unlisted)
        unknown = takeover.unexplained(seen, records) if asked else ()
        ends = self._remains.find_ends(r.device for r in unknown)
        return replace(look, seen=seen, ends=ends, asked=asked, at=now)
