"""What the nftables target promises, of the real kernel and of the fake alike."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from itertools import permutations
from typing import Any

import pytest
import wild
from builders import SUBNET, attachment, document, eni, inputs
from conftest import namespace
from fakes import FakeNft

from lab import netns
from reconciler.domains import nat, rule
from reconciler.domains.nat_objects import (
    NftChain,
    NftCounter,
    NftElement,
    NftLink,
    NftSet,
    NftTable,
)
from reconciler.domains.rule import Rule
from reconciler.engine.converge import Domain, converge
from reconciler.engine.plan import Change, Verb
from reconciler.errors import ObserveError
from reconciler.ipam.identity import EgressIdentity
from reconciler.ipam.pool_status import Ec2Inputs
from reconciler.targets.netlink.ruleset import Nfnetlink
from reconciler.targets.netlink.target import Netlink
from reconciler.targets.nftables import target as targets_compiler
from reconciler.targets.nftables.table import UNREADABLE
from reconciler.targets.nftables.target import Nft


@pytest.fixture(params=["fake", pytest.param("kernel", marks=pytest.mark.kernel)])
def target(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "fake":
        yield FakeNft()
        return
    with namespace("nft") as name, netns.inside(name):
        yield Nft()


def reach(target: Any, now: Any) -> None:
    """Converge to what a node desires, and see it settled."""
    assert converge([Domain("nat", nat.desire, nat.plan, target)], now)["nat"].settled


def test_an_empty_ruleset_is_an_empty_observation(target: Any) -> None:
    assert target.observe() == frozenset()


def test_the_table_is_seen_as_it_was_written(target: Any) -> None:
    """Byte for byte of meaning: chains, rules, sets and elements."""
    pods = tuple(attachment(n, n % 3, address=ip_address(f"10.0.1.{50 + n}")) for n in range(9))
    now = inputs(3, pods, document=document(snat={"excludeCIDRs": ["10.100.0.0/16", "192.0.2.7"]}))
    reach(target, now)
    assert target.observe() == nat.desire(now)


@pytest.mark.parametrize(
    "cidrs",
    [
        ["0.0.0.0/0"],
        ["0.0.0.0/1", "128.0.0.0/1"],
        ["255.255.255.255"],
        ["10.1.0.0/24", "10.1.1.0/24", "10.1.2.0/24"],
        ["10.0.0.0/8", "10.0.0.0/16", "10.1.2.3"],
        ["192.0.2.0/31", "192.0.2.3", "192.0.2.2"],
    ],
    ids=str,
)
def test_any_exclusions_come_back_as_they_were_written(target: Any, cidrs: list[str]) -> None:
    """The stock plugin's rule for 0.0.0.0/0 was there and gone on alternate restarts (#3658)."""
    now = inputs(1, document=document(snat={"excludeCIDRs": cidrs}))
    reach(target, now)
    assert target.observe() == nat.desire(now)


def test_changing_exclusions_touches_elements_only(target: Any) -> None:
    before = inputs(2, document=document(snat={"excludeCIDRs": ["192.0.2.0/24"]}))
    after = inputs(2, document=document(snat={"excludeCIDRs": ["192.0.2.0/25", "198.51.100.1"]}))
    reach(target, before)
    plan = nat.plan(nat.desire(after), target.observe())
    assert {a.kind for a in plan.actions} == {"nft-element"}
    reach(target, after)


POLICIES: list[dict[str, Any]] = [
    {"mode": "node"},
    {"mode": "external"},
    {"onlyCIDRs": ["10.100.0.0/16", "198.51.100.0/24"]},
    {"excludeCIDRs": ["10.100.0.0/16"], "ports": "random"},
    {"onlyCIDRs": ["0.0.0.0/0"], "excludeCIDRs": ["10.0.0.0/8"], "ports": "sequential"},
]


def test_every_policy_reaches_every_other_and_reads_back_as_written(target: Any) -> None:
    pods = (attachment(1, 1),)
    for before, after in permutations(POLICIES, 2):
        reach(target, inputs(2, pods, document=document(snat=before)))
        now = inputs(2, pods, document=document(snat=after))
        reach(target, now)
        assert target.observe() == nat.desire(now)


