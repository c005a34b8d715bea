"""What a node needs so that pods can be served, as checks: judged from what was read. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from reconciler.diagnostics.reasons import catalogue
from reconciler.errors import Issue


class State(StrEnum):
    """How a check went.

    Attributes:
        OK: nothing is in the way.
        WARN: pods are served, and something is not as it should be.
        FAIL: pods are not served, or will not be when the pool must grow.
        SKIPPED: it could not be checked.
    """

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"
    SKIPPED = "skip"


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    ``cure``: what to do; "" if nothing is to be done. ``about``: what it is the same as, if
    something else has found it too: reason and subject.
    """

    name: str
    state: State
    text: str
    cure: str = ""
    about: tuple[str, str] | None = None


def exit_status(checks: Iterable[Check]) -> int:
    """Return 0 if all is well, 1 if something warns, 2 if something fails."""
    states = {c.state for c in checks}
    return 2 if State.FAIL in states else 1 if State.WARN in states else 0


def once(checks: Iterable[Check]) -> Iterator[Check]:
    """Leave out what was said before and was no better: conditions, and what is found again."""
    said: dict[tuple[str, str], bool] = {}
    for check in checks:
        fails = check.state is State.FAIL
        if check.about is not None:
            if check.about in said and said[check.about] >= fails:
                continue
            said[check.about] = fails
        yield check


OLDEST, ADVISED = (5, 2), (5, 8)
"""Kernels. Chains of type nat in tables of family inet came with Linux 5.2 (nf_tables); before 5.8
the kernel does not filter conntrack's entries (CTA_FILTER), and whole tables are streamed."""

CAPABILITIES: Mapping[str, int] = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}
"""What is needed, and its bit (linux/capability.h): to change the network, and to enter pods'
namespaces (setns(2))."""

NEARLY_FULL = 0.8
"""Share of conntrack's table from which new connections of a burst may be dropped."""

FORWARDING = "net/ipv4/ip_forward"
NO_IPV6 = "net/ipv6/conf/all/disable_ipv6"
FLOWS, MOST_FLOWS = "net/netfilter/nf_conntrack_count", "net/netfilter/nf_conntrack_max"
INSTANCES = "fs/inotify/max_user_instances"

SETTINGS = (FORWARDING, NO_IPV6, FLOWS, MOST_FLOWS, INSTANCES)
"""Settings that are looked at, as paths below /proc/sys."""

FEW_INSTANCES = 128
"""Linux' own default of inotify instances of a user, which a node's agents use up."""


@dataclass(frozen=True, slots=True)
class Host:
    """What was read of the host.

    Attributes:
        release: of the kernel, as uname(2) has it.
        capabilities: the effective ones of this process, as a bit mask; None if not read.
        settings: by path below /proc/sys; one that is not there is left out.
        is_writable: this process may change settings.
        unread: what could not be read, and why, as nftables or the routes.
        mtus: of ENIs' links, by name.
    """

    release: str
    capabilities: int | None
    settings: Mapping[str, str]
    is_writable: bool
    unread: Mapping[str, str] = field(default_factory=dict)
    mtus: Mapping[str, int] = field(default_factory=dict)


def judge_host(host: Host, families: Iterable[str]) -> Iterator[Check]:
    """Judge kernel, rights and settings for pods of some families."""
    yield _kernel(host.release)
    yield _capabilities(host.capabilities)
    for what in ("nftables", "rules and routes"):
        if why := host.unread.get(what):
            cure = f"see that the kernel has what {what} need, and that this runs as root"
            yield Check(what, State.FAIL, f"cannot be read: {why}", cure)
        else:
            yield Check(what, State.OK, "can be read")
    yield from _settings(host, families)


def _kernel(release: str) -> Check:
    numbers = re.match(r"(\d+)\.(\d+)", release)
    if numbers is None:
        return Check("kernel", State.SKIPPED, f"{release!a} is no release that is understood")
    found = int(numbers[1]), int(numbers[2])
    if found < OLDEST:
        why = f"Linux {release}: no nat chains in tables of family inet before {_dotted(OLDEST)}"
        return Check("kernel", State.FAIL, why, "use an image with a newer kernel")
    if found < ADVISED:
        why = f"Linux {release}: cooldowns read all of conntrack before {_dotted(ADVISED)}"
        return Check("kernel", State.WARN, why, "use an image with a newer kernel")
    return Check("kernel", State.OK, f"Linux {release}")


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _capabilities(mask: int | None) -> Check:
    if mask is None:
        return Check("capabilities", State.SKIPPED, "/proc/self/status has none")
    if missing := [name for name, bit in CAPABILITIES.items() if not mask >> bit & 1]:
        cure = "run it as root, in the DaemonSet's container or on the host"
        return Check("capabilities", State.FAIL, f"{' and '.join(missing)} missing", cure)
    return Check("capabilities", State.OK, " and ".join(CAPABILITIES))


