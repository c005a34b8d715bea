"""What each verb does with what is recorded, and with what the reconciler says."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import executable
import pytest
from executable import REPLY, at_once_s, intents, run, say
from waiting import until

pytestmark = pytest.mark.usefixtures("form")

ANOTHER = "/proc/self/ns/ipc"
"""A namespace that lives, and is not that which ``run`` names."""

RESULT: dict[str, Any] = {key: value for key, value in REPLY.items() if key != "ok"}


def record(state: Path, container: str = "pod1", **fields: Any) -> Path:
    """An intent as an earlier ADD has left it."""
    (state / "intents").mkdir(exist_ok=True)
    body = {
        "state": "wanted",
        "version": 1,
        "containerID": container,
        "ifname": "eth0",
        "netns": "/proc/self/ns/uts",
        "netnsInode": Path("/proc/self/ns/uts").stat().st_ino,
        "podUID": "u-1",
        "network": "n",
        "attempt": "one",
    }
    path = state / "intents" / f"{container}:eth0.json"
    path.write_text(json.dumps(body | fields))
    return path


def test_a_del_of_an_older_sandbox_succeeds_and_frees_nothing(state: Path) -> None:
    path = record(state)
    before = path.read_text()
    assert run(state, "DEL", CNI_NETNS=ANOTHER) == (0, None)
    assert run(state, "DEL", CNI_NETNS="/run/netns/older") == (0, None)
    assert run(state, "DEL", CNI_ARGS="K8S_POD_UID=u-0") == (0, None)
    assert path.read_text() == before
    assert run(state, "DEL", CNI_NETNS="", CNI_ARGS="K8S_POD_UID=u-1") == (0, None)
    assert intents(state) == {path.name: "released"}


def test_a_release_says_of_which_sandbox_it_is(state: Path) -> None:
    path = record(state)
    run(state, "DEL", CNI_NETNS="")
    body = json.loads(path.read_text())
    assert (body["attempt"], body["netns"], body["podUID"]) == ("one", "/proc/self/ns/uts", "u-1")


def test_a_garbled_record_keeps_no_del_from_being_recorded(state: Path) -> None:
    path = record(state)
    for content in ("", "{", "[]", '{"state": "wanted", "netnsInode": "x"}'):
        path.write_text(content)
        assert run(state, "DEL", CNI_NETNS="") == (0, None)
        assert intents(state) == {path.name: "released"}


def test_an_add_in_place_of_a_sandbox_that_is_no_more_is_another_attempt(
    state: Path, serve: Any
) -> None:
    reconciler = serve(say(REPLY))
    path = record(state, netns="/run/netns/gone")
    assert run(state)[0] == 0
    body = json.loads(path.read_text())
    assert body["netns"] == "/proc/self/ns/uts"
    assert body["attempt"] != "one"
    assert reconciler.asked[0]["attempt"] == body["attempt"]


def test_an_add_after_one_that_was_killed_asks_for_the_same(state: Path, serve: Any) -> None:
    reconciler = serve(say(REPLY))
    path = record(state)
    before = path.read_text()
    assert run(state)[0] == 0
    assert path.read_text() == before
    assert reconciler.asked[0]["attempt"] == "one"


def test_an_add_beside_a_living_sandbox_is_refused_and_takes_nothing(
    state: Path, serve: Any
) -> None:
    reconciler = serve(say(REPLY))
    path = record(state)
    before = path.read_text()
    for environ in ({"CNI_NETNS": ANOTHER}, {"CNI_ARGS": "K8S_POD_UID=u-2"}):
        code, error = run(state, **environ)
        assert (code, error["code"]) == (1, 101)
    assert path.read_text() == before
    assert reconciler.asked == []


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (say({"ok": False, "code": 101, "msg": "AlreadyAttached: it has"}), 101),
        (lambda stream: None, 11),
    ],
    ids=["it was answered", "nobody says whether it was"],
)
def test_what_may_be_in_use_is_not_taken_back(
    state: Path, serve: Any, answer: Any, code: int
) -> None:
    serve(answer)
    path = record(state)
    assert run(state)[1]["code"] == code
    assert intents(state) == {path.name: "wanted"}


def test_what_was_never_answered_is_taken_back(state: Path, serve: Any) -> None:
    serve(say({"ok": False, "code": 11, "msg": "AddressesExhausted: none"}))
    path = record(state)
    assert run(state)[1]["code"] == 11
    assert intents(state) == {path.name: "released"}


def test_a_result_that_nobody_takes_is_taken_back(state: Path, serve: Any) -> None:
    """The runtime was killed while it waited: no DEL need ever come."""
    serve(say(REPLY))
    config = {"cniVersion": "1.0.0", "name": "n", "stateDir": str(state)}
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.Popen(
        executable.FORMS[executable.form],
        stdin=subprocess.PIPE,
        stdout=writing,
        cwd=Path(__file__).parents[2],
        env={
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": "pod1",
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": "/proc/self/ns/uts",
        },
    )
    os.close(writing)
    process.communicate(json.dumps(config).encode(), timeout=20)
    assert process.returncode == 1
    assert intents(state) == {"pod1:eth0.json": "released"}


def test_an_answer_that_comes_in_drops_costs_no_more_than_the_budget(
    state: Path, serve: Any
) -> None:
    def drip(stream: Any) -> None:
        for _ in range(100):
            stream.write(b" ")
            stream.flush()
            time.sleep(0.1)

    serve(drip)
    began = time.monotonic()
    assert run(state, stdin={"budgetSeconds": 0.1})[1]["code"] == 11
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "answer",
    [b"[" * 200_000 + b"\n", b'{"ok": true}\n', b'{"ok": true, "ips": 3, "interfaces": [3]}\n'],
    ids=["nested", "bare", "odd"],
)
def test_any_answer_leads_to_one_of_ours(state: Path, serve: Any, answer: bytes) -> None:
    serve(lambda stream: (stream.write(answer), stream.flush()))
    for verb in ("ADD", "CHECK", "STATUS"):
        code, told = run(state, verb, {"cniVersion": "1.1.0", "prevResult": {}})
        assert code == 0 or told["code"] in {11, 50, 104}


def test_a_plugin_that_is_run_inside_of_where_it_works_may_be(state: Path, serve: Any) -> None:
    serve(say(REPLY))
    assert run(state, CNI_NETNS="/proc/self/ns/net", CNI_NETNS_OVERRIDE="TRUE")[0] == 0


def test_what_is_no_namespace_is_refused(state: Path, serve: Any) -> None:
    serve(say(REPLY))
    code, error = run(state, CNI_NETNS="/etc/hostname")
    assert (code, error["code"]) == (1, 4)


def test_an_earlier_plugins_result_is_in_ours(state: Path, serve: Any) -> None:
    serve(say(REPLY))
    earlier = {"interfaces": [{"name": "lo", "sandbox": "x"}], "ips": [], "dns": {}}
    code, result = run(state, stdin={"prevResult": earlier})
    assert code == 0
    assert [link["name"] for link in result["interfaces"]] == ["lo", "eth0"]
    assert result["ips"][0]["interface"] == 2


# -- CHECK --------------------------------------------------------------------------------


def test_check_asks_and_prints_nothing_when_all_is_well(state: Path, serve: Any) -> None:
    reconciler = serve(say(REPLY))
    assert run(state, "CHECK", {"prevResult": RESULT}) == (0, None)
    assert reconciler.asked[0]["do"] == "check"


def test_check_names_what_differs_in_the_result(state: Path, serve: Any) -> None:
    serve(say(REPLY))
    code, error = run(state, "CHECK", {"prevResult": RESULT | {"routes": []}})
    assert (code, error["code"]) == (1, 104)
    assert error["details"] == "route 0.0.0.0/0: prevResult does not have it"


def test_check_without_a_reconciler_is_an_error(state: Path) -> None:
    assert run(state, "CHECK", {"prevResult": RESULT})[1]["code"] == 11


# -- GC -----------------------------------------------------------------------------------

VALID = "cni.dev/valid-attachments"


def collect(state: Path, valid: Any, **config: Any) -> tuple[int, Any]:
    return run(state, "GC", {"cniVersion": "1.1.0", VALID: valid} | config)


def test_gc_releases_what_is_not_listed_of_this_network_alone(state: Path) -> None:
    record(state, "kept")
    record(state, "gone")
    record(state, "foreign", network="other")
    record(state, "adopted", network="")
    (state / "intents" / "bad:eth0.json").write_text('{"state": "who knows"}')
    assert collect(state, [{"containerID": "kept", "ifname": "eth0"}]) == (0, None)
    assert intents(state) == {
        "kept:eth0.json": "wanted",
        "gone:eth0.json": "released",
        "foreign:eth0.json": "wanted",
        "adopted:eth0.json": "wanted",
        "bad:eth0.json": "who knows",
    }


@pytest.mark.parametrize("valid", [None, {}, [{"containerID": "kept"}], [1]])
def test_gc_without_a_list_releases_nothing(state: Path, valid: Any) -> None:
    record(state, "gone")
    code, error = collect(state, valid)
    assert (code, error["code"]) == (1, 7)
    assert intents(state) == {"gone:eth0.json": "wanted"}


def test_gc_spares_what_is_wanted_since_it_began(state: Path) -> None:
    path = record(state, "new")
    later = time.time() + 60
    os.utime(path, (later, later))
    assert collect(state, [])[0] == 0
    assert intents(state) == {"new:eth0.json": "wanted"}


def test_gc_goes_on_after_what_cannot_be_released(state: Path) -> None:
    """No file may grow to 100 bytes: only what has room for the word can be changed in place."""
    for container in ("a", "b", "c"):
        path = record(state, container)
        if container != "b":
            path.write_text(path.read_text().replace('"wanted"', '"wanted"  '))
    small = ["sh", "-c", "trap '' XFSZ; exec prlimit --fsize=100 \"$@\"", "sh"]
    config = {"cniVersion": "1.1.0", VALID: []}
    code, error = run(state, "GC", config, within=small)
    assert (code, error["code"]) == (1, 5)
    assert error["details"].startswith("b/eth0: ")
    assert intents(state) == {
        "a:eth0.json": "released",
        "b:eth0.json": "wanted",
        "c:eth0.json": "released",
    }


def test_gc_tells_the_reconciler_what_it_released(state: Path, serve: Any) -> None:
    reconciler = serve(say({"ok": True}))
    record(state, "gone")
    assert collect(state, [])[0] == 0
    until(lambda: reconciler.asked, "the hint, which nobody waits for")
    assert [q["containerID"] for q in reconciler.asked] == ["gone"]


# -- STATUS -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ({"ok": True}, None),
        ({"ok": False, "code": 50, "msg": "NotAvailable: no ENI"}, 50),
        ({"ok": False, "code": 51, "msg": "Limited: rules"}, 51),
    ],
)
def test_status_says_what_the_reconciler_says(
    state: Path, serve: Any, reply: dict[str, Any], code: int | None
) -> None:
    serve(say(reply))
    status, told = run(state, "STATUS", {"cniVersion": "1.1.0"})
    assert (status, told["code"] if told else None) == (int(code is not None), code)


def test_status_answers_at_once_when_nobody_does(state: Path, serve: Any) -> None:
    assert run(state, "STATUS", {"cniVersion": "1.1.0"})[1]["code"] == 50
    limit_s = at_once_s(state, 1.5)
    serve(lambda stream: time.sleep(3))
    began = time.monotonic()
    assert run(state, "STATUS", {"cniVersion": "1.1.0"})[1]["code"] == 50
    assert time.monotonic() - began < limit_s


def test_status_needs_no_container(state: Path, serve: Any) -> None:
    serve(say({"ok": True}))
    none = {"CNI_CONTAINERID": "", "CNI_IFNAME": "", "CNI_NETNS": ""}
    assert run(state, "STATUS", {"cniVersion": "1.1.0"}, **none) == (0, None)


def test_two_adds_of_one_container_leave_one_intent(state: Path, serve: Any) -> None:
    serve(say(REPLY))
    with ThreadPoolExecutor(2) as workers:
        codes = [done[0] for done in workers.map(lambda _: run(state), range(2))]
    assert codes == [0, 0]  # it is the reconciler that tells only one of them
    assert intents(state) == {"pod1:eth0.json": "wanted"}


def in_parallel(state: Path, config: dict[str, Any]) -> tuple[Any, list[Any]]:
    """Start an ADD; return it with the list that its outcome will be in."""
    outcome: list[Any] = []
    adding = threading.Thread(target=lambda: outcome.append(run(state, stdin=config)))
    adding.start()
    return adding, outcome


@pytest.mark.parametrize("expected", ["configured", "has run since the boot"])
def test_an_add_waits_for_a_reconciler_that_is_starting(
    state: Path, serve: Any, expected: str
) -> None:
    if expected == "has run since the boot":
        (state / "attachments").mkdir()
    config = {"startSeconds": 20} if expected == "configured" else {}
    adding, outcome = in_parallel(state, config)
    adding.join(0.5)
    assert adding.is_alive()
    assert intents(state) == {}, "recorded before there is a reconciler"
    asked = serve(say(REPLY)).asked
    adding.join(20)
    assert outcome[0][0] == 0
    assert 0 < asked[0]["budgetSeconds"] < 30, "what is left of the budget"


def test_an_add_waits_for_a_start_no_longer_than_its_budget(state: Path) -> None:
    code, error = run(state, stdin={"startSeconds": 100, "budgetSeconds": 0.5})
    assert (code, error["code"]) == (1, 11)
    assert "s for it to start" in error["details"]
    assert intents(state) == {}


@pytest.mark.parametrize(
    "end",
    [lambda stream: None, say({"ok": False, "code": 11, "reason": "ReconcilerEnding"})],
    ids=["killed", "told to end"],
)
def test_an_add_whose_reconciler_ends_asks_the_next_one_for_the_same_attempt(
    state: Path, serve: Any, end: Any
) -> None:
    replies = iter([end, say(REPLY)])
    one = serve(lambda stream: next(replies)(stream))
    assert run(state, stdin={"startSeconds": 20})[0] == 0
    first, second = one.asked
    assert first["attempt"] == second["attempt"] != ""
    assert second["budgetSeconds"] < first["budgetSeconds"]
    assert (first.get("again"), second.get("again")) == (None, True)
    assert list(intents(state).values()) == ["wanted"]


def test_an_add_does_not_say_of_anothers_attempt_that_its_answer_was_lost(
    state: Path, serve: Any
) -> None:
    replies = iter([lambda stream: None, say(REPLY)])
    one = serve(lambda stream: next(replies)(stream))
    record(state)
    assert run(state, stdin={"startSeconds": 20})[0] == 0
    assert ["again" in question for question in one.asked] == [False, False]


def test_a_reconciler_that_closes_every_connection_costs_no_more_than_the_budget(
    state: Path, serve: Any
) -> None:
    one = serve(lambda stream: None)
    assert run(state, stdin={"startSeconds": 20, "budgetSeconds": 1})[1]["code"] == 11
    asked = [question for question in one.asked if question["do"] == "add"]
    assert 2 <= len(asked) <= 11
    assert list(intents(state).values()) == ["released"]