def test_other_mark_bits_read_back_as_written(target: Any) -> None:
    for mask in ("0xff0000", "0xff000000", "0xff"):
        now = inputs(3, document=document(routing={"markMask": mask}))
        reach(target, now)
        assert target.observe() == nat.desire(now)


def test_a_pod_that_moves_to_another_eni_changes_its_verdicts_alone(target: Any) -> None:
    reach(target, inputs(3, (attachment(1, 1, address=ip_address("10.0.1.99")),)))
    moved = inputs(3, (attachment(1, 2, address=ip_address("10.0.1.99")),))
    actions = nat.plan(nat.desire(moved), target.observe()).actions
    assert sorted(a.key[0] for a in actions) == ["guarded_ipv4", "pod_eni_ipv4"]
    assert {(a.verb, a.reason) for a in actions} == {(Verb.UPDATE, "goto eni_1 -> eni_2")}
    reach(target, moved)


RULES = [
    {"namespace": "out", "to": ["10.100.0.0/16"], "as": "pod"},
    {"namespace": "pay", "to": ["0.0.0.0/0", "2001:db8:9::/48"], "as": "dedicated"},
    {"namespace": "*", "to": ["192.0.2.0/24"], "as": "node"},
]


def test_rules_and_dedicated_addresses_are_seen_as_they_were_written(target: Any) -> None:
    pods = (attachment(1, 1, pod="pay/a"), attachment(2, 2, pod="out/b"))
    here = document(snat={"rules": RULES}, families=["ipv4", "ipv6"])
    held = EgressIdentity("pay", "", (ip_address("10.0.1.59"),), "eni-2")
    now = inputs(3, pods, document=here, ec2=Ec2Inputs(identities=(held,)))
    reach(target, now)
    assert target.observe() == nat.desire(now)
    elements = nat.desire_pods(now)
    assert target.observe_at(elements) == elements
    moved = replace(now, ec2=Ec2Inputs(identities=(replace(held, addresses=(SUBNET[58],)),)))
    (action,) = nat.plan(nat.desire(moved), target.observe()).actions
    address = ip_address("10.0.1.32")
    wanted = NftElement("dedicated_ipv4", address, address, value=SUBNET[58])
    assert (action.verb, action.object) == (Verb.UPDATE, wanted)
    assert str(action).endswith("dedicated_ipv4 { 10.0.1.32 : 10.0.1.58 }")
    reach(target, moved)
    assert target.observe_at([replace(wanted, value=SUBNET[59])]) == {wanted}
    reach(target, inputs(3, pods))
    assert target.observe() == nat.desire(inputs(3, pods))


def test_an_eni_that_leaves_takes_its_chain_along(target: Any) -> None:
    reach(target, inputs(3, (attachment(1, 2),)))
    reach(target, inputs(1))
    assert {o.name for o in target.observe() if isinstance(o, NftChain)} >= {"eni_0"}
    assert "eni_2" not in {o.name for o in target.observe() if isinstance(o, NftChain)}


def test_a_transaction_with_one_impossible_part_changes_nothing(target: Any) -> None:
    reach(target, inputs(1))
    before = target.observe()
    good = NftElement("pods_ipv4", ip_address("10.0.1.7"), ip_address("10.0.1.7"))
    bad = replace(good, set="no_such_set")
    failures = target.apply([Change(Verb.CREATE, o, "test") for o in (good, bad)])
    assert [f.reason for f in failures] == ["TransactionRefused"] * 2
    assert target.observe() == before


def test_the_table_can_be_deleted_when_it_is_gone_already(target: Any) -> None:
    assert target.apply([Change(Verb.DELETE, NftTable(), "test")]) == ()
    assert target.observe() == frozenset()


def test_a_table_that_is_deleted_is_not_made_again(target: Any) -> None:
    reach(target, inputs())
    assert target.apply([Change(Verb.DELETE, NftTable(), "test")]) == ()
    assert target.observe() == frozenset()


