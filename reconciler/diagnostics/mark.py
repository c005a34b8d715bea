"""Who else marks packets: a packet has one mark of 32 bits, which no authority assigns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MarkUser:
    """A program that marks packets on a node's own namespace.

    Attributes:
        chains: how the names of its chains begin; they give it away.
        mask: the bits it sets or reads.
        cure: what an operator can do if they are ours as well.
        table: its nftables table, if it has one of its own.
    """

    name: str
    chains: tuple[str, ...]
    mask: int
    cure: str
    table: str = ""


OTHER_BITS = "give routing.markMask eight bits that it leaves alone"

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


def users_of(
    chains: Iterable[str], tables: Iterable[str], mask: int
) -> list[tuple[MarkUser, str]]:
    """Return who uses bits of this mask, each with what gave it away."""
    chains, tables = sorted(set(chains)), set(tables)
    found = []
    for user in MARK_USERS:
        seen = [f"chain {c}" for c in chains if c.startswith(user.chains)]
        seen += [f"table {user.table}"] if user.table in tables else []
        if seen and user.mask & mask:
            found.append((user, seen[0]))
    return found
