"""What ``status`` prints, of a stored answer: terminals of two widths, a pipe; and who may ask."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest

from reconciler.cli.screen import PIPE, Screen
from reconciler.cli.status_text import _span, as_text
from schemas.status import Status

PROGRAM = [sys.executable, "-m", "reconciler"]

BODY: dict[str, Any] = {
    "formatVersion": 1,
    "version": "0.1.0",
    "uptimeSeconds": 11580,
    "document": {
        "path": "/etc/node-network/node-network.yaml",
        "generation": 4,
        "acceptedAt": "2026-11-30T18:00:00+00:00",
        "refused": None,
    },
    "settled": True,
    "pool": {"allocatable": 6, "assigned": 2, "cooling": 1, "quarantined": 0},
    "snat": [
        {
            "group": "",
            "mode": "node",
            "excludeCIDRs": ["@peering", "10.100.0.0/16"],
            "excluded": 2,
            "onlyCIDRs": None,
        },
        {
            "group": "pay",
            "mode": "external",
            "excludeCIDRs": [],
            "excluded": 0,
            "onlyCIDRs": None,
        },
    ],
    "snatRules": [
        {
            "namespace": "pay-*",
            "to": ["203.0.113.0/24", "198.51.100.7/32"],
            "number": 2,
            "as": "dedicated",
        }
    ],
    "limits": {
        "instanceType": "m5.large",
        "enis": {"used": 1, "most": 3},
        "addresses": {"used": 9, "most": 27, "text": "3 ENIs x 9"},
        "pods": {"used": 2, "most": 20},
    },
    "target": {"low": 4, "aim": 6, "high": 9},
    "exhaustedInSeconds": 5400,
    "conditions": [
        {
            "subject": "pool of i-1",
            "reason": "SubnetFull",
            "text": "subnet-a has no free address; EC2 is asked again in 60 s; free some, or name "
            "another subnet in eni.subnets",
            "since": "2026-11-30T20:00:00+00:00",
            "ageSeconds": 4380,
        }
    ],
    "enis": [
        {
            "id": "eni-0a",
            "device": 0,
            "status": "attached",
            "owned": True,
            "group": "",
            "subnet": "subnet-a",
            "primary": "10.0.1.10",
            "addresses": 9,
            "podAddresses": [f"10.0.1.{n}" for n in range(11, 20)],
            "prefixes": [],
        }
    ],
    "otherCards": [],
    "attachments": [
        {
            "pod": f"default/{name}",
            "addresses": [address],
            "eni": "eni-0a",
            "device": 0,
            "veth": "nn01",
        }
        for name, address in (("api", "10.0.1.12"), ("web", "10.0.1.11"))
    ],
    "packetsRefused": {"spoofed": 3, "martian": 0},
    "cooling": ["10.0.1.13"],
    "identities": [],
    "ec2Calls": {"DescribeNetworkInterfaces": 3, "AssignPrivateIpAddresses": 1},
    "ec2Budget": {"DescribeNetworkInterfaces": 97, "AssignPrivateIpAddresses": 3},
    "sources": [
        {
            "name": "@peering",
            "lookedAt": 1.0,
            "ageSeconds": 312,
            "failure": None,
            "entries": 1,
            "shown": [],
        }
    ],
    "looks": [{"of": "node", "ageSeconds": 3}, {"of": "ec2", "ageSeconds": 312}],
    "repaired": [
        {
            "at": "2026-11-30T21:10:00+00:00",
            "ageSeconds": 180,
            "domain": "rule",
            "kind": "rule",
            "verb": "create",
            "count": 3,
            "actions": ["ip rule add priority 512 lookup 512 protocol 201", "b", "c"],
            "reason": "missing",
            "by": ["systemd-network (pid 12)"],
        }
    ],
    "metrics": "",
    "obstacle": None,
}

PIPED = """\
version      0.1.0, up 3 h 13 min
document     /etc/node-network/node-network.yaml (generation 4, accepted 2026-11-30T18:00:00+00:00)
settled      yes, 1 condition
condition    SubnetFull since 2026-11-30T20:00:00+00:00 (1 h 13 min): pool of i-1: subnet-a has no free address; EC2 is asked again in 60 s; free some, or name another subnet in eni.subnets
             cause and cure of each: node-network explain condition
