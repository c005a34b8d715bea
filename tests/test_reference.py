"""The documentation's pages that are made of the code, and its site."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from cni import protocol

ROOT = Path(__file__).parents[1]
FILES = runpy.run_path(str(ROOT / "docs/reference.py"))["FILES"]


@pytest.mark.parametrize("file", FILES)
def test_what_is_made_of_the_code_says_what_the_code_says(file: str) -> None:
    kept = (ROOT / file).read_text()
    assert kept == FILES[file](), "run: .venv/bin/python docs/reference.py"


def test_every_code_of_the_executable_is_in_its_table_of_errors() -> None:
    page = (ROOT / "docs/cni.md").read_text()
    rows = re.findall(r"^\| ([0-9, ]+) \|", page, re.MULTILINE)
    told = {int(code) for row in rows for code in row.split(",")}
    names = [name for name in vars(protocol) if name.isupper()]
    values = [getattr(protocol, name) for name in names[: names.index("MAX_CODE")]]
    assert told == {value for value in values if isinstance(value, int)}


def test_every_page_is_in_the_sites_contents_and_every_entry_is_a_page() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    entries = set(listed(site["nav"]))
    assert all((ROOT / entry).exists() for entry in entries)
    pages = {str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md")}
    decisions = {p for p in pages if re.match(r"docs/decisions/\d", p)}
    assert pages - decisions <= entries


def listed(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    values = nav.values() if isinstance(nav, dict) else nav
    return [entry for value in values for entry in listed(value)]