def _settings(host: Host, families: Iterable[str]) -> Iterator[Check]:
    known = host.settings
    name = "settings"
    if known.get(FORWARDING) != "1" and not host.is_writable:
        why = f"{FORWARDING} is {known.get(FORWARDING, 'not there')}, and cannot be written here"
        yield Check(name, State.FAIL, why, "mount /proc/sys/net writable, or set it on the host")
    else:
        now = "1" if known.get(FORWARDING) == "1" else "set by the reconciler"
        yield Check(name, State.OK, f"{FORWARDING} is {now}")
    if "ipv6" in families and known.get(NO_IPV6) != "0":
        why = f"{NO_IPV6} is {known.get(NO_IPV6, 'not there')}, and families has ipv6"
        yield Check(name, State.FAIL, why, "boot without ipv6.disable=1, and set it to 0")
    if (instances := _number(known, INSTANCES)) is not None and instances <= FEW_INSTANCES:
        why = f"{INSTANCES} is {instances}: agents of a node may use up all"
        cure = "raise it to 1024; without, an edit of the document is seen by the clock"
        yield Check(name, State.WARN, why, cure)
    flows, most = _number(known, FLOWS), _number(known, MOST_FLOWS)
    if flows is None or not most:
        yield Check("conntrack", State.SKIPPED, f"{FLOWS} is not there yet")
    elif flows > NEARLY_FULL * most:
        why = f"{flows} of {most} entries: new connections are dropped when it is full"
        yield Check("conntrack", State.WARN, why, f"raise {MOST_FLOWS}")
    else:
        yield Check("conntrack", State.OK, f"{flows} of {most} entries")


def _number(settings: Mapping[str, str], name: str) -> int | None:
    text = settings.get(name, "")
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def judge_mtu(mtus: Mapping[str, int], wanted: int, of_pods: int) -> Iterator[Check]:
    """Compare ENIs' links with what the document wants of them, and what pods send.

    ``wanted``: of ENIs' links; ``of_pods``: of pods' links; both in bytes.
    """
    small = {name: mtu for name, mtu in mtus.items() if mtu < of_pods}
    for name, mtu in sorted(small.items()):
        why = f"link {name} has {mtu} bytes, and pods send {of_pods}"
        cure = f"raise it to {wanted}, or lower pods.mtu"
        yield Check("mtu", State.WARN, why, cure)
    if mtus and not small:
        links = ", ".join(f"{name} {mtu}" for name, mtu in sorted(mtus.items()))
        yield Check("mtu", State.OK, f"pods send {of_pods} bytes: {links}")


def judge_right(action: str, why: str, *, is_allowed: bool | None, reads: bool) -> Check:
    """Judge EC2's answer to the question whether a call is allowed; None is neither."""
    name = f"ec2:{action}"
    if is_allowed:
        return Check(name, State.OK, "allowed" if reads else "allowed (DryRun)")
    if is_allowed is None:
        return Check(name, State.SKIPPED, why)
    cure = f"allow {name} to the node's role (python deploy/iam_policy.py DOCUMENT prints all)"
    return Check(name, State.FAIL, why, cure)


def judge_metadata(hop_limit: int | None, tokens: str | None) -> Check:
    """Say who reaches instance metadata; the reconciler itself, on the host, does with one hop."""
    if hop_limit is None:
        return Check("hop limit", State.SKIPPED, "EC2 does not tell it")
    reach = (
        "only the host reaches instance metadata"
        if hop_limit == 1
        else "pods reach instance metadata too, unless pods.metadata denies them"
    )
    also = "; requests without a token are taken, too" if tokens == "optional" else ""
    return Check("hop limit", State.OK, f"{hop_limit}: {reach}{also}")


def from_issue(name: str, issue: Issue, state: State = State.WARN) -> Check:
    """Make a check of what a plan or a look has found; the cure is the catalogue's."""
    entry = catalogue.find(issue.reason)
    text = f"{issue.reason}: {issue.subject}: {issue.message}"
    about = (issue.reason, issue.subject)
    return Check(name, state, text, entry.cure if entry else "", about)
