"""What a daemon says of itself, as the published format has it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import document, eni, inputs
from daemon.test_surprise import House
from jsonschema import Draft202012Validator

from reconciler.daemon import drift, overview
from reconciler.daemon.drift import DriftTracker
from reconciler.daemon.triggers import ChangeAttribution
from reconciler.domains import nat
from reconciler.domains.nat_objects import NftChain, NftElement
from reconciler.engine.converge import Outcome
from reconciler.ipam.cloud import Cloud, Limits
from reconciler.ipam.records import Records
from schemas.status import RuleEntry, Status

SCHEMA = json.loads((Path(__file__).parents[2] / "schemas/status.schema.json").read_text())


def published(status: dict[str, Any]) -> dict[str, Any]:
    """A status, once it was held against its format: nothing is missing, and nothing is more."""
    body: dict[str, Any] = json.loads(json.dumps(status))
    Draft202012Validator(SCHEMA).validate(body)
    again = Status.model_validate(body).model_dump()
    assert again == body | {"shortened": {}}
    return body


def test_a_daemon_says_what_it_holds_what_it_repaired_and_when_it_looked(tmp_path: Path) -> None:
    house = House(tmp_path)
    before = published(house.agent.status())
    assert (before["looks"], before["snat"], before["limits"]) == ([], [], None)
    assert before["obstacle"]["reason"] == "Starting"
    house.begin_pod()
    house.work()
    first = published(house.agent.status())
    assert (first["repaired"], first["obstacle"]) == ([], None)
    house.disturb()
    house.work()
    after = published(house.agent.status())
    assert {"nat", "sysctl", "route"} <= {r["domain"] for r in after["repaired"]}
    assert len(after["repaired"]) <= drift.MOST_REPAIRS
    assert {look["of"] for look in after["looks"]} == {"node", "ec2"}
    assert after["limits"]["instanceType"] == "m5.large"
    assert after["limits"]["enis"] == {"used": len(after["enis"]), "most": 3}
    assert [p["mode"] for p in after["snat"]] == ["node"]
    pods = [a["pod"] for a in after["attachments"]]
    assert pods == sorted(pods)
    assert len(pods) > 1


def test_no_node_is_settled_before_its_pool_was_planned_by_the_document_in_force(
    tmp_path: Path,
) -> None:
    """Pods may need what they needed before, and the document ask for more."""
    house = House(tmp_path)
    for _ in range(6):
        house.work()
    assert house.agent.status()["settled"]
    report = house.agent.pool.report
    house.agent.pool.report = replace(report, generation=report.generation - 1)
    assert not house.agent.status()["settled"]


def test_in_mode_frozen_status_says_what_would_be_asked_of_ec2(tmp_path: Path) -> None:
    house = House(tmp_path)
    path = tmp_path / "node-network.yaml"
    path.write_text(path.read_text() + "ec2: {mode: frozen}\n")
    house.start()
    house.work()
    (told,) = [
        c for c in published(house.agent.status())["conditions"] if c["reason"] == "HeldByMode"
    ]
    assert "ec2.mode is frozen" in told["text"]
    assert "more addresses" in told["text"]
    assert house.ec2.calls == {}


def test_rules_are_described_in_order() -> None:
    rules = [
        {"namespace": "a", "to": ["203.0.113.0/24", "@peering"], "as": "pod"},
        {"namespace": "b", "to": [f"198.51.{n}.0/24" for n in range(0, 120, 2)], "as": "node"},
    ]
    first, second = overview.describe_rules(document(snat={"rules": rules}))
    assert RuleEntry.model_validate(first).model_dump() == first
    assert (first["to"], first["as"]) == (["203.0.113.0/24", "@peering"], "pod")
    assert (len(second["to"]), second["number"]) == (overview.MOST_SHOWN, 60)


def test_conditions_have_an_age() -> None:
    known = [{"subject": "node", "reason": "X", "text": "t", "since": "2026-01-01T00:00:00+00:00"}]
    (one,) = overview.describe_conditions(known, 1767225600.0 + 90)
    assert one["ageSeconds"] == 90
    (one,) = overview.describe_conditions(known, 0.0)
    assert one["ageSeconds"] == 0, "the clock was set back"


def test_limits_are_the_documents_before_ec2s_and_foreign_enis_use_them_up() -> None:
    now = inputs(1)
    cloud = Cloud((eni(0), replace(eni(1), owned=False)), Limits(3, 10), {})
    found = overview.describe_limits(now, cloud, Records())
    assert found is not None
    assert found["enis"] == {"used": 2, "most": 3}
    assert found["addresses"]["most"] == 18
    assert "1 foreign" in found["addresses"]["text"]
    given = document(
        instanceTypes={"m5.large": {"enis": 2, "addressesPerEni": 5}}, maxPods=7, families=["ipv6"]
    )
    found = overview.describe_limits(replace(now, document=given), cloud, Records())
    assert found is not None
    assert (found["enis"]["most"], found["pods"]["most"]) == (2, 7)
    assert found["addresses"] is None, "no node uses an IPv6 prefix up"
    assert overview.describe_limits(now, replace(cloud, limits=None), Records()) is None


def test_a_flushed_set_is_one_repair_and_the_ring_has_an_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attribution = ChangeAttribution()
    monkeypatch.setattr(attribution, "lately", lambda: ("firewalld (pid 12)",))
    tracker = DriftTracker(attribution)
    wanted = nat.desire(inputs(3, document=document(snat={"excludeCIDRs": CIDRS})))
    tracker.book({"nat": Outcome(wanted, wanted)}, everything=True)
    kept = frozenset(o for o in wanted if not isinstance(o, NftElement | NftChain))
    plan = nat.plan(wanted, kept)
    tracker.book({"nat": Outcome(wanted, wanted, plan)}, everything=True)
    chains, elements = tracker.repaired
    assert (chains.kind, elements.kind) == (NftChain.kind, NftElement.kind)
    assert elements.count == len([a for a in plan.actions if a.kind == elements.kind]) > 20
    assert len(elements.actions) == drift.MOST_SHOWN
    assert elements.by == ("firewalld (pid 12)",)
    for _ in range(drift.MOST_REPAIRS):
        tracker.book({"nat": Outcome(wanted, wanted, plan)}, everything=True)
    assert len(tracker.repaired) == drift.MOST_REPAIRS


CIDRS = [f"198.51.{n}.0/24" for n in range(0, 40, 2)]
