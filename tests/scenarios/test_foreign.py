"""Other owners that hurt us: conditions that name them, and what opens Docker's chain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import rulesets
import services
from scale_fixture import NODE, VPC_HOST, Town, inhabited
from services import HostPort
from waiting import until

from lab.traffic import PORT

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def town(cluster: Any) -> Iterator[Town]:
    with inhabited(cluster) as made:
        yield made


# -- forward chains that drop ------------------------------------------------------------------


@contextmanager
def document(town: Town, old: str, new: str) -> Iterator[None]:
    """An edit, taken back afterwards; waits until each is in force."""
    before = town.cluster.config.read_text()
    assert old in before
    for text in (before.replace(old, new), before):
        generation = town.cluster.status()["document"]["generation"]
        fresh = town.cluster.config.with_name("fresh.yaml")
        fresh.write_text(text)
        fresh.replace(town.cluster.config)
        until(
            lambda g=generation: (
                (s := town.cluster.status())["document"]["generation"] > g and s["settled"]
            ),
            "the document in force",
        )
        if text is not before:
            yield


ACCEPT = ("snat:\n", "routing: {acceptForwarded: true}\nsnat:\n")


def flows(town: Town) -> list[bool]:
    """Whether pods on both ENIs reach, and are reached, from beyond the node."""
    found = []
    for one in town.client.values():
        found.append(bool(town.call(one.namespace, VPC_HOST).source))
        found.append(bool(town.call(town.place("vpchost"), one.address).source))
    return found


def wait_for(town: Town, reasons: set[str]) -> None:
    until(lambda: town.reasons() == reasons, lambda: f"{reasons}, not {town.reasons()}")


def test_dockers_policy_drops_until_the_document_accepts(town: Town) -> None:
    with rulesets.loaded(town.node, rulesets.docker()):
        wait_for(town, {"ForwardingDropped"})
        assert not any(flows(town))
        done = town.cluster.diff()
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr.startswith("! ForwardingDropped: chain ip filter FORWARD: ")
        before = town.theirs()
        with document(town, *ACCEPT):
            wait_for(town, set())
            assert all(flows(town))
            assert town.cluster.diff().stdout == ""
            saved = town.cluster.lab.run("node1", ["iptables-nft-save"])
            assert "-A FORWARD -i nn+ -m comment --comment node-network -j ACCEPT" in saved.stdout
        wait_for(town, {"ForwardingDropped"})
        assert town.theirs() == before, "our rules went with the option"
    wait_for(town, set())
    assert all(flows(town))


def test_our_rules_in_another_owners_chain_are_repaired(town: Town) -> None:
    def ours() -> int:
        listed = town.cluster.lab.run("node1", ["nft", "list", "chain", "ip", "filter", "FORWARD"])
        return int(listed.stdout.count('comment "node-network"'))

    with document(town, *ACCEPT), rulesets.loaded(town.node, rulesets.docker()):
        until(lambda: ours() == 2, "two rules")
        drift = town.cluster.drift()
        assert town.cluster.lab.run("node1", ["iptables-nft", "-F", "FORWARD"]).returncode == 0
        until(lambda: ours() == 2, "the same rules again")
        until(lambda: town.cluster.drift() == drift + 2, "counted as drift")
        assert all(flows(town))
        # Docker itself comes and goes with its chains; put back what its removal expects.
        for chain, rule in reversed(rulesets.docker().xtables[0].jumps):
            town.cluster.lab.run("node1", ["sh", "-c", f"iptables-nft -I {chain} {rule}"])


def test_a_drop_of_dockers_user_is_not_overridden(town: Town) -> None:
    """Our rules take the policy's place; they are no way around anybody's rules."""
    with document(town, *ACCEPT), rulesets.loaded(town.node, rulesets.docker()):
        until(lambda: all(flows(town)), "all flows")
        rule = ["DOCKER-USER", "-d", VPC_HOST, "-j", "DROP"]
        town.cluster.lab.run("node1", ["iptables-nft", "-I", *rule])
        assert not town.call(town.client[0].namespace, VPC_HOST).source
        assert town.call(town.client[0].namespace, town.far.address).source


def test_legacy_iptables_is_opened_by_the_commands_that_the_finding_names(town: Town) -> None:
    with rulesets.loaded(town.node, rulesets.docker(backend="legacy")):
        nudge(town)  # legacy tables tell nobody when they change
        wait_for(town, {"ForwardingDropped"})
        assert not any(flows(town))
        (condition,) = town.cluster.status()["conditions"]
        commands = condition["text"].partition("; run: ")[2].split("; ")
        assert len(commands) == 2
        try:
            for command in commands:
                assert town.cluster.lab.run("node1", command.split()).returncode == 0
            assert all(flows(town))
            assert town.cluster.diff().stderr == ""
        finally:
            for command in commands:
                town.cluster.lab.run("node1", command.replace("-A", "-D").split())
    nudge(town)
    wait_for(town, set())


def test_firewalld_rejects_until_a_zone_and_a_policy_accept(town: Town) -> None:
    """Its own program is not here: what its commands write and load is put there by hand."""
    eth = ("eth0", "eth1", "eth2")
    with rulesets.loaded(town.node, rulesets.firewalld(public=eth)):
        wait_for(town, {"ForwardingDropped"})
        assert not any(flows(town))
        (condition,) = town.cluster.status()["conditions"]
        assert "--zone=trusted --add-interface=nn+" in condition["text"]
    host = town.cluster.state() / "host/etc/firewalld"
    files = {
        "zones/trusted.xml": '<zone target="ACCEPT"><interface name="nn+"/></zone>',
        "policies/to-pods.xml": '<policy target="ACCEPT"><ingress-zone name="ANY"/>'
        '<egress-zone name="trusted"/></policy>',
    }
    try:
        for name, text in files.items():
            (host / name).parent.mkdir(parents=True)
            (host / name).write_text(text)
        with rulesets.loaded(town.node, rulesets.firewalld(public=eth, trusted=("nn+",))):
            wait_for(town, set())
            assert all(flows(town))
            assert town.cluster.diff().stderr == ""
    finally:
        for name in files:
            (host / name).unlink()


def test_the_sets_and_rules_of_kube_proxys_mode_ipvs_are_in_nobodys_way(town: Town) -> None:
    """Of that mode no more can be tried on a kernel without ip_vs; hostPort works as ever."""
    port = HostPort(8000, town.server[1].address, PORT)
    proxy = services.kube_proxy("ipvs", services.padding(300, node_ports=20), node=NODE)
    with rulesets.loaded(town.node, proxy, services.portmap([port])):
        before = town.theirs()
        assert all(flows(town))
        assert town.call(town.place("vpchost"), NODE, 8000).source == VPC_HOST
        done = town.cluster.diff()
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert town.theirs() == before


JUMPS = """table inet guard {
  chain shut { reject with icmpx admin-prohibited; }
  chain pods { ct state established accept; goto shut; }
  chain forward { type filter hook forward priority 5; policy accept;
                  iifname "nn*" jump pods; oifname "nn*" jump pods; }
}
"""


def test_a_chain_that_jumps_to_a_drop_stays_a_condition_whatever_the_document_accepts(
    town: Town,
) -> None:
    """At 787f3aa it was not seen, and behind Docker's policy the condition ended."""
    jumps = rulesets.Ruleset("guard", nft=JUMPS, tables=("inet guard",))
    with rulesets.loaded(town.node, rulesets.docker(), jumps), document(town, *ACCEPT):
        wait_for(town, {"ForwardingDropped"})
        assert not any(flows(town))
        condition = next(c for c in town.conditions() if "inet guard" in c["subject"])
        assert "rule 1 of chain inet guard shut drops or rejects packets" in condition["text"]
        until(lambda: len(town.conditions()) == 1, "Docker's chain to be open")
    wait_for(town, set())


