"""Others' chains, as the kernel keeps them: read rule by rule, and walked as the kernel does."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address

import pytest
import rulesets
import services
from hypothesis import given
from hypothesis import strategies as st
from rulesets import Backend

from reconciler.core.facts import ForwardChain
from reconciler.diagnostics.packet import Mark, Passage, State
from reconciler.diagnostics.ruleset import ChainId, Expression, Ruleset, forward_chains
from reconciler.diagnostics.walk import ChainOutcome, at_hook
from reconciler.domains.nat_objects import NftTable
from reconciler.engine.plan import Change, Verb
from reconciler.targets.iptables.legacy import PRIORITIES, LegacyTables
from reconciler.targets.iptables.xtables import MATCHES as MATCHES_OF_XT
from reconciler.targets.iptables.xtables import decode_match, decode_target
from reconciler.targets.nftables import foreign_chains as target
from reconciler.targets.nftables.foreign_chains import NEVER_FIREWALLS, ForeignChains
from reconciler.targets.nftables.target import Nft

pytestmark = pytest.mark.kernel

POD, FAR, HOST = map(ip_address, ("10.0.1.20", "198.51.100.7", "10.0.1.10"))
OUT = Passage("nn1", "eth1", POD, FAR, 6, local=False, has_way_back=True, mark=Mark(0))
BACK = Passage("eth1", "nn1", FAR, POD, 6, local=False, mark=Mark(0))
PROBED = replace(OUT, outgoing="", destination=HOST, local=True, state=State.ESTABLISHED)


def run(*argv: str, text: str | None = None) -> None:
    subprocess.run(argv, input=text, capture_output=True, text=True, check=True)


def read() -> Ruleset:
    nft = ForeignChains().observe().ruleset
    legacy = LegacyTables().ruleset(PRIORITIES)
    return Ruleset((*nft.bases, *legacy.bases), {**nft.rules, **legacy.rules}, nft.elements)


def forward() -> tuple[ForwardChain, ...]:
    return forward_chains(ForeignChains(NEVER_FIREWALLS).observe().ruleset)


def outcomes(hook: str, passage: Passage, found: Ruleset | None = None) -> list[ChainOutcome]:
    seen = found or read()
    return list(at_hook(seen.bases, hook, passage, seen))


def words(hook: str, passage: Passage) -> set[str]:
    return {w for f in outcomes(hook, passage) for w in f.words}


def passes(*ways: tuple[str, Passage]) -> bool:
    return all(words(hook, passage) <= {"accept"} for hook, passage in ways)


EVERYWHERE = (
    ("prerouting", replace(OUT, outgoing="")),
    ("forward", OUT),
    ("postrouting", replace(OUT, incoming="")),
    ("prerouting", replace(BACK, outgoing="")),
    ("forward", BACK),
    ("postrouting", replace(BACK, incoming="")),
    ("input", PROBED),
)


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_what_lives_with_us_lets_pods_packets_pass_for_certain(
    home: str, backend: Backend
) -> None:
    known = services.padding(30, node_ports=5)
    proxy = services.kube_proxy("iptables", known, node=str(HOST), backend=backend)
    ports = services.portmap([services.HostPort(8000, str(POD), 80)], backend=backend)
    calico = rulesets.calico("nn", ["nn1"], backend=backend)
    with rulesets.loaded(home, proxy, ports, calico):
        assert passes(*EVERYWHERE)
        stranger = replace(OUT, incoming="nn7")
        (hit,) = [h for f in outcomes("forward", stranger) for h in f.hits]
        assert "cali-from-wl-dispatch" in str(hit)


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_dockers_policy_is_seen_and_its_masquerade_is_of_its_own_bridge(
    home: str, backend: Backend
) -> None:
    with rulesets.loaded(home, rulesets.docker(backend=backend)):
        assert words("forward", OUT) == words("forward", BACK) == {"drop"}
        assert passes(("postrouting", replace(OUT, incoming="")))
        container = replace(OUT, incoming="", source=ip_address("172.17.0.2"))
        assert words("postrouting", container) == {"snat"}
        run(f"iptables-{backend}", "-A", "FORWARD", "-i", "nn+", "-j", "ACCEPT")
        assert words("forward", OUT) == {"accept"}


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_ip6tables_of_both_backends_are_followed(home: str, backend: str) -> None:
    own, far = ip_address("2001:db8::20"), ip_address("2001:db8:1::7")
    out = replace(OUT, source=own, destination=far, port=80)
    program = f"ip6tables-{backend}"
    run(program, "-N", "X")
    run(program, "-A", "FORWARD", "-s", "2001:db8::/64", "!", "-o", "docker0", "-g", "X")
    run(program, "-A", "X", "-p", "tcp", "--dport", "25", "-j", "ACCEPT")
    run(program, "-A", "X", "-i", "nn+", "-m", "conntrack", "--ctstate", "NEW", "-j", "REJECT")
    assert words("forward", out) == {"drop"}
    assert words("forward", replace(out, port=25)) == {"accept"}
    assert words("forward", replace(out, source=far)) == {"accept"}
    assert words("forward", OUT) <= {"accept"}, "of IPv4 nothing is asked"


def test_firewalld_rejects_what_is_new_and_lets_probes_pass(home: str) -> None:
    with rulesets.loaded(home, rulesets.firewalld()):
        assert words("forward", OUT) == {"drop"}
        assert passes(("input", PROBED))
        assert words("input", replace(PROBED, state=State.NEW)) == {"drop"}
    with rulesets.loaded(home, rulesets.firewalld(trusted=("nn+",))):
        assert passes(*EVERYWHERE)


NATIVE = """table inet fw {
  set bad { type ipv4_addr; flags interval; elements = { 198.51.100.0/24, 192.0.2.1 } }
  map ways { type ifname : verdict; elements = { "eth7" : jump a, "nn1" : jump b } }
  chain a { accept; }
  chain b { ct state vmap { established : accept, new : jump c }; }
  chain c { ip saddr 10.0.1.0/24 ip daddr @bad tcp dport { 80, 1000-2000 } drop;
            ip saddr != @bad meta mark set meta mark | 0x10000;
            meta mark & 0x10000 == 0x10000 goto d; accept; }
  chain d { fib daddr type local accept; reject with icmpx admin-prohibited; }
  chain forward { type filter hook forward priority 5; iifname vmap @ways; }
  chain nat { type nat hook postrouting priority 100;
              ip saddr 10.0.0.0/8 ip daddr != 10.0.0.0/16 masquerade; }
}
"""


def test_sets_maps_marks_and_prefixes_are_evaluated_as_the_kernel_does(home: str) -> None:
    run("nft", "-f", "-", text=NATIVE)
    for port in (80, 1500, 8080):
        (outcome,) = outcomes("forward", replace(OUT, port=port))
        assert outcome.surely("drop")
        assert outcome.hits[-1].chain.name == ("d" if port == 8080 else "c")
    (unknown,) = outcomes("forward", OUT)
    assert unknown.surely("drop"), "by one or the other"
    assert words("forward", replace(OUT, state=State.ESTABLISHED)) == {"accept"}
    assert words("forward", BACK) == {"accept"}
    assert words("postrouting", OUT) == {"snat"}
    assert words("postrouting", replace(OUT, destination=HOST)) == {"accept"}
    run("nft", "flush", "set", "inet", "fw", "bad")
    (outcome,) = outcomes("forward", replace(OUT, port=80))
    assert outcome.hits[-1].chain.name == "d"


DROPPING = "chain forward { type filter hook forward priority 0; policy drop; }"


def test_a_table_that_sleeps_drops_nothing(home: str) -> None:
    run("nft", "-f", "-", text=f"table inet fw {{ flags dormant; {DROPPING}; }}\n")
    assert read().bases == ()
    assert [(c.drops, c.shut) for c in forward()] == []
    run("nft", "-f", "-", text="table inet fw { }\n")
    assert words("forward", OUT) == {"drop"}
    assert [c.drops for c in forward()] == [True]


def test_a_table_of_another_family_that_is_called_as_ours_is_not_ours(home: str) -> None:
    for name in ("inet node_network", "ip node_network", "inet kube-proxy", "ip kube-proxy"):
        run("nft", "-f", "-", text=f"table {name} {{ {DROPPING}; }}\n")
    theirs = {("ip", "node_network"), ("inet", "kube-proxy")}
    found = ForeignChains(NEVER_FIREWALLS).observe().ruleset.bases
    assert {(b.id.family, b.id.table) for b in found} == theirs
    assert {(c.family, c.table) for c in forward()} == theirs


@pytest.mark.parametrize(
    ("statement", "asks", "what"),
    [
        ("ip daddr set 192.0.2.9", "", "rewrite"),
        ("udp dport 53 udp dport set 54", "", "rewrite"),
        ("ip ttl set 64", None, ""),
        ('quota name "q" drop', "quota", "drop"),
        ('counter name "c" drop', "", "drop"),
    ],
)
def test_what_writes_into_a_packet_or_counts_it_is_told_from_what_does_not(
    home: str, statement: str, asks: str | None, what: str
) -> None:
    objects = "quota q { over 1 mbytes }; counter c { };"
    chain = f"chain f {{ type filter hook forward priority 0; {statement}; }}"
    run("nft", "-f", "-", text=f"table inet fw {{ {objects} {chain}; }}\n")
    (outcome,) = outcomes("forward", replace(OUT, protocol=17, port=53))
    assert [(h.what, h.asks) for h in outcome.hits] == ([] if asks is None else [(what, asks)])


MATCHES = (
    ("-p tcp -m multiport --dports 25,100:200", 150, 201),
    ("-p tcp --dport 1000:2000", 1500, 999),
    ("-p udp --dport 53", None, 53),
    ("-m conntrack --ctstate NEW,RELATED -m comment --comment x -p tcp --dport 7", 7, 8),
    ("-m addrtype ! --dst-type LOCAL -p tcp --dport 7", 7, 8),
    ("-s 10.0.0.0/8 ! -d 10.0.0.0/8 -i nn+ ! -o docker0 -p tcp --dport 7", 7, 8),
    ("-m mark ! --mark 0x1/0x1 -p tcp --dport 7", 7, 8),
)


@pytest.mark.parametrize("backend", ["nft", "legacy"])
@pytest.mark.parametrize(("match", "stopped", "passing"), MATCHES, ids=[m[0] for m in MATCHES])
def test_matches_of_iptables_are_evaluated_in_both_backends(
    home: str, backend: str, match: str, stopped: int | None, passing: int
) -> None:
    for rule in (["-N", "X"], ["-A", "FORWARD", "-g", "X"], ["-A", "X", *match.split(), "-j"]):
        run(f"iptables-{backend}", *rule, *(["DROP"] if rule[-1] == "-j" else []))
    if stopped is not None:
        assert words("forward", replace(OUT, port=stopped)) == {"drop"}
    assert words("forward", replace(OUT, port=passing)) == {"accept"}


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_what_is_not_evaluated_may_hold_and_is_named(home: str, backend: str) -> None:
    match = ("-m", "statistic", "--mode", "random", "--probability", "0.5")
    rule = ("-A", "FORWARD", *match, "-j", "DROP")
    run(f"iptables-{backend}", *rule)
    (outcome,) = [f for f in outcomes("forward", OUT) if f.words != {"accept"}]
    assert outcome.words == {"accept", "drop"}
    (hit,) = outcome.hits
    assert hit.asks == "statistic"


def rules(backend: str, count: int) -> None:
    lines = "\n".join(f"-A BIG -s 192.0.2.{n % 256} -j ACCEPT" for n in range(count))
    text = f"*filter\n:BIG - [0:0]\n-A FORWARD -j BIG\n{lines}\nCOMMIT\n"
    run(f"iptables-{backend}-restore", text=text)


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_a_chain_beyond_the_bound_is_not_read_and_said_not_to_have_been(
    home: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "MAX_RULES", 400)
    monkeypatch.setattr("reconciler.targets.iptables.legacy.MAX_TABLE_BYTES", 1 << 14)
    rules(backend, 500)
    outcome = next(f for f in outcomes("forward", OUT) if f.base.id.backend == backend)
    assert outcome.words == {"accept", "drop"}
    assert {h.what for h in outcome.hits} >= {"unread"}


def test_all_chains_together_have_a_bound_too(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rules("nft", 500)
    whole = read().rules[ChainId("nft", "ip", "filter", "BIG")]
    assert whole is not None
    assert len(whole) == 500
    monkeypatch.setattr(target, "MAX_RULES_IN_ALL", 400)
    assert read().rules[ChainId("nft", "ip", "filter", "BIG")] is None
    monkeypatch.setattr(target, "MAX_CHAINS", 1)
    assert None in _rules_of(read())


def _rules_of(found: Ruleset) -> Iterable[object]:
    return found.rules.values()


def test_all_legacy_tables_together_have_a_bound(
    home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in ("iptables-legacy", "ip6tables-legacy"):
        run(command, "-P", "FORWARD", "ACCEPT")  # it makes the table
    tables = [ChainId("legacy", family, "filter", "FORWARD") for family in ("ip", "ip6")]
    assert [read().rules[t] for t in tables] == [(), ()]
    monkeypatch.setattr("reconciler.targets.iptables.legacy.MAX_BYTES_IN_ALL", 1200)
    assert [read().rules[t] for t in tables] == [(), None]


def test_a_name_that_is_not_utf8_is_read_and_can_be_printed(home: str) -> None:
    odd = b"\xff\xfe"
    for argv in ([b"-N", odd], [b"-A", b"FORWARD", b"-j", odd], [b"-A", odd, b"-j", b"DROP"]):
        subprocess.run([b"iptables-legacy", *argv], check=True)
    (outcome,) = outcomes("forward", OUT)
    assert outcome.surely("drop")
    assert str(outcome.hits[-1].chain).encode()


def test_a_set_beyond_the_bound_may_hold_anything(
    home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    elements = ", ".join(f"192.0.{n // 256}.{n % 256}" for n in range(4000))
    run(
        "nft",
        "-f",
        "-",
        text=f"""table ip t {{
        set s {{ type ipv4_addr; elements = {{ {elements} }}; }}
        chain c {{ type filter hook forward priority 0; ip daddr @s drop; }}
    }}""",
    )
    assert words("forward", OUT) == {"accept"}
    assert words("forward", replace(OUT, destination=ip_address("192.0.15.1"))) == {"drop"}
    monkeypatch.setattr(target, "MAX_SET_MESSAGES", 1)
    (outcome,) = outcomes("forward", OUT)
    assert outcome.words == {"accept", "drop"}
    assert outcome.hits[0].asks == "set s"


def test_all_sets_and_all_rules_together_have_a_bound_too(
    home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    elements = ", ".join(f"192.0.{n // 256}.{n % 256}" for n in range(400))
    sets = "".join(
        f"set s{n} {{ type ipv4_addr; elements = {{ {elements} }}; }}\n" for n in range(3)
    )
    asks = "".join(f"ip daddr @s{n} drop\n" for n in range(3))
    marks = "meta mark set 1 " * 50
    run(
        "nft",
        "-f",
        "-",
        text=f"""table ip t {{
        {sets}
        chain c {{ type filter hook forward priority 0;
            {asks}
        }}
        chain d {{ type filter hook forward priority 1;
            {marks}
        }}
    }}""",
    )
    assert {e and len(e.ranges) for e in read().elements.values()} == {400}
    seen = ForeignChains(NEVER_FIREWALLS).observe().ruleset
    assert len(forward_chains(seen)) == 2
    assert not seen.unread
    monkeypatch.setattr(target, "MAX_ELEMENTS_IN_ALL", 1000)
    assert [e and len(e.ranges) for e in read().elements.values()] == [400, 400, None]
    monkeypatch.setattr(target, "MAX_BYTES_IN_ALL", 2000)
    found = read()
    assert found.rules[ChainId("nft", "ip", "t", "c")]
    assert found.rules[ChainId("nft", "ip", "t", "d")] is None
    monkeypatch.setattr(target, "MAX_BYTES_OF_RULES", 2000)
    seen = ForeignChains(NEVER_FIREWALLS).observe().ruleset
    assert [c.name for c in forward_chains(seen)] == ["c"]
    ((what, why),) = seen.unread
    assert what == "chain ip t d"
    assert "bytes" in why


def test_an_unchanged_ruleset_is_not_read_again(home: str) -> None:
    chains, legacy = ForeignChains(), LegacyTables()
    rules("nft", 3)
    rules("legacy", 3)
    seen = chains.observe(), legacy.ruleset(("filter",))
    assert chains.observe() is seen[0]
    assert legacy.ruleset(("filter",)) is seen[1], "though its counters have changed"
    assert Nft().apply([Change(Verb.CREATE, NftTable(), "missing")]) == ()
    assert chains.observe() is seen[0], "only ours has changed"
    run("iptables-nft", "-F", "BIG")
    run("iptables-legacy", "-F", "BIG")
    assert chains.observe() is not seen[0]
    assert legacy.ruleset(("filter",)) is not seen[1]


@given(
    name=st.sampled_from([*MATCHES_OF_XT, "unknown"]),
    revision=st.integers(0, 9),
    info=st.binary(max_size=200),
)
def test_no_match_or_target_of_another_kernel_ends_the_look(
    name: str, revision: int, info: bytes
) -> None:
    assert all(isinstance(e, Expression) for e in decode_match(name, revision, info))
    for target_name in ("MARK", "CONNMARK", "REJECT", "SNAT", name):
        found = decode_target(target_name, revision, info)
        assert all(isinstance(e, Expression) for e in found)
