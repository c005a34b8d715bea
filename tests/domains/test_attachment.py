"""Binding and releasing: what only examples show well."""

from __future__ import annotations

from dataclasses import replace

from builders import SUBNET, attachment, document, eni, inputs, intent

from reconciler.core.attachment import Attachment, Cooling, Intent, IntentState, veth_name
from reconciler.core.plan import Change
from reconciler.core.records import Records
from reconciler.domains import attachment as domain


def plan(records: Records, **fields: object) -> list[str]:
    return [str(a) for a in domain.plan(domain.desire(inputs(2, **fields)), records).actions]


def test_the_lowest_device_is_filled_first_and_the_lowest_address_given() -> None:
    wanted = Records(tuple(intent(n) for n in range(10)))
    holders = [
        action.object.eni_id
        for action in domain.plan(domain.desire(inputs(2)), wanted).actions
        if isinstance(action, Change) and isinstance(action.object, Attachment)
    ]
    assert holders == ["eni-0"] * 9 + ["eni-1"]


def test_a_binding_knows_its_namespace_by_path_and_inode() -> None:
    (action,) = domain.plan(domain.desire(inputs(2)), Records((intent(1),))).actions
    assert isinstance(action, Change)
    assert action.object.netns == "/run/netns/pod1@1"


def test_a_release_cools_first_and_forgets_last() -> None:
    records = Records((intent(1, IntentState.RELEASED),), (attachment(1),))
    address = attachment(1).addresses[0]
    assert plan(records, clear=frozenset({attachment(1).key})) == [
        f"begin cooldown of {address}",
        f"release {address} from pod1/eth0",
        "forget released intent pod1/eth0",
    ]


def test_nothing_is_released_while_the_kernel_still_has_it() -> None:
    assert plan(Records((intent(1, IntentState.RELEASED),), (attachment(1),))) == []


def test_an_attachment_without_an_intent_is_kept() -> None:
    """Nothing is released on absence: a wiped directory of intents is no proof."""
    assert plan(Records((), (attachment(1),)), clear=frozenset({attachment(1).key})) == []


def test_a_crash_between_cooling_and_release_does_not_start_the_rest_anew() -> None:
    cooling = Cooling(attachment(1).addresses[0], 33.0)
    records = Records((intent(1, IntentState.RELEASED),), (attachment(1),), (cooling,))
    assert plan(records, now=10.0, clear=frozenset({attachment(1).key})) == [
        f"release {attachment(1).addresses[0]} from pod1/eth0",
        "forget released intent pod1/eth0",
    ]


def test_a_cooling_address_is_not_given_out_until_its_time() -> None:
    only = eni(0, 1)
    cooling = Cooling(SUBNET[11], 50.0)
    records = Records((intent(1),), (), (cooling,))
    fields = {"enis": (only,), "links": {only.mac: "eth0"}}
    early = domain.plan(domain.desire(inputs(1, now=49.0, **fields)), records)
    assert early.actions == ()
    (refusal,) = early.refusals
    assert refusal.reason == "AddressesExhausted"
    assert "1 held on 1 ENIs, 0 assigned, 1 cooling" in refusal.message
    assert plan(records, now=50.0, **fields) == ["end cooldown of 10.0.1.11"]


def test_without_a_cooldown_there_is_no_rest() -> None:
    doc = document(warmPool={"cooldown": "0s"})
    records = Records((intent(1, IntentState.RELEASED),), (attachment(1),))
    actions = plan(records, document=doc, clear=frozenset({attachment(1).key}))
    assert not [a for a in actions if "cooldown" in a]


def test_an_intent_whose_namespace_is_gone_gets_nothing() -> None:
    refusals = domain.plan(
        domain.desire(inputs(2)), Records((intent(1, netns_alive=False),))
    ).refusals
    assert [r.reason for r in refusals] == ["NetnsGone"]


def test_demand_counts_what_waits_and_not_what_is_dead() -> None:
    records = Records(
        (intent(1), intent(2), intent(3, netns_alive=False), intent(4, IntentState.RELEASED)),
        (attachment(2), attachment(4)),
    )
    assert (records.demand.assigned, records.demand.waiting) == (2, 1)
    assert [a.key.container_id for a in records.living] == ["pod2"]


def test_one_namespace_has_one_way_out() -> None:
    first, second = intent(1), replace(intent(2), netns=intent(1).netns)
    plan = domain.plan(domain.desire(inputs(1)), Records((first, second)))
    assert [a.key for a in plan.actions] == [first.key]
    assert [(r.reason, r.subject) for r in plan.refusals] == [
        ("NetnsTaken", f"intent {second.key}")
    ]


BY_POD = document(pods={"vethName": "pod", "vethPrefix": "cali"})


def sandboxes(*numbers: int) -> tuple[Intent, ...]:
    """Sandboxes of one and the same pod."""
    return tuple(replace(intent(n), pod="default/web-0") for n in numbers)


def test_a_veth_called_after_its_pod_has_the_name_that_calico_computes() -> None:
    (action,) = domain.plan(
        domain.desire(inputs(1, document=BY_POD)), Records(sandboxes(1))
    ).actions
    assert isinstance(action, Change)
    # printf default.web-0 | sha1sum
    assert action.object.veth == "cali0d7763386da"


def test_a_sandbox_of_no_pod_is_called_after_itself() -> None:
    nobody = replace(intent(1), pod="")
    (action,) = domain.plan(domain.desire(inputs(1, document=BY_POD)), Records((nobody,))).actions
    assert isinstance(action, Change)
    assert action.object.veth == veth_name("cali", nobody.key)


def test_a_pod_waits_for_the_link_of_its_older_sandbox() -> None:
    both = Records(sandboxes(1, 2))
    plan = domain.plan(domain.desire(inputs(1, document=BY_POD)), both)
    assert [a.key.container_id for a in plan.actions] == ["pod1"]
    (refusal,) = plan.refusals
    assert (refusal.reason, refusal.subject) == ("VethNameTaken", "intent pod2/eth0")
    assert "pod1/eth0" in refusal.message
    bound = tuple(a.object for a in plan.actions if isinstance(a, Change))
    again = domain.plan(
        domain.desire(inputs(1, document=BY_POD)), replace(both, attachments=bound)
    )
    assert [r.reason for r in again.refusals] == ["VethNameTaken"]
    assert not domain.plan(domain.desire(inputs(1)), both).refusals, "sandboxes have names each"


def test_an_address_that_two_enis_show_is_given_once() -> None:
    same = tuple(replace(eni(i), secondaries=eni(0).secondaries[:1]) for i in range(2))
    wanted = Records((intent(1), intent(2)))
    plan = domain.plan(domain.desire(inputs(2, enis=same)), wanted)
    assert len(plan.actions) == 1
    assert [r.reason for r in plan.refusals] == ["AddressesExhausted"]
