"""Attachments: who gets which address, and when it is given back.

The binding is recorded before anything is done to the kernel, and the record goes only after
nothing of it is left there. An address therefore always has a witness: a crash at any point
leaves either the record or nothing. Each step below is a transition of ``ipam/life.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from reconciler.core.attachment import (
    Attachment,
    AttachmentKey,
    Cooling,
    Intent,
    IntentState,
    netns_identity,
    pod_veth_name,
    veth_name,
)
from reconciler.core.datapath import IpAddress, family_of
from reconciler.core.facts import Eni
from reconciler.domains import attachment_identities as identities
from reconciler.domains import attachment_issues as issues
from reconciler.domains.attachment_holders import Holders, find_taken
from reconciler.domains.inputs import Inputs
from reconciler.engine.plan import Action, Change, Plan, Verb
from reconciler.errors import Issue
from reconciler.ipam.allocation import Supply, offers
from reconciler.ipam.identity import EgressIdentity
from reconciler.ipam.life import BEFORE, Event, Pod, Pods, State, may, pods_of
from reconciler.ipam.records import Records
from schemas.group import group_of


@dataclass(frozen=True, slots=True)
class Allocation:
    """What may be given: ``supply``, and on which terms: ``inputs``."""

    supply: Supply
    inputs: Inputs

    @property
    def cooldown_s(self) -> float:
        return self.inputs.document.warm_pool.cooldown.total_seconds()

    @property
    def adoptions(self) -> tuple[tuple[Attachment, Intent], ...]:
        """Pods of the stock plugin's that become ours, each with its intent."""
        return self.inputs.host.predecessor.adoptions

    def group(self, pod: str) -> str:
        """Return the group whose addresses a pod gets."""
        return group_of(pod, self.inputs.document.pod_groups)

    def veth(self, key: AttachmentKey, pod: str) -> str:
        """Name a host end; a sandbox of no pod has only its own name to be called by."""
        pods = self.inputs.document.pods
        if pods.veth_name == "pod" and pod:
            return pod_veth_name(pods.veth_prefix, pod)
        return veth_name(pods.veth_prefix, key)


def desire(inputs: Inputs) -> Allocation:
    """Addresses of ENIs that EC2 and the kernel both show; lowest device first."""
    use_primary = inputs.document.eni.use_primary
    usable = [eni for eni, _ in inputs.pod_enis if not eni.is_primary or use_primary]
    supply = Supply(
        enis=tuple(eni for eni in usable if not eni.group),
        families=inputs.document.families,
        egress=inputs.egress,
        elsewhere=inputs.host.predecessor.held,
        occupied=inputs.host.occupied,
        reserved=inputs.host.reserved,
        unread=inputs.host.predecessor.unread,
        unexplained=inputs.kernel.unexplained,
        grouped={
            group.name: tuple(eni for eni in usable if eni.group == group.name)
            for group in inputs.document.pod_groups
        },
    )
    return Allocation(supply, inputs)


def plan(desired: Allocation, observed: Records) -> Plan:
    """Bind what is wanted, release what was given back, end what has cooled."""
    pods = pods_of(observed)
    given, wanting, after = _identify(desired, observed, observed.pods)
    bound, refusals = _bind(desired, pods, after)
    reviewed = [*identities.review(desired.inputs, observed, desired.cooldown_s)]
    begun = {a.object.address for a in reviewed if isinstance(a.object, Cooling)}
    return Plan(
        (
            *_write_again(observed),
            *_complete(pods, observed),
            *_adopt(desired, pods, observed),
            *_expire(desired, pods),
            *end_cooldowns(desired, (c for c in observed.cooling if c.address not in begun)),
            *_release(desired, pods, observed),
            *reviewed,
            *given,
            *bound,
            *_finish(desired, pods),
            *_begin_again(desired, pods),
        ),
        (
            *refusals,
            *identities.capped([*wanting, *identities.find_issues(desired.inputs, observed)]),
            *issues.on_links(desired.supply.unexplained),
            *issues.on_host(desired.supply.occupied, observed),
            *issues.on_reserved(desired.supply.reserved, observed),
            *issues.on_groups(_elsewhere(desired, observed)),
            *issues.on_copies(observed, desired.inputs.kernel.linked),
            *issues.on_files(observed),
        ),
        findings=tuple(_find_kept(desired, observed)),
    )


