"""Asks EC2 whether this process may make calls. Nothing is changed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from reconciler.diagnostics.rights import FEW, Question
from reconciler.ipam import budget
from reconciler.ipam.budget import Failure
from reconciler.targets.ec2.caller import Ec2CallError
from reconciler.targets.ec2.calls import Calls
from reconciler.targets.values import MalformedError, inner

WOULD_DO = "DryRunOperation"
"""EC2's code for a call that it would have made (EC2 API reference, "Common query parameters")."""


@dataclass(frozen=True, slots=True)
class Right:
    """What EC2 says of one action: allowed, not allowed (False), or something else (None)."""

    action: str
    is_allowed: bool | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class MetadataOptions:
    """How this instance may ask the metadata service; None for what EC2 does not tell."""

    hop_limit: int | None
    tokens: str | None


class Rights:
    """Asks one question after the other, within the node's budget of calls."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def ask(self, questions: Iterable[Question]) -> Iterator[Right]:
        """Yield EC2's answer to each.

        What changes is asked for as a dry run only once EC2 has shown that it honours that.
        """
        honours = self._honours_dry_runs()
        for question in questions:
            if question.is_dry and honours:
                yield Right(question.action, None, honours)
            else:
                yield self._ask(question)

    def _honours_dry_runs(self) -> str:
        """Say why no change may be asked about; "" if it may."""
        try:
            self._calls("describe_subnets", MaxResults=FEW, DryRun=True)
        except Ec2CallError as error:
            if error.code == WOULD_DO or budget.classify(error.code) is Failure.DENIED:
                return ""
            return f"whether EC2 honours DryRun is not known: {error.code}: {error.message}"
        return "EC2 does not honour DryRun here, so it is not asked about changes"

    def _ask(self, question: Question) -> Right:
        more: dict[str, Any] = {"DryRun": True} if question.is_dry else {}
        try:
            self._calls(_method(question.action), **question.arguments, **more)
        except Ec2CallError as error:
            if error.code == WOULD_DO:
                return Right(question.action, True)
            is_denied = budget.classify(error.code) is Failure.DENIED
            why = f"{error.code}: {error.message}"
            return Right(question.action, False if is_denied else None, why)
        return Right(question.action, True)

    def metadata_options(self, instance_id: str) -> MetadataOptions | str:
        """Return how the instance may ask for its metadata, or why that is not known."""
        try:
            answer = self._calls("describe_instances", InstanceIds=[instance_id])
            reservations = answer.get("Reservations") or [{}]
            options = inner((reservations[0].get("Instances") or [{}])[0], "MetadataOptions")
        except Ec2CallError as error:
            return f"{error.code}: {error.message}"
        except (MalformedError, AttributeError, TypeError, LookupError):
            return "EC2's answer does not have it"
        hops, tokens = options.get("HttpPutResponseHopLimit"), options.get("HttpTokens")
        return MetadataOptions(
            hops if isinstance(hops, int) else None,
            tokens if tokens in ("required", "optional") else None,
        )


def _method(action: str) -> str:
    """Return the SDK's method of an action: DescribeSubnets is describe_subnets."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", action).lower()
