"""The CNI configuration: what any document makes of it, and what stands against it."""

from __future__ import annotations

import json
from itertools import permutations
from typing import Any, get_args

import pytest
from builders import document, inputs
from document_strategies import NODE, documents
from fake_directories import FakeDirectories
from hypothesis import assume, given
from hypothesis import strategies as st

from cni.trail import LEVELS
from reconciler.core.facts import Installation
from reconciler.domains import conflist, executable
from reconciler.domains.conflist import NAME, Conflist, OtherConf, Plugins, make, normal
from reconciler.domains.executable import Executable
from reconciler.engine.converge import Domain, converge
from reconciler.engine.plan import Plan, Verb
from schemas.check import resolve
from schemas.cni import TYPE, VERSIONS, Cni
from schemas.document import NodeNetwork
from schemas.load import DocumentError

PLACES = Installation("/etc/cni/net.d", "/opt/cni/bin", "/opt/shipped", "/run/node-network")
PLUGINS = Plugins("/opt/cni/bin", frozenset({"portmap"}))


def desire(wanted: NodeNetwork | None = None) -> Conflist:
    (one,) = conflist.desire(inputs(document=wanted or document(), installation=PLACES))
    return one


def plan(*seen: Any, wanted: NodeNetwork | None = None) -> Plan:
    return conflist.plan({desire(wanted)}, seen or (PLUGINS,))


@given(documents())
def test_every_valid_document_makes_a_chain_that_begins_with_our_plugin(
    wanted: NodeNetwork,
) -> None:
    try:
        wanted = resolve(wanted, **NODE)
    except DocumentError:
        assume(False)
    made = desire(wanted)
    body = json.loads(made.text)
    ours, *others = body["plugins"]
    assert ours["type"] == TYPE
    assert ours["stateDir"] == "/run/node-network"
    assert 0 < ours["budgetSeconds"] <= 110
    assert [json.dumps(p, sort_keys=True) for p in others] == list(wanted.cni.chain)
    assert body["name"] == wanted.cni.network
    assert set(body.get("cniVersions", [body["cniVersion"]])) == set(wanted.cni.versions)
    assert VERSIONS.index(body["cniVersion"]) == min(map(VERSIONS.index, wanted.cni.versions))
    assert made.text == desire(wanted).text
    assert normal(made.text) == made.content


@given(documents(overrides=False), documents(overrides=False))
def test_what_one_document_has_written_is_followed_by_the_next_in_one_round(
    before: NodeNetwork, after: NodeNetwork
) -> None:
    plugins = {
        f"/opt/cni/bin/{name}": ("", "0755") for name in ("portmap", "bandwidth", "sbr_2.x")
    }
    target = FakeDirectories(PLACES, plugins)
    domains = [
        Domain("executable", executable.desire, executable.plan, target, (Executable,)),
        Domain("conflist", conflist.desire, conflist.plan, target, (Conflist, Plugins, OtherConf)),
    ]
    for wanted in (before, after):
        now = inputs(document=wanted, installation=PLACES)
        outcomes = converge(domains, now, max_rounds=1)
        assert all(o.settled and not o.remaining for o in outcomes.values())
        again = converge(domains, now)
        assert not any(o.plan for o in again.values())


def test_the_default_is_what_every_runtime_in_use_takes() -> None:
    assert make(document().cni, "/run/node-network") == {
        "cniVersion": "1.0.0",
        "name": "node-network",
        "plugins": [
            {
                "type": "node-network",
                "stateDir": "/run/node-network",
                "budgetSeconds": 60,
                "startSeconds": 30,
            },
            {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}},
        ],
    }


def test_versions_are_negotiated_from_the_oldest_up_however_they_are_listed() -> None:
    for versions in permutations(["0.4.0", "1.0.0", "1.1.0"]):
        body = make(document(cni={"versions": versions}).cni, "/x")
        assert body["cniVersion"] == "0.4.0"
        assert body["cniVersions"] == ["0.4.0", "1.0.0", "1.1.0"]


def test_the_executables_keys_are_said_only_if_the_document_says_them() -> None:
    cni = {"logFile": "journal", "logLevel": "debug", "budget": "1500ms", "chain": []}
    (ours,) = make(document(cni=cni).cni, "/x")["plugins"]
    assert ours == {
        "type": TYPE,
        "stateDir": "/x",
        "budgetSeconds": 1.5,
        "startSeconds": 0.75,
        "logFile": "journal",
        "logLevel": "debug",
    }


def test_the_document_knows_the_levels_that_the_executable_does() -> None:
    levels = get_args(get_args(Cni.model_fields["log_level"].annotation)[0])
    assert set(levels) == set(LEVELS)


def test_an_override_replaces_the_chain_of_some_nodes() -> None:
    override = {"match": {"instanceType": "m5.*"}, "set": {"cni": {"chain": []}}}
    wanted = resolve(document(overrides=[override]), **NODE)
    assert len(json.loads(desire(wanted).text)["plugins"]) == 1


