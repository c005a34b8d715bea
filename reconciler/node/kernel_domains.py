"""The domains of the kernel, in the order in which they build upon each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
from reconciler.engine.plan import Plan
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


def kernel_domains(kernel: Target, settings: Target, nft: Target) -> tuple[Domain, ...]:
    """Return all; those that share a target stand side by side."""
    return (
        Domain("sysctl", sysctl.desire, sysctl.plan, settings),
        Domain("link", link.desire, link.plan, kernel, (EniLink, Veth, PodLink)),
        Domain("link-sysctl", sysctl.desire_pods, sysctl.plan, kernel, (Sysctl,)),
        Domain("address", address.desire, address.plan, kernel, (LinkAddress,)),
        Domain("neighbour", neighbour.desire, neighbour.plan, kernel, (Neighbour,)),
        Domain("route", route.desire, route.plan, kernel, (Route,)),
        Domain("rule", rule.desire, rule.plan, kernel, (Rule,)),
        Domain("nat", nat.desire, nat.plan, nft, atomic=True),
    )


def pod_objects(inputs: Inputs) -> frozenset[Any]:
    """Every object in the kernel that pods have, on the host and in their namespaces."""
    return frozenset().union(*(desire(inputs) for _, desire, _, _ in POD_DOMAINS))


def inside_objects(inputs: Inputs) -> frozenset[Any]:
    """What of it is in pods' own namespaces."""
    return frozenset(o for o in pod_objects(inputs) if getattr(o, "netns", ""))


def pod_domains(kernel: Any, nft: Any, places: frozenset[Any]) -> list[Domain]:
    """Return the same, for what some pods have and for nothing else."""
    elements = frozenset(o for o in places if isinstance(o, NftElement))
    kernel = ScopedTarget(kernel, places - elements)
    nft = ScopedTarget(nft, elements)
    return [
        Domain(name, desire, plan, nft, kinds, atomic=True)
        if NftElement in kinds
        else Domain(name, desire, plan, kernel, kinds)
        for name, desire, plan, kinds in POD_DOMAINS
    ]
