"""Binding and releasing: what only examples show well."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from builders import SUBNET, attachment, document, eni, inputs, intent

from reconciler.core.attachment import (
    Attachment,
    Cooling,
    Intent,
    IntentState,
    is_superseded,
    veth_name,
)
from reconciler.domains import attachment as domain
from reconciler.domains.attachment_issues import MAX_NAMED
from reconciler.engine.plan import Change, Verb
from reconciler.ipam.records import Records, SetAside
from reconciler.ipam.release import Quarantine


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
    here = frozenset({attachment(1).key})
    assert plan(Records((), (attachment(1),)), clear=here, linked=here) == []


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


def test_a_namespace_whose_pod_is_being_released_is_waited_for() -> None:
    """And one whose pod stays is not: no waiting would help."""
    second = replace(intent(2), netns=intent(1).netns, netns_inode=1)
    for state, reason in ((IntentState.RELEASED, "NetnsStillTaken"), ("wanted", "NetnsTaken")):
        first = intent(1, IntentState(state))
        records = Records((first, second), (attachment(1, netns=f"{first.netns}@1"),))
        plan = domain.plan(domain.desire(inputs(1)), records)
        assert [r.reason for r in plan.refusals] == [reason]


def test_another_path_to_a_namespace_that_is_taken_gets_no_second_way_out() -> None:
    """A second interface would take the first one's default route, and so cut a running pod."""
    first = intent(1, netns="/run/netns/pod1")
    second = intent(2, netns="/var/run/netns/pod1", netns_inode=first.netns_inode)
    held = attachment(1, netns="/run/netns/pod1@1")
    for records in (Records((first, second), (held,)), Records((first, second))):
        plan = domain.plan(domain.desire(inputs(1)), records)
        assert [(r.reason, r.subject) for r in plan.refusals] == [
            ("NetnsTaken", f"intent {second.key}")
        ]


def test_the_inode_of_a_namespace_that_is_gone_may_be_another_one_s() -> None:
    gone = attachment(1, netns="/run/netns/pod1@2", netns_alive=False)
    plan = domain.plan(domain.desire(inputs(1)), Records((intent(2),), (gone,)))
    assert [a.key for a in plan.actions] == [intent(2).key]


def test_one_namespace_has_one_way_out() -> None:
    first, second = intent(1), replace(intent(2), netns=intent(1).netns, netns_inode=1)
    plan = domain.plan(domain.desire(inputs(1)), Records((first, second)))
    assert [a.key for a in plan.actions] == [first.key]
    assert [(r.reason, r.subject) for r in plan.refusals] == [
        ("NetnsTaken", f"intent {second.key}")
    ]


BY_POD = document(pods={"vethName": "pod", "vethPrefix": "cali"})


def sandboxes(*numbers: int) -> tuple[Intent, ...]:
    """Sandboxes of one and the same pod."""
    return tuple(replace(intent(n), pod="default/web-0") for n in numbers)


@pytest.mark.parametrize("prefix", ["cali", "eni"])
def test_a_veth_called_after_its_pod_has_the_name_that_policy_agents_compute(prefix: str) -> None:
    """Calico (its prefix can be set), and AWS's agent (``eni``, ``GetHostVethName``), alike."""
    by_pod = document(pods={"vethName": "pod", "vethPrefix": prefix})
    (action,) = domain.plan(
        domain.desire(inputs(1, document=by_pod)), Records(sandboxes(1))
    ).actions
    assert isinstance(action, Change)
    # printf default.web-0 | sha1sum
    assert action.object.veth == f"{prefix}0d7763386da"


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
    assert refusal.reason == "VethNameTaken"
    assert refusal.subject == "intent pod2/eth0 of pod default/web-0"
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


# -- families -----------------------------------------------------------------------------

BLOCK = ip_network("2001:db8:1:0:7::/80")