def plan_pods(keys: Collection[AttachmentKey], desired: Allocation, observed: Records) -> Plan:
    """What these pods wait for: bind what is wanted, release what was given back."""
    some = observed.among(keys)
    asked = pods_of(some)
    given, _, after = _identify(desired, observed, some.pods)
    bound, refusals = _bind(desired, asked, after)
    actions = (*_release(desired, asked, observed), *given, *bound, *_finish(desired, asked))
    return Plan(actions, tuple(refusals))


def _write_again(observed: Records) -> Iterator[Action]:
    """Write again what is known and not on disk, of every kind.

    Nothing waits for it: until it is written the record counts as it is known, and each pass tries
    again.
    """
    for record in observed.lost:
        yield Change(Verb.CREATE, record, "it is known, but its record is not on disk")


def _complete(pods: Pods, observed: Records) -> Iterator[Action]:
    """Tell a rebuilt attachment where its pod is, once an intent says it.

    The kernel does not know the path. An intent that could not be read when the attachment was
    rebuilt, because another release wrote it, may be readable by now.
    """
    if all(a.netns for a in observed.attachments):
        return
    taken = {a.netns for a in observed.attachments}
    for pod in (*pods[State.BOUND], *pods[State.READY]):
        before, intent = pod.attachment, pod.intent
        if before is None or before.netns or intent is None or not intent.netns_alive:
            continue
        netns = netns_identity(intent.netns, intent.netns_inode)
        if netns not in taken:
            taken.add(netns)
            after = replace(before, netns=netns, pod=before.pod or intent.pod, netns_alive=True)
            yield Change(Verb.UPDATE, after, "its intent says where it is", before)


def _adopt(desired: Allocation, pods: Pods, observed: Records) -> Iterator[Action]:
    """Record the stock plugin's pods as ours, as if they had asked us for what they have."""
    if not desired.adoptions:
        return
    asked = {i.key for i in observed.intents}
    states = (state for state in State if state not in BEFORE[Event.ADOPT])
    bound = {pod.key for state in states for pod in pods[state]}
    reason = "a pod of the stock plugin's"
    for attachment, intent in desired.adoptions:
        if attachment.key not in bound:
            yield Change(Verb.CREATE, attachment, reason)
        if intent.key not in asked:
            yield Change(Verb.CREATE, intent, reason)


def _expire(desired: Allocation, pods: Pods) -> Iterator[Action]:
    """Release what no DEL will come for: its namespace has been gone for a while.

    If even its intent is gone, one is written as a DEL would have: from there on it is as any.
    """
    for pod in may(pods, Event.EXPIRE):
        if pod.key not in desired.inputs.kernel.dead or pod.netns_alive:
            continue
        if pod.intent is not None:
            after = replace(pod.intent, state=IntentState.RELEASED)
            reason = "its namespace is gone, and no DEL came"
            yield Change(Verb.UPDATE, after, reason, pod.intent)
        else:
            given_back = Intent(pod.key, IntentState.RELEASED, "", 0)
            yield Change(Verb.CREATE, given_back, "it is not wanted any more")


def end_cooldowns(desired: Allocation, cooling: Iterable[Cooling]) -> Iterator[Action]:
    """End a cooldown when its time is over and no connection of the old pod is left.

    A client that retries with the same ports would be sent the old pod's way for as long as
    conntrack remembers it (amazon-vpc-cni-k8s #3634). None waits longer than a cooldown from now:
    a longer one was written before the clock was set back, or before the document shortened it.
    """
    longest = desired.inputs.now + desired.cooldown_s
    for c in cooling:
        if c.until > longest:
            reason = f"no cooldown is longer than {desired.cooldown_s:g} s"
            yield Change(Verb.UPDATE, replace(c, until=longest), reason, c)
        elif c.until <= desired.inputs.now and c.address not in desired.inputs.kernel.flows:
            yield Change(Verb.DELETE, c, "cooldown over")


