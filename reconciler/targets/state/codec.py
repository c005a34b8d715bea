"""The kinds of records, and each one's text: what it is called, how it is written and read.

Pure: whether a record's namespace is still there is not in its file, and is added by who reads it.
A body comes from a file that others may have written, so every value has a bound.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from ipaddress import ip_address, ip_network
from typing import Any, Generic, TypeVar

from reconciler.core.attachment import (
    MAX_POD_ADDRESSES,
    Attachment,
    AttachmentKey,
    Cooling,
    Intent,
    IntentState,
)
from reconciler.core.datapath import IpAddress
from reconciler.ipam.ec2_action import Creation
from reconciler.ipam.identity import NAMESPACE, EgressIdentity
from reconciler.ipam.records import WITHHELD_S
from reconciler.ipam.release import Quarantine
from reconciler.targets.files.bounded import printable

Json = dict[str, Any]

VERSION = 1
"""Schema of the records."""

MAX_TEXT = 4096
"""Characters of one text in a record: PATH_MAX, and more than any name Kubernetes allows."""

OPTIONAL = {"macs", "address", "unfinished"}
"""Fields of ours that a record may do without, or had in an earlier release."""

ADDRESS = re.compile(r"[0-9a-f.:]{7,39}", re.IGNORECASE)
"""What may be an address in a torn record."""

Record = Intent | Attachment | Cooling | Quarantine | Creation | EgressIdentity

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Kind(Generic[R]):
    """One kind of record.

    Attributes:
        directory: the name of its directory.
        name: returns the name of a record's file.
        encode: returns the fields of a record.
        parse: returns the record that has these fields; raises one of ``UNREADABLE``.
        guess: returns what a file's stem says by itself, counted from a time in seconds since the
            epoch; None if it says nothing.
        times: its fields that are times.
        is_of_pod: its key is that of an attachment, and its file's name says it.
        is_edited: an edit of its file counts; or else only this process changes what it says.
        has_second_name: no other source says that an address waits. A record that is lost while
            no process runs would end that.
    """

    directory: str
    name: Callable[[R], str]
    encode: Callable[[R], Json]
    parse: Callable[[Json], R]
    guess: Callable[[str, float], R | None] = lambda stem, since: None
    times: tuple[str, ...] = ()
    is_of_pod: bool = False
    is_edited: bool = True
    has_second_name: bool = False

    def guessed(self, name: str, since: float) -> R | None:
        """Return what a file's name says by itself; None if it says nothing."""
        with suppress(ValueError):
            return self.guess(name.removesuffix(".json"), since)
        return None

    def is_plausible(self, name: str) -> bool:
        """Whether a file is called as a record of this kind would be."""
        if self.is_of_pod:
            return ":" in name
        return self in {CREATIONS, IDENTITIES} or self.guessed(name, 0.0) is not None

    def shift(self, record: R, delta: float) -> R:
        """Move the times of a record; 0 says that something never was, and is no time."""
        times = {name: at for name in self.times if (at := getattr(record, name))}
        return replace(record, **{n: at + delta for n, at in times.items()}) if delta else record

    def decode(self, content: bytes, name: str) -> tuple[R, Json]:
        """Read a record, and its fields; its name must be of what it is about."""
        body = json.loads(content)
        check_version(body)
        if self.is_of_pod:
            container_id, colon, ifname = name.removesuffix(".json").rpartition(":")
            if colon:
                body = {"containerID": container_id, "ifname": ifname} | body
            if key_name(_parse_key(body)) != name:
                raise ValueError("it is about another attachment than its name says")
        return self.parse(body), body

    def body(self, record: R, before: bytes) -> Json:
        """Return a record's fields, and those of others in the file that it replaces.

        Another release, or the executable, may have written fields that this one does not know.
        """
        ours = {"version": VERSION} | self.encode(record)
        try:
            others = json.loads(before)
        except (ValueError, RecursionError):
            return ours
        if not isinstance(others, dict):
            return ours
        return {k: v for k, v in others.items() if k not in ours.keys() | OPTIONAL} | ours


