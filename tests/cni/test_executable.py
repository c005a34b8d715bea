"""The executable as a runtime runs it: a process, an environment, standard input and output."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from executable import REPLY, ROOT, intents, json_values, run, say
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import until

pytestmark = pytest.mark.usefixtures("form")


def test_add_records_the_intent_before_it_asks_and_prints_the_result(
    state: Path, serve: Any
) -> None:
    seen: list[dict[str, str]] = []

    def answer(stream: Any) -> None:
        seen.append(intents(state))
        say(REPLY)(stream)

    reconciler = serve(answer)
    code, result = run(state)
    assert code == 0
    assert seen == [{"pod1:eth0.json": "wanted"}]
    assert result["ips"] == [{"address": "10.0.1.9/32", "gateway": "169.254.1.1", "interface": 1}]
    recorded = json.loads((state / "intents/pod1:eth0.json").read_text())
    assert reconciler.asked == [
        {
            "do": "add",
            "containerID": "pod1",
            "ifname": "eth0",
            "budgetSeconds": 30.0,
            "netnsInode": recorded["netnsInode"],
            "attempt": recorded["attempt"],
            "pod": "",
            "trace": "",
        }
    ]


def test_del_hints_at_what_it_recorded(state: Path, serve: Any) -> None:
    reconciler = serve(say({"ok": True}))
    assert run(state, "DEL") == (0, None)
    assert until(lambda: reconciler.asked, "the hint")[0]["do"] == "del"


def test_a_configuration_that_does_not_fit_into_the_memory_is_answered(state: Path) -> None:
    """Its 2 MB are 200,000 objects, which take more than the runtime's limit allows."""
    objects = b'{"x":[' + b'{"a":{}},' * 200_000 + b"1]}"
    code, result = run(state, stdin=objects, within=("prlimit", f"--as={48 << 20}"))
    assert (code, result["code"]) == (1, 11)
    assert "not enough memory" in result["msg"]


def test_add_without_a_reconciler_says_try_again_at_once_and_leaves_nothing(state: Path) -> None:
    began = time.monotonic()
    code, error = run(state)
    assert (code, error["code"]) == (1, 11)
    assert time.monotonic() - began < 5
    assert intents(state) == {}


def test_add_with_a_socket_nobody_listens_on_says_the_same(state: Path) -> None:
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(state / "node-network.sock"))
    assert run(state)[1]["code"] == 11
    assert intents(state) == {}


def test_a_refusal_is_printed_as_it_was_said_and_the_intent_is_taken_back(
    state: Path, serve: Any
) -> None:
    serve(say({"ok": False, "code": 11, "msg": "AddressesExhausted: none", "details": "d"}))
    code, error = run(state)
    assert code == 1
    assert error == {
        "cniVersion": "1.0.0",
        "code": 11,
        "msg": "AddressesExhausted: none",
        "details": "d",
    }
    assert intents(state) == {"pod1:eth0.json": "released"}


@pytest.mark.parametrize(
    "answer",
    [
        lambda stream: None,
        lambda stream: (stream.write(b'{"ok": tr'), stream.flush()),
        lambda stream: (stream.write(b"nonsense\n"), stream.flush()),
        lambda stream: (stream.write(b"[]\n"), stream.flush()),
        lambda stream: (stream.write(b"{}\n"), stream.flush()),
    ],
    ids=["closed", "cut short", "nonsense", "no object", "empty"],
)
def test_an_answer_that_is_none_is_try_again_and_the_intent_is_taken_back(
    state: Path, serve: Any, answer: Any
) -> None:
    serve(answer)
    code, error = run(state)
    assert (code, error["code"]) == (1, 11)
    assert intents(state) == {"pod1:eth0.json": "released"}


def test_a_reconciler_that_hangs_costs_no_more_than_the_budget(state: Path, serve: Any) -> None:
    release = threading.Event()
    serve(lambda stream: release.wait(20) and None)
    began = time.monotonic()
    code, error = run(state, stdin={"budgetSeconds": 0.2})
    took = time.monotonic() - began
    release.set()
    assert (code, error["code"]) == (1, 11)
    assert took < 10
    assert intents(state) == {"pod1:eth0.json": "released"}


def test_del_without_a_reconciler_is_recorded_and_succeeds(state: Path) -> None:
    assert run(state, "DEL", CNI_NETNS="") == (0, None)
    assert intents(state) == {"pod1:eth0.json": "released"}


def test_del_succeeds_whatever_the_reconciler_says(state: Path, serve: Any) -> None:
    serve(say({"ok": False, "code": 11, "msg": "busy"}))
    assert run(state, "DEL", CNI_NETNS="/run/netns/gone") == (0, None)


