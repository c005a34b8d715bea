"""What is left out of a pass's plans: pods that leave, and namespaces whose link is another's.

A pass plans on records that it has read at its beginning. A DEL is answered at once, and the
runtime then takes the namespace away, and the link with it: to the look that follows, the pod
seems to lack everything.

Where a link of another owner has the name of ours, nothing else is put into that namespace: it
would give that owner's link our address, and its namespace our default route.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Any

from reconciler.core.attachment import Attachment, AttachmentKey
from reconciler.domains.link import PodLink, Veth
from reconciler.engine.converge import Domain
from reconciler.engine.plan import Action, Key, Plan, Verb
from reconciler.errors import ReconcilerError, boundary
from reconciler.ipam.records import Records
from reconciler.node.kernel_domains import PodObjects

Look = Callable[[Collection[AttachmentKey]], Records]
"""Reads the records of some pods again."""


class Leaving:
    """Takes what would be made for such a pod out of the plans of one pass.

    Args:
        attachments: of the pods that the pass plans for.
        objects: what each of them has.
        look: reads records again; only those of pods for which something would be made.
    """

    def __init__(
        self, attachments: Collection[Attachment], objects: PodObjects, look: Look
    ) -> None:
        self._attachments = attachments
        self._objects = objects
        self._look = look
        self._known: dict[AttachmentKey, bool] = {}
        self._lost: frozenset[str] = frozenset()
        self._others: frozenset[str] = frozenset()

    def left_out(self, domain: Domain, plan: Plan) -> Plan:
        """Return a plan without what would be made for pods that leave, or in another's place."""
        if domain.name == "link":
            refused = (r.about for r in plan.refusals if r.about)
            self._others = frozenset(str(key[0]) for kind, key in refused if kind == PodLink.kind)
        if self._others:
            allowed = tuple(a for a in plan.actions if not self._is_another_s(a))
            plan = replace(plan, actions=allowed)
        made = [a for a in plan.actions if a.verb is not Verb.DELETE]
        if domain.atomic or not made:
            return plan
        if domain.name == "link":
            # The first domain of each look.
            created = [a for a in made if a.verb is Verb.CREATE and a.kind == Veth.kind]
            self._known, self._lost = {}, frozenset(str(a.key[0]) for a in created)
        going = self._going(self._concerned(getattr(a, "object", None) for a in made))
        if not going:
            return plan
        theirs: set[tuple[str, Key]] = set()
        for pod in going:
            # Of one whose objects cannot be told nothing is made but by mistake, and that is seen.
            theirs |= {(o.kind, o.key) for o in self._objects.of(pod) or ()}
        kept = [a for a in plan.actions if a.verb is Verb.DELETE or (a.kind, a.key) not in theirs]
        return replace(plan, actions=tuple(kept))

    def _is_another_s(self, action: Action) -> bool:
        netns = getattr(getattr(action, "object", None), "netns", "")
        return netns in self._others and action.verb is not Verb.DELETE

    def _concerned(self, objects: Iterable[Any]) -> list[Attachment]:
        """Return the pods that these objects are of: in their namespaces, or on their links."""
        places: set[str] = set()
        devices: set[str] = set()
        for o in objects:
            if netns := getattr(o, "netns", ""):
                places.add(netns)
            else:
                devices.add(getattr(o, "device", "") or getattr(o, "name", ""))
        return [a for a in self._attachments if a.netns in places or a.veth in devices]

    def _going(self, attachments: list[Attachment]) -> tuple[Attachment, ...]:
        asked = frozenset(a.key for a in attachments if a.key not in self._known)
        if asked:
            try:
                with boundary("observe of attachment"):
                    now = self._look(asked)
            except ReconcilerError:
                return ()  # the pass has its own look at them, and says so
            now = now.among(asked)
            # Without its namespace no link can be made; one that is there is kept.
            gone = {a.key for a in now.attachments if not a.netns_alive and a.veth in self._lost}
            self._known |= {key: key in gone or key in now.released for key in asked}
        return tuple(a for a in attachments if self._known[a.key])
