"""A document in a Kubernetes manifest: found, or refused by name; errors stand at their place."""

from __future__ import annotations

import json
from textwrap import indent
from typing import Any

import pytest
import yaml

from schemas.load import load
from schemas.manifest import find_document
from schemas.problem import DocumentError

DOCUMENT = """\
apiVersion: node-network/v1alpha1
kind: NodeNetwork

snat:
  mode: external
"""

WRONG = DOCUMENT.replace("external", "no")


def config_map(document: str, name: str = "node-network", key: str = "node-network.yaml") -> str:
    head = f"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\ndata:\n  {key}: |\n"
    return head + indent(document, "    ", lambda line: bool(line.strip()))


def body(**data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": data}


def listed(*items: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "List", "items": list(items)}


SERVICE = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}}


@pytest.mark.parametrize(
    "text",
    [
        DOCUMENT,
        config_map(DOCUMENT),
        f"---\n{yaml.safe_dump(SERVICE)}---\n{config_map(DOCUMENT)}---\n",
        json.dumps(body(document=DOCUMENT)),
        yaml.safe_dump(body(document=DOCUMENT)),
        json.dumps(listed(SERVICE, body(document=DOCUMENT), body(other="a: 1"))),
    ],
    ids=["bare", "literal", "among others", "json", "quoted", "a list"],
)
def test_a_document_is_found_wherever_it_stands(text: str) -> None:
    found = find_document(text, "f")
    assert found.text == DOCUMENT
    assert load(found.text, found.source).snat.mode == "external"


@pytest.mark.parametrize("before", ["", "---\n" + yaml.safe_dump(SERVICE) + "---\n"])
def test_an_error_is_told_at_its_line_and_column_in_the_manifest(before: str) -> None:
    text = before + config_map("\n" + WRONG)
    found = find_document(text, "f")
    with pytest.raises(DocumentError) as refused:
        load(found.text, found.source)
    (problem,) = found.placed(refused.value).problems
    line = text.splitlines()[problem.line - 1]
    assert line[problem.column - 1 :] == "no"
    assert problem.source == "f"


def test_an_error_in_a_quoted_value_is_told_by_the_key_and_the_lines_of_its_text() -> None:
    found = find_document(json.dumps(body(document=WRONG)), "f")
    with pytest.raises(DocumentError, match=r"^f \(data\.document\):5:9: snat\.mode: "):
        load(found.text, found.source)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            json.dumps(body(a=DOCUMENT, b=DOCUMENT)),
            "which of these is the document is not known: data.a, data.b; give the text of one",
        ),
        (json.dumps(listed(body(a=DOCUMENT), body(a=DOCUMENT))), "ConfigMap m: data.a"),
        (json.dumps(listed(SERVICE)), "a manifest without a ConfigMap, of 1 objects"),
        (json.dumps(body()), "no key of data is a document, in ConfigMap m"),
        (json.dumps(body() | {"data": None}), "no key of data is a document"),
        (json.dumps(listed(body(a="1"), body(b="2"))), "no key of data is a document"),
    ],
    ids=["two keys", "two maps", "no map", "no key", "no data", "no document"],
)
def test_what_is_meant_is_never_guessed(text: str, said: str) -> None:
    with pytest.raises(DocumentError) as refused:
        find_document(text, "f")
    (problem,) = refused.value.problems
    assert said in str(problem)


@pytest.mark.parametrize(
    "text",
    ["kind: ConfigMap\n  x: [", "kind: List\n---\n: : :\n", "# kind: ConfigMap\n" + DOCUMENT],
)
def test_what_is_no_manifest_is_left_to_the_documents_reader(text: str) -> None:
    assert find_document(text, "f").text == text
