"""Reasons that are EC2's own error codes, and those of sources that EC2 tells of."""

from __future__ import annotations

from reconciler.diagnostics.reasons.entry import NO_POD, Entry

_GROWTH = "Pods that need what was asked for wait; pods with free addresses are served."
_AGAIN = (
    "By itself: the call is made again after a growing delay; 'node-network retry' makes it now."
)
_DENIED = (
    "Allow the action that the message names, and those that 'node-network doctor' finds missing "
    "besides, to the node's role, then 'node-network retry'."
)


def _throttled(code: str, who: str) -> Entry:
    return Entry(
        code,
        "EC2 calls are throttled",
        f"{who} So the call was not made or not answered, and nothing has changed.",
        _GROWTH,
        "Many nodes of the account start at once, or another program calls EC2 in a loop.",
        "Find who makes the calls (CloudTrail); a larger warmPool.minimum lets pods wait for "
        "fewer calls. AWS raises the limits on request.",
        "By itself: the call is made again after 1 to 60 s, at random, doubled each time.",
    )


def _denied(code: str, why: str) -> Entry:
    return Entry(
        code,
        "EC2 does not allow a call",
        f"{why} The message names the call.",
        _GROWTH,
        "The policy of the node's role lacks an action, or has a condition (a tag, a subnet, a "
        "region) that this call does not meet; a service control policy denies it.",
        _DENIED,
        "By itself within 10 minutes after the right is there, within 15 s while pods wait.",
    )


def _full(code: str, what: str) -> Entry:
    return Entry(
        code,
        "The subnet has no room",
        f"EC2 has refused a call because {what}.",
        _GROWTH,
        "The subnet is too small for its nodes, or fragmented.",
        "As for SubnetExhausted: free addresses, or name further subnets.",
        "By itself: the subnet is asked about again, and the call is made again.",
    )


def _limit(code: str, what: str, cure: str) -> Entry:
    return Entry(
        code,
        "A limit of EC2 is reached",
        f"EC2 has refused a call because {what}.",
        _GROWTH,
        "Other owners' ENIs or addresses take places, or a quota of the AWS account is used up.",
        cure,
        _AGAIN,
    )


def _lost(code: str, why: str) -> Entry:
    return Entry(
        code,
        "EC2's answer to a call is not known",
        f"{why} Whether the call had its effect is looked at before it is made again.",
        _GROWTH,
        "EC2 or the way to it (a proxy, a VPC endpoint, DNS) fails or is slow.",
        "If it lasts, look at the way to EC2 with 'node-network doctor', and at AWS' status page.",
        _AGAIN,
    )


