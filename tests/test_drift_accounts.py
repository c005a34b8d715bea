"""What is counted as drift, and what as asked for."""

from __future__ import annotations

from builders import eni

from reconciler import telemetry
from reconciler.core.call import AttachEni, DetachEni
from reconciler.core.cloud import Cloud, Limits
from reconciler.core.plan import Plan
from reconciler.drift import Accounts
from reconciler.engine import Outcome
from reconciler.suspects import Suspects

LIMITS = Limits(3, 10)


def look(*devices: int | None, plan: Plan | None = None) -> dict[str, Outcome]:
    """A pool pass over ENIs 0 and 1, each at a place or at none."""
    enis = tuple(
        eni(1, device_index=d, status="attached" if d else "available") if number else eni(0)
        for number, d in enumerate(devices)
    )
    return {"eni": Outcome(observed=Cloud(enis, LIMITS, {}), plan=plan or Plan())}


def attached_again() -> float:
    labels = ("eni", "eni", "update")
    return float(telemetry.DRIFT.labels(*labels)._value.get())


def test_an_eni_that_somebody_detached_is_drift_when_it_is_attached_again() -> None:
    accounts, before = Accounts(Suspects()), attached_again()
    attach = Plan((AttachEni("i-1", "eni-1", 1, "attached to nothing"),))
    accounts.book(look(0, None), everything=True)
    accounts.book(look(0, 1, plan=attach), everything=True)
    assert attached_again() == before, "its first attachment was asked for"
    accounts.book(look(0, 1, plan=attach), everything=True)
    assert attached_again() == before + 1


def test_an_eni_that_we_detached_ourselves_is_none() -> None:
    accounts, before = Accounts(Suspects()), attached_again()
    accounts.book(look(0, 1), everything=True)
    detach = Plan((DetachEni("eni-1", "eni-attach-1", "not needed"),))
    accounts.book(look(0, None, plan=detach), everything=True)
    attach = Plan((AttachEni("i-1", "eni-1", 1, "attached to nothing"),))
    accounts.book(look(0, 1, plan=attach), everything=True)
    assert attached_again() == before
