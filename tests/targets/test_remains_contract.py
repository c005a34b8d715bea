"""What the stock plugin leaves is recognised in a real kernel, and goes; what is near it stays."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import wild
from builders import eni
from conftest import namespace

from lab import netns, stock
from lab.stock import Connmark, Iptables, StockEni, StockNode, StockPod
from reconciler.core.attachment import AttachmentKey
from reconciler.diagnostics.stock_objects import (
    IptablesChain,
    IptablesRule,
    Leftover,
    StockRoute,
    StockRule,
    StockTable,
)
from reconciler.diagnostics.stock_plugin import recognise
from reconciler.engine.plan import Change, Verb
from reconciler.migration import takeover
from reconciler.targets.iptables import programs
from reconciler.targets.netlink.ruleset import Nfnetlink
from reconciler.targets.stock_plugin import StockPluginTarget

pytestmark = pytest.mark.kernel

SUBNET = IPv4Network("10.0.1.0/24")
ENIS = (
    StockEni(0, "eth0", IPv4Address("10.0.1.10"), SUBNET),
    StockEni(1, "eth1", IPv4Address("10.0.1.30"), SUBNET),
)
FACTS = (eni(0), eni(1))
LINKS = {e.mac: f"eth{e.device_index}" for e in FACTS}

FOREIGN_RULES = (
    "priority 512 to 10.0.1.0/24 lookup main protocol 0",  # no single address
    "priority 512 to 10.9.9.9 lookup 77 protocol 0",  # another table
    "priority 512 to 10.9.9.8 lookup main protocol 99",  # another maker
    "priority 512 from 10.9.9.7 to 10.9.9.6 lookup main protocol 0",
    "priority 512 not to 10.9.9.5 lookup main protocol 0",
    "priority 512 to 10.9.9.4 ipproto tcp lookup main protocol 0",
    "priority 513 to 10.9.9.3 lookup main protocol 0",
    "priority 1024 fwmark 0x80/0xff lookup main protocol 201",  # ours
    "priority 1024 fwmark 0x80/0x80 lookup 9 protocol 0",
    "priority 1536 from 10.0.1.31 lookup main protocol 0",
    "priority 1536 from 10.0.1.0/24 lookup 2 protocol 0",
    "priority 1536 iif eth0 from 10.0.1.77 lookup 2 protocol 0",
    "priority 1537 fwmark 0x1/0xff lookup 1537 protocol 201",  # ours
    "priority 32765 from 10.0.1.30 lookup 1537 protocol 201",  # ours
    "priority 32765 from 10.0.1.30 lookup 200 protocol 0",
)
FOREIGN_ROUTES = (
    "10.7.7.7 dev eth0 scope link",  # a host route over no pod's link
    "10.7.7.8 via 10.0.1.1 dev eth0",
    "10.7.7.0/24 dev eth1 scope link table 2",
    "default via 10.0.1.9 dev eth1 table 3 onlink",
    "10.0.1.11 dev eth0 scope link table 512 proto 201",
)
FOREIGN_FILTERS = (
    "*nat",
    ":KUBE-SERVICES - [0:0]",
    ":AWS-SNAT-CHAIN-X - [0:0]",
    "-A PREROUTING -j KUBE-SERVICES",
    '-A POSTROUTING -m comment --comment "AWS SNAT CHAIN" -j MASQUERADE',
    '-A KUBE-SERVICES -m comment --comment "AWS, CONNMARK" -j CONNMARK --restore-mark',
    "COMMIT",
    "*mangle",
    '-A PREROUTING -m comment --comment "not AWS, primary ENI" -j CONNMARK --restore-mark',
    '-A OUTPUT -m comment --comment "AWS, primary ENI" -j CONNMARK --restore-mark',
    "COMMIT",
)


def run(*argv: str, text: str = "") -> str:
    done = subprocess.run(argv, input=text, capture_output=True, text=True)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout


def ip(*words: str) -> str:
    return run("ip", *words)


@pytest.fixture
def links(home: str) -> str:
    """Two ENIs' links."""
    for one in FACTS:
        name = LINKS[one.mac]
        ip("link", "add", name, "address", one.mac, "type", "veth", "peer", f"p{name}")
        ip("link", "set", f"p{name}", "up")
        ip("link", "set", name, "up")
    ip("address", "add", "10.0.1.10/24", "dev", "eth0")
    return home


@pytest.fixture
def pods() -> Iterator[tuple[StockPod, ...]]:
    with namespace("pod") as a, namespace("pod") as b:
        yield (
            StockPod("default", "a", IPv4Address("10.0.1.11"), a),
            StockPod("default", "b", IPv4Address("10.0.1.31"), b, device=1),
        )