INPUT = """table ip edge {
  chain pods { drop; }
  chain input { type filter hook input priority 0; policy accept; iifname "nn*" jump pods; }
}
"""


def test_an_input_chain_that_drops_what_pods_answer_is_a_condition(town: Town) -> None:
    edge = rulesets.Ruleset("edge", nft=INPUT, tables=("ip edge",))
    one = town.client[0]
    assert town.call(town.node, one.address).source == NODE, "as kubelet probes it"
    with rulesets.loaded(town.node, edge):
        wait_for(town, {"InputDropped"})
        assert not town.call(town.node, one.address).source
        assert "InputDropped: chain ip edge input: rule 1 of chain" in town.cluster.diff().stderr
        done = town.cluster.command("node1", "audit", "-f", str(town.cluster.config))
        assert (done.returncode, done.stdout) == (0, ""), "nothing of ours differs"
        assert "InputDropped: chain ip edge input" in done.stderr, "and yet it is said"
    wait_for(town, set())


def test_a_masquerade_of_what_the_document_keeps_is_a_condition(town: Town) -> None:
    text = "table ip m { chain c { type nat hook postrouting priority 0; masquerade; }; }"
    with rulesets.loaded(town.node, rulesets.Ruleset("m", nft=text, tables=("ip m",))):
        wait_for(town, {"SourceRewritten"})
        assert town.call(town.client[0].namespace, VPC_HOST).source == NODE
    wait_for(town, set())


