"""The CNI specification as pure functions."""

from __future__ import annotations

import json
from typing import Any

import pytest
from executable import json_values
from hypothesis import given
from hypothesis import strategies as st

from cni import intent, protocol
from cni.protocol import Call, CniError

REPLY: dict[str, Any] = {
    "ok": True,
    "interfaces": [
        {"name": "nnab", "mac": "02:00:00:00:00:01", "mtu": 9001, "sandbox": ""},
        {"name": "eth0", "mac": "02:00:00:00:00:02", "mtu": 9001, "sandbox": "/run/netns/x"},
    ],
    "ips": [{"address": "10.0.1.9/32", "gateway": "169.254.1.1", "interface": 1}],
    "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}],
    "dns": {},
}

ENVIRON = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "pod1",
    "CNI_NETNS": "/run/netns/x",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=u-1",
}
CONFIG: dict[str, object] = {"cniVersion": "1.0.0", "name": "n", "type": "node-network"}


@pytest.mark.parametrize(
    ("version", "family", "mtu"),
    [
        ("0.3.1", "4", False),
        ("0.4.0", "4", False),
        ("1.0.0", None, False),
        ("1.1.0", None, True),
    ],
)
def test_a_result_is_in_the_words_of_its_version(
    version: str, family: str | None, mtu: bool
) -> None:
    result: Any = protocol.result(REPLY, version)
    assert result["cniVersion"] == version
    assert result["ips"][0].get("version") == family
    assert ("mtu" in result["interfaces"][0]) is mtu
    assert "ok" not in result


def test_an_ipv6_address_says_so_in_0_4_0() -> None:
    reply = REPLY | {"ips": [{"address": "2001:db8::1/128", "gateway": "fe80::1", "interface": 1}]}
    result: Any = protocol.result(reply, "0.4.0")
    assert result["ips"][0]["version"] == "6"


def test_the_intent_holds_what_the_runtime_said() -> None:
    call = Call(ENVIRON, CONFIG)
    call.check()
    assert intent.body_of(call, "wanted", 7, "a1") == {
        "version": 1,
        "state": "wanted",
        "containerID": "pod1",
        "ifname": "eth0",
        "netns": "/run/netns/x",
        "netnsInode": 7,
        "podNamespace": "default",
        "podName": "web-0",
        "podUID": "u-1",
        "network": "n",
        "attempt": "a1",
        "traceparent": "",
        "tracestate": "",
    }


@pytest.mark.parametrize(
    ("environ", "config", "code"),
    [
        ({}, {"cniVersion": "0.2.0"}, 1),
        ({}, {"cniVersion": ""}, 1),
        ({"CNI_COMMAND": ""}, {}, 4),
        ({"CNI_COMMAND": "check"}, {}, 4),
        ({"CNI_COMMAND": "CHECK"}, {"cniVersion": "0.3.1"}, 1),
        ({"CNI_COMMAND": "GC"}, {"cniVersion": "1.0.0"}, 1),
        ({"CNI_COMMAND": "STATUS"}, {"cniVersion": "1.0.0"}, 1),
        ({"CNI_COMMAND": "CHECK"}, {}, 7),
        ({"CNI_COMMAND": "CHECK"}, {"prevResult": 3}, 7),
        ({"CNI_COMMAND": "CHECK", "CNI_NETNS": ""}, {"prevResult": {}}, 4),
        ({"CNI_CONTAINERID": ""}, {}, 4),
        ({"CNI_CONTAINERID": "../../etc/passwd"}, {}, 4),
        ({"CNI_CONTAINERID": "a/b"}, {}, 4),
        ({"CNI_CONTAINERID": ".hidden"}, {}, 4),
        ({"CNI_CONTAINERID": "x" * 201}, {}, 4),
        ({"CNI_IFNAME": ""}, {}, 4),
        ({"CNI_IFNAME": "sixteen-letters-"}, {}, 4),
        ({"CNI_IFNAME": ".."}, {}, 4),
        ({"CNI_IFNAME": "eth%d"}, {}, 4),
        ({"CNI_IFNAME": "all"}, {}, 4),
        ({"CNI_IFNAME": "eth/0"}, {}, 4),
        ({"CNI_IFNAME": "eth 0"}, {}, 4),
        ({"CNI_NETNS": ""}, {}, 4),
        ({"CNI_NETNS": "run/netns/x"}, {}, 4),
        ({"CNI_NETNS": "/" + "x" * 5000}, {}, 4),
        ({}, {"name": ""}, 7),
        ({}, {"name": "a/b"}, 7),
        ({}, {"stateDir": "relative"}, 7),
        ({}, {"stateDir": "/a\0b"}, 7),
        ({}, {"stateDir": "/\ud800"}, 7),
        ({}, {"stateDir": 3}, 7),
        ({}, {"budgetSeconds": 0}, 7),
        ({}, {"budgetSeconds": "30"}, 7),
        ({}, {"budgetSeconds": True}, 7),
        ({}, {"prevResult": []}, 7),
        ({}, {"prevResult": {"interfaces": [{"name": "eth0", "sandbox": "/run/netns/x"}]}}, 7),
        ({}, {"runtimeConfig": {"ips": ["10.0.0.9/24"]}}, 2),
        ({}, {"runtimeConfig": {"mac": "02:00:00:00:00:09"}}, 2),
    ],
)
def test_what_the_specification_forbids_has_its_code(
    environ: dict[str, str], config: dict[str, object], code: int
) -> None:
    with pytest.raises(CniError) as caught:
        Call(ENVIRON | environ, CONFIG | config).check()
    assert caught.value.code == code
    assert protocol.error(caught.value, "1.0.0")["code"] == code


