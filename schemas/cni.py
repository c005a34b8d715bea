"""The CNI configuration for container runtimes, and the plugins that follow in the chain."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated, Any, Literal

from schemas import problem
from schemas.value import Duration, Form, Model, as_json, check_unique
from schemas.vocabulary import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    WithJsonSchema,
)

TYPE = "node-network"
"""What CNI calls our plugin: its executable's file name."""

MAX_BUDGET = timedelta(seconds=110)
"""Kubelet gives a sandbox two minutes (--runtime-request-timeout); the answer has a way to go."""

VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""Versions of the CNI specification that a chain may speak, ascending."""

RESERVED = {
    "cniVersion": "cni.versions says it for the whole chain",
    "name": "cni.network says it for the whole chain",
    "prevResult": "the runtime puts it there",
    "runtimeConfig": "the runtime puts it there; name it under capabilities",
    "args": "the specification reserves it for runtimes",
}
"""Keys of a plugin's configuration that are not its own (CNI specification 1.1.0, "Plugin
configuration objects" and "Deriving execution configuration")."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


def parse_plugin(value: object) -> str:
    """Read a plugin's configuration, and keep it as JSON.

    Raises:
        ValueError: it is no mapping, names no plugin, or has keys that a runtime refuses; all
            faults.
    """
    if not isinstance(value, dict):
        hint = f"; write {{type: {value}}}" if isinstance(value, str) else ""
        raise ValueError(f"must be a mapping of keys{hint}")
    if faults := list(_plugin_faults(value)):
        raise ValueError("\n".join(faults))
    return as_json(value)


def _plugin_faults(plugin: dict[Any, Any]) -> Iterator[str]:
    name = plugin.get("type")
    if "type" not in plugin:
        yield "type: missing; it names the plugin's executable"
    elif not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name):
        shown = problem.shown("{!r}: ", name)
        yield f"type: {shown}must be the name of an executable, without a path"
    elif name == TYPE:
        yield f"type: {TYPE} is first in every chain already; remove the entry"
    for key in plugin:
        if why := RESERVED.get(key):
            yield f"{key}: {why}; remove it"
        elif str(key).startswith("cni.dev/"):
            yield f"{key} is the runtime's to set; remove it"
    yield from _capability_faults(plugin.get("capabilities", {}))


def _capability_faults(capabilities: object) -> Iterator[str]:
    """Find what is wrong: a runtime that cannot read them takes no configuration at all."""
    if not isinstance(capabilities, dict):
        yield "capabilities: must be a mapping of names to true or false"
        return
    for name, wanted in capabilities.items():
        if not isinstance(wanted, bool):
            yield f"capabilities.{name}: {problem.shown('{!r}: ', wanted)}must be true or false"


Plugin = Annotated[
    str,
    BeforeValidator(parse_plugin),
    PlainSerializer(json.loads, return_type=dict[str, Any]),
    WithJsonSchema(
        {
            "type": "object",
            "required": ["type"],
            "properties": {
                "type": {
                    "type": "string",
                    "pattern": f"^{_PLAIN_NAME.pattern}$",
                    "description": "Name of the plugin's executable.",
                },
                "capabilities": {
                    "type": "object",
                    "additionalProperties": {"type": "boolean"},
                    "description": "Which of a pod's requests the runtime passes to it.",
                },
            },
        }
    ),
]
NetworkName = Annotated[
    str,
    Form("[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", "1 to 63 letters, digits and _.-, not these first"),
]
LogFile = Annotated[
    str, Form("(journal|(/[A-Za-z0-9_.,:+-]+)+)", "journal, or an absolute path as /var/log/x.log")
]

PORTMAP = parse_plugin({"type": "portmap", "capabilities": {"portMappings": True}, "snat": True})


class Cni(Model):
    """The CNI configuration: ``10-node-network.conflist`` is generated from it."""

    network: NetworkName = Field(
        default="node-network",
        description="Name of the network, as runtimes show it. A change applies to pods that "
        "start after it.",
    )
    versions: Annotated[
        tuple[Literal["0.3.1", "0.4.0", "1.0.0", "1.1.0"], ...],
        Field(min_length=1),
        AfterValidator(check_unique),
    ] = Field(
        default=("1.0.0",),
        description="Versions of the CNI specification that every plugin of the chain speaks. "
        "Runtimes that know the key cniVersions (containerd 2, CRI-O 1.32) use the newest they "
        "know; older ones use the oldest in this list. Default 1.0.0: containerd 1.6 and 1.7, "
        "podman, and portmap before 1.6 refuse anything newer. If 1.1.0 is in the list too, "
        "newer runtimes call STATUS and GC as well.",
    )
    budget: Duration = Field(
        default=timedelta(seconds=60),
        description="How long an ADD may wait for its address, for example for a new ENI. "
        "Unit: duration, 1s to 110s. Default 60s: kubelet gives up after two minutes.",
    )
    log_file: LogFile | None = Field(
        default=None,
        description="Where the CNI executable logs its calls: a file on the host, or journal. "
        "Default: no log.",
    )
    log_level: Literal["debug", "info", "error", "none"] | None = Field(
        default=None,
        description="The lowest level that is logged; error: calls that failed. Default: info.",
    )
    chain: tuple[Plugin, ...] = Field(
        default=(PORTMAP,),
        description="Plugins that the runtime runs for each pod after ours, in this order. "
        "type: name of an executable in the runtime's plugin directory. capabilities: which of a "
        "pod's requests it gets. All other keys are the plugin's own. Default: portmap, for "
        "hostPort, as with amazon-vpc-cni-k8s. []: none.",
    )

    def _faults(self) -> Iterator[str]:
        if not timedelta(seconds=1) <= self.budget <= MAX_BUDGET:
            yield "budget: must be from 1s to 110s"
