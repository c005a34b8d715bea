"""The document in force: what a start goes by, and what the next one will find."""

from __future__ import annotations

import logging
from math import inf
from pathlib import Path
from typing import Any

import builders
import pytest
from fakes import FakeState

from reconciler.daemon import telemetry
from reconciler.daemon.document import InForce
from reconciler.daemon.duty import Conditions
from reconciler.daemon.triggers import Triggers
from reconciler.node.gathering import Known
from reconciler.targets.state.kept_document import KeptDocument
from schemas.apart import Here
from schemas.document import NodeNetwork
from schemas.load import DocumentError
from schemas.problem import Problem, UncheckedError

GOOD = "apiVersion: node-network/v1alpha1\nkind: NodeNetwork\n"
NEXT = GOOD + "snat: {mode: external}\n"
BAD = GOOD + "snat: 1\n"
SHORT = "1970-01-01T00:16:40+00:00"


class Node:
    """A node on which one process follows the other."""

    def __init__(self, root: Path) -> None:
        self.path = root / "node-network.yaml"
        self.kept = root / "var" / "document.json"
        self.now = 1000.4

    def boot(self, text: str) -> InForce:
        """Start with this in the file."""
        self.path.write_text(text)
        self.conditions = Conditions()
        kept = KeptDocument(self.kept.parent)
        self.made = InForce(self.path, kept, Triggers(), self.conditions, lambda: self.now)
        self.made.take_first()
        return self.made

    def edit(self, text: str) -> bool:
        """Edit the file; return whether that says something new."""
        self.path.write_text(text)
        self.made.reader.look_again()
        return self.made.take()

    def told(self) -> dict[str, str]:
        """Conditions, by their reason."""
        return {c["reason"]: c["text"] for c in self.conditions.all()}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def metric(name: str) -> Any:
    return telemetry.REGISTRY.get_sample_value(f"node_network_document_{name}")


def test_a_start_whose_document_is_refused_goes_by_the_last_good_one_and_says_so(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    assert node.boot(GOOD).accepted.generation == 1
    node.made.keep()
    node.now += 5000
    with caplog.at_level(logging.ERROR):
        accepted = node.boot(BAD).accepted
    assert accepted.document is not None
    assert (accepted.generation, accepted.accepted_at) == (1, SHORT)
    assert accepted.refused is not None
    assert "node-network.yaml:3:7: snat: " in accepted.refused
    text = node.told()["DocumentRefused"]
    assert text.startswith(f"{node.path}:3:7: snat: ")
    assert text.endswith(f"; the last good one stays in force: generation 1, accepted {SHORT}")
    assert "started by the last good document: the file is refused" in caplog.text
    assert (metric("generation"), metric("refused")) == (1, 1)
    node.made.keep()
    assert node.edit(NEXT)
    assert node.made.accepted.generation == 2
    assert node.made.accepted.refused is None
    assert node.told() == {}
    assert (metric("generation"), metric("refused")) == (2, 0)


def test_what_is_in_the_file_again_is_no_new_document(node: Node) -> None:
    node.boot(GOOD)
    node.made.keep()
    node.boot(BAD)
    assert not node.edit(GOOD)
    assert (node.made.accepted.generation, node.made.accepted.refused) == (1, None)
    assert node.told() == {}


def test_generations_go_on_across_starts(node: Node) -> None:
    node.boot(GOOD)
    node.made.keep()
    node.now += 5000
    assert node.boot(GOOD).accepted.generation == 1, "it is the same one"
    assert node.made.accepted.accepted_at == SHORT
    assert node.made.accepted.document is not None
    assert node.boot(NEXT).accepted.generation == 2
    node.made.keep()
    assert node.boot(BAD).accepted.generation == 2


def test_a_first_start_with_a_refused_document_says_what_is_wrong_with_it(node: Node) -> None:
    with pytest.raises(DocumentError) as refused:
        node.boot(BAD)
    assert [p.path for p in refused.value.problems] == ["snat"]


def test_if_the_kept_one_is_refused_too_both_reasons_are_told(node: Node) -> None:
    node.boot(GOOD)
    node.made.keep()
    node.kept.write_text(node.kept.read_text().replace("NodeNetwork", "Other"))
    with pytest.raises(DocumentError) as refused:
        node.boot(BAD)
    told = str(refused.value).splitlines()
    assert told[0].startswith(f"{node.path}:3:7: snat: ")
    assert told[1].startswith(f"the last good document, in {node.kept}:2:7: kind: ")


def test_if_the_kept_one_cannot_be_read_both_reasons_are_told(node: Node) -> None:
    node.boot(GOOD)
    node.made.keep()
    node.kept.chmod(0o666)
    with pytest.raises(DocumentError, match="mode 0666") as refused:
        node.boot(BAD)
    assert "snat" in str(refused.value)


def test_a_kept_one_that_cannot_be_used_is_a_condition_until_it_is_replaced(node: Node) -> None:
    node.boot(GOOD)
    node.made.keep()
    node.kept.write_text("{}")
    assert node.boot(NEXT).accepted.generation == 1
    assert "KeptDocumentIgnored" in node.told()
    node.made.keep()
    assert node.told() == {}
    assert node.boot(BAD).accepted.document is not None


def test_a_disk_that_keeps_nothing_is_a_condition_and_the_document_in_force(node: Node) -> None:
    node.kept.parent.touch()
    assert node.boot(GOOD).accepted.generation == 1
    node.made.keep()
    assert "cannot write" in node.told()["DocumentNotKept"]
    node.kept.parent.unlink()
    node.made.keep()
    assert node.told() == {}


def test_an_edit_asks_to_be_kept(node: Node) -> None:
    node.boot(GOOD)
    hints = node.made.reader.hints
    assert hints.wait(0) == {"keep"}
    node.edit(BAD)
    assert hints.wait(0) == set()
    node.edit(NEXT)
    assert hints.wait(0) == {"keep"}


def test_overrides_that_could_not_be_applied_are_no_passes_matter(tmp_path: Path) -> None:
    """What applies them may take a minute: no pass begins on a document before that is done."""

    class Slow(Here):
        answers = True

        def resolve(self, document: NodeNetwork, **node: str) -> NodeNetwork:
            if not self.answers:
                raise UncheckedError([Problem("overrides", 0, 0, "", "not checked")])
            return super().resolve(document, **node)

    documents, path = Slow(), tmp_path / "node-network.yaml"
    known, conditions = Known(FakeState(), documents), Conditions()
    known.identify(builders.node())
    made = InForce(
        path,
        KeptDocument(tmp_path),
        Triggers(),
        conditions,
        lambda: 0.0,
        documents,
        known.prepare,
    )
    path.write_text(GOOD)
    made.take_first()
    documents.answers = False
    path.write_text(f"{GOOD}overrides: [{{match: {{zone: '*'}}, set: {{maxPods: 7}}}}]\n")
    made.reader.look_again()
    assert not made.take()
    assert [c["reason"] for c in conditions.all()] == ["DocumentRefused"]
    assert known.resolve(made.current) == made.current
    documents.answers = True
    made.reader.clock = lambda: inf
    made.reader.look_again()
    assert made.take()
    documents.answers = False
    assert known.resolve(made.current).max_pods == 7


def test_a_text_as_long_as_a_document_is_told_in_part(node: Node) -> None:
    node.boot(GOOD)
    assert not node.edit(f"{GOOD}cluster: {'x' * 100_000}\n")
    assert len(node.told()["DocumentRefused"]) < 2000
