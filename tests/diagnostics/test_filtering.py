"""Others' chains as values: what becomes of pods' packets, and what is said of it."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.diagnostics.foreign import Pod, Traffic
from reconciler.diagnostics.forwarding import (
    MAX_LINKS,
    MAX_PODS,
    MAX_STEPS_IN_ALL,
    accepting,
    sample,
)
from reconciler.diagnostics.forwarding import judge_chains as judge
from reconciler.diagnostics.packet import Mark, Passage, State
from reconciler.diagnostics.ruleset import (
    BaseChain,
    ChainId,
    Elements,
    FieldIn,
    InSet,
    Load,
    Masked,
    Rule,
    Ruleset,
    SetMark,
    Unclear,
    Verdict,
    Within,
    field_is,
)
from reconciler.diagnostics.walk import (
    MAX_STEPS,
    ChainOutcome,
    Evaluation,
    Hit,
    at_hook,
    between,
    walk,
)

ONE, TWO = ip_address("10.0.1.20"), ip_address("10.0.1.21")
FAR, HOST = ip_address("198.51.100.7"), ip_address("10.0.1.10")
TRAFFIC = Traffic(
    pods=(Pod("nn1", ONE, "eth1"), Pod("nn2", TWO, "eth1")),
    hosts=(HOST,),
    kept=(ip_network("10.0.0.0/16"),),
    patterns=("nn*",),
)
OUT = Passage("nn1", "eth1", ONE, FAR)

ACCEPT, DROP, RETURN = Verdict("accept"), Verdict("drop"), Verdict("return")


def chain(name: str, table: str = "fw") -> ChainId:
    return ChainId("nft", "ip", table, name)


def base(hook: str = "forward", *, drops: bool = False, kind: str = "filter") -> BaseChain:
    return BaseChain(chain(hook), hook, kind, drops=drops)


def rules(bases: tuple[BaseChain, ...], chains: Mapping[str, tuple[Rule, ...] | None]) -> Ruleset:
    return Ruleset(bases, {chain(name): found for name, found in chains.items()})


def link(way: str, pattern: str, *, negated: bool = False) -> FieldIn:
    prefix = pattern.removesuffix("*").encode()
    size = len(prefix) if pattern.endswith("*") else 16
    return field_is(way, 0, b"\xff" * size, prefix.ljust(size, b"\0"), negated)


def state(*wanted: State) -> FieldIn:
    bits = 0
    for one in wanted:
        bits |= one
    return field_is("state", 0, struct.pack("=I", bits), bytes(4), negated=True)


def mark(bits: int, *, negated: bool = False) -> FieldIn:
    packed = struct.pack("=I", bits)
    return field_is("mark", 0, packed, packed, negated)


def outcome(found: Ruleset, passage: Passage = OUT) -> ChainOutcome:
    return walk(found.bases[0], passage, found)


def reasons(found: Ruleset, traffic: Traffic = TRAFFIC) -> list[str]:
    return [f.reason for f in judge(found, traffic)]


def test_a_drop_behind_jumps_is_seen_and_the_rule_is_named() -> None:
    found = rules(
        (base(),),
        {
            "forward": ((Verdict("jump", "a"),),),
            "a": ((link("iifname", "docker0"), ACCEPT), (Verdict("goto", "b"),), (ACCEPT,)),
            "b": ((state(State.ESTABLISHED), ACCEPT), (DROP,)),
        },
    )
    out, back = judge(found, TRAFFIC)
    assert (out.reason, back.reason) == ("ForwardingDropped", "ForwardingDropped")
    assert out.subject == "chain ip fw forward"
    assert "rule 2 of chain ip fw b drops or rejects packets from pods" in out.message
    assert "packets to pods" in back.message


def test_what_accepts_pods_before_the_drop_ends_the_finding() -> None:
    chains: dict[str, tuple[Rule, ...] | None] = {
        "forward": ((Verdict("jump", "a"),), (DROP,)),
        "a": ((link("iifname", "nn*"), ACCEPT), (link("oifname", "nn*"), ACCEPT)),
    }
    found = rules((base(drops=True),), chains)
    assert reasons(found) == []
    forward = frozenset({chain("forward")})
    assert accepting(found, TRAFFIC, forward) == forward
    half = rules((base(drops=True),), chains | {"a": ((link("iifname", "nn*"), ACCEPT),)})
    assert reasons(half) == ["ForwardingDropped"]
    assert not accepting(half, TRAFFIC, forward)


@pytest.mark.parametrize(
    "rule",
    [
        (field_is("network", 12, b"\xff" * 4, ONE.packed), DROP),
        (field_is("network", 16, b"\xff" * 4, FAR.packed), DROP),
        (FieldIn("transport", 2, ((b"\0\x19", b"\0\x19"),)), DROP),
        (state(State.INVALID), DROP),
        (Unclear("statistic"), DROP),
        (Unclear("NFQUEUE", ends=True),),
        (link("iifname", "nn*"), link("oifname", "nn*"), DROP),
    ],
    ids=["one pod", "one destination", "one port", "invalid", "now and then", "asked", "to pods"],
)
def test_a_rule_that_stops_some_is_somebodys_policy_and_no_finding(rule: Rule) -> None:
    assert reasons(rules((base(),), {"forward": (rule,)})) == []


def dispatch(way: str) -> tuple[Rule, ...]:
    one = Verdict("goto", "cali-one")
    return ((link(way, "nn1"), one), (link(way, "nn2"), one), (DROP,))


def test_a_link_that_felix_knows_passes_by_the_mark_that_a_chain_sets() -> None:
    """Calico: a profile sets a bit, and whoever has it not at the end of a chain is dropped."""
    profile: tuple[Rule, ...] = (
        (state(State.ESTABLISHED, State.RELATED), ACCEPT),
        (SetMark(0x10000, 0),),
        (Verdict("jump", "profile"),),
        (mark(0x10000), RETURN),
        (DROP,),
    )
    chains: dict[str, tuple[Rule, ...] | None] = {
        "forward": ((Verdict("jump", "cali-FORWARD"),),),
        "cali-FORWARD": (
            (link("iifname", "nn*"), Verdict("jump", "cali-from")),
            (link("oifname", "nn*"), Verdict("jump", "cali-to")),
        ),
        "profile": ((SetMark(0x10000, 0x10000),),),
        "cali-one": profile,
        "cali-from": dispatch("iifname"),
        "cali-to": dispatch("oifname"),
    }
    found = rules((base(),), chains)
    assert reasons(found) == []
    unknown = replace(TRAFFIC, pods=(Pod("nn7", ONE, "eth1"),))
    assert reasons(found, unknown) == ["ForwardingDropped"] * 2
    may_come = replace(TRAFFIC, pods=(Pod("nn*", ONE, "eth1"),))
    assert reasons(rules((base(),), chains | {"cali-from": ((DROP,),)}), may_come) == []


def test_without_a_pod_what_would_stop_the_first_is_found_all_the_same() -> None:
    found = rules((base(),), {"forward": ((link("iifname", "nn*"), DROP),)})
    may_come = replace(TRAFFIC, pods=(Pod("nn*", ONE, "eth1"),))
    assert reasons(found, may_come) == ["ForwardingDropped"]
    assert reasons(found, Traffic()) == []


def test_an_input_chain_that_drops_what_pods_answer_fails_probes_and_is_named() -> None:
    drop = rules((base("input"),), {"input": ((link("iifname", "nn*"), DROP),)})
    (found,) = judge(drop, TRAFFIC)
    assert found.reason == "InputDropped"
    assert "probes of kubelet fail" in found.message
    assert reasons(rules((base("input", drops=True),), {"input": ()})) == ["InputDropped"]
    # A host's firewall as many have one: what the host has asked for comes in.
    firewall = rules(
        (base("input", drops=True),),
        {"input": ((state(State.ESTABLISHED), ACCEPT), (link("iifname", "lo"), ACCEPT))},
    )
    assert reasons(firewall) == []


@pytest.mark.parametrize(
    ("hook", "rule", "reason"),
    [
        ("output", (link("oifname", "nn*"), DROP), "OutputDropped"),
        ("prerouting", (link("iifname", "nn*"), DROP), "ForwardingDropped"),
        ("postrouting", (link("oifname", "nn*"), DROP), "ForwardingDropped"),
        ("egress", (DROP,), "ForwardingDropped"),
    ],
)
def test_a_drop_at_any_other_hook_on_pods_way_is_found(hook: str, rule: Rule, reason: str) -> None:
    here = replace(base(hook), devices=("eth1",) if hook == "egress" else ())
    (found,) = judge(rules((here,), {hook: (rule,)}), TRAFFIC)
    assert found.reason == reason
    elsewhere = replace(here, devices=("eth7",))
    if hook == "egress":
        assert reasons(rules((elsewhere,), {hook: (rule,)})) == []


def test_a_masquerade_of_what_the_document_keeps_is_named() -> None:
    nat = base("postrouting", kind="nat")
    found = rules((nat,), {"postrouting": ((link("oifname", "eth*"), Verdict("snat")),)})
    (said,) = judge(found, TRAFFIC)
    assert said.reason == "SourceRewritten"
    assert "10.0.0.0/16" in said.message
    # Docker's, kube-proxy's and ip-masq-agent's are for others, or for what is beyond.
    docker = (field_is("network", 12, b"\xff\xff\0\0", b"\xac\x11\0\0"), Verdict("snat"))
    proxy = ((mark(0x4000, negated=True), RETURN), (Verdict("snat"),))
    agent = ((field_is("network", 16, b"\xff\0\0\0", b"\x0a\0\0\0"), RETURN), (Verdict("snat"),))
    for chains in ((docker,), proxy, agent):
        assert reasons(rules((nat,), {"postrouting": chains})) == []


def test_a_chain_that_was_not_read_is_said_not_to_have_been() -> None:
    found = rules((base(),), {"forward": ((Verdict("jump", "large"),),), "large": None})
    (said,) = judge(found, TRAFFIC)
    assert (said.subject, said.reason) == ("chain ip fw large", "ForeignUnread")
    # What is certain without it is said.
    shut = rules((base(),), {"forward": ((DROP,),), "large": None})
    assert reasons(shut) == ["ForwardingDropped"] * 2


def test_chains_that_branch_without_bound_end_as_not_read() -> None:
    """Twenty chains, each of which jumps to the next one ten times."""
    chains: dict[str, tuple[Rule, ...] | None] = {
        f"c{n}": ((Verdict("jump", f"c{n + 1}"),),) * 10 for n in range(20)
    }
    found = rules((base(),), chains | {"forward": ((Verdict("jump", "c0"),),), "c20": ((),)})
    hits = outcome(found).hits
    assert "unread" in {h.what for h in hits}
    around = rules((base(),), {"forward": ((Verdict("jump", "forward"),),)})
    assert {h.what for h in outcome(around).hits} == {"unread"}


def test_all_packets_together_look_at_so_many_rules_and_each_look_is_judged_once() -> None:
    """Whatever somebody lays out, pods wait for no longer than that."""
    looked_at = [0]

    class Counted(Mapping[ChainId, tuple[Rule, ...] | None]):
        def __getitem__(self, key: ChainId) -> tuple[Rule, ...]:
            looked_at[0] += 1
            return ((Unclear("random"), Verdict("jump", "next")),) * 3

        def __iter__(self) -> Iterator[ChainId]:
            return iter(())

        def __len__(self) -> int:
            return 0

    bases = tuple(replace(base(), id=chain(f"base{n}")) for n in range(50))
    found = Ruleset(bases, Counted())
    said = judge(found, TRAFFIC)
    assert {f.reason for f in said} == {"ForeignUnread"}
    assert looked_at[0] <= MAX_STEPS_IN_ALL + len(bases)
    before = looked_at[0]
    assert judge(found, replace(TRAFFIC)) is said
    assert looked_at[0] == before
    looked_at[0] = 0
    dropping = frozenset(b.id for b in bases)
    assert not accepting(found, TRAFFIC, dropping), "nothing of it is certain"
    assert looked_at[0] <= MAX_STEPS_IN_ALL + len(bases) * MAX_PODS * 2
    before = looked_at[0]
    accepting(found, replace(TRAFFIC), dropping)
    assert looked_at[0] == before


def test_large_sets_and_long_rules_count_for_what_they_cost() -> None:
    """A blocklist of 5,000 addresses that 1,000 rules ask for held up pods for minutes."""
    most = 1_000
    numbers = ((0xC0000200 + n).to_bytes(4, "big") for n in range(5000))
    elements = {("ip", "fw", "s"): Elements(tuple((n, n, None) for n in numbers))}
    source, partly = Load("network", 12, 4, 0), Masked(0, 0, b"\xff\xff\0\0", bytes(4))
    for loads in ((source,), (source, partly), (source,) * 100):
        listed = ((*loads, InSet(0, "s"), DROP),) * 1000
        found = replace(rules((base(),), {"forward": listed}), elements=elements)
        for source_address in (ONE, None):
            way = walk(
                found.bases[0],
                replace(OUT, source=source_address),
                found,
                most,
            )
            assert most <= way.steps < most + 1000, "it went no further"
            assert way.words == {"accept", "drop"}
            assert way.hits[-1].what == "unread"
    assert "ForeignUnread" in {f.reason for f in judge(found, TRAFFIC)}


@given(
    value=st.binary(min_size=4, max_size=4),
    known=st.sampled_from([bytes(4), b"\xff" * 4, b"\xff\xff\0\0", b"\0\xff\0\xff"]),
    edges=st.lists(st.binary(min_size=4, max_size=4), min_size=2, max_size=8),
)
def test_sets_hold_what_each_of_their_ranges_would(
    value: bytes, known: bytes, edges: list[bytes]
) -> None:
    ordered = sorted({*edges, bytes(4), b"\xff" * 4})
    ranges = list(zip(ordered[::2], ordered[1::2], strict=False))
    # (address & known) leaves only those bits known, if the address is known at all.
    masked = bytes(v & k for v, k in zip(value, known, strict=True))
    single = [between(masked, known, *r) for r in ranges]
    expected = True if True in single else None if None in single else False
    evaluation = Evaluation(
        OUT, Mark(0), chain("c"), {("ip", "fw", "s"): Elements(tuple((*r, None) for r in ranges))}
    )
    evaluation._value[:4], evaluation._known[:4] = masked, known
    assert evaluation._is_in(0, "s") is expected


def test_maps_lead_where_the_packet_says_and_an_unknown_key_may_lead_anywhere() -> None:
    by_link = InSet(0, "ways", verdicts=True)
    load = Load("iifname", 0, 16, 0)
    name = b"nn1".ljust(16, b"\0")
    elements = Elements(((name, name, Verdict("jump", "a")), (b"\xff" * 16,) * 2 + (ACCEPT,)))
    found = replace(
        rules((base(),), {"forward": ((load, by_link),), "a": ((DROP,),)}),
        elements={("ip", "fw", "ways"): elements},
    )
    assert outcome(found).surely("drop")
    assert outcome(found, replace(OUT, incoming="nn2")).surely("accept"), "no element"
    assert outcome(found, replace(OUT, incoming=None)).words == {"accept", "drop"}
    beyond = replace(found, elements={("ip", "fw", "ways"): replace(elements, whole=False)})
    assert outcome(beyond, replace(OUT, incoming="nn2")).words == {"accept", "drop"}


def test_every_chain_of_a_hook_has_to_let_it_pass_and_answers_meet_no_nat() -> None:
    first = BaseChain(chain("first"), "forward", priority=-150)
    last = BaseChain(chain("last"), "forward", priority=10)
    nat = BaseChain(chain("nat"), "forward", "nat")
    found = rules(
        (last, nat, first),
        {
            "first": ((SetMark(0xFF00, 0x100),),),
            "last": ((mark(0x100), DROP),),
            "nat": ((Verdict("snat"),),),
        },
    )

    def words(passage: Passage) -> list[tuple[str, set[str]]]:
        outcomes = at_hook(found.bases, "forward", passage, found)
        return [(f.base.id.name, set(f.words)) for f in outcomes]

    start = replace(OUT, mark=Mark(0))
    assert words(start) == [("first", {"accept"}), ("nat", {"snat"}), ("last", {"drop"})]
    answer = replace(start, state=State.ESTABLISHED)
    assert words(answer) == [("first", {"accept"}), ("last", {"drop"})]
    assert words(replace(start, source=ip_address("2001:db8::1"), destination=None)) == []


@given(value=st.binary(min_size=4, max_size=4), low=st.integers(0, 2**32 - 1), at=st.data())
def test_what_is_certain_with_unknown_bits_holds_for_every_value_of_them(
    value: bytes, low: int, at: st.DataObject
) -> None:
    high = at.draw(st.integers(low, 2**32 - 1))
    known = at.draw(st.integers(0, 2**32 - 1))
    sizes = low.to_bytes(4, "big"), high.to_bytes(4, "big")
    rule: Rule = (Load("mark", 0, 4, 0), Within(0, *sizes), DROP)
    found = rules((base(),), {"forward": (rule,)})
    (bits,) = struct.unpack("=I", value)
    partly = outcome(found, replace(OUT, mark=Mark(bits & known, known))).words
    wholly = outcome(found, replace(OUT, mark=Mark(bits))).words
    assert wholly <= partly


def test_some_pods_of_some_enis_are_tried() -> None:
    pods = [Pod(f"nn{n}", ONE + n, f"eth{n % 9}") for n in range(100)]
    chosen = sample(pods)
    assert len(chosen) == MAX_PODS * MAX_LINKS
    assert {p.link for p in chosen} == {f"eth{n}" for n in range(MAX_LINKS)}


def test_names_that_are_not_utf8_can_be_printed() -> None:
    odd = ChainId("legacy", "ip", "fw", b"\xff\xfe".decode(errors="surrogateescape"))
    assert str(Hit(odd, 1, "drop")).encode()
    assert MAX_STEPS
