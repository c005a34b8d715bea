"""A lab comes up whole, nodes in it have their EC2 and metadata, and nothing of it stays."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import fork_server
from waiting import until

from lab import lifecycle, netns
from lab.lifecycle import Lab, LabError
from lab.topology import STATE, Names
from lab.traffic import Receiver, probe
from reconciler.cli.main import main

pytestmark = pytest.mark.lab

ASK_EC2 = """
import boto3, json, urllib.request as http
def imds(path, token):
    request = http.Request("http://169.254.169.254/latest/" + path)
    request.add_header("X-aws-ec2-metadata-token", token)
    return http.urlopen(request, timeout=5).read().decode()
put = http.Request("http://169.254.169.254/latest/api/token", method="PUT")
put.add_header("X-aws-ec2-metadata-token-ttl-seconds", "60")
token = http.urlopen(put, timeout=5).read().decode()
instance = imds("meta-data/instance-id", token)
session = boto3.Session()
ec2 = session.client("ec2", region_name=imds("meta-data/placement/region", token))
mine = [{"Name": "attachment.instance-id", "Values": [instance]}]
enis = ec2.describe_network_interfaces(Filters=mine)["NetworkInterfaces"]
print(json.dumps({
    "instance": instance,
    "mac": imds("meta-data/mac", token),
    "credentials": session.get_credentials().method,
    "enis": [(e["NetworkInterfaceId"], e["MacAddress"], e["PrivateIpAddress"]) for e in enis],
}))
"""

IGNORE_SIGTERM = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(flush=True)
time.sleep(999)
"""

SLEEP_AND_EXEC = """
import os, sys, time
time.sleep(float(sys.argv[1]))
os.execvp(sys.argv[2], sys.argv[2:])
"""


# -- in a lab -----------------------------------------------------------------------------


@pytest.mark.parametrize("node", ["node1", "node2"])
def test_a_node_asks_metadata_who_it_is_and_ec2_for_its_enis(lab, node, monkeypatch):
    for setting in lifecycle.AMBIENT:
        monkeypatch.setenv(setting, "from-outside")
    done = lab.run(node, [sys.executable, "-c", ASK_EC2])
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    (eni,) = lab.enis(node)
    assert answer["instance"] == lab.ask("status")["instances"][node]
    assert answer["mac"] == eni["mac"]
    assert answer["credentials"] == "iam-role"
    assert answer["enis"] == [[eni["id"], eni["mac"], eni["primary"]]]


def test_attaching_an_eni_plugs_its_link_into_the_node_and_detaching_removes_it(lab, client):
    eni, attachment = _attach(lab, client)
    (link,) = json.loads(lab.run("node1", ["ip", "-j", "link", "show", "eth1"]).stdout)
    assert link["address"] == eni["MacAddress"]
    assert "UP" not in link["flags"]
    assert [e["device"] for e in lab.enis("node1")] == [0, 1]
    client.detach_network_interface(AttachmentId=attachment)
    assert "eth1" not in lab.run("node1", ["ip", "link"]).stdout
    client.delete_network_interface(NetworkInterfaceId=eni["NetworkInterfaceId"])
    assert [e["device"] for e in lab.enis("node1")] == [0]


def test_addresses_given_and_taken_by_ec2_are_the_ones_the_fabric_lets_pass(lab, client):
    (eni,) = lab.enis("node1")
    given = client.assign_private_ip_addresses(
        NetworkInterfaceId=eni["id"], SecondaryPrivateIpAddressCount=1
    )
    address = given["AssignedPrivateIpAddresses"][0]["PrivateIpAddress"]
    on_lo = [f"{address}/32", "dev", "lo"]
    assert lab.run("node1", ["ip", "address", "add", *on_lo]).returncode == 0
    try:
        with Receiver(lab.names.namespace("node1")):
            assert probe(lab.names.namespace("vpchost"), address).source == "10.0.9.10"
        assert lab.drops() == []
        client.unassign_private_ip_addresses(
            NetworkInterfaceId=eni["id"], PrivateIpAddresses=[address]
        )
        with netns.inside(lab.names.namespace("node1")):
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sender:
            sender.bind((address, 0))
            sender.sendto(b"x", ("10.0.9.10", 9))
        until(lambda: [(d["eni"], d["source"]) for d in lab.drops()] == [(eni["id"], address)])
    finally:
        lab.run("node1", ["ip", "address", "delete", *on_lo])
        lab.ask("forget")


