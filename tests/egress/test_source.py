"""What is known of a source after any answers: nothing goes that two looks do not agree on."""

from __future__ import annotations

from ipaddress import IPv4Network, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.egress.destinations import Egress
from reconciler.egress.observation import Question, take
from reconciler.egress.pace import CONFIRM_S, ask_after_s
from reconciler.egress.source import APART_S, MAX_ENTRIES, Entry, Failure, Look, Source, merge

NETWORKS = [ip_network(f"10.{n}.0.0/16") for n in range(6)]
DENIED = Failure("DescribeVpcPeeringConnections", "UnauthorizedOperation", "no")

looks = st.builds(
    lambda chosen: Look(tuple(Entry(n, "pcx-1") for n in chosen)),
    st.lists(st.sampled_from(NETWORKS), unique=True),
)
answers = st.lists(
    st.tuples(st.just(DENIED) | looks, st.sampled_from([0.5, APART_S, 600.0, -3600.0])),
    max_size=12,
)


def shown(source: Source) -> set[Any]:
    return {e.network for e in source.entries}


def look(*networks: str, version: int | None = None) -> Look:
    return Look(tuple(Entry(ip_network(n), "pcx-1", "a") for n in networks), version)


@given(answers)
def test_nothing_goes_before_two_looks_in_a_row_lack_it_and_all_that_is_new_counts(
    given_answers: list[tuple[Look | Failure, float]],
) -> None:
    source, now = Source("@peering"), 1e6
    full: list[set[Any]] = []
    for answer, passed in given_answers:
        before = source
        now += passed
        source = merge(before, answer, now)
        assert shown(source) == set(dict.fromkeys(e.network for e in source.entries))
        if isinstance(answer, Failure):
            assert source.entries == before.entries
            assert source.looked_at == before.looked_at
            continue
        had = {e.network for e in answer.entries}
        gone = shown(before) - shown(source)
        assert had <= shown(source) <= had | shown(before)
        assert not gone or not (gone & full[-1]), "the look before it had it"
        assert shown(source) - had == {e.network for e in source.missed}
        full.append(had)


@given(looks, st.lists(st.just(DENIED), min_size=1, max_size=5))
def test_failures_between_two_looks_neither_count_nor_start_anew(
    one: Look, failures: list[Failure]
) -> None:
    source = merge(Source("@peering"), one, 0.0)
    source = merge(source, Look(()), 100.0)
    for number, failure in enumerate(failures):
        source = merge(source, failure, 101.0 + number)
    assert shown(source) == {e.network for e in one.entries}
    assert shown(merge(source, Look(()), 200.0)) == set()


def test_two_looks_within_seconds_are_one() -> None:
    source = merge(Source("@peering"), look("10.1.0.0/16"), 0.0)
    for now in (100.0, 101.0, 100.0 + APART_S - 1):
        source = merge(source, look(), now)
    assert [e.missed_at for e in source.entries] == [100.0]
    assert merge(source, look(), 100.0 + APART_S).entries == ()


def test_what_comes_back_is_not_missed_any_more() -> None:
    source = merge(Source("@peering"), look("10.1.0.0/16"), 0.0)
    for now, answer in ((100.0, look()), (200.0, look("10.1.0.0/16")), (300.0, look())):
        source = merge(source, answer, now)
    assert [e.missed_at for e in source.entries] == [300.0]


def test_an_older_version_of_a_prefix_list_is_an_old_answer() -> None:
    source = merge(Source("pl-0a1b2c3d"), look("10.1.0.0/16", version=4), 0.0)
    source = merge(source, look("10.2.0.0/16", version=3), 100.0)
    assert shown(source) == {ip_network("10.1.0.0/16")}
    assert source.failure is not None
    assert source.failure.code == "StaleAnswer"


def test_more_entries_than_may_be_change_nothing() -> None:
    source = merge(Source("@routes"), look("10.1.0.0/16"), 0.0)
    many = [ip_network(f"{a}.{b}.0.0/16") for a in range(20, 60) for b in range(256)]
    grown = merge(source, Look(tuple(Entry(n) for n in many[: MAX_ENTRIES + 1])), 1.0)
    assert grown.entries == source.entries
    assert grown.failure is not None
    assert grown.failure.code == "TooManyEntries"


def test_sources_together_are_bounded_and_the_one_too_many_keeps_its_last_value() -> None:
    def many(first: int, count: int = MAX_ENTRIES) -> Look:
        numbers = range(first << 24, (first << 24) + (count << 8), 1 << 8)
        return Look(tuple(Entry(IPv4Network((n, 24))) for n in numbers))

    lists = ("pl-0000000a", "pl-0000000b", "pl-0000000c")
    question = Question(lists, "vpc-1", frozenset())
    answers = {lists[0]: many(11), lists[1]: many(12), lists[2]: many(13, 1)}
    egress = take(Egress("vpc-1"), question, answers, 1.0)
    assert [len(s.entries) for s in egress.sources] == [MAX_ENTRIES, MAX_ENTRIES, 0]
    failed = egress.sources[2].failure
    assert failed is not None
    assert failed.code == "TooManyEntries"


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_ec2_is_asked_sooner_only_if_something_is_open(chance: float) -> None:
    calm = Source("@peering", looked_at=0.0)
    failed = Source("@routes", failure=DENIED)
    missed = merge(merge(calm, look("10.1.0.0/16"), 0.0), look(), 1.0)
    assert 1440 <= ask_after_s([calm], 0, 1800.0, chance) <= 1800
    assert 7.5 <= ask_after_s([calm, failed], 1, 1800.0, chance) <= 15
    assert 150 <= ask_after_s([calm, failed], 9, 1800.0, chance) <= 300
    assert APART_S <= ask_after_s([calm, missed], 0, 1800.0, chance) <= CONFIRM_S
    assert ask_after_s([missed], 0, 10.0, chance) == APART_S
