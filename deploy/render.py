"""Writes from the chart what is derived from it: ``python deploy/render.py``.

The chart is the one source. From it and its default values come ``daemonset.yaml`` and Kustomize's
base, which are the same, and from ``schemas/node-network.schema.json`` the part of the values'
schema that checks the document. The templates keep to the little of Helm's language that is
understood here, so that neither Helm nor a network is needed; tests compare with Helm itself.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
CHART = HERE / "chart/node-network"
DOCUMENT_SCHEMA = HERE.parent / "schemas/node-network.schema.json"

ORDER = ("serviceaccount", "configmap", "rights", "daemonset", "podmonitor")
"""Templates in the order in which Helm installs their kinds."""

HEAD = "# Made by deploy/render.py from deploy/chart/node-network; edit that.\n"
ACTION = re.compile(r"(?P<before>[ \t\n]*){{-\s*(?P<trimmed>.*?)\s*}}|{{\s*(?P<plain>.*?)\s*}}")
BLOCKS = ("if", "with", "range")


class TemplateError(Exception):
    """A template says what is not understood here."""


@dataclass
class Block:
    """A part of a template.

    Attributes:
        opening: the action that begins it; "" for the whole.
        parts: what is in it, in order: text, actions, blocks.
        otherwise: what is in it after ``else``.
    """

    opening: str
    parts: list[str | Action | Block] = field(default_factory=list)
    otherwise: list[str | Action | Block] = field(default_factory=list)


@dataclass(frozen=True)
class Action:
    """What stands between double braces, and is replaced by its value."""

    words: str


def parse(text: str) -> Block:
    """Return a template as blocks in blocks.

    Raises:
        TemplateError: a block has no end, or an end no block.
    """
    open_blocks = [Block("")]
    into = open_blocks[0].parts
    at = 0
    for found in ACTION.finditer(text):
        into.append(text[at : found.start()])
        at = found.end()
        words = found["trimmed"] if found["plain"] is None else found["plain"]
        match words.split()[0]:
            case word if word in BLOCKS:
                block = Block(words)
                into.append(block)
                open_blocks.append(block)
                into = block.parts
            case "else":
                into = open_blocks[-1].otherwise
            case "end":
                open_blocks.pop()
                if not open_blocks:
                    raise TemplateError("an end too many")
                # What follows belongs to the part of the outer block in which this one is.
                outer = open_blocks[-1]
                into = outer.otherwise or outer.parts
            case _:
                into.append(Action(words))
    into.append(text[at:])
    if len(open_blocks) != 1:
        raise TemplateError(f"no end of {open_blocks[-1].opening}")
    return open_blocks[0]


def fill(parts: list[str | Action | Block], scope: Mapping[str, Any], dot: Any) -> Iterator[str]:
    """Yield the text of parts, with ``dot`` for the dot."""
    for part in parts:
        if isinstance(part, str):
            yield part
        elif isinstance(part, Action):
            yield value_text(evaluate(part.words, scope, dot))
        else:
            yield from fill_block(part, scope, dot)


def fill_block(block: Block, scope: Mapping[str, Any], dot: Any) -> Iterator[str]:
    """Yield the text of a block."""
    kind, _, words = block.opening.partition(" ")
    value = evaluate(words, scope, dot)
    if not value:
        yield from fill(block.otherwise, scope, dot)
    elif kind == "range":
        for each in value:
            yield from fill(block.parts, scope, each)
    else:
        yield from fill(block.parts, scope, value if kind == "with" else dot)


def evaluate(words: str, scope: Mapping[str, Any], dot: Any) -> Any:
    """Return the value of a pipeline.

    Raises:
        TemplateError: it calls what is not known here.
    """
    first, *pipes = (part.strip() for part in words.split("|"))
    if first.startswith("toYaml "):
        value: Any = to_yaml(look_up(first.removeprefix("toYaml "), scope, dot))
    else:
        value = look_up(first, scope, dot)
    for pipe in pipes:
        name, _, argument = pipe.partition(" ")
        match name:
            case "nindent":
                value = "\n" + "\n".join(
                    " " * int(argument) + line if line else line for line in value.split("\n")
                )
            case "default":
                value = value or look_up(argument, scope, dot)
            case _:
                raise TemplateError(f"{pipe!r} is not known here")
    return value


def look_up(words: str, scope: Mapping[str, Any], dot: Any) -> Any:
    """Return what a path leads to, from the dot or from the whole.

    A part in parentheses may be absent: Helm would fail without them.

    Raises:
        TemplateError: it is no path.
    """
    words = re.sub(r"^\(([\w.]+)\)", r"\1", words)
    if not re.fullmatch(r"\.[\w.]*", words):
        raise TemplateError(f"{words!r} is not known here")
    names = [name for name in words.split(".") if name]
    found: Any = scope if names and names[0] in scope else dot
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def value_text(value: Any) -> str:
    """Return a value as Go prints it."""
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def to_yaml(value: Any) -> str:
    """Return a value as YAML, keys in order, as Helm does."""
    return yaml.safe_dump(value, sort_keys=True, default_flow_style=False, width=1 << 20).rstrip(
        "\n"
    )


def merged(below: Any, above: Any) -> Any:
    """Return values with others on top, as Helm merges them: key by key."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    keys = {**below, **above}
    return {k: merged(below[k], above[k]) if k in below and k in above else keys[k] for k in keys}


