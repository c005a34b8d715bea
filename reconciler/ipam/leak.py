"""Leaked ENIs: created by a node of the cluster, attached to nothing, not in the making."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from reconciler.core.facts import Eni

GRACE_S = 300.0
"""Seconds after its creation within which an ENI may still be about to be attached
(amazon-vpc-cni-k8s: ``eniDeleteCooldownTime``, 5 minutes)."""

MOST_AT_ONCE = 20
"""ENIs deleted in one run: it bounds the damage of a wrong rule."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision on one ENI.

    ``why``: with its age in seconds.
    """

    eni: Eni
    leaked: bool
    why: str


def judge(first: Iterable[Eni], second: Iterable[Eni], *, now: float) -> tuple[Verdict, ...]:
    """Judge the ENIs that two observations showed as attached to nothing.

    An ENI must be in both. ``now``: seconds since the epoch.
    """
    before = {e.eni_id for e in first}
    verdicts: list[Verdict] = []
    left = MOST_AT_ONCE
    for eni in sorted(second, key=lambda e: (e.created_at or 0.0, e.eni_id)):
        verdict = _judge(eni, seen_before=eni.eni_id in before, now=now)
        if verdict.leaked and not left:
            verdict = Verdict(eni, False, f"{verdict.why}; the next run's turn")
        left -= verdict.leaked
        verdicts.append(verdict)
    return tuple(verdicts)


def _judge(eni: Eni, *, seen_before: bool, now: float) -> Verdict:
    if eni.created_at is None:
        return Verdict(eni, False, "it does not say when it was created")
    age_s = now - eni.created_at
    if age_s < GRACE_S:
        return Verdict(eni, False, f"{age_s:.0f} s old: its node may be about to attach it")
    if not seen_before:
        return Verdict(eni, False, f"{age_s:.0f} s old, but seen once only")
    return Verdict(eni, True, f"{age_s:.0f} s old, ours, and attached to nothing in two looks")