def test_a_del_that_cannot_be_recorded_is_an_error_that_never_says_not_found(state: Path) -> None:
    """go-cni takes "not found" in a DEL's error for success."""
    (state / "intents").write_text("a file where the directory should be")
    code, error = run(state, "DEL")
    assert (code, error["code"]) == (1, 5)
    assert "not found" not in json.dumps(error).lower()


def test_a_limit_on_the_size_of_files_is_an_error_and_no_signal(state: Path) -> None:
    """Whoever exceeds it gets SIGXFSZ, which ends a process that does not ignore it."""
    code, error = run(state, "DEL", within=["prlimit", "--fsize=0"])
    assert (code, error["code"]) == (1, 5)
    assert "EFBIG" in error["details"]
    assert intents(state) == {}


def test_an_add_that_cannot_be_recorded_asks_for_nothing(state: Path, serve: Any) -> None:
    (state / "intents").write_text("")
    reconciler = serve(say(REPLY))
    assert run(state)[1]["code"] == 5
    assert reconciler.asked == []


def test_the_hosts_own_namespace_is_refused(state: Path, serve: Any) -> None:
    serve(say(REPLY))
    code, error = run(state, CNI_NETNS="/proc/self/ns/net")
    assert (code, error["code"]) == (1, 4)
    assert intents(state) == {}


def test_a_namespace_that_is_gone_is_refused(state: Path, serve: Any) -> None:
    serve(say(REPLY))
    assert run(state, CNI_NETNS="/run/netns/nnt-gone")[1]["code"] == 4
    assert intents(state) == {}


@pytest.mark.parametrize("stdin", ["", "{", "[]", "3", b"\xff\xfe", "[" * 100_000])
def test_standard_input_that_is_no_object_has_code_6(state: Path, stdin: Any) -> None:
    code, error = run(state, stdin=stdin)
    assert (code, error["code"]) == (1, 6)


def test_version_needs_nothing_else() -> None:
    code, answer = run(Path("/nonexistent"), "VERSION", stdin='{"cniVersion": "1.1.0"}')
    assert code == 0
    assert answer["supportedVersions"] == ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]


@pytest.mark.parametrize("stdin", ["", "{", "[]", "3", b"\xff\xfe"])
def test_version_is_answered_whatever_is_on_standard_input(stdin: Any) -> None:
    """As the reference plugins answer it: people ask by ``CNI_COMMAND=VERSION ... </dev/null``."""
    code, answer = run(Path("/nonexistent"), "VERSION", stdin=stdin)
    assert code == 0
    assert answer == {
        "cniVersion": "1.1.0",
        "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    }


def test_an_interface_that_every_namespace_has_is_refused_at_once_and_given_back_by_del(
    state: Path,
) -> None:
    code, error = run(state, CNI_IFNAME="lo")
    assert (code, error["code"]) == (1, 102)
    assert intents(state) == {}
    assert run(state, "DEL", CNI_IFNAME="lo")[0] == 0


def test_what_is_imported_fits_the_budget() -> None:
    """Each of these costs more than the executable's own work."""
    program = "import sys; import cni.__main__; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = set(done.stdout.split())
    dear = {"asyncio", "dataclasses", "logging", "pathlib", "subprocess", "typing", "reconciler"}
    assert not loaded & (dear | {"json", "re"})


@settings(max_examples=30)
@given(
    verb=st.sampled_from(["ADD", "DEL", "VERSION", "CHECK", "GC", "STATUS", "", "add"]),
    container=st.text(st.characters(min_codepoint=1, codec="utf-8"), max_size=40),
    ifname=st.text(st.characters(min_codepoint=1, codec="utf-8"), max_size=20),
    config=st.dictionaries(
        st.sampled_from(
            [
                "cniVersion",
                "name",
                "budgetSeconds",
                "prevResult",
                "runtimeConfig",
                "logFile",
                "logLevel",
                "cni.dev/valid-attachments",
            ]
        ),
        json_values,
    ),
)
def test_whatever_it_is_given_it_prints_json_or_nothing_and_writes_nowhere_else(
    verb: str, container: str, ifname: str, config: Any
) -> None:
    with tempfile.TemporaryDirectory(prefix="nnt-") as directory:
        state = Path(directory) / "state"
        stdin = {"cniVersion": "1.0.0", "name": "n"} | config | {"stateDir": str(state)}
        code, answer = run(
            state, verb, json.dumps(stdin), CNI_CONTAINERID=container, CNI_IFNAME=ifname
        )
        assert code in (0, 1)
        if code == 1:
            assert answer["code"] in {1, 2, 4, 5, 6, 7, 11, 50}
        inside = {p.parent for p in Path(directory).rglob("*") if p.is_file()}
        assert inside <= {state / "intents"}


def test_the_entry_point_is_the_same_program() -> None:
    program = Path(sys.executable).with_name("node-network-cni")
    done = subprocess.run(
        [program],
        input="{}",
        env={"CNI_COMMAND": "VERSION", "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "supportedVersions" in json.loads(done.stdout)
