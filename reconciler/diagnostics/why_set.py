"""Why an element of our nftables table is there: by which setting, pod or ENI."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from reconciler.core.attachment import Attachment
from reconciler.core.datapath import FAMILIES, IpNetwork, family_of
from reconciler.diagnostics.why import Where, name_eni, name_pod
from reconciler.domains import nat
from reconciler.domains.inputs import Inputs
from reconciler.domains.nat_objects import NftElement, NftLink, NftSet
from reconciler.domains.nat_rules import ARRIVALS, LINKS, NOUNS
from reconciler.egress.destinations import describe
from schemas.snat import SnatPolicy

ABOUT: Mapping[str, str] = {
    "no_snat": "destinations that see pods' own addresses",
    "pods": "addresses of pods in the VPC, whose packets may be translated",
    "pod_eni": "the ENI by which a pod's packets leave, by its address",
    "by_main": "destinations that table main routes, whatever the pod's ENI",
    "held": "addresses that EC2 gave this node for pods: a packet to one without a pod is refused",
    "guarded": "addresses that may come by a pod's link, and the ENI by which they leave",
    "no_metadata": "pods that are refused instance metadata",
    "group_mark": "the SNAT policy that binds connections of pods in groups",
    "group_nat": "the SNAT policy that translates packets of pods in groups",
    "ruled": "pods that a rule of snat.rules is for",
    "from": "pods that one rule is for, by its place",
    "to": "destinations of one rule of snat.rules, by its place",
    "dedicated": "the address of a pod's namespace, by the pod's",
    "dedicated_eni": "the ENI that has it",
    LINKS: "what is asked of packets by the link that they come by",
    ARRIVALS: "the ENI that a connection to the host is bound to, by the link that it comes by",
}
"""What the sets hold, by the first part of their names."""

MOST_NAMED = 4  # CIDRs that are named of one range


@dataclass(frozen=True, slots=True)
class SetReason:
    """A set, what it is for, and its elements, each with why it is in it."""

    name: str
    why: str
    elements: tuple[tuple[str, str], ...]


def explain_sets(inputs: Inputs, where: Where, name: str | None = None) -> list[SetReason]:
    """Explain the sets that are desired, by name; elements of one set if it is named.

    Raises:
        NotReadyError: the primary ENI's link is not known yet.
    """
    objects = nat.desire(inputs)
    sets = sorted((o.name for o in objects if isinstance(o, NftSet)), key=str)
    elements: dict[str, list[NftElement | NftLink]] = {}
    for o in objects:
        if isinstance(o, NftElement | NftLink):
            elements.setdefault(o.set, []).append(o)
    reasoning = _Reasoning(inputs, where)
    found = []
    for each in sets if name is None else [s for s in sets if s == name]:
        held = sorted(elements.get(each, ()), key=lambda o: o.key)
        told = tuple((_text(o), reasoning.of(o)) for o in held) if each == name else ()
        count = f"{len(held)} element{'' if len(held) == 1 else 's'}"
        found.append(
            SetReason(each, f"{ABOUT.get(noun_of(each), 'of our ruleset')}: {count}", told)
        )
    return found


def noun_of(name: str) -> str:
    """Return the first part of a set's name, which says what it holds."""
    nouns = sorted((*ABOUT, *NOUNS), key=len, reverse=True)
    return next((n for n in nouns if name == n or name.startswith(f"{n}_")), name)


def _text(o: NftElement | NftLink) -> str:
    if isinstance(o, NftElement):
        return f"{o.text} : {o.value}" if o.value else o.text
    return f"{o.link} {o.address}" if o.address else o.link


