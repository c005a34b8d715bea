"""Whatever runtime, disk and reconciler do: an answer of ours, in time, and nothing elsewhere."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from executable import REPLY, Reconciler, json_values, run
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cni import intent, protocol
from cni.protocol import Call, CniError

CODES = {1, 2, 4, 5, 6, 7, 11, 50, 101, 104}
"""What can be told without a reconciler's word; 100, a bug of ours, is not among them."""

REFUSAL = 103
"""The code of the one refusal that reconcilers here pronounce."""

LONGEST_S = 8.0
"""Seconds: the longest wait for a reconciler that is there, twice, on a machine under load."""

NAME = "pod1:eth0.json"
VARIABLES = ("CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS")

PLACE = "/state-directory"
"""In what is drawn, for the path of the state directory; without one it would be the host's."""

TREASURE = "what is not ours"
VALID = "cni.dev/valid-attachments"
WANTED = {
    "state": "wanted",
    "containerID": "pod1",
    "ifname": "eth0",
    "netns": "/proc/self/ns/uts",
    "netnsInode": Path("/proc/self/ns/uts").stat().st_ino,
    "network": "n",
    "attempt": "one",
}

verbs = st.sampled_from(["ADD", "DEL", "CHECK", "GC", "STATUS"])

texts = st.binary(max_size=40).map(
    lambda b: b.replace(b"\0", b"").decode(errors="surrogateescape")
)
"""What can stand in an environment: any bytes but one."""

ENCODINGS = ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")


def altered(body: dict[str, Any]) -> st.SearchStrategy[Any]:
    """A JSON object with values of it replaced, or left out."""
    left_out = st.sets(st.sampled_from(sorted(body)), max_size=2)
    replaced = st.dictionaries(st.sampled_from(sorted(body)), json_values, max_size=2)
    return st.builds(
        lambda gone, new: {k: v for k, v in (body | new).items() if k not in gone},
        left_out,
        replaced,
    )


