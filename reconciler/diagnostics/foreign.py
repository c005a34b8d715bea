"""What was seen of other owners on the node, and what of ours is at stake."""

from __future__ import annotations

from dataclasses import dataclass

from reconciler.core.datapath import MAIN_TABLE, IpAddress, IpNetwork
from reconciler.core.facts import ForwardChain
from reconciler.diagnostics.ruleset import Ruleset

NETWORKD, NETWORK_MANAGER = "systemd-networkd", "NetworkManager"


@dataclass(frozen=True, slots=True)
class ForeignRule:
    """An ``ip rule`` of another owner.

    Attributes:
        selects_more: it selects by something else as well: a link, a user.
        does: what it does in place of looking the table up: prohibit, or goto and a priority.
    """

    family: str
    priority: int
    table: int
    mark: int = 0
    mask: int = 0
    source: IpNetwork | None = None
    selects_more: bool = False
    destination: IpNetwork | None = None
    does: str = ""

    def __str__(self) -> str:
        words = [f"ip rule {self.priority}: from {self.source or 'all'}"]
        if self.destination:
            words.append(f"to {self.destination}")
        if self.mask:
            words.append(f"fwmark {self.mark:#x}/{self.mask:#x}")
        table = "main" if self.table == MAIN_TABLE else self.table
        return " ".join([*words, self.does or f"lookup {table}"])


@dataclass(frozen=True, slots=True)
class Setting:
    """What a program's configuration says in the end; no file if that is its default."""

    value: bool
    file: str = ""


@dataclass(frozen=True, slots=True)
class Networkd:
    """A running systemd-networkd's ManageForeignRoutingPolicyRules and ManageForeignRoutes."""

    rules: Setting
    routes: Setting


@dataclass(frozen=True, slots=True)
class Manager:
    """A program that configures a link, and the file that makes it do so, or says that it does."""

    link: str
    program: str
    file: str


@dataclass(frozen=True, slots=True)
class Tool:
    """A program that configures every ENI it meets, and the file by which it is in force."""

    name: str
    file: str
    cure: str


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod whose packets are followed: its veth (``prefix*`` if it may come), its ENI's link."""

    veth: str
    address: IpAddress
    link: str


@dataclass(frozen=True, slots=True)
class Traffic:
    """What passes a node for its pods; those that are kept must see pods' own addresses."""

    pods: tuple[Pod, ...] = ()
    hosts: tuple[IpAddress, ...] = ()
    kept: tuple[IpNetwork, ...] = ()
    patterns: tuple[str, ...] = ()


NO_RULES, NO_TRAFFIC = Ruleset(), Traffic()


@dataclass(frozen=True, slots=True)
class Foreign:
    """Everything of other owners that was looked at.

    Attributes:
        chains, tables: names, in all families.
        forward: their base chains with hook forward; None if unknown.
        firewalld_accepts: patterns of links that a zone of firewalld accepts, in both directions.
        networkd: None if it does not run.
        unread: what could not be looked at, and why.
    """

    chains: frozenset[str] = frozenset()
    tables: frozenset[str] = frozenset()
    forward: tuple[ForwardChain, ...] | None = ()
    ruleset: Ruleset = NO_RULES
    rules: tuple[ForeignRule, ...] = ()
    firewalld_accepts: frozenset[str] = frozenset()
    networkd: Networkd | None = None
    managers: tuple[Manager, ...] = ()
    tools: tuple[Tool, ...] = ()
    unread: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Ours:
    """What others can get in the way of.

    Attributes:
        families: nftables' words for the families of pods.
        patterns: names of pods' links on the host; ``prefix*`` for all that begin so.
        eni_links: links of ENIs that we configure: all but the primary's.
        sources: pods' addresses, as networks of one.
    """

    families: frozenset[str]
    mark_mask: int
    patterns: frozenset[str]
    eni_links: frozenset[str]
    sources: frozenset[IpNetwork]
    accept_forwarded: bool = False
    traffic: Traffic = NO_TRAFFIC


@dataclass(frozen=True, slots=True)
class MarkUser:
    """A program that marks packets: how its chains' names begin, its bits, its own table.

    ``cure``: what to do about a conflict; ``OTHER_BITS`` in it is which bits to give to us.
    """

    name: str
    chains: tuple[str, ...]
    mask: int
    cure: str
    table: str = ""


OTHER_BITS = "{other_bits}"

MARK_USERS = (
    # --iptables-masquerade-bit 14, and kubelet's --iptables-drop-bit 15 until Kubernetes 1.27.
    MarkUser("kube-proxy", ("KUBE-",), 0xC000, OTHER_BITS, "kube-proxy"),
    # containernetworking/plugins, portmap: "markMasqBit", default 13.
    MarkUser("the portmap plugin", ("CNI-HOSTPORT-",), 0x2000, OTHER_BITS),
    # Felix configuration "iptablesMarkMask".
    MarkUser("Calico", ("cali-",), 0xFFFF0000, f"{OTHER_BITS}, or Felix another iptablesMarkMask"),
    # bpf/lib/common.h and identity.h: the magic in 0x0f00, the identity in the upper half, its
    # cluster in the lowest byte.
    MarkUser(
        "Cilium",
        ("CILIUM_",),
        0xFFFF0FFF,
        "set Cilium's enableIdentityMark to false (it leaves no eight adjacent bits free)",
    ),
    # util/linuxfw: the mask of its marks 0x40000 and 0x80000.
    MarkUser("Tailscale", ("ts-",), 0xFF0000, OTHER_BITS),
    # amazon-vpc-cni-k8s: AWS_VPC_K8S_CNI_CONNMARK, default 0x80.
    MarkUser(
        "amazon-vpc-cni-k8s",
        ("AWS-SNAT-CHAIN-", "AWS-CONNMARK-CHAIN-"),
        0x80,
        "remove what it left: its rules translate pods' packets as well; restart the node, or "
        "delete its chains and the jumps to them, and table ip aws-cni",
        "aws-cni",
    ),
)
"""Istio's 0x539 is not here: it marks inside pods' namespaces, which have marks of their own."""


def sign_of(chain: str) -> str:
    """Return the beginning by which a chain's name tells who marks packets; "" if it does not."""
    signs = (sign for user in MARK_USERS for sign in user.chains)
    return next((sign for sign in signs if chain.startswith(sign)), "")
