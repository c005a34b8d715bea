"""A node is taken over from amazon-vpc-cni-k8s while its pods talk: no connection is cut."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from lab import netns, pod, stock, stock_node
from lab.stock import Connmark, Iptables, StockNode, StockPod
from lab.traffic import PORT, Receiver, Stream, probe

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

INTERNET, VPC_HOST, NODE = "198.51.100.10", "10.0.9.10", "10.0.1.10"
SUBNET = IPv4Network("10.0.1.0/24")
PODS = (12, 10, 8)
"""Pods on the primary ENI and on each secondary one."""

SPARE = 2
"""Addresses of each ENI that no pod has."""

DOCUMENT = """\
apiVersion: node-network/v1alpha1
kind: NodeNetwork
warmPool: {addresses: {warm: 2, surplus: 8}, cooldown: 2s}
reconcile: {resync: 1s}
"""


@dataclass
class Stocked:
    """A node as the stock plugin left it, and the connections of its pods."""

    cluster: Any
    directory: Path
    node: StockNode
    streams: dict[str, Stream] = field(default_factory=dict)

    @property
    def pods(self) -> tuple[StockPod, ...]:
        return self.node.pods

    def name_of(self, one: StockPod) -> str:
        return one.name

    def ask_for_takeover(self) -> None:
        self.cluster.config.write_text(DOCUMENT + "takeOver: amazon-vpc-cni\n")

    def leave_alone(self) -> None:
        self.cluster.config.write_text(DOCUMENT)

    def tags(self) -> dict[str, dict[str, str]]:
        """Tags of the node's ENIs, by device."""
        found = self.cluster.aws("describe_network_interfaces")["NetworkInterfaces"]
        mine = {e["id"] for e in self.cluster.lab.enis("node1")}
        return {
            i["NetworkInterfaceId"]: {t["Key"]: t["Value"] for t in i["TagSet"]}
            for i in found
            if i["NetworkInterfaceId"] in mine
        }

    def leftovers(self) -> list[str]:
        """What is still the stock plugin's, read with other eyes than the reconciler's."""
        run = self.cluster.lab.run
        rules = run("node1", ["ip", "-4", "-N", "rule"]).stdout.splitlines()
        known = (r"^0:.*lookup 255", r"^3276[67]:.*lookup 25[34]", r"proto 201")
        left = [x for x in rules if not any(re.search(k, x) for k in known)]
        routes = run("node1", ["ip", "-4", "route", "show", "table", "all"]).stdout.splitlines()
        left += [
            x for x in routes if re.search(r"\beni[0-9a-f]{11}\b", x) and "proto 201" not in x
        ]
        left += [x for x in routes if re.search(r"table [2-9]\b", x)]
        for backend in ("nft", "legacy"):
            saved = run("node1", [f"iptables-{backend}-save"]).stdout
            left += [x for x in saved.splitlines() if "AWS" in x]
        left += [
            x for x in run("node1", ["nft", "list", "tables"]).stdout.splitlines() if "aws" in x
        ]
        left += [
            f"{eni} {key}"
            for eni, tags in self.tags().items()
            for key in tags
            if key.startswith(("node.k8s.amazonaws.com/", "eks:eni"))
        ]
        return left

    def see_it_taken(self, talk: Talk) -> None:
        """Wait until the node is ours, and for some talk after that."""
        until(self.cluster.answers, "an answer")
        until(
            self.is_taken,
            lambda: (
                f"{self.cluster.status()['conditions']} {self.leftovers()}\n{self.cluster.log()}"
            ),
            patience_s=60,
        )
        done = talk.rounds
        until(lambda: talk.rounds > done + 12, "more talk")

    def is_taken(self) -> bool:
        status = self.cluster.status()
        return bool(status["settled"]) and not status["conditions"] and not self.leftovers()


class Talk:
    """Every connection exchanges a line again and again, and each that fails is named."""

    def __init__(self, streams: dict[str, Stream]) -> None:
        self.cut: set[str] = set()
        self.rounds = 0
        self.longest_s = 0.0
        self._streams = streams
        self._over = threading.Event()
        names = sorted(streams)
        parts = [names[i::6] for i in range(6)]
        self._threads = [threading.Thread(target=self._talk, args=(p,)) for p in parts]

    def __enter__(self) -> Talk:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _talk(self, names: list[str]) -> None:
        while not self._over.is_set():
            for name in names:
                began = time.monotonic()
                if name not in self.cut and not self._streams[name].exchange(f"{name} {began}"):
                    self.cut.add(name)
                self.longest_s = max(self.longest_s, time.monotonic() - began)
            self.rounds += 1
            self._over.wait(0.2)  # often enough: what is cut stays cut