def world() -> list[str]:
    """Everything of the host, as the tools print it."""
    return [
        *ip("-4", "-N", "rule").splitlines(),
        *ip("-4", "-N", "route", "show", "table", "all").splitlines(),
        *(x for x in run("iptables-nft-save").splitlines() if not x.startswith("#")),
        *run("nft", "list", "tables").splitlines(),
    ]


def recognised(remains: StockPluginTarget) -> frozenset[Leftover]:
    return recognise(remains.observe(), FACTS, LINKS)


def lay_foreign() -> None:
    for rule in FOREIGN_RULES:
        ip("rule", "add", *rule.split())
    for route in FOREIGN_ROUTES:
        ip("route", "add", *route.split())
    run("iptables-nft-restore", "--noflush", text="\n".join(FOREIGN_FILTERS) + "\n")
    run("nft", "add", "table", "inet", "aws-cni")


@pytest.mark.parametrize(
    ("backend", "connmark"),
    [(Iptables.NFT, None), (Iptables.NFT, Connmark.IPTABLES), (Iptables.LEGACY, None)],
)
def test_all_of_the_stock_plugin_goes_and_nothing_else(
    links: str,
    pods: tuple[StockPod, ...],
    backend: Iptables,
    connmark: Connmark | None,
    tmp_path: Path,
) -> None:
    """Laid over what others have, recognised, removed: what is left is what others have."""
    lay_foreign()
    for eni_ in ENIS[1:]:
        ip("address", "add", f"{eni_.address}/24", "dev", eni_.link, "noprefixroute")
        ip("address", "delete", f"{eni_.address}/24", "dev", eni_.link)
    before = world()
    assert recognised(StockPluginTarget(tmp_path)) == frozenset()
    node = StockNode(
        ENIS,
        pods,
        exclude_cidrs=(ip_network("10.100.0.0/16"),),
        service_cidrs=(ip_network("172.20.0.0/16"),),
        iptables=backend,
        connmark=connmark,
    )
    stock.apply(links, stock.layout(node))
    remains = StockPluginTarget(tmp_path)
    found = recognised(remains)
    assert {type(o) for o in found} >= {StockRule, StockRoute, IptablesRule, IptablesChain}
    assert (StockTable() in found) == (node.marks_by is Connmark.NFT)
    expected = {
        StockRule(512, 254, destination=ip_network("10.0.1.11/32")),
        StockRule(1024, 254, mark=0x80, mask=0x80),
        StockRule(1535, 254, destination=ip_network("172.20.0.0/16")),
        StockRule(1536, 2, source=ip_network("10.0.1.31/32")),
        StockRule(32765, 2, source=ip_network("10.0.1.30/32")),
        StockRoute(254, ip_network("10.0.1.31/32"), pods[1].veth),
        StockRoute(2, ip_network("10.0.1.1/32"), "eth1"),
        StockRoute(2, ip_network("0.0.0.0/0"), "eth1", ip_address("10.0.1.1")),
        IptablesChain(str(backend), "nat", "AWS-SNAT-CHAIN-0"),
        IptablesRule(
            str(backend),
            "nat",
            "POSTROUTING",
            '-m comment --comment "AWS SNAT CHAIN" -j AWS-SNAT-CHAIN-0',
        ),
    }
    assert expected <= found
    asked = takeover.Retirement((), FACTS, LINKS)
    plan = takeover.plan(asked, remains.observe())
    assert {a.object for a in plan.actions if isinstance(a, Change)} == found
    assert remains.apply(plan.actions) == ()  # type: ignore[arg-type]
    assert recognised(remains) == frozenset()
    assert remains.apply(plan.actions[-3:]) == ()  # type: ignore[arg-type]  # gone is gone
    left = [x for x in world() if not _is_settling(x)]
    assert sorted(set(left)) == sorted({x for x in before if not _is_settling(x)})
    if backend is Iptables.LEGACY:
        assert "AWS" not in run("iptables-legacy-save")


def _is_settling(line: str) -> bool:
    """What an ENI's address brings by itself, or is a counter or an empty table."""
    return "table 255" in line or line.startswith((":", "*", "COMMIT"))


def test_the_commands_it_prints_do_what_it_does(links: str, pods: Any, tmp_path: Path) -> None:
    """An operator who types the plan gets the same."""
    stock.apply(links, stock.layout(StockNode(ENIS, pods)))
    remains = StockPluginTarget(tmp_path)
    asked = takeover.Retirement((), FACTS, LINKS)
    for action in takeover.plan(asked, remains.observe()).actions:
        run("bash", "-ec", str(action))
    assert recognised(remains) == frozenset()


