"""Packets out of a namespace: what comes back, and a namespace that is gone."""

from __future__ import annotations

import socket
from ipaddress import ip_address

import pytest

from reconciler.diagnostics.connectivity import Target
from reconciler.errors import NamespaceError
from reconciler.targets.netlink.probe import probe

LOCAL = ip_address("127.0.0.1")


def test_a_listener_and_a_closed_port_are_told_apart() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed,
    ):
        closed.bind(("127.0.0.1", 0))
        open_ = Target("open", LOCAL, listening.getsockname()[1])
        shut = Target("shut", LOCAL, closed.getsockname()[1])
        found = probe("", [open_, shut])
        assert (found[open_].reached, found[open_].text) == (True, "connected")
        assert found[shut].reached is True
        assert found[shut].text.startswith("reached; no process listens")


def test_a_namespace_that_is_gone_is_named() -> None:
    with pytest.raises(NamespaceError, match="/run/netns/none"):
        probe("/run/netns/none@1", [Target("x", LOCAL, 9)])
