"""The document that does what the stock plugin's settings do.

Each line keeps the variable that it came from. What has no counterpart is said, with what to do
instead. Values are read as amazon-vpc-cni-k8s v1.23.1 reads them (``pkg/ipamd/ipamd.go``,
``pkg/networkutils/network.go``, ``cmd/aws-vpc-cni/main.go``): most wrong ones are its defaults.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from reconciler.importing.stock_settings import EniConfig, StockSettings
from reconciler.importing.stock_variables import BY_NAME

ZONE = re.compile(r"[a-z]{2}(-[a-z]+)+-\d[a-z]")
"""The name of an availability zone, which people give to the ENIConfig of a zone."""

ZONE_LABELS = ("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone")
"""Labels of a node whose value is its zone."""

ROLE_TAG = "kubernetes.io/role/cni"
"""Marks the subnets that the stock plugin makes ENIs in beside the primary ENI's."""

PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
BANDWIDTH = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
NO_IPV6 = {
    "type": "tuning",
    "sysctl": {f"net.ipv6.conf.{which}.disable_ipv6": "1" for which in ("all", "default", "lo")},
}
PORTS = {"prng": "fully-random", "hashrandom": "random", "none": "sequential"}
PLUGIN_LOG = "/var/log/aws-routed-eni/plugin.log"
LEVELS = {"debug": "debug", "info": "info", "warn": "error", "error": "error", "fatal": "error"}

SILENT = {
    "ENABLE_IPv4",
    "MY_NODE_NAME",
    "MY_POD_NAME",
    "VPC_CNI_VERSION",
    "AWS_VPC_K8S_CNI_LOG_FILE",
    "AWS_VPC_K8S_CNI_LOGLEVEL",
    "AWS_REGION",
    "AWS_CLUSTER_ID",
}
"""Variables that need no decision of anybody."""


@dataclass(frozen=True, slots=True)
class Line:
    """One value of the document: where it is, and where it came from."""

    path: str
    value: Any
    source: str


@dataclass(frozen=True, slots=True)
class Note:
    """What has no counterpart, or differs, and what to do."""

    text: str


Said = Iterator[Line | Note]


class _Reader:
    """Reads variables as the stock plugin does, and remembers which were read."""

    def __init__(self, settings: StockSettings) -> None:
        self._variables = settings.variables
        self.read: set[str] = set()

    def text(self, name: str) -> str:
        self.read.add(name)
        return self._variables.get(name, "").strip()

    def number(self, name: str) -> int | None:
        """Return a whole number; None if it is not set, or is none."""
        text = self.text(name)
        return int(text) if re.fullmatch(r"[+-]?\d{1,9}", text) else None

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Return a truth value as Go's strconv.ParseBool reads it."""
        text = self.text(name)
        if text in {"1", "t", "T", "true", "TRUE", "True"}:
            return True
        return False if text in {"0", "f", "F", "false", "FALSE", "False"} else default

    def said(self, name: str) -> str:
        """Return the variable as it is set."""
        return f"{name}={self._variables[name]}" if name in self._variables else f"{name} not set"


def translate(settings: StockSettings) -> tuple[tuple[Line, ...], tuple[Note, ...]]:
    """Return the lines of the document that does what these settings do, and notes on the rest."""
    reader = _Reader(settings)
    said = (
        *_identity(reader),
        *_warm_pool(reader),
        *_enis(reader),
        *_snat(reader),
        *_pods(reader, settings),
        *_cni(reader, settings),
        *_families(reader),
        *_mode(reader),
        *_custom_networking(reader, settings),
        *_rest(reader, settings),
    )
    lines = tuple(one for one in said if isinstance(one, Line))
    return lines, tuple(one for one in said if isinstance(one, Note))


def _identity(reader: _Reader) -> Said:
    yield Line("apiVersion", "node-network/v1alpha1", "")
    yield Line("kind", "NodeNetwork", "")
    if name := reader.text("CLUSTER_NAME"):
        yield Line("cluster", name, "CLUSTER_NAME")


