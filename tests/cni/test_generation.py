"""Which sandbox a call is about."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.intent import AGAIN, NEW, TAKEN, is_meant, judge_add


def wanted(**fields: Any) -> dict[str, object]:
    body = {"state": "wanted", "netns": "/run/netns/a", "netnsInode": 7, "podUID": "u-1"}
    return body | fields


def meant(
    recorded: Any, netns: str = "/run/netns/a", inode: int = 7, pod_uid: str = "u-1"
) -> bool:
    return is_meant(recorded, netns=netns, inode=inode, pod_uid=pod_uid)


def judge(recorded: Any, *, alive: bool = True, **call: Any) -> str:
    words: dict[str, Any] = {"netns": "/run/netns/a", "inode": 7, "pod_uid": "u-1"}
    return judge_add(recorded, is_alive=alive, **(words | call))


def test_a_del_of_the_same_sandbox_is_meant_whatever_is_left_of_it() -> None:
    assert meant(wanted())
    assert meant(wanted(), inode=0), "the namespace is gone"
    assert meant(wanted(), netns="", inode=0), "the runtime does not know it any more"
    assert meant(wanted(), netns="/var/run/netns/a", inode=0)
    assert meant(wanted(), netns="/proc/9/ns/net"), "another name of the same namespace"


def test_a_del_of_an_older_sandbox_is_not() -> None:
    assert not meant(wanted(), inode=8), "the path leads elsewhere"
    assert not meant(wanted(), netns="/run/netns/b", inode=0), "it is called otherwise"
    assert not meant(wanted(), netns="/run/netns/b", inode=8)
    assert not meant(wanted(), pod_uid="u-2")
    assert not meant(wanted(), netns="", inode=0, pod_uid="u-2")


def test_a_runtime_that_knows_no_pods_is_believed() -> None:
    assert meant(wanted(podUID=""), pod_uid="u-1")
    assert meant(wanted(), pod_uid="")


@pytest.mark.parametrize("recorded", [None, {}, wanted(state="released"), {"state": 3}])
def test_where_nothing_is_wanted_nothing_can_be_spared(recorded: Any) -> None:
    assert meant(recorded, netns="/x", inode=9, pod_uid="z")
    assert judge(recorded) == NEW


def test_an_add_finds_what_it_finds() -> None:
    assert judge(wanted()) == AGAIN
    assert judge(wanted(), netns="/proc/9/ns/net") == AGAIN
    assert judge(wanted(), netns="/run/netns/b", inode=8) == TAKEN
    assert judge(wanted(), pod_uid="u-2") == TAKEN
    assert judge(wanted(), alive=False, netns="/run/netns/b", inode=8) == NEW
    assert judge(wanted(netnsInode=0)) == AGAIN


names = st.sampled_from(["/run/netns/a", "/run/netns/b", "/var/run/netns/a", "/proc/1/ns/net"])
uids = st.sampled_from(["", "u-1", "u-2"])
inodes = st.integers(1, 3)
recordings = st.fixed_dictionaries(
    {"state": st.just("wanted"), "netns": names, "netnsInode": inodes, "podUID": uids}
)


@given(recordings, names, inodes, uids)
def test_a_del_frees_no_living_namespace_but_its_own(
    recorded: dict[str, Any], netns: str, inode: int, uid: str
) -> None:
    """While both namespaces live, their inodes are what they are."""
    if inode != recorded["netnsInode"]:
        assert not meant(recorded, netns, inode, uid)


@given(recordings, uids)
def test_the_del_of_an_add_is_always_meant(recorded: dict[str, Any], uid: str) -> None:
    netns, inode, own = recorded["netns"], recorded["netnsInode"], recorded["podUID"]
    for there, path in ((inode, netns), (0, netns), (0, "")):
        assert meant(recorded, path, there, own)
        assert meant(recorded, path, there, uid) == (uid in ("", own) or not own)


@given(recordings, names, inodes, uids)
def test_an_add_takes_nothing_from_a_living_sandbox(
    recorded: dict[str, Any], netns: str, inode: int, uid: str
) -> None:
    found = judge(recorded, netns=netns, inode=inode, pod_uid=uid)
    assert found in (AGAIN, TAKEN)
    if found == AGAIN:
        assert inode == recorded["netnsInode"]


@given(
    st.dictionaries(
        st.sampled_from(["state", "netns", "netnsInode", "podUID"]),
        st.none() | st.integers() | st.text(max_size=3) | st.just("wanted") | st.lists(st.none()),
    )
)
def test_a_garbled_record_is_judged_too(recorded: dict[str, Any]) -> None:
    assert meant(recorded) in (True, False)
    assert judge(recorded) in (NEW, AGAIN, TAKEN)
