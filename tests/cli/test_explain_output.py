"""What ``explain`` prints: on terminals of two widths, in a pipe, and as the published format."""

from __future__ import annotations

import json
import time
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from builders import eni, node
from click.testing import CliRunner
from diagnostics.test_why import PAY, RECORDS, WHERE, here
from jsonschema import Draft202012Validator

from reconciler.cli import explain_node, explained
from reconciler.cli.explain import MODULES
from reconciler.cli.explained import Told, as_json, lines, rows
from reconciler.cli.main import main
from reconciler.cli.screen import PIPE, Screen
from reconciler.diagnostics import why, why_pod, why_set
from reconciler.egress.destinations import Egress
from reconciler.egress.source import Entry, Source
from reconciler.ipam.cloud import Cloud, Limits
from reconciler.targets.state.directory import StateDirectory
from schemas.explain import Explain

SCHEMA = json.loads((Path(__file__).parents[2] / "schemas/explain.schema.json").read_text())
HEAD = "apiVersion: node-network/v1alpha1\nkind: NodeNetwork\n"

POD = rows(why_pod.list_pods(RECORDS))
SET = tuple(
    Told(s.name, s.why, rows(s.elements))
    for s in why_set.explain_sets(here(), WHERE, "no_snat_ipv4")
)

AT_60 = """\
default/late  wanted: waits for an address
default/web   10.0.1.13 on eni-0; ready: all of its objects
              were seen in place, and its ADD was answered
pay-eu/web    10.0.1.32 on eni-1; ready: all of its objects
              were seen in place, and its ADD was answered
"""

WIDE = """\
default/late  wanted: waits for an address
default/web   10.0.1.13 on eni-0; ready: all of its objects were seen in place, and its ADD was answered
pay-eu/web    10.0.1.32 on eni-1; ready: all of its objects were seen in place, and its ADD was answered
"""  # noqa: E501 - as it is shown


def shown(where: Screen, told: tuple[Told, ...], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(explained, "screen_of", lambda _: where)
    return "".join(f"{line}\n" for line in explained._as_text(told))


@pytest.mark.parametrize(
    ("where", "said"), [(Screen(60), AT_60), (Screen(120), WIDE), (PIPE, WIDE)]
)
def test_pods_are_listed_as_wide_as_there_is_room(
    where: Screen, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown(where, POD, monkeypatch) == said


def test_nothing_is_coloured_and_lines_of_their_own_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An explanation is read or kept, so it has no colour anywhere."""
    assert shown(Screen(60, colour=True), POD, monkeypatch) == AT_60
    of_pool = ["wanted: at least 24", "    24  minimum   <- binds"]
    assert shown(Screen(60), lines(of_pool), monkeypatch) == "".join(f"{x}\n" for x in of_pool)


RULE = "ip rule add priority 1024 fwmark 0x80/0xff lookup main protocol 201\n"
WHY_60 = """\
    packets that must use the primary ENI (connections with
    the node's address, pods on that ENI) are marked so by
    the bits of routing.markMask (by default), and go by
    main; it goes when no pod has ipv4 and families (by
    default) does not name it
"""
WHY_120 = """\
    packets that must use the primary ENI (connections with the node's address, pods on that ENI) are marked so by the
    bits of routing.markMask (by default), and go by main; it goes when no pod has ipv4 and families (by default) does
    not name it
"""  # noqa: E501 - as it is shown
WHY_PIPED = f"    {' '.join(WHY_60.split())}\n"


@pytest.mark.parametrize(
    ("where", "said"),
    [(Screen(60), WHY_60), (Screen(120), WHY_120), (PIPE, WHY_PIPED)],
    ids=["60", "120", "pipe"],
)
def test_a_rules_command_stays_whole_and_its_reason_is_wrapped(
    where: Screen,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(explain_node, "screen_of", lambda _: where)
    explain_node._print("text", "rule", why.explain_rules(here(), WHERE), 1024)
    assert capsys.readouterr().out == RULE + said


@pytest.mark.parametrize(
    ("subject", "name", "told"),
    [
        ("pod", None, POD),
        ("pod", "web", rows(why_pod.explain_pod(why_pod.find(RECORDS, PAY.pod), here(), WHERE))),
        ("set", "no_snat_ipv4", SET),
        ("rule", None, rows((r.command, r.why) for r in why.explain_rules(here(), WHERE))),
        ("pool", None, lines(["wanted: at least 24"])),
    ],
)
def test_the_json_is_of_the_published_format(
    subject: str, name: str | None, told: tuple[Told, ...]
) -> None:
    body = json.loads(as_json(subject, name, told))
    Draft202012Validator(SCHEMA).validate(body)
    assert Explain.model_validate(body).model_dump() == body
    assert [t["about"] for t in body["explained"]] == [t.about for t in told]
    assert subject in MODULES


def run(*words: str) -> Any:
    done = CliRunner().invoke(main, ["explain", *words])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_commands_print_it(tmp_path: Path) -> None:
    file = tmp_path / "node-network.yaml"
    file.write_text(f'{HEAD}snat: {{excludeCIDRs: ["@peering"]}}\n')
    entry = Entry(ip_network("10.100.0.0/16"), "pcx-1", "shared")
    state = StateDirectory(tmp_path / "state")
    state.prepare()
    state.remember(node(), Cloud((eni(0),), Limits(3, 10), {}))
    state.remember_egress(Egress("vpc-1", (Source("@peering", (entry,), time.time()),)))
    where = ("--state-dir", str(state.root))
    asked = ("address", "10.100.0.7", "-f", str(file), *where)
    text, body = run(*asked), json.loads(run(*asked, "-o", "json"))
    assert Explain.model_validate(body).name == "10.100.0.7"
    assert [t["text"] for t in body["explained"]] == text.splitlines()
    body = json.loads(run("condition", "subnetexhausted", *where, "-o", "json"))
    Explain.model_validate(body)
    (told,) = body["explained"]
    assert told["text"].startswith("SubnetExhausted: ")
    assert [p["about"] for p in told["parts"]][-2:] == ["ends", "now"]
    broken = tmp_path / "broken.yaml"
    broken.write_text(f"{HEAD}snat: 1\n")
    done = CliRunner().invoke(main, ["explain", "pool", "-f", str(broken), "-o", "json"])
    assert (done.exit_code, json.loads(done.stdout)["errors"][0]["line"]) == (2, 3)