def test_a_wish_that_cannot_be_honoured_is_named() -> None:
    wish = {"runtimeConfig": {"mac": "02:00:00:00:00:09"}}
    with pytest.raises(CniError, match=r"runtimeConfig\.mac"):
        Call(ENVIRON, CONFIG | wish).check()


def test_a_del_is_not_refused_for_what_an_add_would_be() -> None:
    wishes: dict[str, object] = {"runtimeConfig": {"ips": ["10.0.0.9/24"]}, "prevResult": 3}
    Call(ENVIRON | {"CNI_COMMAND": "DEL", "CNI_NETNS": "x"}, CONFIG | wishes).check()


def test_what_other_plugins_are_asked_for_is_no_matter_of_ours() -> None:
    wishes = {"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80}]}}
    Call(ENVIRON, CONFIG | wishes).check()


def test_a_del_needs_no_namespace() -> None:
    Call(ENVIRON | {"CNI_COMMAND": "DEL", "CNI_NETNS": ""}, CONFIG).check()


def test_an_error_of_an_unknown_version_is_told_in_a_known_one() -> None:
    assert protocol.error(CniError(1, "no"), "9.9.9")["cniVersion"] == "1.1.0"


def test_versions_are_told() -> None:
    answer = protocol.versions({"cniVersion": "0.4.0"})
    assert answer == {"cniVersion": "0.4.0", "supportedVersions": protocol.VERSIONS}


LOOPBACK: dict[str, Any] = {
    "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": "/run/netns/x"}],
    "ips": [{"address": "127.0.0.1/8", "interface": 0}],
    "dns": {"nameservers": ["10.0.0.2"]},
}


def test_what_an_earlier_plugin_said_is_passed_on_and_ours_comes_after_it() -> None:
    result: Any = protocol.result(REPLY, "1.0.0", LOOPBACK)
    assert [link["name"] for link in result["interfaces"]] == ["lo", "nnab", "eth0"]
    assert [(ip["address"], ip["interface"]) for ip in result["ips"]] == [
        ("127.0.0.1/8", 0),
        ("10.0.1.9/32", 2),
    ]
    assert result["routes"] == REPLY["routes"]
    assert result["dns"] == {"nameservers": ["10.0.0.2"]}


def test_what_later_plugins_have_added_is_no_difference() -> None:
    told: Any = protocol.result(REPLY, "1.1.0")
    told["interfaces"].append({"name": "ifb0"})
    told["routes"].append({"dst": "10.9.0.0/16"})
    assert protocol.find_difference(told, REPLY, "eth0") == ""


