"""Every setting of amazon-vpc-cni-k8s v1.23.1, and what takes its place here.

Names, defaults and meanings were read in its source (``cmd/``, ``pkg/``, ``charts/aws-vpc-cni``).
``docs/parity.md`` is made from it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["same", "better", "none"]


@dataclass(frozen=True, slots=True)
class Variable:
    """One setting of the stock plugin.

    Attributes:
        name: of an environment variable, or in words what else it is.
        default: as its manifests or its code set it.
        ours: paths in the document; empty where there is none.
        verdict: none where nothing takes its place; ``why`` says what to do instead.
        why: what differs, or what to do.
    """

    name: str
    default: str
    ours: tuple[str, ...]
    verdict: Verdict
    why: str


VARIABLES = (
    # The warm pool.
    Variable(
        "WARM_ENI_TARGET",
        "1",
        ("warmPool.enis",),
        "better",
        "counted in addresses of whole ENIs, so that no ENI is made while that many are free",
    ),
    Variable(
        "WARM_IP_TARGET",
        "",
        ("warmPool.addresses.warm", "warmPool.addresses.surplus"),
        "better",
        "surplus is a dead band: the stock plugin gives back at once what exceeds the target",
    ),
    Variable("MINIMUM_IP_TARGET", "", ("warmPool.addresses.minimum",), "same", ""),
    Variable(
        "WARM_PREFIX_TARGET",
        "1",
        ("warmPool.prefixes",),
        "better",
        "counted in free addresses of whole prefixes",
    ),
    Variable("MAX_ENI", "the type's limit", ("eni.max",), "same", ""),
    Variable(
        "IP_COOLDOWN_PERIOD",
        "30",
        ("warmPool.cooldown",),
        "better",
        "conntrack entries of a released address are removed on its node as well",
    ),
    Variable(
        "AWS_MANAGE_ENIS_NON_SCHEDULABLE",
        "false",
        ("ec2.mode",),
        "better",
        "a cordon changes nothing: set keep, also in an override for the nodes that are drained",
    ),
    Variable(
        "DISABLE_NETWORK_RESOURCE_PROVISIONING",
        "false",
        ("ec2.mode",),
        "better",
        "frozen; status says what would be asked of EC2",
    ),
    Variable("ENABLE_IMDS_ONLY_MODE", "false", ("ec2.mode",), "same", "frozen"),
    Variable(
        "AWS_VPC_K8S_CNI_BACKING_STORE",
        "/var/run/aws-node/ipam.json",
        (),
        "better",
        "run --state-dir names the directory; a file for each pod, so that one that is torn "
        "concerns one pod",
    ),
    Variable("HTTP_TIMEOUT", "10", (), "none", "a call to EC2 ends after 10 s"),
    # Prefix delegation and families.
    Variable(
        "ENABLE_PREFIX_DELEGATION",
        "false",
        ("eni.allocate",),
        "better",
        "single addresses serve where a subnet has no whole block; free blocks are counted, and "
        "those that a CIDR reservation has for prefixes, which EC2 counts as not free",
    ),
    Variable("ENABLE_IPv4", "true", ("families",), "better", "both families at once, if wanted"),
    Variable("ENABLE_IPv6", "false", ("families",), "better", "both families at once, if wanted"),
    Variable(
        "ENABLE_V4_EGRESS", "true", ("egressFamilies",), "better", "by the pod's one link, not two"
    ),
    Variable(
        "ENABLE_V6_EGRESS",
        "false",
        ("egressFamilies",),
        "better",
        "by the pod's one link, not two",
    ),
    Variable(
        "DISABLE_POD_V6", "false", ("cni.chain",), "same", "the plugin tuning with its sysctls"
    ),
    # Custom networking, subnets, tags.
    Variable(
        "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG",
        "false",
        ("eni.usePrimary", "eni.subnets", "eni.securityGroups", "overrides"),
        "better",
        "an override for each zone takes the place of an ENIConfig; no API server is asked",
    ),
    Variable(
        "ENI_CONFIG_ANNOTATION_DEF",
        "k8s.amazonaws.com/eniConfig",
        ("overrides",),
        "none",
        "overrides match zone, instance type and the node's name; labels and annotations are not "
        "read",
    ),
    Variable(
        "ENI_CONFIG_LABEL_DEF",
        "k8s.amazonaws.com/eniConfig",
        ("overrides",),
        "none",
        "overrides match zone, instance type and the node's name; labels and annotations are not "
        "read",
    ),
    Variable(
        "ENABLE_SUBNET_DISCOVERY",
        "true",
        ("eni.subnetTags", "eni.excludeSubnetTags", "eni.subnetOrder"),
        "better",
        "any tags select subnets, most free addresses first; nothing is used that is not selected",
    ),
    Variable("CLUSTER_NAME", "", ("cluster",), "same", ""),
    Variable(
        "ADDITIONAL_ENI_TAGS",
        "{}",
        ("eni.tags",),
        "better",
        "wrong tags are refused by validate; the stock plugin ignores all of them",
    ),
    Variable(
        "MANAGE_UNTAGGED_ENI",
        "true",
        (),
        "better",
        "an ENI without our tag is never touched, except the primary one",
    ),
    Variable(
        "DISABLE_LEAKED_ENI_CLEANUP",
        "false",
        (),
        "better",
        "no node looks for others' ENIs; node-network gc lists and deletes them",
    ),
    # SNAT and routing.
    Variable("AWS_VPC_K8S_CNI_EXTERNALSNAT", "false", ("snat.mode",), "same", "external"),
    Variable(
        "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS",
        "",
        ("snat.excludeCIDRs",),
        "better",
        "one lookup in a set, both families, changed while connections live; "
        "or derived from the VPC",
    ),
    Variable("AWS_VPC_K8S_CNI_RANDOMIZESNAT", "prng", ("snat.ports",), "same", ""),
    Variable("AWS_EXTERNAL_SERVICE_CIDRS", "", ("routing.externalServiceCIDRs",), "same", ""),
    Variable(
        "AWS_VPC_CNI_NODE_PORT_SUPPORT",
        "true",
        (),
        "better",
        "always on: replies leave by the ENI that the request came by",
    ),
    Variable(
        "AWS_VPC_K8S_CNI_CONNMARK",
        "0x80",
        ("routing.markMask",),
        "better",
        "eight bits that can be moved; a take-over needs the default, which contains 0x80",
    ),
    Variable("ENABLE_NFTABLES", "", (), "better", "always nftables, beside either iptables"),
    Variable("AWS_VPC_K8S_CNI_CONFIGURE_RPFILTER", "", (), "same", "without effect in both"),
    Variable(
        "DISABLE_TCP_EARLY_DEMUX",
        "false",
        (),
        "none",
        "the setting is not touched; it matters for branch ENIs only, which are not supported",
    ),
    # Security groups for pods, network policy, several cards.
    Variable(
        "ENABLE_POD_ENI",
        "false",
        ("podGroups",),
        "none",
        "branch ENIs are made by a controller of AWS's through a private API; podGroups gives "
        "namespaces security groups on ENIs of the node's own, of any instance type",
    ),
    Variable(
        "POD_SECURITY_GROUP_ENFORCING_MODE", "strict", (), "none", "belongs to ENABLE_POD_ENI"
    ),
    Variable(
        "NETWORK_POLICY_ENFORCING_MODE",
        "standard",
        ("pods.vethPrefix", "pods.vethName"),
        "none",
        "network policy is another program's; AWS's agent finds links with vethPrefix eni and "
        "vethName pod",
    ),
    Variable(
        "ENABLE_MULTI_NIC",
        "false",
        (),
        "none",
        "pods get addresses of the first network card only; other cards are not touched",
    ),
    # Links, the CNI configuration, logs.
    Variable("AWS_VPC_ENI_MTU", "9001", ("eni.mtu",), "same", ""),
    Variable("POD_MTU", "the ENIs'", ("pods.mtu",), "same", "running pods' links change too"),
    Variable(
        "AWS_VPC_K8S_CNI_VETHPREFIX",
        "eni",
        ("pods.vethPrefix", "pods.vethName"),
        "better",
        "eni needs vethName pod, which is how AWS's agents compute the name",
    ),
    Variable("ENABLE_BANDWIDTH_PLUGIN", "false", ("cni.chain",), "same", "the plugin bandwidth"),
    Variable(
        "ANNOTATE_POD_IP",
        "false",
        (),
        "none",
        "the API server shows a pod's addresses in status.podIPs",
    ),
    Variable("HOST_CNI_BIN_PATH", "/host/opt/cni/bin", (), "same", "run --cni-bin-dir"),
    Variable("HOST_CNI_CONFDIR_PATH", "/host/etc/cni/net.d", (), "same", "run --cni-conf-dir"),
    Variable(
        "cniConfig.fileContents",
        "",
        ("cni.network", "cni.versions", "cni.chain"),
        "better",
        "the configuration is made from the document, and repaired",
    ),
    Variable(
        "AWS_VPC_K8S_CNI_LOGLEVEL", "DEBUG", (), "same", "run -v; standard error has the log"
    ),
    Variable(
        "AWS_VPC_K8S_CNI_LOG_FILE",
        "/host/var/log/aws-routed-eni/ipamd.log",
        (),
        "better",
        "standard error has the log, as the runtime keeps it for every container",
    ),
    Variable(
        "AWS_VPC_K8S_PLUGIN_LOG_FILE",
        "/var/log/aws-routed-eni/plugin.log",
        ("cni.logFile",),
        "better",
        "also the journal",
    ),
    Variable("AWS_VPC_K8S_PLUGIN_LOG_LEVEL", "DEBUG", ("cni.logLevel",), "same", ""),
    Variable(
        "AWS_VPC_K8S_EGRESS_V4_PLUGIN_LOG_FILE", "", ("cni.logFile",), "better", "one executable"
    ),
    Variable(
        "AWS_VPC_K8S_EGRESS_V6_PLUGIN_LOG_FILE", "", ("cni.logFile",), "better", "one executable"
    ),
    # Endpoints.
    Variable("DISABLE_METRICS", "false", (), "same", "run --listen; off unless it is given"),
    Variable("DISABLE_INTROSPECTION", "false", (), "better", "status, diff, explain and trace"),
    Variable(
        "INTROSPECTION_BIND_ADDRESS",
        "127.0.0.1:61679",
        (),
        "better",
        "a Unix socket, for root and its group",
    ),
    Variable(
        "CLUSTER_ENDPOINT",
        "",
        ("kubernetes.report",),
        "same",
        "KUBERNETES_SERVICE_HOST; pods wait for no answer of the API server",
    ),
    Variable("AWS_EC2_ENDPOINT", "", (), "better", "the SDK's AWS_ENDPOINT_URL_EC2"),
    Variable("MY_NODE_NAME", "", (), "same", "NODE_NAME; the manifest sets it"),
    Variable("MY_POD_NAME", "", (), "none", "not needed"),
    Variable("VPC_CNI_VERSION", "", (), "none", "not needed"),
    Variable("USE_CLOUDWATCH", "true", (), "none", "metrics are for Prometheus"),
    Variable("USE_PROMETHEUS", "false", (), "same", "run --listen"),
    Variable("METRIC_UPDATE_INTERVAL", "30", (), "none", "metrics are current when they are read"),
    Variable("AWS_CLUSTER_ID", "", (), "none", "not needed"),
    Variable("AWS_REGION", "", (), "same", "from instance metadata"),
)

OURS = {
    "maxPods": "auto reads it from the Node object, as the stock plugin always does",
    "routing.acceptForwarded": "Docker's and others' forward chains that drop",
    "datapath.fastPath": "open connections past all rulesets, by the kernel's flowtable",
    "pods.spoofing": "whether a pod may send with an address that is not its own",
    "pods.metadata": "which namespaces' pods reach instance metadata",
    "pods.repair": "what pods change in their own namespaces",
    "snat.onlyCIDRs": "SNAT for named destinations only",
    "snat.rules": "by namespace and destination: the pod's address, the node's, or one that the "
    "namespace keeps",
    "cni.budget": "how long an ADD may wait",
    "reconcile.resync": "how often all of the kernel is observed",
    "reconcile.ec2Resync": "how often EC2 is observed",
    "kubernetes.startupTaint": "no pod is placed on a node before it can be served",
    "reservedAddresses": "externalIPs and VIPs on a node's ENIs, by address or CIDR; not by tag: "
    "EC2's addresses have none, an ENI's are withheld by its tag node.k8s.amazonaws.com/no_manage "
    "or eni.usePrimary, and a subnet's CIDR reservation, which has tags, is named by its CIDR "
    "without an answer of EC2 that pods would wait for",
    "instanceTypes": "limits of types that EC2 does not tell; the stock plugin compiles them in",
    "takeOver": "migration of a node without draining it",
    "apiVersion": "the document's version",
    "kind": "the document's kind",
}
"""Fields of the document that the stock plugin has no counterpart of, and what they are for."""

BY_NAME = {variable.name: variable for variable in VARIABLES}

HEAD = """\
# Settings of amazon-vpc-cni-k8s, and ours

