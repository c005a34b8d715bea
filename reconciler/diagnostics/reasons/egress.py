"""Reasons about the addresses that others see: the document's rules, and dedicated addresses."""

from __future__ import annotations

from reconciler.diagnostics.reasons.entry import BY_ITSELF, NO_POD, Entry

REFUSED = (
    "New connections of the namespace's pods that a rule sends by the dedicated address are "
    "refused at once; all others, and open ones, go on."
)

ENTRIES = (
    Entry(
        "IdentityMissing",
        "A namespace has no dedicated address yet",
        "A rule of snat.rules gives the namespace an address of its own, and none is free; or it "
        "has one, and none of another family that pods have.",
        REFUSED,
        "All addresses of the ENIs are in use, cool down, or are reserved; the pool grows, or "
        "cannot.",
        "Wait for the pool; if PoolLimitReached or SubnetExhausted says that it cannot grow, run "
        "fewer pods here, or use a larger instance type.",
        "By itself, when an address is free.",
    ),
    Entry(
        "IdentityLost",
        "A dedicated address cannot be used",
        "EC2 no longer shows it on its ENI, or the ENI's link is not on the node.",
        REFUSED,
        "Somebody has unassigned the address, or detached the ENI.",
        "Find out who changes ENIs of the node. After two minutes the namespace gets another "
        "address; whoever knows the old one by a firewall rule must be told.",
        "By itself, when the address is back or replaced.",
    ),
    Entry(
        "TooManyIdentities",
        "The node has as many dedicated addresses as it may",
        "More than 64 namespaces with pods on this node should have one.",
        REFUSED,
        "A pattern in snat.rules matches many namespaces.",
        "Name fewer namespaces, or spread their pods over more nodes. One without pods for a day "
        "gives its address back.",
        "By itself, when there are fewer.",
    ),
    Entry(
        "NotANamespace",
        "A pod's namespace has no name that Kubernetes would give",
        "A rule as dedicated matches it, and what the runtime says is no label (RFC 1123).",
        REFUSED,
        "The runtime passes something else in K8S_POD_NAMESPACE.",
        "Correct the runtime's CNI_ARGS, or the pattern in snat.rules.",
        "When that pod has ended.",
    ),
    Entry(
        "NodeAddressMissing",
        "The node has no address of a family that a rule sends by",
        "A rule as node is about IPv6, and the primary ENI has no IPv6 address of its own.",
        "New connections there of the pods that the rule is for are refused at once.",
        "The node's subnet does not assign IPv6 addresses at launch.",
        "Assign one to the primary ENI, or write pod or dedicated in the rule.",
        BY_ITSELF,
    ),
    Entry(
        "RuleNeverMatches",
        "A rule of snat.rules never decides",
        "Earlier rules are about the same namespaces and all of its destinations, or it means "
        "nothing beyond the VPC.",
        NO_POD,
        "Rules stand in the wrong order, or an old one was left.",
        "Remove it, or put the narrower rule first.",
        "With an edit of the document.",
    ),
    Entry(
        "NoWayBack",
        "A rule sends private addresses towards the internet",
        "A rule as pod or dedicated is about public addresses. An internet gateway drops private "
        "sources that have no Elastic IP.",
        "Nothing there answers pods of these namespaces, unless a NAT gateway is on the way.",
        "The rule means the internet, or a partner that is reached by a private line.",
        "Write as node; or have the subnets' route tables lead there by a NAT or transit gateway.",
        "With an edit of the document.",
    ),
    Entry(
        "IdentitiesNotKept",
        "Dedicated addresses cannot be kept for the next boot",
        "The file identities.json in --keep-dir cannot be written.",
        "None until a reboot; then namespaces get other addresses.",
        "The disk is full, or mounted read-only.",
        "Free the disk, or remount it.",
        BY_ITSELF,
    ),
    Entry(
        "AssignedAndDedicated",
        "A pod has an address that is dedicated to a namespace",
        "A record of a pod and one of a namespace name the same address (audit).",
        "The namespace gets another address with the next pass.",
        "A record was put back by hand.",
        "Nothing is to be done if it ends; or else report it with a sysdump.",
        BY_ITSELF,
    ),
)
