"""Options of the commands that observe this host: its environment, records and lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from reconciler.cli.options import PATH, fail, setting, state_option
from reconciler.core.facts import Installation
from reconciler.errors import StateError
from reconciler.node.environment import Environment
from reconciler.targets.files.installation import HostDirectories
from reconciler.targets.lock import NamespaceLock
from reconciler.targets.state.directory import StateDirectory

PROGRAM = "/opt/node-network/bin/node-network-cni"  # where the image has it

INSTALL_OPTIONS = (
    state_option,
    setting(
        "--cni-conf-dir",
        "conf_dir",
        about="The runtime's directory of CNI configurations, usually /etc/cni/net.d, to "
        "install 10-node-network.conflist there. Default: disabled.",
    ),
    setting(
        "--cni-bin-dir",
        "bin_dir",
        about="The runtime's directory of CNI plugins, usually /opt/cni/bin, to install the "
        "executable there. Default: disabled.",
    ),
    setting(
        "--tmpfiles-dir",
        about="A directory of tmpfiles.d(5), usually /etc/tmpfiles.d, to install there what has "
        "systemd remove the CNI configuration at a boot. Default: disabled.",
    ),
    setting(
        "--cni-executable",
        "program",
        kind=PATH,
        default=PROGRAM,
        about="The CNI executable to install.",
    ),
)


def host_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for state and installation; pass an ``Environment`` to the command."""

    @wraps(command)
    def run(
        *,
        state_dir: Path,
        conf_dir: str,
        bin_dir: str,
        tmpfiles_dir: str,
        program: Path,
        **others: Any,
    ) -> None:
        named = (conf_dir, bin_dir, tmpfiles_dir)
        conf, plugins, tmpfiles = (str(Path(d).absolute()) if d else "" for d in named)
        absolute = str(program.absolute()), str(state_dir.absolute())
        places = Installation(conf, plugins, *absolute, tmpfiles)
        node_name = os.environ.get("NODE_NAME", "")
        environment = Environment(files=HostDirectories(places), node_name=node_name)
        command(state_dir=state_dir, environment=environment, **others)

    decorated: Callable[..., Any] = run
    for option in reversed(INSTALL_OPTIONS):
        decorated = option(decorated)
    return decorated


def open_records(state_dir: Path) -> StateDirectory:
    """Open the records to read them.

    They are root's. A user who may not list them is told so, and does not see a node without pods.
    """
    try:
        os.listdir(state_dir)  # noqa: PTH208 - for the errno
    except FileNotFoundError:
        pass  # no reconciler has run here yet: there are no records
    except OSError as error:
        cure = "run as root" if isinstance(error, PermissionError) else "see --state-dir"
        fail(StateError(f"cannot read the records in {state_dir}: {error.strerror}; {cure}"))
    return StateDirectory(state_dir)


def lock_records(state_dir: Path, keep_dir: str) -> tuple[StateDirectory, NamespaceLock]:
    """Open the records to write them, as the only reconciler of this network namespace.

    ``keep_dir``: where that is which outlives a boot; "" for the directory of the records.

    Raises:
        StateError: another one runs, or the directory cannot be used.
    """
    state = StateDirectory(state_dir, Path(keep_dir) if keep_dir else None)
    state.prepare()
    state.lock()
    namespace = NamespaceLock()
    namespace.take()
    return state, namespace
