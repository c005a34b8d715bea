"""``sysdump``: one archive with what maintainers need of a node."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import platform
import socket
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal

import click

from cni.exchange import SOCKET
from reconciler.cli import report, report_json
from reconciler.cli.host import host_options, open_records
from reconciler.cli.options import PATH, config_option, fail
from reconciler.cli.reading import read_document
from reconciler.daemon.client import ask
from reconciler.diagnostics import doctor, dump
from reconciler.diagnostics.dump import Part
from reconciler.domains.nat_objects import NftChain
from reconciler.engine.plan import Verb
from reconciler.errors import ReconcilerError, StateError
from reconciler.node import views
from reconciler.node.environment import Environment
from reconciler.node.passes import LocalNode
from reconciler.targets import host_probe
from reconciler.targets.files.bounded import read_file
from reconciler.targets.netlink.queries import Queries
from reconciler.targets.state.directory import LOOK, SOURCES
from schemas.document import NodeNetwork
from schemas.load import dump as normal_form

MOST_FILES = 2000  # records of a kind
LIBRARIES = ("node-network", "pydantic", "PyYAML", "boto3", "botocore", "pyroute2", "click")
RECORDS = ("intents", "attachments", "cooling", "quarantine", "creations")


@click.command()
@config_option
@host_options
@click.argument("file", type=PATH, required=False)
def sysdump(config: Path, state_dir: Path, environment: Environment, file: Path | None) -> None:
    """Write an archive with what maintainers need of this node: FILE, a .tar.gz.

    The document, status, diff, audit, what the kernel has of ours, records, the last looks at EC2,
    versions. At most 24 MiB before it is compressed. INDEX.txt says what is in it, what could not
    be had and why, and what is left out: credentials, other owners' rulesets, pods' namespaces.

    Without FILE it is node-network-DATE-TIME.tar.gz here. `-` is standard output, for a pod whose
    root is read-only: kubectl exec POD -- node-network sysdump - > node.tar.gz

    Exit status: 0 written, though parts may be missing; 2 not.
    """
    document = read_document(config)
    node = LocalNode(open_records(state_dir), environment)
    is_piped = str(file) == "-"
    if is_piped and sys.stdout.isatty():
        raise click.UsageError("an archive is nothing for a terminal; name a FILE, or a pipe")
    path = file or Path(time.strftime("node-network-%Y%m%d-%H%M%S.tar.gz", time.gmtime()))
    parts = dump.prepare(_parts(_sources(node, document, state_dir)))
    try:
        if is_piped:
            _pack(parts, sys.stdout.buffer, "w|gz")
        else:
            _write(path, parts)
    except FileExistsError:
        fail(StateError(f"{path} exists, and is not overwritten; name another FILE"))
    except OSError as error:
        fail(error)
    missing = [p for p in parts[0].text.splitlines() if "not in it" in p]
    for line in missing:
        click.echo(line.strip(), err=True)
    where = "standard output" if is_piped else path
    click.echo(f"{where}: {len(parts)} files; {dump.INDEX} says what is in them", err=is_piped)


def _write(path: Path, parts: Iterable[Part]) -> None:
    """Write the archive, for its owner alone: names of pods are in it."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    with os.fdopen(descriptor, "wb") as raw:
        _pack(parts, raw, "w:gz")


def _pack(parts: Iterable[Part], raw: BinaryIO, mode: Literal["w:gz", "w|gz"]) -> None:
    with tarfile.open(fileobj=raw, mode=mode) as archive:
        for part in parts:
            content = part.text.encode(errors="replace")
            entry = tarfile.TarInfo(f"node-network/{part.name}")
            entry.size, entry.mode, entry.mtime = len(content), 0o600, int(time.time())
            archive.addfile(entry, io.BytesIO(content))


Sources = Iterable[tuple[str, Callable[[], str]]]


def _parts(sources: Sources) -> Iterator[Part]:
    """Make each part; one that cannot be made says why, and costs no other."""
    for name, make in sources:
        try:
            yield Part(name, make())
        except (ReconcilerError, OSError, ValueError) as error:
            yield Part(name, why=str(error) or type(error).__name__)


