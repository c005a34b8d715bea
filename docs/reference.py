"""Write the reference pages that say what the code says: ``python docs/reference.py``.

The pages of document, commands, conditions and metrics, the list of decisions, the manual page and
what shells complete by are made of the code's own words. All are in the repository, so that they
can be read there and come with the package. A test fails when one is stale.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import yaml
from click.shell_completion import get_completion_class

from reconciler.cli.main import main
from reconciler.daemon import gauges, telemetry
from reconciler.daemon.telemetry import MOST_SERIES, OTHER, PREFIX, Family
from reconciler.diagnostics.reasons import catalogue

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SCHEMA = ROOT / "schemas" / "node-network.schema.json"
MADE = "<!-- made by docs/reference.py: edit the code's own words -->"

DURATION = "^([0-9]{1,9})(ms|s|m|h)$"
CIDR = "[0-9a-fA-F.:]+(/[0-9]{1,3})?"

Schema = dict[str, Any]
"""A JSON Schema, as pydantic writes it."""


def describe_document() -> str:
    """Return the page of the document: a table for each section, each field with its default."""
    schema: Schema = json.loads(SCHEMA.read_text())
    defs: dict[str, Schema] = schema["$defs"]
    parts = [
        MADE,
        "# The document",
        "One YAML file is the desired network of a node. Only `apiVersion` and `kind` are "
        "required. [`config/node-network.yaml`](../../config/node-network.yaml) shows all fields "
        "in their place. `node-network validate` checks a document, and so do editors by "
        "[`schemas/node-network.schema.json`](../../schemas/node-network.schema.json).",
        "## Top level",
        tabulate(schema, defs),
    ]
    for name in reached(schema, defs):
        part = defs[name]
        parts += [f"## {name}", " ".join(part["description"].replace("``", "`").split())]
        parts.append(tabulate(part, defs))
    return "\n\n".join(parts) + "\n"


def reached(schema: Schema, defs: dict[str, Schema]) -> list[str]:
    """Name the sections in the order in which a reader meets them."""
    names: dict[str, None] = {}
    waiting = [schema]
    while waiting:
        for value in waiting.pop(0).get("properties", {}).values():
            for name in references(value):
                if name not in names:
                    names[name] = None
                    waiting.append(defs[name])
    return list(names)


def references(value: object) -> Iterator[str]:
    """Yield the sections that a field's schema refers to."""
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"].rpartition("/")[2]
        # The values that an override sets are those of the sections themselves.
        yield from (n for k, v in value.items() if k != "default" for n in references(v))
    elif isinstance(value, list):
        yield from (n for v in value for n in references(v))


def tabulate(section: Schema, defs: dict[str, Schema]) -> str:
    """Return a section's fields as a table."""
    required = section.get("required", ())
    rows = ["| field | value | default | |", "|---|---|---|---|"]
    for name, field in section.get("properties", {}).items():
        default = "required" if name in required else name_default(field)
        text = field.get("description") or defs[next(references(field))]["description"]
        cells = (f"`{name}`", name_type(field), default, " ".join(text.split()))
        rows.append(
            "| " + " | ".join(c.replace("``", "`").replace("|", "\\|") for c in cells) + " |"
        )
    return "\n".join(rows)


def name_default(field: Schema) -> str:
    """Say what a field is where the document does not name it."""
    default = field.get("default")
    if default is None:
        return "-"
    return "its own" if "$ref" in field else f"`{json.dumps(default)}`"


def name_type(field: Schema) -> str:
    """Say in few words which values a field takes."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in field:
        return " or ".join(name_type(f) for f in field["anyOf"] if f.get("type") != "null")
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{v}`" for v in field["enum"])
    kind = field.get("type")
    if kind == "array":
        most = f", at most {field['maxItems']:,}" if "maxItems" in field else ""
        return f"list of {name_type(field['items'])}{most}"
    if kind == "integer":
        return f"{field['minimum']:,} to {field['maximum']:,}"
    if kind == "object":
        return name_values(field)
    if kind == "string":
        return name_text(field)
    return {"boolean": "`true`, `false`"}.get(str(kind), str(kind))


def name_values(field: Schema) -> str:
    """Say what a field that has keys of somebody's choice takes."""
    values = [*field.get("patternProperties", {}).values(), field.get("additionalProperties")]
    found = next((v for v in values if isinstance(v, dict)), None)
    return f"keys with {name_type(found)}" if found else "keys and values"


def name_text(field: Schema) -> str:
    """Say what a field of text takes."""
    pattern = field.get("pattern", "")
    if pattern == DURATION:
        return "duration: `30s`, `5m`"
    if "@peering" in pattern:
        return "CIDR or source"
    if CIDR in pattern:
        return "CIDR"
    return "text"


def describe_commands() -> str:
    """Return the page of the commands: what ``--help`` prints, 100 columns wide."""
    parts = [MADE, "# Commands"]
    for context in walk(open_context(main, "node-network")):
        depth = "#" * (context.command_path.count(" ") + 1)
        help_text = context.command.get_help(context).replace("\x08", "").strip()
        parts.append(f"#{depth} {context.command_path}\n\n```text\n{help_text}\n```")
    return "\n\n".join(parts) + "\n"


def open_context(
    command: click.Command, name: str, parent: click.Context | None = None, width: int = 100
) -> click.Context:
    """Return what a command's help is printed from, ``width`` columns wide."""
    return click.Context(
        command,
        parent,
        name,
        terminal_width=parent.terminal_width if parent else width,
        help_option_names=["-h", "--help"],
    )