def _warm_pool(reader: _Reader) -> Said:
    """One strategy wins: addresses, then prefixes where ENIs get them, then ENIs."""
    warm, minimum = reader.number("WARM_IP_TARGET"), reader.number("MINIMUM_IP_TARGET")
    prefixes, enis = reader.number("WARM_PREFIX_TARGET"), reader.number("WARM_ENI_TARGET")
    by_prefix = reader.flag("ENABLE_PREFIX_DELEGATION")
    if (warm or 0) > 0 or (minimum or 0) > 0:
        beaten = [n for n in ("WARM_ENI_TARGET", "WARM_PREFIX_TARGET") if reader.text(n)]
        over = f", wins over {' and '.join(beaten)}" if beaten else ""
        yield Line(
            "warmPool.addresses.warm", max(warm or 0, 0), reader.said("WARM_IP_TARGET") + over
        )
        if (minimum or 0) > 0:
            yield Line("warmPool.addresses.minimum", minimum, reader.said("MINIMUM_IP_TARGET"))
        why = "as the stock plugin; the default 4 saves EC2 calls"
        yield Line("warmPool.addresses.surplus", 0, why)
        if by_prefix:
            yield Note(
                "WARM_IP_TARGET with prefixes: both count addresses, and both hold whole prefixes"
            )
    elif by_prefix and (prefixes or 0) > 0:
        over = ", wins over WARM_ENI_TARGET" if reader.text("WARM_ENI_TARGET") else ""
        yield Line("warmPool.prefixes.warm", prefixes, reader.said("WARM_PREFIX_TARGET") + over)
    else:
        count = 1 if enis is None or enis < 0 else min(enis, 15)
        yield Line("warmPool.enis.warm", count, reader.said("WARM_ENI_TARGET"))
    cooldown = reader.number("IP_COOLDOWN_PERIOD")
    if cooldown is not None and cooldown != 30 and 0 <= cooldown <= 3600:
        yield Line("warmPool.cooldown", f"{cooldown}s", reader.said("IP_COOLDOWN_PERIOD"))


def _enis(reader: _Reader) -> Said:
    most = reader.number("MAX_ENI")
    if most is not None and most >= 1:
        yield Line("eni.max", most, "MAX_ENI")
    mtu = reader.number("AWS_VPC_ENI_MTU")
    if mtu is not None and mtu != 9001:
        if 1280 <= mtu <= 9001:
            yield Line("eni.mtu", mtu, "AWS_VPC_ENI_MTU")
        else:
            yield Note(
                f"AWS_VPC_ENI_MTU={mtu}: an ENI's MTU is 1280 to 9001 here; left at 9001. Use "
                "pods.mtu for less"
            )
    if reader.flag("ENABLE_PREFIX_DELEGATION"):
        yield Line("eni.allocate", "prefixes", reader.said("ENABLE_PREFIX_DELEGATION"))
    yield from _tags(reader.text("ADDITIONAL_ENI_TAGS"))
    if reader.flag("ENABLE_SUBNET_DISCOVERY", default=True):
        yield Note(
            f"ENABLE_SUBNET_DISCOVERY: where subnets carry the tag {ROLE_TAG}, set eni.subnetTags "
            f'{{{ROLE_TAG}: "1"}}: those are used, and the primary ENI\'s only if it carries the '
            f'tag too. For subnets with the value 0, set eni.excludeSubnetTags {{{ROLE_TAG}: "0"}}'
        )


def _tags(text: str) -> Said:
    if not text:
        return
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        yield Note(
            "ADDITIONAL_ENI_TAGS is no JSON object of texts: the stock plugin ignores it; left out"
        )
    elif tags := {k: v for k, v in found.items() if "k8s.amazonaws.com" not in k}:
        yield Line("eni.tags", tags, "ADDITIONAL_ENI_TAGS")


