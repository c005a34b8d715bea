"""EC2 calls: within the node's budget, counted, lists page by page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from reconciler.ipam import budget
from reconciler.ipam.budget import Bucket
from reconciler.targets.ec2.caller import ANSWER_LOST, Caller, Ec2CallError
from reconciler.targets.ec2.tally import HELD_BACK, OK, Tally
from reconciler.targets.values import MalformedError, Object, entries, like

PAGE_SIZE = 100
"""Items per page: unpaginated DescribeNetworkInterfaces is blocked in a large AWS account
(amazon-vpc-resource-controller-k8s #188)."""

MAX_VALUES = 200
"""Values of one filter (EC2 API reference, "List and filter resources": at most 200)."""

TOKEN = like(r"[ -~]{1,8192}")
"""A page's token: EC2 calls it opaque, and it is printable."""

Filters = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class CallFailure:
    """What failed: an EC2 action, or one kind of it in one subnet, and EC2's code and words."""

    scope: str
    code: str
    message: str


class TooLongError(Ec2CallError):
    """A list that does not end, or has more than may be."""


class Calls:
    """Makes calls, and notes which failed and which succeeded; ``made`` counts them by action.

    ``tally`` takes note of each, and may be shared with calls of other actions.
    """

    def __init__(
        self, caller: Caller, clock: Callable[[], float], tally: Tally | None = None
    ) -> None:
        self.made: Counter[str] = Counter()
        self._tally = tally or Tally()
        self._caller = caller
        self._clock = clock
        self._failures: list[CallFailure] = []
        self._successes: list[str] = []
        self._buckets: dict[str, Bucket] = {}

    def __call__(self, method: str, **arguments: Any) -> Object:
        """Make one call; an Ec2CallError says that there is no answer, or no budget for it."""
        action = operation(method)
        began = self._clock()
        bucket, granted = budget.take(self._buckets.get(action), action, began)
        self._buckets[action] = bucket
        if not granted:
            self._tally.note(action, HELD_BACK, bucket)
            why = f"this node's budget of {action} calls is used up"
            raise Ec2CallError(action, "BudgetExhausted", why, refused=True)
        self.made[action] += 1
        outcome: str = budget.Failure.OTHER
        try:
            answer = self._caller(action, method, arguments)
            if not isinstance(answer, Mapping):
                raise Ec2CallError(action, ANSWER_LOST, "its answer is no object")
            outcome = OK
        except Ec2CallError as error:
            outcome = budget.classify(error.code)
            raise
        finally:
            self._tally.note(action, outcome, bucket, self._clock() - began)
        self._successes.append(action)
        return answer

    def pages(
        self, method: str, result: str, filters: Filters | None = None, *, most: int, **more: Any
    ) -> Iterator[Object]:
        """Yield what all pages have, one page in memory at a time.

        ``more``: arguments of each call. Raises a TooLongError if there are more than may be, and
        an Ec2CallError for what it lacks.
        """
        token: dict[str, str] = {}
        if filters is not None:
            more["Filters"] = filters
        for _ in range(most // PAGE_SIZE):
            answer = self(method, MaxResults=PAGE_SIZE, **more, **token)
            with reading(method):
                yield from entries(answer, result, PAGE_SIZE, required=True)
                if answer.get("NextToken") in (None, ""):
                    return
                token = {"NextToken": TOKEN.of(answer, "NextToken")}
        why = f"its list of {result} does not end, or has more than {most}"
        raise TooLongError(operation(method), "AnswerTooLong", why)

    def interfaces(self, filters: Filters, *, most: int) -> Iterator[Object]:
        """The same of ENIs."""
        method = "describe_network_interfaces"
        return self.pages(method, "NetworkInterfaces", filters, most=most)

    def fail(self, scope: str, code: str, message: str) -> None:
        """Note a failure that gets a backoff."""
        self._failures.append(CallFailure(scope, code, message))

    def drain(self) -> tuple[tuple[CallFailure, ...], tuple[str, ...]]:
        """Return what failed and which actions succeeded since this was last asked."""
        result = tuple(self._failures), tuple(self._successes)
        self._failures, self._successes = [], []
        return result


@contextmanager
def reading(method: str) -> Iterator[None]:
    """Treat an answer that cannot be read as none: an observation shows what the call has done."""
    try:
        yield
    except MalformedError as error:
        why = f"its answer cannot be read: {error}"
        raise Ec2CallError(operation(method), ANSWER_LOST, why) from error


def operation(method: str) -> str:
    """Return EC2's name of one of the SDK's methods."""
    return "".join(word.capitalize() for word in method.split("_"))


def matching(name: str, *values: str) -> dict[str, Any]:
    """Return a filter."""
    return {"Name": name, "Values": list(values)}


def parts(names: Iterable[str]) -> Iterator[Sequence[str]]:
    """Split what does not go into one filter, in order."""
    ordered = sorted(names)
    for start in range(0, len(ordered), MAX_VALUES):
        yield ordered[start : start + MAX_VALUES]
