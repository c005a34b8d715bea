"""The ``NodeNetwork`` document: the desired network of a node.

Every model is frozen and refuses unknown keys. YAML says ``camelCase``, Python ``snake_case``.
The descriptions here are the manual: the JSON Schema beside this file carries them to editors.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated, Any, Literal

from schemas.cni import Cni
from schemas.group import MAX_GROUPS, PodGroup, find_doubles
from schemas.override import Override, patch_schema
from schemas.pods import MAX_ENTRIES, MetadataAccess
from schemas.pool import Eni, InstanceTypes, WarmPool
from schemas.snat import MANY, Snat, SnatPolicy
from schemas.value import (
    MIN_MTU,
    Cidr,
    ClusterName,
    Duration,
    EgressFamilies,
    Families,
    MarkMask,
    Model,
    Network,
    PodMtu,
    TaintKey,
    VethPrefix,
)
from schemas.vocabulary import Field, StrictBool, StrictInt

MAX_PODS = 1000
"""Pods of one node; Kubernetes is tested with 110."""

MAX_RESERVED = 256
"""Networks in ``reservedAddresses``: each address that is held is looked up in all of them."""


class Routing(Model):
    """How packets are routed to their ENI."""

    external_service_cidrs: Annotated[tuple[Cidr, ...], MANY] = Field(
        default=(),
        alias="externalServiceCIDRs",
        description="Service addresses that other software on the node handles: packets from pods "
        "to them are routed by the main table, whichever ENI the pod's address belongs to. snat "
        "still decides their source address. Default: none.",
    )
    mark_mask: MarkMask = Field(
        default=0xFF,
        description="The eight adjacent bits of packet and connection marks that are ours; no "
        "other software on the node may use them. Unit: a bit mask in quotes. A change cuts "
        "connections that are bound to an ENI by their mark: those through the node's address.",
    )
    accept_forwarded: StrictBool = Field(
        default=False,
        description="Another owner's nftables chain may drop forwarded packets by its policy "
        "(Docker's, or any iptables-nft FORWARD with policy DROP). true: keep rules at its end "
        "that accept packets from and to pods; its other rules still apply. Default: false, the "
        "chain is reported by status and diff and not changed.",
    )


class Datapath(Model):
    """How packets are forwarded."""

    fast_path: Literal["off", "auto"] = Field(
        default="off",
        description="Whether packets of pods' open TCP connections pass the rulesets by. auto: "
        "a connection that was answered, and that the pod sends into, is forwarded by a flowtable "
        "of the kernel from then on; not where the kernel has none, nor while other programs' "
        "rules or queues look at each packet that is forwarded: a condition names them. Needs "
        "pods.spoofing deny. off: each packet passes all rulesets.",
    )


class Pods(Model):
    """Pods' links and namespaces."""

    mtu: PodMtu | None = Field(
        default=None,
        description="MTU of pods' links. Unit: bytes, at least 576, or 1280 where pods have IPv6. "
        "Default: the ENIs' MTU.",
    )
    veth_prefix: VethPrefix = Field(
        default="nn",
        description="Prefix of the names of the host ends of pods' links: 1 to 4 lower-case "
        "letters and digits. eni, by which AWS's network policy agent knows pods' links, needs "
        "vethName pod. A change applies to pods that start after it.",
    )
    veth_name: Literal["sandbox", "pod"] = Field(
        default="sandbox",
        description="What the rest of the name is derived from. sandbox: the container ID, so "
        "that no two links have the same name. pod: the pod's namespace and name, as Calico "
        "computes it, for Calico's policies; set Felix's InterfacePrefix to vethPrefix. AWS's "
        "network policy agent computes it in the same way, with the prefix eni. A change applies "
        "to pods that start after it.",
    )
    spoofing: Literal["deny", "allow"] = Field(
        default="deny",
        description="Whether a pod may send with addresses that are not its own. deny: such "
        "packets are dropped on the node, and counted by metrics and status. allow: for pods that "
        "send for others, as a virtual address of keepalived or a VPN that does not translate; "
        "the kernel's reverse-path filter then decides, as the host has it.",
    )
    metadata: Annotated[tuple[MetadataAccess, ...], Field(max_length=MAX_ENTRIES)] = Field(
        default=(),
        description="Which pods are refused the instance metadata service (169.254.169.254 and "
        "fd00:ec2::254), which has the node's credentials: the first entry that matches a pod "
        "decides. Where an entry denies, a pod whose name the runtime did not say is refused, "
        "too. Pods of the host's network are not. Open connections go on. Default: every pod may "
        "reach it.",
    )
    repair: Literal["none", "all"] = Field(
        default="none",
        description="What is repaired in a pod's own namespace after its ADD was answered. none: "
        "nothing; a sandbox such as gVisor takes the address off the link on purpose and would "
        "break. A pod that differs is reported by status. all: every link, address, route and "
        "neighbour that ADD created, at each reconcile.resync. A pod's objects on the host are "
        "always repaired; a link that is gone is created again, with its addresses and routes.",
    )

    def _faults(self) -> Iterator[str]:
        if self.veth_prefix == "eni" and self.veth_name != "pod":
            yield (
                "vethPrefix: eni is how amazon-vpc-cni-k8s names links after pods, and other "
                "software takes them for such; set vethName to pod, or choose another prefix"
            )


