"""The loop that tells the cluster: what it tells of a whole daemon; nothing waits for it."""

from __future__ import annotations

import gc
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import intent
from cluster.api_server import InMemory, Objects, certify, read_request, serving
from daemon.test_surprise import DOCUMENT, House
from daemon.test_surprise_threads import is_served
from waiting import until

from reconciler.cluster.api import ApiServer
from reconciler.daemon import cluster, requests, schedule
from reconciler.daemon.agent import Agent
from reconciler.daemon.server import Question, answer
from reconciler.errors import ClusterError, Issue
from schemas.load import load

KEY = "node-network/agent-not-ready"
REPORT = f"kubernetes: {{report: true, startupTaint: {KEY}}}\n"


class Told:
    """A node whose cluster is told, without threads; ``wait`` lets time pass."""

    def __init__(self, directory: Path, document: str = REPORT) -> None:
        self.objects = Objects()
        self.objects.node["spec"]["taints"] = [{"key": KEY, "effect": "NoSchedule"}]
        self.api = InMemory(self.objects)
        self.house = House(directory)
        self.house._path.write_text(DOCUMENT + document)
        self.house.start(api=self.api, node_name="node-1")

    @property
    def agent(self) -> Agent:
        return self.house.agent

    def turn(self) -> None:
        reporter = self.agent.reporter
        reporter._take_settings()
        reporter.tell(reporter.refusals.take())

    def wait(self, seconds: int, each: Callable[[], None] = lambda: None) -> None:
        """Take a turn in each of these seconds."""
        for _ in range(seconds):
            self.house.now += 1.0
            each()
            self.turn()

    def conditions(self) -> dict[str, str]:
        """Return what is wrong with the telling: reason and text."""
        told = [i for domain, i in self.agent.parts.conditions.issues() if domain == "cluster"]
        return {issue.reason: issue.message for issue in told}

    def count(self, method: str, part: str = "") -> int:
        return sum(m == method and part in path for m, path, _ in self.objects.asked)


@pytest.fixture
def told(tmp_path: Path) -> Told:
    return Told(tmp_path)


def test_the_node_is_unknown_and_tainted_until_pods_can_be_served(told: Told) -> None:
    told.turn()
    assert told.objects.condition["status"] == "Unknown"
    told.wait(10)
    assert told.objects.node["spec"]["taints"] != []
    told.house.work()
    told.turn()
    assert told.objects.condition["status"] == "True"
    assert "addresses in use" in told.objects.condition["message"]
    assert told.objects.node["spec"]["taints"] == []
    assert told.conditions() == {}


def test_a_node_that_is_well_is_asked_and_told_once_in_five_minutes(told: Told) -> None:
    told.house.work()
    told.turn()
    told.wait(1000)
    assert told.count("PATCH", "status") == told.count("GET") == 4
    assert (
        told.objects.condition["lastTransitionTime"] != told.objects.condition["lastHeartbeatTime"]
    )


def test_pods_that_ask_again_and_again_in_vain_make_it_false(told: Told) -> None:
    """Between two ADDs of a pod, some ten seconds apart, none waits."""
    told.house.work()
    kernel = told.agent.kernel
    served = kernel.progress
    assert served.latest is not None
    records = served.latest.records
    asked = replace(records, intents=(*records.intents, intent(77)))
    asks = replace(served, latest=replace(served.latest, records=asked))
    for second in range(60):
        kernel.progress = asks if second % 15 < 5 else served
        told.wait(1)
    assert told.objects.condition["status"] == "False"
    kernel.progress = served
    told.wait(40)
    assert told.objects.condition["status"] == "True"


def test_a_taint_that_is_another_now_is_looked_at_again(told: Told) -> None:
    told.turn()
    told.house.work()
    other = {"key": "other", "effect": "NoSchedule"}
    told.objects.node["spec"]["taints"].insert(0, other)
    told.turn()
    assert told.objects.node["spec"]["taints"] == [other]


def test_a_right_that_is_missing_is_one_condition_and_the_others_are_used(told: Told) -> None:
    told.objects.denied = {"patch nodes/status", "create events"}
    told.house.work()
    told.agent.parts.conditions.note("eni", [Issue("assign", "Denied", "EC2 denies it")])
    told.wait(600)
    assert told.objects.node["spec"]["taints"] == []
    assert told.objects.condition == {}
    (text,) = told.conditions().values()
    assert "patch nodes/status" in text
    assert "create events" in text
    assert told.count("PATCH", "status") < 20
    assert told.count("GET") < 30
    told.objects.denied = set()
    told.wait(301)
    assert told.objects.condition["reason"] == "Denied"
    assert [e["reason"] for e in told.objects.events].count("Denied") == 1
    assert told.conditions() == {}


def test_an_api_server_that_is_away_is_asked_less_and_less_often(told: Told) -> None:
    why = ClusterError("reading the Node", "refused", reason="ClusterUnreachable")
    told.api.fails = why
    told.house.work()
    told.wait(3600)
    assert len(told.objects.asked) < 40
    assert told.conditions() == {"ClusterUnreachable": str(why)}
    told.api.fails = None
    told.wait(300)
    assert told.objects.condition["status"] == "True"
    assert told.conditions() == {}


