"""``apply``: converges once, and goes back by itself unless somebody confirms it."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from reconciler.cli import report, report_json
from reconciler.cli.confirm import Question, confirm, interruptible, uninterruptible
from reconciler.cli.host import host_options, lock_records
from reconciler.cli.options import PATH, config_option, fail, keep_option, output_option
from reconciler.cli.reading import read_placed
from reconciler.cli.screen import screen_of
from reconciler.engine.converge import Outcome, Outcomes
from reconciler.engine.plan import Verb
from reconciler.errors import ReconcilerError, StateError
from reconciler.node import views
from reconciler.node.environment import Environment
from reconciler.node.passes import LocalNode
from reconciler.targets.state.kept_document import Kept, KeptDocument
from schemas.document import NodeNetwork
from schemas.load import DocumentError, load
from schemas.value import parse_duration, print_duration

SETTLE_LIMIT_S = 60.0  # seconds EC2 is given to attach what was asked for

LONGEST = timedelta(hours=1)
"""For which a confirmation may be waited."""


class Wait(click.ParamType[timedelta]):
    """A time in the document's form: ``60s``, ``5m``."""

    name = "TIME"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        try:
            found = parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if not timedelta() < found <= LONGEST:
            self.fail(f"{value}: must be more than 0s, and at most 1h", param, ctx)
        return found


@click.command()
@config_option
@host_options
@keep_option
@output_option
@click.option(
    "--confirm",
    "wait",
    type=Wait(),
    help="Go back to the earlier document after this time, unless Enter is pressed, or "
    "'node-network apply --confirmed' run elsewhere.",
)
@click.option(
    "--back-to",
    type=PATH,
    help="The document to go back to. Default: the last good one that is kept (--keep-dir).",
)
@click.option("--confirmed", is_flag=True, help="Confirm what an 'apply --confirm' waits for.")
def apply(
    config: Path,
    state_dir: Path,
    environment: Environment,
    keep_dir: str,
    output: str,
    wait: timedelta | None,
    back_to: Path | None,
    *,
    confirmed: bool,
) -> None:
    """Converge once, then exit. For nodes on which no reconciler runs: it does so by itself.

    What is done is shown on stderr, on a terminal by domain, and ends with one line. The document
    is then kept as the last good one, as the reconciler does.

    With --confirm the earlier document is applied again when the time is over, on Ctrl-C, and if
    the new one fails. That is no undo: the node converges to the earlier document, connections
    that were opened meanwhile keep what they have, and addresses that were given back are others.
    After a kill -9 or a reboot the node stays as it is.

    Exit status: 0 in sync, 1 something is refused or left to do, or the node has gone back, 2 an
    error.
    """
    if confirmed:
        try:
            confirm(state_dir)
        except ReconcilerError as error:
            fail(error)
        return
    document, text = read_placed(config, output)
    try:
        state, _lock = lock_records(state_dir, keep_dir)
        kept = KeptDocument(Path(keep_dir or state_dir))
        work = Work(LocalNode(state, environment))
        if wait is None:
            outcomes, has_gone_back = work.settle(document), False
        else:
            earlier = _find_earlier(back_to, kept)
            question = Question(state_dir)
            outcomes, has_gone_back = _try(work, document, earlier, wait, question)
        code = report.exit_code(outcomes, remaining=True)
        if code != 2 and not has_gone_back:
            _keep(kept, text, environment.now())
    except (ReconcilerError, DocumentError) as error:
        fail(error)
    is_json = output == "json"
    shown = report_json.as_json(outcomes) if is_json else report.as_text(outcomes, remaining=True)
    click.echo(shown, nl=False)
    say(work.last_line(outcomes))
    report.show_tracebacks(outcomes)
    sys.exit(max(code, 1) if has_gone_back else code)


@dataclass(frozen=True, slots=True)
class Earlier:
    """A document to go back to, and what to call it."""

    document: NodeNetwork
    name: str


def _find_earlier(back_to: Path | None, kept: KeptDocument) -> Earlier:
    """Return what to go back to; whatever is wrong with it is said before anything is changed."""
    if back_to is not None:
        return Earlier(read_placed(back_to)[0], str(back_to))
    if (last := kept.recall()) is None:
        raise StateError(
            f"there is nothing to go back to: no earlier document is kept in {kept.path.parent}; "
            "name one by --back-to"
        )
    name = f"generation {last.generation}, accepted {last.accepted_at:%Y-%m-%d %H:%M:%SZ}"
    return Earlier(load(last.text, f"the last good document, in {kept.path}"), name)


