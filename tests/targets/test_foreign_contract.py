"""Other owners' chains, rules and files are read as they are, and only ours are touched."""

from __future__ import annotations

import json
import struct
import subprocess
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import rulesets
import services
import wild
from builders import attachment, inputs
from fakes import FakeSurroundings

from lab import stock
from reconciler.core.facts import ForwardChain
from reconciler.diagnostics.findings import judge
from reconciler.diagnostics.foreign import (
    Foreign,
    ForeignRule,
    Ours,
)
from reconciler.diagnostics.ruleset import (
    InSet,
    Load,
    Masked,
    Rule,
    Verdict,
    Within,
    chain_names,
    forward_chains,
)
from reconciler.domains import nat
from reconciler.domains.forward import ForwardAccept
from reconciler.engine.converge import Domain, converge
from reconciler.engine.plan import Change, Verb
from reconciler.targets.files.host import ROOT
from reconciler.targets.foreign import Latest, Surroundings
from reconciler.targets.iptables.legacy import LegacyTables
from reconciler.targets.netlink.nf_tables import Chain
from reconciler.targets.netlink.ruleset import Nfnetlink
from reconciler.targets.netlink.target import Netlink
from reconciler.targets.nftables import foreign_chains
from reconciler.targets.nftables.expressions import decode_rule
from reconciler.targets.nftables.foreign_chains import NEVER_FIREWALLS, ForeignChains, ForwardRules
from reconciler.targets.nftables.target import Nft

pytestmark = pytest.mark.kernel

FROM, TO = (ForwardAccept("ip", "filter", "FORWARD", w, "nn*") for w in ("iifname", "oifname"))


