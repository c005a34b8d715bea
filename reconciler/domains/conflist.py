"""The CNI configuration that a container runtime reads: generated from the document.

Its presence tells kubelet that pods can start, so it is installed once they can. Then it stays:
without it a runtime cannot end pods.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, ClassVar

from reconciler.core.facts import CONFLIST
from reconciler.domains.inputs import Inputs
from reconciler.engine.plan import Change, Key, Plan, Verb, compare
from reconciler.errors import Issue
from schemas.cni import TYPE, VERSIONS, Cni

NAME = CONFLIST
MODE = "0644"

REASON_CHARS = 512
"""Characters of a difference that are printed: another program may write a megabyte into the file,
and the difference goes into the log and a condition."""

SUFFIXES = (".conf", ".conflist", ".json")
"""Files that runtimes take for configurations (go-cni and ocicni, calling libcni's ConfFiles)."""


@dataclass(frozen=True, slots=True)
class Conflist:
    """A configuration of ours.

    ``content``: in ``normal`` form; "" if the file is no JSON. ``mode``: its permissions in octal,
    as chmod takes them.
    """

    kind: ClassVar[str] = "conflist"
    is_ours_by_key: ClassVar[bool] = True  # whatever has this name, it was put there by us
    in_a_fight: ClassVar[str] = (
        "another program rewrites this file, as service meshes do to add a plugin: pods that "
        "start while our version stands are started without that plugin. Put the plugin into "
        "cni.chain, or make that program leave this file alone"
    )
    path: str
    content: str
    mode: str = MODE

    @property
    def key(self) -> Key:
        return (self.path,)

    @property
    def text(self) -> str:
        """The file as it is written: the same for the same content."""
        return write(json.loads(self.content))

    def command(self, verb: Verb) -> str:
        """The ``install`` command, with the content on its standard input (bash)."""
        if verb is Verb.DELETE:
            return f"rm {self.path}"
        return f"install -D -m {self.mode} /dev/stdin {self.path} <<<{shlex.quote(self.content)}"


@dataclass(frozen=True, slots=True)
class OtherConf:
    """A configuration of another owner in the same directory.

    ``words``: every text in it; none if it cannot be read.
    """

    name: str
    words: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Plugins:
    """The names of what is in a directory of plugins."""

    directory: str
    names: frozenset[str]


Seen = Conflist | OtherConf | Plugins
KINDS: tuple[type[Seen], ...] = (Conflist, OtherConf, Plugins)
_ABSENT = object()


def normal(text: str) -> str:
    """Write JSON in the one form that all texts of the same meaning have.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return json.dumps(json.loads(text, parse_float=_number), sort_keys=True)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _number(text: str) -> float:
    """Read a number: 60.0 is 60."""
    value = float(text)
    return int(value) if value.is_integer() else value


def words_of(text: str) -> frozenset[str]:
    """Return every text in a JSON document; nothing if it is none."""
    try:
        return frozenset(_texts(json.loads(text)))
    except (ValueError, RecursionError):
        return frozenset()


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def write(body: dict[str, Any]) -> str:
    """Write a configuration as a file: the same text for the same content."""
    return json.dumps(body, indent=2, sort_keys=True) + "\n"


def make(cni: Cni, state_dir: str) -> dict[str, Any]:
    """Return the configuration of a network, our plugin first.

    ``state_dir``: the records, as the executable on the host sees them.
    """
    ours: dict[str, Any] = {
        "type": TYPE,
        "stateDir": state_dir,
        "budgetSeconds": _number(str(cni.budget.total_seconds())),
        # This file may outlive a reboot, the reconciler does not: half is for its start.
        "startSeconds": _number(str(cni.budget.total_seconds() / 2)),
    }
    logging = {"logFile": cni.log_file, "logLevel": cni.log_level}
    ours |= {key: value for key, value in logging.items() if value is not None}
    versions = sorted(cni.versions, key=VERSIONS.index)
    body: dict[str, Any] = {"cniVersion": versions[0], "name": cni.network}
    if len(versions) > 1:
        # libcni before 1.2 does not know this key and takes the other.
        body["cniVersions"] = versions
    return body | {"plugins": [ours, *map(json.loads, cni.chain)]}


def desire(inputs: Inputs) -> frozenset[Conflist]:
    """One file, if it is ours to install."""
    where = inputs.host.installation
    if not where.conf_dir:
        return frozenset()
    content = normal(json.dumps(make(inputs.document.cni, where.state_dir)))
    return frozenset({Conflist(f"{where.conf_dir}/{NAME}", content)})


def plan(desired: Iterable[Conflist], observed: Iterable[Seen]) -> Plan:
    """Compare, and name other configurations in the directory; nothing is ever deleted.

    A configuration that names a missing plugin would fail every pod, so it does not replace one
    that works.
    """
    seen = tuple(observed)
    result = Plan()
    for want in sorted(desired, key=lambda o: o.key):
        there = [o for o in seen if isinstance(o, Conflist) and o.key == want.key]
        changes = [a for a in compare([want], there).actions if isinstance(a, Change)]
        missing = tuple(_missing(want, seen))
        actions = () if missing else tuple(replace(a, reason=_reason(a)) for a in changes)
        result += Plan(actions, missing, findings=tuple(_ahead(want, seen)))
    return result


def withhold(plan: Plan) -> Plan:
    """Turn actions into refusals while pods cannot be served yet."""
    refusals = tuple(
        Issue(
            " ".join(map(str, (action.kind, *action.key))),
            "NotConverged",
            f"{action.reason}, and not written before pods can be served: kubelet sends pods to a "
            "node as soon as it is there; the other conditions say what that waits for",
        )
        for action in plan.actions
    )
    return replace(plan, actions=(), refusals=(*plan.refusals, *refusals))


def _missing(want: Conflist, seen: Iterable[Seen]) -> Iterator[Issue]:
    types = [p["type"] for p in json.loads(want.content)["plugins"]]
    for plugins in (o for o in seen if isinstance(o, Plugins)):
        # Ours is installed ahead of it, by its own domain.
        for name in dict.fromkeys(t for t in types if t != TYPE and t not in plugins.names):
            yield Issue(
                f"{want.kind} {want.path}",
                "PluginMissing",
                f"cni.chain names {name}, which is not in {plugins.directory}, so no pod could "
                f"start; put it there, or take it out of cni.chain",
                (want.kind, want.key),
            )


def _ahead(want: Conflist, seen: Iterable[Seen]) -> Iterator[Issue]:
    """Name the files that runtimes read instead of ours, unless they call ours, as Multus does."""
    own_name = want.path.rpartition("/")[2]
    others = [o for o in seen if isinstance(o, OtherConf) and o.name < own_name]
    for other in sorted(others, key=lambda o: o.name):
        if any(word == TYPE or word.endswith(f"/{own_name}") for word in other.words):
            continue
        yield Issue(
            f"{want.path.rpartition('/')[0]}/{other.name}",
            "OtherConflistFirst",
            f"containerd and CRI-O take the first file by name, so new pods are its and not of "
            f"{own_name}; remove it, or give it a name that sorts after that",
        )


def _reason(action: Change[Conflist]) -> str:
    was, now = action.was, action.object
    if was is None:
        return action.reason
    if not was.content:
        return "what is there is no JSON"
    parts = _differences("", json.loads(was.content), json.loads(now.content))
    mode = [f"mode {was.mode} -> {now.mode}"] if was.mode != now.mode else []
    text = ", ".join([*parts, *mode])
    return text if len(text) <= REASON_CHARS else f"{text[:REASON_CHARS]}..."


def _differences(path: str, was: object, now: object) -> Iterator[str]:
    """Name what differs: ``plugins[0].budgetSeconds 60 -> 30``."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in sorted(was.keys() | now.keys()):
            below = f"{path}.{key}" if path else key
            yield from _differences(below, was.get(key, _ABSENT), now.get(key, _ABSENT))
    elif isinstance(was, list) and isinstance(now, list):
        for i, pair in enumerate(zip_longest(was, now, fillvalue=_ABSENT)):
            yield from _differences(f"{path}[{i}]", *pair)
    elif was is _ABSENT or now is _ABSENT or json.dumps(was) != json.dumps(now):
        before, after = (
            "none" if x is _ABSENT else json.dumps(x, sort_keys=True) for x in (was, now)
        )
        yield f"{path} {before} -> {after}".lstrip()
