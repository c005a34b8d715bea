"""CHECK, GC, STATUS and sandboxes that follow each other, on a node that is really there."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from waiting import until

from lab import netns, pod
from lab.pod import Pod, PodError
from lab.traffic import Receiver, probe
from reconciler.core.attachment import Attachment, AttachmentKey
from reconciler.errors import Issue
from reconciler.node.passes import LocalNode
from reconciler.targets.state.directory import StateDirectory
from schemas.load import load

pytestmark = pytest.mark.lab

VPC_HOST = "10.0.9.10"


def call(cluster: Any, one: Pod, verb: str, **options: Any) -> Any:
    return pod.call(cluster.lab, one.node, one.name, verb, **options)


def check(cluster: Any, one: Pod) -> None:
    call(cluster, one, "CHECK", config={"prevResult": one.result})


def refused(cluster: Any, one: Pod, verb: str, **options: Any) -> dict[str, Any]:
    with pytest.raises(PodError) as caught:
        call(cluster, one, verb, **options)
    return caught.value.error


def listed(cluster: Any, *pods: Pod) -> list[dict[str, str]]:
    return [
        {"containerID": f"{cluster.lab.names.lab}-{one.name}", "ifname": "eth0"} for one in pods
    ]


def inside(one: Pod, *words: str) -> Callable[[Any], None]:
    return lambda cluster: cluster.ip("-n", one.namespace, *words)


def breakages(one: Pod) -> dict[str, Callable[[Any], Any]]:
    """What can be broken of a pod, by hand, each by the name under which CHECK tells it."""
    veth = one.result["interfaces"][0]["name"]
    address = one.address
    host_mac = one.result["interfaces"][0]["mac"]

    def nft(*words: str) -> Callable[[Any], None]:
        def break_it(cluster: Any) -> None:
            done = cluster.lab.run("node1", ["nft", *words])
            assert done.returncode == 0, done.stderr

        return break_it

    return {
        f"veth {veth}": lambda c: c.ip("link", "set", veth, "down"),
        f"veth {veth} ": lambda c: c.ip("link", "set", veth, "mtu", "1400"),
        f"veth {veth}  ": lambda c: c.ip("link", "set", veth, "alias", "mine"),
        "pod-link": inside(one, "link", "set", "eth0", "mtu", "1400"),
        "pod-link ": inside(one, "link", "set", "eth0", "down"),
        "address": inside(one, "address", "delete", f"{address}/32", "dev", "eth0"),
        "neighbour": inside(one, "neighbour", "delete", "169.254.1.1", "dev", "eth0"),
        "neighbour ": inside(
            one,
            "neighbour",
            "replace",
            "169.254.1.1",
            "lladdr",
            "02:00:00:00:00:01",
            "dev",
            "eth0",
        ),
        "route": inside(one, "route", "delete", "default"),
        "route ": lambda c: c.ip("route", "delete", f"{address}/32", "table", "512"),
        "nft-element": nft(
            "delete", "element", "inet", "node_network", "pods_ipv4", f"{{ {address} }}"
        ),
        f"{host_mac}": lambda c: c.ip("link", "set", veth, "address", "02:00:00:00:00:01"),
    }


def test_check_names_each_object_that_was_broken_by_hand(cluster: Any) -> None:
    """Seen by a node whose reconciler does not run, so that nobody mends it meanwhile."""
    one = cluster.add()
    cluster.stop()
    try:
        told = list(break_one_by_one(cluster, one))
    finally:
        cluster.launch()
        until(cluster.answers, "an answer")
        cluster.delete(one)  # what it lacks of its own is nobody's to put back
        until(cluster.is_settled, cluster.log)
    assert [text for name, text in told if name.strip() not in text] == []


def break_one_by_one(cluster: Any, one: Pod) -> Iterator[tuple[str, str]]:
    """Yield what was broken, and what CHECK says of it."""
    key = AttachmentKey(f"{cluster.lab.names.lab}-{one.name}", "eth0")
    text = cluster.config.read_text() + "pods: {repair: all}\n"
    document = load(text, str(cluster.config))
    home = cluster.lab.names.namespace("node1")
    with netns.inside(home):
        node = LocalNode(StateDirectory(cluster.state()))
        node.pool.learn()
        node.kernel_pass(document)
        assert isinstance(node.check(key), Attachment)
    for name, break_it in breakages(one).items():
        break_it(cluster)
        with netns.inside(home):
            found = node.check(key)
            assert isinstance(found, Issue), f"{name}: nothing was seen"
            assert found.reason == "Differs"
            node.kernel_pass(document)
            assert isinstance(node.check(key), Attachment), f"{name}: not mended"
        yield name, f"{found.subject}; {found.message}"


def test_check_waits_for_what_the_reconciler_mends_and_says_what_it_cannot(cluster: Any) -> None:
    with cluster.pods(1) as (one,), Receiver(cluster.lab.names.namespace("vpchost")):
        check(cluster, one)
        cluster.ip("-n", one.namespace, "route", "delete", "default")
        check(cluster, one)
        assert probe(one.namespace, VPC_HOST).source == one.address
        other = {**one.result, "ips": [{"address": "10.0.1.99/32", "interface": 1}]}
        error = refused(cluster, one, "CHECK", config={"prevResult": other})
        assert (error["code"], error["details"]) == (
            104,
            f"address {one.address}/32: prevResult does not have it",
        )
        route = (f"{one.address}/32", "dev", "lo", "table", "512")
        cluster.ip("route", "replace", *route, "proto", "static")
        try:
            error = refused(cluster, one, "CHECK", config={"prevResult": one.result})
            assert error["code"] == 103
            assert one.address in error["details"]
            assert "ForeignObject" in error["msg"]
        finally:
            cluster.ip("route", "delete", *route, "proto", "static")
        check(cluster, one)


def test_check_of_a_pod_that_was_never_added_is_of_an_unknown_container(cluster: Any) -> None:
    namespace = cluster.lab.names.namespace("pod-nobody")
    netns.make(namespace)
    try:
        nobody = Pod(cluster.lab, "node1", "nobody", namespace, {})
        error = refused(cluster, nobody, "CHECK", config={"prevResult": {}})
        assert error["code"] == 3
    finally:
        netns.remove(namespace)


def test_gc_releases_what_the_runtime_does_not_list_also_with_nobody_there(cluster: Any) -> None:
    with cluster.pods(3) as (one, two, three):
        kept = {"cni.dev/valid-attachments": listed(cluster, one, two)}
        call(cluster, one, "GC", config=kept)
        until(lambda: not cluster.holds(three), "the release")
        assert call(cluster, one, "STATUS") == {}
        cluster.stop()
        assert refused(cluster, one, "STATUS")["code"] == 50
        call(cluster, one, "GC", config={"cni.dev/valid-attachments": listed(cluster, one)})
        call(cluster, one, "GC", config={"name": "another", "cni.dev/valid-attachments": []})
        assert refused(cluster, one, "GC")["code"] == 7
        cluster.start()
        until(lambda: not cluster.holds(two), "the release")
        assert cluster.holds(one)
        with Receiver(cluster.lab.names.namespace("vpchost")):
            assert probe(one.namespace, VPC_HOST).source == one.address


def test_a_second_add_is_refused_and_takes_nothing_from_the_first(cluster: Any) -> None:
    with cluster.pods(1) as (one,), Receiver(cluster.lab.names.namespace("vpchost")):
        assert refused(cluster, one, "ADD")["code"] == 101
        cluster.stop()
        cluster.start()
        assert refused(cluster, one, "ADD")["code"] == 101
        assert probe(one.namespace, VPC_HOST).source == one.address
        check(cluster, one)


def test_a_late_del_of_an_older_sandbox_frees_nothing(cluster: Any) -> None:
    with cluster.pods(1) as (one,), Receiver(cluster.lab.names.namespace("vpchost")):
        for environ in (
            {"CNI_NETNS": "/run/netns/gone"},
            {"CNI_NETNS": str(netns.path(cluster.lab.names.namespace("vpchost")))},
        ):
            call(cluster, one, "DEL", environ=environ)
        cluster.command("node1", "status")
        assert [r["state"] for r in cluster.records("intents")] == ["wanted"]
        assert probe(one.namespace, VPC_HOST).source == one.address


def test_a_container_started_again_works_though_its_del_was_not_worked_off(cluster: Any) -> None:
    """As podman stop and podman start: the same container ID in another namespace."""
    with cluster.pods(1) as (one,), Receiver(cluster.lab.names.namespace("vpchost")):
        process = cluster._running["node1"]
        process.send_signal(signal.SIGSTOP)
        try:
            call(cluster, one, "DEL")
            netns.remove(one.namespace)
            netns.make(one.namespace)
        finally:
            process.send_signal(signal.SIGCONT)
        again = replace(one, result=call(cluster, one, "ADD"))
        assert probe(again.namespace, VPC_HOST).source == again.address
        check(cluster, again)
        assert len(cluster.records("attachments")) == 1


def test_an_interface_that_is_there_already_is_an_error_and_is_left_alone(cluster: Any) -> None:
    name = f"p{next(cluster._numbers)}"
    namespace = cluster.lab.names.namespace(f"pod-{name}")
    netns.make(namespace)
    try:
        cluster.ip("-n", namespace, "link", "add", "eth0", "type", "veth", "peer", "name", "other")
        one = Pod(cluster.lab, "node1", name, namespace, {})
        assert refused(cluster, one, "ADD")["code"] == 102
        until(lambda: not cluster.holds(one), "the release")
        links = json.loads(cluster.ip("-n", namespace, "-j", "link"))
        assert {link["ifname"] for link in links} == {"lo", "eth0", "other"}
    finally:
        netns.remove(namespace)


def test_an_intent_that_nobody_understands_keeps_no_pod_waiting(cluster: Any) -> None:
    bad = cluster.state() / "intents" / "bad:eth0.json"
    bad.write_text('{"version": 1, "containerID": "bad", "state": "who knows"}')
    try:
        with cluster.pods(1) as (one,):
            assert one.address
            cluster.ip("rule", "delete", "priority", "1024")  # a reason to look at everything
            until(lambda: "bad:eth0.json" in json.dumps(cluster.status()["conditions"]), "it")
    finally:
        bad.unlink()
    cluster.ip("rule", "delete", "priority", "1024")
    until(lambda: not cluster.status()["conditions"], "calm")


def test_a_del_on_a_read_only_disk_is_remembered_and_worked_off_when_it_can_be(
    cluster: Any,
) -> None:
    one = cluster.add()
    veth = one.result["interfaces"][0]["name"]
    state = str(cluster.state())
    subprocess.run(["mount", "--bind", state, state], check=True)
    freeze = ["mount", "-o", "remount,bind,ro", state]
    try:
        # Not while the reconciler has a file open to write.
        until(lambda: subprocess.run(freeze, capture_output=True).returncode == 0, "read-only")
        call(cluster, one, "DEL")
        until(lambda: veth not in cluster.ip("link"), "the link's end")
        assert [r["state"] for r in cluster.records("intents")] == ["wanted"]
        assert len(cluster.records("attachments")) == 1, "its address is not free yet"
    finally:
        subprocess.run(["umount", "-l", state], check=True)
    until(lambda: not cluster.holds(one), "the release")
    netns.remove(one.namespace)


@pytest.mark.parametrize(
    "question",
    [
        b"",
        b"\n",
        b"[]\n",
        b"3\n",
        b'{"do": []}\n',
        b'{"do": "add"}\n',
        b'{"do": "del", "containerID": 3}\n',
        b'{"do": "check"}\n',
        b'{"do": "release"}\n',
        b'{"do": "release", "intent": {"version": 1, "state": "released", '
        b'"containerID": "../../x", "ifname": "y"}, "containerID": "x", "ifname": "y"}\n',
        b'{"do": "add", "containerID": "x", "ifname": "y", "budgetSeconds": 1e999}\n',
        b'{"do": "add", "containerID": "x", "ifname": "y", "budgetSeconds": "a"}\n',
        b"[" * 60_000 + b"\n",
        b"\xff\xfe\n",
        b"x" * 70_000,
    ],
    ids=lambda q: str(q[:30]),
)
def test_no_question_disturbs_the_reconciler(cluster: Any, question: bytes) -> None:
    until(lambda: not cluster.records("cooling"), "the end of the last pod's cooldown")
    before = sorted(cluster.state().rglob("*.json"))
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(5)
        s.connect(str(cluster.socket()))
        with suppress(BrokenPipeError):
            s.sendall(question)
            s.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            answer = json.loads(s.recv(65536))
            assert (answer["ok"], answer["code"]) == (False, 6)
    assert cluster.answers()
    assert "Traceback" not in cluster.log()
    assert sorted(cluster.state().rglob("*.json")) == before


def test_the_hosts_own_namespace_is_never_a_pods(cluster: Any) -> None:
    """Though the executable may be told that it runs inside of where it works."""
    own = str(netns.path(cluster.lab.names.namespace("node1")))
    one = Pod(cluster.lab, "node1", "host", own, {})
    before = cluster.ip("link")
    environ = {"CNI_NETNS": own, "CNI_NETNS_OVERRIDE": "1"}
    assert refused(cluster, one, "ADD", environ=environ)["code"] == 4
    assert cluster.ip("link") == before
    until(lambda: not cluster.holds(one), "the release")


def test_one_pods_start_is_followed_through_both_processes(cluster: Any, tmp_path: Any) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    name = f"p{next(cluster._numbers)}"
    namespace = cluster.lab.names.namespace(f"pod-{name}")
    netns.make(namespace)
    log = tmp_path / "cni.log"
    more = {
        "config": {"logFile": str(log)},
        "environ": {"TRACEPARENT": f"00-{trace}-b7ad6b7169203331-01"},
    }
    one = Pod(cluster.lab, "node1", name, namespace, {})
    until(cluster.is_settled, "nothing else going on")
    began = datetime.now(UTC)
    try:
        call(cluster, one, "ADD", **more)
        call(cluster, one, "DEL", **more)
    finally:
        netns.remove(namespace)
    (added, deleted) = log.read_text().splitlines()
    for line, verb in ((added, "ADD"), (deleted, "DEL")):
        assert f"verb={verb} " in line
        assert f"pod=default/{name} " in line
        assert f"trace={trace} " in line
        assert "code=0 " in line

    def told() -> list[str]:
        """Lines of what was said since then, whenever they were written."""
        lines = cluster.logged().rpartition("\n")[0].splitlines()
        return [x for x in lines if datetime.fromisoformat(x.split()[0]) >= began]

    until(lambda: len([x for x in told() if trace in x and name in x]) >= 2, "its two lines")
    until(lambda: not cluster.records("cooling"), "the end of the cooldown")
    assert [" ".join(x.split()[2:4]) for x in told()] == ["add answered", "del answered"]