def _release(desired: Allocation, pods: Pods, observed: Records) -> Iterator[Action]:
    """Cooldown first, then the binding, then the intent: at every point the address is held."""
    cooling = {c.address for c in observed.cooling}
    for pod in may(pods, Event.CLEAR):
        if pod.attachment is None or pod.key not in desired.inputs.kernel.clear:
            continue  # the kernel comes first
        yield from _cool(pod.attachment.addresses, cooling, "released", desired)
        is_released = pod.state is State.RELEASED
        reason = "the runtime gave it back" if is_released else "its sandbox is no more"
        yield Change(Verb.DELETE, pod.attachment, reason)
        if is_released:
            yield from _forget(pod, cooling, desired)
    for pod in may(pods, Event.FORGET):
        yield from _forget(pod, cooling, desired)


def _forget(pod: Pod, cooling: Collection[IpAddress], desired: Allocation) -> Iterator[Action]:
    """Remove the intent, and end what an unreadable record stands for.

    Its addresses cool down: without it they would be free at once.
    """
    if pod.torn is not None:
        known = pod.attachment.addresses if pod.attachment else ()
        named = sorted(pod.torn.addresses - set(known), key=lambda a: (a.version, int(a)))
        yield from _cool(named, cooling, "released, by a torn record", desired)
        yield Change(Verb.DELETE, pod.torn, "the runtime gave back what it was about")
    if pod.intent is not None:
        yield Change(Verb.DELETE, pod.intent, "done")


def _cool(
    addresses: Iterable[IpAddress], cooling: Collection[IpAddress], why: str, desired: Allocation
) -> Iterator[Action]:
    for address in addresses:
        if address not in cooling and desired.cooldown_s > 0:
            until = desired.inputs.now + desired.cooldown_s
            yield Change(Verb.CREATE, Cooling(address, until), why)


def _bind(desired: Allocation, asked: Pods, observed: Records) -> tuple[list[Action], list[Issue]]:
    """Give addresses to the pods that wait for one, or say why they get none."""
    others = [a for a, _ in desired.adoptions]
    adopted = {a.key for a in others}
    refusals = list(_why_not(asked, adopted))
    pods = [p for p in may(asked, Event.BIND) if p.netns_alive and p.key not in adopted]
    turns = {key: turn for turn, key in enumerate(desired.inputs.kernel.asking)}
    # By keys, which are random, one could wait for ever behind those that follow.
    pods.sort(key=lambda pod: turns.get(pod.key, len(turns)))
    new = [p.intent for p in pods if p.intent is not None]
    if not new:
        return [], refusals
    holders = Holders((*observed.attachments, *others))
    taken = find_taken(holders.held, desired.supply, observed, desired.inputs.now)
    supply = desired.supply
    leaving = [*(q.network for q in observed.quarantined), *supply.occupied, *supply.reserved]
    offered: dict[str, Iterator[tuple[Eni, tuple[IpAddress, ...]]]] = {}
    actions: list[Action] = []
    for intent in new:
        veth = desired.veth(intent.key, intent.pod)
        if obstacle := _obstacle(intent, veth, holders, desired.supply, observed):
            refusals.append(obstacle)
            continue
        group = desired.group(intent.pod)
        if group not in offered:
            offered[group] = offers(supply.of(group), taken, leaving)
        if offer := next(offered[group], None):
            eni, addresses = offer
            attachment = Attachment(
                key=intent.key,
                netns=netns_identity(intent.netns, intent.netns_inode),
                addresses=addresses,
                eni_id=eni.eni_id,
                veth=veth,
                pod=intent.pod,
                unfinished=True,
            )
            reason = f"wanted by {intent.pod or intent.key}"
            actions.append(Change(Verb.CREATE, attachment, reason))
            holders.add(attachment)
        else:
            refusals.append(issues.exhausted(intent, supply.of(group), observed, group))
    return actions, refusals


def _identify(
    desired: Allocation, observed: Records, pods: Collection[str]
) -> tuple[list[Change[EgressIdentity]], list[Issue], Records]:
    """Give addresses to namespaces; return the records as they will be, too.

    Before pods: without its own a namespace's pods can open no connections.
    """
    if not desired.inputs.document.snat.rules:
        return [], [], observed
    held = (*observed.attachments, *(a for a, _ in desired.adoptions))
    taken = find_taken(held, desired.supply, observed, desired.inputs.now)
    actions, refusals = identities.bind(desired.supply, desired.inputs, observed, pods, taken)
    given = {a.object.key: a.object for a in actions}
    kept = (i for i in observed.identities if i.key not in given)
    return actions, refusals, replace(observed, identities=(*kept, *given.values()))


