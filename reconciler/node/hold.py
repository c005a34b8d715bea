"""What is left out of a plan for now: what was in vain lately."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from reconciler.domains.inputs import Inputs
from reconciler.domains.left_out import converge
from reconciler.engine.backoff import Backoffs
from reconciler.engine.converge import Domain, Hold, Outcomes
from reconciler.engine.plan import Plan
from reconciler.errors import ApplyError

NO_BACKOFFS = Backoffs()


def hold(backoffs: Backoffs, first: Callable[[Domain, Plan], Plan] = lambda _, plan: plan) -> Hold:
    """Return what leaves out of plans what is in backoff, and says so.

    Args:
        backoffs: the objects that are left alone for a while.
        first: leaves out something else before.
    """
    now = time.monotonic()

    def leave_out(domain: Domain, plan: Plan) -> tuple[Plan, tuple[ApplyError, ...]]:
        held = backoffs.hold(first(domain, plan), now, atomic=domain.atomic)
        return held, backoffs.explain(held)

    return leave_out


def converge_held(domains: Sequence[Domain], inputs: Inputs, backoffs: Backoffs) -> Outcomes:
    """Converge what was not in vain lately."""
    return converge(domains, inputs, hold=hold(backoffs))