def test_calls_are_counted_and_switches_set_from_outside(lab, client):
    lab.ask("calls", reset=True)
    lab.ask("faults", set={"denied": ["DescribeSubnets"]})
    try:
        with pytest.raises(client.exceptions.ClientError, match="UnauthorizedOperation"):
            client.describe_subnets()
        client.describe_network_interfaces()
    finally:
        switches = lab.ask("faults", clear=True)["faults"]
    assert switches["denied"] == []
    counted = lab.ask("calls", reset=True)
    assert counted["calls"] == {"DescribeSubnets": 1, "DescribeNetworkInterfaces": 1}
    assert counted["failed"] == {"DescribeSubnets": 1}
    assert counted["throttled"] == {}
    assert lab.ask("calls")["calls"] == {}
    client.describe_subnets()


def test_calls_are_counted_by_the_node_that_they_come_from(lab, on):
    lab.ask("calls", reset=True)
    for node in ("node1", "node2", "node2"):
        with on(lab, node) as client:
            client.describe_subnets()
    assert lab.ask("callers") == {
        "callers": {
            "10.0.1.10": {"DescribeSubnets": 1},
            "10.0.2.10": {"DescribeSubnets": 2},
        }
    }
    lab.ask("calls", reset=True)
    assert lab.ask("callers") == {"callers": {}}


def test_a_request_the_server_does_not_know_is_refused_and_the_next_one_answered(lab):
    with pytest.raises(LabError, match="make-tea"):
        lab.ask("make-tea")
    assert lab.ask("ping") == {"lab": lab.names.lab}


def test_a_command_on_a_node_has_its_settings_and_its_status_and_output_come_back(lab):
    script = "import os, sys; print(os.environ['NODE_NETWORK_STATE_DIR']); sys.exit(7)"
    done = lab.run("node2", [sys.executable, "-c", script])
    assert (done.returncode, done.stdout.strip()) == (7, str(lab.names.node_state("node2")))
    assert lab.names.node_state("node2").is_dir()


# -- several labs -------------------------------------------------------------------------


def test_two_labs_have_the_same_addresses_and_know_nothing_of_each_other(lab, name):
    other = lifecycle.up(name, start=fork_server.start)
    assert [e["primary"] for e in other.enis()] == [e["primary"] for e in lab.enis()]
    assert {e["id"] for e in other.enis()}.isdisjoint(e["id"] for e in lab.enis())
    with Receiver(other.names.namespace("node2")):
        assert probe(other.names.namespace("node1"), "10.0.2.10").source == "10.0.1.10"
        assert "refused" in probe(lab.names.namespace("node1"), "10.0.2.10").failure
    assert lifecycle.down(name)
    _assert_gone(name)
    assert lab.ask("ping") == {"lab": lab.names.lab}


def test_a_lab_that_is_up_is_refused_a_second_time_and_lives_on(lab):
    name = lab.names.lab
    with pytest.raises(LabError, match=f"lab down --name {name}"):
        lifecycle.up(name)
    assert lab.ask("ping") == {"lab": name}


def test_of_two_ups_at_once_one_makes_the_lab_and_the_other_leaves_it_alone(name, monkeypatch):
    both_looked = threading.Barrier(2)
    looked = threading.local()
    outcomes = []

    def look(prefix, really=netns.names):
        found = really(prefix)
        if not hasattr(looked, "once"):
            looked.once = both_looked.wait()
        return found

    def make():
        try:
            lifecycle.up(name)
            outcomes.append("up")
        except LabError:
            outcomes.append("refused")

    monkeypatch.setattr(netns, "names", look)
    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monkeypatch.undo()
    assert sorted(outcomes) == ["refused", "up"]
    assert len(Lab(name).enis()) == 4


# -- down ---------------------------------------------------------------------------------


