"""Reading the document: what is accepted, what is refused, and where it says the fault is."""
# ruff: noqa: E501 - one case a line reads best

from __future__ import annotations

from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from builders import documents
from hypothesis import given
from hypothesis import strategies as st

from schemas.document import NodeNetwork, parse_duration, print_duration
from schemas.load import DocumentError, dump, load, read

ROOT = Path(__file__).parents[2]
HEAD = "apiVersion: node-network/v1alpha1\nkind: NodeNetwork\n"


def problems(text: str) -> list[str]:
    with pytest.raises(DocumentError) as caught:
        load(text, "f.yaml")
    assert str(caught.value) == "\n".join(map(str, caught.value.problems))
    return [str(p) for p in caught.value.problems]


def test_the_shipped_document_is_valid_and_says_what_the_demo_needs() -> None:
    path = ROOT / "config/node-network.yaml"
    document = load(path.read_text(), str(path))
    assert (document.warm_pool.warm, document.warm_pool.minimum) == (2, 24)
    assert document.snat.mode == "node"
    assert document.snat.exclude_cidrs == ()
    first = path.read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=../schemas/node-network.schema.json"
    assert (path.parent / first.rpartition("=")[2]).resolve().exists()


def test_the_document_in_the_daemonset_is_valid() -> None:
    manifests = yaml.safe_load_all((ROOT / "deploy/daemonset.yaml").read_text())
    (config,) = [m for m in manifests if m["kind"] == "ConfigMap"]
    assert load(config["data"]["node-network.yaml"], "ConfigMap").warm_pool.minimum == 12


