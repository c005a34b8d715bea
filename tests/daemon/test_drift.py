"""What is counted as drift, and what as asked for."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from builders import SUBNET, attachment, eni, inputs, key
from fake_directories import FakeDirectories

from reconciler.core.datapath import host_network
from reconciler.core.facts import Installation
from reconciler.daemon import telemetry
from reconciler.daemon.drift import DriftTracker
from reconciler.daemon.duty import MOST_OF_ONE, Conditions
from reconciler.daemon.triggers import ChangeAttribution
from reconciler.domains import boot_rule, conflist
from reconciler.domains.boot_rule import BootRule
from reconciler.domains.conflist import NAME, Conflist, OtherConf, Plugins
from reconciler.domains.nat_objects import NftElement
from reconciler.domains.route import Route
from reconciler.engine.backoff import REPAIRS
from reconciler.engine.converge import MAX_ROUNDS, Domain, Observed, Outcome
from reconciler.engine.plan import Change, Plan, Verb
from reconciler.errors import ApplyError
from reconciler.ipam.cloud import Cloud, Limits
from reconciler.ipam.ec2_action import AttachEni, DetachEni
from reconciler.ipam.records import Records
from reconciler.node.kernel_domains import converge_held

LIMITS = Limits(3, 10)
PLACES = Installation("/etc/cni/net.d", "/opt/cni/bin", "/opt/shipped", "/run/node-network")


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
    tracker, before = DriftTracker(ChangeAttribution()), attached_again()
    attach = Plan((AttachEni("eni-1", "i-1", 1, "attached to nothing"),))
    tracker.book(look(0, None), everything=True)
    tracker.book(look(0, 1, plan=attach), everything=True)
    assert attached_again() == before, "its first attachment was asked for"
    tracker.book(look(0, 1, plan=attach), everything=True)
    assert attached_again() == before + 1


def test_an_eni_that_we_detached_ourselves_is_none() -> None:
    tracker, before = DriftTracker(ChangeAttribution()), attached_again()
    tracker.book(look(0, 1), everything=True)
    detach = Plan((DetachEni("eni-1", "eni-attach-1", "not needed"),))
    tracker.book(look(0, None, plan=detach), everything=True)
    attach = Plan((AttachEni("eni-1", "i-1", 1, "attached to nothing"),))
    tracker.book(look(0, 1, plan=attach), everything=True)
    assert attached_again() == before


class Mesh(FakeDirectories):
    """A service mesh: it adds its plugin to our file as soon as the file is written."""

    def __init__(self, *, quick: bool) -> None:
        super().__init__(PLACES, {"/opt/cni/bin/portmap": ("", "0755")})
        self.quick = quick
        self.undone = 0

    def apply(self, actions: Sequence[Change[Any]]) -> tuple[ApplyError, ...]:
        failures = super().apply(actions)
        if self.quick:
            self.rewrite()
        return failures

    def rewrite(self) -> None:
        for path, (content, mode) in self.files.items():
            if path.endswith(NAME) and "istio-cni" not in content:
                body = json.loads(content)
                body["plugins"].append({"type": "istio-cni", "at": self.undone})
                self.files[path] = (json.dumps(body), mode)
                self.undone += 1


@pytest.mark.parametrize("quick", [False, True], ids=["after our look", "before our look"])
def test_whoever_rewrites_our_conflist_is_in_a_fight_like_everybody_else(quick: bool) -> None:
    """At 787f3aa it was undone 182 times in 75 s, and nothing was said."""
    mesh, tracker = Mesh(quick=quick), DriftTracker(ChangeAttribution())
    conf = Domain("conflist", conflist.desire, conflist.plan, mesh, (Conflist, Plugins, OtherConf))
    now = inputs(installation=PLACES)
    for _ in range(50):
        outcomes = converge_held([conf], now, tracker.backoffs)
        tracker.book(outcomes, everything=True)
        mesh.rewrite()
    assert mesh.undone <= (REPAIRS + 1) * (MAX_ROUNDS if quick else 1)
    (error,) = outcomes["conflist"].errors
    assert isinstance(error, ApplyError)
    assert error.reason == "OwnershipFight"
    assert "istio-cni" in str(error), "what it has added"
    assert "Put the plugin into cni.chain" in str(error)
    assert "none identified" not in str(error), "notifications tell nothing of files"


def test_what_is_taken_away_during_a_pass_and_put_back_by_it_is_drift_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One file goes while another is put back: the second round sees it."""

    class Careless(FakeDirectories):
        def apply(self, actions: Sequence[Change[Any]]) -> tuple[ApplyError, ...]:
            failures = super().apply(actions)
            if [a.kind for a in actions] == ["boot-rule"]:
                self.files.pop(f"{self.places.conf_dir}/{NAME}", None)
            return failures

    places = replace(PLACES, tmpfiles_dir="/etc/tmpfiles.d")
    files, tracker = (
        Careless(places, {"/opt/cni/bin/portmap": ("", "0755")}),
        DriftTracker(ChangeAttribution()),
    )
    domains = [
        Domain("conflist", conflist.desire, conflist.plan, files, (Conflist, Plugins, OtherConf)),
        Domain("boot-rule", boot_rule.desire, boot_rule.plan, files, (BootRule,)),
    ]
    now = inputs(installation=places)
    tracker.book(converge_held(domains, now, tracker.backoffs), everything=True)
    del files.files[f"{places.tmpfiles_dir}/{boot_rule.NAME}"]
    count = telemetry.DRIFT.labels("conflist", "conflist", "create")._value
    before = count.get()
    caplog.clear()
    tracker.book(converge_held(domains, now, tracker.backoffs), everything=True)
    assert count.get() == before + 1
    said = [getattr(r, "domain", "") for r in caplog.records if r.message == "drift repaired"]
    assert sorted(said) == ["boot-rule", "conflist"]
    assert [r.kind for r in tracker.repaired] == ["conflist", "boot-rule"]