@pytest.mark.parametrize("version", protocol.VERSIONS[1:])
def test_every_version_of_a_result_is_recognised_as_ours(version: str) -> None:
    assert protocol.find_difference(protocol.result(REPLY, version), REPLY, "eth0") == ""


@pytest.mark.parametrize(
    ("key", "change", "named"),
    [
        ("interfaces", lambda links: links.pop(), "interface eth0"),
        ("interfaces", lambda links: links[1].pop("sandbox"), "interface eth0"),
        ("interfaces", lambda links: links[1].update(mac="02:00:00:00:00:09"), "mac"),
        ("interfaces", lambda links: links[1].update(sandbox="/run/netns/y"), "/run/netns/y"),
        ("ips", lambda ips: ips[0].update(address="10.0.1.8/32"), "address 10.0.1.9/32"),
        ("ips", lambda ips: ips.clear(), "address 10.0.1.9/32"),
        ("routes", lambda routes: routes.clear(), "route 0.0.0.0/0"),
    ],
)
def test_the_first_difference_from_the_result_is_named(key: str, change: Any, named: str) -> None:
    told: Any = json.loads(json.dumps(protocol.result(REPLY, "1.0.0")))
    change(told[key])
    assert named in protocol.find_difference(told, REPLY, "eth0")


@given(json_values)
def test_any_previous_result_can_be_compared(told: Any) -> None:
    assert protocol.find_difference(told, REPLY, "eth0")


@pytest.mark.parametrize(
    "value",
    [None, {}, "pod1", [3], [{"containerID": "a"}], [{"containerID": "a", "ifname": 1}], [{}]],
)
def test_what_is_no_list_of_attachments_is_none_to_release_by(value: Any) -> None:
    with pytest.raises(CniError) as caught:
        protocol.parse_valid_attachments(value)
    assert caught.value.code == 7


def test_attachments_to_keep_are_known_by_container_and_interface() -> None:
    entries = [{"containerID": "a", "ifname": "eth0"}, {"containerID": "a", "ifname": "eth1"}]
    assert protocol.parse_valid_attachments(entries) == {("a", "eth0"), ("a", "eth1")}
    assert protocol.parse_valid_attachments([]) == set()


@pytest.mark.parametrize("text", ["it was Not Found", "no such file or directory: x"])
def test_a_dels_error_has_no_words_that_go_cni_takes_for_success(text: str) -> None:
    told = protocol.defuse(CniError(5, text, text))
    assert "not found" not in (told.msg + told.details).lower()
    assert "no such file" not in (told.msg + told.details).lower()


@pytest.mark.parametrize(
    ("text", "trace"),
    [
        (
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "0af7651916cd43dd8448eb211c80319c",
        ),
        ("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", ""),
        ("nonsense", ""),
        ("", ""),
    ],
)
def test_the_trace_is_told_by_its_id(text: str, trace: str) -> None:
    assert Call(ENVIRON | {"TRACEPARENT": text}, CONFIG).trace_id == trace


@given(st.text(max_size=2000), st.text(max_size=2000), st.text(max_size=2000))
def test_an_intent_is_bounded_whatever_the_runtime_says(args: str, trace: str, netns: str) -> None:
    environ = {"CNI_ARGS": f"K8S_POD_NAME={args};K8S_POD_UID={args}", "TRACESTATE": trace}
    call = Call(ENVIRON | environ | {"TRACEPARENT": trace, "CNI_NETNS": netns}, CONFIG)
    assert len(json.dumps(intent.body_of(call, "wanted", 2**64, "a" * 16))) < 32768


@given(st.text(max_size=300), st.text(max_size=20))
def test_a_name_that_is_accepted_stays_inside_its_directory(container: str, ifname: str) -> None:
    if protocol.is_container_id(container) and protocol.is_ifname(ifname):
        name = f"{container}.{ifname}.json"
        assert "/" not in name
        assert not name.startswith(".")
        assert len(name.encode()) <= 255


@given(st.text(max_size=80))
def test_any_arguments_can_be_read(text: str) -> None:
    assert all(isinstance(v, str) for v in protocol.parse_args(text).values())
