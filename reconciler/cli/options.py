"""What several commands take, and how they end: the state directory, errors.

Nothing is imported here that takes long: ``status`` is to answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from cni.protocol import DEFAULT_STATE_DIR
from reconciler.errors import InternalError

if TYPE_CHECKING:
    from reconciler.core.datapath import IpAddress

CONFIG = "/etc/node-network/node-network.yaml"

NEEDS = "run as root, with CAP_NET_ADMIN and CAP_SYS_ADMIN"

PATH = click.Path(path_type=Path, readable=False)
"""What cannot be read is said by whoever reads it, with what to do; click calls it wrong usage."""


class Address(click.ParamType[IPv4Address | IPv6Address]):
    """An IP address of one host. Names are not resolved: a name may have several addresses."""

    name = "ADDRESS"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> IpAddress:
        try:
            address = ip_address(value)
        except ValueError:
            pods = "'node-network explain pod' lists this node's pods with theirs"
            self.fail(
                f"{value!r} is no IP address, and names are not resolved; {pods}", param, ctx
            )
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        address = mapped or address
        if address.is_multicast or address.is_unspecified or address.is_loopback:
            self.fail(f"{address} is no address of another host", param, ctx)
        if int(address) == 2**32 - 1:
            self.fail(f"{address} is everybody's address on a link", param, ctx)
        return address


Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def setting(
    *names: str, about: str, default: str = "", kind: click.ParamType[Any] | None = None
) -> Decorator:
    """An option that a variable of the environment sets as well, which is called like it."""
    flag = next(name for name in names if name.startswith("--"))
    variable = f"NODE_NETWORK{flag[1:].replace('-', '_').upper()}"
    shown: Any = {"show_envvar": True, "show_default": bool(default)}
    return click.option(*names, type=kind, envvar=variable, default=default, help=about, **shown)


config_option = setting(
    "-f", "--config", kind=PATH, default=CONFIG, about="The NodeNetwork document."
)
state_option = setting(
    "--state-dir",
    kind=PATH,
    default=DEFAULT_STATE_DIR,
    about="Intents, attachments and the socket.",
)
keep_option = setting(
    "--keep-dir",
    about="Where the last good document and dedicated addresses are kept for the next start; on "
    "a disk that survives a reboot. Default: the state directory.",
)
output_option = click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True
)


def apart_option(seconds: float, what: str) -> Decorator:
    """Return the option of commands that act on what two observations show."""
    about = f"Seconds between the two observations that must both show {what}."
    return click.option("--apart", "apart_s", default=seconds, show_default=True, help=about)


def fail(error: Exception) -> NoReturn:
    """End the command by an error."""
    if isinstance(error, InternalError):
        click.echo(error.trace, err=True)
    click.echo(f"{error}{advice(error)}", err=True)
    sys.exit(2)


def advice(error: Exception) -> str:
    """Say what a user without rights can do, if the error itself does not."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, PermissionError):
        cause = cause.__cause__
    return "" if cause is None or "run as root" in str(error) else f"; {NEEDS}"