def test_the_defaults_are_whole() -> None:
    document = load(HEAD, "f.yaml")
    assert document.warm_pool.cooldown == timedelta(seconds=30)
    assert document.eni.max is None
    assert document.pod_mtu == 9001
    assert document.families == ("ipv4",)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("snat:\n  excludeCIDR: []\n", "4:3: snat.excludeCIDR: unknown key; did you mean 'excludeCIDRs'?"),
        ("warmpool: {}\n", "3:1: warmpool: unknown key; did you mean 'warmPool'?"),
        ("pods: {colour: 1}\n", "3:8: pods.colour: unknown key; known here: mtu, vethPrefix"),
        ("warmPool: {warm: -1}\n", "3:18: warmPool.warm: -1: must be at least 0"),
        ("warmPool: {warm: '3'}\n", "3:18: warmPool.warm: must be a number; remove the quotes"),
        ("warmPool: {cooldown: 30}\n", "3:22: warmPool.cooldown: 30 is no duration; write a number and a unit, as 30s, 2m or 1h"),
        ("warmPool: {cooldown: 2h}\n", "3:22: warmPool.cooldown: must be from 0s to 1h"),
        ("reconcile: {resync: 10ms}\n", "3:21: reconcile.resync: must be from 1s to 1h"),
        ("snat:\n  excludeCIDRs:\n  - 192.0.2.0/24\n  - 10.1.2.3/16\n", "6:5: snat.excludeCIDRs[1]: 10.1.2.3/16 has host bits set; write 10.1.0.0/16"),
        ("snat: {excludeCIDRs: [here]}\n", "3:23: snat.excludeCIDRs[0]: 'here' is no CIDR; write it as 10.1.0.0/16"),
        ("snat: {excludeCIDRs: ['2001:db8::/32']}\n", "3:23: snat.excludeCIDRs[0]: 2001:db8::/32 is IPv6, but families has none of that version; remove it"),
        ("snat: {mode: external, excludeCIDRs: [192.0.2.0/24]}\n", "3:38: snat.excludeCIDRs: has no effect in mode external, where nothing is translated; remove it, or choose mode node"),
        ("eni: {mtu: 1500}\npods: {mtu: 1501}\n", "4:13: pods.mtu: 1501 does not fit into eni.mtu 1500; a pod's packets would be fragmented or dropped; lower pods.mtu"),
        ("eni: {tags: {aws:x: y}}\n", "3:13: eni.tags: tag 'aws:x': names that begin with aws: are Amazon's own"),
        ("eni: {tags: {node.k8s.amazonaws.com/instance_id: y}}\n", "3:13: eni.tags: tag 'node.k8s.amazonaws.com/instance_id': ownership is read from it; it is set for you"),
        ("eni: {tags: {x: 1}}\n", "3:13: eni.tags: tag 'x': names and values are text; put 1 in quotes"),
        ("pods: {vethPrefix: eni}\n", "3:20: pods.vethPrefix: 'eni' cannot be told from others' links: the stock plugin's links begin with it"),
        ("pods: {vethPrefix: toolong}\n", "3:20: pods.vethPrefix: 'toolong': must be 1 to 4 lower-case letters and digits, a letter first"),
        ("families: [ipv6]\n", "3:11: families: ipv6 is not built yet; remove it"),
        ("snat:\n", "3:6: snat: empty; remove the key, or give it a value"),
        ("snat: here\n", "3:7: snat: must be a mapping of keys"),
        ("snat: {mode: nat}\n", "3:14: snat.mode: 'nat': must be 'node' or 'external'"),
        ("snat: {excludeCIDRs: 10.1.0.0/16}\n", "3:22: snat.excludeCIDRs: must be a list; write [10.1.0.0/16]"),
        ("snat: {excludeCIDRs: [[10.1.0.0/16]]}\n", "3:23: snat.excludeCIDRs[0]: a list inside the list is no CIDR; write it as 10.1.0.0/16"),
        ("snat: {excludeCIDRs: [null]}\n", "3:23: snat.excludeCIDRs[0]: the entry is empty; remove it, or write a CIDR as 10.1.0.0/16"),
        ("snat: {excludeCIDRs: [10.1.0.0/0.0.255.255]}\n", "3:23: snat.excludeCIDRs[0]: '10.1.0.0/0.0.255.255' is no CIDR; write it as 10.1.0.0/16"),
        ("snat: {exclude_cidrs: []}\n", "3:8: snat.exclude_cidrs: unknown key; did you mean 'excludeCIDRs'?"),
        ("families: []\n", "3:11: families: empty; name at least one"),
        ("families: [ipv5]\n", "3:12: families[0]: 'ipv5': must be 'ipv4' or 'ipv6'"),
        ("pods: {vethPrefix: 5}\n", "3:20: pods.vethPrefix: must be text; put 5 in quotes"),
        ("warmPool: {cooldown: 9999999999999h}\n", "3:22: warmPool.cooldown: '9999999999999h' is no duration; write a number and a unit, as 30s, 2m or 1h"),
        ("warmPool: {cooldown: ٣s}\n", "3:22: warmPool.cooldown: '٣s' is no duration; write a number and a unit, as 30s, 2m or 1h"),
        ("warmPool: {warm: " + "9" * 5000 + "}\n", "3:18: warmPool.warm: a number of 5000 digits; nothing here is that large"),
        ("x: " + "[" * 3000 + "]" * 3000 + "\n", "3:35: nested more than 32 levels deep"),
        ("snat: {<<: {mode: node}}\n", "3:8: snat: merge keys are not supported; write the values out"),
        ('"a\\nb": 1\n', "3:1: 'a\\nb': unknown key"),
        # YAML 1.1
        ("snat: {mode: no}\n", "3:14: snat.mode: YAML reads no as a boolean; put the word in quotes if it is meant"),
        ("warmPool: {warm: 010}\n", "3:18: warmPool.warm: YAML reads 010 as the number 8; write plain digits"),
        ("warmPool: {warm: 1:30}\n", "3:18: warmPool.warm: YAML reads 1:30 as the number 90; write plain digits"),
        ("warmPool: {warm: 0x10}\n", "3:18: warmPool.warm: YAML reads 0x10 as the number 16; write plain digits"),
        ("warmPool: {warm: 1.5}\n", "3:18: warmPool.warm: YAML reads 1.5 as a float; numbers here are whole"),
        ("pods: {vethPrefix: 2026-01-01}\n", "3:20: pods.vethPrefix: YAML reads 2026-01-01 as a timestamp; nothing here is one; put it in quotes"),
        ("snat: {}\nsnat: {}\n", "4:1: snat: stands twice, first in line 3; remove one"),
        ("snat: {1: x}\n", "3:8: snat: a key must be text; put '1' in quotes"),
        ("snat: {? [a] : x}\n", "3:10: snat: a key must be text; put [...] in quotes"),
        ("eni: &e {}\n", "3:6: anchors and aliases are not supported; write the value out"),
        ("eni: !!set {a}\n", "3:6: eni: the tag tag:yaml.org,2002:set is not supported"),
        ("warmPool: !int 3\n", "3:11: warmPool: the tag !int is not supported"),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_its_line_its_column_and_its_key(body: str, expected: str) -> None:
    found = problems(HEAD + body)
    assert any(p.startswith(f"f.yaml:{expected}") or f"f.yaml:{expected}" == p for p in found), (
        found
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "f.yaml:1:1: the document is empty"),
        ("# nothing\n", "f.yaml:1:1: the document is empty"),
        ("- a\n", "f.yaml:1:1: the document is no mapping of keys"),
        ("kind: NodeNetwork\n", "f.yaml:1:1: apiVersion: missing; it is required"),
        (HEAD + "---\n" + HEAD, "f.yaml:3:1: not YAML: but found another document"),
        (HEAD + "\tx: 1\n", "f.yaml:3:1: not YAML: a tab; indent with spaces"),
        (HEAD + "snat: [\n", "f.yaml:4:1: not YAML: expected the node content"),
        (HEAD + "x: \x07\n", "f.yaml:1:1: not YAML: unacceptable character"),
        (HEAD.replace("v1alpha1", "v2"), "f.yaml:1:13: apiVersion: 'node-network/v2': must be 'node-network/v1alpha1'"),
    ],
)  # fmt: skip
def test_what_is_no_document_is_refused_as_one(text: str, expected: str) -> None:
    assert any(p.startswith(expected) for p in problems(text)), problems(text)


