"""Other owners that hurt us: conditions that name them, and what opens Docker's chain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import rulesets
import services
from scale_fixture import NODE, VPC_HOST, ScaleFixture, inhabited
from services import HostPort
from waiting import until

from lab.traffic import PORT

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def scale_fixture(cluster: Any) -> Iterator[ScaleFixture]:
    with inhabited(cluster) as made:
        yield made


# -- forward chains that drop ------------------------------------------------------------------


@contextmanager
def document(scale_fixture: ScaleFixture, old: str, new: str) -> Iterator[None]:
    """An edit, taken back afterwards; waits until each is in force."""
    before = scale_fixture.cluster.config.read_text()
    assert old in before
    for text in (before.replace(old, new), before):
        generation = scale_fixture.cluster.status()["document"]["generation"]
        fresh = scale_fixture.cluster.config.with_name("fresh.yaml")
        fresh.write_text(text)
        fresh.replace(scale_fixture.cluster.config)
        until(
            lambda g=generation: (
                (s := scale_fixture.cluster.status())["document"]["generation"] > g
                and s["settled"]
            ),
            "the document in force",
        )
        if text is not before:
            yield


ACCEPT = ("snat:\n", "routing: {acceptForwarded: true}\nsnat:\n")


def flows(scale_fixture: ScaleFixture) -> list[bool]:
    """Whether pods on both ENIs reach, and are reached, from beyond the node."""
    found = []
    for one in scale_fixture.client.values():
        found.append(bool(scale_fixture.call(one.namespace, VPC_HOST).source))
        found.append(bool(scale_fixture.call(scale_fixture.place("vpchost"), one.address).source))
    return found


def wait_for(scale_fixture: ScaleFixture, reasons: set[str]) -> None:
    until(
        lambda: scale_fixture.reasons() == reasons,
        lambda: f"{reasons}, not {scale_fixture.reasons()}",
    )


def test_dockers_policy_drops_until_the_document_accepts(scale_fixture: ScaleFixture) -> None:
    with rulesets.loaded(scale_fixture.node, rulesets.docker()):
        wait_for(scale_fixture, {"ForwardingDropped"})
        assert not any(flows(scale_fixture))
        done = scale_fixture.cluster.diff()
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr.startswith("! ForwardingDropped: chain ip filter FORWARD: ")
        before = scale_fixture.theirs()
        with document(scale_fixture, *ACCEPT):
            wait_for(scale_fixture, set())
            assert all(flows(scale_fixture))
            assert scale_fixture.cluster.diff().stdout == ""
            saved = scale_fixture.cluster.lab.run("node1", ["iptables-nft-save"])
            assert "-A FORWARD -i nn+ -m comment --comment node-network -j ACCEPT" in saved.stdout
        wait_for(scale_fixture, {"ForwardingDropped"})
        assert scale_fixture.theirs() == before, "our rules went with the option"
    wait_for(scale_fixture, set())
    assert all(flows(scale_fixture))


def test_our_rules_in_another_owners_chain_are_repaired(scale_fixture: ScaleFixture) -> None:
    def ours() -> int:
        listed = scale_fixture.cluster.lab.run(
            "node1", ["nft", "list", "chain", "ip", "filter", "FORWARD"]
        )
        return int(listed.stdout.count('comment "node-network"'))

    with document(scale_fixture, *ACCEPT), rulesets.loaded(scale_fixture.node, rulesets.docker()):
        until(lambda: ours() == 2, "two rules")
        drift = scale_fixture.cluster.drift()
        assert (
            scale_fixture.cluster.lab.run("node1", ["iptables-nft", "-F", "FORWARD"]).returncode
            == 0
        )
        until(lambda: ours() == 2, "the same rules again")
        until(lambda: scale_fixture.cluster.drift() == drift + 2, "counted as drift")
        assert all(flows(scale_fixture))
        # Docker itself comes and goes with its chains; put back what its removal expects.
        for chain, rule in reversed(rulesets.docker().xtables[0].jumps):
            scale_fixture.cluster.lab.run("node1", ["sh", "-c", f"iptables-nft -I {chain} {rule}"])


def test_a_drop_of_dockers_user_is_not_overridden(scale_fixture: ScaleFixture) -> None:
    """Our rules take the policy's place; they are no way around anybody's rules."""
    with document(scale_fixture, *ACCEPT), rulesets.loaded(scale_fixture.node, rulesets.docker()):
        until(lambda: all(flows(scale_fixture)), "all flows")
        rule = ["DOCKER-USER", "-d", VPC_HOST, "-j", "DROP"]
        scale_fixture.cluster.lab.run("node1", ["iptables-nft", "-I", *rule])
        assert not scale_fixture.call(scale_fixture.client[0].namespace, VPC_HOST).source
        assert scale_fixture.call(
            scale_fixture.client[0].namespace, scale_fixture.far.address
        ).source


def test_legacy_iptables_is_opened_by_the_commands_that_the_finding_names(
    scale_fixture: ScaleFixture,
) -> None:
    with rulesets.loaded(scale_fixture.node, rulesets.docker(backend="legacy")):
        nudge(scale_fixture)  # legacy tables tell nobody when they change
        wait_for(scale_fixture, {"ForwardingDropped"})
        assert not any(flows(scale_fixture))
        (condition,) = scale_fixture.cluster.status()["conditions"]
        commands = condition["text"].partition("; run: ")[2].split("; ")
        assert len(commands) == 2
        try:
            for command in commands:
                assert scale_fixture.cluster.lab.run("node1", command.split()).returncode == 0
            assert all(flows(scale_fixture))
            assert scale_fixture.cluster.diff().stderr == ""
        finally:
            for command in commands:
                scale_fixture.cluster.lab.run("node1", command.replace("-A", "-D").split())
    nudge(scale_fixture)
    wait_for(scale_fixture, set())


def test_firewalld_rejects_until_a_zone_and_a_policy_accept(scale_fixture: ScaleFixture) -> None:
    """Its own program is not here: what its commands write and load is put there by hand."""
    eth = ("eth0", "eth1", "eth2")
    with rulesets.loaded(scale_fixture.node, rulesets.firewalld(public=eth)):
        wait_for(scale_fixture, {"ForwardingDropped"})
        assert not any(flows(scale_fixture))
        (condition,) = scale_fixture.cluster.status()["conditions"]
        assert "--zone=trusted --add-interface=nn+" in condition["text"]
    host = scale_fixture.cluster.state() / "host/etc/firewalld"
    files = {
        "zones/trusted.xml": '<zone target="ACCEPT"><interface name="nn+"/></zone>',
        "policies/to-pods.xml": '<policy target="ACCEPT"><ingress-zone name="ANY"/>'
        '<egress-zone name="trusted"/></policy>',
    }
    try:
        for name, text in files.items():
            (host / name).parent.mkdir(parents=True)
            (host / name).write_text(text)
        with rulesets.loaded(scale_fixture.node, rulesets.firewalld(public=eth, trusted=("nn+",))):
            wait_for(scale_fixture, set())
            assert all(flows(scale_fixture))
            assert scale_fixture.cluster.diff().stderr == ""
    finally:
        for name in files:
            (host / name).unlink()


def test_the_sets_and_rules_of_kube_proxys_mode_ipvs_are_in_nobodys_way(
    scale_fixture: ScaleFixture,
) -> None:
    """Of that mode no more can be tried on a kernel without ip_vs; hostPort works as ever."""
    port = HostPort(8000, scale_fixture.server[1].address, PORT)
    proxy = services.kube_proxy("ipvs", services.padding(300, node_ports=20), node=NODE)
    with rulesets.loaded(scale_fixture.node, proxy, services.portmap([port])):
        before = scale_fixture.theirs()
        assert all(flows(scale_fixture))
        assert scale_fixture.call(scale_fixture.place("vpchost"), NODE, 8000).source == VPC_HOST
        done = scale_fixture.cluster.diff()
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert scale_fixture.theirs() == before


JUMPS = """table inet guard {
  chain shut { reject with icmpx admin-prohibited; }
  chain pods { ct state established accept; goto shut; }
  chain forward { type filter hook forward priority 5; policy accept;
                  iifname "nn*" jump pods; oifname "nn*" jump pods; }
}
"""


def test_a_chain_that_jumps_to_a_drop_stays_a_condition_whatever_the_document_accepts(
    scale_fixture: ScaleFixture,
) -> None:
    """At 787f3aa it was not seen, and behind Docker's policy the condition ended."""
    jumps = rulesets.Ruleset("guard", nft=JUMPS, tables=("inet guard",))
    with (
        rulesets.loaded(scale_fixture.node, rulesets.docker(), jumps),
        document(scale_fixture, *ACCEPT),
    ):
        wait_for(scale_fixture, {"ForwardingDropped"})
        assert not any(flows(scale_fixture))

        def said() -> list[str]:
            found = scale_fixture.conditions()
            return [str(c["text"]) for c in found if "inet guard" in c["subject"]]

        until(lambda: said() != [], "a word on the chain that jumps")
        (text,) = said()
        assert "rule 1 of chain inet guard shut drops or rejects packets" in text
        until(lambda: len(scale_fixture.conditions()) == 1, "Docker's chain to be open")
    wait_for(scale_fixture, set())


