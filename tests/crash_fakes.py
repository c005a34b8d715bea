"""Fakes whose every effect can be the last of their process, and whose every look can be late."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from typing import Any

from fake_cloud import FakeEc2, FakeImds
from fakes import (
    CrashError,
    FakeNetlink,
)

from reconciler.core.attachment import AttachmentKey, alias_key
from reconciler.domains.address import LinkAddress
from reconciler.domains.link import Veth
from reconciler.engine.plan import Change, Verb
from reconciler.errors import ReconcilerError

LATE_S = 30.0
"""Seconds that an observation of EC2 may be late.

More than it ever is, less than answers are trusted.
"""

AFTER = ("after", "down", "unseen")
Point = tuple[str, int]
""""before" or "after" an effect, "look" or "pass", and which one, from 0; or all "events".
"down" is "after", and nobody starts it before something else has happened; "unseen" is "after" an
EC2 call of which the looks that follow know nothing for a while."""


class Fate:
    """Counts what happens, and strikes at one point.

    Args:
        strike: where; None lets everything happen.

    Attributes:
        counts: how many effects, looks and passes there were.
        log: the effects, in order.
        kinds: how often which kind of effect was had.
        deaths: where a death leaves a world that no other death leaves. Dying after an effect, or
            before the next one of the same pass, is the same to whoever starts afterwards.
        late: looks that would show something else if they were late; only if nothing strikes.
    """

    def __init__(self, strike: Point | None = None) -> None:
        self.strike = strike
        self.counts = {"effect": 0, "look": 0, "pass": 0}
        self.log: list[str] = []
        self.kinds: Counter[str] = Counter()
        self.deaths: list[Point] = []
        self.late: list[Point] = []
        self._moment = 0
        self._last = -1

    @contextmanager
    def effect(self, what: str, kind: str = "") -> Iterator[None]:
        """Surround an effect.

        Args:
            what: the action, as an operator would type it.
            kind: its verb and its object's noun; by default the same.
        """
        number = self._count("effect")
        self.log.append(what)
        self.kinds[kind or what] += 1
        if self._last != self._moment:
            self.deaths.append(("before", number))
        self.deaths.append(("after", number))
        self._last = self._moment
        if self.strike == ("before", number):
            raise CrashError
        yield
        if self.strike is not None and self.strike in {(w, number) for w in AFTER}:
            raise CrashError

    def look(self, now: Callable[[], Any], before: Callable[[], Any]) -> Any:
        """Look at what is, or at what was before the last effect on it."""
        number = self._count("look")
        if self.strike == ("look", number):
            return before()
        if self.strike is None and _answer(now) != _answer(before):
            self.late.append(("look", number))
        return now()

    def move_on(self) -> None:
        """Another pass begins, or the world has changed by itself."""
        self._moment += 1

    def is_lost(self) -> bool:
        """Whether the event that would bring this pass about gets lost."""
        return self.strike == ("pass", self._count("pass"))

    @property
    def is_deaf(self) -> bool:
        """Whether every event gets lost."""
        return self.strike is not None and self.strike[0] == "events"

    def _count(self, what: str) -> int:
        self.counts[what] += 1
        return self.counts[what] - 1


def _answer(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except ReconcilerError as error:
        return type(error)


class Doomed:
    """A fake whose effects and looks pass ``Fate``; everything else is the fake's own.

    Args:
        fake: what keeps the world.
        fate: what happens to whoever asks.
        whole: whether actions happen together, or one by one.
    """

    def __init__(self, fake: Any, fate: Callable[[], Fate], *, whole: bool = False) -> None:
        self._fake = fake
        self._fate = fate
        self._whole = whole
        self._before = self._copy()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fake, name)

    def apply(self, actions: Sequence[Any]) -> tuple[Any, ...]:
        failures: tuple[Any, ...] = ()
        for group in [actions] if self._whole else [[a] for a in actions]:
            with self.effect(str(group[0]), _kind(group[0])):
                failures += self._fake.apply(group)
                self._fate().kinds.update(_kind(a) for a in group[1:])
        return failures

    @contextmanager
    def effect(self, what: str, kind: str = "") -> Iterator[None]:
        """Surround an effect, and remember how it was before."""
        with self._fate().effect(what, kind):
            self._before = self._copy()
            yield

    def look(self, ask: Callable[..., Any], *arguments: Any) -> Any:
        """Ask the fake, or what it was before the last effect."""
        return self._fate().look(lambda: ask(*arguments), lambda: self._then(ask, *arguments))

    def _then(self, ask: Callable[..., Any], *arguments: Any) -> Any:
        now = self._copy()
        vars(self._fake).update(self._before)
        try:
            return ask(*arguments)
        finally:
            vars(self._fake).update(now)

    def observe(self, *arguments: Any) -> Any:
        return self.look(self._fake.observe, *arguments)

    def observe_at(self, *arguments: Any) -> Any:
        return self.look(self._fake.observe_at, *arguments)

    def _copy(self) -> dict[str, Any]:
        return {
            k: copy(v) if isinstance(v, dict | set | list) else v
            for k, v in vars(self._fake).items()
        }


def _kind(action: Any) -> str:
    return f"{action.verb} {action.kind}"


class DoomedState(Doomed):
    """Records: never stale, because ours have one writer, and nobody replaces an unread intent."""

    def observe(self, *arguments: Any) -> Any:
        return self._fake.observe(*arguments)

    def observe_at(self, *arguments: Any) -> Any:
        return self._fake.observe_at(*arguments)

    def record(self, creation: Any) -> None:
        with self.effect(f"record {creation.token}", "record a creation"):
            self._fake.record(creation)

    def forget(self, creation: Any) -> None:
        with self.effect(f"forget {creation.token}", "forget a creation"):
            self._fake.forget(creation)

    def remember(self, *look: Any) -> None:
        with self.effect("remember the look"):
            self._fake.remember(*look)


class DoomedNetlink(Doomed):
    """The kernel, message by message."""

    def apply(self, actions: Sequence[Any]) -> tuple[Any, ...]:
        failures: tuple[Any, ...] = ()
        for action in actions:
            for half in _halves(action):
                if refused := super().apply([half]):
                    # Under the name of the whole: nothing else would match what is planned.
                    failures += self._fake.apply([action]) or refused
                    break
        return failures

    def links(self) -> Any:
        return self.look(self._fake.links)

    def pod_addresses(self) -> Any:
        return self.look(self._fake.pod_addresses)


def _halves(action: Any) -> list[Any]:
    """Return the messages that an action is, where it is more than one (netlink_write.py)."""
    match action:
        case Change(verb=Verb.CREATE, object=Veth() as veth):
            # The kernel takes no alias when it makes a link.
            return [
                replace(action, object=replace(veth, alias="", up=False)),
                replace(action, verb=Verb.UPDATE, was=veth),
            ]
        case Change(verb=Verb.UPDATE, object=LinkAddress()):
            return [replace(action, verb=v) for v in (Verb.DELETE, Verb.CREATE)]
        case _:
            return [action]


class Kernel(FakeNetlink):
    """Remembers which running pod's link was taken away.

    Attributes:
        running: attachments of pods that run.
        cut: those of them that lost their link, each as often as it happened.
    """

    def __init__(self) -> None:
        super().__init__()
        self.running: set[AttachmentKey] = set()
        self.cut: list[AttachmentKey] = []

    def _remove(self, obj: Any) -> None:
        there = self._objects.get((type(obj), obj.key))
        if isinstance(there, Veth) and (key := alias_key(there.alias)) in self.running:
            self.cut.append(key)
        super()._remove(obj)


class DoomedEc2(FakeEc2):
    """EC2, of which an action may be several calls: each of them is an effect."""

    def __init__(self, *arguments: Any, fate: Callable[[], Fate], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._fate = fate
        self._times: list[float] = []

    @contextmanager
    def _call(self, name: str) -> Iterator[None]:
        with self._fate().effect(name), super()._call(name):
            yield

    def observe(self, desired: Iterable[Any] = ()) -> Any:
        desired = list(desired)
        return self._fate().look(
            lambda: self._shown(desired, self.lag), lambda: self._shown(desired, self.lag or 1)
        )

    def _shown(self, desired: Iterable[Any], lag: int) -> Any:
        always, self.lag = self.lag, min(lag, self.recent())
        try:
            return super().observe(desired)
        finally:
            self.lag = always

    @property
    def made(self) -> int:
        """How many ENIs were ever created."""
        return self._made

    def recent(self) -> int:
        """Count the calls of which a look may know nothing yet."""
        now = self._clock()
        self._times += [now] * (len(self._history) - len(self._times))
        return sum(now - at <= LATE_S for at in self._times)


class DoomedImds(FakeImds):
    """Instance metadata, which may be late as well."""

    def __init__(self, *arguments: Any, fate: Callable[[], Fate]) -> None:
        super().__init__(*arguments)
        self._fate = fate

    def interfaces(self) -> frozenset[Any]:
        return self._fate().look(super().interfaces, self._late)

    def _late(self) -> frozenset[Any]:
        now = self._ec2.enis
        self._ec2.enis = self._ec2._history[-1] if self._ec2.recent() else now
        try:
            return super().interfaces()
        finally:
            self._ec2.enis = now


class DoomedRemains(Doomed):
    """What the stock plugin has left."""

    def glance(self) -> Any:
        return self.look(self._fake.glance)

    def find_ends(self, veths: Iterable[str]) -> Any:
        return self.look(self._fake.find_ends, list(veths))