def test_nothing_is_wanted_where_nobody_said_where() -> None:
    assert conflist.desire(inputs()) == executable.desire(inputs()) == frozenset()
    only = Installation(conf_dir="/etc/cni/net.d", state_dir="/x")
    assert executable.desire(inputs(installation=only)) == frozenset()


# Python says the same of these two; JSON does not.
@pytest.mark.parametrize(("one", "other"), [("1", "true"), ("0", "false"), ('"1"', "1")])
def test_different_values_are_different(one: str, other: str) -> None:
    assert normal(f'{{"a": {one}}}') != normal(f'{{"a": {other}}}')
    there = Conflist(desire().path, normal(f'{{"a": {one}}}'))
    want = Conflist(desire().path, normal(f'{{"a": {other}, "plugins": []}}'))
    (action,) = conflist.plan({want}, [there]).actions
    assert f"a {one} -> {other}" in action.reason


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(json_values, st.sampled_from([None, 1, 4]))
def test_the_writing_makes_no_difference(value: Any, indent: int | None) -> None:
    text = normal(json.dumps(value))
    assert normal(json.dumps(value, indent=indent, ensure_ascii=False)) == text
    assert normal(text) == text
    assert json.loads(text) == value


@given(json_values)
def test_no_words_of_others_are_too_much(value: Any) -> None:
    assert all(isinstance(word, str) for word in conflist.words_of(json.dumps(value)))


def test_the_command_writes_what_is_meant() -> None:
    (action,) = plan().actions
    assert (action.verb, action.reason) == (Verb.CREATE, "missing")
    command, _, content = str(action).partition("<<<")
    assert command == f"install -D -m 0644 /dev/stdin /etc/cni/net.d/{NAME} "
    assert normal(content.strip("'")) == desire().content


def test_what_differs_is_named_by_its_place() -> None:
    body = make(document().cni, "/run/node-network")
    body["cniVersion"] = "0.4.0"
    body["plugins"][0] |= {"budgetSeconds": 1, "extra": {"a": 1}}
    del body["plugins"][1]
    there = Conflist(desire().path, normal(json.dumps(body)), "0600")
    (action,) = plan(PLUGINS, there).actions
    portmap = '{"capabilities": {"portMappings": true}, "snat": true, "type": "portmap"}'
    assert action.reason == (
        'cniVersion "0.4.0" -> "1.0.0", plugins[0].budgetSeconds 1 -> 60, '
        f'plugins[0].extra {{"a": 1}} -> none, plugins[1] none -> {portmap}, mode 0600 -> 0644'
    )
    (action,) = plan(PLUGINS, Conflist(desire().path, "")).actions
    assert action.reason == "what is there is no JSON"


def test_a_plugin_that_is_not_there_is_refused_and_what_works_stays() -> None:
    nothing = Plugins("/opt/cni/bin", frozenset())
    result = plan(nothing)
    assert result.actions == ()
    (refusal,) = result.refusals
    assert refusal.reason == "PluginMissing"
    assert "portmap, which is not in /opt/cni/bin" in refusal.message
    assert plan(nothing, wanted=document(cni={"chain": []})).refusals == ()
    # Nobody knows what is in a directory that is somebody else's business.
    assert conflist.plan({desire()}, ()).refusals == ()


@pytest.mark.parametrize(
    ("name", "words", "is_named"),
    [
        ("10-aws.conflist", {"aws-cni", "portmap"}, True),
        ("00-multus.conf", set(), True),
        ("00-multus.conf", {"multus", f"/etc/cni/net.d/{NAME}"}, False),
        ("05-cilium.conflist", {"cilium-cni", TYPE}, False),
        ("10-node-network.conf", {"bridge"}, True),
        ("20-other.conflist", {"bridge"}, False),
    ],
)
def test_who_is_read_in_its_place_is_named_unless_it_calls_ours(
    name: str, words: set[str], *, is_named: bool
) -> None:
    result = plan(PLUGINS, desire(), OtherConf(name, frozenset(words)))
    assert not result
    assert [f.subject for f in result.findings] == [f"/etc/cni/net.d/{name}"] * is_named


def test_what_must_wait_is_refused_with_the_reason() -> None:
    held = conflist.withhold(plan())
    assert held.actions == ()
    (refusal,) = held.refusals
    assert refusal.reason == "NotConverged"
    assert refusal.subject == f"conflist /etc/cni/net.d/{NAME}"
    assert not conflist.withhold(plan(PLUGINS, desire()))


def test_nothing_of_ours_is_ever_deleted() -> None:
    there = [desire(), Executable("/opt/cni/bin/node-network", "/opt/shipped")]
    assert not conflist.plan((), there[:1])
    assert not executable.plan((), there[1:])