def bound(records: Records, **fields: Any) -> list[tuple[str, tuple[str, ...]]]:
    """Return ENI and addresses of each binding."""
    actions = domain.plan(domain.desire(inputs(2, **fields)), records).actions
    made = [a.object for a in actions if isinstance(a, Change) and a.verb is Verb.CREATE]
    return [(a.eni_id, tuple(map(str, a.addresses))) for a in made if isinstance(a, Attachment)]


def test_a_dual_stack_pod_gets_an_address_of_each_family_of_one_eni_in_the_documents_order() -> (
    None
):
    doc = document(families=["ipv6", "ipv4"])
    enis = (eni(0, 1), eni(1, 1, ipv6_prefixes=(BLOCK,)))
    assert bound(Records((intent(1),)), document=doc, enis=enis) == [
        ("eni-1", (str(BLOCK[1]), str(eni(1).secondaries[0])))
    ]


def test_the_lowest_free_address_of_a_prefix_is_given_and_never_the_prefix_spelt_out() -> None:
    doc = document(families=["ipv6"])
    records = Records(
        tuple(intent(n) for n in range(1, 5)),
        (attachment(4, addresses=(BLOCK[2],)),),
        (Cooling(BLOCK[3], 99.0),),
    )
    given = bound(records, document=doc, enis=(eni(0, 0, ipv6_prefixes=(BLOCK,)),))
    assert [a for _, (a,) in given] == [str(BLOCK[n]) for n in (1, 4, 5)]


def test_a_prefix_that_is_leaving_serves_nobody() -> None:
    doc = document(families=["ipv6"])
    records = Records((intent(1),), quarantined=(Quarantine(BLOCK, 1.0),))
    enis = (eni(0, 0, ipv6_prefixes=(BLOCK,)),)
    assert bound(records, document=doc, enis=enis) == []
    assert bound(Records((intent(1),)), document=doc, enis=enis) != []


def test_without_a_prefix_the_reason_is_that_prefix() -> None:
    doc = document(families=["ipv4", "ipv6"])
    plan = domain.plan(domain.desire(inputs(1, document=doc)), Records((intent(1),)))
    (refusal,) = plan.refusals
    assert refusal.reason == "AddressesExhausted"
    assert "no ENI of 1 has a prefix of ipv6 yet" in refusal.message


def test_a_pod_gets_an_address_for_egress_last_and_it_rests_like_any_other() -> None:
    doc = document(families=["ipv6"], egressFamilies=["ipv4"])
    only = eni(0, 0, ipv6_prefixes=(BLOCK,))
    fields: dict[str, Any] = {"document": doc, "enis": (only,)}
    assert bound(Records((intent(1),)), **fields) == [("eni-0", (str(BLOCK[1]), "169.254.172.1"))]
    held = attachment(1, addresses=(BLOCK[1], ip_address("169.254.172.1")))
    ended = Records((intent(1, IntentState.RELEASED),), (held,))
    assert plan(ended, clear=frozenset({held.key}), **fields)[:2] == [
        f"begin cooldown of {BLOCK[1]}",
        "begin cooldown of 169.254.172.1",
    ]
    cooling = Records((intent(2),), (), tuple(Cooling(a, 99.0) for a in held.addresses))
    assert bound(cooling, **fields) == [("eni-0", (str(BLOCK[2]), "169.254.172.2"))]


def test_no_egress_of_a_family_of_which_the_node_has_no_address_itself() -> None:
    doc = document(egressFamilies=["ipv6"])
    ((_, addresses),) = bound(Records((intent(1),)), document=doc, enis=(eni(0, 1),))
    assert len(addresses) == 1
    own = eni(0, 1, host_addresses=(ip_address("2001:db8:1::10"),))
    ((_, addresses),) = bound(Records((intent(1),)), document=doc, enis=(own,))
    assert addresses[1] == "fd00::ac:1"


def test_a_pod_of_two_addresses_is_one_pod_to_the_pool() -> None:
    held = attachment(1, addresses=(SUBNET[11], BLOCK[1]))
    cooling = tuple(Cooling(a, 1.0) for a in (SUBNET[12], BLOCK[2], ip_address("169.254.172.9")))
    demand = Records((), (held,), cooling).demand
    assert (demand.assigned, demand.cooling) == (1, 1)