snat         namespace pay-*: 203.0.113.0/24, 198.51.100.7/32 see its own address
snat         node: what is beyond the VPC sees the node's address; @peering, 10.100.0.0/16 and the VPC see pod addresses
snat         group pay: external: every destination sees pod addresses
pool         [###~~.........__________________________] 2 assigned (#), 1 cooling (~), 0 quarantined (x), 6 allocatable (.), of 27
target       grows below 4, gives back above 9; none left in 1 h 30 min at the present rate
limits       m5.large: 1 of 3 ENIs, 9 of 27 addresses, 2 of 20 pods (3 ENIs x 9)
eni          eni-0a device 0, attached, subnet-a, own 10.0.1.10, 9 addresses: 10.0.1.11 10.0.1.12 10.0.1.13 10.0.1.14 10.0.1.15 10.0.1.16 10.0.1.17 10.0.1.18 10.0.1.19
source       @peering: 1 CIDRs, as EC2 told 312 s ago
pod          default/api: 10.0.1.12 on eni-0a (nn01)
pod          default/web: 10.0.1.11 on eni-0a (nn01)
refused      3 packets spoofed
cooling      10.0.1.13
repaired     3 min ago: rule: 3 x rule: ip rule add priority 512 lookup 512 protocol 201 (missing), and 2 more; lately at work: systemd-network (pid 12)
looks        node 3 s ago, ec2 5 min 12 s ago
ec2          4 calls: 3 DescribeNetworkInterfaces, 1 AssignPrivateIpAddresses; its budget now allows 3 more AssignPrivateIpAddresses
"""  # noqa: E501 - as it is shown

AT_60 = """\
version      0.1.0, up 3 h 13 min
document     /etc/node-network/node-network.yaml (generation
             4, accepted 2026-11-30T18:00:00+00:00)
settled      yes, 1 condition
condition    SubnetFull since 2026-11-30T20:00:00+00:00 (1 h
             13 min): pool of i-1: subnet-a has no free
             address; EC2 is asked again in 60 s; free some,
             or name another subnet in eni.subnets
             cause and cure of each: node-network explain
             condition
snat         namespace pay-*: 203.0.113.0/24,
             198.51.100.7/32 see its own address
snat         node: what is beyond the VPC sees the node's
             address; @peering, 10.100.0.0/16 and the VPC
             see pod addresses
snat         group pay: external: every destination sees pod
             addresses
pool         [###~~.........__________________________] 2
             assigned (#), 1 cooling (~), 0 quarantined (x),
             6 allocatable (.), of 27
target       grows below 4, gives back above 9; none left in
             1 h 30 min at the present rate
limits       m5.large: 1 of 3 ENIs, 9 of 27 addresses, 2 of
             20 pods (3 ENIs x 9)
eni          eni-0a device 0, attached, subnet-a, own
             10.0.1.10, 9 addresses: 10.0.1.11 10.0.1.12
             10.0.1.13 10.0.1.14 10.0.1.15 10.0.1.16
             10.0.1.17 10.0.1.18 10.0.1.19
source       @peering: 1 CIDRs, as EC2 told 312 s ago
pod          default/api: 10.0.1.12 on eni-0a (nn01)
pod          default/web: 10.0.1.11 on eni-0a (nn01)
refused      3 packets spoofed
cooling      10.0.1.13
repaired     3 min ago: rule: 3 x rule: ip rule add priority
             512 lookup 512 protocol 201 (missing), and 2
             more; lately at work: systemd-network (pid 12)
looks        node 3 s ago, ec2 5 min 12 s ago
ec2          4 calls: 3 DescribeNetworkInterfaces, 1
             AssignPrivateIpAddresses; its budget now allows
             3 more AssignPrivateIpAddresses
"""

AT_120 = """\
version      0.1.0, up 3 h 13 min
document     /etc/node-network/node-network.yaml (generation 4, accepted 2026-11-30T18:00:00+00:00)
settled      yes, 1 condition
condition    SubnetFull since 2026-11-30T20:00:00+00:00 (1 h 13 min): pool of i-1: subnet-a has no free address; EC2 is
             asked again in 60 s; free some, or name another subnet in eni.subnets
             cause and cure of each: node-network explain condition
snat         namespace pay-*: 203.0.113.0/24, 198.51.100.7/32 see its own address
snat         node: what is beyond the VPC sees the node's address; @peering, 10.100.0.0/16 and the VPC see pod addresses
snat         group pay: external: every destination sees pod addresses
pool         [###~~.........__________________________] 2 assigned (#), 1 cooling (~), 0 quarantined (x), 6 allocatable
             (.), of 27
target       grows below 4, gives back above 9; none left in 1 h 30 min at the present rate
limits       m5.large: 1 of 3 ENIs, 9 of 27 addresses, 2 of 20 pods (3 ENIs x 9)
eni          eni-0a device 0, attached, subnet-a, own 10.0.1.10, 9 addresses: 10.0.1.11 10.0.1.12 10.0.1.13 10.0.1.14
             10.0.1.15 10.0.1.16 10.0.1.17 10.0.1.18 10.0.1.19
source       @peering: 1 CIDRs, as EC2 told 312 s ago
pod          default/api: 10.0.1.12 on eni-0a (nn01)
pod          default/web: 10.0.1.11 on eni-0a (nn01)
refused      3 packets spoofed
cooling      10.0.1.13
repaired     3 min ago: rule: 3 x rule: ip rule add priority 512 lookup 512 protocol 201 (missing), and 2 more; lately
             at work: systemd-network (pid 12)
looks        node 3 s ago, ec2 5 min 12 s ago
ec2          4 calls: 3 DescribeNetworkInterfaces, 1 AssignPrivateIpAddresses; its budget now allows 3 more
             AssignPrivateIpAddresses
"""  # noqa: E501 - as it is shown


def test_the_stored_answer_is_of_the_published_format() -> None:
    assert Status.model_validate(BODY).model_dump() == BODY | {"shortened": {}}


@pytest.mark.parametrize(
    ("where", "shown"),
    [(PIPE, PIPED), (Screen(60), AT_60), (Screen(120), AT_120)],
    ids=["pipe", "60", "120"],
)
def test_a_status_is_shown_as_wide_as_there_is_room(where: Screen, shown: str) -> None:
    assert as_text(BODY, where) == shown
    assert all(len(line) <= where.width for line in shown.splitlines() if where.width)


def test_colours_are_all_that_a_coloured_terminal_adds() -> None:
    shown = as_text(BODY, Screen(60, colour=True))
    assert shown != AT_60
    assert click.unstyle(shown) == AT_60


@pytest.mark.parametrize(
    ("settled", "number", "said"),
    [(True, 0, "yes"), (True, 2, "yes, 2 conditions"), (False, 0, "no"), (False, 1, "no, 1 cond")],
)
def test_settled_is_not_said_without_what_is_wrong(settled: bool, number: int, said: str) -> None:
    changed = BODY | {"settled": settled, "conditions": BODY["conditions"] * number}
    (line,) = (x for x in as_text(changed).splitlines() if x.startswith("settled"))
    assert line.removeprefix("settled      ").startswith(said)
    assert number or line.endswith(said)


def test_why_no_pod_can_start_is_said_next_to_it() -> None:
    why = {"subject": "node", "reason": "Starting", "message": "EC2 has not been observed yet"}
    lines = as_text(BODY | {"obstacle": why, "settled": False}).splitlines()
    assert lines[2] == "settled      no, 1 condition"
    assert lines[3] == "not ready    Starting: EC2 has not been observed yet"


def test_the_latest_repairs_are_shown_and_the_others_are_counted() -> None:
    many = BODY | {"repaired": BODY["repaired"] * 12}
    shown = [line for line in as_text(many).splitlines() if line.startswith("repaired")]
    assert len(shown) == 11
    assert shown[-1] == "repaired     2 earlier ones are in -o json"
    one = BODY["repaired"][0] | {"count": 1, "actions": ["ip rule add x"], "by": []}
    (line,) = [
        line for line in as_text(BODY | {"repaired": [one]}).splitlines() if "repaired" in line
    ]
    assert line == "repaired     3 min ago: rule: ip rule add x (missing)"


def test_enis_on_other_network_cards_are_shown_as_not_used() -> None:
    others = [
        {"id": "eni-0e", "card": 1, "device": 0, "type": "efa-only"},
        {"id": "eni-0f", "card": 2, "device": None, "type": ""},
    ]
    more = set(as_text(BODY | {"otherCards": others}).splitlines())
    assert more - set(as_text(BODY).splitlines()) == {
        "eni          eni-0e device 0 of network card 1, efa-only: not used",
        "eni          eni-0f device unknown of network card 2, of an unknown type: not used",
    }


def test_a_pool_without_a_free_address_is_not_said_to_have_some_left() -> None:
    shown = as_text(BODY | {"pool": BODY["pool"] | {"allocatable": 0}})
    assert "none is free; the node is full in 1 h 30 min at the present rate" in shown
    assert "none left" not in shown


def test_a_node_before_its_first_pass_is_shown() -> None:
    bare = BODY | {
        "version": "",
        "pool": {},
        "snat": [],
        "snatRules": [],
        "limits": None,
        "target": None,
        "exhaustedInSeconds": None,
        "enis": [],
        "attachments": [],
        "packetsRefused": {},
        "cooling": [],
        "ec2Calls": {},
        "ec2Budget": {},
        "sources": [],
        "looks": [],
        "repaired": [],
        "conditions": [],
        "shortened": {"attachments": 7},
    }
    assert as_text(bare).splitlines()[3:] == [
        "pool         not known yet",
        "looks        none yet",
        "ec2          no calls",
        "not shown    7 more of attachments: the answer would be too long",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (3600, "1 h"), (90_000, "1 d 1 h")],
)
def test_a_time_is_said_in_its_two_largest_units(seconds: int, text: str) -> None:
    assert _span(seconds) == text


@contextmanager
def answering(path: Path, body: dict[str, Any], times: int = 1) -> Iterator[None]:
    """Somebody who gives this answer to whoever connects."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            for _ in range(times):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(json.dumps({"ok": True, "status": body}).encode() + b"\n")

        thread = threading.Thread(target=answer)
        thread.start()
        yield
        thread.join(15)


def run(directory: Path, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    argv = [*PROGRAM, "status", "--state-dir", str(directory), *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False, **more)


def test_a_reconciler_of_another_release_is_said_and_its_json_is_passed_on(tmp_path: Path) -> None:
    older = {"settled": True, "conditions": []}
    with answering(tmp_path / "node-network.sock", older, 2):
        text, raw = run(tmp_path), run(tmp_path, "-o", "json")
    assert (text.returncode, text.stdout) == (2, "")
    assert "is of another release; restart it" in text.stderr
    assert (raw.returncode, json.loads(raw.stdout)) == (0, older)


def test_a_reconciler_that_does_not_run_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "status.sock").touch()
    done = run(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (said,) = done.stderr.splitlines()
    assert said.endswith("No such file or directory; is 'node-network run' running?")


AS_MEMBER = """
import encodings.utf_8_sig, os, sys
import reconciler.cli.status, reconciler.cli.main as m
os.setgroups([int(sys.argv.pop(1))]); os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
m.run_command_line()
"""


def ask_as(group: int, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", AS_MEMBER, str(group), *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")
def test_members_of_the_group_get_the_status_and_others_a_sentence() -> None:
    with tempfile.TemporaryDirectory() as name:
        ask_as_others(Path(name))


def ask_as_others(place: Path) -> None:
    place.chmod(0o755)
    root_only, shared = place / "node-network.sock", place / "status.sock"
    where = ("--state-dir", str(place))
    with answering(shared, BODY), socket.socket(socket.AF_UNIX) as door:
        door.bind(str(root_only))
        root_only.chmod(0o600)
        os.chown(shared, -1, 4711)
        shared.chmod(0o660)
        for words in (("status", *where), ("retry", *where)):
            told = ask_as(4712, *words)
            assert (told.returncode, told.stdout) == (2, "")
            assert "Permission denied; run as root, or for 'status' as a member" in told.stderr
        told = ask_as(4711, "status", *where)
        assert (told.returncode, told.stdout) == (1, PIPED), told.stderr


def test_dedicated_addresses_are_shown_by_their_namespaces() -> None:
    identity = {
        "namespace": "pay",
        "group": "",
        "addresses": ["10.0.1.9"],
        "eni": "eni-1",
        "device": 1,
        "state": "in use",
    }
    idle = identity | {"namespace": "web", "group": "front", "state": "idle"}
    pool = {"allocatable": 6, "assigned": 2, "cooling": 1, "quarantined": 0, "dedicated": 2}
    said = as_text(BODY | {"identities": [identity, idle], "pool": pool}).splitlines()
    assert [line.split(None, 1)[1] for line in said if line.startswith("identity")] == [
        "namespace pay: 10.0.1.9 on eni-1",
        "namespace web in group front: 10.0.1.9 on eni-1, idle",
    ]
    assert "2 dedicated (=)" in next(line for line in said if line.startswith("pool"))