def _why_not(asked: Pods, adopted: Collection[AttachmentKey]) -> Iterator[Issue]:
    """Say which pods are not served because of what their own records say."""
    for state in (State.WANTED, State.UNREADABLE, State.BOUND, State.READY):
        for pod in asked[state]:
            if pod.intent is not None and not pod.netns_alive:
                yield issues.why_not("netns_gone", pod.intent)
    for pod in asked[State.REPLACED]:
        if pod.intent is not None:
            yield issues.why_not("sandbox_replaced", pod.intent)
    for pod in asked[State.UNREADABLE]:
        if pod.intent and pod.torn and pod.netns_alive and pod.key not in adopted:
            yield issues.why_not("undecided", pod.intent, path=pod.torn.path)


def _obstacle(
    intent: Intent, veth: str, holders: Holders, supply: Supply, observed: Records
) -> Issue | None:
    """Say why a pod may get no address, however many are free."""
    if holder := holders.of_namespace(intent):
        taken = "netns_leaving" if holder in observed.released else "netns_taken"
        return issues.why_not(taken, intent, holder=holder)
    if holder := holders.veths.get(veth):
        return issues.why_not("veth_taken", intent, veth=veth, holder=holder)
    if supply.unread:
        return issues.why_not("unread", intent)
    if links := supply.unexplained:
        more = f" and of {len(links) - 1} more" if len(links) > 1 else ""
        return issues.why_not("unexplained", intent, links=links[0].veth + more)
    return None


def _finish(desired: Allocation, pods: Pods) -> Iterator[Action]:
    """Record that everything was seen in place, before the ADD is answered.

    From then on the pod's namespace is the pod's own, also after a restart.
    """
    for pod in may(pods, Event.FINISH):
        if pod.attachment is not None and pod.key in desired.inputs.kernel.finished:
            after = replace(pod.attachment, unfinished=False)
            yield Change(Verb.UPDATE, after, "everything of it is in place", pod.attachment)


def _begin_again(desired: Allocation, pods: Pods) -> Iterator[Action]:
    """Record that a link is gone and is made anew, with all that ADD would put into it.

    Both of its ends are gone then, so nothing of the pod's own is in the way. Before it is made,
    because a crash must not leave a link without an address.
    """
    here = (
        desired.inputs.kernel.linked
        | desired.inputs.kernel.finished
        | {a.key for a, _ in desired.adoptions}
    )
    for pod in may(pods, Event.BEGIN_AGAIN):
        before = pod.attachment
        if before is not None and before.netns_alive and pod.key not in here:
            yield Change(Verb.UPDATE, replace(before, unfinished=True), "its link is gone", before)


def _elsewhere(desired: Allocation, observed: Records) -> list[str]:
    """Name the pods that are on an ENI of another group than the document puts them in now."""
    groups = {e.eni_id: e.group for e in desired.inputs.enis}
    if not desired.supply.grouped and not any(groups.values()):
        return []
    return [
        f"{a.pod or a.key} ({a.eni_id} of {groups.get(a.eni_id) or 'no group'})"
        for a in observed.living
        if desired.group(a.pod) != groups.get(a.eni_id, "")
    ]


def _find_kept(desired: Allocation, observed: Records) -> Iterator[Issue]:
    """Name the pods that keep what they have started with, whatever the document says now.

    Other programs know a running pod by the name of its link, and its runtime by its addresses.
    Pods that were taken over have names of the stock plugin's, which is expected.
    """
    families = {*desired.supply.families, *desired.supply.egress}
    names: list[str] = []
    addresses: list[str] = []
    for a in observed.living:
        who = a.pod or str(a.key)
        if not any(a.kept_macs) and a.veth != desired.veth(a.key, a.pod):
            names.append(f"{who} ({a.veth})")
        if {family_of(own).name for own in a.addresses} != families:
            addresses.append(f"{who} ({', '.join(map(str, a.addresses))})")
    return issues.kept(names, addresses)
