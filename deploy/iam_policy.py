"""Prints the IAM policy that a document needs: ``python deploy/iam_policy.py DOCUMENT``.

Every node needs ``iam-policy.json``, but for the action that only IPv6 needs. Of
``iam-policy-sources.json`` only the actions are added that the sources in snat's lists need, those
of pod groups and overrides too; ``iam-policy-prefixes.json`` if ENIs get prefixes; and
``iam-policy-take-over.json`` if the document takes nodes over.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from reconciler.diagnostics.rights import IPV6, RESERVATIONS, TAKE_OVER, needed
from schemas.document import NodeNetwork
from schemas.load import DocumentError, load, read

HERE = Path(__file__).parent


def policy(document: NodeNetwork) -> dict[str, Any]:
    """Return the policy for all nodes of a document."""
    wanted = {f"ec2:{action}" for action in needed(document)}
    made = _read("iam-policy.json")
    if f"ec2:{IPV6}" not in wanted:
        for statement in made["Statement"]:
            statement["Action"] = [a for a in statement["Action"] if a != f"ec2:{IPV6}"]
    for statement in _read("iam-policy-sources.json")["Statement"]:
        if actions := [a for a in statement["Action"] if a in wanted]:
            made["Statement"].append(statement | {"Action": actions})
    if f"ec2:{RESERVATIONS}" in wanted:
        made["Statement"] += _read("iam-policy-prefixes.json")["Statement"]
    if f"ec2:{TAKE_OVER}" in wanted:
        made["Statement"] += _read("iam-policy-take-over.json")["Statement"]
    return made


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / name).read_text())
    return found


def main() -> int:
    """Print it."""
    path = Path(sys.argv[1])
    try:
        document = load(read(path), str(path))
    except DocumentError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(json.dumps(policy(document), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