MANY = tuple(
    NftElement("no_snat_ipv4", address, address)
    for address in (ip_address("172.16.0.0") + 2 * n for n in range(10_000))
)


def edit(verb: Verb, *objects: NftElement, left: bool = False) -> dict[str, Outcome]:
    """A pass that has put, or taken away, what is in the set; or could not."""
    plan = Plan(tuple(Change(verb, o, "missing") for o in objects))
    errors = tuple(ApplyError(str(a), "TransactionRefused", "EPERM") for a in plan.actions)
    desired = frozenset(objects) if verb is Verb.CREATE else frozenset[NftElement]()
    if left:
        return {"nat": Outcome(desired=desired, plan=plan, remaining=plan, errors=errors)}
    return {"nat": Outcome(desired=desired, plan=plan), "link": Outcome(desired=frozenset())}


def test_an_edit_of_20000_elements_is_two_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    tracker = DriftTracker(ChangeAttribution())
    before = telemetry.ACTIONS.labels("nat", "nft-element", "create")._value.get()
    for verb in (Verb.CREATE, Verb.DELETE):
        tracker.clear()
        tracker.book(edit(verb, *MANY), everything=True)
    said = [(r.getMessage(), getattr(r, "alike", None)) for r in caplog.records]
    assert said == [("action applied", 9_999)] * 2
    after = telemetry.ACTIONS.labels("nat", "nft-element", "create")._value.get()
    assert after == before + 10_000, "all are counted"


def test_few_actions_are_a_line_each(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    DriftTracker(ChangeAttribution()).book(edit(Verb.CREATE, *MANY[:20]), everything=True)
    assert [r.getMessage() for r in caplog.records] == ["action applied"] * 20
    assert {getattr(r, "action", "") for r in caplog.records} == {
        o.command(Verb.CREATE) for o in MANY[:20]
    }


def of_a_pod() -> dict[str, Outcome]:
    """A pass that has given a pod its route, and its record."""
    one = attachment(1)
    (address,) = one.addresses
    made = (Route("", 512, host_network(address), one.veth), Route("", 512, SUBNET, "eth1"))
    plan = Plan(tuple(Change(Verb.CREATE, o, "missing") for o in made))
    bound = Plan((Change(Verb.CREATE, one, "wanted"),))
    return {
        "attachment": Outcome(observed=Records(attachments=(one,)), plan=bound),
        "route": Outcome(desired=frozenset(made), observed=frozenset(made), plan=plan),
        "link": Outcome(desired=frozenset()),
    }


def test_what_a_pod_brings_with_it_is_told_under_its_key_and_only_if_all_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def said() -> Counter[tuple[str, Any]]:
        found = Counter((r.levelname, getattr(r, "key", None)) for r in caplog.records)
        caplog.clear()
        return found

    caplog.set_level(logging.DEBUG)
    DriftTracker(ChangeAttribution()).book_pods(of_a_pod())
    assert said() == {("DEBUG", None): 1, ("DEBUG", key(1)): 2}
    tracker = DriftTracker(ChangeAttribution())
    tracker.book(of_a_pod(), everything=True)
    assert said() == {("DEBUG", key(1)): 1, ("INFO", None): 1, ("INFO", key(1)): 1}
    tracker.book(of_a_pod(), everything=True)  # somebody has taken the routes away
    assert said() == {("DEBUG", key(1)): 1, ("WARNING", None): 1, ("WARNING", key(1)): 1}


def test_a_set_that_somebody_has_flushed_is_one_line_and_each_element_is_remembered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It took time that grew with the square of their number: ten thousand were minutes."""
    tracker = DriftTracker(ChangeAttribution())
    tracker.book(edit(Verb.CREATE, *MANY), everything=True)
    caplog.clear()
    tracker.book(edit(Verb.CREATE, *MANY), everything=True)
    assert [(r.getMessage(), r.levelname) for r in caplog.records] == [
        ("drift repaired", "WARNING")
    ]
    assert len(tracker.backoffs.known) == len(MANY)


def test_what_is_removed_of_more_than_a_look_shows_is_counted_and_not_remembered() -> None:
    """80,000 routes with our stamp would be remembered for a minute, half a KiB each."""
    for masses, remembered in (({}, 3), ({NftElement: "80,000 elements"}, 0)):
        tracker = DriftTracker(ChangeAttribution())
        tracker.book(edit(Verb.CREATE), everything=True)
        outcomes = edit(Verb.DELETE, *MANY[:3])
        seen = Observed(cut_kinds=masses)
        outcomes["nat"] = replace(outcomes["nat"], observed=seen)
        tracker.book(outcomes, everything=True)
        assert len(tracker.backoffs.known) == remembered


def test_a_transaction_of_10000_that_is_refused_costs_each_of_them_one_look() -> None:
    tracker, conditions = DriftTracker(ChangeAttribution()), Conditions()
    outcomes = edit(Verb.CREATE, *MANY, left=True)
    tracker.book(outcomes, everything=True)
    assert {s.error for s in tracker.backoffs.known.values()} == {"EPERM"}
    assert len(tracker.backoffs.known) == len(MANY)
    conditions.report("nat", outcomes["nat"])
    assert len(conditions.all()) == MOST_OF_ONE + 1
    assert "9950 more" in " ".join(conditions.texts("nat"))