def check_version(body: object) -> None:
    """Refuse with a ValueError what is of another schema."""
    if not isinstance(body, dict) or body.get("version") != VERSION:
        raise ValueError(f"no record of schema version {VERSION}, the one this release reads")


def key_name(key: AttachmentKey) -> str:
    """Return a file's name: the key joined by a colon, which neither part may contain."""
    return f"{key.container_id}:{key.ifname}.json"


def named_key(name: str) -> AttachmentKey | None:
    """Return the key that a file's name says; None if it says none."""
    container_id, colon, ifname = name.removesuffix(".json").rpartition(":")
    return AttachmentKey(printable(container_id), printable(ifname)) if colon else None


def addresses_in(text: str) -> Iterator[IpAddress]:
    """Find the addresses in a torn record's text."""
    for word in ADDRESS.findall(text):
        with suppress(ValueError):
            yield ip_address(word)


# -- values -------------------------------------------------------------------------------


def _text(value: object) -> str:
    text = str(value)
    if len(text) > MAX_TEXT:
        raise ValueError(f"a text of {len(text)} characters, of {MAX_TEXT} at most")
    return text


def _shown(value: object) -> str:
    """Return a text that is shown, hashed and written again.

    A runtime may say anything in CNI_ARGS, bytes that are not UTF-8 as well; Python has these as
    lone surrogates, and JSON may spell such: neither can be encoded.
    """
    return _text(value).encode(errors="backslashreplace").decode()


def _seconds(value: Any) -> float:
    """Return a time. JSON may say NaN, which is neither before nor after anything."""
    seconds = float(value)
    if not math.isfinite(seconds):
        raise ValueError(f"{value} is no time")
    return seconds


def _parse_key(body: Json) -> AttachmentKey:
    key = AttachmentKey(str(body["containerID"]), str(body["ifname"]))
    str(key).encode()  # it goes to the kernel; raises a ValueError if it never could
    return key


def _parser(kind: type[R], readers: dict[str, Callable[[Any], Any]]) -> Callable[[Json], R]:
    """Return what reads a record whose fields are called as on disk; a default may be absent."""

    def parse(body: Json) -> R:
        known = readers.items()
        return kind(**{name: read(body[name]) for name, read in known if name in body})

    return parse


# -- intents and attachments ----------------------------------------------------------------


def _encode_intent(intent: Intent) -> Json:
    namespace, _, name = intent.pod.rpartition("/")
    return {
        "containerID": intent.key.container_id,
        "ifname": intent.key.ifname,
        "state": str(intent.state),
        "netns": intent.netns,
        "netnsInode": intent.netns_inode,
        "podNamespace": namespace,
        "podName": name,
        "attempt": intent.attempt,
    }


def _parse_intent(body: Json) -> Intent:
    pod = f"{_shown(body.get('podNamespace', ''))}/{_shown(body.get('podName', ''))}".strip("/")
    return Intent(
        key=_parse_key(body),
        state=IntentState(body["state"]),
        netns=_text(body.get("netns", "")),
        netns_inode=int(body.get("netnsInode", 0)),
        pod=pod,
        attempt=_shown(body.get("attempt", "")),
        trace=_shown(body.get("traceparent", ""))[3:35],
    )


def _encode_attachment(attachment: Attachment) -> Json:
    body: Json = {
        "containerID": attachment.key.container_id,
        "ifname": attachment.key.ifname,
        "netns": attachment.netns,
        "addresses": [str(a) for a in attachment.addresses],
        "eniID": attachment.eni_id,
        "veth": attachment.veth,
        "pod": attachment.pod,
    }
    if any(attachment.kept_macs):
        body["macs"] = list(attachment.kept_macs)
    if attachment.unfinished:
        body["unfinished"] = True
    return body