def test_down_ends_what_runs_in_the_lab_and_removes_pods_too(name):
    lab = lifecycle.up(name, start=fork_server.start)
    netns.make(lab.names.namespace("pod-a"))
    stubborn = [sys.executable, "-c", IGNORE_SIGTERM]
    with (
        lab.start("pod-a", ["sleep", "999"]) as in_pod,
        lab.start("node1", stubborn, stdout=subprocess.PIPE) as on_node,
    ):
        on_node.stdout.readline()
        assert lifecycle.down(name)
        assert in_pod.wait(5) == -signal.SIGTERM
        assert on_node.wait(5) == -signal.SIGKILL
    _assert_gone(name)
    assert not lifecycle.down(name)


def test_down_leaves_the_exit_statuses_of_the_callers_own_children_alone(name):
    lifecycle.up(name)
    with subprocess.Popen(["false"]) as mine:
        os.waitid(os.P_PID, mine.pid, os.WEXITED | os.WNOWAIT)
        lifecycle.down(name)
        assert mine.wait() == 1


@pytest.mark.parametrize("start", [lifecycle.start_server, fork_server.start])
def test_down_removes_a_lab_whose_server_was_killed(name, start):
    lab = lifecycle.up(name, start=start)
    (server,) = netns.processes(lab.names.prefix)
    os.kill(server, signal.SIGKILL)
    until(lambda: not netns.processes(lab.names.prefix), "the server's end")
    with pytest.raises(LabError, match=f"lab up --name {name}|lab down --name {name}"):
        lab.ask("ping")
    with pytest.raises(LabError, match=f"lab down --name {name}"):
        lifecycle.up(name)
    assert lifecycle.down(name)
    _assert_gone(name)
    assert lifecycle.up(name, start=start).ask("ping") == {"lab": name}


@pytest.mark.parametrize("error", [OSError("no more namespaces"), KeyboardInterrupt()])
@pytest.mark.parametrize("after", [0, 1, len(lifecycle.PARTS) - 1])
def test_up_that_fails_half_way_leaves_nothing(name, monkeypatch, after, error):
    make, made = netns.make, []

    def failing(namespace):
        if len(made) == after:
            raise error
        made.append(namespace)
        make(namespace)

    monkeypatch.setattr(netns, "make", failing)
    with pytest.raises((LabError, KeyboardInterrupt)):
        lifecycle.up(name)
    assert len(made) == after
    _assert_gone(name)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("late_s", [0, 0.5])
def test_up_interrupted_while_the_server_starts_leaves_nothing(name, monkeypatch, late_s):
    def command(self, part, argv, really=Lab.command):
        return [sys.executable, "-c", SLEEP_AND_EXEC, str(late_s), *really(self, part, argv)]

    # An interrupt in the first wait; the waits of cleaning up are as ever.
    waits = iter([KeyboardInterrupt])

    def sleep(seconds, really=time.sleep):
        for error in waits:
            raise error
        really(seconds)

    monkeypatch.setattr(lifecycle.time, "sleep", sleep)
    # Late: it is not in its namespace, where down looks for processes, when the interrupt comes.
    monkeypatch.setattr(Lab, "command", command)
    with pytest.raises(KeyboardInterrupt):
        lifecycle.up(name)
    _assert_gone(name)