def run(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def rules_of_ours() -> ForwardRules:
    chains = Others()
    return ForwardRules(lambda: chains.look().with_ours)


class Others:
    """What the loop sees of chains of others."""

    def __init__(self) -> None:
        self.look = ForeignChains(NEVER_FIREWALLS, translations=False).observe

    def chains(self) -> tuple[frozenset[tuple[str, str]], tuple[ForwardChain, ...]]:
        seen = self.look()
        return seen.names, forward_chains(seen.ruleset)

    def unread(self) -> tuple[tuple[str, str], ...]:
        return self.look().ruleset.unread


def legacy_filter() -> tuple[frozenset[str], tuple[ForwardChain, ...]]:
    ruleset = LegacyTables().ruleset(("filter",))
    return chain_names(ruleset), forward_chains(ruleset)


@pytest.fixture(params=["fake", "kernel"])
def target(request: pytest.FixtureRequest, home: str) -> Iterator[Any]:
    """Docker's FORWARD chain, and whoever puts rules into it."""
    with rulesets.loaded(home, rulesets.docker()):
        yield FakeSurroundings() if request.param == "fake" else rules_of_ours()


def change(verb: Verb, rule: ForwardAccept) -> Change[ForwardAccept]:
    return Change(verb, rule, "test")


def test_what_is_put_there_is_seen_and_what_is_taken_away_is_not(target: Any) -> None:
    assert target.observe(()) == frozenset()
    assert target.apply([change(Verb.CREATE, FROM), change(Verb.CREATE, TO)]) == ()
    seen = target.observe(())
    assert seen == {FROM, TO}
    assert target.apply([change(Verb.DELETE, rule) for rule in seen]) == ()
    assert target.observe(()) == frozenset()


def test_iptables_goes_on_reading_its_table_and_ours_stand_last(home: str) -> None:
    """A rule that iptables-nft cannot print makes it refuse the whole table."""
    with rulesets.loaded(home, rulesets.docker()):
        before = run("iptables-nft-save").splitlines()
        target = rules_of_ours()
        target.apply([change(Verb.CREATE, FROM), change(Verb.CREATE, TO)])
        after = run("iptables-nft-save").splitlines()
        ours = [x for x in after if "node-network" in x]
        assert ours == [
            "-A FORWARD -i nn+ -m comment --comment node-network -j ACCEPT",
            "-A FORWARD -o nn+ -m comment --comment node-network -j ACCEPT",
        ]
        assert [x for x in after if x.startswith("-A FORWARD")][-2:] == ours
        rest = [x for x in after if x not in ours]
        assert [x for x in rest if x[0] != "#"] == [x for x in before if x[0] != "#"]
        assert "node-network" in run("iptables-nft", "-L", "FORWARD")
        assert "incompatible" not in run("iptables-nft", "-S")
        target.apply([change(Verb.DELETE, rule) for rule in target.observe()])
        assert "node-network" not in run("iptables-nft-save")


def test_a_rule_that_is_there_twice_goes_twice(home: str) -> None:
    with rulesets.loaded(home, rulesets.docker()):
        target = rules_of_ours()
        target.apply([change(Verb.CREATE, FROM), change(Verb.CREATE, FROM)])
        (seen,) = target.observe()
        assert len(seen.handles) == 2
        target.apply([change(Verb.DELETE, seen)])
        assert target.observe() == frozenset()


def test_our_rule_that_somebody_changed_is_another_one(home: str) -> None:
    with rulesets.loaded(home, rulesets.docker()):
        run("nft", 'add rule ip filter FORWARD iifname "nn*" tcp dport 1 accept comment '
            '"node-network"')  # fmt: skip
        (seen,) = rules_of_ours().observe()
        assert seen != FROM
        assert rules_of_ours().apply([change(Verb.DELETE, seen)]) == ()
        assert rules_of_ours().observe() == frozenset()


def test_a_chain_that_is_gone_is_a_failure_with_its_action(home: str) -> None:
    (failure,) = rules_of_ours().apply([change(Verb.CREATE, FROM)])
    assert failure.action == FROM.command(Verb.CREATE)


def test_chains_of_all_families_are_named_and_ours_are_not(home: str) -> None:
    run("nft", "add table inet node_network; add chain inet node_network eni_0")
    run("nft", "add table bridge b; add chain bridge b weird-name")
    run("nft", "add table inet f; add chain inet f fw { type filter hook forward priority 0; "
        "policy drop; }; add rule inet f fw oifname \"nn*\" accept; "
        "add rule inet f fw iifname { \"nn1\", \"nn2\" } accept; "
        "add rule inet f fw iifname \"nn*\" tcp dport 80 accept")  # fmt: skip
    names, forward = Others().chains()
    assert names == {("b", "weird-name"), ("f", "fw")}
    assert forward == (
        ForwardChain("inet", "f", "fw", drops=True, accepts=frozenset({("oifname", "nn*")})),
    )


@pytest.mark.parametrize("target", ["DROP", "REJECT"])
@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_a_rule_that_shuts_a_chain_is_seen_and_what_stands_behind_it_does_not_count(
    home: str, target: str, backend: str
) -> None:
    def observe() -> ForwardChain:
        nft, legacy = Others().chains()[1], legacy_filter()[1]
        return (legacy if backend == "legacy" else nft)[0]

    def rule(*words: str) -> None:
        run(f"iptables-{backend}", *words)

    rule("-A", "FORWARD", "-i", "a+", "-j", target)
    rule("-A", "FORWARD", "-p", "tcp", "-j", target)
    assert not observe().shut
    rule("-A", "FORWARD", "-j", target)
    rule("-A", "FORWARD", "-i", "nn+", "-j", "ACCEPT")
    assert (observe().shut, observe().accepts) == (True, frozenset())
    rule("-I", "FORWARD", "-i", "nn+", "-j", "ACCEPT")
    assert observe().accepts == {("iifname", "nn*")}


def test_a_large_foreign_ruleset_costs_little(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains are listed by name; nobody else's rules, sets or maps are read."""
    many = services.padding(300)
    asked: list[str] = []
    rules = Nfnetlink.rules

    def counted(kernel: Nfnetlink, chain: Chain, limit: int, *more: int) -> list[bytes]:
        asked.append(chain.path)
        return rules(kernel, chain, limit, *more)

    monkeypatch.setattr(Nfnetlink, "rules", counted)
    with rulesets.loaded(home, services.kube_proxy("nftables", many, node="10.0.1.10")):
        target = Others()
        names, _ = target.chains()
        assert asked == []
        assert target.chains()[0] == names
        run("nft", "add table ip filter; add chain ip filter FORWARD { type filter hook forward "
            "priority 0; policy drop; }")  # fmt: skip
        assert [c.drops for c in target.chains()[1]] == [True], "a change is seen"
        assert target.chains()[1] == target.chains()[1]
    assert len(names) > 900
    assert asked == ["ip filter FORWARD"], "once for each change"


def test_every_chain_is_listed_whatever_its_number(home: str) -> None:
    """More than one buffer of the kernel's; by libnftables' word."""
    many = services.kube_proxy("nftables", services.padding(1500), node="10.0.1.10")
    with rulesets.loaded(home, many, rulesets.docker()):
        run("nft", "add table bridge b; add chain bridge b f { type filter hook forward "
            "priority 0; policy drop; }")  # fmt: skip
        listed = json.loads(run("nft", "-j", "list", "chains"))["nftables"][1:]
        seen = Nfnetlink().chains(list)
    assert len(seen) > 4500
    assert {(c.family, c.table, c.name) for c in seen} == {
        tuple(e["chain"][k] for k in ("family", "table", "name")) for e in listed
    }
    hooked = {
        (e["chain"]["name"], e["chain"]["hook"], e["chain"]["type"], e["chain"]["prio"])
        for e in listed
        if "hook" in e["chain"] and e["chain"]["family"] != "bridge"
    }
    assert {(c.name, c.hook, c.type, c.priority) for c in seen if c.hook} == hooked
    assert {c.name for c in seen if c.drops} == {"FORWARD"}


def test_of_very_many_chains_those_that_matter_are_kept() -> None:
    chains = [Chain("ip", "nat", f"KUBE-SVC-{n}") for n in range(20_000)]
    chains += [Chain("ip", "nat", f"x{n}") for n in range(20_000)]
    chains += [Chain("ip", "nat", "cali-x"), Chain("ip", "filter", "FORWARD", "forward")]
    names, hooked = foreign_chains.choose(chains)
    assert len(names) == foreign_chains.MAX_NAMES + 2
    assert {("nat", "cali-x"), ("filter", "FORWARD")} <= names
    assert [c.name for c in hooked] == ["FORWARD"]


def test_a_chain_that_is_too_long_is_named_and_the_others_are_read(home: str) -> None:
    hook = "{ type filter hook forward priority 0; policy drop; }"
    rules = "".join(f"ip saddr 10.0.{n >> 8}.{n & 255} accept\n" for n in range(5_001))
    text = f"table ip a {{ chain long {{ type filter hook forward priority 0;\n{rules}}}\n}}\n"
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)
    run("nft", f"add table ip b; add chain ip b short {hook}; add rule ip b short accept")
    target = Others()
    assert [c.path for c in target.chains()[1]] == ["ip b short"]
    ((what, why),) = target.unread()
    assert (what, "more than 5000 rules" in why) == ("chain ip a long", True)
    nothing = Ours(frozenset(), 0, frozenset(), frozenset(), frozenset())
    (finding,) = judge(Foreign(unread=target.unread()), nothing)
    assert (finding.subject, finding.reason) == ("chain ip a long", "ForeignUnread")


def test_of_very_many_chains_with_a_hook_forward_ones_are_read_first(
    home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign_chains, "MAX_BASES", 2)
    chains = "".join(
        f"chain c{n} {{ type filter hook {hook} priority 0; }}\n"
        for n, hook in enumerate(("input", "output", "forward"))
    )
    subprocess.run(["nft", "-f", "-"], input=f"table ip a {{\n{chains}}}\n", text=True, check=True)
    seen = Others().look().ruleset
    assert [b.id.name for b in seen.bases] == ["c2", "c0"]
    assert seen.unread == (("other owners' chains", "3 have a hook, and 2 at most are read"),)


NOT_UTF8 = b"\xff\xfename"


def test_names_and_comments_that_are_no_text_hide_nothing(home: str) -> None:
    """nf_tables takes any bytes but NUL for a name; libnftables' JSON then cannot be decoded."""
    kernel = Nfnetlink()
    wild.make_table(kernel, NOT_UTF8)
    wild.make_chain(kernel, NOT_UTF8, NOT_UTF8, hook=2)
    wild.make_chain(kernel, NOT_UTF8, b"far" + NOT_UTF8)
    wild.make_rule(kernel, NOT_UTF8, NOT_UTF8, jump=b"far" + NOT_UTF8)
    wild.make_rule(kernel, NOT_UTF8, NOT_UTF8, comment=NOT_UTF8)
    run("nft", "add table ip f; add chain ip f g { type filter hook forward priority 0; "
        "policy drop; }; add rule ip f g drop")  # fmt: skip
    target = Others()
    names, forward = target.chains()
    name = r"\xff\xfename"
    assert names == {(name, name), (name, f"far{name}"), ("f", "g")}
    assert {(c.path, c.shut) for c in forward} == {
        (f"ip {name} {name}", True),
        ("ip f g", True),
    }
    assert target.unread() == ()
    json.dumps([list(n) for n in names]).encode()


IN, OUT = Load("iifname", 0, 16, 0), Load("oifname", 0, 16, 0)
ACCEPT, DROP = Verdict("accept"), Verdict("drop")
STATE, NOTHING = Load("state", 0, 4, 0), bytes(4)
A, B = ip_address("10.0.0.1").packed, ip_address("10.128.0.0").packed


def host(number: int) -> bytes:
    return struct.pack("=I", number)


def is_(value: bytes, *, negated: bool = False) -> Within:
    return Within(0, value, value, negated)


RULES: dict[str, Rule] = {
    "accept": (ACCEPT,),
    'counter log prefix "x" drop': (DROP,),
    "reject": (DROP,),
    "jump other": (Verdict("jump", "other"),),
    "goto other": (Verdict("goto", "other"),),
    "return": (Verdict("return"),),
    'iifname "nn*" accept': (IN, is_(b"nn"), ACCEPT),
    'oifname != "eth0" drop': (OUT, is_(b"eth0".ljust(16, b"\0"), negated=True), DROP),
    "ct state established,related accept": (
        STATE,
        Masked(0, 0, host(6), NOTHING),
        is_(NOTHING, negated=True),
        ACCEPT,
    ),
    "ct state invalid drop": (
        STATE,
        Masked(0, 0, host(1), NOTHING),
        is_(NOTHING, negated=True),
        DROP,
    ),
    "meta mark 0x1 accept": (Load("mark", 0, 4, 0), is_(host(1)), ACCEPT),
    "meta l4proto tcp drop": (Load("l4proto", 0, 1, 0), is_(b"\6"), DROP),
    "ip saddr 10.0.0.1 drop": (Load("network", 12, 4, 0), is_(A), DROP),
    "ip daddr 10.0.0.0/8 drop": (Load("network", 16, 1, 0), is_(b"\n"), DROP),
    "ip saddr != 10.128.0.0/9 drop": (
        Load("network", 12, 4, 0),
        Masked(0, 0, b"\xff\x80\0\0", NOTHING),
        is_(B, negated=True),
        DROP,
    ),
    "ip saddr @s drop": (Load("network", 12, 4, 0), InSet(0, "s"), DROP),
    "ip saddr != @s drop": (Load("network", 12, 4, 0), InSet(0, "s", negated=True), DROP),
}
"""Rules as typed, and as decoded."""


def decoded(home: str, rule: str, family: str = "ip") -> Rule:
    run("nft", f"add table {family} f; add set {family} f s {{ type ipv4_addr; }}; "
        f"add chain {family} f other; add chain {family} f c "
        f"{{ type filter hook forward priority 0; }}; add rule {family} f c {rule}")  # fmt: skip
    kernel = Nfnetlink()
    (chain,) = kernel.chains(lambda all_: [c for c in all_ if c.path == f"{family} f c"])
    (one,) = kernel.rules(chain, 9)
    return decode_rule(one)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_decoded_as_it_was_typed(home: str, rule: str) -> None:
    assert decoded(home, rule) == RULES[rule]


def test_addresses_of_both_families_are_decoded(home: str) -> None:
    rule = decoded(home, "ip6 saddr fd00::/8 drop", "inet")
    assert rule[-3:] == (Load("network", 8, 1, 0), is_(b"\xfd"), DROP)


@pytest.mark.parametrize(
    "rule",
    [
        "limit rate 1/second drop",
        "meta cpu 1 drop",
        "tcp dport 80 drop",
        "ip ttl 3 drop",
        "meta mark & 0xff == 0x1 drop",
        "ip saddr 10.0.0.1-10.0.0.7 drop",
        "fib daddr type local drop",
        "numgen random mod 10 < 1 drop",
        "ct original packets > 10 drop",
    ],
)
def test_a_rule_that_drops_some_packets_never_looks_as_if_it_dropped_all(
    home: str, rule: str
) -> None:
    decoded(home, rule)
    assert [c.shut for c in Others().chains()[1]] == [False]


def test_what_ends_libnftables_is_read_like_anything_else(home: str) -> None:
    """Its reading of this set's user data is a segmentation fault, whoever asks for what."""
    wild.make_table(Nfnetlink(), b"t")
    wild.make_fatal_set(Nfnetlink(), b"t")
    done = subprocess.run(["nft", "list", "ruleset"], capture_output=True, check=False)
    assert done.returncode < 0, "or else this test shows nothing"
    assert Others().chains() == (frozenset(), ())


def test_legacy_tables_show_their_policy_chains_and_plain_accepts(home: str) -> None:
    assert legacy_filter() == (frozenset(), ())
    words = (
        "-P FORWARD DROP|-N KUBE-FORWARD|-A FORWARD -j KUBE-FORWARD|-A FORWARD -i nn+ -j ACCEPT"
    )
    for rule in words.split("|"):
        run("iptables-legacy", *rule.split())
    run("iptables-legacy", "-A", "FORWARD", "-o", "nnx", "-m", "comment", "--comment", "c",
        "-j", "ACCEPT")  # fmt: skip
    # None of these lets everything of a link pass.
    for rule in ("-i a+ -p tcp", "-i b+ -s 10.0.0.0/8", "! -i c+", "-i d+ -o e+", "-f -i g+"):
        run("iptables-legacy", "-A", "FORWARD", *rule.split(), "-j", "ACCEPT")
    run(
        "iptables-legacy", "-A", "FORWARD", "-i", "h+", "-m", "mark", "--mark", "1", "-j", "ACCEPT"
    )
    run("iptables-legacy", "-A", "FORWARD", "-i", "i+", "-j", "DROP")
    run("iptables-legacy", "-A", "INPUT", "-i", "j+", "-j", "ACCEPT")
    run("iptables-legacy", "-A", "KUBE-FORWARD", "-i", "k+", "-j", "ACCEPT")
    accepts = frozenset({("iifname", "nn*"), ("oifname", "nnx")})
    chain = ForwardChain("ip", "filter", "FORWARD", "legacy", drops=True, accepts=accepts)
    assert legacy_filter() == (frozenset({"KUBE-FORWARD"}), (chain,))
    run("iptables-legacy", "-P", "FORWARD", "ACCEPT")
    assert legacy_filter()[1][0].drops is False


def test_looking_makes_no_legacy_table(home: str) -> None:
    legacy_filter()
    assert Path("/proc/thread-self/net/ip_tables_names").read_text() == ""


def test_rules_of_others_are_told_from_the_kernels_and_from_ours(home: str) -> None:
    assert Netlink().foreign_rules() == ()
    run("ip", "rule", "add", "priority", "512", "lookup", "512", "protocol", "201")
    run("ip", "rule", "add", "priority", "9", "fwmark", "0x200/0xf00", "lookup", "2004")
    run("ip", "rule", "add", "priority", "10", "from", "10.0.0.1", "lookup", "7")
    run("ip", "rule", "add", "priority", "11", "from", "10.0.0.1", "iif", "lo", "lookup", "7")
    run("ip", "rule", "add", "priority", "12", "to", "10.0.0.1", "lookup", "7")
    run("ip", "rule", "add", "priority", "13", "prohibit")
    run("ip", "rule", "add", "priority", "14", "goto", "32766")
    run("ip", "rule", "add", "priority", "8", "goto", "9")
    run("ip", "rule", "add", "priority", "15", "lookup", "7", "suppress_prefixlength", "0")
    source = ip_network("10.0.0.1/32")
    assert set(Netlink().foreign_rules()) == {
        ForeignRule("ipv4", 9, 2004, 0x200, 0xF00),
        ForeignRule("ipv4", 10, 7, source=source),
        ForeignRule("ipv4", 11, 7, source=source, selects_more=True),
        ForeignRule("ipv4", 12, 7, destination=source),
        ForeignRule("ipv4", 8, 0, selects_more=True),
        ForeignRule("ipv4", 13, 0, does="prohibit"),
        ForeignRule("ipv4", 14, 0, does="goto 32766"),
        ForeignRule("ipv4", 15, 7, selects_more=True),
    }


def test_one_look_brings_everything_together(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ROOT, str(tmp_path))
    with rulesets.loaded(home, rulesets.docker(), rulesets.firewalld()):
        seen = Surroundings().observe()
    assert "DOCKER-USER" in seen.chains
    assert {"filter", "nat", "firewalld"} <= seen.tables
    assert [c.path for c in seen.forward or () if c.drops] == ["ip filter FORWARD"]
    assert seen.unread == ()


@pytest.mark.parametrize("iptables", stock.Iptables)
def test_what_the_stock_plugin_left_is_found_whichever_iptables_it_used(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, iptables: stock.Iptables
) -> None:
    """A pod's rules come before ours, and its mark is one of our bits."""
    monkeypatch.setenv(ROOT, str(tmp_path))
    run("ip", "link", "add", "eth0", "type", "veth", "peer", "eth1")
    run("ip", "address", "add", "10.0.1.10/24", "dev", "eth0")
    subnet = ip_network("10.0.1.0/24")
    assert isinstance(subnet, IPv4Network)
    enis = tuple(
        stock.StockEni(d, f"eth{d}", IPv4Address(f"10.0.1.{10 + d}"), subnet) for d in (0, 1)
    )
    node = stock.StockNode(enis, iptables=iptables)
    stock.apply(home, (*stock.host_steps(node), *stock.eni_steps(node)))
    pod = ip_network("10.0.1.21/32")
    run("ip", "rule", "add", "priority", "1536", "from", str(pod), "lookup", "2")
    ours = Ours(
        families=frozenset({"ip"}),
        mark_mask=0xFF,
        patterns=frozenset({"nn*"}),
        eni_links=frozenset({"eth1"}),
        sources=frozenset({pod}),
    )
    found = {(f.reason, f.subject) for f in judge(Surroundings().observe(), ours)}
    assert {
        ("MarkConflict", "ip rule 1024: from all fwmark 0x80/0x80 lookup main"),
        ("RuleBeforeOurs", "ip rule 1536: from 10.0.1.21/32 lookup 2"),
    } <= found
    by_chain = {("MarkConflict", "chain AWS-SNAT-CHAIN-0")}
    assert found >= by_chain or iptables is stock.Iptables.LEGACY


def test_a_pod_that_comes_is_no_reason_to_read_what_others_have(
    home: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each is a change of a ruleset, ours; beside 60,000 chains a look takes half a second."""
    monkeypatch.setenv(ROOT, str(tmp_path))
    with rulesets.loaded(home, rulesets.docker()):
        ours, around = Nft(), Surroundings()
        now = inputs(2)
        assert converge([Domain("nat", nat.desire, nat.plan, ours)], now)["nat"].settled
        seen = around.observe()
        looks: list[int] = []
        chains = Nfnetlink.chains

        def counted(*args: Any, **kwargs: Any) -> Any:
            looks.append(1)
            return chains(*args, **kwargs)

        monkeypatch.setattr(Nfnetlink, "chains", counted)
        for number in range(3):
            pods = nat.desire_pods(inputs(2, (attachment(number),)))
            assert ours.apply([Change(Verb.CREATE, o, "test") for o in pods]) == ()
            assert around.observe() == seen
        assert looks == []
        run("nft", "add chain ip filter other")
        assert "other" in around.observe().chains, "but another's change is"
        assert len(looks) == 1
        around.forward.apply([change(Verb.CREATE, FROM)])
        assert around.forward.observe([FROM]) == {FROM}, "and ours in another's chain"
        assert len(looks) == 1
        around.observe()
        assert around.forward.observe() == {FROM}, "which is known from then on"
        assert len(looks) == 2


class Slow:
    """Each look takes as long as it is told to."""

    def __init__(self) -> None:
        self.now, self.takes, self.looks = 100.0, 0.0, 0
        self.latest = Latest(self._read, lambda: self.now)
        self.observe = self.latest.observe

    def _read(self) -> str:
        self.now += self.takes
        self.looks += 1
        return str(self.looks)


def test_a_look_that_takes_long_is_good_for_a_while() -> None:
    """Pods wait for it, and others may change their rules without end."""
    around = Slow()
    for _ in range(3):
        around.observe()
    assert around.looks == 3
    around.takes = 0.5
    seen = around.observe()
    for _ in range(10):
        assert around.observe() == seen
        around.now += 0.24
    assert around.looks == 4
    around.now += 0.2
    assert around.observe() != seen


def test_the_loop_gets_the_last_look_at_once_while_a_thread_takes_the_next() -> None:
    reading, go_on = threading.Event(), threading.Event()
    looks = iter("aab")
    news: list[bool] = []

    def read() -> str:
        if threading.current_thread() is not threading.main_thread():
            reading.set()
            assert go_on.wait(60)
        return next(looks)

    latest = Latest(read)
    latest.apart = True

    def refresh() -> None:
        for _ in range(2):
            latest.wait()
            news.append(latest.turn())

    thread = threading.Thread(target=refresh)
    thread.start()
    assert latest.observe() == "a", "the first look is waited for"
    assert latest.observe() == "a"
    assert reading.wait(60), "that it was asked for has the next one taken"
    assert latest.observe() == "a", "no look is waited for while one is taken"
    go_on.set()
    thread.join(60)
    assert news == [False, True], "the same again is no news"
    assert latest.observe() == "b"
    latest.stop()
    latest.wait()