class Reconcile(Model):
    """How often the node and EC2 are observed without a notification."""

    resync: Duration = Field(
        default=timedelta(seconds=60),
        description="Time between full observations of kernel and nftables. Unit: duration, 1s to "
        "1h. Notifications report changes at once; this finds what a lost notification missed.",
    )
    ec2_resync: Duration = Field(
        default=timedelta(minutes=30),
        description="Time between observations of EC2 while no call to it is needed and instance "
        "metadata agrees with the last one. Unit: duration, 10s to 1h. Metadata costs no EC2 call "
        "and is compared every resync; EC2 is observed at once when it shows a change, and every "
        "5m at least while the two differ. An observation is two or three requests, which count "
        "against the API limits of the whole AWS account.",
    )

    def _faults(self) -> Iterator[str]:
        if not timedelta(seconds=1) <= self.resync <= timedelta(hours=1):
            yield "resync: must be from 1s to 1h"
        if not timedelta(seconds=10) <= self.ec2_resync <= timedelta(hours=1):
            yield "ec2Resync: must be from 10s to 1h"


class Ec2(Model):
    """What may be asked of EC2."""

    mode: Literal["full", "keep", "frozen"] = Field(
        default="full",
        description="full: ENIs and addresses are assigned and given back as warmPool says. keep: "
        "they are assigned, and nothing is given back. frozen: nothing of EC2 is changed, nor is "
        "EC2 asked for anything: the node serves what instance metadata shows on its first "
        "network card, and needs no credentials. All secondary addresses and prefixes there are "
        "for pods then, because metadata does not tell whose an ENI is.",
    )


class Kubernetes(Model):
    """What the cluster's API server is told of the node."""

    report: StrictBool = Field(
        default=False,
        description="Whether the API server is told how the node's network is: by the condition "
        "NodeNetworkReady of the Node, and by Events for what a person must act on and for pods "
        "that got no address. The ServiceAccount needs the rights that the chart grants then. "
        "Pods wait for none of it. Default: false, nothing speaks to the API server.",
    )
    startup_taint: TaintKey | None = Field(
        default=None,
        description="Key of the taint that nodes register with (kubelet's "
        "--register-with-taints), as node-network/agent-not-ready: it is removed once pods can be "
        "served, whatever its value and effect, and never added. Default: none is removed.",
    )

    def _faults(self) -> Iterator[str]:
        if self.startup_taint is not None and not self.report:
            yield (
                "startupTaint: is removed only where the API server is spoken to; set report to "
                "true, or leave this out"
            )


