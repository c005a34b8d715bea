"""A small runtime: runs a list of plugins as libcni does, in a lab's node.

Source: CNI specification 1.0.0, section 4 "Plugin Delegation" and section 3 "Execution of
Network Configurations"; what libcni does beside it is said where it is done.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import netns
from lab.lifecycle import Lab

LIMIT_S = 60


class PluginError(Exception):
    """A plugin refused; carries its error object and whose it is."""

    def __init__(self, verb: str, plugin: str, error: dict[str, Any]) -> None:
        super().__init__(f"{verb} by {plugin}: code {error.get('code')}: {error.get('msg')}")
        self.plugin = plugin
        self.error = error


@dataclass
class Sandbox:
    """A pod as its runtime knows it.

    Attributes:
        namespace: name of its network namespace.
        runtime: what the runtime offers, by capability.
        result: of its ADD; what libcni keeps in its cache.
    """

    name: str
    namespace: str
    runtime: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] | None = None

    @property
    def address(self) -> str:
        """Its address."""
        assert self.result is not None
        return str(self.result["ips"][0]["address"]).partition("/")[0]


class Chain:
    """A network configuration list, on one node.

    Args:
        directory: where the executables are.
        more: plugins after ours.
        own: keys of our own part.
    """

    def __init__(
        self,
        lab: Lab,
        node: str,
        directory: Path,
        more: Sequence[dict[str, Any]] = (),
        *,
        version: str = "1.0.0",
        own: dict[str, Any] | None = None,
    ) -> None:
        self.lab = lab
        self.node = node
        self.directory = directory
        self.version = version
        first = {"type": "node-network", "stateDir": str(lab.names.node_state(node))}
        self.plugins = [first | (own or {}), *more]

    def open(self, name: str, **runtime: Any) -> Sandbox:
        """Make a sandbox without a network."""
        sandbox = Sandbox(name, self.lab.names.namespace(f"pod-{name}"), runtime)
        netns.make(sandbox.namespace)
        return sandbox

    def add(self, sandbox: Sandbox) -> None:
        """Call ADD of each in order; each is given what the one before it returned.

        Raises:
            PluginError: one refused, and those after it were not called.
        """
        result: dict[str, Any] | None = None
        for plugin in self.plugins:
            result = self.call("ADD", plugin, sandbox, result)
        sandbox.result = result

    def check(self, sandbox: Sandbox) -> None:
        """Call CHECK of each in order; each is given the whole list's result.

        Raises:
            PluginError: one found a difference.
        """
        for plugin in self.plugins:
            self.call("CHECK", plugin, sandbox, sandbox.result)

    def delete(self, sandbox: Sandbox) -> None:
        """Call DEL of each in reverse; end the namespace.

        Raises:
            PluginError: one refused, and those before it were not called.
        """
        for plugin in reversed(self.plugins):
            self.call("DEL", plugin, sandbox, sandbox.result)
        netns.remove(sandbox.namespace)

    def start(self, name: str, **runtime: Any) -> Sandbox:
        """Start a sandbox; if that fails, undo it as containerd does.

        Raises:
            PluginError: a plugin refused.
        """
        sandbox = self.open(name, **runtime)
        try:
            self.add(sandbox)
        except PluginError:
            self.delete(sandbox)
            raise
        return sandbox

    def call(
        self,
        verb: str,
        plugin: dict[str, Any],
        sandbox: Sandbox,
        previous: dict[str, Any] | None = None,
    ) -> dict[str, Any] | None:
        """Run one plugin once.

        Raises:
            PluginError: it refused.
        """
        done = subprocess.run(
            self.command(plugin),
            input=json.dumps(self.config(plugin, sandbox, previous)),
            env=self.environment(verb, sandbox),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        answer: dict[str, Any] | None = json.loads(done.stdout) if done.stdout.strip() else None
        if done.returncode != 0:
            raise PluginError(verb, plugin["type"], answer or {"msg": done.stderr})
        return answer

    def command(self, plugin: dict[str, Any]) -> list[str]:
        """Return what runs a plugin on the node."""
        return self.lab.command(self.node, [str(self.directory / plugin["type"])])

    def config(
        self, plugin: dict[str, Any], sandbox: Sandbox, previous: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Return what it reads; of what the runtime offers, only what it declares."""
        declared = plugin.get("capabilities", {})
        offered = {k: v for k, v in sandbox.runtime.items() if declared.get(k)}
        config = {"cniVersion": self.version, "name": "node-network"} | plugin
        if offered:
            config["runtimeConfig"] = offered
        if previous is not None:
            config["prevResult"] = previous
        return config

    def environment(self, verb: str, sandbox: Sandbox) -> dict[str, str]:
        """Return the environment of a call."""
        return {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": f"{self.lab.names.lab}-{sandbox.name}",
            "CNI_NETNS": str(netns.path(sandbox.namespace)),
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.directory),
            "CNI_ARGS": (
                f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={sandbox.name};"
                f"K8S_POD_INFRA_CONTAINER_ID={self.lab.names.lab}-{sandbox.name}"
            ),
        }
