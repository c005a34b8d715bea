"""The daemon's page shows in a browser what ``status -o json`` says, whatever has happened."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, browse
from waiting import until

from lab import netns

pytestmark = pytest.mark.lab

PORT = 61680
PAGE = f"http://127.0.0.1:{PORT}/"
MARKUP = "<img/src=x/onerror=alert(1)>"
EXCLUDED = ["4", "snat.excludeCIDRs", "10.100.0.0/16", "in force"]
PICTURES = os.environ.get("PICTURES", "")
"""A directory to write pictures of the page to; none if it is empty."""

SEEN = """
(() => {
  const rows = table => [...table.tBodies[0].rows].map(r => [...r.cells].map(c => c.textContent));
  const found = {};
  for (const table of document.querySelectorAll("table:not(#settings-table)"))
    found[table.caption.textContent] = rows(table);
  return {tables: found, state: document.getElementById("state").textContent,
          document: document.querySelector("#document p").textContent,
          markup: document.querySelectorAll("main img").length};
})()
"""


def expected(status: dict[str, Any]) -> dict[str, Any]:
    """What a page has to show, of ``status -o json``."""
    tables: dict[str, Any] = {}
    if wrong := status["conditions"]:
        tables["What is wrong now"] = [
            [c["reason"], c["subject"], c["since"], c["text"]] for c in wrong
        ]
    pool = [[state, str(number)] for state, number in status["pool"].items()]
    tables["Addresses that the node holds, by state"] = pool
    for eni in status["enis"]:
        tables[title(eni)] = [*addresses(eni, status)]
    if repaired := status["repaired"]:
        tables["Objects of ours that others had changed, the latest first"] = [
            [
                r["at"],
                f"{r['verb']} {r['kind']}",
                str(r["count"]),
                "; ".join(r["actions"]),
                ", ".join(r["by"]) or "none",
            ]
            for r in repaired
        ]
    tables["Source NAT: who sees pods' own addresses"] = [
        [
            p["group"] or "all others",
            p["mode"],
            ", ".join(p["excludeCIDRs"]) or "none",
            "all that are not excluded" if p["onlyCIDRs"] is None else ", ".join(p["onlyCIDRs"]),
        ]
        for p in status["snat"]
    ]
    state = "In sync with the document." if status["settled"] else "Changes are under way."
    if wrong:
        state += f" {len(wrong)} condition{'s' if len(wrong) > 1 else ''}."
    if stop := status["obstacle"]:
        state = f"No pod starts: {stop['reason']}: {stop['message']}. {state}"
    told = status["document"]
    return {
        "tables": tables,
        "state": state,
        "document": f"{told['path']}, generation {told['generation']}, "
        f"accepted {told['acceptedAt']}.",
        "markup": 0,
    }


def title(eni: dict[str, Any]) -> str:
    place = "not attached" if eni["device"] is None else f"device {eni['device']}"
    return (
        f"{eni['id']}: {place}, {eni['status']}, {eni['subnet']}, {eni['primary']}, "
        f"{eni['addresses']} addresses for pods" + ("" if eni["owned"] else ", another owner's")
    )


def addresses(eni: dict[str, Any], status: dict[str, Any]) -> Iterator[list[str]]:
    mine = [a for a in status["attachments"] if a["eni"] == eni["id"]]
    taken = {address for a in mine for address in a["addresses"]}
    for a in mine:
        yield [" ".join(a["addresses"]), "assigned", a["pod"], a["veth"]]
    for address in eni["podAddresses"]:
        if address not in taken:
            yield [address, "cooling" if address in status["cooling"] else "free", "", ""]


class Watched:
    """A node, and a browser on it that has the page open."""

    def __init__(self, cluster: Any, browser: Browser) -> None:
        self.cluster, self.browser = cluster, browser

    def status(self) -> dict[str, Any]:
        done = self.cluster.command("node1", "status", "-o", "json")
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    def settings(self) -> list[list[str]]:
        """What the page says that the document sets."""
        rows = "[...document.querySelectorAll('#settings-table tbody tr')]"
        found: list[list[str]] = self.browser.evaluate(
            f"{rows}.map(r => [...r.cells].map(c => c.textContent))"
        )
        return found

    def sees(self, what: str, happened: Callable[[dict[str, Any]], bool]) -> None:
        """Wait until something has happened, and the page shows what status says."""

        def agrees() -> bool:
            status = self.status()
            return happened(status) and bool(self.browser.evaluate(SEEN) == expected(status))

        until(agrees, lambda: f"{what}: {self.browser.evaluate(SEEN)}\n{self.status()}")


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, make_cluster: Any) -> Iterator[Watched]:
    with make_cluster(tmp_path_factory.mktemp("page")) as cluster:
        cluster.config.write_text(document())
        cluster.launch("node1", "--listen", f"127.0.0.1:{PORT}")
        until(cluster.answers, "an answer")
        until(lambda: cluster.status()["settled"], "a node in sync")
        with (
            netns.inside(cluster.lab.names.namespace("node1")),
            browse(tmp_path_factory.mktemp("browser")) as browser,
        ):
            browser.go(PAGE)
            until(lambda: "sync" in browser.evaluate("document.body?.innerText ?? ''"), "the page")
            yield Watched(cluster, browser)


def document(minimum: int = 8, exclude: str = "") -> str:
    return (
        "apiVersion: node-network/v1alpha1\nkind: NodeNetwork\n"
        f"warmPool: {{addresses: {{warm: 2, minimum: {minimum}, surplus: 8}}, cooldown: 2s}}\n"
        f"snat: {{mode: node, excludeCIDRs: [{exclude}]}}\n"
    )


def test_the_page_shows_what_status_says_after_each_of_ten_events(watched: Watched) -> None:
    cluster, lab = watched.cluster, watched.cluster.lab
    watched.sees("the start", lambda s: s["settled"])
    first = cluster.add()
    watched.sees("a pod", lambda s: len(s["attachments"]) == 1)
    second = cluster.add(pod_name=MARKUP)
    watched.sees("a pod with a name of markup", lambda s: MARKUP in str(s["attachments"]))
    cluster.delete(second)
    watched.sees("a pod's end", lambda s: len(s["attachments"]) == 1)
    watched.sees("the end of a cooldown", lambda s: s["cooling"] == [])
    cluster.config.write_text(document(exclude="10.100.0.0/16"))
    watched.sees("an edit", lambda s: s["snat"][0]["excludeCIDRs"] == ["10.100.0.0/16"])
    until(lambda: EXCLUDED in watched.settings(), lambda: f"its line: {watched.settings()}")
    cluster.config.write_text(document(exclude="10.100.0.0/99"))
    watched.sees("an edit that is refused", lambda s: bool(s["document"]["refused"]))
    cluster.config.write_text(document(exclude="10.100.0.0/16"))
    watched.sees("an edit that mends it", lambda s: not s["document"]["refused"])
    lab.run("node1", ["nft", "flush", "ruleset"])
    watched.sees("a repair", lambda s: bool(s["repaired"]) and s["settled"])
    lab.ask("faults", set={"denied": ["CreateNetworkInterface"]})
    cluster.config.write_text(document(minimum=14))
    watched.sees("a denied call", lambda s: "UnauthorizedOperation" in str(s["conditions"]))
    if PICTURES:
        take_pictures(watched.browser, Path(PICTURES))
    lab.ask("faults", clear=True)
    cluster.command("node1", "retry")
    watched.sees("its end, and another ENI", lambda s: len(s["enis"]) == 2 and s["settled"])
    cluster.delete(first)
    assert watched.browser.errors == []


def take_pictures(browser: Browser, directory: Path) -> None:
    browser.resize(1000, 1000)
    for scheme in ("light", "dark"):
        browser.prefer(scheme)
        browser.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 100)))")
        browser.picture(directory / f"page-{scheme}.png")


def test_a_pod_is_found_by_the_keyboard_alone(watched: Watched) -> None:
    browser = watched.browser
    one = watched.cluster.add(pod_name="needle")
    watched.sees("a pod", lambda s: "default/needle" in str(s["attachments"]))
    browser.press("Tab")
    assert browser.evaluate("document.activeElement.id") == "find"
    for letter in "needle":
        browser.press(letter, letter)
    rows = "[...document.querySelectorAll('#enis tbody tr')].map(r => r.cells[2].textContent)"
    until(lambda: browser.evaluate(rows) == ["default/needle"], "one row")
    browser.evaluate("at('find').value = ''; at('find').dispatchEvent(new Event('input'))")
    watched.cluster.delete(one)


def test_a_screen_reader_is_told_of_every_table_and_field(watched: Watched) -> None:
    told = watched.browser.tree()
    kinds = ("table", "searchbox", "region", "meter", "status", "heading")
    nameless = [n for n in told if n["role"] in kinds and n["role"] != "status" and not n["name"]]
    assert nameless == []
    assert {"table", "searchbox", "region", "meter", "status"} <= {n["role"] for n in told}


def test_the_page_fits_a_narrow_window(watched: Watched) -> None:
    watched.browser.resize(360, 800)
    wide = watched.browser.evaluate("document.documentElement.scrollWidth")
    watched.browser.resize(1100, 1400)
    assert wide <= 360


@contextmanager
def answered(watched: Watched, path: str, host: str) -> Iterator[Any]:
    connection = HTTPConnection("127.0.0.1", PORT, timeout=5)
    connection.request("GET", path, headers={"Host": host})
    try:
        yield connection.getresponse()
    finally:
        connection.close()


@pytest.mark.parametrize("path", ["/", "/status.json", "/document.json"])
@pytest.mark.parametrize(
    ("host", "code"),
    [
        (f"127.0.0.1:{PORT}", 200),
        ("localhost:8080", 200),
        (f"[::1]:{PORT}", 200),
        ("evil.example", 421),
        (f"10.0.1.10:{PORT}", 421),
    ],
)
def test_a_name_that_is_not_loopbacks_is_refused(
    watched: Watched, path: str, host: str, code: int
) -> None:
    with answered(watched, path, host) as answer:
        assert answer.status == code
        assert (b"excludeCIDRs" in answer.read()) == (code == 200)


def test_nothing_but_the_pages_own_script_may_run(watched: Watched) -> None:
    with answered(watched, "/", "localhost") as answer:
        policy = answer.headers["Content-Security-Policy"]
        text = answer.read().decode()
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in text.replace("http-equiv", "")  # no asset of elsewhere
