"""The pass over the document's sources: asks EC2 what they stand for, beside the pool's passes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from reconciler.egress import destinations, observation, rules
from reconciler.egress.observation import Question
from reconciler.egress.pace import ask_after_s
from reconciler.egress.source import APART_S
from reconciler.engine.converge import Outcome
from reconciler.engine.plan import Plan
from reconciler.errors import Issue, NotReadyError
from reconciler.node.environment import Environment, State
from reconciler.node.gathering import Known
from reconciler.node.pool_pass import PoolPass
from schemas.document import NodeNetwork
from schemas.group import of_group

FROZEN = "frozen"
"""The ``ec2.mode`` in which EC2 is asked for nothing: what is known of sources stays."""


class SourcePass:
    """Keeps what is known of sources; one thread runs it, once for all ENIs."""

    def __init__(
        self,
        state: State,
        environment: Environment,
        known: Known,
        pool: PoolPass,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._state, self._environment, self._known, self._pool = state, environment, known, pool
        self._chance = chance
        self._asked: Question | None = None
        self._failures = 0
        self._due_at = float("-inf")

    @property
    def due_s(self) -> float:
        """Seconds until the next look is due."""
        return max(self._due_at - self._environment.clock(), 0.0)

    def run(self, document: NodeNetwork, *, at_once: bool = False, dry: bool = False) -> bool:
        """Ask what is due, or all ``at_once``; return whether what is excluded may have changed.

        A ``dry`` run keeps what it learns to this process.

        Raises:
            NotReadyError: the node's ENIs, or its VPC, are not known yet.
            ConflictError: overrides that match this node contradict each other.
            StateError: what is known now cannot be kept; it counts all the same.
        """
        document = self._known.resolve(document)
        question = self._question(document)
        before = self._known.egress
        egress = observation.of_vpc(before, question.vpc_id)
        if not question.names or document.ec2.mode == FROZEN:
            self._asked, self._due_at = question, float("inf")
            egress = observation.take(egress, question, {}, 0.0)
        elif at_once or dry or question != self._asked or not self.due_s:
            egress = self._look(egress, question, document)
        egress = observation.settle(egress, document.snat)
        if egress == before:
            return False
        self._known.learn(egress)
        if not dry:
            self._state.remember_egress(egress)
        return observation.contents(egress) != observation.contents(before)

    def find_issues(self, document: NodeNetwork) -> tuple[tuple[Issue, ...], tuple[Issue, ...]]:
        """Say what is wrong with sources, and which exclusions an operator should look at."""
        document, egress = self._known.resolve(document), self._known.egress
        services, now = document.routing.external_service_cidrs, self._environment.now()
        vpc = self._known.identity().vpc_cidrs
        issues: dict[Issue, None] = {}
        warnings: list[Issue] = []
        for group, snat in document.snat_policies:
            issues |= dict.fromkeys(destinations.find_issues(snat, egress, now))
            told = destinations.find_warnings(snat, egress, vpc, services)
            warnings += [replace(w, subject=of_group(w.subject, group)) for w in told]
        of_rules = destinations.find_issues_of_rules(document.snat, egress, now)
        issues |= dict.fromkeys(of_rules)
        warnings += rules.find_warnings(document.snat, egress, vpc, services)
        return tuple(issues), tuple(warnings)

    def outcome(self, document: NodeNetwork) -> Outcome:
        """Return the same as an outcome, for ``diff``."""
        issues, warnings = self.find_issues(document)
        shrinking = tuple(i for i in issues if i.reason == destinations.SHRINKS)
        refusals = tuple(i for i in issues if i.reason != destinations.SHRINKS)
        plan = Plan(refusals=refusals, findings=(*shrinking, *warnings))
        return Outcome(plan=plan, remaining=plan)

    def _question(self, document: NodeNetwork) -> Question:
        cloud = self._known.observation()
        primary = cloud.primary
        subnet = cloud.subnets.get(primary.subnet_id) if primary else None
        groups = [snat for _, snat in document.snat_policies[1:]]
        question = observation.make_question(
            document.snat, cloud.enis, subnet.vpc_id if subnet else "", groups
        )
        if question.names and not question.vpc_id and document.ec2.mode != FROZEN:
            raise NotReadyError("EC2 has not told yet which VPC the node is in")
        return question

    def _look(
        self, egress: destinations.Egress, question: Question, document: NodeNetwork
    ) -> destinations.Egress:
        clock = self._environment.clock
        if (target := self._pool.sources) is None:
            raise NotReadyError("instance metadata has not answered yet")
        self._asked, self._due_at = question, clock() + APART_S  # whatever comes of it
        answers = target.look(question)
        egress = observation.take(egress, question, answers, self._environment.now())
        failed = any(s.failure for s in egress.sources)
        self._failures = self._failures + 1 if failed else 0
        resync_s = document.reconcile.ec2_resync.total_seconds()
        wait_s = ask_after_s(egress.sources, self._failures, resync_s, self._chance())
        self._due_at = clock() + wait_s
        return egress