def test_faults_of_yaml_hide_none_of_the_documents() -> None:
    body = "snat:\n  excludeCIDR: []\n  mode: no\n"
    assert problems(HEAD + body) == [
        "f.yaml:4:3: snat.excludeCIDR: unknown key; did you mean 'excludeCIDRs'?",
        "f.yaml:5:9: snat.mode: YAML reads no as a boolean; put the word in quotes if it is meant",
    ]


def test_each_entry_of_a_list_and_each_tag_is_named_by_itself() -> None:
    body = "snat:\n  excludeCIDRs:\n  - 192.0.2.0/24\n  - 2001:db8::/32\n  - 2001:db8:1::/48\n"
    assert [p.split(": ")[0] for p in problems(HEAD + body)] == ["f.yaml:6:5", "f.yaml:7:5"]
    assert len(problems(HEAD + "eni: {tags: {aws:x: y, z: 1}}\n")) == 2
    assert len(problems(HEAD + "reconcile: {resync: 1ms, ec2Resync: 1ms}\n")) == 2


def test_a_file_that_cannot_be_read_is_an_error_of_the_document(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_bytes(b"kind: NodeNetwork\nx: \xff\n")
    for path, expected in (
        (bad, f"{bad}:2:4: not UTF-8: byte 0xff"),
        (tmp_path, f"{tmp_path}: cannot be read: is a directory"),
        (tmp_path / "none", f"{tmp_path / 'none'}: cannot be read: no such file or directory"),
    ):
        with pytest.raises(DocumentError) as caught:
            read(path)
        assert str(caught.value) == expected
    bad.write_bytes(b"\xef\xbb\xbf" + HEAD.replace("\n", "\r\n").encode())
    assert load(read(bad), "f.yaml") == load(HEAD, "f.yaml")


def test_all_faults_are_named_at_once_in_the_order_of_the_file() -> None:
    body = "snat:\n  excludeCIDRs: [10.1.2.3/16, x]\npods: {mtu: 1}\nwarm: 1\n"
    assert [p.split(": ")[1] for p in problems(HEAD + body)] == [
        "snat.excludeCIDRs[0]",
        "snat.excludeCIDRs[1]",
        "pods.mtu",
        "warm",
    ]


def test_a_billion_laughs_is_refused_before_it_is_read() -> None:
    lines = ["a: &a [x, x]"] + [
        f"{b}: &{b} [*{a}, *{a}]" for a, b in zip("abcdefg", "bcdefgh", strict=True)
    ]
    assert "anchors and aliases" in problems("\n".join(lines))[0]


@pytest.mark.parametrize("text", ["10.1.2.3", "10.1.2.3/32"])
def test_a_bare_address_means_that_address_alone(text: str) -> None:
    document = load(HEAD + f"snat: {{excludeCIDRs: [{text}]}}\n", "f.yaml")
    assert document.snat.exclude_cidrs == (ip_network("10.1.2.3/32"),)


@given(documents())
def test_the_normal_form_reads_back_as_the_same_document(document: NodeNetwork) -> None:
    assert load(dump(document), "f.yaml") == document
    assert dump(load(dump(document), "f.yaml")) == dump(document)
    assert hash(load(dump(document), "f.yaml")) == hash(document)


@given(st.integers(0, 10**7).map(lambda ms: timedelta(milliseconds=ms)))
def test_durations_read_back_as_they_were_written(duration: timedelta) -> None:
    assert parse_duration(print_duration(duration)) == duration


trees: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["snat", "eni", "pods", "mtu", "excludeCIDRs", "mode", "tags", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(trees)
def test_any_yaml_is_read_or_refused_in_the_documents_own_terms(tree: Any) -> None:
    try:
        load(yaml.safe_dump(tree), "f.yaml")
    except DocumentError as error:
        assert all(p.line >= 1 and p.column >= 1 and p.message for p in error.problems)


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused_in_the_documents_own_terms(text: str) -> None:
    with pytest.raises(DocumentError):
        load(text, "f.yaml")
