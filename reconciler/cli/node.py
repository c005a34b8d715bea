"""``diff``, ``audit``, ``max-pods`` and ``gc``: what observes this node, or EC2."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import click

from reconciler.cli import report
from reconciler.cli.host import host_options, open_records
from reconciler.cli.options import (
    advice,
    apart_option,
    config_option,
    fail,
    output_option,
    state_option,
)
from reconciler.cli.reading import read_document
from reconciler.cli.screen import screen_of
from reconciler.errors import NotReadyError, ReconcilerError
from reconciler.ipam.cloud import CLUSTER_TAG
from reconciler.ipam.ec2_action import DeleteEni
from reconciler.ipam.leak import judge
from reconciler.ipam.pool import advised, capacity
from reconciler.ipam.pool_status import find_pool_status
from reconciler.node import views
from reconciler.node.environment import Environment, collector
from reconciler.node.passes import LocalNode
from schemas.load import DocumentError, Problem


@click.command()
@config_option
@host_options
@output_option
@click.option("--strict", is_flag=True, help="Exit 1 for what is refused, too.")
def diff(
    config: Path, state_dir: Path, environment: Environment, output: str, *, strict: bool
) -> None:
    """Show what differs from the document, and change nothing.

    On a terminal grouped by domain; in a pipe one line for each object. What is refused (!) is no
    difference: the document asks for it, and nothing will be done. What it all means, the EC2
    calls, and findings about other owners' objects are printed on stderr, and change no exit
    status.

    Exit status: 0 in sync, 1 something differs, 2 an error.
    """
    document = read_document(config, output)
    node = LocalNode(open_records(state_dir), environment)
    try:
        outcomes = views.diff(node, document)
        findings = [*views.findings(node, document, outcomes), *report.findings(outcomes)]
        meanings = views.tell(node, document, outcomes)
    except ReconcilerError as error:
        fail(error)
    told = [f"{line}." for line in meanings]
    if output == "json":
        from reconciler.cli import report_json

        click.echo(report_json.as_json(outcomes, findings, meanings), nl=False)
    else:
        click.echo(report.as_text(outcomes, screen_of(sys.stdout)), nl=False)
        # They are no differences, so they are no part of the plan and of the exit status.
        told += (*report.finding_lines(findings), *report.foreign(outcomes))
    told += filter(None, [report.refused(outcomes), report.summary(outcomes)])
    for text in told:
        for line in screen_of(sys.stderr).wrap(text, rest="  "):
            click.echo(line, err=True)
    report.show_tracebacks(outcomes)
    for cure in {advice(e) for o in outcomes.values() for e in o.errors} - {""}:
        click.echo(f"node-network{cure.replace(';', ':', 1)}", err=True)
    sys.exit(report.exit_code(outcomes, strict=strict))


@click.command()
@config_option
@host_options
@apart_option(3.0, "a disagreement")
@output_option
def audit(
    config: Path, state_dir: Path, environment: Environment, apart_s: float, output: str
) -> None:
    """Show where document, intents, records, kernel, nftables and EC2 disagree.

    Unlike diff, it also checks invariants: no address of two pods, none that is used during its
    cooldown, none that EC2 has taken away. Nothing is changed. Changes in progress disagree for a
    moment, so a disagreement counts if two observations show it. Findings about other owners'
    objects are printed on stderr, and change no exit status.

    Exit status: 0 all agree, 1 they do not, 2 an error.
    """
    document = read_document(config, output)
    node = LocalNode(open_records(state_dir), environment)
    try:
        outcomes = views.diff(node, document)
        found = views.audit(node, document, outcomes)
        others = (*views.findings(node, document, outcomes), *report.findings(outcomes))
        if found:
            time.sleep(apart_s)
            before = {(f.subject, f.reason) for f in found}
            again = views.audit(node, document)
            found = tuple(f for f in again if (f.subject, f.reason) in before)
    except ReconcilerError as error:
        fail(error)
    if output == "json":
        click.echo(report.findings_json(found), nl=False)
    else:
        for line in report.finding_lines(found):
            click.echo(line)
    for line in report.finding_lines(dict.fromkeys(f for f in others if f not in found)):
        click.echo(line, err=True)
    sys.exit(1 if found else 0)


@click.command()
@config_option
@state_option
@click.option("--kubelet", is_flag=True, help="Print a configuration for kubelet's --config-dir.")
def max_pods(config: Path, state_dir: Path, *, kubelet: bool) -> None:
    """Print how many pods kubelet should take on this node.

    It is what the instance type's limits and the document allow, at most maxPods, and at most what
    EKS advises by the number of CPUs. Why, on stderr. To be run before kubelet starts.

    Exit status: 0 done, 2 an error.
    """
    document = read_document(config)
    try:
        desired, cloud, _ = views.pool(LocalNode(open_records(state_dir)), document)
        at = find_pool_status(desired, cloud)
        if at.limits is None:
            raise NotReadyError(f"what {desired.node.instance_type} allows is not known")
    except ReconcilerError as error:
        fail(error)
    effective, cpus = desired.document, os.cpu_count() or 1
    found = capacity(effective, at.limits, foreign=at.foreign)
    number = advised(effective, found, cpus)
    click.echo(
        f"{desired.node.instance_type} serves {found.pods} pods: {found.text}; "
        f"{cpus} CPUs, maxPods {effective.most_pods or 'not set'}",
        err=True,
    )
    head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"
    click.echo(f"{head}maxPods: {number}" if kubelet else number)


@click.command()
@config_option
@click.option("--dry-run", is_flag=True, help="List, delete nothing.")
@apart_option(5.0, "an ENI")
def gc(config: Path, *, dry_run: bool, apart_s: float) -> None:
    """Delete ENIs that nodes of this cluster have leaked; any node or CI job may run it.

    Exit status: 0 done, 2 an error.
    """
    document = read_document(config)
    if not document.cluster:
        fail(DocumentError([Problem(str(config), 0, 0, "cluster", "is not named; gc needs it")]))
    try:
        ec2 = collector()
        first = ec2.leaked({CLUSTER_TAG: document.cluster})
        time.sleep(apart_s if first else 0)
        second = ec2.leaked({CLUSTER_TAG: document.cluster}) if first else []
    except ReconcilerError as error:
        fail(error)
    doomed = []
    for verdict in judge(first, second, now=time.time()):
        word = "keep" if not verdict.leaked else "would delete" if dry_run else "delete"
        click.echo(f"{word} {verdict.eni.eni_id}: {verdict.why}")
        if verdict.leaked and not dry_run:
            doomed.append(DeleteEni(verdict.eni.eni_id, verdict.why))
    for failure in ec2.apply(doomed):
        fail(failure)