class _Reasoning:
    """Says why elements are there; what is looked up often is collected once."""

    def __init__(self, inputs: Inputs, where: Where) -> None:
        self._inputs, self._where = inputs, where
        self._pods = {own: a for a in inputs.attachments for own in a.addresses}
        self._by_veth = {a.veth: a for a in inputs.attachments}
        self._enis = {name: eni for eni, name in inputs.pod_enis}

    def of(self, o: NftElement | NftLink) -> str:
        noun = noun_of(o.set)
        if isinstance(o, NftLink):
            return self._of_link(o)
        match noun:
            case "no_snat":
                return self._of_range(o, self._group(o.set))
            case "by_main":
                cidrs = self._inputs.document.routing.external_service_cidrs
                found = (n for n, c in enumerate(cidrs) if _overlap(c, o))
                at = (self._where("routing", "externalServiceCIDRs", n) for n in found)
                return _some(list(at))
            case "to":
                return self._of_rule(o)
            case "dedicated" | "dedicated_eni" | "ruled" | "from":
                return self._of_pod(o, noun)
            case "held":
                enis = (e for e in self._inputs.enis if e.holds(o.first) or e.holds(o.last))
                return _some([name_eni(e) for e in enis]) + " has it in EC2"
            case _:
                return self._of_pod(o, noun)

    def _of_pod(self, o: NftElement, noun: str) -> str:
        pod = self._pods.get(o.first)
        who = name_pod(pod) if pod else "a pod"
        if noun == "no_metadata" and pod is not None:
            return f"{who}, by {self._metadata_of(pod)}"
        return f"{who}{f', on {pod.eni_id}' if pod and pod.eni_id else ''}"

    def _of_rule(self, o: NftElement) -> str:
        """Name what puts a range into the destinations of a rule."""
        place = int(o.set.split("_")[1])
        path = ("snat", "rules", place, "to")
        listed = self._inputs.document.snat.rules[place].to
        return _some(list(self._listed(listed, path, o))) or self._where(*path)

    def _of_link(self, o: NftLink) -> str:
        if pod := self._by_veth.get(o.link):
            return f"{name_pod(pod)}, by {self._where('pods', 'spoofing')}"
        eni = self._enis.get(o.link)
        who = name_eni(eni) if eni else "the primary ENI's link"
        return who if o.set == ARRIVALS else f"{who}, by {self._where('pods', 'spoofing')}"

    def _metadata_of(self, pod: Attachment) -> str:
        namespace, _, name = pod.pod.partition("/")
        for n, entry in enumerate(self._inputs.document.pods.metadata):
            if entry.match.matches(namespace, name):
                return self._where("pods", "metadata", n)
        return self._where("pods", "metadata")

    def _group(self, name: str) -> str:
        for family in FAMILIES:
            if name.startswith(f"no_snat_{family}_"):
                return name.removeprefix(f"no_snat_{family}_")
        return ""

    def _of_range(self, o: NftElement, group: str) -> str:
        """Name what puts a range into a set of destinations that see pods."""
        family, document = family_of(o.first), self._inputs.document
        path: tuple[str | int, ...] = ("snat",)
        policy: SnatPolicy = document.snat
        for n, each in enumerate(document.pod_groups):
            if each.name == group and each.snat is not None:
                path, policy = ("podGroups", n, "snat"), each.snat
        if not family.private:
            return f"{family.name} is never translated"
        if policy.mode == "external":
            return self._where(*path, "mode")
        vpc = [f"{c} of the VPC" for c in self._inputs.node.vpc_cidrs if _overlap(c, o)]
        named = [*vpc, *self._excluded(policy, path, o)]
        if policy.only_cidrs is not None:
            named.append(f"beyond {self._where(*path, 'onlyCIDRs')}")
        return _some(named) or "excluded before, until EC2 tells what a source stands for"

    def _excluded(
        self, policy: SnatPolicy, path: tuple[str | int, ...], o: NftElement
    ) -> Iterator[str]:
        yield from self._listed(policy.exclude_cidrs, (*path, "excludeCIDRs"), o)

    def _listed(
        self, listed: Iterable[IpNetwork | str], path: tuple[str | int, ...], o: NftElement
    ) -> Iterator[str]:
        sources = self._inputs.host.egress.by_name
        for n, each in enumerate(listed):
            at = self._where(*path, n)
            if not isinstance(each, str):
                if _overlap(each, o):
                    yield f"{each} by {at}"
            elif each in sources:
                for entry in sources[each].entries:
                    if _overlap(entry.network, o):
                        yield f"{entry.network} of {describe(each, entry)} by {at}"


def _overlap(network: IpNetwork, o: NftElement) -> bool:
    if network.version != o.first.version:
        return False
    return network.network_address <= o.last and o.first <= network.broadcast_address  # type: ignore[operator]  # of one version


def _some(texts: list[str]) -> str:
    more = len(texts) - MOST_NAMED
    return ", ".join([*texts[:MOST_NAMED], *([f"{more} more"] if more > 0 else [])])