def test_where_one_call_is_not_answered_no_other_is_made_in_that_turn(told: Told) -> None:
    """Each might take its five seconds."""
    told.house.work()
    told.turn()
    for number in range(3):
        told.agent.reporter.refusals.note(f"default/p{number}", "u", Issue("x", "No", "none"))
    before = len(told.objects.asked)
    told.api.fails = ClusterError("any", "timed out", reason="ClusterUnreachable")
    told.house.now += 400.0  # a heartbeat is due, too
    told.turn()
    assert len(told.objects.asked) - before == 1


@pytest.mark.parametrize(
    "lie",
    [{}, {"metadata": 1}, {"metadata": {"uid": "u"}, "spec": {}, "status": {}}],
    ids=["nothing", "no Node", "another"],
)
def test_an_api_server_that_lies_is_not_asked_without_end(told: Told, lie: Any) -> None:
    told.api.false_answer = json.dumps(lie).encode()
    told.house.work()
    told.wait(3600)
    assert len(told.objects.asked) < 80
    assert list(told.conditions()) == ["ClusterAnswerUnreadable"]


def test_a_pod_whose_add_is_refused_hears_why_and_a_thousand_times_is_few_events(
    told: Told,
) -> None:
    told.house.work()
    key = intent(77).key
    asked = {"do": "add", "containerID": key.container_id, "ifname": key.ifname}
    asked |= {"pod": "default/hostile", "uid": "u-9", "budgetSeconds": 0.000001}
    refused: list[dict[str, Any]] = []
    question = Question.parse(json.dumps(asked).encode())
    told.wait(1000, lambda: refused.append(answer(told.agent, question)))
    assert not any(reply["ok"] for reply in refused)
    events = [e for e in told.objects.events if e["involvedObject"]["kind"] == "Pod"]
    assert 1 < len(events) < 5
    assert {e["reason"] for e in events} == {"NotSettled"}
    assert events[0]["involvedObject"]["uid"] == "u-9"
    assert events[0]["metadata"]["namespace"] == "default"
    assert "300 times since" in events[1]["message"]


def test_a_kubelet_that_takes_more_pods_than_can_be_served_is_a_condition(told: Told) -> None:
    """Three ENIs with nine pods each, and two on the host's network: 29, as EKS has it."""

    def beyond() -> list[str]:
        issues = told.agent.parts.conditions.issues()
        return [i.message for _, i in issues if i.reason == "KubeletMaxPodsTooHigh"]

    told.house.work()
    for pods, is_beyond in (("29", False), ("30", True), ("110", True), ("many", False)):
        told.objects.node["status"]["capacity"] = {"pods": pods}
        told.wait(301)  # a heartbeat reads the Node
        assert bool(beyond()) == is_beyond, pods
        assert all(
            f"kubelet takes {pods} pods" in text and "serve 29" in text for text in beyond()
        )
    told.objects.node["status"]["capacity"] = {"pods": "110"}
    told.wait(401)
    assert "KubeletMaxPodsTooHigh" in {e["reason"] for e in told.objects.events}


def test_auto_bounds_the_pool_by_what_kubelet_says_of_itself(told: Told) -> None:
    known = told.agent.parts.node.known
    head = "apiVersion: node-network/v1alpha1\nkind: NodeNetwork\n"
    wanted = load(f"{head}maxPods: auto\nkubernetes: {{report: true}}\n", "test")
    told.house.work()
    assert known.resolve(wanted).most_pods is None
    for pods, bound in (("29", 29), ("many", 29), ("0", 29), ("58", 58)):
        told.objects.node["status"]["capacity"] = {"pods": pods}
        told.wait(301)
        assert known.resolve(wanted).most_pods == bound, pods


def test_without_the_documents_word_nothing_is_asked(tmp_path: Path) -> None:
    told = Told(tmp_path, "")
    told.house.work()
    told.agent.parts.stopping.set()  # a turn does not wait then
    told.agent.reporter.turn()
    assert told.objects.asked == []


def test_a_node_whose_name_is_not_known_says_so(tmp_path: Path) -> None:
    told = Told(tmp_path)
    told.house.start(api=told.api)
    told.turn()
    assert list(told.conditions()) == ["NodeNameUnknown"]
    assert told.objects.asked == []


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[House, list[str]]]:
    """A daemon in its threads, whose API server takes requests and never answers."""
    monkeypatch.setattr(schedule, "RETRY_S", 0.05)
    monkeypatch.setattr(requests, "POOL_PASS_S", 0.05)
    monkeypatch.setattr(cluster, "LOOK_S", 0.05)
    account, ended, asked = tmp_path / "account", threading.Event(), []
    certify(account)

    def behave(connection: Any) -> None:
        asked.append(read_request(connection)[1])
        ended.wait()

    house = House(tmp_path)
    house._path.write_text(DOCUMENT + REPORT)
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    with serving(account, behave) as port:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(port))
        house.start(api=ApiServer(account, call_s=30.0), node_name="node-1")
        thread = threading.Thread(target=house.agent.run, name="kernel loop")
        thread.start()
        try:
            yield house, asked
        finally:
            began = time.monotonic()
            house.agent.stop()
            thread.join()
            took_s = time.monotonic() - began
            ended.set()
            sys.setswitchinterval(interval)
            gc.set_threshold(*thresholds)
            gc.unfreeze()
    assert took_s < 10  # the end waits for no API server


def test_pods_are_served_while_the_api_server_hangs(hanging: tuple[House, list[str]]) -> None:
    house, asked = hanging
    until(lambda: asked == ["/api/v1/nodes/node-1"], "a request that is not answered")
    for _ in range(5):
        assert is_served(house)
    assert house.agent.find_obstacle() is None
    assert len(asked) == 1  # it still waits
