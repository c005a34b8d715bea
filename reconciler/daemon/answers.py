"""Answers to the questions of the CNI executable and of the command line.

A question is one JSON object and so is its answer. It carries no state: what is wanted was
written to the state directory before.
"""

from __future__ import annotations

import json
from typing import Any

from cni import protocol
from reconciler.core.attachment import Attachment, AttachmentKey, netns_path
from reconciler.core.datapath import family_of, host_network
from reconciler.daemon.agent import Agent
from reconciler.engine.issue import Issue
from reconciler.targets.netlink.namespaces import own_namespace

CODES = {
    "AlreadyAttached": protocol.ALREADY_ATTACHED,
    "InterfaceExists": protocol.INTERFACE_EXISTS,
    "ObjectExists": protocol.OBJECT_EXISTS,
    "NetnsTaken": protocol.NETNS_TAKEN,
    "NotAttached": protocol.UNKNOWN_CONTAINER,
    "Differs": protocol.KERNEL_DIFFERS,
    "ForeignObject": protocol.KERNEL_DIFFERS,
    "NotAvailable": protocol.NOT_AVAILABLE,
    "Limited": protocol.LIMITED,
}
"""What the executable says, by reason; for all others there is a point in trying again later."""

MALFORMED = (ValueError, KeyError, TypeError, OverflowError, RecursionError)
"""What a question raises that is none."""

OF_A_POD = frozenset({"add", "del", "check", "release"})
"""Questions about one pod's attachment."""

MAX_ANSWER = 1 << 20
"""Bytes of an answer: what the executable and ``node-network status`` read of one."""

LONGEST_BUDGET_S = 110.0
"""Seconds; kubelet gives a sandbox two minutes."""


def answer(agent: Agent, question: dict[str, Any]) -> dict[str, Any]:
    """Answer a question that ``check`` has let pass."""
    parts = agent.parts
    match question["do"]:
        case "add":
            return _answer_add(agent, question)
        case "del":
            parts.pods.release(key_of(question))  # it is on disk: there is nothing to wait for
            return {"ok": True}
        case "release":
            try:
                parts.node.state.hand_over(question["intent"])
            except MALFORMED as error:
                return refuse(protocol.DECODING_FAILURE, "it is no release", error)
            parts.pods.release(key_of(question))
            return {"ok": True}
        case "check":
            return _result(parts.checks.check(key_of(question)), agent)
        case "ready":
            obstacle = agent.find_obstacle()
            return refuse_for(obstacle) if obstacle else {"ok": True}
        case "status":
            return _within({"ok": True, "status": agent.status()})
        case other:
            return refuse(protocol.DECODING_FAILURE, f"unknown request {other!r}", "")


def check(question: dict[str, Any]) -> None:
    """Refuse a question that cannot be understood; what fails later is no fault of it.

    Raises:
        ValueError, KeyError, TypeError: it lacks something, or has it wrong.
    """
    if question["do"] in OF_A_POD:
        key_of(question)
    if question["do"] == "add":
        _budget_s(question)


def _budget_s(question: dict[str, Any]) -> float:
    budget_s = float(question.get("budgetSeconds", 30))
    if not 0 < budget_s <= LONGEST_BUDGET_S:
        raise ValueError(f"budgetSeconds {budget_s}")
    return budget_s


def _answer_add(agent: Agent, question: dict[str, Any]) -> dict[str, Any]:
    requests = agent.parts.requests
    key, attempt = key_of(question), str(question.get("attempt", ""))
    budget_s = _budget_s(question)
    # Of this thread: the one that the process is known by is in a pod's namespace now and then.
    if question.get("netnsInode") == own_namespace()[1]:
        why = "the host would lose its own network"
        return refuse(
            protocol.INVALID_ENVIRONMENT, "CNI_NETNS is the reconciler's own namespace", why
        )
    message = "it has its interface already, and keeps it; a DEL for it comes first"
    already = Issue(f"attachment {key}", "AlreadyAttached", message)
    # First: a runtime that hears of another failure deletes what the first ADD was given.
    if requests.was_answered(key, attempt):
        return refuse_for(already)
    outcome = requests.await_attachment(key, budget_s)
    if isinstance(outcome, Attachment) and not requests.claim(key, attempt):
        outcome = already
    return _result(outcome, agent)


def _within(reply: dict[str, Any]) -> dict[str, Any]:
    """Return an answer to ``status`` that is not too long: the longest lists lose their ends.

    Of what was left out, ``shortened`` has the number, by list.
    """
    status, shortened = dict(reply["status"]), {}
    lists = {name: value for name, value in status.items() if isinstance(value, list)}
    while lists and len(encode(reply)) > MAX_ANSWER:
        name = max(lists, key=lambda n: len(json.dumps(status[n])))
        status[name] = status[name][: len(status[name]) // 2]
        shortened[name] = len(lists[name]) - len(status[name])
        reply = {"ok": True, "status": status | {"shortened": shortened}}
    return reply


def refuse_for(refusal: Issue) -> dict[str, Any]:
    """Answer that something is not done, with its reason."""
    code = CODES.get(refusal.reason, protocol.TRY_AGAIN)
    reply = refuse(code, f"{refusal.reason}: {refusal.message}", refusal.subject)
    return reply | {"reason": refusal.reason}


def _result(attachment: Attachment | Issue, agent: Agent) -> dict[str, Any]:
    """Return what the pod was given, in the terms of a CNI result, or why it was not."""
    if isinstance(attachment, Issue):
        return refuse_for(attachment)
    mtu = agent.parts.document.current.pod_mtu  # there is one: something was given by it
    # kubelet takes the pod's addresses from here: only those that others can reach it by.
    addresses = attachment.vpc_addresses
    families = [family_of(a) for a in addresses]
    return {
        "ok": True,
        "interfaces": [
            {"name": attachment.veth, "mac": attachment.host_mac, "mtu": mtu, "sandbox": ""},
            {
                "name": attachment.key.ifname,
                "mac": attachment.pod_mac,
                "mtu": mtu,
                "sandbox": netns_path(attachment.netns),
            },
        ],
        "ips": [
            {"address": str(host_network(a)), "gateway": str(family.gateway), "interface": 1}
            for a, family in zip(addresses, families, strict=True)
        ],
        "routes": [{"dst": str(f.everything), "gw": str(f.gateway)} for f in families],
        "dns": {},
    }


def key_of(question: dict[str, Any]) -> AttachmentKey:
    """Return the attachment that a question is about."""
    return AttachmentKey(str(question["containerID"]), str(question["ifname"]))


def refuse(code: int, message: str, details: object) -> dict[str, Any]:
    """Answer with an error of the CNI specification or of ours."""
    return {"ok": False, "code": code, "msg": message, "details": str(details)}


def encode(reply: dict[str, Any]) -> bytes:
    """Return an answer as its line on the socket."""
    return json.dumps(reply).encode() + b"\n"
