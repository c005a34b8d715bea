"""What follows a full pass, step by step, once the pods that wait were answered.

Each step takes the result so far and adds to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from reconciler.diagnostics import findings
from reconciler.diagnostics.foreign import Foreign, Ours
from reconciler.domains import boot_rule, conflist, executable, forward
from reconciler.domains.boot_rule import BootRule
from reconciler.domains.executable import Executable
from reconciler.domains.inputs import Inputs
from reconciler.domains.left_out import dry_run
from reconciler.engine.backoff import Backoffs
from reconciler.engine.converge import Domain, Outcome, Outcomes
from reconciler.engine.plan import Change
from reconciler.errors import Issue, boundary
from reconciler.node.environment import Directories, Neighbourhood
from reconciler.node.fast_path import FastPath
from reconciler.node.kernel_domains import NO_BACKOFFS, KernelDomains, converge_held
from reconciler.node.pass_result import PassResult, not_in_place
from reconciler.node.stock_plugin import StockPlugin
from reconciler.node.visits import Inspection, Visits


class Step(Protocol):
    """One of them."""

    def run(self, result: PassResult, backoffs: Backoffs) -> PassResult: ...


@dataclass(frozen=True, slots=True)
class AfterPass:
    """All steps, in the order in which they are taken."""

    takeover: Takeover
    others: OtherOwners
    fast_path: FastPath
    installation: Installer
    inspection: Inspection

    def __iter__(self) -> Iterator[tuple[str, Step]]:
        yield "taking over from the stock plugin", self.takeover
        yield "the look at other owners", self.others
        yield "the fast path", self.fast_path
        yield "the installation", self.installation
        yield "the look into pods", self.inspection

    def run(self, result: PassResult) -> PassResult:
        """Take them all."""
        for _, step in self:
            result = step.run(result, NO_BACKOFFS)
        return result


@dataclass
class Takeover:
    """Removes what the stock plugin has left, last of all, or says what is there."""

    stock: StockPlugin
    kernel: KernelDomains
    visits: Visits

    def run(self, result: PassResult, backoffs: Backoffs) -> PassResult:
        """Remove it if everything of ours was seen in its place."""
        del backoffs  # what fails is tried again with the next look
        ours = [result.outcomes[d.name] for d in self.kernel.all]
        in_place = (
            result.outcomes["attachment"].settled
            and all(o.settled and not o.remaining.refusals for o in ours)
            and not self.visits.readable_at(result.inputs)
        )
        outcome = self.stock.retire(result.inputs, result.records, in_place=in_place)
        return result.with_outcomes({"takeover": outcome}, outcome.remaining.findings)


@dataclass
class OtherOwners:
    """Looks at other owners on the node, and says what of theirs hurts us.

    Puts rules of ours into their forward chains if the document asks for it.
    """

    surroundings: Neighbourhood
    latest: Foreign | None = field(default=None, init=False)  # what was last seen
    _stake: tuple[Inputs, Ours] | None = field(default=None, init=False)
    """What of ours is at stake, by the inputs of the last pass."""

    @property
    def domain(self) -> Domain[Inputs]:
        """The rules in their chains."""
        return Domain("forward", forward.desire, forward.plan, self.surroundings.forward)

    def run(self, result: PassResult, backoffs: Backoffs) -> PassResult:
        """Look, and put rules there."""
        outcomes, found = self.observe(result.inputs, result.outcomes, backoffs)
        return result.with_outcomes(outcomes, found)

    def observe(
        self, inputs: Inputs, outcomes: Outcomes, backoffs: Backoffs | None = None
    ) -> tuple[Outcomes, tuple[Issue, ...]]:
        """Look, and say what hurts; what is about to be removed, by ``outcomes``, hurts no more.

        Without ``backoffs`` nothing is changed.
        """
        known = inputs
        with boundary("observe of forward"):
            seen = self.latest = self.surroundings.observe()
        made: Outcomes = {}
        if seen.forward is not None:
            inputs = replace(inputs, host=replace(inputs.host, forward=seen.forward))
            domains = [self.domain]
            if backoffs is None:
                made = dry_run(domains, inputs)
            else:
                made = converge_held(domains, inputs, backoffs)
                if made["forward"].plan.actions:
                    seen = self.surroundings.observe()
        actions = outcomes.get("takeover", Outcome()).remaining.actions
        leaving = frozenset(a.object for a in actions if isinstance(a, Change))
        if self._stake is None or self._stake[0] is not known:
            self._stake = known, findings.desire(known)
        hurting = findings.judge(findings.without(seen, leaving), self._stake[1])
        return made, hurting


class Installer:
    """Gives the container runtime the CNI executable and configuration.

    Not before pods can be served for the first time; what an earlier process has installed stays
    as it is until then, because without it a runtime could not even end pods.
    """

    def __init__(self, files: Directories, domains: KernelDomains) -> None:
        self._files = files
        self._kernel = domains
        self._can_serve = False

    @property
    def directories(self) -> tuple[Path, ...]:
        """The directories into which something is installed."""
        places = self._files.places
        named = (places.conf_dir, places.bin_dir, places.tmpfiles_dir)
        return tuple(Path(d) for d in named if d)

    def run(self, result: PassResult, backoffs: Backoffs) -> PassResult:
        """Install what differs."""
        self._can_serve = self._can_serve or self._serves_pods(result)
        if self._can_serve:
            outcomes = converge_held(self.domains, self.placed(result.inputs), backoffs)
        else:
            outcomes = self.plan(result.inputs)
            for name, outcome in outcomes.items():
                plan = conflist.withhold(outcome.remaining)
                outcomes[name] = replace(outcome, desired=None, plan=plan, remaining=plan)
        found = tuple(f for o in outcomes.values() for f in o.remaining.findings)
        return result.with_outcomes(outcomes, found)

    def plan(self, inputs: Inputs) -> Outcomes:
        """Say what differs."""
        return dry_run(self.domains, self.placed(inputs))

    def placed(self, inputs: Inputs) -> Inputs:
        """Add where what is installed belongs."""
        return replace(inputs, host=replace(inputs.host, installation=self._files.places))

    @property
    def domains(self) -> list[Domain[Inputs]]:
        """What is installed, in order."""
        return [
            Domain("executable", executable.desire, executable.plan, self._files, (Executable,)),
            Domain("conflist", conflist.desire, conflist.plan, self._files, conflist.KINDS),
            Domain("boot-rule", boot_rule.desire, boot_rule.plan, self._files, (BootRule,)),
        ]

    def _serves_pods(self, result: PassResult) -> bool:
        """Whether a new pod would get addresses, and find everything that all pods share.

        What one pod that is here already lacks holds no other back.
        """
        inputs = result.inputs
        node = replace(inputs.seeing(visit=frozenset()), attachments=())
        outcomes = [result.outcomes[d.name] for d in self._kernel.all]
        errors = [e for o in (*outcomes, result.outcomes["attachment"]) for e in o.errors]
        left = not_in_place(outcomes)
        shared = {(o.kind, o.key) for d in self._kernel.all for o in d.objects(node)}
        enis = [e for e, _ in inputs.pod_enis]
        served = {"ipv4": any(e.pod_addresses for e in enis)}
        served["ipv6"] = any(e.ipv6_prefixes for e in enis)
        return (
            all(e.of_one_pod for e in errors)
            and not left & shared
            and all(served[family] for family in inputs.document.families)
        )