def render(
    values: Mapping[str, Any] | None = None,
    namespace: str = "kube-system",
    templates: Sequence[str] = ORDER,
) -> str:
    """Return the chart's manifests for some values, as one text.

    Args:
        values: on top of the default ones.
        namespace: of the release.
        templates: their names; by default all but those of hooks, which are Helm's alone.
    """
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    scope = {
        "Values": merged(defaults, dict(values or {})),
        "Release": {"Name": "node-network", "Namespace": namespace},
        "Chart": {key[0].upper() + key[1:]: value for key, value in chart.items()},
    }
    texts = []
    for name in templates:
        template = parse((CHART / f"templates/{name}.yaml").read_text())
        texts.append("".join(fill(template.parts, scope, scope)).lstrip("\n"))
    return "---\n".join(filter(None, texts))


def values_schema() -> dict[str, Any]:
    """Return the schema of values: ours, with the document's inside."""
    schema: dict[str, Any] = json.loads((HERE / "chart/own.schema.json").read_text())
    document = json.loads(DOCUMENT_SCHEMA.read_text())
    schema["$defs"] = document.pop("$defs")
    document.pop("$schema", None)
    document.pop("$id", None)
    schema["properties"]["document"] = document
    found: dict[str, Any] = without_lookahead(schema)
    return found


def without_lookahead(schema: Any) -> Any:
    """Return a schema with patterns that Go understands: RE2 has no ``(?!...)``."""
    if isinstance(schema, list):
        return [without_lookahead(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: without_lookahead(value) for key, value in schema.items()}
    pattern = made.get("pattern")
    if isinstance(pattern, str) and (found := re.fullmatch(r"\^\(\?!(.+?)\)(.*)", pattern)):
        del made["pattern"]
        made["not"] = {"pattern": f"^{found[1]}"}
        if found[2]:
            made["pattern"] = f"^{found[2]}"
    return made


def derived() -> dict[Path, str]:
    """Return what is made from the chart, by file."""
    manifests = HEAD + render()
    told = {"metrics": {"enabled": True, "podMonitor": {"enabled": True}}}
    report = {"document": {"kubernetes": {"report": True, "startupTaint": "any"}}}
    return {
        HERE / "daemonset.yaml": manifests,
        HERE / "kustomize/base/node-network.yaml": manifests,
        HERE / "kustomize/report/rights.yaml": HEAD + render(report, templates=("rights",)),
        HERE / "kustomize/metrics/podmonitor.yaml": HEAD + render(told, templates=("podmonitor",)),
        CHART / "values.schema.json": json.dumps(values_schema(), indent=2) + "\n",
    }


def main() -> int:
    """Write what differs, and name it."""
    for path, text in derived().items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            sys.stdout.write(f"{path.relative_to(HERE.parent)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
