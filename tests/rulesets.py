"""Rulesets of other owners, as they find themselves on a node: values, and a thin loader.

A value says what it puts where; the text that loads it and the text that takes it away again both
follow from that. Written from what these programs lay out (their own documentation and a look at
nodes that run them), in the shape that matters to a packet: hooks, priorities, policies, marks and
the order of jumps.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lab import netns

Backend = Literal["nft", "legacy"]
"""Which kernel interface iptables speaks; a node may have rules in both at once."""

BUILT_IN = {
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "raw": ("PREROUTING", "OUTPUT"),
}
"""Chains that iptables makes with each table (iptables(8))."""


class RulesetError(Exception):
    """A program refused a ruleset; carries what it said and the text it was given."""


@dataclass(frozen=True, slots=True)
class Xtables:
    """What one owner has in one of iptables' tables.

    Attributes:
        chains: the owner's own.
        jumps: (built-in chain, rule) from the top, ahead of what is there: every program here
            puts its jumps first.
        rules: ``-A CHAIN ...`` in the owner's own chains.
        policies: (built-in chain, policy).
    """

    table: str
    chains: tuple[str, ...] = ()
    jumps: tuple[tuple[str, str], ...] = ()
    rules: tuple[str, ...] = ()
    policies: tuple[tuple[str, str], ...] = ()

    @property
    def load(self) -> str:
        """Text for ``iptables-restore --noflush``."""
        place: dict[str, int] = {}
        lines = [f"*{self.table}"]
        lines += [f":{chain} {policy} [0:0]" for chain, policy in self.policies]
        lines += [f":{chain} - [0:0]" for chain in self.chains]
        lines += self.rules
        for chain, rule in self.jumps:
            place[chain] = place.get(chain, 0) + 1
            lines.append(f"-I {chain} {place[chain]} {rule}")
        return "\n".join([*lines, "COMMIT", ""])

    @property
    def remove(self) -> str:
        """Text for ``iptables-restore --noflush`` that takes all of it away."""
        lines = [f"*{self.table}"]
        lines += [f":{chain} ACCEPT [0:0]" for chain, _ in self.policies]
        lines += [f"-D {chain} {rule}" for chain, rule in self.jumps]
        lines += [f"-F {chain}" for chain in self.chains]
        lines += [f"-X {chain}" for chain in self.chains]
        return "\n".join([*lines, "COMMIT", ""])


@dataclass(frozen=True, slots=True)
class Ruleset:
    """Everything one owner has.

    Attributes:
        owner: whose it is.
        nft: text for ``nft -f``.
        tables: the nftables tables in it, as ``family name``.
        xtables: its part of iptables' tables.
        backend: of ``xtables``.
        sets: text for ``ipset restore``; rules name these sets.
        settings: (sysctl, value) that the owner writes at its start; they stay behind.
    """

    owner: str
    nft: str = ""
    tables: tuple[str, ...] = ()
    xtables: tuple[Xtables, ...] = ()
    backend: Backend = "nft"
    sets: str = ""
    settings: tuple[tuple[str, str], ...] = ()


def load(namespace: str, ruleset: Ruleset) -> None:
    """Put a ruleset into a namespace.

    Raises:
        RulesetError: it was refused; what was loaded before that stays.
    """
    for name, value in ruleset.settings:
        with netns.inside(namespace):
            Path("/proc/sys", *name.split(".")).write_text(value)
    if ruleset.nft:
        _nft(namespace, ruleset.nft)
    if ruleset.sets:
        _run(namespace, ["ipset", "restore"], ruleset.sets)
    if ruleset.xtables:
        _restore(namespace, ruleset.backend, "".join(x.load for x in ruleset.xtables))


def remove(namespace: str, ruleset: Ruleset) -> None:
    """Take a ruleset away; iptables' tables that nothing is left in go, too.

    Tables of the legacy backend cannot be removed: they stay, empty, for the namespace's life.

    Raises:
        RulesetError: something of it was not there any more.
    """
    for table in ruleset.tables:
        _nft(namespace, f"delete table {table}\n")
    if not ruleset.xtables:
        return
    _restore(namespace, ruleset.backend, "".join(x.remove for x in ruleset.xtables))
    created = [line.split()[1] for line in ruleset.sets.splitlines() if line.startswith("create")]
    if created:
        _run(namespace, ["ipset", "restore"], "".join(f"destroy {name}\n" for name in created))
    if ruleset.backend == "nft":
        for part in ruleset.xtables:
            listed = _run(namespace, ["iptables-nft", "-t", part.table, "-S"]).splitlines()
            if set(listed) <= {f"-P {chain} ACCEPT" for chain in BUILT_IN[part.table]}:
                _nft(namespace, f"delete table ip {part.table}\n")


@contextmanager
def loaded(namespace: str, *rulesets: Ruleset) -> Iterator[None]:
    """Have rulesets in a namespace for a while; the last one's jumps come first."""
    done: list[Ruleset] = []
    try:
        for ruleset in rulesets:
            load(namespace, ruleset)
            done.append(ruleset)
        yield
    finally:
        for ruleset in reversed(done):
            remove(namespace, ruleset)


