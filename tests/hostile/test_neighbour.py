"""Whatever others on the node do, its pods are served: one test for each input they choose.

Each under the manifest's own memory limit, with a hundred pods: every ADD is answered within five
seconds meanwhile, the daemon is not restarted, no pod loses its link or its network, and its
memory is what it was when all is over (``Neighbourhood.lives_through``).
"""

from __future__ import annotations

import os
import socket
import time
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import hostility
import pytest
import rulesets
from rulesets import Ruleset
from waiting import until

from lab import netns

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]

STAMPED = int(os.environ.get("STAMPED", "10000"))
"""Routes with our stamp: fifty times what one observation takes. ``make soak`` has 50,000."""


def test_the_measure_itself_holds_while_nobody_is_hostile(neighbourhood: Any) -> None:
    with neighbourhood.lives_through():
        neighbourhood.serve()


def test_a_pod_with_50000_flows_that_ends(neighbourhood: Any) -> None:
    n = neighbourhood
    with n.lives_through(), hostility.long_lived_flows(n.node, 300):
        one = n.cluster.add()
        hostility.open_flows(one.namespace, 50_000)
        assert hostility.tracked(n.node) >= 50_000
        n.delete(one)
        n.serve()
        until(
            lambda: hostility.tracked(n.node) < 10_000,
            lambda: f"the ended pod's flows deleted, {hostility.tracked(n.node)} left",
            patience_s=60,
        )


def test_a_connection_table_with_100000_flows_of_living_pods(neighbourhood: Any) -> None:
    n = neighbourhood
    with n.lives_through(), hostility.long_lived_flows(n.node, 300):
        for one in n.pods[:2]:
            # Some more: a busy kernel drops a burst at times.
            hostility.open_flows(one.namespace, 52_000)
        assert hostility.tracked(n.node) >= 100_000
        n.serve()
        assert hostility.tracked(n.node) >= 100_000, "flows of living pods were deleted"


def test_a_pod_with_150000_routes(neighbourhood: Any) -> None:
    n = neighbourhood
    with n.lives_through():
        one = n.cluster.add()
        with hostility.routes(one.namespace, "eth0", 150_000, IPv4Address("172.16.0.0")):
            n.serve()
        n.delete(one)


def test_a_pod_that_adds_and_deletes_addresses_without_end(neighbourhood: Any) -> None:
    n = neighbourhood
    with n.lives_through():
        one = n.cluster.add()
        with hostility.churning_addresses(one.namespace, "eth0", IPv4Network("192.0.2.0/25")):
            n.serve()
        n.delete(one)


def test_connections_to_the_probes_address_that_say_nothing_or_too_much(
    neighbourhood: Any,
) -> None:
    n = neighbourhood

    def connect() -> socket.socket:
        with netns.inside(n.node):
            return socket.create_connection(("127.0.0.1", 61680), timeout=1)

    header = b"X-Filler: " + b"x" * 60_000 + b"\r\n"
    with (
        n.lives_through(),
        hostility.connections(300, connect, b""),
        hostility.connections(300, connect, b"GET /metrics HTTP/1.1\r\n" + header),
        hostility.in_background(lambda ended: flood(connect, header, ended)),
    ):
        n.serve()


def flood(connect: Any, header: bytes, ended: Any) -> None:
    """Send requests whose headers have no end, on one connection after the other."""
    while not ended.is_set():
        try:
            with connect() as s:
                s.sendall(b"GET /metrics HTTP/1.1\r\n" + header * 90)
        except OSError:
            time.sleep(0.01)  # refused or cut, as it should be


@pytest.mark.parametrize("how", ["endless", "slow", "headers"])
def test_metadata_whose_answers_have_no_end(neighbourhood: Any, how: str) -> None:
    n = neighbourhood
    with n.lives_through():
        n.cluster.lab.ask("faults", set={"hostileImds": how})
        try:
            n.cluster.config.write_text(n.cluster.config.read_text() + "#\n")  # and it is asked
            until(lambda: n.complains_of("instance metadata"), "a look at metadata")
            n.serve()
        finally:
            n.cluster.lab.ask("faults", clear=True)


@pytest.mark.parametrize("how", ["fields", "endless", "flood"])
def test_ec2_whose_answers_hold_what_they_cannot(neighbourhood: Any, how: str) -> None:
    n = neighbourhood
    with n.lives_through():
        n.cluster.lab.ask("faults", set={"hostileEc2": how})
        try:
            n.cluster.config.write_text(n.cluster.config.read_text() + "#\n")  # and it is asked
            until(lambda: n.complains_of("EC2"), "an observation of EC2", patience_s=60)
            n.serve()
        finally:
            n.cluster.lab.ask("faults", clear=True)