def later(number: int, **fields: Any) -> Intent:
    """What a container asks for that was started again, in another namespace."""
    return intent(number, netns="/run/netns/later", netns_inode=2, **fields)


def test_what_a_container_had_in_its_former_namespace_goes_before_it_gets_anything_anew() -> None:
    old = attachment(1, netns="/run/netns/pod1@1", netns_alive=False)
    records = Records((later(1),), (old,))
    assert records.living == ()
    assert records.demand.waiting == 1
    first = domain.plan(domain.desire(inputs(2)), records)
    assert first.actions == ()
    assert [r.reason for r in first.refusals] == ["SandboxReplaced"]
    assert plan(records, clear=frozenset({old.key})) == [
        f"begin cooldown of {old.addresses[0]}",
        f"release {old.addresses[0]} from pod1/eth0",
    ]
    (bound,) = domain.plan(
        domain.desire(inputs(2)), Records((later(1),), (), (Cooling(old.addresses[0], 9.0),))
    ).actions
    assert isinstance(bound, Change)
    assert bound.object.netns == "/run/netns/later@2"
    assert bound.object.addresses != old.addresses


def test_a_release_of_the_later_sandbox_frees_what_the_former_one_had() -> None:
    old = attachment(1, netns="/run/netns/pod1@1", netns_alive=False)
    records = Records((later(1, state=IntentState.RELEASED),), (old,))
    assert plan(records, clear=frozenset({old.key}))[-1] == "forget released intent pod1/eth0"


@pytest.mark.parametrize(
    ("was", "alive", "now", "superseded"),
    [
        ("/run/netns/a@7", True, ("/run/netns/a", 7), False),
        ("/run/netns/a@7", False, ("/run/netns/a", 7), False),
        ("/run/netns/a@7", True, ("/run/netns/a", 8), True),
        ("/run/netns/a@7", False, ("/run/netns/b", 8), True),
        ("/run/netns/a@7", True, ("/proc/9/ns/net", 7), False),
        ("/run/netns/a@7", False, ("/run/netns/b", 7), True),
        ("/run/netns/a", True, ("/run/netns/a", 7), False),
        ("/run/netns/a", False, ("/run/netns/b", 7), True),
        ("", False, ("/run/netns/b", 7), False),
    ],
)
def test_a_sandbox_is_another_by_path_and_inode(
    was: str, alive: bool, now: tuple[str, int], superseded: bool
) -> None:
    old = Attachment(intent(1).key, was, (SUBNET[11],), "eni-0", "nn1", netns_alive=alive)
    new = intent(1, netns=now[0], netns_inode=now[1])
    assert is_superseded(old, new) is superseded
    assert not is_superseded(old, replace(new, netns_alive=False)), "what is wanted is gone too"
    assert not is_superseded(old, replace(new, state=IntentState.RELEASED))


def test_intents_that_nobody_understands_are_named_and_others_served() -> None:
    records = Records((intent(1),), unreadable=("/run/x/intents/a.json: ValueError: no",))
    made = domain.plan(domain.desire(inputs(2)), records)
    assert len(made.actions) == 1
    (refusal,) = made.refusals
    assert (refusal.reason, refusal.subject) == (
        "IntentUnreadable",
        "intent /run/x/intents/a.json",
    )


HOUR_S, TEN_YEARS_S = 3600.0, 10 * 365 * 86400.0


@pytest.mark.parametrize("back_s", [HOUR_S, TEN_YEARS_S])
def test_a_clock_that_is_set_back_makes_no_cooldown_longer_than_its_time(back_s: float) -> None:
    doc = document(warmPool={"cooldown": "30s"})
    cooling = Cooling(SUBNET[11], 1030.0 + back_s)
    made = domain.plan(
        domain.desire(inputs(1, document=doc, now=1000.0)), Records((), (), (cooling,))
    )
    (action,) = made.actions
    assert isinstance(action, Change)
    assert action.object == Cooling(SUBNET[11], 1030.0), "from now on it is as any other"
    after = Records((), (), (action.object,))
    assert plan(after, document=doc, now=1029.0) == []
    assert plan(after, document=doc, now=1030.0) == ["end cooldown of 10.0.1.11"]