def test_a_rule_that_the_kernel_would_mistake_for_another_is_refused(
    links: str, pods: Any, tmp_path: Path
) -> None:
    foreign = "priority 1536 iif eth0 from 10.0.1.31 lookup 2 protocol 0"
    ip("rule", "add", *foreign.split())
    stock.apply(links, stock.layout(StockNode(ENIS, pods)))
    remains = StockPluginTarget(tmp_path)
    asked = takeover.Retirement((), FACTS, LINKS)
    plan = takeover.plan(asked, remains.observe())
    (refusal,) = plan.refusals
    assert (refusal.reason, "iif" in refusal.message.lower()) == ("RuleHidden", True)
    assert remains.apply(plan.actions) == ()  # type: ignore[arg-type]
    left = [r for r in ip("rule").splitlines() if "1536" in r]
    assert sorted("iif" in r for r in left) == [False, True]
    ip("rule", "delete", *foreign.split())
    again = takeover.plan(asked, remains.observe())
    assert (len(again.actions), again.refusals) == (1, ())


def test_both_ends_of_a_pods_link_are_found(links: str, pods: Any, tmp_path: Path) -> None:
    stock.apply(links, stock.layout(StockNode(ENIS, pods)))
    found = StockPluginTarget(tmp_path).find_ends([p.veth for p in pods] + ["enilost"])
    assert found.keys() == {p.veth for p in pods}
    for one in pods:
        end, path = found[one.veth], netns.path(one.netns)
        assert end.netns == f"{path}@{path.stat().st_ino}"
        assert (end.name, end.host_mac) == ("eth0", one.mac)
        with netns.inside(one.netns):
            assert end.mac == json.loads(ip("-j", "link", "show", "eth0"))[0]["address"]


def test_a_namespace_that_only_a_process_holds_is_found(links: str, tmp_path: Path) -> None:
    """Not every runtime mounts it (cri-dockerd does not)."""
    process = subprocess.Popen(["unshare", "--net", "sleep", "60"])
    try:
        path = Path(f"/proc/{process.pid}/ns/net")
        own = Path("/proc/self/ns/net").stat().st_ino
        while path.stat().st_ino in (own, Path(f"/run/netns/{links}").stat().st_ino):
            threading.Event().wait(0.01)
        ip(
            "link",
            "add",
            "eni0123456789a",
            "type",
            "veth",
            "peer",
            "eth0",
            "netns",
            str(process.pid),
        )
        (end,) = StockPluginTarget(tmp_path).find_ends(["eni0123456789a"]).values()
        assert end.netns == f"{path}@{path.stat().st_ino}"
    finally:
        process.kill()
        process.wait()


def test_the_checkpoint_is_read_and_a_wrong_one_says_why(home: str, tmp_path: Path) -> None:
    one = StockPod("default", "a", IPv4Address("10.0.1.11"), "x", container_id="c0ffee")
    path = tmp_path / "ipam.json"
    seen = StockPluginTarget(tmp_path).observe()
    assert (dict(seen.allocations), "FileNotFoundError" in seen.unread) == ({}, True)
    stock.write_checkpoint([one], path)
    seen = StockPluginTarget(tmp_path).observe()
    (allocation,) = seen.allocations.values()
    assert allocation.key == AttachmentKey("c0ffee", "eth0")
    assert (allocation.address, allocation.pod) == (one.address, "default/a")
    body = json.loads(path.read_text())
    for wrong in (
        "{",
        "[]",
        json.dumps(body | {"version": "vpc-cni-ipam/2"}),
        json.dumps(body | {"allocations": [body["allocations"][0] | {"containerID": "../x"}]}),
        json.dumps(body | {"allocations": [{"ipv4": "10.0.1.11"}]}),
    ):
        path.write_text(wrong)
        seen = StockPluginTarget(tmp_path).observe()
        assert (dict(seen.allocations), str(path) in seen.unread) == ({}, True), wrong