def _snat(reader: _Reader) -> Said:
    external = reader.flag("AWS_VPC_K8S_CNI_EXTERNALSNAT")
    excluded = reader.text("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS")
    ports = reader.text("AWS_VPC_K8S_CNI_RANDOMIZESNAT")
    if external:
        yield Line("snat.mode", "external", reader.said("AWS_VPC_K8S_CNI_EXTERNALSNAT"))
        if excluded:
            yield Note(
                "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS has no effect beside EXTERNALSNAT=true, where "
                "nothing is translated; left out"
            )
    else:
        yield from _cidrs("snat.excludeCIDRs", "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", excluded)
    if ports in PORTS and ports != "prng":
        yield Line("snat.ports", PORTS[ports], reader.said("AWS_VPC_K8S_CNI_RANDOMIZESNAT"))
    name = "AWS_EXTERNAL_SERVICE_CIDRS"
    yield from _cidrs("routing.externalServiceCIDRs", name, reader.text(name))
    if reader.text("AWS_VPC_CNI_NODE_PORT_SUPPORT") and not reader.flag(
        "AWS_VPC_CNI_NODE_PORT_SUPPORT", default=True
    ):
        yield Note("AWS_VPC_CNI_NODE_PORT_SUPPORT=false: it is always on here")
    mark = reader.text("AWS_VPC_K8S_CNI_CONNMARK")
    if mark and mark.lower() not in {"0x80", "128"}:
        yield Note(
            f"AWS_VPC_K8S_CNI_CONNMARK={mark}: a take-over that cuts no connection needs 0x80; "
            "drain the node instead, and set routing.markMask if bits collide"
        )


def _cidrs(path: str, name: str, text: str) -> Said:
    """Read a list of IPv4 CIDRs; the stock plugin leaves out what is none."""
    found, wrong = [], []
    for item in filter(None, (part.strip() for part in text.split(","))):
        try:
            network = ip_network(item, strict=False)
        except ValueError:
            network = None
        if network is None or network.version != 4:
            wrong.append(item)
        else:
            found.append(str(network))
    if wrong:
        yield Note(
            f"{name}: left out as the stock plugin does, since they are no IPv4 CIDRs: "
            f"{', '.join(wrong[:8])}"
        )
    if found:
        yield Line(path, list(dict.fromkeys(found)), name)


def _pods(reader: _Reader, settings: StockSettings) -> Said:
    mtu = reader.number("POD_MTU")
    if mtu is not None and 576 <= mtu <= 9001:
        yield Line("pods.mtu", mtu, "POD_MTU")
    reader.text("NETWORK_POLICY_ENFORCING_MODE")
    prefix = reader.text("AWS_VPC_K8S_CNI_VETHPREFIX")
    if settings.policy:
        yield Line("pods.vethPrefix", "eni", "network policy is on")
        yield Line("pods.vethName", "pod", "as AWS's network policy agent computes it")
        yield Note(
            "network policy: the agent aws-eks-nodeagent finds pods by their links' names, and "
            "asks the stock plugin's daemon when a pod starts, which is not there; see "
            "docs/neighbours.md"
        )
    elif prefix not in {"", "eni"}:
        if re.fullmatch(r"[a-z][a-z0-9]{0,3}", prefix) and prefix not in {"veth", "cni"}:
            yield Line("pods.vethPrefix", prefix, "AWS_VPC_K8S_CNI_VETHPREFIX")
        else:
            yield Note(
                f"AWS_VPC_K8S_CNI_VETHPREFIX={prefix}: a prefix is 1 to 4 lower-case letters and "
                "digits that no other software uses; left at nn"
            )


def _cni(reader: _Reader, settings: StockSettings) -> Said:
    chain: list[dict[str, Any]] = [PORTMAP]
    sources = ["portmap as in the stock plugin's configuration"]
    for name, plugin in (("ENABLE_BANDWIDTH_PLUGIN", BANDWIDTH), ("DISABLE_POD_V6", NO_IPV6)):
        if reader.flag(name):
            chain.append(plugin)
            sources.append(reader.said(name))
    if len(chain) > 1:
        yield Line("cni.chain", chain, ", ".join(sources))
    path, level = (reader.text(f"AWS_VPC_K8S_PLUGIN_LOG_{what}") for what in ("FILE", "LEVEL"))
    if path not in {"", PLUGIN_LOG}:
        if re.fullmatch(r"(/[A-Za-z0-9_.,:+-]+)+", path):
            yield Line("cni.logFile", path, "AWS_VPC_K8S_PLUGIN_LOG_FILE")
            if said := LEVELS.get(level.lower()):
                yield Line("cni.logLevel", said, "AWS_VPC_K8S_PLUGIN_LOG_LEVEL")
        else:
            yield Note(f"AWS_VPC_K8S_PLUGIN_LOG_FILE={path}: set cni.logFile to an absolute path")
    if settings.conflist:
        yield Note(
            "cniConfig.fileContents replaces the stock plugin's configuration: its other plugins "
            "go into cni.chain, its name into cni.network"
        )


