"""The fast path, after a pass: put there, kept, or taken away where it would go past others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from reconciler.diagnostics import each_packet
from reconciler.diagnostics.foreign import Foreign
from reconciler.domains import fast_path
from reconciler.domains.fast_path import FlowLink
from reconciler.domains.inputs import Inputs
from reconciler.domains.left_out import dry_run
from reconciler.engine.backoff import Backoffs
from reconciler.engine.converge import Domain, Outcomes, always
from reconciler.engine.plan import Change, Verb
from reconciler.errors import Issue
from reconciler.node.environment import FlowTarget
from reconciler.node.kernel_domains import converge_held
from reconciler.node.pass_result import PassResult


class FastPath:
    """Has the kernel forward open connections of pods by a flowtable, if the document asks for it.

    No pod waits for it, and none fails by it: a connection that is not in it takes the long way.
    ``is_on``: it is there, as far as is known.

    Args:
        target: the flowtable.
        queues: what tc does to packets of links.
        others: what was last seen of other owners.
    """

    def __init__(
        self,
        target: FlowTarget,
        queues: Callable[[], Iterable[tuple[str, str]]],
        others: Callable[[], Foreign | None],
    ) -> None:
        self._target = target
        self._queues = queues
        self._others = others
        self.is_on = False
        self._is_gone = False  # for good, as long as the document does not ask for it

    @property
    def domain(self) -> Domain[Inputs]:
        """The flowtable, where nothing speaks against it."""
        return Domain("fast-path", fast_path.desire, fast_path.plan, self._target)

    def run(self, result: PassResult, backoffs: Backoffs) -> PassResult:
        """Put it there, or take it away."""
        if self._is_gone and result.inputs.document.datapath.fast_path == "off":
            return result
        domain, found = self._judge(result.inputs)
        outcomes = converge_held([domain], result.inputs, backoffs)
        is_wanted = domain.desire is fast_path.desire
        self.is_on = is_wanted and not outcomes["fast-path"].failed
        self._is_gone = not is_wanted and outcomes["fast-path"].settled
        return result.with_outcomes(outcomes, found)

    def plan(self, inputs: Inputs) -> Outcomes:
        """Say what differs."""
        return dry_run([self._judge(inputs)[0]], inputs)

    def follow(self, result: PassResult) -> None:
        """Have the links of pods that have just started in it; the next full pass looks at it.

        Those of pods that end the kernel itself takes out, with all that was forwarded by them.
        """
        if self.is_on and result.done:
            started = replace(result.inputs, attachments=tuple(result.done.values()))
            links = sorted(fast_path.links_of_pods(started), key=lambda link: link.key)
            self._target.apply([Change(Verb.CREATE, link, "its pod starts") for link in links])

    def _judge(self, inputs: Inputs) -> tuple[Domain[Inputs], tuple[Issue, ...]]:
        """Return the domain, and what speaks against having it."""
        domain = self.domain
        nothing = replace(domain, desire=always(frozenset()))
        if inputs.document.datapath.fast_path == "off":
            return nothing, ()
        if why := self._target.refusal():
            return nothing, (Issue("datapath.fastPath", "NoFlowtables", why),)
        ours = {o.link for o in fast_path.desire(inputs) if isinstance(o, FlowLink)}
        queues = ((link, kind) for link, kind in self._queues() if link in ours)
        if found := each_packet.judge(self._others(), queues):
            return nothing, found
        return domain, ()