def test_its_daemon_runs_while_it_accepts_connections(home: str, tmp_path: Path) -> None:
    remains = StockPluginTarget(tmp_path)
    assert not remains.observe().running
    path = str(tmp_path / "ipamd.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        assert remains.observe().running
    assert not remains.observe().running  # the file is still there


def test_tables_without_a_program_to_read_them_are_named(
    links: str, pods: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock.apply(links, stock.layout(StockNode(ENIS, pods)))
    monkeypatch.setenv("PATH", str(tmp_path))
    remains = StockPluginTarget(tmp_path)
    seen = remains.observe()
    assert dict(seen.unlisted) == {
        ("nft", table): "there is no iptables-nft-save" for table in programs.TABLES
    }
    plan = takeover.plan(takeover.Retirement((), FACTS, LINKS), seen)
    assert (plan.actions, [r.reason for r in plan.refusals]) == ((), ["IptablesUnreadable"])


def test_looking_makes_no_legacy_table(home: str, tmp_path: Path) -> None:
    """A table of NAT that is only looked at would cost every packet a hook."""
    names = Path("/proc/thread-self/net/ip_tables_names")
    before = names.read_text() if names.exists() else ""
    StockPluginTarget(tmp_path).observe()
    assert (names.read_text() if names.exists() else "") == before == ""


def test_a_removal_that_is_refused_is_reported_by_its_command(home: str, tmp_path: Path) -> None:
    gone = IptablesRule("nft", "nat", "POSTROUTING", "-j AWS-SNAT-CHAIN-0")
    (failure,) = StockPluginTarget(tmp_path).apply([Change(Verb.DELETE, gone, "test")])
    assert failure.action == "iptables-nft -t nat -D POSTROUTING -j AWS-SNAT-CHAIN-0"
    assert failure.reason == "TransactionRefused"


def test_without_a_trace_of_the_stock_plugin_no_program_lists_iptables(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 10,000 services it would take seconds of each of the first passes."""
    many = "".join(f":KUBE-SVC-{n} - [0:0]\n" for n in range(300))
    run("iptables-nft-restore", "--noflush", text=f"*nat\n{many}COMMIT\n")
    monkeypatch.setattr(programs, "_list", lambda *_: pytest.fail("listed"))
    seen = StockPluginTarget(tmp_path).observe()
    assert (dict(seen.saved), dict(seen.unlisted)) == ({}, {})
    assert "nat" in seen.tables


def test_of_a_table_only_what_may_be_the_stock_plugins_is_kept(home: str, tmp_path: Path) -> None:
    """And a comment that is no text, or has no end of its quotes, hides nothing."""
    chains = "".join(f":KUBE-SVC-{n} - [0:0]\n" for n in range(300))
    rules = '-A PREROUTING -m comment --comment "AWS \\" x" -j ACCEPT\n'
    rules += "-A POSTROUTING -j AWS-SNAT-CHAIN-0\n"
    text = f"*nat\n:AWS-SNAT-CHAIN-0 - [0:0]\n{chains}{rules}COMMIT\n"
    run("iptables-nft-restore", "--noflush", text=text)
    wild.make_rule(Nfnetlink(), b"nat", b"PREROUTING", comment=b"AWS \xff")
    seen = StockPluginTarget(tmp_path).observe()
    assert len(seen.saved["nft", "nat"]) < 6
    found = takeover.plan(takeover.Retirement((), FACTS, LINKS), seen).actions
    assert {type(a.object) for a in found} == {IptablesChain, IptablesRule}  # type: ignore[attr-defined]


def test_a_table_with_too_many_lines_is_not_read_and_said_so(home: str) -> None:
    many = "".join(f":KUBE-SVC-{n} - [0:0]\n" for n in range(300))
    run("iptables-nft-restore", "--noflush", text=f"*nat\n{many}COMMIT\n")
    saved, unlisted = programs.Iptables().observe({"nat"}, limit=100)
    assert dict(saved) == {}
    assert dict(unlisted) == {("nft", "nat"): "it has more than 100 lines"}


def test_a_program_that_never_ends_is_ended(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "endless"
    program.write_text("#!/bin/sh\nprintf 'x'; exec sleep 3600\n")
    program.chmod(0o755)
    monkeypatch.setattr(programs, "TIMEOUT_S", 0.1)
    assert programs._list([str(program)], b"", 9) == ((), f"{program} ended with -9")


@pytest.mark.parametrize("what", ["fifo", "bytes", "large", "nested", "directory"])
def test_whatever_stands_in_the_checkpoints_place_is_said_to_be_unreadable(
    home: str, tmp_path: Path, what: str
) -> None:
    path = tmp_path / "ipam.json"
    match what:
        case "fifo":
            os.mkfifo(path)
        case "bytes":
            path.write_bytes(bytes(range(256)))
        case "large":
            path.write_bytes(b" " * (1 << 23))
        case "nested":
            path.write_text("[" * 100_000)
        case "directory":
            path.mkdir()
    seen = StockPluginTarget(tmp_path).observe()
    assert dict(seen.allocations) == {}
    assert "cannot be read" in seen.unread
