"""``explain``: what is computed from the document and what is known of this node."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from cni import intent
from reconciler.cli.explained import Told, lines, rows, show
from reconciler.cli.host import open_records
from reconciler.cli.options import Address, config_option, fail, output_option, state_option
from reconciler.cli.reading import read_document, read_placed
from reconciler.cli.screen import screen_of
from reconciler.core.datapath import IpAddress
from reconciler.core.facts import Eni, Node
from reconciler.diagnostics import why, why_pod, why_set
from reconciler.diagnostics.explain import explain_address, explain_egress_rules, explain_pools
from reconciler.domains.inputs import Inputs
from reconciler.errors import ReconcilerError
from reconciler.node import views
from reconciler.node.passes import LocalNode
from reconciler.node.views import survey
from schemas.document import NodeNetwork
from schemas.load import find_places
from schemas.origin import Origins

NO_POD = "no pod: nothing is recorded on this node"

OF_THE_POOL = (("warmPool",), ("eni", "max"), ("eni", "allocate"), ("maxPods",), ("families",))
"""Settings that the pool's size depends on."""


@dataclass(frozen=True, slots=True)
class Known:
    """The node as it was last known, by a document."""

    node: LocalNode
    origins: Origins
    inputs: Inputs


def _known(config: Path, state_dir: Path, output: str) -> Known:
    """Read the document and what is known of the node; no call of EC2 is made.

    If the node, or its kernel, cannot be read, the command ends.
    """
    document, text = read_placed(config, output)
    try:
        node = LocalNode(open_records(state_dir))
        inputs = survey(node, document)
    except ReconcilerError as error:
        fail(error)
    return Known(node, _origins(text, config, document, inputs.node), inputs)


def _origins(text: str, config: Path, document: NodeNetwork, facts: Node) -> Origins:
    """Say where the values stand that are in force on a node."""
    return Origins.on(
        find_places(text, str(config)),
        document,
        instance_type=facts.instance_type,
        zone=facts.availability_zone,
        node_name=facts.name,
    )


@click.command()
@config_option
@state_option
@output_option
def pool(config: Path, state_dir: Path, output: str) -> None:
    """Print the pool's arithmetic, and the limit that binds."""
    document, text = read_placed(config, output)
    try:
        desired, cloud, refusals = views.pool(LocalNode(open_records(state_dir)), document)
    except ReconcilerError as error:
        fail(error)
    said = [*explain_pools(desired, cloud), *(f"! {refusal}" for refusal in refusals)]
    where = _origins(text, config, document, desired.node).of
    said.append(f"by: {', '.join(where(*path) for path in OF_THE_POOL)}")
    show(output, "pool", None, lines(said))


@click.command()
@click.argument("destination", type=Address())
@config_option
@state_option
@output_option
def address(destination: IpAddress, config: Path, state_dir: Path, output: str) -> None:
    """Say what an address is to this node: its state, if it is one of ours, and what it sees.

    Of an address of this node's ENIs: which ENI has it, and which pod, or why none. Of any:
    whether it sees a pod's own address or the node's, and why. By what was last known of the
    sources that snat names; EC2 is not asked, and no pod is needed.
    """
    document = read_document(config, output)
    state = open_records(state_dir)
    known = LocalNode(state).known
    said: list[str] = []
    try:
        facts, resolved = known.identity(), known.resolve(document)
        if any(_is_on(destination, e) for e in (known.cloud.enis if known.cloud else ())):
            here = _known(config, state_dir, output)
            records = state.observe()
            said += why_pod.own_address(destination, records, here.inputs, here.origins.of)
    except ReconcilerError as error:
        fail(error)
    said += explain_egress_rules(resolved, known.egress, facts, destination, time.time())
    for group, snat in resolved.snat_policies:
        told = explain_address(snat, known.egress, facts, destination, time.time())
        said += (f"group {group}: {line}" if group else line for line in told)
    show(output, "address", str(destination), lines(said))


def _is_on(address: IpAddress, eni: Eni) -> bool:
    return eni.holds(address) or address in (eni.primary, *eni.host_addresses)


@click.command()
@click.argument("name", required=False)
@config_option
@state_option
@output_option
def pod(name: str | None, config: Path, state_dir: Path, output: str) -> None:
    """Say what a pod has of this node, by which setting, since when, and what ends it.

    NAME is namespace/name, a name, an address, or a container ID. Without it, the node's pods are
    listed, each with its state and its addresses.
    """
    known = _known(config, state_dir, output)
    try:
        records = known.node.state.observe()
        if name is None:
            show(output, "pod", None, rows(why_pod.list_pods(records)) or lines([NO_POD]))
            return
        found = why_pod.find(records, name)
    except ReconcilerError as error:
        fail(error)
    since = _written_at(intent.path_of(str(state_dir), *found.key))
    told = why_pod.explain_pod(found, known.inputs, known.origins.of, since=since)
    show(output, "pod", name, rows(told))


def _written_at(path: str) -> str:
    with suppress(OSError):
        at = datetime.fromtimestamp(Path(path).stat().st_mtime, UTC)
        return at.isoformat(timespec="seconds")
    return ""


@click.command()
@click.argument("priority", type=int, required=False)
@config_option
@state_option
@output_option
def rule(priority: int | None, config: Path, state_dir: Path, output: str) -> None:
    """Say of each ip rule of ours why it is, by which setting, and what removes it.

    By what is desired; `diff` says whether it is in its place.
    """
    known = _known(config, state_dir, output)
    _print(output, "rule", why.explain_rules(known.inputs, known.origins.of), priority)


@click.command()
@click.argument("table", type=int, required=False)
@config_option
@state_option
@output_option
def route(table: int | None, config: Path, state_dir: Path, output: str) -> None:
    """Say of each route of ours on the host why it is, and what removes it.

    By what is desired; `diff` says whether it is in its place.
    """
    known = _known(config, state_dir, output)
    _print(output, "route", why.explain_routes(known.inputs, known.origins.of), table)


NUMBERED = {"rule": "rule of priority", "route": "route of table"}


def _print(output: str, subject: str, reasons: list[why.Reason], number: int | None) -> None:
    """Print objects, or those of one number."""
    found = [r for r in reasons if number in (None, r.number)]
    if not found:
        others = ", ".join(map(str, sorted({r.number for r in reasons}))) or "none"
        click.echo(f"no {NUMBERED[subject]} {number} is ours; there are: {others}", err=True)
        sys.exit(2)
    if output == "json":
        name = None if number is None else str(number)
        show(output, subject, name, rows((r.command, r.why) for r in found))
        return
    screen = screen_of(sys.stdout)
    for each in found:
        click.echo(each.command)
        for line in screen.wrap(each.why, "    ", "    "):
            click.echo(line)


@click.command("set")
@click.argument("name", required=False)
@config_option
@state_option
@output_option
def set_(name: str | None, config: Path, state_dir: Path, output: str) -> None:
    """Say what each set of the nftables table is for; of one set, why each element is in it."""
    known = _known(config, state_dir, output)
    try:
        found = why_set.explain_sets(known.inputs, known.origins.of, name)
        others = found or why_set.explain_sets(known.inputs, known.origins.of)
    except ReconcilerError as error:
        fail(error)
    if not found:
        listed = ", ".join(s.name for s in others)
        click.echo(f"no set is called {name!a}; there are: {listed}", err=True)
        sys.exit(2)
    show(output, "set", name, (Told(s.name, s.why, rows(s.elements)) for s in found))
