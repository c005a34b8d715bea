"""``node-network lab peering|route|prefix-list``: what EC2 tells of the VPC's surroundings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from lab.cli_options import fail, name_option
from lab.lifecycle import Lab, LabError
from lab.topology import PEER_CIDR

tag_option = click.option("--tag", default="", help="What it is called in EC2.")


def _change(name: str, what: str, **given: Any) -> None:
    try:
        click.echo(Lab(name).ask("vpc", what=what, given=given)["id"])
    except (LabError, ValueError) as error:
        fail(str(error))


@click.group()
def peering() -> None:
    """Make and delete VPC peering connections of the lab's VPC."""


@peering.command(name="create")
@name_option
@tag_option
@click.option("--cidr", default=str(PEER_CIDR), show_default=True, help="Of the other VPC.")
def create_peering(name: str, tag: str, cidr: str) -> None:
    """Make a VPC and an active peering with it; print the peering's id."""
    _change(name, "peering create", cidr=cidr, tag=tag)


@peering.command(name="delete")
@name_option
@click.argument("peering_id", metavar="PEERING")
def delete_peering(name: str, peering_id: str) -> None:
    """Delete a peering."""
    _change(name, "peering delete", peering=peering_id)


@click.group()
def route() -> None:
    """Change the main route table of the lab's VPC: what EC2 tells of it, and no packet's way.

    The lab's fabric delivers to the peer and the internet in any case, so `trace --vpc` may say
    that the VPC drops what arrives here.
    """


@route.command(name="add")
@name_option
@click.argument("destination")
@click.argument("via")
def add_route(name: str, destination: str, via: str) -> None:
    """Send DESTINATION, a CIDR or a prefix list, VIA tgw, vgw, igw, or the id of a target."""
    _change(name, "route add", cidr=destination, via=via)


@route.command(name="delete")
@name_option
@click.argument("destination")
def delete_route(name: str, destination: str) -> None:
    """Delete the route to DESTINATION."""
    _change(name, "route delete", cidr=destination)


@click.group(name="prefix-list")
def prefix_list() -> None:
    """Make and change customer-managed prefix lists."""


@prefix_list.command(name="create")
@name_option
@tag_option
@click.argument("cidrs", nargs=-1, required=True)
def create_list(name: str, tag: str, cidrs: tuple[str, ...]) -> None:
    """Make a prefix list of CIDRS; print its id."""
    _change(name, "prefix-list create", cidrs=list(cidrs), tag=tag)


def _entry_command(verb: str, about: str) -> Callable[..., None]:
    @prefix_list.command(name=verb, help=about)
    @name_option
    @click.argument("list_id", metavar="LIST")
    @click.argument("cidr")
    def change(name: str, list_id: str, cidr: str) -> None:
        _change(name, f"prefix-list {verb}", prefix_list=list_id, cidr=cidr)

    command: Callable[..., None] = change
    return command


add_entry = _entry_command("add", "Add CIDR to LIST: its version grows.")
remove_entry = _entry_command("remove", "Remove CIDR from LIST: its version grows.")

COMMANDS = (peering, route, prefix_list)