@contextmanager
def stocked(make_cluster: Any, tmp_path: Path, **choices: Any) -> Iterator[Stocked]:
    """A lab whose node1 is the stock plugin's, with pods that talk."""
    with make_cluster(tmp_path, types={"node1": "m5.xlarge"}) as cluster, ExitStack() as stack:
        node = stock_node.make(cluster.lab, "node1", PODS, spare=SPARE, **choices)
        pods = list(node.pods)
        lay_node_ports(cluster, pods)
        made = Stocked(cluster, cluster.lab.names.stock_plugin("node1"), node)
        made.leave_alone()
        made.streams = connect(cluster, pods, stack)
        cluster.lab.ask("forget")
        yield made


def connect(cluster: Any, pods: list[StockPod], stack: ExitStack) -> dict[str, Stream]:
    """Open connections of every kind: out, in, and between pods."""
    names = cluster.lab.names
    for part in ("internet", "vpchost"):
        stack.enter_context(Receiver(names.namespace(part)))
    for one in pods:
        stack.enter_context(Receiver(one.netns))
    wishes = {}
    for here, there in zip(pods, [*pods[1:], pods[0]], strict=True):
        wishes[f"{here.name} to the internet"] = (here.netns, INTERNET)
        wishes[f"{here.name} to a VPC host"] = (here.netns, VPC_HOST)
        wishes[f"{here.name} to {there.name}"] = (here.netns, str(there.address))
        wishes[f"a VPC host to {here.name}"] = (names.namespace("vpchost"), str(here.address))
        wishes[f"the node to {here.name}"] = (names.namespace("node1"), str(here.address))
    streams = {
        name: stack.enter_context(Stream(where, address))
        for name, (where, address) in wishes.items()
    }
    # The host's own, from a secondary ENI's address: what its table and rule at 32765 are for.
    for eni in cluster.lab.enis("node1")[1:]:
        node, source = names.namespace("node1"), eni["primary"]
        one = stack.enter_context(Stream(node, VPC_HOST, source=source))
        assert one.source == source
        streams[f"{source} of the node to a VPC host"] = one
    # From outside to a node port: kube-proxy sends it on, and the answer must leave by eth0.
    for port, pod_ in node_ports(pods).items():
        one = stack.enter_context(Stream(names.namespace("internet"), NODE, port))
        streams[f"the internet to {pod_.name} by its node port"] = one
    return streams


def node_ports(pods: list[StockPod]) -> dict[int, StockPod]:
    """A port for one pod of each ENI."""
    return {30000 + d: next(p for p in pods if p.device == d) for d in range(len(PODS))}