def test_a_socket_full_of_idle_connections_and_64_descriptors(neighbourhood: Any) -> None:
    n = neighbourhood

    def connect() -> socket.socket:
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(1)
        s.connect(str(n.cluster.socket()))
        return s

    with (
        n.lives_through(),
        n.few_descriptors(64),
        hostility.connections(80, connect, b""),
        hostility.connections(80, connect, b'{"do": "add", '),
    ):
        n.serve()


def test_9980_excluded_cidrs_that_come_and_go(neighbourhood: Any) -> None:
    """The second time: to parse such a document once makes the interpreter's arenas grow for good.

    They hold what is allocated meanwhile and lives on, so that the C library gets few of them
    back; nothing of the document itself is kept.
    """
    n = neighbourhood
    cidrs = ", ".join(f"172.16.{i // 64}.{i % 64 * 4}/31" for i in range(9980 // 2))
    cidrs += ", " + ", ".join(f"172.17.{i // 64}.{i % 64 * 4}/31" for i in range(9980 // 2))

    def edit() -> None:
        generation = n.cluster.status()["document"]["generation"]
        with n.document(cidrs):
            until(lambda: n.cluster.status()["document"]["generation"] > generation)
            n.serve()
            n.await_rest()
        until(lambda: n.cluster.status()["document"]["generation"] > generation + 1)
        n.serve()

    edit()
    with n.lives_through():
        edit()


def test_somebody_elses_ruleset_of_20000_rules_and_1000_hooks(neighbourhood: Any) -> None:
    """And what no program would write: names that are no text, a set of which libnftables dies."""
    n = neighbourhood
    rules = [f"ip saddr 192.0.{i // 250}.{i % 250} tcp dport {1 + i}\n" for i in range(20_000)]
    chains = [f"chain c{c} {{\n{''.join(rules[c * 100 : c * 100 + 100])}}}\n" for c in range(200)]
    text = f"table ip other {{\n{''.join(chains)}}}\n"
    large = Ruleset("other", text, ("ip other",))
    with n.lives_through(), rulesets.loaded(n.node, large), hostility.wild_ruleset(n.node, 1_000):
        n.serve()


def test_5000_links_of_somebody_else(neighbourhood: Any) -> None:
    n = neighbourhood
    with n.lives_through(), hostility.links(n.node, 5_000):
        n.serve()


def test_100000_routes_of_somebody_else_on_the_host(neighbourhood: Any) -> None:
    n = neighbourhood
    with n.lives_through(), hostility.routes(n.node, "eth0", 100_000, IPv4Address("172.16.0.0")):
        n.serve()


def test_what_somebody_else_stamps_as_ours(neighbourhood: Any) -> None:
    n = neighbourhood
    first = IPv4Address("172.16.0.0")
    with (
        n.lives_through(),
        hostility.routes(n.node, "eth0", STAMPED, first, table=512, protocol=201),
        hostility.rules(n.node, 3_000, first, priority=512, protocol=201),
        hostility.links(n.node, 200, "node-network:"),
    ):
        until(lambda: n.complains_of("are stamped as ours"), "a look at them")
        n.serve()


def test_addresses_of_somebody_else_on_the_host_that_come_and_go_without_end(
    neighbourhood: Any,
) -> None:
    n = neighbourhood
    others = hostility.churning_addresses(n.node, "eth0", IPv4Network("192.0.2.0/25"))
    with n.lives_through(), others:
        n.serve()


def test_5000_files_among_the_records_and_some_that_are_none(neighbourhood: Any) -> None:
    n = neighbourhood
    root = n.cluster.state()
    ours = [root / kind for kind in ("attachments", "cooling", "quarantine", "creations")]
    with n.lives_through():
        with hostility.files([root / "intents"], 5_000), hostility.files(ours, 20):
            n.serve()
        for path in (root / "unreadable").glob("*-zz-*"):
            path.unlink()


def test_a_start_over_files_that_are_nested_without_end(neighbourhood: Any) -> None:
    """What is kept besides records is read at a start, before any pod is served."""
    n = neighbourhood
    root = n.cluster.state()
    nested = "[" * 1_000_000
    with n.lives_through():
        n.cluster.stop()
        for name in ("look.json", "sources.json"):
            (root / name).write_text(nested)
        n.launch()
        n.serve()


def test_files_of_somebody_else_beside_the_configuration_without_end(neighbourhood: Any) -> None:
    n = neighbourhood
    there = n.cluster.lab.names.configurations("node1")
    with (
        n.lives_through(),
        hostility.files([there], 1_000, ending=".conflist"),
        hostility.churning_files([there, n.cluster.config.parent]),
    ):
        n.serve()