def _keep(kept: KeptDocument, text: str, now: float) -> None:
    """Keep a document that was applied, as the reconciler keeps what it has accepted."""
    try:
        last = kept.recall()
    except StateError:
        last = None  # it is replaced
    if last is None or last.text != text:
        at = datetime.fromtimestamp(now, UTC).replace(microsecond=0)
        kept.keep(Kept(text, (last.generation if last else 0) + 1, at))


def _try(
    work: Work, document: NodeNetwork, earlier: Earlier, wait: timedelta, question: Question
) -> tuple[Outcomes, bool]:
    """Apply a document, and go back unless it is confirmed; return what is left, and whether."""
    outcomes: Outcomes = {}
    stays = False
    why = "it failed"
    with interruptible():
        try:
            outcomes = work.settle(document)
            if report.exit_code(outcomes, remaining=True) != 2:
                seconds = print_duration(wait)
                say(
                    f"applied; in {seconds} the node goes back to {earlier.name}, unless you "
                    "press Enter, or run 'node-network apply --confirmed' in another shell"
                )
                keys = sys.stdin.fileno() if sys.stdin.isatty() else None
                why = f"it was not confirmed within {seconds}"
                stays = question.wait(wait.total_seconds(), keys)
        except KeyboardInterrupt:
            why = "it was interrupted"
        finally:
            # Whatever was raised.
            if not stays:
                with uninterruptible():
                    question.close()
                    say(f"going back to {earlier.name}: {why}")
                    outcomes = work.settle(earlier.document)
    say("confirmed" if stays else f"gone back to {earlier.name}")
    return outcomes, not stays


class Work:
    """Converges a node, and says what it does."""

    def __init__(self, node: LocalNode) -> None:
        self._node = node
        self._done: Counter[Verb] = Counter()
        self._began = time.monotonic()

    def settle(self, document: NodeNetwork) -> Outcomes:
        """Run passes until nothing is left, or nothing changes any more."""
        node, deadline = self._node, time.monotonic() + SETTLE_LIMIT_S
        look, egress, is_told = True, None, False
        while True:
            pool = node.pool.run(document, look=look)
            if node.known.cloud is None:
                return {"eni": pool}  # it says why EC2 could not be read
            egress = egress or views.look_at_sources(node, document)
            result = node.after.run(node.kernel_pass(document))
            outcomes: dict[str, Outcome] = {"eni": pool, "egress": egress} | result.outcomes
            for line in self._progress(outcomes):
                say(line)
            moving = node.pool.in_transition or node.pool.schedule.is_pending
            moving = moving or bool(pool.remaining.actions)
            look = False  # from now on only if something follows
            if not moving or pool.errors or time.monotonic() > deadline:
                return outcomes
            if not is_told and screen_of(sys.stderr).width:
                say(f"eni: EC2 is at work; at most {SETTLE_LIMIT_S:.0f} s are waited for it")
                is_told = True
            time.sleep(0.2)

    def _progress(self, outcomes: Outcomes) -> Iterator[str]:
        """Yield what was done: by domain on a terminal, by object in a pipe."""
        for domain, outcome in outcomes.items():
            verbs = Counter(a.verb for a in report.done(outcome))
            self._done += verbs
            if verbs and screen_of(sys.stderr).width:
                yield f"{domain}: {_counts(verbs)}"
        if not screen_of(sys.stderr).width:
            yield from report.applied(outcomes)

    def last_line(self, outcomes: Outcomes) -> str:
        """Say what it all came to."""
        left = sum(len(o.remaining.actions) for o in outcomes.values())
        refused = sum(len(o.remaining.refusals) for o in outcomes.values())
        errors = sum(len(o.errors) for o in outcomes.values())
        open_ends = {"left to do": left, "refused": refused, "errors": errors}
        wrong = ", ".join(f"{n} {what}" for what, n in open_ends.items() if n)
        took = f"in {time.monotonic() - self._began:.1f} s"
        made = self._node.pool.ec2_calls
        calls = ", ".join(f"{n} {name}" for name, n in sorted(made.items())) or "none"
        did = _counts(self._done) or "nothing to do"
        return f"{wrong or 'in sync'}: {did}, {took}; EC2 calls: {calls}"


def _counts(verbs: Mapping[Verb, int]) -> str:
    words = ((Verb.CREATE, "added"), (Verb.UPDATE, "changed"), (Verb.DELETE, "deleted"))
    return ", ".join(f"{verbs[verb]} {word}" for verb, word in words if verbs.get(verb))


def say(text: str) -> None:
    """Print a line for people. Who does not read any more must not keep a node from going back."""
    with suppress(OSError):
        for line in screen_of(sys.stderr).wrap(text, rest="  "):
            click.echo(line, err=True)
