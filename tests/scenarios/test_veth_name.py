"""Host veths that are called after their pods: Calico knows them by name before they exist."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import rulesets
from waiting import until

from lab import netns, pod
from lab.pod import PodError
from lab.traffic import Receiver, probe

pytestmark = pytest.mark.lab

VPC_HOST = "10.0.9.10"


def calico_name(name: str) -> str:
    return "nn" + hashlib.sha1(f"default.{name}".encode()).hexdigest()[:11]


@pytest.fixture(scope="module")
def scale_fixture(make_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with make_cluster(tmp_path_factory.mktemp("veth")) as cluster:
        config: Path = cluster.config
        config.write_text(config.read_text() + "pods: {vethName: pod}\n")
        cluster.start()
        yield cluster


def test_calicos_policies_hold_for_pods_it_knew_by_name_before_they_started(
    scale_fixture: Any,
) -> None:
    """Felix writes its rules from the API server's word; an unknown link is dropped."""
    node = scale_fixture.lab.names.namespace("node1")
    with (
        rulesets.loaded(node, rulesets.calico("nn", [calico_name("known")])),
        Receiver(scale_fixture.lab.names.namespace("vpchost")),
    ):
        seen = {}
        for name in ("known", "unknown"):
            one = pod.add(scale_fixture.lab, "node1", name)
            seen[name] = probe(one.namespace, VPC_HOST).source
            expected = {"known": one.address, "unknown": ""}[name]
            assert seen[name] == expected
            veths = {a["pod"]: a["veth"] for a in scale_fixture.status()["attachments"]}
            assert veths[f"default/{name}"] == calico_name(name)
            scale_fixture.delete(one)


def test_a_new_sandbox_of_a_pod_waits_for_the_old_ones_end(scale_fixture: Any) -> None:
    old = pod.add(scale_fixture.lab, "node1", "first", pod_name="web-0")
    namespace = scale_fixture.lab.names.namespace("pod-second")
    with ThreadPoolExecutor(1) as background:
        answer = background.submit(pod.add, scale_fixture.lab, "node1", "second", pod_name="web-0")
        until(lambda: refused(scale_fixture), "the refusal")
        assert not answer.done()
        scale_fixture.delete(old)
        new = answer.result()
    veths = {a["pod"]: a["veth"] for a in scale_fixture.status()["attachments"]}
    assert veths == {"default/web-0": calico_name("web-0")}
    with Receiver(scale_fixture.lab.names.namespace("vpchost")):
        assert probe(namespace, VPC_HOST).source == new.address
    until(lambda: not refused(scale_fixture), "that nothing is refused any more")
    scale_fixture.delete(new)


def test_it_fails_with_the_reason_when_the_old_one_does_not_end(scale_fixture: Any) -> None:
    old = pod.add(scale_fixture.lab, "node1", "stays", pod_name="web-1")
    with pytest.raises(PodError) as caught:
        pod.add(scale_fixture.lab, "node1", "waits", pod_name="web-1", budget_s=1)
    assert "VethNameTaken" in str(caught.value)
    assert f"link {calico_name('web-1')}" in str(caught.value)
    scale_fixture.delete(old)
    assert not netns.path(scale_fixture.lab.names.namespace("pod-waits")).exists()


def refused(scale_fixture: Any) -> bool:
    return "VethNameTaken" in {c["reason"] for c in scale_fixture.status()["conditions"]}