def listing(namespace: str) -> str:
    """Return every rule of every owner, without counters: nftables', and legacy iptables'."""
    text = _run(namespace, ["nft", "--stateless", "list", "ruleset"])
    with netns.inside(namespace):
        # thread-self: /proc/net alone shows the namespace of the process's first thread.
        names = Path("/proc/thread-self/net/ip_tables_names").read_text().split()
    for table in sorted(names):
        text += f"# legacy {table}\n" + _run(namespace, ["iptables-legacy", "-t", table, "-S"])
    return text


def docker(
    *, link: str = "docker0", cidr: str = "172.17.0.0/16", backend: Backend = "nft"
) -> Ruleset:
    """Docker's engine with its default bridge (documented under "Packet filtering and firewalls").

    What hurts others is the policy: Docker turns on forwarding, and so that the host does not
    become a router for everybody, it drops what it does not know.
    """
    forward = (
        "-j DOCKER-USER",
        "-j DOCKER-ISOLATION-STAGE-1",
        f"-o {link} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        f"-o {link} -j DOCKER",
        f"-i {link} ! -o {link} -j ACCEPT",
        f"-i {link} -o {link} -j ACCEPT",
    )
    return Ruleset(
        "docker",
        backend=backend,
        xtables=(
            Xtables(
                "filter",
                chains=(
                    "DOCKER",
                    "DOCKER-USER",
                    "DOCKER-ISOLATION-STAGE-1",
                    "DOCKER-ISOLATION-STAGE-2",
                ),
                jumps=tuple(("FORWARD", rule) for rule in forward),
                rules=(
                    "-A DOCKER-USER -j RETURN",
                    f"-A DOCKER-ISOLATION-STAGE-1 -i {link} ! -o {link} "
                    "-j DOCKER-ISOLATION-STAGE-2",
                    "-A DOCKER-ISOLATION-STAGE-1 -j RETURN",
                    f"-A DOCKER-ISOLATION-STAGE-2 -o {link} -j DROP",
                    "-A DOCKER-ISOLATION-STAGE-2 -j RETURN",
                ),
                policies=(("FORWARD", "DROP"),),
            ),
            Xtables(
                "nat",
                chains=("DOCKER",),
                jumps=(
                    ("PREROUTING", "-m addrtype --dst-type LOCAL -j DOCKER"),
                    ("OUTPUT", "! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER"),
                    ("POSTROUTING", f"-s {cidr} ! -o {link} -j MASQUERADE"),
                ),
                rules=(f"-A DOCKER -i {link} -j RETURN",),
            ),
        ),
        settings=(("net.ipv4.ip_forward", "1"),),
    )