Made by `python -m reconciler.importing.stock_variables` from the table that `node-network import`
uses. Read in amazon-vpc-cni-k8s v1.23.1. *none*: nothing takes its place; the last column says
what to do instead.

| stock plugin | its default | ours | | |
|---|---|---|---|---|
"""

BEHAVIOUR = {
    "the MAC of an address that moved to another node (#3628, #3774)": "each node asks again once "
    "a minute; #3774 would document `ip neigh del`. Nothing is announced: a VPC does not "
    "carry it ([decision 31](decisions/031-neighbours-are-asked-for-again.md))",
    "CIDR reservations of subnets": "a subnet that is reserved for prefixes is used although EC2 "
    "counts nothing in it as free; by that number the stock plugin passes over it (awslabs/"
    "eks-perf-tests #511). What is reserved as explicit is never asked for by either",
    "several network cards": "indices and the limit are those of the first card; ENIs on others, "
    "EFA-only ones too, are left alone, shown by status, and their addresses count for nothing. "
    "Pods get no addresses of other cards: each would need a link of its own in the pod, as "
    "ENABLE_MULTI_NIC makes them",
}
"""What the stock plugin does without a setting, and what we do."""

NO_SETTING = """
## Without a setting there

| | ours |
|---|---|
"""

MORE = """
## Without a counterpart there

| ours | what for |
|---|---|
"""


def page() -> Iterator[str]:
    """Yield ``docs/parity.md``."""
    yield HEAD
    for one in VARIABLES:
        ours = ", ".join(f"`{path}`" for path in one.ours)
        default = f"`{one.default}`" if one.default else ""
        yield f"| `{one.name}` | {default} | {ours} | {one.verdict} | {one.why} |\n"
    yield NO_SETTING
    for what, how in BEHAVIOUR.items():
        yield f"| {what} | {how} |\n"
    yield MORE
    for path, why in OURS.items():
        yield f"| `{path}` | {why} |\n"


if __name__ == "__main__":
    sys.stdout.writelines(page())