def lay_node_ports(cluster: Any, pods: list[StockPod]) -> None:
    """Translate destinations as kube-proxy does."""
    rules = [
        f"add rule ip kube-proxy nodeports tcp dport {port} fib daddr type local "
        f"dnat to {one.address}:{PORT}"
        for port, one in node_ports(pods).items()
    ]
    hook = "type nat hook prerouting priority dstnat;"
    lines = ["add table ip kube-proxy", f"add chain ip kube-proxy nodeports {{ {hook} }}", *rules]
    done = cluster.lab.run("node1", ["nft", "-f", "-"], input="\n".join(lines))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("iptables", "connmark"),
    [(Iptables.NFT, None), (Iptables.LEGACY, None), (Iptables.NFT, Connmark.IPTABLES)],
    ids=["nft", "legacy", "nft-iptables-connmark"],
)
def test_thirty_pods_are_taken_over_and_no_connection_is_cut(
    make_cluster: Any,
    tmp_path: Path,
    iptables: Iptables,
    connmark: Connmark | None,
) -> None:
    service = (IPv4Network("172.20.0.0/16"),)
    with stocked(
        make_cluster,
        tmp_path,
        iptables=iptables,
        connmark=connmark,
        service_cidrs=service,
    ) as old:
        cluster = old.cluster
        assert {s.source for n, s in old.streams.items() if n.endswith("to the internet")} == {
            NODE
        }
        old.ask_for_takeover()
        shown = cluster.diff()
        assert shown.returncode == 1, shown.stderr
        assert "MarkConflict" not in shown.stderr, "about what the plan itself removes"
        assert "RuleBeforeOurs" not in shown.stderr
        steps = shown.stdout
        for one in old.pods:
            assert f"bind {one.address} on " in steps
            assert f"record wanted intent {one.sandbox}/eth0" in steps
            assert f"alias node-network:{one.sandbox}/eth0" in steps
            assert f"ip route delete {one.address}/32 dev {one.veth}" in steps
            assert f"ip rule delete priority 512 to {one.address}/32 lookup main" in steps
            if one.device:
                table = one.device + 1
                assert f"priority 1536 from {one.address}/32 lookup {table}" in steps
        assert "ip rule delete priority 1024 fwmark 0x80/0x80 lookup main" in steps
        assert "ip rule delete priority 1535 to 172.20.0.0/16 lookup main" in steps
        assert f"iptables-{iptables} -t nat -D POSTROUTING" in steps
        assert f"iptables-{iptables} -t nat -X AWS-SNAT-CHAIN-0" in steps
        assert steps.count(f"iptables-{iptables} -t mangle -D PREROUTING") == 3
        assert ("nft delete table ip aws-cni" in steps) == (old.node.marks_by is Connmark.NFT)
        assert steps.count("aws ec2 create-tags") == len(PODS)
        before = old.leftovers()
        assert len(before) > 80
        with Talk(old.streams) as talk:
            until(lambda: talk.rounds > 6, "talk")
            assert old.leftovers() == before  # diff has changed nothing
            cluster.launch()
            old.see_it_taken(talk)
        assert talk.cut == set()
        assert cluster.lab.drops() == []
        until(lambda: cluster.diff().returncode == 0, lambda: cluster.diff().stdout)
        after = cluster.diff()
        assert (after.returncode, after.stdout) == (0, ""), after.stdout + after.stderr
        assert "foreign" not in after.stderr
        # New connections of the pods that stayed.
        for one in (old.pods[0], old.pods[-1]):
            assert probe(one.netns, INTERNET).source == NODE
            assert probe(one.netns, VPC_HOST).source == str(one.address)
        # A pod that is new, and one that goes.
        fresh = cluster.add()
        assert fresh.address not in {str(p.address) for p in old.pods}
        assert probe(fresh.namespace, INTERNET).source == NODE
        cluster.delete(fresh)
        leaver = old.pods[-1]
        pod.delete(cluster.lab, "node1", leaver.name)
        until(
            lambda: str(leaver.address) not in str(cluster.status()["attachments"]), "the release"
        )
        until(lambda: not cluster.records("cooling"), "cooldown")
        assert leaver.veth not in cluster.ip("link")
        assert str(leaver.address) not in cluster.ip("route", "show", "table", "all")
        assert cluster.lab.drops() == []


def test_unasked_what_is_there_is_named_and_its_pods_keep_their_addresses(
    make_cluster: Any, tmp_path: Path
) -> None:
    with stocked(make_cluster, tmp_path) as old:
        cluster = old.cluster
        before = old.leftovers()
        with Talk(old.streams) as talk:
            cluster.launch()
            until(cluster.answers, "an answer")
            until(lambda: cluster.status()["settled"], cluster.log)
            # Every address that no pod of the stock plugin's has, on the primary ENI or ours.
            fresh = [cluster.add() for _ in range(6)]
            done = talk.rounds
            until(lambda: talk.rounds > done + 6, "more talk")
        assert talk.cut == set()
        assert {one.address for one in fresh} & {str(p.address) for p in old.pods} == set()
        for one in fresh:
            assert probe(one.namespace, INTERNET).source == NODE
        conditions = cluster.status()["conditions"]
        (told,) = [c for c in conditions if c["reason"] == "StockPluginPresent"]
        assert "set takeOver: amazon-vpc-cni" in told["text"]
        assert all(eni in told["text"] for eni in list(old.tags())[1:3])
        assert old.leftovers() == before
        until(lambda: cluster.diff().stdout == "", lambda: cluster.diff().stdout, patience_s=30)
        shown = cluster.diff()
        assert shown.returncode == 0  # what is foreign does not differ from anything
        for one in old.pods:
            assert f"ip rule delete priority 512 to {one.address}/32" in shown.stderr
        assert "StockPluginPresent" in shown.stderr
        body = json.loads(cluster.diff("node1", None, "-o", "json").stdout)
        assert len(body["foreign"]) > 80
        assert "StockPluginPresent" in [f["reason"] for f in body["findings"]]


