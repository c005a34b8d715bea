"""Requests and answers, held against pyroute2's own."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import namespace
from drift_injection import run

from lab import netns
from reconciler.targets.netlink import message, tables
from reconciler.targets.netlink.rtnetlink import Rtnetlink
from reconciler.targets.netlink.tables import (
    ADDRESSES,
    AF,
    LINKS,
    NEIGHBOURS,
    ROUTES,
    RULES,
    Attributes,
    Table,
)

MAC = "02:aa:00:00:00:01"
PEER = (("IFLA_IFNAME", "eth0"), ("IFLA_ADDRESS", MAC), ("IFLA_MTU", 9001), ("IFLA_NET_NS_FD", 7))
VETH = (("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", (("VETH_INFO_PEER", PEER),)))

REQUESTS: list[tuple[Table, dict[str, int], Attributes]] = [
    (LINKS, {}, (("IFLA_EXT_MASK", 8),)),
    (LINKS, {}, (("IFLA_IFNAME", "nn0"), ("IFLA_MTU", 9001), ("IFLA_LINKINFO", VETH))),
    (LINKS, {"flags": 1, "change": 1}, (("IFLA_IFALIAS", "node-network:ä/eth0"),)),
    (
        ADDRESSES,
        {"family": 2, "prefixlen": 24, "index": 3},
        (("IFA_LOCAL", "10.0.1.9"), ("IFA_ADDRESS", "10.0.1.9"), ("IFA_FLAGS", 0x200)),
    ),
    (ADDRESSES, {"family": 10, "prefixlen": 128, "index": 3}, (("IFA_LOCAL", "2001:db8::9"),)),
    (
        NEIGHBOURS,
        {"family": 2, "ifindex": 3, "state": 0x80},
        (("NDA_DST", "10.0.1.9"), ("NDA_LLADDR", MAC)),
    ),
    (
        ROUTES,
        {"family": 2, "dst_len": 32, "proto": 201, "scope": 253, "type": 1},
        (("RTA_TABLE", 512), ("RTA_DST", "10.0.1.9"), ("RTA_OIF", 3), ("RTA_PREFSRC", "10.0.1.9")),
    ),
    (ROUTES, {"family": 10}, (("RTA_GATEWAY", "fe80::1"), ("RTA_PRIORITY", 1024))),
    (
        RULES,
        {"family": 2, "action": 1, "src_len": 32},
        (("FRA_PRIORITY", 512), ("FRA_PROTOCOL", 201), ("FRA_SRC", "10.0.1.9")),
    ),
]


def theirs(table: Table, fields: dict[str, int], attributes: Attributes) -> bytes:
    """What pyroute2 makes of a request."""

    def spelt(values: Attributes) -> list[tuple[str, Any]]:
        return [(n, {"attrs": spelt(v)} if isinstance(v, tuple) else v) for n, v in values]

    request = table.message()
    request["header"]["type"] = table.get
    request["header"]["flags"] = 1
    for name, value in fields.items():
        request[name] = value
    request["attrs"] = spelt(attributes)
    request.encode()
    return bytes(request.data)


@pytest.mark.parametrize(("table", "fields", "attributes"), REQUESTS)
def test_a_request_has_the_bytes_that_pyroute2_would_send(
    table: Table, fields: dict[str, int], attributes: Attributes
) -> None:
    body = tables.pack_entry(table, fields, attributes)
    ours = message.HEADER.pack(16 + len(body), table.get, message.NLM_F_REQUEST, 0, 0) + body
    assert ours == theirs(table, fields, attributes)


@pytest.mark.kernel
def test_an_answer_says_what_pyroute2_reads_in_it() -> None:
    with namespace("home") as home, namespace("pod") as pod, netns.inside(home):
        for command in (
            f"ip link add nn0 address {MAC} type veth peer name eth0 netns {netns.path(pod)}",
            "ip link add br0 type bridge",
            "ip link add port0 type veth; ip link set port0 master br0",
            "ip link set nn0 alias node-network:a/eth0; ip link set nn0 up; ip link set lo up",
            "ip address add 10.0.1.14/24 dev nn0 noprefixroute",
            "ip address add 2001:db8::9/64 dev nn0 nodad",
            "ip route add 10.0.9.0/24 dev nn0 table 1537 proto 201 metric 7 src 10.0.1.14",
            "ip route add 10.0.8.0/24 via 10.0.9.1 dev nn0 onlink tos 8 mtu 1300",
            "ip route add 2001:db8:9::/48 via fe80::1 dev nn0",
            f"ip neighbour add 10.0.1.9 dev nn0 lladdr {MAC} nud permanent",
            f"ip neighbour add 2001:db8::7 dev nn0 lladdr {MAC} nud permanent",
            "ip rule add from 10.0.1.0/24 to 10.0.2.9 iif lo fwmark 7/0xff goto 40000 priority 9",
            "ip rule add dport 80-90 ipproto tcp uidrange 1-9 lookup main suppress_prefixlength 0",
        ):
            run(home, command)
        with Rtnetlink() as host:
            read = [(t, {}) for t in (LINKS, ADDRESSES, NEIGHBOURS)]
            read += [(ROUTES, {"family": number}) for number in AF.values()]
            read += [(RULES, {"family": number}) for number in AF.values()]
            for table, fields in read:
                told = host.read(table, **fields)
                assert len(told) > 1
                for entry in told:
                    ours = {k: v for k, v in tables.decode_entry(table, entry).items() if v != ""}
                    assert ours == what_they_read(table, entry)


def what_they_read(table: Table, entry: bytes) -> dict[str, Any]:
    """What pyroute2 makes of an answer."""
    header = message.HEADER.pack(16 + len(entry), table.get, 0, 0, 0)
    answer = table.message(header + entry)
    answer.decode()
    prefix = len(table.message.prefix)
    facts = {name: answer[name] for name, _ in table.message.fields if not name.startswith("__")}
    for name, value in answer["attrs"]:
        short = name[prefix:].lower()
        if not table.attributes or short in table.attributes:
            facts[short] = value
    if "linkinfo" in facts:
        facts["linkinfo"] = facts["linkinfo"].get("kind")
    if "af_spec" in facts:
        settings = dict(facts["af_spec"]["attrs"])["AF_INET"]
        facts["af_spec"] = settings["accept_local"]
    if "metrics" in facts:
        metrics = facts["metrics"]["attrs"]
        facts["metrics"] = " ".join(f"{n[5:].lower()} {value}" for n, value in metrics)
    return {name: value for name, value in facts.items() if value is not None}


@pytest.mark.kernel
def test_an_alias_that_is_no_text_is_read_nevertheless() -> None:
    with namespace("home") as home, netns.inside(home):
        assert run(home, "ip link set lo alias \"$(printf 'a\\377b')\"")
        with Rtnetlink() as host:
            (lo,) = host.dump(LINKS)
        assert lo["ifalias"] == "a\N{REPLACEMENT CHARACTER}b"