def _families(reader: _Reader) -> Said:
    v4, v6 = (reader.flag("ENABLE_V4_EGRESS", default=True), reader.flag("ENABLE_V6_EGRESS"))
    if reader.flag("ENABLE_IPv6"):
        yield Line("families", ["ipv6"], reader.said("ENABLE_IPv6"))
        if v4:
            yield Line("egressFamilies", ["ipv4"], reader.said("ENABLE_V4_EGRESS"))
        yield Note(
            "ENABLE_IPv6: a take-over of running pods is not supported in IPv6 clusters; drain "
            "each node"
        )
    elif v6:
        yield Line("egressFamilies", ["ipv6"], reader.said("ENABLE_V6_EGRESS"))


def _mode(reader: _Reader) -> Said:
    frozen = ("DISABLE_NETWORK_RESOURCE_PROVISIONING", "ENABLE_IMDS_ONLY_MODE")
    if named := [name for name in frozen if reader.flag(name)]:
        yield Line("ec2.mode", "frozen", ", ".join(map(reader.said, named)))
    if not reader.flag("AWS_MANAGE_ENIS_NON_SCHEDULABLE"):
        yield Note(
            "AWS_MANAGE_ENIS_NON_SCHEDULABLE is false: the stock plugin changes nothing while a "
            "node is cordoned; here a cordon has no effect. Set ec2.mode: keep in an override for "
            "nodes that must keep what they have"
        )


def _custom_networking(reader: _Reader, settings: StockSettings) -> Said:
    if not reader.flag("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG"):
        if settings.eni_configs:
            yield Note(
                "there are ENIConfigs, but AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG is not true, so "
                "they have no effect; left out"
            )
        return
    source = reader.said("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG")
    yield Line("eni.usePrimary", False, source)
    if reader.text("ENI_CONFIG_LABEL_DEF") not in ("", *ZONE_LABELS):
        reader.read.remove("ENI_CONFIG_LABEL_DEF")  # the rest says that labels are not read
    overrides = []
    for config in settings.eni_configs:
        eni = _placement(config)
        if config.name == "default":
            for key, value in eni.items():
                yield Line(f"eni.{key}", value, "ENIConfig default")
        elif ZONE.fullmatch(config.name):
            overrides.append({"match": {"zone": config.name}, "set": {"eni": eni}})
        else:
            yield Note(
                f"ENIConfig {config.name} is not named after a zone: add an override whose match "
                f"(zone, instanceType or nodeName) finds its nodes, with set: {{eni: {eni}}}"
            )
    if overrides:
        yield Line("overrides", overrides, "ENIConfigs, named after their zones")
    if not settings.eni_configs:
        yield Note(
            "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG=true, but no ENIConfig was given: add them "
            "(kubectl get eniconfigs -o yaml), or pods' ENIs are in the primary ENI's subnet"
        )


def _placement(config: EniConfig) -> dict[str, Any]:
    eni: dict[str, Any] = {"subnets": [config.subnet]}
    if config.security_groups:
        eni["securityGroups"] = list(config.security_groups)
    return eni


def _rest(reader: _Reader, settings: StockSettings) -> Said:
    """Name what was set and has not been translated."""
    for name, text in sorted(settings.variables.items()):
        if name in reader.read or name in SILENT or not text:
            continue
        known = BY_NAME.get(name)
        if known is None:
            yield Note(f"{name}={text}: not a variable of amazon-vpc-cni-k8s v1.23.1; left out")
        elif text != known.default and text.lower() not in {"false", "{}"}:
            yield Note(f"{name}={text}: {known.why or 'has no counterpart'}")
