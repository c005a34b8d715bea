"""IAM policies: what each call asks for, and whether statements allow it.

Evaluated as IAM does for what this project's policies use (IAM user guide, "Policy evaluation
logic" and "Condition operators"). A call is allowed if each resource that EC2 authorises for it is
(service authorization reference, "Actions, resources, and condition keys for Amazon EC2").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from lab.wire import EniView

Context = Mapping[str, str | Sequence[str]]
Statement = Mapping[str, Any]
Parameters = Mapping[str, Any]

ARN = "arn:aws:ec2:us-east-1:123456789012:"


@dataclass(frozen=True, slots=True)
class Ask:
    """One right that a call needs: an action on a resource, and the condition keys it has."""

    action: str
    resource: str = "*"
    context: Context = field(default_factory=dict)


def refused(
    statements: Iterable[Statement], action: str, call: Parameters, enis: Iterable[EniView]
) -> Ask | None:
    """Return the first right that a call lacks; None if it has all.

    Args:
        statements: of all policies.
        action: its name, as AssignPrivateIpAddresses.
        call: its parameters, as moto reads them.
        enis: all that there are; their tags and attachments are compared with conditions.
    """
    known = list(statements)
    found = (ask for ask in asks(action, call, enis) if not is_allowed(known, ask))
    return next(found, None)


def asks(action: str, call: Parameters, enis: Iterable[EniView]) -> Iterator[Ask]:
    """Yield the rights that a call needs. Describing something has no resources."""
    by_id = {e.eni_id: e for e in enis}
    match action:
        case "CreateNetworkInterface":
            tags = [t for s in call.get("TagSpecifications", ()) for t in s.get("Tags", ())]
            requested = _requested(tags)
            yield Ask(action, f"{ARN}network-interface/*", requested)
            yield Ask(action, f"{ARN}subnet/{call['SubnetId']}")
            yield from _groups(action, call)
            if tags:
                created = {**requested, "ec2:CreateAction": action}
                yield Ask("CreateTags", f"{ARN}network-interface/*", created)
        case "CreateTags" | "DeleteTags":
            tags = call.get("Tags", ())
            for name in call["Resources"]:
                yield _on(action, by_id, name, _requested(tags))
        case "DetachNetworkInterface":
            found = [e for e in by_id.values() if e.attachment_id == call["AttachmentId"]]
            for eni in found:
                yield _on(action, by_id, eni.eni_id)
                yield Ask(action, f"{ARN}instance/{eni.instance_id}")
        case _ if "NetworkInterfaceId" in call:
            yield _on(action, by_id, call["NetworkInterfaceId"])
            if "InstanceId" in call:
                yield Ask(action, f"{ARN}instance/{call['InstanceId']}")
            if "Attachment" in call and (named := by_id.get(call["NetworkInterfaceId"])):
                yield Ask(action, f"{ARN}instance/{named.instance_id}")
            yield from _groups(action, call)
        case _:
            yield Ask(action)


def _on(action: str, enis: Mapping[str, EniView], name: str, more: Context | None = None) -> Ask:
    eni = enis.get(name)
    tags = eni.tags if eni else ()
    context = {f"ec2:ResourceTag/{key}": value for key, value in tags}
    return Ask(action, f"{ARN}network-interface/{name}", {**context, **(more or {})})


def _groups(action: str, call: Parameters) -> Iterator[Ask]:
    for group in call.get("Groups", ()):
        yield Ask(action, f"{ARN}security-group/{group}")


def _requested(tags: Iterable[Mapping[str, str]]) -> dict[str, str | Sequence[str]]:
    """Return the condition keys of tags in a request; no ``aws:TagKeys`` if it names none."""
    pairs = [(t["Key"], t.get("Value", "")) for t in tags]
    requested: dict[str, str | Sequence[str]] = {
        f"aws:RequestTag/{key}": value for key, value in pairs
    }
    return {**requested, "aws:TagKeys": [k for k, _ in pairs]} if pairs else requested


# -- evaluation ---------------------------------------------------------------------------


def is_allowed(statements: Iterable[Statement], ask: Ask) -> bool:
    """Whether a statement allows it. Statements that deny are not known here."""
    return any(_allows(s, ask) for s in statements)


def _allows(statement: Statement, ask: Ask) -> bool:
    if statement["Effect"] != "Allow":
        raise ValueError(f"the effect {statement['Effect']!r} is not known here")
    return (
        any(fnmatchcase(f"ec2:{ask.action}", a) for a in listed(statement["Action"]))
        and any(fnmatchcase(ask.resource, r) for r in listed(statement["Resource"]))
        and all(
            _holds(operator, wanted, ask.context.get(key))
            for operator, conditions in statement.get("Condition", {}).items()
            for key, wanted in conditions.items()
        )
    )


def _holds(operator: str, wanted: str | Sequence[str], values: str | Sequence[str] | None) -> bool:
    match operator:
        case "StringEquals":
            return isinstance(values, str) and values in listed(wanted)
        case "StringLike":
            return isinstance(values, str) and any(fnmatchcase(values, w) for w in listed(wanted))
        case "ForAllValues:StringLike":  # true without a value
            each = listed(values or [])
            return all(any(fnmatchcase(v, w) for w in listed(wanted)) for v in each)
        case "Null":
            return (not values) == (wanted == "true")
        case _:
            raise ValueError(f"the operator {operator!r} is not known here")


def listed(value: str | Sequence[str]) -> list[str]:
    """Return what IAM's JSON may write as a list, or as one text."""
    return [value] if isinstance(value, str) else list(value)
