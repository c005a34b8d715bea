"""One node: its targets, its domains, and the passes over them.

This is the composition that ``run``, ``diff`` and ``apply`` share. A pass over the kernel never
waits for EC2: it works on the last look at EC2, which a pass over the pool brings.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from reconciler.core.attachment import Attachment, AttachmentKey
from reconciler.core.facts import Eni, Inputs, Node
from reconciler.core.plan import Key, Refusal
from reconciler.domains import address, attachment, eni, link, nat, neighbour, route, rule, sysctl
from reconciler.domains.address import LinkAddress
from reconciler.domains.attachment import Records
from reconciler.domains.eni import Cloud
from reconciler.domains.link import EniLink, PodLink, Veth
from reconciler.domains.neighbour import Neighbour
from reconciler.domains.route import Route
from reconciler.domains.rule import Rule
from reconciler.engine import Domain, Outcome, Outcomes, converge, dry_run
from reconciler.errors import ApplyError, NotReadyError
from reconciler.targets.ec2 import Ec2
from reconciler.targets.imds import Imds
from reconciler.targets.netlink import Netlink
from reconciler.targets.nft import Nft
from reconciler.targets.state import StateDirectory
from reconciler.targets.sysctl import SysctlTree
from schemas.document import NodeNetwork

TRANSITIONS = {"attaching", "detaching", "pending"}
"""EC2's words for an attachment that is about to change by itself."""


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass over the kernel did.

    Attributes:
        looked_at: monotonic seconds at which it began to look: older hints are answered.
        records: intents and attachments after it.
        done: attachments of which every object was seen in its place.
        waiting: why each wanted intent has no attachment yet.
    """

    outcomes: Outcomes
    looked_at: float
    records: Records
    done: Mapping[AttachmentKey, Attachment] = field(default_factory=dict)
    waiting: Mapping[AttachmentKey, Refusal] = field(default_factory=dict)

    @property
    def settled(self) -> bool:
        """Nothing is left to do, and this was seen."""
        return all(o.settled for o in self.outcomes.values())


class LocalNode:
    """The node this process runs on, as far as it is known.

    Attributes:
        facts: identity and VPC CIDRs; None until IMDS has answered once.
        cloud: the last look at EC2, also of an earlier process; None until there was one.
    """

    def __init__(self, state: StateDirectory, *, imds: Imds | None = None) -> None:
        self.state = state
        self._remembered: tuple[Node | None, Cloud | None] = state.recall() or (None, None)
        self.facts, self.cloud = self._remembered
        self._imds = imds or Imds()
        self._ec2: Ec2 | None = None
        self._netlink = Netlink()
        self._nft = Nft()
        self._sysctl = SysctlTree()

    @property
    def ec2_calls(self) -> Mapping[str, int]:
        """EC2 calls made so far, by action."""
        return dict(self._ec2.calls) if self._ec2 else {}

    def learn(self) -> Node:
        """Read the node's identity and VPC CIDRs again.

        Raises:
            ObserveError: IMDS does not answer.
        """
        self.facts = self._imds.node()
        if self._ec2 is None:
            self._ec2 = Ec2(self.facts.instance_id, self._imds.region())
        return self.facts

    def pool_pass(self, document: NodeNetwork, *, dry: bool = False) -> Outcome:
        """Look at EC2 and bring the pool to its target.

        Raises:
            ObserveError: IMDS or the state directory cannot be read.
            StateError: the look cannot be kept.
        """
        self.learn()
        inputs = self._inputs(document, self.state.observe())
        outcome = (dry_run if dry else converge)([self._pool_domain()], inputs)["eni"]
        if isinstance(outcome.observed, Cloud):
            before = self.cloud or outcome.observed
            self.cloud = eni.retain(before, outcome.observed, inputs.links.keys())
            if not dry and self._remembered != (self.facts, self.cloud):
                self.state.remember(inputs.node, self.cloud)
                self._remembered = (self.facts, self.cloud)
        return outcome

    def kernel_pass(
        self, document: NodeNetwork, *, visit: frozenset[AttachmentKey] | None = None
    ) -> Pass:
        """Bind, converge the kernel, and only then release.

        Args:
            document: what is desired.
            visit: the pods to look into; None means all.

        Raises:
            NotReadyError: nobody has looked at EC2 yet. Without its ENIs the node would seem to
                need none of their routes and rules.
            ObserveError: links or the state directory cannot be read.
        """
        self._need_look()
        records = self.state.observe()
        inputs = self._inputs(document, records, visit=visit)
        outcomes = dict(converge([self._attachment_domain()], inputs))
        binding = outcomes["attachment"]
        if isinstance(binding.observed, Records):
            records = binding.observed
        inputs = replace(inputs, attachments=records.living)
        looked_at = time.monotonic()
        outcomes |= converge(self._kernel_domains(), inputs)
        if records.released:
            going = [a for a in records.attachments if a.key in records.released]
            clear = frozenset(a.key for a in self._in_place(going, inputs, outcomes))
            # What was rebuilt has its record by now, and the kernel has changed since.
            leaving = replace(inputs, clear=clear, strays=())
            outcomes |= converge([self._attachment_domain()], leaving)
            observed = outcomes["attachment"].observed
            records = observed if isinstance(observed, Records) else records
        visited = [a for a in records.living if visit is None or a.key in visit]
        done = {a.key: a for a in self._in_place(visited, inputs, outcomes)}
        return Pass(outcomes, looked_at, records, done, _waiting(outcomes["attachment"]))

    def diff(self, document: NodeNetwork) -> Outcomes:
        """Plan everything, change nothing.

        Raises:
            ObserveError, NotReadyError: as for the passes.
        """
        outcomes = {"eni": self.pool_pass(document, dry=True)}
        if self.cloud is None:
            return outcomes  # it says why EC2 could not be read
        records = self.state.observe()
        inputs = replace(self._inputs(document, records), clear=records.released)
        outcomes |= dry_run([self._attachment_domain()], inputs)
        everybody = (*inputs.attachments, *inputs.strays)
        return outcomes | dry_run(self._kernel_domains(), replace(inputs, attachments=everybody))

    @property
    def in_transition(self) -> bool:
        """Whether EC2 is about to change something by itself, or a link has yet to appear."""
        if self.cloud is None:
            return True
        ours = [e for e in self.cloud.enis if e.owned]
        links = self._netlink.links().names
        return any(e.status in TRANSITIONS or (e.serves_pods and e.mac not in links) for e in ours)

    def _inputs(
        self,
        document: NodeNetwork,
        records: Records,
        *,
        visit: frozenset[AttachmentKey] | None = None,
    ) -> Inputs:
        if self.facts is None:
            raise NotReadyError("instance metadata has not answered yet")
        enis: tuple[Eni, ...] = self.cloud.enis if self.cloud else ()
        links = self._netlink.links()
        known = {a.key for a in records.attachments}
        unexplained = {key: veth for key, veth in links.pods.items() if key not in known}
        addresses = self._netlink.pod_addresses() if unexplained else {}
        return Inputs(
            document=document,
            node=self.facts,
            enis=enis,
            links=links.names,
            attachments=records.living,
            now=time.time(),
            demand=records.demand,
            visit=visit,
            strays=attachment.find_strays(unexplained, addresses, enis, records.intents),
        )

    def _need_look(self) -> None:
        if self.cloud is None:
            raise NotReadyError("EC2 has not been looked at yet, so nobody knows the node's ENIs")

    def _in_place(
        self, attachments: Iterable[Attachment], inputs: Inputs, outcomes: Outcomes
    ) -> list[Attachment]:
        """Return those of whose kernel objects none is left to do, and this was seen."""
        results = [outcomes[d.name] for d in self._kernel_domains()]
        if any(not isinstance(e, ApplyError) for r in results for e in r.errors):
            return []
        left = {(a.kind, a.key) for r in results for a in r.remaining.actions}
        if not left:
            return list(attachments)
        shared = self._identities(replace(inputs, attachments=(), visit=frozenset()))
        return [a for a in attachments if not left & self._identities(_alone(a, inputs)) - shared]

    def _identities(self, inputs: Inputs) -> frozenset[tuple[str, Key]]:
        """Kind and key of every kernel object these inputs ask for."""
        return frozenset((o.kind, o.key) for d in self._kernel_domains() for o in d.desire(inputs))

    def _attachment_domain(self) -> Domain:
        return Domain("attachment", attachment.desire, attachment.plan, self.state)

    def _pool_domain(self) -> Domain:
        if self._ec2 is None:
            raise NotReadyError("instance metadata has not answered yet")
        return Domain("eni", eni.desire, eni.plan, self._ec2)

    def _kernel_domains(self) -> list[Domain]:
        """In the order in which they build upon each other."""
        kernel = self._netlink
        return [
            Domain("sysctl", sysctl.desire, sysctl.plan, self._sysctl),
            Domain("link", link.desire, link.plan, kernel, (EniLink, Veth, PodLink)),
            Domain("address", address.desire, address.plan, kernel, (LinkAddress,)),
            Domain("neighbour", neighbour.desire, neighbour.plan, kernel, (Neighbour,)),
            Domain("route", route.desire, route.plan, kernel, (Route,)),
            Domain("rule", rule.desire, rule.plan, kernel, (Rule,)),
            Domain("nat", nat.desire, nat.plan, self._nft),
        ]


def _alone(attachment: Attachment, inputs: Inputs) -> Inputs:
    return replace(inputs, attachments=(attachment,), visit=frozenset({attachment.key}))


def _waiting(outcome: Outcome) -> dict[AttachmentKey, Refusal]:
    """Why wanted intents are not served, by key."""
    refusals = {r.subject: r for r in outcome.remaining.refusals}
    records = outcome.observed
    if not isinstance(records, Records):
        return {}
    return {
        i.key: refusals[f"intent {i.key}"]
        for i in records.intents
        if f"intent {i.key}" in refusals
    }
