"""ENIs: what only examples show well."""

from __future__ import annotations

from dataclasses import replace

from builders import document, eni, inputs, node

from reconciler.core.pool import Demand
from reconciler.domains import eni as domain
from reconciler.domains import nat, route, rule
from reconciler.domains.eni import AddEni, AttachEni, Cloud, Limits, TieToInstance

LIMITS = Limits(3, 10)


def cloud(*enis: object, free: int = 200) -> Cloud:
    return Cloud(tuple(enis), LIMITS, {"subnet-a": free})  # type: ignore[arg-type]


def pool(total: int, **fields: object) -> domain.Pool:
    wanted = inputs(1, document=document(warmPool={"warm": 0, "minimum": total}), **fields)
    return domain.desire(wanted)


def test_demand_counts_at_once() -> None:
    doc = document(warmPool={"warm": 2, "minimum": 0})
    wanted = domain.desire(inputs(1, document=doc, demand=Demand(5, 3, 4)))
    assert wanted.total == 14


def test_the_same_world_asks_with_the_same_token_and_another_with_another() -> None:
    def token(*enis: object) -> str:
        (action,) = domain.plan(pool(12), cloud(eni(0, 9), *enis)).actions
        assert isinstance(action, AddEni)
        return action.client_token

    foreign = eni(1, 0, owned=False)
    assert token() == token()
    assert token() != token(foreign)
    assert len(token()) <= 64  # EC2's limit for a ClientToken


def test_an_interrupted_creation_is_finished_before_anything_is_made() -> None:
    lost = eni(None, 5, eni_id="eni-lost")
    plan = domain.plan(pool(14), cloud(eni(0, 9), lost))
    assert [type(a) for a in plan.actions] == [AttachEni]


def test_an_eni_that_would_outlive_the_instance_is_tied_to_it() -> None:
    loose = eni(1, 9, delete_on_termination=False)
    plan = domain.plan(pool(18), cloud(eni(0, 9), loose))
    assert [type(a) for a in plan.actions] == [TieToInstance]


def test_foreign_enis_count_against_the_limit_and_are_left_alone() -> None:
    plan = domain.plan(pool(27), cloud(eni(0, 9), eni(1, 0, owned=False)))
    assert [a.key for a in plan.actions] == [(2,)]
    (refusal,) = plan.refusals
    assert refusal.reason == "PoolLimitReached"


def test_the_documents_limit_binds_and_is_named() -> None:
    doc = document(warmPool={"warm": 0, "minimum": 12}, eni={"max": 1})
    plan = domain.plan(domain.desire(inputs(1, document=doc)), cloud(eni(0, 9)))
    assert plan.actions == ()
    assert "3 cannot be had: eni.max allows 1 ENIs x 9 = 9" in plan.refusals[0].message


def test_a_subnet_that_is_nearly_full_gives_what_it_has() -> None:
    plan = domain.plan(pool(20), cloud(eni(0, 9), free=5))
    (action,) = plan.actions
    assert isinstance(action, AddEni)
    assert action.addresses == 4
    assert [r.reason for r in plan.refusals] == ["SubnetExhausted"]


def test_a_short_answer_of_ec2_takes_no_pod_down() -> None:
    """A shrinking observation is unknown: the datapath stays, nothing new is bound."""
    before, short = cloud(eni(0, 9), eni(1, 9)), cloud(eni(0, 9))
    links = {e.mac: f"eth{e.device_index}" for e in before.enis}
    kept = domain.retain(before, short, links.keys())
    now, then = inputs(2, enis=kept.enis), inputs(2, enis=before.enis)
    for module in (route, rule, nat):
        assert module.desire(now) == module.desire(then)
    assert kept.enis[1].secondaries == ()


def test_an_eni_whose_link_is_gone_too_is_gone() -> None:
    before, short = cloud(eni(0, 9), eni(1, 9)), cloud(eni(0, 9))
    assert domain.retain(before, short, {eni(0).mac}) == short


def test_tags_mark_what_we_make() -> None:
    wanted = inputs(1, document=document(warmPool={"minimum": 10}, eni={"tags": {"team": "net"}}))
    (action,) = domain.plan(domain.desire(wanted), cloud(eni(0, 9))).actions
    assert isinstance(action, AddEni)
    assert dict(action.tags) == {"team": "net", domain.INSTANCE_TAG: "i-1"}
    other = replace(domain.desire(wanted), node=node(instance_id="i-2"))
    (again,) = domain.plan(other, cloud(eni(0, 9))).actions
    assert isinstance(again, AddEni)
    assert again.client_token != action.client_token


def test_an_eni_that_an_old_answer_shows_as_attaching_keeps_its_place() -> None:
    before = cloud(eni(0), eni(1))
    old = cloud(eni(0), eni(1, 0, status="attaching"))
    kept = domain.retain(before, old, {eni(1).mac})
    assert [(e.eni_id, e.serves_pods, e.secondaries) for e in kept.enis if e.device_index] == [
        ("eni-1", True, ())
    ]
    # Without its link it is as EC2 says.
    assert domain.retain(before, old, set()) == old