INPUT = """table ip edge {
  chain pods { drop; }
  chain input { type filter hook input priority 0; policy accept; iifname "nn*" jump pods; }
}
"""


def test_an_input_chain_that_drops_what_pods_answer_is_a_condition(
    scale_fixture: ScaleFixture,
) -> None:
    edge = rulesets.Ruleset("edge", nft=INPUT, tables=("ip edge",))
    one = scale_fixture.client[0]
    assert scale_fixture.call(scale_fixture.node, one.address).source == NODE, (
        "as kubelet probes it"
    )
    with rulesets.loaded(scale_fixture.node, edge):
        wait_for(scale_fixture, {"InputDropped"})
        assert not scale_fixture.call(scale_fixture.node, one.address).source
        assert (
            "InputDropped: chain ip edge input: rule 1 of chain"
            in scale_fixture.cluster.diff().stderr
        )
        done = scale_fixture.cluster.command(
            "node1", "audit", "-f", str(scale_fixture.cluster.config)
        )
        assert (done.returncode, done.stdout) == (0, ""), "nothing of ours differs"
        assert "InputDropped: chain ip edge input" in done.stderr, "and yet it is said"
    wait_for(scale_fixture, set())


def test_a_masquerade_of_what_the_document_keeps_is_a_condition(
    scale_fixture: ScaleFixture,
) -> None:
    text = "table ip m { chain c { type nat hook postrouting priority 0; masquerade; }; }"
    with rulesets.loaded(scale_fixture.node, rulesets.Ruleset("m", nft=text, tables=("ip m",))):
        wait_for(scale_fixture, {"SourceRewritten"})
        assert scale_fixture.call(scale_fixture.client[0].namespace, VPC_HOST).source == NODE
    wait_for(scale_fixture, set())