@pytest.mark.parametrize(
    "wrong",
    [
        NftSet("no_snat_ipv4", "ipv6_addr", interval=True),
        NftSet("pods_ipv4", "ipv4_addr", interval=True),
        NftChain("source_nat", (), "filter", "postrouting", 100),
    ],
    ids=lambda o: f"{o.kind}-{o.name}",
)
def test_what_cannot_be_changed_in_place_is_replaced_with_the_table(
    target: Any, wrong: Any
) -> None:
    assert target.apply([Change(Verb.CREATE, o, "test") for o in (NftTable(), wrong)]) == ()
    reach(target, inputs(2, (attachment(1, 1),)))


def test_what_is_added_to_the_guard_is_seen_and_taken_away(target: Any) -> None:
    reach(target, inputs(2))
    more = {
        NftCounter("other"),
        NftLink("links", "a-link-of-15by", goto="from_pod"),
        NftLink("guarded_ipv4", "a", ip_address("10.0.1.7"), goto="eni_1"),
    }
    assert target.apply([Change(Verb.CREATE, o, "test") for o in more]) == ()
    assert target.observe() == nat.desire(inputs(2)) | more
    reach(target, inputs(2))
    assert target.observe() == nat.desire(inputs(2))


def test_metadata_denied_to_some_pods_is_seen_as_it_was_written(target: Any) -> None:
    entry = {"match": {"namespace": "pay"}, "access": "deny"}
    pods = tuple(attachment(n, n % 2, pod=f"{of}/web") for n, of in enumerate(("pay", "shop")))
    for entries in ([entry], [entry | {"access": "allow"}, entry], [], [entry]):
        now = inputs(2, pods, document=document(pods={"metadata": entries}))
        reach(target, now)
        assert target.observe() == nat.desire(now)


def test_flipping_the_guard_leaves_nothing_of_it_behind(target: Any) -> None:
    pods = (attachment(1, 1),)
    for spoofing in ("deny", "allow", "deny"):
        now = inputs(2, pods, document=document(pods={"spoofing": spoofing}))
        reach(target, now)
        assert target.observe() == nat.desire(now)


@pytest.mark.kernel
def test_a_rule_edited_by_hand_is_seen_and_put_back(home: str) -> None:
    target, now = Nft(), inputs(2)
    reach(target, now)
    nft("add", "rule", "inet", "node_network", "source_nat", "counter")
    nft("flush", "chain", "inet", "node_network", "eni_1")
    plan = nat.plan(nat.desire(now), target.observe())
    assert [(a.verb, a.key) for a in plan.actions] == [
        (Verb.UPDATE, ("eni_1",)),
        (Verb.UPDATE, ("source_nat",)),
    ]
    reach(target, now)


@pytest.mark.kernel
def test_other_tables_are_neither_read_nor_touched(home: str) -> None:
    nft("add", "table", "inet", "firewall")
    nft("add", "chain", "inet", "firewall", "c")
    nft("add", "table", "ip", "node_network")
    before = nft("list", "table", "inet", "firewall") + nft("list", "table", "ip", "node_network")
    reach(Nft(), inputs(3))
    Nft().apply([Change(Verb.DELETE, NftTable(), "test")])
    after = nft("list", "table", "inet", "firewall") + nft("list", "table", "ip", "node_network")
    assert before == after


