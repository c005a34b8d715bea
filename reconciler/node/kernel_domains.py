"""The domains of the kernel, in the order in which they build upon each other."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from typing import Any

from reconciler.core.attachment import Attachment
from reconciler.domains import address, link, nat, neighbour, route, rule, sysctl
from reconciler.domains.address import LinkAddress
from reconciler.domains.inputs import Inputs
from reconciler.domains.link import EniLink, PodLink, Veth
from reconciler.domains.nat import NftElement
from reconciler.domains.neighbour import Neighbour
from reconciler.domains.route import Route
from reconciler.domains.rule import Rule
from reconciler.domains.sysctl import Sysctl
from reconciler.engine.converge import Domain, Target
from reconciler.engine.plan import Key, Plan
from reconciler.errors import ReconcilerError, boundary
from reconciler.node.targets import Table
from reconciler.targets.kernel import Kernel
from reconciler.targets.scoped import ScopedTarget

POD_DOMAINS: tuple[tuple[str, Callable[[Inputs], Any], Callable[..., Plan], tuple[type, ...]], ...]
POD_DOMAINS = (
    ("link", link.desire_pods, link.plan, (EniLink, Veth, PodLink)),
    ("link-sysctl", sysctl.desire_pods, sysctl.plan, (Sysctl,)),
    ("address", address.desire_pods, address.plan, (LinkAddress,)),
    ("neighbour", neighbour.desire, neighbour.plan, (Neighbour,)),
    ("route", route.desire_pods, route.plan, (Route,)),
    ("nat", nat.desire_pods, nat.plan, (NftElement,)),
)
"""Name, desire, plan and kinds of what pods have; each builds upon those before it."""


class KernelDomains:
    """All that is put into the kernel.

    Attributes:
        kernel: the target of most.
        all: every domain; those that share a target stand side by side.
    """

    def __init__(self, kernel: Kernel, settings: Target, nft: Table) -> None:
        self.kernel = kernel
        self._nft = nft
        self.all = (
            Domain("sysctl", sysctl.desire, sysctl.plan, settings),
            Domain("link", link.desire, link.plan, kernel, (EniLink, Veth, PodLink)),
            Domain("link-sysctl", sysctl.desire_pods, sysctl.plan, kernel, (Sysctl,)),
            Domain("address", address.desire, address.plan, kernel, (LinkAddress,)),
            Domain("neighbour", neighbour.desire, neighbour.plan, kernel, (Neighbour,)),
            Domain("route", route.desire, route.plan, kernel, (Route,)),
            Domain("rule", rule.desire, rule.plan, kernel, (Rule,)),
            Domain("nat", nat.desire, nat.plan, nft, atomic=True),
        )

    def of_pods(self, gone: frozenset[Any] = frozenset()) -> list[Domain]:
        """Return the same, for what some pods have and for nothing else.

        Args:
            gone: what is looked at besides all that is desired: it is not wanted any more.
        """
        elements = frozenset(o for o in gone if isinstance(o, NftElement))
        others = gone - elements
        kernel, table = self.kernel, self._nft
        seen = ScopedTarget(lambda o: kernel.observe_at(others.union(o)), kernel.apply)
        nft = ScopedTarget(lambda o: table.observe_at(elements.union(o)), table.apply)
        return [
            Domain(name, desire, plan, nft, kinds, atomic=True)
            if NftElement in kinds
            else Domain(name, desire, plan, seen, kinds)
            for name, desire, plan, kinds in POD_DOMAINS
        ]


def pod_objects(inputs: Inputs) -> frozenset[Any]:
    """Every object in the kernel that pods have, on the host and in their namespaces."""
    return frozenset().union(*(desire(inputs) for _, desire, _, _ in POD_DOMAINS))


def inside_objects(inputs: Inputs) -> frozenset[Any]:
    """What of it is in pods' own namespaces."""
    return frozenset(o for o in pod_objects(inputs) if getattr(o, "netns", ""))


def alone(pod: Attachment, inputs: Inputs) -> Inputs:
    """Inputs of which everything but this pod is left out."""
    key = frozenset({pod.key})
    seen = inputs.seeing(visit=key, linked=key, unreadable=frozenset())
    return replace(seen, attachments=(pod,))


class PodObjects:
    """What single pods have in the kernel, computed once for each that is asked for.

    Args:
        inputs: what the pass plans on.
    """

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._known: dict[Attachment, frozenset[Any] | None] = {}

    def of(self, pod: Attachment) -> frozenset[Any] | None:
        """Return all of a pod's objects; None if they cannot be told."""
        if pod not in self._known:
            self._known[pod] = None
            with suppress(ReconcilerError), boundary("desire of one pod"):
                self._known[pod] = pod_objects(alone(pod, self._inputs))
        return self._known[pod]

    def has_any(self, pod: Attachment, left: Collection[tuple[str, Key]]) -> bool:
        """Whether a pod has one of some objects, by kind and key; so too if it cannot be told."""
        objects = self.of(pod)
        return objects is None or any((o.kind, o.key) in left for o in objects)