ENTRIES = (
    _throttled("RequestLimitExceeded", "The account makes more EC2 calls than EC2 allows."),
    _throttled("Throttling", "The account makes more EC2 calls than EC2 allows."),
    _throttled("ThrottlingException", "The account makes more EC2 calls than EC2 allows."),
    _throttled(
        "BudgetExhausted",
        "This node has used up its own budget of EC2 calls, which spares others.",
    ),
    _denied("UnauthorizedOperation", "The node's role may not make a call that is needed."),
    _denied("AccessDenied", "The node's role may not make a call that is needed."),
    Entry(
        "AuthFailure",
        "EC2 does not accept the credentials",
        "EC2 refuses the node's credentials for this call. The message names the call.",
        _GROWTH,
        "The role was deleted or replaced, the node's clock is wrong, or the credentials are of "
        "another account.",
        "Check the instance profile, and the clock; 'node-network doctor' makes a call.",
        _AGAIN,
    ),
    Entry(
        "InvalidClientTokenId",
        "EC2 does not know the credentials",
        "The access key that the node has does not exist.",
        _GROWTH,
        "The role was deleted, or the region belongs to another partition.",
        "Check the instance profile and the region.",
        _AGAIN,
    ),
    Entry(
        "OptInRequired",
        "The AWS account may not use EC2 here",
        "The account is not subscribed to EC2 in this region.",
        _GROWTH,
        "The region needs to be enabled for the account.",
        "Enable the region.",
        _AGAIN,
    ),
    _full("InsufficientFreeAddressesInSubnet", "the subnet has too few free addresses"),
    _full("InsufficientCidrBlocks", "the subnet has no whole /28 block left"),
    _full("InsufficientCapacity", "it has no capacity for it in this zone"),
    _limit(
        "AttachmentLimitExceeded",
        "the instance has as many ENIs as its type allows",
        "Detach ENIs of other owners, use a larger type, or lower warmPool.",
    ),
    _limit(
        "NetworkInterfaceLimitExceeded",
        "the AWS account has as many ENIs as its quota allows",
        "Raise the quota (VPC, network interfaces per region), or run 'node-network gc' for what "
        "nodes have left behind.",
    ),
    _limit(
        "PrivateIpAddressLimitExceeded",
        "the ENI has as many addresses as the type allows",
        "See which addresses of the ENI are another program's; 'node-network explain pool' "
        "has the numbers.",
    ),
    Entry(
        "QuestionTooLong",
        "A call to EC2 would be too long",
        "A call has more objects than the process that calls EC2 takes. It was not sent.",
        _GROWTH,
        "A document with very many subnets or tags, or a bug of ours.",
        "Please report it with 'node-network sysdump'.",
        _AGAIN,
    ),
    Entry(
        "NotStarted",
        "The process that calls EC2 cannot be started",
        "EC2 is called by a process of its own, and the host does not start it.",
        _GROWTH,
        "The pids cgroup, memory or descriptors are used up.",
        "See the message; raise the limit, or end what uses it up.",
        _AGAIN,
    ),
    _lost("AnswerLost", "A call was sent and no whole answer came."),
    _lost("InternalFailure", "EC2 says that it has failed within."),
    _lost("Unavailable", "EC2 says that it is not available."),
    _lost("ServiceUnavailable", "EC2 says that it is not available."),
    Entry(
        "InvalidInstanceType",
        "The region does not know the instance type",
        "EC2 cannot tell the limits of this node's instance type.",
        "Pods are served from what the node holds; it neither grows nor gives back.",
        "A new type that the region does not describe yet.",
        "Name the type and its limits in instanceTypes.",
        "By itself: it is asked again after 1 to 60 minutes.",
    ),
    Entry(
        "SourceUnknown",
        "What a source of snat stands for is not known yet",
        "snat names a source (@peering, a prefix list, ...) that EC2 has not told of since it was "
        "named.",
        "What was excluded before stays excluded, and nothing else.",
        "A new document: the first look at EC2 is under way, or has failed.",
        "If it lasts, look for another condition of the same source, which says why.",
        "By itself, with EC2's first answer.",
    ),
    Entry(
        "SourceShrinks",
        "EC2 no longer shows a CIDR of a source",
        "One look at EC2 lacks a CIDR that was excluded from SNAT. It stays excluded until a "
        "second look agrees, a minute later.",
        "None yet. Then new connections there carry the node's address.",
        "A peering, a route or a prefix list entry was removed; or EC2's answer was short.",
        "If it is wrong, restore it in EC2, or name the CIDR in the document.",
        "By itself, with the second look.",
    ),
    Entry(
        "StaleAnswer",
        "EC2 has answered with an older version of a prefix list",
        "The version in the answer is below one that was seen before, so the answer counts for "
        "nothing.",
        NO_POD,
        "EC2's answers are not yet consistent after an edit of the prefix list.",
        "Nothing is to be done.",
        "By itself, with the next answer.",
    ),
    Entry(
        "TooManyEntries",
        "A source stands for too many CIDRs",
        "A source stands for more than 5,000 CIDRs, or all of them for more than 10,000.",
        "The last good value stays; what is new in the source is not excluded from SNAT.",
        "A prefix list or route table has grown, or a source is wider than was meant.",
        "Name a smaller source, or CIDRs.",
        "With an edit of the document, or when EC2 shows fewer.",
    ),
    Entry(
        "PrefixListNotFound",
        "EC2 does not know a prefix list",
        "snat names a prefix list that EC2 does not show to this account.",
        "The last good value stays; without one, nothing of it is excluded from SNAT.",
        "A typing error, another region, or the list is no longer shared with the account.",
        "Correct the id, or share the list (AWS Resource Access Manager).",
        "By itself, once EC2 shows it, or with an edit of the document.",
    ),
    Entry(
        "TooManyPrefixLists",
        "More prefix lists are named than are read",
        "snat, and the routes of its sources, name more prefix lists than are asked for at once.",
        "The last good value stays; what is new in the lists is not excluded from SNAT.",
        "Route tables with many prefix lists.",
        "Name the prefix lists that matter, or CIDRs.",
        "With an edit of the document, or when EC2 shows fewer.",
    ),
    Entry(
        "AnswerShort",
        "EC2's answer lacks something that must be there",
        "EC2 showed no main route table, or several, and a VPC has exactly one.",
        "The last good value stays.",
        "EC2's answer was cut or is not yet consistent; a VPC endpoint's policy hides the table.",
        "If it lasts, call DescribeRouteTables with the node's role.",
        "By itself, with the next whole answer.",
    ),
    Entry(
        "Ipv6PrefixList",
        "A prefix list has IPv6 entries",
        "snat names a prefix list of IPv6; IPv6 is never translated, so it means nothing there.",
        NO_POD,
        "The id of another list was copied.",
        "Name a list of IPv4, or take it out.",
        "With an edit of the document.",
    ),
    Entry(
        "ExcludesEverything",
        "Everything is excluded from SNAT",
        "Every destination sees pods' own addresses, the internet too.",
        "Without a NAT gateway nothing on the internet answers pods.",
        "excludeCIDRs has 0.0.0.0/0, or a source (a default route) that stands for it.",
        "Take that out, or write snat.mode external if it is meant.",
        "With an edit of the document, or of what the source stands for.",
    ),
    Entry(
        "ExcludesServices",
        "The range of external services is excluded from SNAT",
        "routing.externalServiceCIDRs is within what is excluded from SNAT.",
        "Connections to those services may not be answered: answers bypass what handles them.",
        "A CIDR or source that was excluded is wider than was meant.",
        "Exclude less, or correct routing.externalServiceCIDRs.",
        "With an edit of the document.",
    ),
)

UNKNOWN = Entry(
    "any other code of EC2",
    "EC2 has refused a call",
    "The reason is EC2's own error code, and the message has EC2's own text and the call.",
    _GROWTH,
    "See EC2's text. A code that ends in .NotFound: EC2 does not know, or not yet, an object that "
    "the call names.",
    "See 'Error codes for the Amazon EC2 API' in AWS' documentation.",
    _AGAIN,
)
"""Of a code that has no entry."""