def _sources(node: LocalNode, document: NodeNetwork, state_dir: Path) -> Sources:
    """Name the parts, those first that are asked for first."""
    return (
        ("versions.txt", _versions),
        ("document.yaml", lambda: normal_form(document)),
        ("status.json", lambda: _status(state_dir)),
        ("diff.json", lambda: _diff(node, document)),
        ("audit.json", lambda: report.findings_json(views.audit(node, document))),
        ("kernel.txt", _kernel),
        ("nftables.txt", lambda: _nftables(node)),
        ("host.txt", _host),
        *((f"{kind}.jsonl", lambda kind=kind: _records(state_dir / kind)) for kind in RECORDS),
        (LOOK, lambda: _file(state_dir / LOOK)),
        (SOURCES, lambda: _file(state_dir / SOURCES)),
        ("cni.log", lambda: _cni_log(document)),
    )


def _versions() -> str:
    lines = [f"python {platform.python_version()}", f"kernel {host_probe.release()}"]
    for name in LIBRARIES:
        try:
            lines.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"{name} is not installed as a package")
    return "\n".join([*lines, f"at {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}", ""])


def _status(state_dir: Path) -> str:
    return json.dumps(ask(state_dir / SOCKET, {"do": "status"})["status"], indent=2)


def _diff(node: LocalNode, document: NodeNetwork) -> str:
    outcomes = views.diff(node, document)
    findings = [*views.findings(node, document, outcomes), *report.findings(outcomes)]
    return report_json.as_json(outcomes, findings)


def _kernel() -> str:
    """Return rules, routes and addresses of the host, as commands, and its links."""
    fib = Queries().fib()
    rules = sorted(fib.rules, key=lambda r: r.key)
    routes = sorted(fib.routes, key=lambda r: r.key)
    links = islice(sorted(name for _, name in socket.if_nameindex()), MOST_FILES)
    return "\n".join(
        [
            *(r.command(Verb.CREATE) + (f" {r.extra}" if r.extra else "") for r in rules),
            *(r.command(Verb.CREATE) for r in routes),
            *(f"address {a}" for a in sorted(map(str, fib.addresses))),
            *(f"link {name} mtu {mtu}" for name, mtu in host_probe.mtus(links)),
            *(f"not read: {what}: {why}" for what, why in fib.unread),
            "",
        ]
    )


def _nftables(node: LocalNode) -> str:
    """Return our table alone: commands of its objects, and the rules of chains as JSON."""
    objects = sorted(node.environment.nft.observe(()), key=lambda o: (o.kind, str(o.key)))
    lines: list[str] = []
    for o in objects:
        lines.append(o.command(Verb.CREATE))
        lines += [f"  {rule}" for rule in o.rules] if isinstance(o, NftChain) else []
    return "\n".join([*lines, ""])


def _host() -> str:
    names = (*doctor.SETTINGS, "net/ipv4/conf/all/rp_filter")
    return "".join(f"{name} = {value}\n" for name, value in host_probe.settings(names))


def _records(directory: Path) -> str:
    """Return records of a kind, one a line; what cannot be read is named."""
    lines = []
    for path in islice(sorted(directory.glob("*.json")), MOST_FILES):
        try:
            lines.append(f"{path.name} {' '.join(_file(path).split())}")
        except OSError as error:
            lines.append(f"{path.name} cannot be read: {error.strerror}")
    return "\n".join([*lines, ""])


def _file(path: Path) -> str:
    return read_file(path, dump.MOST_OF_ONE + dump.LONGEST_SECRET, cut=True).decode(
        errors="replace"
    )


def _cni_log(document: NodeNetwork) -> str:
    """Return the log of the CNI executable, if the document has one in a file."""
    target = document.cni.log_file
    if target is None or target == "journal":
        raise ValueError("cni.logFile names no file")
    return _file(Path(target))
