"""Documents that another process has checked, and what is said when it does not answer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from document_strategies import HEAD, NODE, documents
from hypothesis import given, settings

from schemas import process, wire
from schemas.apart import Apart, Here
from schemas.document import NodeNetwork
from schemas.load import dump
from schemas.override import find_applying
from schemas.problem import DocumentError, UncheckedError
from schemas.process import Checkers

EXAMPLE = Path(__file__).parents[2] / "config/node-network.yaml"

HOLDER = """\
import json, sys
import schemas
schemas.checks = False
from schemas import wire
for line in sys.stdin:
    body, fields = json.loads(line)
    held, again = wire.decode_document(body), wire.decode_document(body)
    assert not {"pydantic", "yaml"} & sys.modules.keys()
    assert held == again and hash(held) == hash(again) and held is not again
    other = held.model_copy(update={"cluster": held.cluster + "x"})
    assert other != held and other.eni is held.eni and "cluster" in other.model_fields_set
    assert other.model_copy(update={"cluster": held.cluster}) == held
    try:
        held.cluster = "y"
    except AttributeError:
        pass
    else:
        raise AssertionError("it is not frozen")
    seen = [repr(eval(f, {"held": held})) for f in fields]
    print(json.dumps([wire.encode(held), seen]), flush=True)
"""

SEEN = (
    *("held", "held.most_pods", "held.pod_mtu", "held.warm_pool.strategy", "held.snat_policies"),
    *("[o.changes for o in held.overrides]", "sorted(held.warm_pool.model_fields_set)"),
    "[g.match.matches('pay', 'web-1') for g in held.pod_groups]",
)

Ask = Callable[[Any], Any]


@pytest.fixture(scope="module")
def holder() -> Iterator[Ask]:
    """A process that holds documents and cannot check any."""
    argv = [sys.executable, "-c", HOLDER]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        into, out = process.stdin, process.stdout

        def ask(question: Any) -> Any:
            into.write(json.dumps(question) + "\n")
            return json.loads(out.readline())

        yield ask
        into.close()


def ordered(body: Any) -> Any:
    """A set has no order."""
    if isinstance(body, dict):
        return {k: sorted(v) if k == "given" else ordered(v) for k, v in body.items()}
    return [ordered(each) for each in body] if isinstance(body, list) else body


@given(documents())
@settings(max_examples=25)
def test_a_document_is_the_same_where_it_is_only_held(holder: Ask, given: NodeNetwork) -> None:
    body = wire.encode(given)
    back, seen = holder([body, SEEN])
    assert ordered(back) == ordered(body)
    assert seen == [repr(eval(field, {"held": given})) for field in SEEN]
    again = wire.decode_document(back)
    assert (again, dump(again)) == (given, dump(given))
    assert again.warm_pool.model_fields_set == given.warm_pool.model_fields_set


@pytest.mark.parametrize(
    "body",
    [
        *(None, 1, "x", [], {}, {"network": "10.0.0.1/8"}, {"ms": "1"}, {"part": "Popen"}),
        *({"part": "NodeNetwork", "is": {}, "given": 1}, {"part": "x", "is": {}, "given": []}),
        {"part": "Eni", "is": {}, "given": []},
    ],
    ids=str,
)
def test_what_is_no_document_is_none(body: Any) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        wire.decode_document(body)


def test_another_process_says_what_this_one_would_say() -> None:
    apart, here, text = Apart(Checkers()), Here(), EXAMPLE.read_text()
    text += "overrides: [{match: {zone: us-*}, set: {maxPods: 9, warmPool: {enis: {}}}}]\n"
    document = apart.load(text, "x.yaml")
    assert document == here.load(text, "x.yaml")
    assert find_applying(document, **NODE)
    assert apart.resolve(document, **NODE) == here.resolve(document, **NODE)
    elsewhere = NODE | {"zone": "eu-west-1a"}
    assert apart.resolve(document, **elsewhere) == here.resolve(document, **elsewhere)


@pytest.mark.parametrize("text", ["a: 1\nb: [no, 010]\nmaxPods: é\n", "["])
def test_another_process_finds_what_is_wrong_and_where(text: str) -> None:
    with pytest.raises(DocumentError) as there:
        Apart(Checkers()).load(text, "x.yaml")
    with pytest.raises(DocumentError) as here:
        Here().load(text, "x.yaml")
    assert there.value.problems == here.value.problems
    assert not isinstance(there.value, UncheckedError)


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("raise SystemExit(3)", "status 3"),
        ("import os; os.kill(os.getpid(), 9)", "status -9"),
        ("print('x')", "no answer: JSONDecodeError"),
        ("print('[]')", "no answer: TypeError"),
        ("print('[' * 100_000)", "no answer"),
        ("print({})", "no answer: KeyError"),
        ("print('x' * 2000)", "longer than 1000 bytes"),
        ("import time; time.sleep(60)", "no answer for 0 s"),
    ],
)
def test_a_process_that_does_not_answer_leaves_it_unknown(
    program: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(_module: str) -> subprocess.Popen[bytes]:
        argv, pipe = [sys.executable, "-c", program], subprocess.PIPE
        started.append(subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL))
        return started[-1]

    monkeypatch.setattr(process, "start", start)
    monkeypatch.setattr(process, "MAX_ANSWER", 1000 if "2000" in program else 1 << 20)
    if "sleep" in program:
        monkeypatch.setattr(process, "ANSWER_S", 0.1)
    with pytest.raises(UncheckedError, match=why):
        Apart(Checkers()).load(dump(NodeNetwork.model_validate(HEAD)), "x.yaml")
    assert [p.poll() is not None for p in started] == [True], "it is left behind"


def test_a_process_that_was_started_early_is_the_one_that_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkers, started = Checkers(), []
    real = process.start
    monkeypatch.setattr(process, "start", lambda m: started.append(real(m)) or started[-1])
    checkers.start()
    checkers.start()
    assert len(started) == 1
    with pytest.raises(DocumentError):
        Apart(checkers).load("a: 1", "x.yaml")
    assert len(started) == 1
    assert started[0].poll() == 0
