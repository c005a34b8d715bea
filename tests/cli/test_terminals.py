"""Commands on terminals of two widths, without colour, in a pipe, with no reconciler there.

What `diff` and `status` print is in tests of their own, a check of `doctor` in
``diagnostics/test_doctor.py``; what a user without rights is told in ``test_commands.py``.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import click
import pytest

from reconciler.cli.doctor import _of_daemon
from reconciler.cli.main import main

STOCK = """\
kind: DaemonSet
metadata: {name: aws-node}
spec:
  template:
    spec:
      containers:
        - name: aws-node
          env:
            - {name: WARM_IP_TARGET, value: "5"}
            - {name: AWS_MANAGE_ENIS_NON_SCHEDULABLE, value: "true"}
            - {name: AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS, value: "10.100.0.0/16,10.101.0.0/16"}
"""

IMPORTED = """\
apiVersion: node-network/v1alpha1
kind: NodeNetwork
warmPool:
  addresses:
    warm: 5  # WARM_IP_TARGET=5
    surplus: 0  # as the stock plugin; the default 4 saves EC2 calls
snat:
  excludeCIDRs: [10.100.0.0/16, 10.101.0.0/16]  # AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS

# Not translated, or different:
# - ENABLE_SUBNET_DISCOVERY: where subnets carry the tag kubernetes.io/role/cni, set \
eni.subnetTags {kubernetes.io/role/cni: "1"}: those are used, and the primary \
ENI's only if it carries the tag too. \
For subnets with the value 0, set eni.excludeSubnetTags {kubernetes.io/role/cni: "0"}
"""
"""A document is a file: what reads it next, and not a terminal, says where its lines end."""


class Terminal(io.StringIO):
    """What a command writes to; a terminal if it has a width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._width = width

    def isatty(self) -> bool:
        return bool(self._width)

    def fileno(self) -> int:
        return 1


def show(monkeypatch: pytest.MonkeyPatch, width: int, *words: str, plain: bool = True) -> str:
    """Run a command in this process, and return what it writes to a terminal of a width."""
    terminal = Terminal(width)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((width, 24)))
    monkeypatch.setenv("TERM", "xterm")
    if plain:
        monkeypatch.setenv("NO_COLOR", "1")
    else:
        monkeypatch.delenv("NO_COLOR", raising=False)
    main(list(words), standalone_mode=False)
    return terminal.getvalue()


@pytest.mark.parametrize("width", [0, 60, 120])
@pytest.mark.parametrize("plain", [True, False])
def test_a_document_that_is_imported_is_the_same_wherever_it_goes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, width: int, plain: bool
) -> None:
    (tmp_path / "ds.yaml").write_text(STOCK)
    argv = ("import", str(tmp_path / "ds.yaml"))
    assert show(monkeypatch, width, *argv, plain=plain) == IMPORTED


@pytest.mark.parametrize("width", [0, 60, 120])
@pytest.mark.parametrize("plain", [True, False])
def test_a_reason_is_explained_without_a_reconciler_which_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, width: int, plain: bool
) -> None:
    argv = ("explain", "condition", "starting", "--state-dir", str(tmp_path))
    said = show(monkeypatch, width, *argv, plain=plain)
    assert said == click.unstyle(said)
    lines = said.splitlines()
    assert lines[0].startswith("reason    Starting: ")
    assert all(len(line) <= width for line in lines if width and " " in line.strip())
    told = " ".join(" ".join(lines).split())
    assert "now not known: " in told
    assert told.endswith("No such file or directory; is 'node-network run' running?")


def test_without_a_name_and_a_reconciler_there_is_nothing_to_explain(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        show(monkeypatch, 60, "explain", "condition", "--state-dir", str(tmp_path))
    assert end.value.code == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.endswith("is 'node-network run' running?")


def test_a_doctor_needs_no_reconciler_and_says_that_none_answers(tmp_path: Path) -> None:
    (check,) = _of_daemon(tmp_path)
    assert (check.state, check.cure) == ("warn", "start it; what follows does not need it")
    assert check.text.endswith("is 'node-network run' running?")