def test_up_says_what_the_server_said_when_it_does_not_start(name, monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")
    with pytest.raises(LabError, match=r"did not start(.|\n)*PYTHONHOME"):
        lifecycle.up(name)
    _assert_gone(name)


def test_a_forked_server_that_fails_says_why_in_its_log(name):
    names = Names(name)
    names.state.mkdir(parents=True)  # and no namespace
    server = fork_server.start(names, {})
    assert server.wait() == server.poll() == 1
    assert "FileNotFoundError" in names.log.read_text()


def test_a_process_that_exits_ends_the_servers_it_forked(name):
    script = (
        "from lab import lifecycle, netns\n"
        "import sys; sys.path.insert(0, 'tests')\n"
        "from fork_server import ForkServer\n"
        f"lifecycle.up({name!r}, start=ForkServer().start)\n"
        f"print(*netns.processes('nn-{name}-'))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 1
    until(lambda: not netns.processes(f"nn-{name}-"), "the server's end")


def test_labs_of_forked_servers_share_no_ids(name, lab):
    other = lifecycle.up(name, start=fork_server.start)
    assert {e["id"] for e in other.enis()}.isdisjoint(e["id"] for e in lab.enis())


def test_down_removes_what_an_up_left_that_was_killed_half_way(name):
    script = (
        "import os; from lab import lifecycle, netns\n"
        "make, made = netns.make, []\n"
        "def killed(namespace):\n"
        "    made.append(make(namespace))\n"
        "    if len(made) == 4: os.kill(os.getpid(), 9)\n"
        "netns.make = killed\n"
        f"lifecycle.up({name!r})\n"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    assert len(netns.names(f"nn-{name}-")) == 4
    assert name in lifecycle.labs()
    assert lifecycle.down(name)
    _assert_gone(name)


def test_down_touches_no_lab_whose_name_only_begins_the_same(name):
    longer = f"{name}0"
    netns.make(f"nn-{longer}-vpc")
    try:
        lifecycle.down(name)
        assert netns.names(f"nn-{longer}-") == [f"nn-{longer}-vpc"]
    finally:
        lifecycle.down(longer)


# -- command line -------------------------------------------------------------------------


def test_the_command_line_makes_shows_uses_and_removes_a_lab(name):
    def run(*words):
        return CliRunner().invoke(main, ["lab", *words])

    assert run("up", "--name", name).exit_code == 0
    shown = run("status", "--name", name, "-o", "json")
    assert [e["instance"] for e in json.loads(shown.stdout)["enis"]] == [
        "node1",
        "node2",
        "second",
        "vpchost",
    ]
    assert "10.0.1.10" in run("status", "--name", name).stdout
    # exec replaces the process, so it gets one of its own.
    words = ["exec", "--name", name, "node1", "--", "ip", "-o", "address", "show", "eth0"]
    done = subprocess.run(
        [sys.executable, "-m", "reconciler", "lab", *words], capture_output=True, text=True
    )
    assert "10.0.1.10/24" in done.stdout, done.stderr
    again = run("up", "--name", name)
    assert again.exit_code == 2
    assert f"lab down --name {name}" in again.stderr
    down = run("down", "--name", name)
    assert (down.exit_code, down.stdout) == (0, f"lab {name} is down\n")
    _assert_gone(name)


def test_the_command_line_makes_nodes_of_the_types_asked_for(name, on):
    types = ["--type", "node1=m5.4xlarge", "--type", "node2=t3.micro"]
    made = CliRunner().invoke(main, ["lab", "up", "--name", name, *types])
    assert made.exit_code == 0, made.output
    with on(Lab(name), "node1") as client:
        found = {
            tag["Value"]: instance["InstanceType"]
            for reservation in client.describe_instances()["Reservations"]
            for instance in reservation["Instances"]
            for tag in instance["Tags"]
        }
    others = dict.fromkeys(("node2", "vpchost", "second"), "t3.micro")
    assert found == {"node1": "m5.4xlarge"} | others


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("node9=m5.large", "no such node: node9; there are node1, node2"),
        ("node1=m5.huge", "no such instance type: m5.huge"),
        ("node1", "'node1' is not NODE=TYPE"),
    ],
)
def test_the_command_line_refuses_types_and_nodes_there_are_not(name, word, complaint):
    done = CliRunner().invoke(main, ["lab", "up", "--name", name, "--type", word])
    assert done.exit_code == 2
    assert complaint in done.stderr
    _assert_gone(name)


@pytest.mark.parametrize("words", [["status"], ["exec", "node1", "--", "true"]])
def test_the_command_line_says_what_to_do_when_there_is_no_lab(words):
    name = f"t{secrets.token_hex(4)}"
    done = CliRunner().invoke(main, ["lab", words[0], "--name", name, *words[1:]])
    assert done.exit_code == 2
    assert name in done.stderr
    assert "up" in done.stderr


def test_the_command_line_refuses_names_no_lab_can_have():
    for verb in ("up", "down", "status"):
        done = CliRunner().invoke(main, ["lab", verb, "--name", "../x"])
        assert done.exit_code == 2
        assert "1 to 12" in done.stderr


def test_the_command_line_says_plainly_that_it_needs_root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    done = CliRunner().invoke(main, ["lab", "status"])
    assert done.exit_code == 2
    assert "root" in done.stderr


# -- helpers ------------------------------------------------------------------------------


def _attach(lab, client):
    status = lab.ask("status")
    (primary,) = lab.enis("node1")
    described = client.describe_network_interfaces(NetworkInterfaceIds=[primary["id"]])
    subnet = described["NetworkInterfaces"][0]["SubnetId"]
    eni = client.create_network_interface(SubnetId=subnet)["NetworkInterface"]
    attached = client.attach_network_interface(
        NetworkInterfaceId=eni["NetworkInterfaceId"],
        InstanceId=status["instances"]["node1"],
        DeviceIndex=1,
    )
    return eni, attached["AttachmentId"]


def _assert_gone(name):
    assert netns.names(f"nn-{name}-") == []
    assert not (STATE / name).exists()
    assert not any(name in command for command in _servers())


def _servers():
    """Command lines of all labs' servers, those of other tests too."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if "lab.server" in words:
            found.add(" ".join(words))
    return found


def test_a_link_name_that_is_taken_gives_the_next_one(lab, client):
    subnet = client.describe_subnets(Filters=[{"Name": "tag:Name", "Values": ["nodes-b"]}])
    subnet_id = subnet["Subnets"][0]["SubnetId"]
    instance = lab.ask("status")["instances"]["node2"]
    lab.run("node2", ["ip", "link", "add", "eth1", "type", "bridge"], check=True)
    made = client.create_network_interface(SubnetId=subnet_id)["NetworkInterface"]
    attached = client.attach_network_interface(
        NetworkInterfaceId=made["NetworkInterfaceId"], InstanceId=instance, DeviceIndex=1
    )
    try:
        links = json.loads(lab.run("node2", ["ip", "-j", "link"]).stdout)
        names = {link["address"]: link["ifname"] for link in links}
        assert names[made["MacAddress"]] == "eth2"
    finally:
        client.detach_network_interface(AttachmentId=attached["AttachmentId"])
        client.delete_network_interface(NetworkInterfaceId=made["NetworkInterfaceId"])
        lab.run("node2", ["ip", "link", "delete", "eth1"], check=True)


def test_an_instance_that_has_no_place_is_refused_as_ec2_refuses(client, lab):
    before = [e for e in lab.enis() if e["instance"]]
    subnets = client.describe_subnets(Filters=[{"Name": "tag:Name", "Values": ["nodes-b"]}])
    primary = {
        "DeviceIndex": 0,
        "SubnetId": subnets["Subnets"][0]["SubnetId"],
        "PrivateIpAddress": "10.0.2.77",
    }
    with pytest.raises(client.exceptions.ClientError, match="Unsupported"):
        client.run_instances(
            ImageId="ami-12c6146b", MinCount=1, MaxCount=1, NetworkInterfaces=[primary]
        )
    assert [e for e in lab.enis() if e["instance"]] == before


def test_a_demo_leaves_a_lab_alone_that_was_there_before_it(name):
    before = lifecycle.up(name, start=fork_server.start)
    done = CliRunner().invoke(main, ["lab", "demo", "--name", name])
    assert done.exit_code == 1
    assert f"lab {name} is up" in done.output
    assert before.ask("ping") == {"lab": name}


def test_a_demo_says_at_once_what_its_document_lacks(name, tmp_path):
    document = tmp_path / "d.yaml"
    document.write_text("apiVersion: node-network/v1alpha1\nkind: NodeNetwork\n")
    done = CliRunner().invoke(main, ["lab", "demo", "--name", name, "-f", str(document)])
    assert done.exit_code == 1
    assert "excludeCIDRs: []" in done.output
    _assert_gone(name)


def test_taking_a_lab_down_is_not_to_be_interrupted(name):
    lifecycle.up(name, start=fork_server.start)
    steps = []

    def interrupted(step):
        steps.append(step)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGHUP)

    assert lifecycle.down(name, interrupted)
    assert len(steps) == 2
    _assert_gone(name)