def written(bodies: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """As text of some encoding, whole or cut short; or no text at all."""
    texts = st.builds(
        lambda body, encoding: json.dumps(body, ensure_ascii=False).encode(encoding, "replace"),
        bodies,
        st.sampled_from(ENCODINGS),
    )
    return st.one_of(
        texts,
        st.builds(lambda text, end: text[: -end or None], texts, st.integers(0, 60)),
        st.binary(max_size=60),
        st.integers(1, 400).map(bytes),  # zeros: what a file may hold after a loss of power
        st.integers(100, 3000).map(lambda depth: b'{"a":' + b"[" * depth + b"]" * depth + b"}"),
    )


configs = written(
    altered(
        {"cniVersion": "1.1.0", "name": "n", "prevResult": {}, VALID: [], "budgetSeconds": 1}
    ).map(lambda config: config | {"stateDir": PLACE})
)


def put(content: bytes) -> Callable[[Path, Path], object]:
    return lambda path, _: path.write_bytes(content)


records: st.SearchStrategy[Callable[[Path, Path], object]] = st.one_of(
    written(altered(WANTED)).map(put),
    st.sampled_from(
        [
            lambda path, _: path.mkdir(),
            lambda path, _: os.mkfifo(path),
            lambda path, elsewhere: path.symlink_to(elsewhere),
            lambda path, _: path.symlink_to("/dev/zero"),
            lambda path, _: path.symlink_to(path),
        ]
    ),
)
"""What lies where the intent should."""

answers: st.SearchStrategy[bytes] = written(
    st.one_of(
        st.just(REPLY),
        altered(REPLY),
        altered({"ok": False, "code": REFUSAL, "msg": "m", "details": "d"}),
        json_values,
    )
)


def place(stdin: bytes, state: Path) -> bytes:
    """Put the state directory where its place is, in whatever encoding."""
    for encoding in ENCODINGS:
        stdin = stdin.replace(PLACE.encode(encoding), str(state).encode(encoding))
    return stdin


def look(directory: Path) -> dict[str, str]:
    """All files there are, and what is in those that are not ours."""
    files = (p for p in directory.rglob("*") if not p.is_dir() and p.parent.name != "intents")
    return {str(p): p.read_text() if p.is_file() else "" for p in files}


@pytest.mark.usefixtures("form")
@settings(max_examples=60)
@given(
    verb=verbs,
    stdin=st.none() | configs,
    environ=st.dictionaries(
        st.sampled_from([*VARIABLES, "TRACEPARENT", "TRACESTATE", "LC_ALL", "CNI_NETNS_OVERRIDE"]),
        texts,
        max_size=2,
    ),
    record=st.none() | records,
    answer=st.none() | answers,
    pieces=st.integers(1, 40),
)
@example("DEL", None, {}, put(bytes(300)), None, 1)
@example("GC", None, {}, put(bytes(300)), None, 1)
@example("ADD", None, {}, put(bytes(300)), json.dumps(REPLY).encode(), 1)
@example("ADD", None, {}, None, bytes(40), 1)
@example("ADD", None, {}, None, b'{"ok": true}', 1)
@example("CHECK", None, {}, None, b'{"ok": true, "interfaces": [{"name": "eth0"}]}', 1)
@example("ADD", None, {}, None, b'{"ok": false, "code": true}', 1)
@example("ADD", None, {}, None, b'{"ok": false, "code": 99999999999999999999}', 1)
@example("ADD", '{"cniVersion": "1.1.0"}'.encode("utf-16-le"), {}, None, None, 1)
@example("DEL", None, {"CNI_CONTAINERID": "../../elsewhere"}, None, None, 1)
@example("DEL", None, {"CNI_IFNAME": "/../../x"}, None, None, 1)
@example("DEL", None, {"CNI_NETNS": "/proc/self/ns/" + "x" * 5000}, None, None, 1)
def test_there_is_an_answer_in_time_and_nothing_is_written_elsewhere(
    verb: str,
    stdin: bytes | None,
    environ: dict[str, str],
    record: Callable[[Path, Path], object] | None,
    answer: bytes | None,
    pieces: int,
) -> None:
    with tempfile.TemporaryDirectory(prefix="nnt-") as directory:
        elsewhere, state = Path(directory) / "elsewhere", Path(directory) / "state"
        elsewhere.write_text(TREASURE)
        (state / "intents").mkdir(parents=True)
        if record:
            record(state / "intents" / NAME, elsewhere)

        def say(stream: Any) -> None:
            size = max(1, len(answer or b"") // pieces)
            for at in range(0, len(answer or b""), size):
                stream.write((answer or b"")[at : at + size])
                stream.flush()
            stream.write(b"\n")

        reconciler = Reconciler(state, say) if answer is not None else None
        try:
            before = look(Path(directory))
            config: Any = {"cniVersion": "1.1.0", "prevResult": {}, VALID: []}
            if stdin is not None:
                config = place(stdin, state)
            began = time.monotonic()
            code, told = run(state, verb, config, **environ)
            took = time.monotonic() - began
        finally:
            if reconciler:
                reconciler.close()
        assert took < LONGEST_S
        assert look(Path(directory)) == before
        assert not [p for p in (state / "intents").iterdir() if p.name.startswith(".")]
        judge(environ.get("CNI_COMMAND", verb), code, told, heard=bool(answer))


def judge(verb: str, code: int, told: Any, *, heard: bool) -> None:
    """Hold what was printed against the specification."""
    assert code in (0, 1)
    if code == 1:
        assert type(told["code"]) is int
        assert told["code"] in CODES or (heard and 0 < told["code"] <= protocol.MAX_CODE), told
        assert told["code"] != protocol.OUR_BUG, told
        assert isinstance(told["msg"], str)
        assert verb != "DEL" or "not found" not in json.dumps(told).lower()
    elif verb == "ADD":
        assert [ip["address"] for ip in told["ips"]], told
    elif verb != "VERSION":
        assert told is None


@settings(max_examples=300)
@given(
    environ=st.dictionaries(
        st.sampled_from(VARIABLES),
        verbs | texts | st.text(max_size=20),
    ),
    config=altered({"cniVersion": "1.1.0", "name": "n", "stateDir": "/s", VALID: []}),
)
def test_a_call_is_refused_with_a_code_or_taken(environ: Any, config: Any) -> None:
    with suppress(CniError):
        call = Call(environ, config)
        call.check()
        assert call.verb in protocol.SINCE
        json.dumps(intent.body_of(call, "wanted", 1, "a"))
        protocol.parse_valid_attachments(call.config.get(VALID))


@settings(max_examples=300)
@given(reply=altered(REPLY) | json_values, told=altered(REPLY) | json_values)
def test_what_is_taken_for_a_result_can_be_told_and_compared(reply: Any, told: Any) -> None:
    if isinstance(reply, dict) and protocol.is_result(reply):
        for version in protocol.VERSIONS:
            assert protocol.result(reply, version, told)["ips"]
        assert isinstance(protocol.find_difference(told, reply, "eth0"), str)


@pytest.mark.parametrize("key", ["interfaces", "ips", "routes"])
def test_what_lacks_a_part_is_no_result(key: str) -> None:
    assert protocol.is_result(REPLY)
    for part in (None, {}, [3], [{}]):
        assert not protocol.is_result(REPLY | {key: part})
    assert not protocol.is_result(REPLY | {"ips": []})
