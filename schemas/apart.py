"""Checking documents in a process of its own, which lives as long as a document is read.

What checks, pydantic and PyYAML, is a quarter of a daemon's memory, and is needed when the
document changes. ``python -m schemas.apart`` is the process: it answers the one question on its
standard input, both JSON, and ends. Only it knows YAML; the daemon gets the document as
``schemas.wire`` writes it, or what is wrong with it.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from schemas import wire
from schemas.document import NodeNetwork
from schemas.override import find_applying, matches
from schemas.problem import DocumentError, Problem, UncheckedError
from schemas.process import Checkers
from schemas.settings import Setting, list_settings

T = TypeVar("T")

MAX_DATA = 192 << 20
"""Bytes of memory that the process may take for its data (``RLIMIT_DATA``), which it shares a
cgroup with the daemon for. The largest document takes a third."""


class Documents(Protocol):
    """What checks documents: ``schemas.load.load`` and ``schemas.check.resolve``.

    ``describe`` lists what a valid document sets, and what of it is in force on a node.
    """

    def load(self, text: str, source: str) -> NodeNetwork: ...
    def describe(self, text: str, node: Mapping[str, str]) -> tuple[Setting, ...]: ...
    def resolve(
        self, document: NodeNetwork, *, instance_type: str, zone: str, node_name: str
    ) -> NodeNetwork: ...


class Here:
    """Checks documents in this process."""

    def load(self, text: str, source: str) -> NodeNetwork:
        """Parse and validate a document."""
        from schemas.load import load

        return load(text, source)

    def resolve(
        self, document: NodeNetwork, *, instance_type: str, zone: str, node_name: str
    ) -> NodeNetwork:
        """Apply the overrides that match a node."""
        from schemas.check import resolve

        return resolve(document, instance_type=instance_type, zone=zone, node_name=node_name)

    def describe(self, text: str, node: Mapping[str, str]) -> tuple[Setting, ...]:
        """List what a document sets; ``node`` is what ``resolve`` is told of it."""
        from schemas.check import merge
        from schemas.load import load, read_tree

        document = load(text, "")
        tree, places = read_tree(text, "")
        applying = [n for n, o in enumerate(document.overrides) if matches(o.match, **node)]
        final = tree
        for position in applying:
            final = merge(final, tree["overrides"][position]["set"])
        return tuple(list_settings(tree, places, applying, final))


class Apart:
    """Has documents checked by other processes, one for each question.

    It raises an ``UncheckedError`` if one does not answer.
    """

    def __init__(self, checkers: Checkers) -> None:
        self._checkers = checkers

    def load(self, text: str, source: str) -> NodeNetwork:
        """Parse and validate a document."""
        return self._ask_document(source, {"text": text, "source": source})

    def resolve(
        self, document: NodeNetwork, *, instance_type: str, zone: str, node_name: str
    ) -> NodeNetwork:
        """Apply the overrides that match a node; if none does, no process is asked."""
        node = {"instance_type": instance_type, "zone": zone, "node_name": node_name}
        if not find_applying(document, **node):
            return document.model_copy(update={"overrides": ()})
        return self._ask_document("overrides", {"document": wire.encode(document), "node": node})

    def describe(self, text: str, node: Mapping[str, str]) -> tuple[Setting, ...]:
        """List what a document sets; ``node`` is what ``resolve`` is told of it."""

        def decode(answer: Mapping[str, Any]) -> tuple[Setting, ...]:
            return tuple(Setting(*told) for told in answer["settings"])

        return self._ask("settings", {"text": text, "describe": node}, decode)

    def _ask_document(self, source: str, question: Mapping[str, Any]) -> NodeNetwork:
        return self._ask(source, question, lambda a: wire.decode_document(a["document"]))

    def _ask(
        self, source: str, question: Mapping[str, Any], decode: Callable[[Mapping[str, Any]], T]
    ) -> T:
        try:
            answer = json.loads(self._checkers.ask(json.dumps(question).encode()))
            if "problems" in answer:
                raise DocumentError([Problem(*told) for told in answer["problems"]])
            return decode(answer)
        except OSError as error:
            why = f"the process that checks it failed: {error}"
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            why = f"the process that checks it gave no answer: {type(error).__name__}: {error}"
        raise UncheckedError([Problem(source, 0, 0, "", f"not checked, {why}; it is tried again")])


# -- the other process ------------------------------------------------------------------------


def _be_the_first_to_go() -> None:
    """Take no memory that the daemon needs, which is in the same cgroup (proc(5))."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    with suppress(OSError, ValueError):  # a lower limit that is set already stays
        resource.setrlimit(resource.RLIMIT_DATA, (MAX_DATA, hard))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def answer(question: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document or the settings that are asked for, or what is wrong with them."""
    here = Here()
    try:
        if "describe" in question:
            return {"settings": here.describe(question["text"], question["describe"])}
        if "node" in question:
            document = wire.decode_document(question["document"])
            return {"document": wire.encode(here.resolve(document, **question["node"]))}
        return {"document": wire.encode(here.load(question["text"], question["source"]))}
    except DocumentError as error:
        told = [[p.source, p.line, p.column, p.path, p.message] for p in error.problems]
        return {"problems": told}


def main() -> None:
    """Answer one question; without any, whoever asks has ended."""
    _be_the_first_to_go()
    Here().load("apiVersion: node-network/v1alpha1\nkind: NodeNetwork\n", "")  # imports it all
    if question := sys.stdin.buffer.read():
        sys.stdout.write(json.dumps(answer(json.loads(question))))


if __name__ == "__main__":
    main()