class NodeNetwork(Model):
    """The desired network of a node."""

    api_version: Literal["node-network/v1alpha1"] = Field(description="Version of this schema.")
    kind: Literal["NodeNetwork"] = Field(description="Kind of the document.")
    cluster: ClusterName = Field(
        default="",
        description="Name of the cluster: 1 to 100 letters, digits and hyphens. A tag on the ENIs "
        "we create has it, which tells the ENIs of several clusters in one AWS account apart. "
        "Default: empty, no such tag.",
    )
    max_pods: Annotated[StrictInt, Field(ge=1, le=MAX_PODS)] | Literal["auto"] | None = Field(
        default=None,
        description="Most pods on a node, as kubelet's --max-pods says: no more addresses are "
        "held. Unit: pods. auto: what kubelet says of itself in the Node object, which needs "
        "kubernetes.report; no bound until it was read. Default: no bound, because kubelet's flag "
        "is not known here.",
    )
    warm_pool: WarmPool = Field(default=WarmPool(), description="Free addresses of the node.")
    eni: Eni = Field(default=Eni(), description="The ENIs that pods' addresses belong to.")
    snat: Snat = Field(default=Snat(), description="Which address others outside the VPC see.")
    routing: Routing = Field(default=Routing(), description="How packets are routed to their ENI.")
    datapath: Datapath = Field(default=Datapath(), description="How packets are forwarded.")
    pods: Pods = Field(default=Pods(), description="Pods' links and namespaces.")
    cni: Cni = Field(default=Cni(), description="The CNI configuration for container runtimes.")
    reconcile: Reconcile = Field(
        default=Reconcile(), description="How often to observe without a notification."
    )
    ec2: Ec2 = Field(default=Ec2(), description="What may be asked of EC2.")
    kubernetes: Kubernetes = Field(
        default=Kubernetes(), description="What the cluster's API server is told of the node."
    )
    families: Families = Field(
        default=("ipv4",),
        description="Address families of pods' VPC addresses: ipv4, ipv6, or both. A pod's "
        "addresses have this order, and Kubernetes shows the first as the pod's address. ipv6 "
        "needs subnets with an IPv6 CIDR block and an instance of the Nitro system.",
    )
    egress_families: EgressFamilies = Field(
        default=(),
        description="Other families in which pods can open connections: with the node's own "
        "address, by SNAT. Nothing can open a connection to a pod in them. In each, a pod gets an "
        "address that is valid on its node only. Default: none.",
    )
    reserved_addresses: Annotated[tuple[Cidr, ...], Field(max_length=MAX_RESERVED)] = Field(
        default=(),
        description="Addresses that no pod is given, although an ENI of the node holds them, and "
        "that are not given back: Services' externalIPs, VIPs, keepalived's. A bare address means "
        "that address alone. What the host has on a link is never given to a pod anyway. Default: "
        "none.",
    )
    pod_groups: Annotated[tuple[PodGroup, ...], Field(max_length=MAX_GROUPS)] = Field(
        default=(),
        description="Pods that have ENIs of their own, in other subnets or with other security "
        "groups, and an SNAT policy of their own. The first group that matches a pod is its. An "
        "instance has few ENIs: validate and explain pool say what a group costs. A pod that runs "
        "stays on the ENI it has. Default: no groups.",
    )
    instance_types: InstanceTypes = Field(
        default=(),
        description="Limits by instance type, for types that EC2's DescribeInstanceTypes does not "
        "know, or instead of its answer. Default: EC2's answer for every type.",
    )
    take_over: Literal["none", "amazon-vpc-cni"] = Field(
        default="none",
        description="Migration of a node. none: objects that amazon-vpc-cni-k8s left are reported "
        "by diff and status, and not touched. amazon-vpc-cni: its pods, ENIs and addresses "
        "are taken over, no connection is cut, and then its rules, routes, chains and tags are "
        "removed. aws-node must not run on the node any more.",
    )
    overrides: tuple[Override, ...] = Field(
        default=(),
        description="Other values for some nodes, by instance type, zone or name. All that match "
        "apply, in this order; a later one wins. Default: all nodes have the same values.",
    )

    @property
    def most_pods(self) -> int | None:
        """``maxPods`` as a number; None if there is no bound, or kubelet has not told it yet."""
        return None if self.max_pods == "auto" else self.max_pods

    @property
    def pod_mtu(self) -> int:
        """MTU of pods' links, in bytes."""
        return self.pods.mtu or self.eni.mtu

    @property
    def snat_policies(self) -> tuple[tuple[str, SnatPolicy], ...]:
        """Every SNAT policy with its pod group; "" stands for pods without one of their own."""
        groups = ((g.name, g.snat) for g in self.pod_groups)
        return (("", self.snat), *((name, snat) for name, snat in groups if snat is not None))

    def _mtu_faults(self) -> Iterator[str]:
        if self.pod_mtu < MIN_MTU and "ipv6" in (*self.families, *self.egress_families):
            yield (
                f"pods.mtu: {self.pod_mtu} is too little for IPv6, which needs {MIN_MTU} (RFC "
                f"8200); raise it, or remove ipv6 from families and egressFamilies"
            )
        if self.pod_mtu > self.eni.mtu:
            yield (
                f"pods.mtu: {self.pod_mtu} does not fit into eni.mtu {self.eni.mtu}; "
                "a pod's packets would be fragmented or dropped; lower pods.mtu"
            )

    def _faults(self) -> Iterator[str]:
        if self.take_over != "none" and self.routing.mark_mask != 0xFF:
            yield (
                "takeOver: connections through the node's address carry 0x80, the mark of "
                "amazon-vpc-cni-k8s, and would be cut by another routing.markMask than 0xff; "
                "leave that out until they have ended"
            )
        if self.datapath.fast_path == "auto" and self.pods.spoofing == "allow":
            yield (
                "datapath.fastPath: auto needs pods.spoofing: deny, or a connection that was let "
                "pass with another's address would go on once that is denied; choose one"
            )
        if self.max_pods == "auto" and not self.kubernetes.report:
            yield (
                "maxPods: auto is read from the Node object, which needs kubernetes.report: true; "
                "set that, or write kubelet's number here"
            )
        yield from self._mtu_faults()
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
        yield from find_doubles(self.pod_groups)
        if self.pod_groups and self.eni.max == 1:
            yield "podGroups: eni.max 1 leaves no ENI for them; raise it"
        yield from self._versions()

    def _versions(self) -> Iterator[str]:
        versions = {4 if family == "ipv4" else 6 for family in self.families}
        lists: dict[str, tuple[Network | str, ...]] = {
            "snat.excludeCIDRs": self.snat.exclude_cidrs,
            "snat.onlyCIDRs": self.snat.only_cidrs or (),
            "routing.externalServiceCIDRs": self.routing.external_service_cidrs,
        }
        for index, rule in enumerate(self.snat.rules):
            lists[f"snat.rules[{index}].to"] = rule.to
        for index, group in enumerate(self.pod_groups):
            if group.snat is not None:
                key = f"podGroups[{index}].snat"
                lists[f"{key}.excludeCIDRs"] = group.snat.exclude_cidrs
                lists[f"{key}.onlyCIDRs"] = group.snat.only_cidrs or ()
        for name, cidrs in lists.items():
            for position, cidr in enumerate(cidrs):
                # IPv6 is never translated, so sources stand for IPv4 alone.
                version, verb = (4, "means") if isinstance(cidr, str) else (cidr.version, "is")
                if version not in versions:
                    yield (
                        f"{name}[{position}]: {cidr} {verb} IPv{version}, but families "
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
