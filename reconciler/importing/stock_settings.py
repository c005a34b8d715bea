"""What people have of amazon-vpc-cni-k8s, read from whatever they have it in.

A DaemonSet or a list of objects as kubectl prints it, ENIConfigs, the values of its Helm chart,
the configuration of the EKS add-on: YAML or JSON, in any order and mixed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_BYTES = 8 << 20
"""Bytes of all inputs. The stock plugin's manifest has 30 KB, a cluster's ENIConfigs some 100."""

MAX_OBJECTS = 1000
"""Objects in all inputs."""

CONTAINERS = ("aws-node", "aws-vpc-cni-init", "cni-metrics-helper")
"""Containers whose environment counts; the others of the DaemonSet are other programs."""

VALUES = ("env", "eniConfig", "init", "cniConfig", "enableNetworkPolicy", "nodeAgent")
"""Keys by which the chart's values, or an add-on's configuration, are known."""


class SettingsError(ValueError):
    """An input cannot be read; the text names it and says why."""


@dataclass(frozen=True, slots=True)
class EniConfig:
    """A custom resource of the stock plugin's: where the ENIs of some nodes are."""

    name: str
    subnet: str
    security_groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StockSettings:
    """What was found.

    Attributes:
        variables: by name; the init container's count where the main container has none.
        eni_configs: in the order of their names.
        conflist: what the chart writes in place of the stock plugin's own; "" if it does not.
        policy: network policy is switched on.
        ignored: objects that say nothing of settings, by kind and name.
    """

    variables: Mapping[str, str] = field(default_factory=dict)
    eni_configs: tuple[EniConfig, ...] = ()
    conflist: str = ""
    policy: bool = False
    ignored: tuple[str, ...] = ()

    def joined(self, other: StockSettings) -> StockSettings:
        """Add what another input says; the later one wins."""
        configs = {c.name: c for c in (*self.eni_configs, *other.eni_configs)}
        return StockSettings(
            {**self.variables, **other.variables},
            tuple(configs[name] for name in sorted(configs)),
            other.conflist or self.conflist,
            self.policy or other.policy,
            (*self.ignored, *other.ignored),
        )


def read(texts: Iterable[tuple[str, str]]) -> StockSettings:
    """Read inputs, each with the name that errors call it by.

    Raises:
        SettingsError: one is too large, or no YAML, or nothing in them is the stock plugin's.
    """
    found, size, count = StockSettings(), 0, 0
    for name, text in texts:
        size += len(text)
        if size > MAX_BYTES:
            raise SettingsError(f"{name}: the inputs have more than {MAX_BYTES} characters")
        for body in _documents(name, text):
            for one in _objects(body):
                count += 1
                if count > MAX_OBJECTS:
                    raise SettingsError(f"{name}: the inputs have more than {MAX_OBJECTS} objects")
                found = found.joined(_settings(one))
    if not found.variables and not found.eni_configs and not found.policy:
        others = f" (found: {', '.join(found.ignored[:8])})" if found.ignored else ""
        raise SettingsError(
            f"nothing here is of amazon-vpc-cni-k8s{others}; give the DaemonSet aws-node as "
            "kubectl get -o yaml prints it, the chart's values, or the add-on's configuration"
        )
    return found


def _documents(name: str, text: str) -> Iterator[Any]:
    try:
        yield from yaml.load_all(text, Loader=_Plain)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise SettingsError(f"{name}: not YAML: {' '.join(str(error).split())[:300]}") from error


class _Plain(yaml.SafeLoader):
    """Reads values as the text that they are written as; Helm gives the plugin that text."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("anchors and aliases are not read; write the value out")
        return super().compose_node(parent, index)


# ``yes`` and 010 stay what was written.
_Plain.yaml_implicit_resolvers = {}


def _objects(body: Any) -> Iterator[Mapping[str, Any]]:
    """Yield an object, or those of a list; what is neither is left out."""
    if not isinstance(body, dict):
        return
    if isinstance(items := body.get("items"), list) and str(body.get("kind", "")).endswith("List"):
        yield from (i for i in items if isinstance(i, dict))
    else:
        yield body


def _settings(body: Mapping[str, Any]) -> StockSettings:
    kind, name = str(body.get("kind", "")), str(_inner(body, "metadata").get("name", ""))
    if kind == "DaemonSet" or kind == "Deployment":
        return StockSettings(_environment(_inner(body, "spec", "template", "spec")))
    if kind == "ENIConfig":
        return StockSettings(eni_configs=_eni_config(name, _inner(body, "spec")))
    if kind == "ConfigMap" and name == "amazon-vpc-cni":
        on = _inner(body, "data").get("enable-network-policy-controller") == "true"
        return StockSettings(policy=on, ignored=(f"{kind} {name}",))
    if not kind and any(key in body for key in VALUES):
        return _values(body)
    return StockSettings(ignored=(f"{kind or 'object'} {name}".strip(),))


def _environment(pod: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables of the stock plugin's containers that have a plain value."""
    found: dict[str, str] = {}
    for key in ("initContainers", "containers"):  # the later one wins
        containers = pod.get(key)
        for container in containers if isinstance(containers, list) else ():
            if not isinstance(container, dict) or container.get("name") not in CONTAINERS:
                continue
            entries = container.get("env")
            for entry in entries if isinstance(entries, list) else ():
                if isinstance(entry, dict) and isinstance(entry.get("value"), str):
                    found[str(entry.get("name"))] = entry["value"]
    return found


def _eni_config(name: str, spec: Mapping[str, Any]) -> tuple[EniConfig, ...]:
    subnet, groups = spec.get("subnet"), spec.get("securityGroups")
    listed = groups if isinstance(groups, list) else []
    return (EniConfig(name, str(subnet), tuple(map(str, listed))),) if subnet else ()


def _values(body: Mapping[str, Any]) -> StockSettings:
    """Read the chart's values, or the same as an add-on's configuration."""
    pairs = {**_inner(body, "init", "env"), **_inner(body, "env")}
    variables = {str(k): v for k, v in pairs.items() if isinstance(v, str)}
    configs = [
        config
        for zone, subnet in _inner(body, "eniConfig", "subnets").items()
        if isinstance(subnet, dict)
        for config in _eni_config(
            str(zone), {"subnet": subnet.get("id"), "securityGroups": subnet.get("securityGroups")}
        )
    ]
    is_own = str(_inner(body, "cniConfig").get("enabled", "")).lower() == "true"
    conflist = str(_inner(body, "cniConfig").get("fileContents", "")) if is_own else ""
    policy = str(body.get("enableNetworkPolicy", "")).lower() == "true"
    return StockSettings(variables, tuple(configs), conflist, policy)


def _inner(body: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """Return a mapping within; an empty one if it is not there, or is something else."""
    for key in keys:
        found = body.get(key)
        body = found if isinstance(found, dict) else {}
    return body