def firewalld(*, public: Sequence[str] = ("eth0",), trusted: Sequence[str] = ()) -> Ruleset:
    """What firewalld lays out with its nftables backend: what no zone allows, it rejects.

    Its chains stand ten behind iptables' (its ``NFT_HOOK_OFFSET``).

    Args:
        public: interfaces of the default zone; forwarding within a zone is on since firewalld 1.0.
        trusted: interfaces, or ``prefix+``, of a zone that accepts everything.
    """
    accept_in = [f'\t\tiifname "{_pattern(i)}" accept' for i in trusted]
    accept_out = [f'\t\toifname "{_pattern(i)}" accept' for i in trusted]
    zone_in = [f'\t\tiifname "{_pattern(i)}" goto filter_FWD_public' for i in public]
    within = [f'\t\toifname "{_pattern(i)}" accept' for i in public]
    text = f"""table inet firewalld {{
\tchain mangle_PREROUTING {{
\t\ttype filter hook prerouting priority -140; policy accept;
\t}}
\tchain nat_PREROUTING {{
\t\ttype nat hook prerouting priority -90; policy accept;
\t}}
\tchain nat_POSTROUTING {{
\t\ttype nat hook postrouting priority 110; policy accept;
\t}}
\tchain nat_OUTPUT {{
\t\ttype nat hook output priority -90; policy accept;
\t}}
\tchain filter_PREROUTING {{
\t\ttype filter hook prerouting priority 10; policy accept;
\t\ticmpv6 type {{ nd-router-advert, nd-neighbor-solicit }} accept
\t\tmeta nfproto ipv6 fib saddr . mark . iif oif missing drop
\t}}
\tchain filter_INPUT {{
\t\ttype filter hook input priority 10; policy accept;
\t\tct state {{ established, related }} accept
\t\tct status dnat accept
\t\tiifname "lo" accept
\t\tct state invalid drop
{chr(10).join(accept_in)}
\t\tiifname {{ {", ".join(f'"{_pattern(i)}"' for i in public)} }} goto filter_IN_public
\t\treject with icmpx admin-prohibited
\t}}
\tchain filter_FORWARD {{
\t\ttype filter hook forward priority 10; policy accept;
\t\tct state {{ established, related }} accept
\t\tct status dnat accept
\t\tiifname "lo" accept
\t\tct state invalid drop
{chr(10).join(accept_in)}
{chr(10).join(accept_out)}
{chr(10).join(zone_in)}
\t\treject with icmpx admin-prohibited
\t}}
\tchain filter_OUTPUT {{
\t\ttype filter hook output priority 10; policy accept;
\t\tct state {{ established, related }} accept
\t\toifname "lo" accept
\t}}
\tchain filter_IN_public {{
\t\tmeta l4proto {{ icmp, ipv6-icmp }} accept
\t\ttcp dport 22 accept
\t\treject with icmpx admin-prohibited
\t}}
\tchain filter_FWD_public {{
{chr(10).join(within)}
\t\treject with icmpx admin-prohibited
\t}}
}}
"""
    return Ruleset("firewalld", nft=text, tables=("inet firewalld",))


CALICO_ACCEPT, CALICO_PASS, CALICO_SCRATCH, CALICO_ENDPOINT = (
    0x10000,
    0x20000,
    0x40000,
    0x80000,
)
"""Felix takes bits of its ``IptablesMarkMask`` (default 0xffff0000) from the low end up."""