def test_what_is_known_and_not_on_disk_is_written_again() -> None:
    records = Records((intent(1),), (), (Cooling(SUBNET[12], 9.0),)).joined([attachment(1)])
    here = frozenset({attachment(1).key})
    written = f"bind {attachment(1).addresses[0]} on eni-0 to pod1/eth0"
    assert plan(records, linked=here) == [written]
    assert records.living == (attachment(1),)
    assert records.demand.assigned == 1
    assert records.joined([attachment(1)]) == records


def torn(number: int, *addresses: Any) -> SetAside:
    return SetAside("/run/x/unreadable/a.json", 0.0, frozenset(addresses), intent(number).key)


def test_while_a_pods_record_cannot_be_read_nothing_new_is_bound_to_it() -> None:
    """Its link is gone too; its pod may run with an address that only the record knew."""
    records = Records((intent(1), intent(2)), set_aside=(torn(1),))
    made = domain.plan(domain.desire(inputs(1, now=1e9)), records)
    assert [a.key for a in made.actions] == [intent(2).key]
    (refusal,) = (r for r in made.refusals if r.subject == f"intent {intent(1).key}")
    assert refusal.reason == "RecordUnreadable"


def test_a_del_ends_what_an_unreadable_record_stands_for_and_its_addresses_rest() -> None:
    records = Records((intent(1, IntentState.RELEASED),), set_aside=(torn(1, SUBNET[13]),))
    assert plan(records, now=1e9) == [
        f"begin cooldown of {SUBNET[13]}",
        "mv /run/x/unreadable/a.json /run/x/unreadable/a.json.released",
        "forget released intent pod1/eth0",
    ]


def test_a_thousand_unreadable_records_are_not_a_thousand_conditions() -> None:
    many = tuple(replace(torn(1), path=f"/run/x/{n}", attachment=None) for n in range(1000))
    made = domain.plan(domain.desire(inputs(1, now=1e9)), Records(set_aside=many))
    assert len(made.refusals) == MAX_NAMED + 1
    assert made.refusals[-1].message.startswith(f"{1000 - MAX_NAMED} more")


def test_a_rebuilt_attachment_learns_where_its_pod_is_when_an_intent_says_it() -> None:
    """An intent of another release could not be read when the kernel was asked."""
    rebuilt = attachment(1, pod="", netns_alive=False)
    rebuilt = replace(rebuilt, netns="")
    records = Records((replace(intent(1), pod="default/web-0"),), (rebuilt,))
    linked = frozenset({intent(1).key, intent(2).key})
    (action,) = domain.plan(domain.desire(inputs(1, linked=linked)), records).actions
    assert isinstance(action, Change)
    assert (action.object.netns, action.object.pod) == ("/run/netns/pod1@1", "default/web-0")
    taken = attachment(2, netns="/run/netns/pod1@1")
    assert plan(replace(records, attachments=(rebuilt, taken)), linked=linked) == []
    gone = replace(records, intents=(intent(1, netns_alive=False),))
    assert plan(gone, linked=linked) == []


def test_the_last_address_is_for_whoever_has_asked_first() -> None:
    """By the order of keys a pod could wait for ever behind those that follow."""
    only = eni(0, 1)
    fields = {"enis": (only,), "links": {only.mac: "eth0"}}
    records = Records(tuple(intent(n) for n in (1, 2, 3)))
    asking = (intent(3).key, intent(1).key)
    for alone in (False, True):
        desired = domain.desire(inputs(2, asking=asking, **fields))
        made = (
            domain.plan_pods(asking, desired, records) if alone else domain.plan(desired, records)
        )
        (given,) = made.actions
        assert given.key == ("pod3", "eth0")
        assert [r.subject.split()[1] for r in made.refusals][:1] == ["pod1/eth0"]