@pytest.mark.kernel
def test_rules_that_cannot_be_translated_are_not_said_to_differ(
    home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> Any:
        raise PermissionError(1, "Operation not permitted")

    target, now = Nft(), inputs(2)
    reach(target, now)
    monkeypatch.setattr(targets_compiler, "empty_namespace", refuse)
    with pytest.raises(ObserveError, match="no empty network namespace to translate our rules"):
        Nft().observe(nat.desire(now))


@pytest.mark.kernel
def test_the_number_of_rules_depends_on_enis_alone(home: str) -> None:
    """Neither ``ip rule`` nor nftables has more of them for more pods or more CIDRs."""

    def count(pods: int, cidrs: int) -> tuple[int, int]:
        exclude = [f"10.{n // 250}.{n % 250}.1" for n in range(cidrs)]
        bound = tuple(
            attachment(n, n % 3, addresses=(ip_network("10.8.0.0/16")[n],)) for n in range(pods)
        )
        now = inputs(3, bound, document=document(snat={"excludeCIDRs": exclude}))
        reach(Nft(), now)
        domain = Domain("rule", rule.desire, rule.plan, Netlink(), (Rule,))
        assert converge([domain], now)["rule"].settled
        listing = json.loads(nft("-j", "list", "table", "inet", "node_network"))["nftables"]
        rules = subprocess.run(["ip", "rule"], check=True, capture_output=True, text=True).stdout
        return sum("rule" in entry for entry in listing), len(rules.splitlines())

    few = count(4, 1)
    assert few == count(100, 1) == count(700, 1) == count(4, 5000) == count(700, 5000)
    assert min(few) > 3


def test_without_the_primary_link_nothing_is_planned() -> None:
    lost = replace(inputs(1), links={})
    outcome = converge([Domain("nat", nat.desire, nat.plan, FakeNft())], lost)["nat"]
    assert [type(e).__name__ for e in outcome.errors] == ["NotReadyError"]
    assert eni().mac in str(outcome.errors[0])


def nft(*words: str) -> str:
    return subprocess.run(["nft", *words], check=True, capture_output=True, text=True).stdout


@pytest.mark.kernel
@pytest.mark.parametrize(
    "command",
    [
        'add element inet node_network no_snat_ipv4 { 192.0.2.1 comment "mine" }',
        "add map inet node_network data { type ipv4_addr : mark; elements = { 192.0.2.1 : 5 }; }",
        "add counter inet node_network c",
        "add quota inet node_network q { 1 mbytes; }",
        "add element inet node_network links { other : goto from_pod }",
        "add element inet node_network links { other : drop }",
        "add element inet node_network guarded_ipv4 { other . 192.0.2.1 : goto eni_0 }",
        "flush map inet node_network guarded_ipv4",
        "insert rule inet node_network from_pod counter name spoofed return",
        "add table inet node_network { flags dormant; }",
        "add chain inet node_network route_mark "
        "{ type filter hook prerouting priority -89; policy drop; }",
        "add set inet node_network ports { type inet_service; elements = { 80 }; }",
        "add set inet node_network late { type ipv4_addr; flags timeout; }",
        "add set inet node_network both { type ipv4_addr . inet_service; }",
        "add rule inet node_network route_mark iifname { a, b } meta cpu 1 drop",
        "insert rule inet node_network arrival drop comment mine",
        "add chain inet node_network other { type filter hook input priority 0; policy drop; }",
        "add element inet node_network pod_eni_ipv4 { 192.0.2.1 : drop }",
        "delete element inet node_network no_snat_ipv4 { 10.0.0.0/16 }",
    ],
)
def test_whatever_somebody_puts_into_our_table_is_undone(command: str) -> None:
    with namespace("nft") as name, netns.inside(name):
        target = Nft()
        now = inputs(2, (attachment(1, 1),))
        reach(target, now)
        subprocess.run(["nft", command], check=True, capture_output=True)
        assert target.observe() != nat.desire(now)
        reach(target, now)
        assert target.observe() == nat.desire(now)


@pytest.mark.kernel
@pytest.mark.parametrize(
    "words",
    [
        *({"snat": policy} for policy in POLICIES),
        {"snat": {"excludeCIDRs": ["255.255.255.0/24", "0.0.0.0/8", "192.0.2.7"]}},
        {"families": ["ipv4", "ipv6"]},
        {"families": ["ipv6"], "egressFamilies": ["ipv4"]},
    ],
    ids=str,
)
def test_a_table_that_libnftables_has_written_is_as_ours(words: dict[str, Any]) -> None:
    """Earlier releases wrote it so; an upgrade changes nothing of it."""
    with namespace("nft") as name, netns.inside(name):
        target, now = Nft(), inputs(2, (attachment(1, 1),), document=document(**words))
        reach(target, now)
        table = nft("-s", "list", "table", "inet", "node_network")
        again = f"delete table inet node_network\n{table}"
        subprocess.run(["nft", "-f", "-"], input=again, check=True, text=True)
        assert target.observe() == nat.desire(now)


FOREIGN_BYTES = b"\xff\xfe"
OURS = b"node_network"


@pytest.mark.kernel
@pytest.mark.parametrize(
    "what", ["fatal set", "chain", "rule", "many", "many in all", "chains", "rules", "long rules"]
)
def test_what_no_program_would_write_into_our_table_is_undone_too(what: str) -> None:
    """Bytes that are no text, what ends libnftables, and more than is worth reading."""
    with namespace("nft") as name, netns.inside(name):
        target, now = Nft(), inputs(2, (attachment(1, 1),))
        reach(target, now)
        match what:
            case "fatal set":
                wild.make_fatal_set(target.kernel, OURS, "inet")
            case "chain":
                wild.make_chain(target.kernel, OURS, FOREIGN_BYTES, hook=2, family="inet")
                wild.make_rule(target.kernel, OURS, FOREIGN_BYTES, family="inet")
            case "rule":
                wild.make_rule(target.kernel, OURS, b"arrival", comment=b"\xff", family="inet")
            case "many":
                pods = (f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(100_000))
                elements = [NftElement("pods_ipv4", a, a) for a in map(ip_address, pods)]
                assert target.apply([Change(Verb.CREATE, e, "test") for e in elements]) == ()
            case "many in all":
                pods = [ip_address((11 << 24) + n) for n in range(26_000)]
                elements = [NftElement("pods_ipv4", a, a) for a in pods]
                elements += [NftElement("no_snat_ipv4", a, a) for a in pods[::2]]
                assert target.apply([Change(Verb.CREATE, e, "test") for e in elements]) == ()
                assert target.observe(nat.desire(now)) == UNREADABLE
            case "long rules":
                rules = ("meta mark set 1 " * 60 + "\n") * 1000
                script = f"table inet node_network {{\nchain x {{\n{rules}}}\n}}\n"
                subprocess.run(["nft", "-f", "-"], input=script, text=True, check=True)
                assert target.observe(nat.desire(now)) == UNREADABLE
            case "chains" | "rules":
                numbers = range(10_001)
                inside = {
                    "chains": "\n".join(f"chain x{n} {{ }}" for n in numbers),
                    "rules": "chain x {\n" + "counter\n" * len(numbers) + "}",
                }
                script = f"table inet node_network {{\n{inside[what]}\n}}\n"
                subprocess.run(["nft", "-f", "-"], input=script, text=True, check=True)
        assert target.observe(nat.desire(now)) != nat.desire(now)
        reach(target, now)
        assert target.observe() == nat.desire(now)


@pytest.mark.kernel
def test_a_large_transaction_that_is_refused_says_what_the_kernel_said(home: str) -> None:
    """It answers to each message with all that was in it, more than the socket holds."""
    addresses = [ip_address((11 << 24) + n) for n in range(20_000)]
    actions = [Change(Verb.CREATE, NftElement("pods_ipv4", a, a), "test") for a in addresses]
    (why,) = {failure.message for failure in Nft().apply(actions)}
    assert why == os.strerror(errno.ENOENT), "there is no such set"


@pytest.mark.kernel
def test_libnftables_sees_nothing_of_other_owners(home: str) -> None:
    """It would load their sets to write one element of ours, and this one is the end of it."""
    wild.make_table(Nfnetlink(), b"t")
    wild.make_fatal_set(Nfnetlink(), b"t")
    done = subprocess.run(["nft", "list", "ruleset"], capture_output=True, check=False)
    assert done.returncode < 0, "or else this test shows nothing"
    target = Nft()
    for now in (inputs(2, (attachment(1, 1),)), inputs(3), inputs(1)):
        reach(target, now)
        assert target.observe() == nat.desire(now)


@pytest.mark.kernel
def test_what_is_written_lists_as_if_libnftables_had_written_it(home: str) -> None:
    """For those who look at our table with nft."""
    reach(
        Nft(),
        inputs(2, (attachment(1, 1),), document=document(snat={"excludeCIDRs": ["192.0.2.0/24"]})),
    )
    listed = nft("list", "table", "inet", "node_network")
    subprocess.run(["nft", "delete table inet node_network"], check=True)
    subprocess.run(["nft", "-f", "-"], input=listed, text=True, check=True)
    assert nft("list", "table", "inet", "node_network") == listed
    assert "unknown" not in listed


@pytest.mark.kernel
def test_a_change_of_policy_leaves_no_moment_without_one(home: str) -> None:
    """Every change is one transaction: the ruleset's number goes up by one."""
    target = Nft()
    many = [f"172.{n >> 8}.{n & 255}.0/25" for n in range(3_000)]
    for cidrs in ([], many, many[:10], []):
        now = inputs(2, document=document(snat={"excludeCIDRs": cidrs}))
        plan = nat.plan(nat.desire(now), target.observe(nat.desire(now)))
        before = target.kernel.generation()
        assert target.apply(plan.actions) == ()
        assert target.kernel.generation() == before + 1
        assert target.observe(nat.desire(now)) == nat.desire(now)


@pytest.mark.kernel
def test_a_pod_is_written_without_libnftables_and_without_a_look_at_anything(
    home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs the same whatever others have."""
    target, now = Nft(), inputs(2)
    reach(target, now)
    monkeypatch.setattr(targets_compiler, "_compile", lambda _: pytest.fail("compiled"))
    monkeypatch.setattr(Nfnetlink, "dump", lambda *_: pytest.fail("dumped"))
    new = nat.desire_pods(inputs(2, (attachment(1, 1),)))
    assert target.apply([Change(Verb.CREATE, o, "test") for o in new]) == ()
    assert target.observe_at(new) == new
    assert target.apply([Change(Verb.DELETE, o, "test") for o in new]) == ()
    assert target.observe_at(new) == frozenset()


def test_both_families_and_egress_are_seen_as_they_were_written(target: Any) -> None:
    """IPv6 is never translated, but for what means something on this node only."""
    pods = (
        attachment(1, 1, addresses=(ip_address("10.0.1.50"), ip_address("2001:db8:7::9"))),
        attachment(2, 0, addresses=(ip_address("10.0.1.51"), ip_address("fd00::ac:1"))),
    )
    own = {"host_addresses": (ip_address("2001:db8:1::10"),)}
    enis = (eni(0, **own), eni(1), eni(2))
    for parts in (
        {"families": ["ipv4", "ipv6"]},
        {"families": ["ipv6"], "egressFamilies": ["ipv4"]},
        {"families": ["ipv4"], "egressFamilies": ["ipv6"], "snat": {"mode": "external"}},
    ):
        now = inputs(3, pods, enis=enis, document=document(**parts))
        reach(target, now)
        assert target.observe() == nat.desire(now)


def test_a_look_at_places_shows_those_elements_and_no_others(target: Any) -> None:
    pods = tuple(attachment(n, n % 3, address=ip_address(f"10.0.1.{50 + n}")) for n in range(9))
    now = inputs(3, pods)
    reach(target, now)
    places = nat.desire_pods(replace(now, attachments=pods[:2]))
    assert len(places) == 8
    assert target.observe_at(places) == places
    # One is gone, and one leads elsewhere.
    verdicts = (o for o in places if isinstance(o, NftElement) and o.goto)
    gone, moved = sorted(verdicts, key=lambda o: o.key)
    elsewhere = replace(moved, goto="eni_2")
    actions = [Change(Verb.DELETE, gone, ""), Change(Verb.UPDATE, elsewhere, "", moved)]
    assert target.apply(actions) == ()
    assert target.observe_at(places) == places - {gone, moved} | {elsewhere}


def test_a_look_at_places_of_a_table_that_is_not_there_is_empty(target: Any) -> None:
    assert target.observe_at(nat.desire_pods(inputs(1, (attachment(1),)))) == frozenset()


@pytest.mark.kernel
def test_a_foreign_table_that_this_libnftables_cannot_print_hides_nothing() -> None:
    """1.0.6 prints no JSON, or nonsense, for a table with flags."""
    with namespace("nft") as name, netns.inside(name):
        target = Nft()
        now = inputs(2)
        for family in ("inet", "ip"):
            command = ["nft", f"add table {family} firewall {{ flags dormant; }}"]
            subprocess.run(command, check=True)
        reach(target, now)
        assert target.observe() == nat.desire(now)
        assert target.kernel.list_tables("inet") == {"firewall", "node_network"}
        assert target.kernel.list_tables("ip6") == frozenset()