def _parse_attachment(body: Json) -> Attachment:
    host_mac, pod_mac = body.get("macs", ("", ""))
    # Releases before IPv6 wrote a single address.
    texts = body["addresses"] if "addresses" in body else [body["address"]]
    if not isinstance(texts, list) or not 0 < len(texts) <= MAX_POD_ADDRESSES:
        raise ValueError(f"an attachment has 1 to {MAX_POD_ADDRESSES} addresses")
    return Attachment(
        key=_parse_key(body),
        netns=_text(body.get("netns", "")),
        addresses=tuple(map(ip_address, texts)),
        eni_id=_text(body["eniID"]),
        veth=_text(body["veth"]),
        pod=_shown(body.get("pod", "")),
        kept_macs=(str(host_mac), str(pod_mac)),
        unfinished=bool(body.get("unfinished", False)),
    )


# -- addresses that wait, and creations ---------------------------------------------------

_parse_cooling = _parser(Cooling, {"address": ip_address, "until": _seconds, "spares": bool})
_parse_quarantine = _parser(
    Quarantine, {"network": ip_network, "since": _seconds, "asked": _seconds, "gone": _seconds}
)
_parse_creation = _parser(
    Creation,
    {
        "token": str,
        "device_index": int,
        "subnet_id": str,
        "security_groups": tuple,
        "addresses": int,
        "prefixes": int,
        "tags": lambda pairs: tuple((key, value) for key, value in pairs),
        "at": _seconds,
        "done": bool,
        "ipv6_prefixes": int,
    },
)

INTENTS: Kind[Intent] = Kind(
    "intents", lambda i: key_name(i.key), _encode_intent, _parse_intent, is_of_pod=True
)
ATTACHMENTS: Kind[Attachment] = Kind(
    "attachments",
    lambda a: key_name(a.key),
    _encode_attachment,
    _parse_attachment,
    is_of_pod=True,
    is_edited=False,
)
COOLING: Kind[Cooling] = Kind(
    "cooling",
    lambda c: f"{c.address}.json",
    lambda c: {"address": str(c.address), "until": c.until, "spares": c.spares},
    _parse_cooling,
    # That is the longest it can have to wait.
    lambda stem, since: Cooling(ip_address(stem), since + WITHHELD_S),
    times=("until",),
    has_second_name=True,
)
QUARANTINE: Kind[Quarantine] = Kind(
    "quarantine",
    lambda q: f"{q.network.network_address}-{q.network.prefixlen}.json",
    lambda q: asdict(q) | {"network": str(q.network)},
    # Releases that did not write it down may have asked at any time since then.
    lambda body: _parse_quarantine({"asked": body["since"]} | body),
    lambda stem, since: Quarantine(
        ip_network("/".join(stem.partition("-")[::2])), since, asked=since
    ),
    times=("since", "asked", "gone"),
    has_second_name=True,
)
CREATIONS: Kind[Creation] = Kind(
    "creations", lambda c: f"{c.token}.json", asdict, _parse_creation, times=("at",)
)


# -- identities ---------------------------------------------------------------------------


def _parse_label(value: object) -> str:
    """Return what is a label, as namespaces and pod groups are called: it names a file, too."""
    if not isinstance(value, str) or not NAMESPACE.fullmatch(value):
        raise ValueError("no name of a namespace or pod group")
    return value


def _parse_addresses(value: object) -> tuple[IpAddress, ...]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_POD_ADDRESSES:
        raise ValueError(f"it has 1 to {MAX_POD_ADDRESSES} addresses")
    return tuple(map(ip_address, value))


IDENTITIES: Kind[EgressIdentity] = Kind(
    "identities",
    lambda i: f"{i.namespace}.{i.group}.json",
    lambda i: asdict(i) | {"addresses": [str(a) for a in i.addresses]},
    _parser(
        EgressIdentity,
        {
            "namespace": _parse_label,
            "group": lambda value: value and _parse_label(value),
            "addresses": _parse_addresses,
            "eni_id": _text,
            "idle_since": _seconds,
            "lost_since": _seconds,
        },
    ),
    times=("idle_since", "lost_since"),
)

KINDS: tuple[Kind[Any], ...] = (INTENTS, ATTACHMENTS, COOLING, QUARANTINE, CREATIONS, IDENTITIES)
"""All of them, each in its directory."""
