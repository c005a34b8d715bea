"""The ``NodeNetwork`` document: what a node's network should be.

Every model is frozen and refuses unknown keys. YAML says ``camelCase``, Python ``snake_case``.
The descriptions here are the manual: the JSON Schema beside this file carries them to editors.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictInt

from schemas.cni import Cni
from schemas.eni import Eni, InstanceLimits, InstanceTypes
from schemas.model import Model
from schemas.override import Override, patch_schema
from schemas.value import (
    Cidr,
    ClusterName,
    Duration,
    EgressFamilies,
    Families,
    MarkMask,
    Mtu,
    VethPrefix,
)
from schemas.warm_pool import AddressTarget, EniTarget, PrefixTarget, Strategy, WarmPool

__all__ = [
    "AddressTarget",
    "Cni",
    "Eni",
    "EniTarget",
    "InstanceLimits",
    "NodeNetwork",
    "Pods",
    "PrefixTarget",
    "Reconcile",
    "Routing",
    "Snat",
    "Strategy",
    "WarmPool",
    "json_schema",
]


MAX_CIDRS = 10_000
"""CIDRs in one list. More would fit into a ConfigMap; a change of so many takes a second or two,
for which pods that start meanwhile wait."""

SomeCidrs = Annotated[tuple[Cidr, ...], Field(min_length=1, max_length=MAX_CIDRS)]


class Snat(Model):
    """Whose address the world outside the VPC sees."""

    mode: Literal["node", "external"] = Field(
        default="node",
        description="node: what a pod sends out of the VPC carries the node's primary address. "
        "external: it carries the pod's own, and a NAT gateway or router does the rest.",
    )
    exclude_cidrs: Annotated[tuple[Cidr, ...], Field(max_length=MAX_CIDRS)] = Field(
        default=(),
        alias="excludeCIDRs",
        description="Destinations beyond the VPC that see pod addresses all the same: peered "
        "VPCs, on-premises networks. The VPC's own CIDRs are always among them. Overlapping and "
        "adjacent entries are merged; a bare address means that address alone, and bits beyond "
        "the length are cut off.",
    )
    only_cidrs: SomeCidrs | None = Field(
        default=None,
        alias="onlyCIDRs",
        description="The only destinations that see the node's address; all others see the pod's. "
        "What excludeCIDRs or the VPC covers is left out all the same. Default: every destination "
        "beyond the VPC.",
    )
    ports: Literal["fully-random", "random", "sequential"] = Field(
        default="fully-random",
        description="How source ports are chosen, in nftables' words. fully-random: by chance, "
        "so that nodes and connections do not race for the same one. random: by a hash of the "
        "connection. sequential: the pod's own port if it is free, else the next.",
    )

    def _faults(self) -> Iterator[str]:
        if self.mode == "node":
            return
        for key, given in (("excludeCIDRs", self.exclude_cidrs), ("onlyCIDRs", self.only_cidrs)):
            if given:
                yield (
                    f"{key}: has no effect in mode external, where nothing is translated; "
                    "remove it, or choose mode node"
                )


class Routing(Model):
    """How packets find their ENI."""

    external_service_cidrs: Annotated[tuple[Cidr, ...], Field(max_length=MAX_CIDRS)] = Field(
        default=(),
        alias="externalServiceCIDRs",
        description="Service addresses that other software on the node answers for: what pods "
        "send there is routed by the main table, whatever ENI their address belongs to. Their "
        "source address is snat's business all the same. Default: none.",
    )
    mark_mask: MarkMask = Field(
        default=0xFF,
        description="The eight adjacent bits of packet and connection marks that are ours; no "
        "other software on the node may use them. Unit: a bit mask in quotes. A change cuts "
        "connections that are bound to an ENI by their mark: those through the node's address.",
    )
    accept_forwarded: StrictBool = Field(
        default=False,
        description="Where another owner's nftables chain drops forwarded packets by its policy "
        "(Docker's, or any iptables-nft FORWARD with policy DROP): keep rules at its end that "
        "accept what comes from and goes to pods. Other rules in it keep their say. Default: "
        "false, the chain is named in status and diff and left alone.",
    )


class Pods(Model):
    """The pods' side."""

    mtu: Mtu | None = Field(
        default=None, description="MTU of pods' links. Unit: bytes. Default: the ENIs' MTU."
    )
    veth_prefix: VethPrefix = Field(
        default="nn",
        description="First letters of the host ends of pods' links: 1 to 4 lower-case letters "
        "and digits. A change holds for pods that start after it.",
    )
    veth_name: Literal["sandbox", "pod"] = Field(
        default="sandbox",
        description="What the rest of such a name is made of. sandbox: of the container ID, so "
        "that no two are ever alike. pod: of the pod's namespace and name, as Calico computes it, "
        "for its policies beside this network; set Felix's InterfacePrefix to vethPrefix then. A "
        "change holds for pods that start after it.",
    )
    repair: Literal["none", "all"] = Field(
        default="none",
        description="What is put back in pods' own namespaces after their ADD was answered. none: "
        "nothing, for a sandbox such as gVisor takes the address off the link on purpose, and "
        "putting it back would break it; a pod that differs is named in status. all: every link, "
        "address, route and neighbour that ADD has made, at each reconcile.resync. What the host "
        "has of a pod is always put back; a link that is gone is made anew, and is filled.",
    )


