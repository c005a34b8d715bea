"""``validate`` and ``render``: the document alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import click

from reconciler.cli import options
from reconciler.cli.reading import read_document, refuse
from reconciler.egress import rules
from reconciler.egress.destinations import NO_EGRESS, find_warnings
from reconciler.ipam.cloud import Limits
from reconciler.ipam.group_cost import cost
from reconciler.ipam.identity import explain_cost
from reconciler.ipam.pool import early_reuse, overcommitted, wrong_size
from schemas.check import resolve
from schemas.group import of_group
from schemas.load import DocumentError, Problem, dump


@click.command()
@click.argument("file", type=options.PATH)
@options.output_option
def validate(file: Path, output: str) -> None:
    """Check a document without touching anything.

    maxPods is compared with the limits of each instance type in instanceTypes, and what podGroups
    cost there is said. A warning says what is legal and dangerous: more is excluded from SNAT than
    anybody means, not all groups can have an ENI, a rule of snat never decides or sends what
    nothing answers, or an address is reused while clients still try its last pod. It changes no
    exit status.

    FILE may be the manifest of a ConfigMap, or a List or several objects with one among them; "-"
    is standard input.

    Exit status: 0 valid, 2 not.
    """
    document = read_document(file, output)
    problems: list[Problem] = []
    costs: list[str] = []
    warnings: list[str] = []
    for name, given in document.instance_types:
        here = resolve(document, instance_type=name, zone="", node_name="")
        if told := overcommitted(here, name, Limits(given.enis, given.addresses_per_eni)):
            problems.append(Problem(str(file), 0, 0, "maxPods", told))
        groups = cost(here, name, Limits(given.enis, given.addresses_per_eni))
        if groups.fault:
            problems.append(Problem(str(file), 0, 0, "podGroups", groups.fault))
        costs += groups.lines
        warnings += [f"podGroups: {groups.warning}"] if groups.warning else []
    if problems:
        refuse(DocumentError(problems), output)
    services = document.routing.external_service_cidrs
    for group, snat in document.snat_policies:
        for issue in find_warnings(snat, NO_EGRESS, (), services):
            warnings.append(str(replace(issue, subject=of_group(issue.subject, group))))
    warnings += map(str, rules.find_warnings(document.snat, NO_EGRESS, (), services))
    warnings += filter(None, [early_reuse(document), wrong_size(document)])
    rule_costs = explain_cost(document)
    if output == "json":
        body: dict[str, list[str]] = {"errors": []}
        body |= {"warnings": warnings} if warnings else {}
        body |= {"groups": costs} if costs else {}
        body |= {"rules": rule_costs} if rule_costs else {}
        click.echo(json.dumps(body))
        return
    for line in (*costs, *rule_costs):
        click.echo(f"{file}: {line}")
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
        from reconciler.domains import conflist  # and with it all that is known of a node

        click.echo(conflist.write(conflist.make(found.cni, str(state_dir.absolute()))), nl=False)
    else:
        click.echo(dump(found), nl=False)
