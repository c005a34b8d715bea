"""The documentation: names that exist, files that exist, and an example that runs."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from builders import inputs

from reconciler import errors
from reconciler.diagnostics.reasons import catalogue
from reconciler.engine.converge import Domain, converge, dry_run
from reconciler.ipam import budget

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "README.md"]
ROOMS = "engine|core|ipam|egress|domains|diagnostics|targets|migration|node|daemon|cli|cni|schemas"
DOTTED = re.compile(rf"`((?:{ROOMS})(?:\.[A-Za-z_]\w*){{2,}})(?:\(\))?`")
FILES = re.compile(r"`([\w/]+/\w+\.py)`")
CREATED = {
    "reconciler/domains/queue.py",
    "reconciler/targets/queue.py",
    "tests/targets/test_queue_contract.py",
    "tests/domains/test_queue.py",
}
"""What the example of a domain would create."""


def exists(dotted: str) -> bool:
    """Whether a room's module has such a function, class, method or constant."""
    parts = dotted.split(".")
    if parts[0] not in ("cni", "schemas"):
        parts.insert(0, "reconciler")
    at = max(n for n in range(1, len(parts) + 1) if find(".".join(parts[:n])))
    found: Any = import_module(".".join(parts[:at]))
    for name in parts[at:]:
        if not hasattr(found, name) and name not in getattr(found, "__annotations__", {}):
            return False
        found = getattr(found, name, None)
    return True


def find(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_what_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    assert [n for n in dict.fromkeys(DOTTED.findall(text)) if not exists(n)] == []
    missing = [
        file
        for file in dict.fromkeys(FILES.findall(text))
        if file not in CREATED
        and not any((ROOT / start / file).exists() for start in ("", "reconciler", "tests"))
    ]
    assert missing == []


def links() -> Iterator[tuple[str, str]]:
    for page in [*PAGES, *(ROOT / "docs/decisions").glob("*.md"), ROOT / "deploy/README.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
            yield str(page.relative_to(ROOT)), target


@pytest.mark.parametrize(("page", "target"), sorted(set(links())))
def test_a_link_leads_somewhere(page: str, target: str) -> None:
    file, _, anchor = target.partition("#")
    path = (ROOT / page).parent / file if file else ROOT / page
    assert path.exists()
    if anchor:
        titles = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}


def test_the_example_of_a_domain_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs/adding-a-domain.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.setitem(sys.modules, "example", module := ModuleType("example"))
    names = vars(module)
    for block in blocks:
        exec(compile(block, "docs/adding-a-domain.md", "exec"), names)
    for device in ("eth0", "eth1", "docker0"):
        (tmp_path / device).mkdir()
        (tmp_path / device / "tx_queue_len").write_text("1000\n")
    domain = Domain("queue", names["desire"], names["plan"], names["Queues"](tmp_path))
    two = inputs(2)

    before = dry_run([domain], two)["queue"].plan
    assert [str(a) for a in before.actions] == [
        "ip link set dev eth0 txqueuelen 10000",
        "ip link set dev eth1 txqueuelen 10000",
    ]
    assert converge([domain], two)["queue"].settled
    assert not dry_run([domain], two)["queue"].plan
    assert (tmp_path / "docker0/tx_queue_len").read_text() == "1000\n"
    gone = replace(two, links={"02:aa:00:00:00:00": "eth0", "02:aa:00:00:00:01": "eth9"})
    assert not converge([domain], gone)["queue"].settled  # eth9 has no file: named, not guessed


NOT_SCANNED = ("reconciler/diagnostics/reasons/", "reconciler/importing/")
"""The catalogue itself, and names of the stock plugin."""

CAMEL = re.compile(r"[A-Z][a-z0-9]+([A-Z][a-z0-9]+)+")

NO_REASONS = {
    *budget.BUCKETS,
    *("DescribeManagedPrefixLists", "GetManagedPrefixListEntries", "DescribeRouteTables"),
    *("DescribeVpcPeeringConnections", "NodeNetworkReady", "KubeletConfiguration"),
    *("TcpEstablishedTimeout", "UdpStreamTimeout", "UdpTimeout"),  # of an ENI
    *("ManageForeignRoutes", "ManageForeignRoutingPolicyRules"),  # of systemd-networkd
    "NetworkManager",
}
"""Words of EC2, Kubernetes and other programs that look like reasons."""

FORMS = {
    *("Reconciler", "Apply", "Cluster"),  # of exceptions that name a reason each time
    *("UnknownPod", "Unanswered"),  # of commands, which print the message alone
}
"""What exceptions have as a reason and no condition does."""


OF_EC2 = ("targets/ec2/", "diagnostics/rights.py")
"""Modules that are full of EC2's own words."""

GIVEN = {"Issue", "Ec2CallError", "ApplyError"}
"""What takes a reason as its second argument."""


def said(path: Path) -> Iterator[str]:
    """Words of a module that may be reasons: texts that look like one, and what issues are given.

    Of the modules of ``OF_EC2`` only the latter.
    """
    is_full = any(part in str(path) for part in OF_EC2)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in GIVEN:
            (reason,) = node.args[1:2] or (None,)
            if isinstance(reason, ast.Constant) and re.fullmatch(r"[A-Z]\w+", str(reason.value)):
                yield str(reason.value)
        elif isinstance(node, ast.Constant) and not is_full and CAMEL.fullmatch(str(node.value)):
            yield str(node.value)


def test_every_reason_is_explained_and_no_other_one() -> None:
    """Write an entry in ``reconciler/diagnostics/reasons/`` for a new reason."""
    paths = [p for part in ("reconciler", "cni") for p in (ROOT / part).rglob("*.py")]
    scanned = [p for p in paths if not str(p.relative_to(ROOT)).startswith(NOT_SCANNED)]
    kinds = [c for c in vars(errors).values() if isinstance(c, type)]
    used = {word for path in scanned for word in said(path)}
    used |= {c.reason for c in kinds if issubclass(c, errors.ReconcilerError)} - FORMS
    used |= {code for of in budget.CODES.values() for code in of}
    known = {r for r in catalogue.BY_REASON if re.fullmatch(r"[A-Z]\w+", r)}
    assert used - known - NO_REASONS == set(), "no entry in reconciler/diagnostics/reasons/"
    text = "".join(path.read_text() for path in scanned)
    unused = {reason for reason in known - used if f'"{reason}"' not in text}
    assert unused == set(), "no code gives these reasons"