class Reconcile(Model):
    """How often the node is observed without a notification."""

    resync: Duration = Field(
        default=timedelta(seconds=60),
        description="Time between full looks at kernel and nftables. Unit: duration, 1s to 1h. "
        "Changes are noticed at once by their notifications; this is for lost ones.",
    )
    ec2_resync: Duration = Field(
        default=timedelta(minutes=30),
        description="Time between observes EC2 while nothing is wanted from it and instance "
        "metadata agrees with the last one. Unit: duration, 10s to 1h. Metadata costs nothing and "
        "is compared every resync; what it shows that EC2 did not is looked at at once. While the "
        "two differ, the time is 5m at most. Every look is two or three requests, which count "
        "against the limits of the whole account.",
    )

    def _faults(self) -> Iterator[str]:
        if not timedelta(seconds=1) <= self.resync <= timedelta(hours=1):
            yield "resync: must be from 1s to 1h"
        if not timedelta(seconds=10) <= self.ec2_resync <= timedelta(hours=1):
            yield "ec2Resync: must be from 10s to 1h"


class NodeNetwork(Model):
    """A node's network, as it should be."""

    api_version: Literal["node-network/v1alpha1"] = Field(description="Version of this schema.")
    kind: Literal["NodeNetwork"] = Field(description="What this document is.")
    cluster: ClusterName = Field(
        default="",
        description="Name of the cluster, put into a tag on the ENIs we create, so that those of "
        "several clusters in one account can be told apart: 1 to 100 letters, digits and hyphens. "
        "Default: empty, no such tag.",
    )
    max_pods: Annotated[StrictInt, Field(ge=1, le=1000)] | None = Field(
        default=None,
        description="Pods on a node at most, as kubelet's --max-pods says: addresses beyond it "
        "would serve no pod. Unit: pods. Default: no bound, since kubelet's flag is not known "
        "here.",
    )
    warm_pool: WarmPool = Field(default=WarmPool(), description="Addresses held ready.")
    eni: Eni = Field(default=Eni(), description="The network interfaces that carry pods.")
    snat: Snat = Field(default=Snat(), description="Whose address the world outside the VPC sees.")
    routing: Routing = Field(default=Routing(), description="How packets find their ENI.")
    pods: Pods = Field(default=Pods(), description="The pods' side.")
    cni: Cni = Field(default=Cni(), description="What container runtimes are told.")
    reconcile: Reconcile = Field(
        default=Reconcile(), description="How often to observe without a notification."
    )
    families: Families = Field(
        default=("ipv4",),
        description="Address families that pods have addresses of from their VPC: ipv4, ipv6, or "
        "both. The order is that of a pod's addresses, so the first is what Kubernetes calls its "
        "address. IPv6 takes subnets with an IPv6 CIDR block and an instance of the Nitro system.",
    )
    egress_families: EgressFamilies = Field(
        default=(),
        description="Other families that pods shall reach hosts in all the same: what they send "
        "carries the node's own address. Nothing can reach a pod that way. Of these families a "
        "pod gets an address that means something on its node only. Default: none.",
    )
    instance_types: InstanceTypes = Field(
        default=(),
        description="Limits by instance type, for types that EC2's DescribeInstanceTypes does not "
        "know and wherever its answer shall not be used. Default: EC2's answer for every type.",
    )
    take_over: Literal["none", "amazon-vpc-cni"] = Field(
        default="none",
        description="Whose leftovers on the node become ours. none: what amazon-vpc-cni-k8s has "
        "left is named by diff and status, and not touched. amazon-vpc-cni: its running pods, "
        "ENIs and addresses are taken over, no connection is cut, and then its rules, routes, "
        "chains and tags are removed. aws-node must not run on the node any more.",
    )
    overrides: tuple[Override, ...] = Field(
        default=(),
        description="Other values for some nodes, by instance type, zone or name. All that match "
        "apply, in this order, so the last word is the last one's. Default: all nodes are alike.",
    )

    @property
    def pod_mtu(self) -> int:
        """MTU of pods' links in bytes."""
        return self.pods.mtu or self.eni.mtu

    def _faults(self) -> Iterator[str]:
        if self.take_over != "none" and self.routing.mark_mask != 0xFF:
            yield (
                "takeOver: connections through the node's address carry 0x80, the mark of "
                "amazon-vpc-cni-k8s, and would be cut by another routing.markMask than 0xff; "
                "leave that out until they have ended"
            )
        if self.pod_mtu > self.eni.mtu:
            yield (
                f"pods.mtu: {self.pod_mtu} does not fit into eni.mtu {self.eni.mtu}; "
                "a pod's packets would be fragmented or dropped; lower pods.mtu"
            )
        if self.warm_pool.prefixes and self.eni.allocate != "prefixes":
            yield (
                "warmPool.prefixes: counts /28 prefixes, but eni.allocate is "
                f"{self.eni.allocate}; set it to prefixes, or choose addresses or enis here"
            )
        for position, family in enumerate(self.egress_families):
            if family in self.families:
                yield (
                    f"egressFamilies[{position}]: {family} is among families already, so pods "
                    "reach it by their own addresses; remove it here or there"
                )
        versions = {4 if family == "ipv4" else 6 for family in self.families}
        lists = {
            "snat.excludeCIDRs": self.snat.exclude_cidrs,
            "snat.onlyCIDRs": self.snat.only_cidrs or (),
            "routing.externalServiceCIDRs": self.routing.external_service_cidrs,
        }
        for name, cidrs in lists.items():
            for position, cidr in enumerate(cidrs):
                if cidr.version not in versions:
                    yield (
                        f"{name}[{position}]: {cidr} is IPv{cidr.version}, but families "
                        "has none of that version; remove it"
                    )


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) that editors check the YAML with."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "NodeNetwork",
    } | NodeNetwork.model_json_schema(by_alias=True)
    override = schema["$defs"]["Override"]["properties"]
    override["set"] = patch_schema(schema, schema["$defs"]) | override["set"]
    return schema
