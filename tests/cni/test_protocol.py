"""The CNI specification as pure functions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni import protocol
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
    [("0.4.0", "4", False), ("1.0.0", None, False), ("1.1.0", None, True)],
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
    assert call.intent("wanted", 7) == {
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
    }


@pytest.mark.parametrize(
    ("environ", "config", "code"),
    [
        ({}, {"cniVersion": "0.2.0"}, 1),
        ({}, {"cniVersion": ""}, 1),
        ({"CNI_COMMAND": "CHECK"}, {}, 4),
        ({"CNI_COMMAND": ""}, {}, 4),
        ({"CNI_CONTAINERID": ""}, {}, 4),
        ({"CNI_CONTAINERID": "../../etc/passwd"}, {}, 4),
        ({"CNI_CONTAINERID": "a/b"}, {}, 4),
        ({"CNI_CONTAINERID": ".hidden"}, {}, 4),
        ({"CNI_CONTAINERID": "x" * 201}, {}, 4),
        ({"CNI_IFNAME": ""}, {}, 4),
        ({"CNI_IFNAME": "sixteen-letters-"}, {}, 4),
        ({"CNI_IFNAME": ".."}, {}, 4),
        ({"CNI_IFNAME": "eth/0"}, {}, 4),
        ({"CNI_IFNAME": "eth 0"}, {}, 4),
        ({"CNI_NETNS": ""}, {}, 4),
        ({}, {"stateDir": "relative"}, 7),
        ({}, {"stateDir": 3}, 7),
        ({}, {"budgetSeconds": 0}, 7),
        ({}, {"budgetSeconds": "30"}, 7),
        ({}, {"budgetSeconds": True}, 7),
        ({}, {"prevResult": {}}, 7),
    ],
)
def test_what_the_specification_forbids_has_its_code(
    environ: dict[str, str], config: dict[str, object], code: int
) -> None:
    with pytest.raises(CniError) as caught:
        Call(ENVIRON | environ, CONFIG | config).check()
    assert caught.value.code == code
    assert protocol.error(caught.value, "1.0.0")["code"] == code


def test_a_del_needs_no_namespace() -> None:
    Call(ENVIRON | {"CNI_COMMAND": "DEL", "CNI_NETNS": ""}, CONFIG).check()


def test_an_error_of_an_unknown_version_is_told_in_a_known_one() -> None:
    assert protocol.error(CniError(1, "no"), "9.9.9")["cniVersion"] == "1.1.0"


def test_versions_are_told() -> None:
    answer = protocol.versions({"cniVersion": "0.4.0"})
    assert answer == {"cniVersion": "0.4.0", "supportedVersions": ["0.4.0", "1.0.0", "1.1.0"]}


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
