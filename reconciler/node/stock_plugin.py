"""What amazon-vpc-cni-k8s, the stock plugin, has left: observed seldom, removed last if at all.

Its pods' addresses are held and its objects are named on any node. Nothing of ``migration`` is
imported before a document asks for the take-over.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from reconciler.core.facts import Eni
from reconciler.diagnostics import stock_plugin
from reconciler.diagnostics.stock_objects import (
    OWNER,
    Leftover,
    PodEnd,
    Sighting,
)
from reconciler.domains.inputs import Inputs, Predecessor
from reconciler.domains.left_out import converge, dry_run
from reconciler.engine.converge import Domain, Outcome, Target
from reconciler.engine.plan import Change
from reconciler.errors import ReconcilerError, boundary
from reconciler.ipam.records import Records
from reconciler.node.environment import Leftovers
from reconciler.targets.scoped import ScopedTarget, seen_first
from schemas.document import NodeNetwork

REMAINS_S = 60.0  # seconds between looks while nothing of the stock plugin's is to be done

REFUSED_S = 5.0  # the same while the take-over is refused


RemainsTarget = Target[object, Sighting, Change[Leftover]]


@dataclass(frozen=True, slots=True)
class _Look:
    """The last observation, at ``at`` (monotonic seconds), good enough for ``good_s``."""

    seen: Sighting = field(default_factory=Sighting)
    ends: Mapping[str, PodEnd] = field(default_factory=dict)
    # the document asked for the take-over then; None before there was a look
    asked: bool | None = None
    at: float = 0.0
    good_s: float = 0.0
    whole: bool = True  # the next one is at iptables, too: while there is something to be seen


class StockPlugin:
    """Remembers the last observation between the passes of both loops."""

    def __init__(self, target: Leftovers) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._look = _Look()
        self._unseen: tuple[ReconcilerError, ...] = ()

    def consider(
        self, records: Records, enis: Iterable[Eni], *, asked: bool, now: float
    ) -> Predecessor:
        """Look for the stock plugin's pods, and say what becomes of them.

        An observation that fails leaves the last one in force, and nothing of the stock plugin's
        is removed meanwhile. ``asked``: the document asks for the take-over.
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
            if asked:
                from reconciler.migration import takeover  # for who takes over only

                return takeover.consider(look.seen, look.ends, enis=enis, records=records)
            routes = stock_plugin.unexplained(look.seen, records)
            return Predecessor(held=frozenset(r.destination.network_address for r in routes))

    def retire(self, inputs: Inputs, records: Records, *, in_place: bool) -> Outcome:
        """Remove what the stock plugin has left, or say what is there.

        Nothing is removed before everything of ours was seen in its place.
        """
        with self._lock:
            look = self._look
            ready = (
                in_place
                and not self._unseen
                and inputs.host.predecessor.taking_over
                and not inputs.host.predecessor.refusals
                and not stock_plugin.unexplained(look.seen, records)
                and {a.eni_id for a in records.living} - {""}
                <= {e.eni_id for e, _ in inputs.pod_enis}
            )
            target = ScopedTarget(seen_first(look.seen, self._target.observe), self._target.apply)
            domains = [domain_for(inputs.document, target)]
            outcome = (converge if ready else dry_run)(domains, inputs)["takeover"]
            seen = outcome.observed if isinstance(outcome.observed, Sighting) else look.seen
            good_s = 0.0 if outcome.remaining.actions else REMAINS_S
            if outcome.remaining.refusals:
                good_s = REFUSED_S
            whole = bool(outcome.plan or outcome.plan.foreign)
            self._look = replace(look, seen=seen, good_s=good_s, whole=whole)
            return replace(outcome, errors=(*outcome.errors, *self._unseen))

    def _renew(self, look: _Look, records: Records, *, asked: bool, now: float) -> _Look:
        if look.whole or look.asked != asked:
            seen = self._target.observe(())
        else:
            glance = self._target.glance()
            seen = replace(glance, saved=look.seen.saved, unlisted=look.seen.unlisted)
        ends: Mapping[str, PodEnd] = {}
        if asked:
            unknown = stock_plugin.unexplained(seen, records)
            ends = self._target.find_ends(r.device for r in unknown)
        return replace(look, seen=seen, ends=ends, asked=asked, at=now)


def domain_for(document: NodeNetwork, target: RemainsTarget) -> Domain[Inputs]:
    """Return what names the stock plugin's objects, or, if the document asks, removes them."""
    if document.take_over != OWNER:
        return Domain("takeover", stock_plugin.desire, stock_plugin.plan, target)
    from reconciler.migration import takeover  # for who takes over only

    return Domain("takeover", takeover.desire, takeover.plan, target)
