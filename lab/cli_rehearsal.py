"""``node-network lab ls|fault|break|stock``: rehearse an incident, or a migration."""

from __future__ import annotations

import json
from typing import Any

import click

from lab import lifecycle, stock_node
from lab.cli_options import fail, name_option
from lab.faults import SWITCHES
from lab.lifecycle import Lab, LabError
from lab.stock import StockError
from lab.topology import NODES

WITHOUT_END = 1_000_000
"""Calls for which an error stands: more than a rehearsal makes."""

BREAKAGES = {
    "nftables-flush": ("nft flush ruleset",),
    "networkd-restart": (
        # systemd-networkd deletes rules and routes that it has not made, unless it is told not to
        # (networkd.conf(5), ManageForeignRoutingPolicyRules=, ManageForeignRoutes=).
        "ip rule flush protocol 201",
        "ip -6 rule flush protocol 201",
        "ip route flush table all proto 201",
        "ip -6 route flush table all proto 201",
    ),
    "docker": (
        # dockerd sets the policy of FORWARD to drop (Docker's documentation, "Packet filtering").
        "iptables-nft -P FORWARD DROP",
        "iptables-nft -N DOCKER-USER",
        "iptables-nft -A FORWARD -j DOCKER-USER",
    ),
    "masquerade": ("iptables-nft -t nat -A POSTROUTING -j MASQUERADE",),
    "strict-rp-filter": (
        "sysctl -q -w net.ipv4.conf.all.rp_filter=1",
        "sysctl -q -w net.ipv4.ip_forward=0",
    ),
    "link-down": ("ip link set eth1 down",),
}
"""What the usual other agents do to a node, as commands of a shell."""


@click.command(name="ls")
def list_labs() -> None:
    """List the labs of this machine, half-built ones too."""
    for each in lifecycle.labs():
        click.echo(each)


@click.group()
def fault() -> None:
    """Make EC2 or instance metadata misbehave, until `fault clear`."""


def _set(name: str, **switches: Any) -> None:
    try:
        Lab(name).ask("faults", set=switches)
    except (LabError, ValueError) as error:
        fail(str(error))


@fault.command()
@name_option
@click.option("--rate", default=0.2, show_default=True, help="Calls that are allowed per second.")
def throttle(name: str, rate: float) -> None:
    """Have EC2 answer RequestLimitExceeded to what is beyond a rate."""
    _set(name, throttle={"*": [1, rate]})


@fault.command()
@name_option
@click.argument("actions", nargs=-1, required=True)
def deny(name: str, actions: tuple[str, ...]) -> None:
    """Have EC2 deny ACTIONS, such as AssignPrivateIpAddresses."""
    _set(name, denied=list(actions))


@fault.command()
@name_option
def exhaust(name: str) -> None:
    """Have EC2 answer that the subnets have no free address."""
    code, message = "InsufficientFreeAddressesInSubnet", "not enough free addresses in subnet"
    error = {"code": code, "message": message, "count": WITHOUT_END}
    actions = ("AssignPrivateIpAddresses", "CreateNetworkInterface")
    _set(name, errors=[{"action": action, **error} for action in actions])


NUMBERS: tuple[tuple[str, str, str, type[int | float]], ...] = (
    ("slow-attach", "attachDelaySeconds", "ENIs take NUMBER seconds to attach.", float),
    ("stale-ec2", "staleEc2Seconds", "EC2 tells what was NUMBER seconds ago.", float),
    ("stale-imds", "staleImdsSeconds", "Metadata tells what was NUMBER seconds ago.", float),
    ("short-answers", "truncateEc2", "EC2 lists NUMBER addresses of an ENI.", int),
    ("imds-holes", "truncateImds", "Metadata lists NUMBER addresses of an ENI.", int),
)
"""Faults that are one number: command, switch, what happens."""


def _add_number(command: str, switch: str, about: str, kind: type[int | float]) -> None:
    @fault.command(name=command, help=about)
    @name_option
    @click.argument("number", type=kind)
    def change(name: str, number: float) -> None:
        _set(name, **{switch: number})


for _row in NUMBERS:
    _add_number(*_row)


@fault.command()
@name_option
def clear(name: str) -> None:
    """End all faults."""
    try:
        Lab(name).ask("faults", clear=True)
    except (LabError, ValueError) as error:
        fail(str(error))


@fault.command(name="list")
@name_option
def list_faults(name: str) -> None:
    """List the faults in force."""
    try:
        found = Lab(name).ask("faults")["faults"]
    except (LabError, ValueError) as error:
        fail(str(error))
    for switch, value in found.items():
        if value != SWITCHES[switch]:
            click.echo(f"{switch}: {json.dumps(value)}")


@click.command(name="break")
@name_option
@click.argument("node", type=click.Choice(NODES))
@click.argument("what", type=click.Choice(sorted(BREAKAGES)))
def break_node(name: str, node: str, what: str) -> None:
    """Do to NODE what another agent on it does; each command is printed before it is run."""
    try:
        lab = Lab(name)
        for command in BREAKAGES[what]:
            click.echo(command)
            done = lab.run(node, ["sh", "-c", command])
            if done.returncode != 0:
                click.echo(done.stderr.strip(), err=True)
    except (OSError, ValueError) as error:
        fail(str(error))


@click.command(name="stock")
@name_option
@click.option("--pods", default=4, show_default=True, help="Pods on each of its two ENIs.")
@click.argument("node", type=click.Choice(NODES))
def stock(name: str, node: str, pods: int) -> None:
    """Leave NODE as amazon-vpc-cni-k8s does, with pods: `takeOver` can be rehearsed there."""
    try:
        made = stock_node.make(Lab(name), node, (pods, pods))
    except (LabError, StockError, ValueError) as error:
        fail(str(error))
    for one in made.pods:
        click.echo(f"pod {one.name} has {one.address}")


COMMANDS: tuple[click.Command, ...] = (list_labs, fault, break_node, stock)