def calico(prefix: str, workloads: Sequence[str], *, backend: Backend = "nft") -> Ruleset:
    """Calico for policy alone, beside another plugin's network (its "policy-only" manifests).

    Args:
        prefix: FELIX_INTERFACEPREFIX, the start of the names of pods' links on the host.
        workloads: the links that Calico knows the pods of, as it computes their names; it drops
            what comes from any other link with the prefix.
        backend: of iptables.
    """
    # By the end of their names: a common start would make chains of 28 characters collide.
    to = [(w, f"cali-tw-{w}") for w in workloads]
    out = [(w, f"cali-fw-{w}") for w in workloads]
    own_chains = [name for _, name in (*to, *out)]
    accept = f"{CALICO_ACCEPT:#x}/{CALICO_ACCEPT:#x}"
    rules = [
        f"-A cali-FORWARD -j MARK --set-xmark 0x0/{0xE0000:#x}",
        f"-A cali-FORWARD -m mark --mark 0x0/{CALICO_ACCEPT:#x} -j cali-from-hep-forward",
        f"-A cali-FORWARD -i {prefix}+ -j cali-from-wl-dispatch",
        f"-A cali-FORWARD -o {prefix}+ -j cali-to-wl-dispatch",
        "-A cali-FORWARD -j cali-to-hep-forward",
        f"-A cali-INPUT -i {prefix}+ -g cali-wl-to-host",
        f"-A cali-INPUT -m mark --mark {accept} -j ACCEPT",
        f"-A cali-INPUT -j MARK --set-xmark 0x0/{0xF0000:#x}",
        "-A cali-wl-to-host -j cali-from-wl-dispatch",
        '-A cali-wl-to-host -m comment --comment "Configured DefaultEndpointToHostAction" '
        "-j ACCEPT",
        f"-A cali-OUTPUT -m mark --mark {accept} -j ACCEPT",
        f"-A cali-OUTPUT -o {prefix}+ -j RETURN",
    ]
    rules += [f"-A cali-from-wl-dispatch -i {w} -g {chain}" for w, chain in out]
    rules += [f"-A cali-to-wl-dispatch -o {w} -g {chain}" for w, chain in to]
    unknown = '-m comment --comment "Unknown interface" -j DROP'
    rules += [f"-A cali-from-wl-dispatch {unknown}", f"-A cali-to-wl-dispatch {unknown}"]
    for chain in own_chains:
        rules += [
            f"-A {chain} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            f"-A {chain} -m conntrack --ctstate INVALID -j DROP",
            f"-A {chain} -j MARK --set-xmark 0x0/{CALICO_ACCEPT:#x}",
            f"-A {chain} -j cali-pri-kns.default",
            f'-A {chain} -m comment --comment "Return if profile accepted" '
            f"-m mark --mark {accept} -j RETURN",
            f'-A {chain} -m comment --comment "Drop if no profiles matched" -j DROP',
        ]
    rules.append(f"-A cali-pri-kns.default -j MARK --set-xmark {accept}")
    mark = f"{CALICO_SCRATCH:#x}/{CALICO_SCRATCH:#x}"
    return Ruleset(
        "calico",
        backend=backend,
        xtables=(
            Xtables(
                "raw",
                chains=("cali-PREROUTING", "cali-OUTPUT"),
                jumps=(("PREROUTING", "-j cali-PREROUTING"), ("OUTPUT", "-j cali-OUTPUT")),
                rules=(
                    f"-A cali-PREROUTING -j MARK --set-xmark 0x0/{0xF0000:#x}",
                    f"-A cali-PREROUTING -i {prefix}+ -j MARK --set-xmark {mark}",
                    f"-A cali-PREROUTING -m mark --mark {mark} -m rpfilter --validmark --invert "
                    "-j DROP",
                    f"-A cali-PREROUTING -m mark --mark 0x0/{CALICO_SCRATCH:#x} -j RETURN",
                    f"-A cali-PREROUTING -m mark --mark {accept} -j ACCEPT",
                    f"-A cali-OUTPUT -j MARK --set-xmark 0x0/{0xF0000:#x}",
                ),
            ),
            Xtables(
                "mangle",
                chains=("cali-PREROUTING", "cali-POSTROUTING"),
                jumps=(
                    ("PREROUTING", "-j cali-PREROUTING"),
                    ("POSTROUTING", "-j cali-POSTROUTING"),
                ),
                rules=(
                    "-A cali-PREROUTING -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
                    f"-A cali-PREROUTING -m mark --mark {accept} -j ACCEPT",
                    f"-A cali-POSTROUTING -m mark --mark {accept} -j RETURN",
                    f"-A cali-POSTROUTING -j MARK --set-xmark 0x0/{0xF0000:#x}",
                ),
            ),
            Xtables(
                "filter",
                chains=(
                    "cali-FORWARD",
                    "cali-INPUT",
                    "cali-OUTPUT",
                    "cali-wl-to-host",
                    "cali-from-wl-dispatch",
                    "cali-to-wl-dispatch",
                    "cali-from-hep-forward",
                    "cali-to-hep-forward",
                    "cali-pri-kns.default",
                    *own_chains,
                ),
                jumps=(
                    ("FORWARD", "-j cali-FORWARD"),
                    (
                        "FORWARD",
                        '-m comment --comment "Policy explicitly accepted packet." '
                        f"-m mark --mark {accept} -j ACCEPT",
                    ),
                    ("INPUT", "-j cali-INPUT"),
                    ("OUTPUT", "-j cali-OUTPUT"),
                ),
                rules=tuple(rules),
            ),
            Xtables(
                "nat",
                chains=("cali-PREROUTING", "cali-OUTPUT", "cali-POSTROUTING"),
                jumps=(
                    ("PREROUTING", "-j cali-PREROUTING"),
                    ("OUTPUT", "-j cali-OUTPUT"),
                    ("POSTROUTING", "-j cali-POSTROUTING"),
                ),
            ),
        ),
    )


def _pattern(name: str) -> str:
    """Return an interface's name as nftables writes it: ``prefix+`` becomes ``prefix*``."""
    return f"{name[:-1]}*" if name.endswith("+") else name


def _nft(namespace: str, text: str) -> None:
    _run(namespace, ["nft", "-f", "-"], text)


def _restore(namespace: str, backend: Backend, text: str) -> None:
    _run(namespace, [f"iptables-{backend}-restore", "--noflush", "--wait", "10"], text)


def _run(namespace: str, argv: Sequence[str], text: str = "") -> str:
    # A lock of its own for each namespace: rulesets of different nodes have nothing to share.
    lock = Path(tempfile.gettempdir(), f"xtables-{namespace}.lock")
    done = subprocess.run(
        ["nsenter", f"--net={netns.path(namespace)}", "--", *argv],
        input=text,
        env={"PATH": os.environ.get("PATH", ""), "XTABLES_LOCKFILE": str(lock)},
        capture_output=True,
        text=True,
        check=False,
    )
    lock.unlink(missing_ok=True)
    if done.returncode != 0:
        raise RulesetError(f"{' '.join(argv)}: {done.stderr.strip()}\n{text}")
    return done.stdout