# -- tools and marks -----------------------------------------------------------------------------


def test_networkd_and_tools_are_conditions_that_end_with_their_cause(
    scale_fixture: ScaleFixture,
) -> None:
    host = scale_fixture.cluster.state() / "host"
    state = host / "run/systemd/netif/state"
    rules = host / "usr/lib/udev/rules.d/99-vpc-policy-routes.rules"
    fix = host / "etc/systemd/networkd.conf.d/90-pods.conf"
    for path in (state, rules, fix):
        path.parent.mkdir(parents=True)
    state.write_text("OPER_STATE=routable\n")
    rules.write_text("")
    nudge(scale_fixture)
    wait_for(scale_fixture, {"NetworkdDeletesRules", "ToolsManageEnis"})
    assert "ManageForeignRoutingPolicyRules=no" in scale_fixture.cluster.diff().stderr
    rules.unlink()
    fix.write_text("[Network]\nManageForeignRoutingPolicyRules=no\nManageForeignRoutes=no\n")
    nudge(scale_fixture)
    wait_for(scale_fixture, set())
    state.unlink()
    fix.unlink()


def test_a_foreign_rule_on_our_mark_bits_is_a_condition_and_left_alone(
    scale_fixture: ScaleFixture,
) -> None:
    words = ["priority", "5000", "fwmark", "0x1", "lookup", "4711"]
    scale_fixture.cluster.ip("rule", "add", *words)
    wait_for(scale_fixture, {"MarkConflict"})
    assert "lookup 4711" in scale_fixture.cluster.ip("rule")
    scale_fixture.cluster.ip("rule", "del", *words)
    wait_for(scale_fixture, set())


def nudge(scale_fixture: ScaleFixture) -> None:
    """Make the kernel say something, so that the next full look is now."""
    scale_fixture.cluster.ip("rule", "add", "priority", "32000", "lookup", "main")
    scale_fixture.cluster.ip("rule", "del", "priority", "32000")


def test_udev_has_no_reason_to_change_our_macs(
    scale_fixture: ScaleFixture, tmp_path: Path
) -> None:
    """MACAddressPolicy=persistent leaves alone what was set at creation (NET_ADDR_SET, 3)."""
    veth = scale_fixture.veth(scale_fixture.near[0])
    # A sysfs shows the namespace it was mounted in.
    script = (
        f"mount -t sysfs sysfs {tmp_path} && cat {tmp_path}/class/net/{veth}/addr_assign_type; "
        f"umount {tmp_path}"
    )
    shown = scale_fixture.cluster.lab.run("node1", ["sh", "-c", script])
    assert shown.stdout.strip() == "3", shown.stderr