# -- tools and marks -----------------------------------------------------------------------------


def test_networkd_and_tools_are_conditions_that_end_with_their_cause(town: Town) -> None:
    host = town.cluster.state() / "host"
    state = host / "run/systemd/netif/state"
    rules = host / "usr/lib/udev/rules.d/99-vpc-policy-routes.rules"
    fix = host / "etc/systemd/networkd.conf.d/90-pods.conf"
    for path in (state, rules, fix):
        path.parent.mkdir(parents=True)
    state.write_text("OPER_STATE=routable\n")
    rules.write_text("")
    nudge(town)
    wait_for(town, {"NetworkdDeletesRules", "ToolsManageEnis"})
    assert "ManageForeignRoutingPolicyRules=no" in town.cluster.diff().stderr
    rules.unlink()
    fix.write_text("[Network]\nManageForeignRoutingPolicyRules=no\nManageForeignRoutes=no\n")
    nudge(town)
    wait_for(town, set())
    state.unlink()
    fix.unlink()


def test_a_foreign_rule_on_our_mark_bits_is_a_condition_and_left_alone(town: Town) -> None:
    words = ["priority", "5000", "fwmark", "0x1", "lookup", "4711"]
    town.cluster.ip("rule", "add", *words)
    wait_for(town, {"MarkConflict"})
    assert "lookup 4711" in town.cluster.ip("rule")
    town.cluster.ip("rule", "del", *words)
    wait_for(town, set())


def nudge(town: Town) -> None:
    """Make the kernel say something, so that the next full look is now."""
    town.cluster.ip("rule", "add", "priority", "32000", "lookup", "main")
    town.cluster.ip("rule", "del", "priority", "32000")


def test_udev_has_no_reason_to_change_our_macs(town: Town, tmp_path: Path) -> None:
    """MACAddressPolicy=persistent leaves alone what was set at creation (NET_ADDR_SET, 3)."""
    veth = town.veth(town.near[0])
    # A sysfs shows the namespace it was mounted in.
    script = (
        f"mount -t sysfs sysfs {tmp_path} && cat {tmp_path}/class/net/{veth}/addr_assign_type; "
        f"umount {tmp_path}"
    )
    shown = town.cluster.lab.run("node1", ["sh", "-c", script])
    assert shown.stdout.strip() == "3", shown.stderr
