"""What container runtimes are told: the CNI configuration, and what they start after us."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    WithJsonSchema,
)

from schemas import words
from schemas.model import Model
from schemas.value import Duration, Form, check_unique

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
    """Read a plugin's configuration and write it as JSON with sorted keys.

    As text it can be hashed, cannot change, and equals what says the same in another order.

    Raises:
        ValueError: it is no mapping, names no plugin, or has what a runtime would not take; all
            faults.
    """
    if not isinstance(value, dict):
        hint = f"; write {{type: {value}}}" if isinstance(value, str) else ""
        raise ValueError(f"must be a mapping of keys{hint}")
    if faults := list(_plugin_faults(value)):
        raise ValueError("\n".join(faults))
    try:
        return json.dumps(value, sort_keys=True)
    except TypeError as error:
        raise ValueError(f"not plain YAML: {error}") from error


def _plugin_faults(plugin: dict[Any, Any]) -> Iterator[str]:
    name = plugin.get("type")
    if "type" not in plugin:
        yield "type: missing; it names the plugin's executable"
    elif not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name):
        shown = words.shown("{!r}: ", name)
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
            yield f"capabilities.{name}: {words.shown('{!r}: ', wanted)}must be true or false"


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
                    "description": "What of a pod's wishes the runtime shall hand to it.",
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
    """What container runtimes are told.

    ``10-node-network.conflist`` is made of it.
    """

    network: NetworkName = Field(
        default="node-network",
        description="Name of the network, as runtimes show it. A change holds for pods that start "
        "after it.",
    )
    versions: Annotated[
        tuple[Literal["0.3.1", "0.4.0", "1.0.0", "1.1.0"], ...],
        Field(min_length=1),
        AfterValidator(check_unique),
    ] = Field(
        default=("1.0.0",),
        description="Versions of the CNI specification that every plugin of the chain speaks. "
        "Runtimes that know the key cniVersions (containerd 2, CRI-O 1.32) take the newest they "
        "know; older ones take the oldest named here. Default 1.0.0: containerd 1.6 and 1.7 and "
        "podman refuse anything newer, and so does portmap before its release 1.6. With 1.1.0 "
        "beside it, newer runtimes ask for STATUS and GC as well.",
    )
    budget: Duration = Field(
        default=timedelta(seconds=60),
        description="How long the start of a pod may wait for its address, such as for a new ENI. "
        "Unit: duration, 1s to 110s. Default 60s: kubelet gives up after two minutes.",
    )
    log_file: LogFile | None = Field(
        default=None,
        description="Where the CNI executable writes what it did: a file on the host, or journal. "
        "Default: nowhere.",
    )
    log_level: Literal["debug", "info", "error", "none"] | None = Field(
        default=None,
        description="The least that is written there; error: calls that failed. Default: info.",
    )
    chain: tuple[Plugin, ...] = Field(
        default=(PORTMAP,),
        description="Plugins that the runtime starts for each pod after ours, in this order: "
        "type is the name of an executable in the runtime's directory of plugins, capabilities "
        "what it shall be told of a pod, all other keys are the plugin's own. Default: portmap, "
        "which makes hostPort work, as with amazon-vpc-cni-k8s. [] for none.",
    )

    def _faults(self) -> Iterator[str]:
        if not timedelta(seconds=1) <= self.budget <= MAX_BUDGET:
            yield "budget: must be from 1s to 110s"
