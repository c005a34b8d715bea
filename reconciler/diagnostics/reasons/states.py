"""States of an address, in the words of CNI errors, ``status``, metrics and ``explain``."""

from __future__ import annotations

from reconciler.diagnostics.reasons.entry import NO_POD, Entry

ENTRIES = (
    Entry(
        "allocatable",
        "The address is free",
        "An ENI of this node holds it for pods, and the next pod may get it.",
        NO_POD,
        "The warm pool holds it.",
        "Nothing is to be done.",
        "When a pod gets it, or the pool gives it back.",
    ),
    Entry(
        "assigned",
        "A pod has the address",
        "An attachment on record has it; the kernel's objects of the pod are made from that.",
        "That pod uses it.",
        "An ADD was answered with it, or is about to be.",
        "Nothing is to be done.",
        "With the pod's DEL, or ten seconds after its namespace and link are both gone.",
    ),
    Entry(
        "dedicated",
        "A namespace has the address",
        "Its pods' connections to what snat.rules say carry it; no pod has it.",
        NO_POD,
        "A rule as dedicated matches a namespace that has, or lately had, a pod here.",
        "Nothing is to be done.",
        "With the rule, or a day after the namespace's last pod here; then it cools.",
    ),
    Entry(
        "cooling",
        "The address waits after its pod",
        "Its pod has ended. It is given to another one when warmPool.cooldown is over and "
        "conntrack has no entry of it.",
        "A pod waits for it only if no other address is free.",
        "A pod ended; others may still send to it.",
        "Lower warmPool.cooldown only if clients do not keep trying an address that is gone.",
        "By itself, when the time is over and no connection of it is left.",
    ),
    Entry(
        "quarantined",
        "The address is about to be given back",
        "The pool does not need it. No pod gets it while EC2 is asked to take it back.",
        "A pod that needs it gets it: then it leaves the quarantine, if EC2 was not asked yet.",
        "The pool is above its upper edge.",
        "Nothing is to be done. To keep more, raise warmPool.",
        "When EC2 has taken it back, or the pool needs it again.",
    ),
    Entry(
        "reserved",
        "The document reserves the address",
        "reservedAddresses names it: no pod gets it, and it is not given back.",
        NO_POD,
        "An externalIP or a VIP.",
        "Take it out of reservedAddresses, if pods should have it.",
        "With an edit of the document.",
    ),
    Entry(
        "on the host",
        "The host has the address itself",
        "It is on a link of the host, so no pod is given it: see AddressOnHost.",
        NO_POD,
        "Another program configures ENIs' addresses.",
        "Remove it from that link.",
        "By itself, when it is gone from the host.",
    ),
)