def walk(context: click.Context) -> Iterator[click.Context]:
    """Yield a command and those below it, in the order of their names."""
    yield context
    if isinstance(group := context.command, click.Group):
        for name in sorted(group.list_commands(context)):
            if (command := group.get_command(context, name)) is not None:
                yield from walk(open_context(command, name, context))


def write_man_page() -> str:
    """Return the manual page, in man(7)'s language: ``--help`` of all commands."""
    parts = [
        '.TH NODE-NETWORK 1 "" "node-network" "User Commands"',
        ".SH NAME\nnode-network \\- pod networking for Kubernetes on AWS",
        ".SH SYNOPSIS\n.B node-network\n.I COMMAND\n[\\fIOPTION\\fR]...",
        ".SH COMMANDS",
    ]
    for context in walk(open_context(main, "node-network", width=76)):
        help_text = quote_roff(context.command.get_help(context).replace("\x08", "").strip())
        parts.append(f".SS {quote_roff(context.command_path)}\n.nf\n{help_text}\n.fi")
    parts.append(
        ".SH FILES\n.I /etc/node-network/node-network.yaml\nthe document\n.br\n"
        ".I /run/node-network\nrecords and the daemon's socket"
    )
    return "\n".join(parts) + "\n"


def quote_roff(text: str) -> str:
    """Return text as roff prints it unchanged: a line may not begin with a control character."""
    lines = text.replace("\\", "\\e").replace("-", "\\-").split("\n")
    return "\n".join("\\&" + line if line.startswith((".", "'")) else line for line in lines)


def write_completion(shell: str) -> str:
    """Return what a shell reads to complete commands and options."""
    kind = get_completion_class(shell)
    assert kind is not None
    source = kind(main, {}, "node-network", "_NODE_NETWORK_COMPLETE").source()
    return source.strip() + "\n"


def describe_conditions() -> str:
    """Return the page of conditions: what is known of every reason."""
    return f"{MADE}\n\n" + "".join(catalogue.page())


def tabulate_alerts() -> str:
    """Return the alert rules as a table."""
    rules = yaml.safe_load((ROOT / "deploy/monitoring/alerts.yaml").read_text())
    rows = ["| alert | severity | after | what it says |", "|---|---|---|---|"]
    for rule in rules["groups"][0]["rules"]:
        notes = rule["annotations"]
        said = f"**{notes['summary']}.** {notes['description']}"
        said = re.sub(r"{{ or [^}]*}}", "NODE", said)
        said = re.sub(r"{{ \$labels\.(\w+) }}", lambda m: m[1].upper(), said)
        said = re.sub(r"{{ \$value [^}]*}}", "N", said)
        after = rule.get("for", "at once")
        rows.append(f"| `{rule['alert']}` | {rule['labels']['severity']} | {after} | {said} |")
    return "\n".join(rows)


def list_decisions() -> str:
    """Return the list of decision records, by their titles."""
    parts = []
    for page in sorted((DOCS / "decisions").glob("[0-9]*.md")):
        title = page.read_text().partition("\n")[0].lstrip("# ")
        parts.append(f"* [{title}]({page.name})")
    start = "What was chosen between real alternatives, when, and why."
    return f"{MADE}\n\n# Decisions\n\n{start}\n\n" + "\n".join(parts) + "\n"


def describe_metrics() -> str:
    """Return the page of the metrics."""
    read = [f for f in vars(gauges).values() if isinstance(f, Family)]
    parts = [
        MADE,
        "# Metrics",
        "What `/metrics` has, in Prometheus' text format, or in OpenMetrics' for whoever accepts "
        "it ([where it is served](../monitoring.md)). Values are as of the scrape, which asks "
        f"nothing outside of the process. A metric has at most {MOST_SERIES} series; all further "
        f"ones are one, whose labels are `{OTHER}`.",
        "## State",
        tabulate_metrics(read, PREFIX),
        "## What has happened since the start",
        tabulate_metrics(telemetry.COUNTED, PREFIX),
        "## Alerts",
        "[`deploy/monitoring/alerts.yaml`](../../deploy/monitoring/alerts.yaml).",
        tabulate_alerts(),
        "## The process",
        "Not that which calls EC2.",
        tabulate_metrics(telemetry.of_the_process(), ""),
    ]
    return "\n\n".join(parts) + "\n"


def tabulate_metrics(families: Iterable[Family], prefix: str) -> str:
    """Return metrics as a table."""
    rows = ["| metric | type | labels | |", "|---|---|---|---|"]
    for f in sorted(families, key=lambda f: f.name):
        name = f"{prefix}{f.name}" + ("_total" if f.kind == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in f.labels)
        rows.append(f"| `{name}` | {f.kind} | {labels} | {f.about} |")
    return "\n".join(rows)


FILES: dict[str, Callable[[], str]] = {
    "docs/reference/document.md": describe_document,
    "docs/reference/commands.md": describe_commands,
    "docs/reference/conditions.md": describe_conditions,
    "docs/reference/metrics.md": describe_metrics,
    "docs/decisions/README.md": list_decisions,
    "deploy/man/node-network.1": write_man_page,
    "deploy/completion/node-network.bash": partial(write_completion, "bash"),
    "deploy/completion/_node-network": partial(write_completion, "zsh"),
    "deploy/completion/node-network.fish": partial(write_completion, "fish"),
}
"""What makes each file."""


if __name__ == "__main__":
    for file, make in FILES.items():
        (ROOT / file).write_text(make())
