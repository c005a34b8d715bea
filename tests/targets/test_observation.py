"""The look at EC2 that outlives the process: of another release, damaged, or made by another."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from builders import SUBNET, eni, mac, node

from reconciler.core.facts import Eni, Node
from reconciler.core.ranges import coalesce
from reconciler.egress.destinations import NO_EGRESS, Egress
from reconciler.egress.source import Entry, Failure, Source
from reconciler.ipam.cloud import Cloud, Limits, Subnet
from reconciler.targets.state.directory import StateDirectory
from reconciler.targets.state.observation import MAX_ITEMS, MAX_OBSERVATION_BYTES, ON_DISK

PREFIXED = replace(eni(1), prefixes=(ip_network("10.0.1.64/28"),), created_at=3.0)
HOME = Subnet("subnet-a", "us-east-1a", SUBNET, 7, 3, (("k", "v"),))
LOOK = Cloud((eni(0, is_primary=True), PREFIXED, eni(None)), Limits(3, 10), {"subnet-a": HOME})
PARTS: dict[str, tuple[type, Callable[[Any], Any]]] = {
    "node": (Node, lambda body: body["node"]),
    "limits": (Limits, lambda body: body["limits"]),
    "subnet": (Subnet, lambda body: body["subnets"][0]),
    "eni": (Eni, lambda body: body["enis"][1]),
}


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    directory = StateDirectory(tmp_path)
    directory.prepare()
    directory.remember(node(), LOOK)
    return directory


def rewritten(state: StateDirectory, change: Callable[[Any], object]) -> Any:
    """Return what is read after the file was changed."""
    path = state.root / "look.json"
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))
    return state.recall()


@pytest.mark.parametrize("part", PARTS)
def test_a_field_of_a_later_release_is_left_out_and_the_look_kept(
    state: StateDirectory, part: str
) -> None:
    _, find = PARTS[part]
    assert rewritten(state, lambda b: find(b).update(later={"a": [1]})) == (node(), LOOK)
    assert rewritten(state, lambda b: b.update(later=1)) == (node(), LOOK)


@pytest.mark.parametrize(
    ("part", "name"), [(p, f.name) for p, (kind, _) in PARTS.items() for f in fields(kind)]
)
def test_a_field_that_an_earlier_release_did_not_have_gets_its_default(
    state: StateDirectory, part: str, name: str
) -> None:
    kind, find = PARTS[part]
    read = rewritten(state, lambda b: find(b).pop(ON_DISK.get(name, name)))
    (field,) = (f for f in fields(kind) if f.name == name)  # type: ignore[arg-type]
    if field.default is MISSING:
        assert read is None, "of a look that lacks it, nothing may be taken down"
        return
    told, cloud = read
    found = {
        "node": told,
        "limits": cloud.limits,
        "subnet": cloud.subnets["subnet-a"],
        "eni": cloud.enis[1],
    }
    if name == "is_primary":
        assert not found[part].is_primary
        assert rewritten(state, lambda b: b["enis"][0].pop(name))[1].enis[0].is_primary
    else:
        assert getattr(found[part], name) == field.default


WRONG = [None, 1, -1, True, "x", [], [[]], {}, 1e400, "\ud800"]


@pytest.mark.parametrize(
    ("part", "name"), [(p, f.name) for p, (kind, _) in PARTS.items() for f in fields(kind)]
)
def test_a_field_of_another_type_is_never_believed(
    state: StateDirectory, part: str, name: str
) -> None:
    """Either it is no look, or every field has the type that planning relies on."""
    _, find = PARTS[part]
    for wrong in WRONG:
        state.remember(node(), LOOK)
        read = rewritten(state, partial(_put, find, name, wrong))
        if read is not None:
            check_types(*read)


def _put(find: Callable[[Any], Any], name: str, wrong: Any, body: Any) -> None:
    find(body)[name] = wrong


def check_types(told: Node, cloud: Cloud) -> None:
    """Everything that planning does with a field can be done."""
    for value in (told, *cloud.enis, *cloud.subnets.values(), *filter(None, [cloud.limits])):
        hash(value)
        repr(value)
    assert sorted(e.eni_id for e in cloud.enis)
    for one in cloud.enis:
        assert one.device_index is None or type(one.device_index) is int
        assert all(type(getattr(one, n)) is bool for n in ("owned", "stock", "is_primary"))
        assert tuple(one.pod_addresses) == tuple(sorted(one.pod_addresses))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[" * 10_000,
        '{"version": 1, "node": ' + "[" * 10_000,
        '{"version": 2}',
        '{"version": 1}',
        "\0" * 100,
        " " * (MAX_OBSERVATION_BYTES + 1) + "{}",
    ],
    ids=lambda text: text[:30].strip("\0 "),
)
def test_what_is_no_look_is_none_whatever_it_is(state: StateDirectory, content: str) -> None:
    (state.root / "look.json").write_text(content)
    assert state.recall() is None


def test_a_list_without_end_is_no_look(state: StateDirectory) -> None:
    many = ["10.0.1.9"] * (MAX_ITEMS + 1)
    assert rewritten(state, lambda b: b["enis"][0].update(secondaries=many)) is None


def test_a_look_with_more_subnets_than_can_be_kept_keeps_the_enis(state: StateDirectory) -> None:
    tags = tuple((f"{n:0>127}", "v" * 255) for n in range(50))
    subnets = {
        f"subnet-{n}": replace(HOME, subnet_id=f"subnet-{n}", tags=tags) for n in range(300)
    }
    state.remember(node(), replace(LOOK, subnets=subnets))
    assert (state.root / "look.json").stat().st_size < MAX_OBSERVATION_BYTES
    read = state.recall()
    assert read is not None
    assert read[1] == replace(LOOK, subnets={})
    assert read[0].primary_mac == mac(0)


KNOWN = Egress(
    "vpc-1",
    (
        Source(
            "@peering",
            (Entry(ip_network("10.100.0.0/16"), "pcx-1", "shared", 7.5),),
            9.0,
            failure=Failure("DescribeVpcPeeringConnections", "UnauthorizedOperation", "no"),
        ),
        Source("pl-0a1b2c3d", (), 9.0, 3),
    ),
    (*coalesce([ip_network("10.0.0.0/8")]), *coalesce([ip_network("192.0.2.0/24")])),
)


def test_what_is_known_of_sources_outlives_the_process(state: StateDirectory) -> None:
    assert state.recall_egress() == NO_EGRESS
    state.remember_egress(KNOWN)
    assert StateDirectory(state.root).recall_egress() == KNOWN
    path = state.root / "sources.json"
    body = json.loads(path.read_text())
    body["later"] = body["sources"][0]["later"] = 1
    path.write_text(json.dumps(body))
    assert state.recall_egress() == KNOWN, "of a later release"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"version": 1, "sources": 7}',
        '{"version": 1, "sources": [{"name": "@peering", "entries": [{"network": "x"}]}]}',
        '{"version": 1, "former": [["10.0.0.0", "here"]]}',
        f'{{"version": 1, "former": [{", ".join(["0"] * 20_000)}]}}',
    ],
    ids=range(6),
)
def test_of_damaged_sources_nothing_is_believed(state: StateDirectory, text: str) -> None:
    (state.root / "sources.json").write_text(text)
    assert state.recall_egress() == NO_EGRESS