def test_while_its_daemon_runs_nothing_is_taken_over_and_then_it_goes_on(
    make_cluster: Any, tmp_path: Path
) -> None:
    with stocked(make_cluster, tmp_path) as old:
        cluster = old.cluster
        old.ask_for_takeover()
        before = old.leftovers()
        with socket.socket(socket.AF_UNIX) as daemon:
            daemon.bind(str(old.directory / "ipamd.sock"))
            daemon.listen(4096)
            shown = cluster.diff()
            assert "StockPluginRunning" in shown.stdout
            cluster.launch()
            until(cluster.answers, "an answer")
            until(lambda: "StockPluginRunning" in str(cluster.status()["conditions"]), cluster.log)
            until(lambda: cluster.status()["settled"], cluster.log)
            assert old.leftovers() == before
            assert cluster.records("attachments") == []
        until(old.is_taken, lambda: f"{cluster.status()['conditions']}\n{cluster.log()}")
        assert len(cluster.records("attachments")) == len(old.pods)
        assert all(stream.exchange("still here") for stream in old.streams.values())


def test_a_pod_that_cannot_be_explained_keeps_everything_until_it_is_gone(
    make_cluster: Any, tmp_path: Path
) -> None:
    """A DEL for it could not be told, so it may not become ours; and without its own it is cut."""
    with stocked(make_cluster, tmp_path) as old:
        cluster = old.cluster
        lost = old.pods[0]
        stock.write_checkpoint(old.pods[1:], old.directory / "ipam.json")
        old.ask_for_takeover()
        cluster.launch()
        until(cluster.answers, "an answer")
        until(lambda: "StockPodUnknown" in str(cluster.status()["conditions"]), cluster.log)
        (told,) = [c for c in cluster.status()["conditions"] if c["reason"] == "StockPodUnknown"]
        assert lost.veth in told["subject"]
        assert str(lost.address) in told["subject"]
        kernel = [x for x in old.leftovers() if not x.startswith("eni-")]
        assert any(str(lost.address) in x for x in kernel)
        assert "AWS-SNAT-CHAIN-0" in str(kernel)
        assert all(stream.exchange("still here") for stream in old.streams.values())
        netns.remove(lost.netns)
        # Sockets of the test hold the namespace; its link goes when somebody deletes it.
        cluster.ip("link", "delete", lost.veth)
        until(old.is_taken, lambda: f"{cluster.status()['conditions']}\n{cluster.log()}")
        mine = {n: s for n, s in old.streams.items() if lost.name not in n}
        assert all(stream.exchange("still here") for stream in mine.values())


@pytest.mark.parametrize("delay_s", [0.2, 0.6])
def test_killed_at_any_moment_it_goes_on_where_it_was(
    make_cluster: Any, tmp_path: Path, delay_s: float
) -> None:
    with stocked(make_cluster, tmp_path) as old:
        cluster = old.cluster
        old.ask_for_takeover()
        with Talk(old.streams) as talk:
            for part in range(4):
                cluster.launch()
                threading.Event().wait(delay_s + part * 0.13)  # the moment is the point of it
                cluster.stop("node1", signal.SIGKILL)
            cluster.launch()
            old.see_it_taken(talk)
        assert talk.cut == set()
        assert cluster.lab.drops() == []
        until(lambda: cluster.diff().returncode == 0, lambda: cluster.diff().stdout)
        bound = {r["containerID"]: r["addresses"] for r in cluster.records("attachments")}
        assert bound == {p.sandbox: [str(p.address)] for p in old.pods}


def test_lost_records_of_a_pod_that_was_taken_over_are_rebuilt_without_cutting_it(
    make_cluster: Any, tmp_path: Path
) -> None:
    with stocked(make_cluster, tmp_path) as old:
        cluster = old.cluster
        old.ask_for_takeover()
        cluster.launch()
        until(cluster.answers, "an answer")
        until(old.is_taken, cluster.log, patience_s=60)
        cluster.stop()
        for kind in ("attachments", "intents"):
            for path in (cluster.state() / kind).iterdir():
                path.unlink()
        with Talk(old.streams) as talk:
            cluster.launch()
            until(cluster.answers, "an answer")
            until(lambda: len(cluster.records("attachments")) == len(old.pods), cluster.log)
            until(lambda: cluster.status()["settled"], cluster.log)
            done = talk.rounds
            until(lambda: talk.rounds > done + 6, "more talk")
        assert talk.cut == set()
        macs = {r["veth"]: r["macs"][0] for r in cluster.records("attachments")}
        assert macs == {p.veth: p.mac for p in old.pods}
