"""Reasons about addresses, ENIs and the pool."""

from __future__ import annotations

from reconciler.diagnostics.reasons.entry import BY_ITSELF, NO_POD, Entry

ENTRIES = (
    Entry(
        "AddressesExhausted",
        "No address is free",
        "An ADD waits because every address of the node's ENIs is assigned, cooling, quarantined, "
        "reserved or on the host. The message has the number of each.",
        "The pod stays in ContainerCreating; the runtime asks again after the budget of the ADD.",
        "More pods came than the warm pool holds, and EC2 is being asked; or the pool cannot "
        "grow, and the message ends with the reason why; or pods ended and their addresses cool.",
        "Look at the reason after 'the pool cannot grow', if there is one. Else wait, or raise "
        "warmPool for nodes where pods come in bursts.",
        "By itself, when the pool has grown, a cooldown is over or a pod ends.",
    ),
    Entry(
        "SubnetExhausted",
        "The subnet is full",
        "A subnet has no free addresses, or no whole /28 block with prefixes, for what the pool "
        "lacks.",
        "Pods that need more addresses than the node holds wait; others are served.",
        "The subnet is too small for its nodes, or fragmented by single addresses of others.",
        "Free addresses in the subnet, name further subnets in eni.subnets (or the pod group's), "
        "or lower warmPool on all nodes of the subnet.",
        "By itself: EC2 is asked again every minute while pods wait for room, else every five.",
    ),
    Entry(
        "SubnetRejected",
        "No subnet may be used",
        "The document selects subnets, and none or not all of them can have an ENI of this node: "
        "another zone, another VPC, without the wanted tags, or excluded by tag.",
        "The pool cannot grow beyond the ENIs that the node has.",
        "eni.subnets or subnetTags name subnets of another zone, or tags that no subnet has.",
        "Name a subnet in the node's zone, or tag one; 'node-network explain pool' says why each "
        "is not used.",
        "By itself, once EC2 shows a subnet that fits, or the document is edited.",
    ),
    Entry(
        "SubnetImmutable",
        "An ENI is in a subnet that the document no longer names",
        "EC2 cannot move an ENI to another subnet. Its pods stay; it gets no others.",
        "Its pods run on. Its addresses do not serve new pods.",
        "eni.subnets was edited while the ENI served pods.",
        "Drain the node, if it should go sooner.",
        "When the last pod on that ENI has ended: the ENI is given back then.",
    ),
    Entry(
        "SubnetWithoutFamily",
        "The subnet has no CIDR block of a family",
        "families names a family of which the primary ENI's subnet has no CIDR block.",
        "No pod gets an address on the primary ENI; on other ENIs, if their subnets have one.",
        "families has ipv6, and the subnet was made without an IPv6 block.",
        "Associate a block with the subnet, or set eni.usePrimary to false and name others.",
        "By itself, once EC2 shows the block, or the document is edited.",
    ),
    Entry(
        "PoolLimitReached",
        "The instance or eni.max allows no more addresses",
        "The pool needs more addresses than the instance type, or eni.max, allows.",
        "Pods beyond the limit wait; if only warm addresses lack, no pod feels it.",
        "kubelet takes more pods than the type has addresses for; eni.max is low; ENIs of other "
        "owners, or of other pod groups, take places.",
        "The message names the number that binds: raise eni.max, use prefixes or a larger type, "
        "lower warmPool, or set kubelet's maxPods ('node-network max-pods').",
        BY_ITSELF,
    ),
    Entry(
        "CreationRateReached",
        "ENIs are created and add nothing",
        "So many ENIs were created within an hour without more addresses that no more are made.",
        "Pods that need a further ENI wait; others are served.",
        "Created ENIs fail to attach, or another program deletes or detaches them.",
        "Look at the ENIs with the tag node-network/instance in EC2, and at CloudTrail for who "
        "deletes them.",
        "By itself, when an hour has passed since the first of those creations.",
    ),
    Entry(
        "PrimaryEniUnknown",
        "EC2 does not show the primary ENI",
        "No ENI in EC2's answer has the MAC that instance metadata gives the primary. Its subnet "
        "and security groups, which new ENIs take, are not known.",
        "Pods are served from what the node holds; the pool does not change.",
        "DescribeNetworkInterfaces is answered for another account or region, or without this "
        "instance.",
        "Check the region and the role: 'node-network doctor' makes the call.",
        "By itself, with the next observation that shows it.",
    ),
    Entry(
        "InstanceTypeUnknown",
        "The limits of the instance type are not known",
        "Neither EC2 nor instanceTypes says how many ENIs and addresses the type may have.",
        "Pods are served from what the node holds; it neither grows nor gives back.",
        "DescribeInstanceTypes is denied, or the region does not know the type.",
        "Allow ec2:DescribeInstanceTypes, or name the type in instanceTypes.",
        "By itself: it is asked again after one minute to one hour.",
    ),
    Entry(
        "MaxPodsTooHigh",
        "maxPods is more than the node can serve",
        "The document's maxPods is above what the instance type allows with these settings.",
        "kubelet may place more pods than there are addresses for: those wait.",
        "maxPods was computed for another type, or for prefixes.",
        "Lower maxPods, or use 'node-network max-pods' for kubelet and maxPods: auto.",
        "With an edit of the document.",
    ),
    Entry(
        "KubeletMaxPodsTooHigh",
        "kubelet takes more pods than can be served",
        "The Node object's capacity of pods is above what the instance type allows.",
        "Pods beyond it are placed here and wait for an address.",
        "kubelet's --max-pods comes from a list for another CNI, or for prefixes.",
        "Start kubelet with the number of 'node-network max-pods --kubelet'.",
        "When kubelet was restarted with a lower number.",
    ),
    Entry(
        "DemandUnknown",
        "The node has just started, so nothing is given back yet",
        "What EC2 shows on the node at its first look is kept, because pods may still be coming.",
        NO_POD,
        "A boot: /run is empty, so nothing says how many pods there will be.",
        "Nothing is to be done.",
        "By itself, five minutes after the start, or when pods use what is kept.",
    ),
    Entry(
        "HeldByMode",
        "ec2.mode forbids what the pool needs",
        "The pool would ask EC2 for something, and ec2.mode (keep or frozen) does not allow it.",
        "With frozen, pods beyond the addresses that are held wait.",
        "ec2.mode was set, for a migration or an incident.",
        "Set ec2.mode to full when that is over.",
        "With an edit of the document, or when the pool needs nothing.",
    ),
    Entry(
        "AddressLost",
        "A pod uses an address that EC2 has not assigned to this node",
        "Neither EC2 nor instance metadata shows the address of a running pod on any ENI here.",
        "The VPC drops that pod's packets.",
        "Somebody has unassigned the address, or detached the ENI, in EC2.",
        "If the ENI is there, nothing: the address is asked for again by name. If it is gone, "
        "restart the pod. CloudTrail says who did it.",
        "When EC2 assigns the address again, or the pod has ended.",
    ),
    Entry(
        "AddressElsewhere",
        "A pod's address is on another ENI than on record",
        "EC2 assigns the pod's address to an ENI that its packets do not leave by (audit).",
        "The VPC drops that pod's packets.",
        "Somebody has moved the address between ENIs in EC2.",
        "Restart the pod, or move the address back.",
        "When the pod has ended, or EC2 shows the address where it was.",
    ),
    Entry(
        "SourcesDisagree",
        "EC2 and instance metadata do not say the same",
        "For more than a moment EC2 shows addresses that metadata lacks, or the other way round.",
        "Pods are served from what both show. Nothing is given back meanwhile.",
        "EC2's answers are late, or addresses were changed by somebody else.",
        "Nothing, for some minutes. After that compare DescribeNetworkInterfaces with metadata.",
        "By itself, when they agree.",
    ),
    Entry(
        "AnswerUnreadable",
        "Something that EC2 listed could not be read",
        "A field of an ENI or subnet in EC2's answer is missing or has an unexpected form.",
        "An ENI that cannot be read counts as attached and serves pods; nothing is given back.",
        "A new kind of object in EC2, a proxy that cuts answers, or a bug of ours.",
        "Look at the object in EC2; report it if it looks as usual.",
        "By itself, with the next answer that can be read.",
    ),
    Entry(
        "EgressUnavailable",
        "The node has no address of a family in egressFamilies",
        "Pods should reach destinations of that family by the node's address, and there is none.",
        "Pods start without a way out in that family.",
        "The primary ENI has no address of it.",
        "Assign one to the primary ENI, or take the family out of egressFamilies.",
        "By itself, once EC2 shows an address; pods that run already need a restart.",
    ),
    Entry(
        "GroupGone",
        "An ENI is of a pod group that the document no longer has",
        "Its pods stay on it; no pod is started on it.",
        "Pods on it run on; further pods of those namespaces get other ENIs.",
        "A group was removed from podGroups, or renamed.",
        "Drain the node, if it should go sooner.",
        "When the last pod on that ENI has ended.",
    ),
    Entry(
        "GroupChanged",
        "Pods are on the ENI of another group than the document says now",
        "An edit of podGroups matches pods that run already. They keep ENI and security groups.",
        "They go on with what they started with.",
        "podGroups was edited.",
        "Restart the pods that the message names.",
        "When those pods have restarted.",
    ),
    Entry(
        "AddressesUnknown",
        "Which addresses are free is not known yet",
        "The kernel may hold pods of which no address is known, so none is known to be free.",
        "New pods wait; pods that run are not touched.",
        "Routes of pods could not be read since the start, or a link of ours has no known address "
        "(AddressUnknown).",
        "See AddressUnknown; else look why the kernel cannot be read.",
        BY_ITSELF,
    ),
    Entry(
        "AddressUnknown",
        "A link of ours has no known address",
        "A pod's link is left from before, and its address stands in no record, route, neighbour "
        "or namespace. In audit: what EC2 says of the pod's ENI cannot be read.",
        "New pods wait, so that no address is given twice.",
        "Records were deleted while a pod ran.",
        "End that container, or delete the link that the message names.",
        "When the link is gone, or its address can be read.",
    ),
    Entry(
        "AddressOnHost",
        "The host has an address that is for pods",
        "An address that an ENI holds for pods is also on a link of the host.",
        "No pod is given it. A pod that has it already is cut off: its packets end at the host.",
        "A program that configures every address of an ENI: cloud-init, ec2-net-utils, "
        "systemd-networkd.",
        "Remove the address from the link that the message names, and stop that program.",
        BY_ITSELF,
    ),
    Entry(
        "AddressReserved",
        "A pod, or a namespace, has an address that was reserved since",
        "reservedAddresses names an address that a running pod has, or one that snat.rules have "
        "dedicated to a namespace.",
        "The pod keeps it while it runs; the namespace keeps it.",
        "The document was edited after the address was given.",
        "Restart the pod. For a namespace reserve another address; or remove its rule and write "
        "it again: it gets another address, and meanwhile its new connections leave as the next "
        "rule or policy says.",
        "When the pod has ended, or the namespace has another address.",
    ),
)
