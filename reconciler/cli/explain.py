"""``explain``: the commands below it by name."""

from __future__ import annotations

import click

from reconciler.cli.group import NamedGroup

MODULES = {
    "address": "reconciler.cli.explain_node",
    "condition": "reconciler.cli.explain_condition",
    "pod": "reconciler.cli.explain_node",
    "pool": "reconciler.cli.explain_node",
    "route": "reconciler.cli.explain_node",
    "rule": "reconciler.cli.explain_node",
    "set": "reconciler.cli.explain_node",
}
"""The module of each. Of conditions alone nothing is imported that takes long."""


SUMMARIES = {
    "address": "What an address is to this node, and what it sees.",
    "condition": "Each reason of a condition: cause, consequence, cure.",
    "pod": "What a pod has of this node, and what ends it.",
    "pool": "The pool's arithmetic, and the limit that binds.",
    "route": "Each route of ours on the host, and what removes it.",
    "rule": "Each ip rule of ours, and what removes it.",
    "set": "What each set of the nftables table is for.",
}


class Subjects(NamedGroup):
    """The commands of ``MODULES``."""

    modules, summaries = MODULES, SUMMARIES


@click.group(cls=Subjects)
def explain() -> None:
    """Explain why something of the node is as it is, with the numbers."""
