"""``validate`` and ``render``: the document alone."""

from __future__ import annotations

import json
from pathlib import Path

import click

from reconciler.cli import options
from reconciler.cli.reading import read_document, refuse
from reconciler.domains import conflist
from reconciler.egress.destinations import NO_EGRESS, find_warnings
from reconciler.ipam.cloud import Limits
from reconciler.ipam.pool import early_reuse, overcommitted
from schemas.check import resolve
from schemas.load import DocumentError, Problem, dump


@click.command()
@click.argument("file", type=options.PATH)
@options.output_option
def validate(file: Path, output: str) -> None:
    """Check a document without touching anything.

    maxPods is compared with the limits of each instance type in instanceTypes. A warning says
    what is legal and dangerous: more is excluded from SNAT than anybody means, or an address is
    reused while clients still try its last pod. It changes no exit status.

    Exit status: 0 valid, 2 not.
    """
    document = read_document(file, output)
    problems = []
    for name, given in document.instance_types:
        here = resolve(document, instance_type=name, zone="", node_name="")
        if told := overcommitted(here, name, Limits(given.enis, given.addresses_per_eni)):
            problems.append(Problem(str(file), 0, 0, "maxPods", told))
    if problems:
        refuse(DocumentError(problems), output)
    services = document.routing.external_service_cidrs
    warnings = list(map(str, find_warnings(document.snat, NO_EGRESS, (), services)))
    warnings += filter(None, [early_reuse(document)])
    if output == "json":
        body: dict[str, list[str]] = {"errors": []}
        if warnings:
            body["warnings"] = warnings
        click.echo(json.dumps(body))
        return
    for warning in warnings:
        click.echo(f"{file}: warning: {warning}", err=True)
    click.echo(f"{file}: valid")


@click.command()
@options.config_option
@click.option("--instance-type", default="", help="As instance metadata says it.")
@click.option("--zone", default="", help="Availability zone.")
@click.option("--node-name", default="", help="As the cluster calls the node.")
@click.option(
    "--conflist", "as_conflist", is_flag=True, help="Print the CNI configuration for it."
)
@options.state_option
def render(
    config: Path,
    instance_type: str,
    zone: str,
    node_name: str,
    state_dir: Path,
    *,
    as_conflist: bool,
) -> None:
    """Print the effective document for one node: overrides applied, defaults explicit."""
    document = read_document(config)
    try:
        found = resolve(document, instance_type=instance_type, zone=zone, node_name=node_name)
    except DocumentError as error:
        options.fail(error)
    if as_conflist:
        click.echo(conflist.write(conflist.make(found.cni, str(state_dir.absolute()))), nl=False)
    else:
        click.echo(dump(found), nl=False)
