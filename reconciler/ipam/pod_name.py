"""Whose it is that a text is about: operators know pods, and neither container IDs nor links.

The kernel, records and actions name a container, a host end, a namespace or an address; each is
followed here to the pod that the runtime has named for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from reconciler.core.attachment import netns_path
from reconciler.errors import Issue
from reconciler.ipam.records import Records

WORD = re.compile(r"[^\s,;()'\"{}\[\]=]+")
PARTS = re.compile(r"[/:@]")

MOST_PODS = 4
"""Pods that are named in one text: a transaction of nftables may be about all of them."""


@dataclass(frozen=True, slots=True)
class PodNames:
    """The pods of a node, by what texts call them.

    ``pods``: ``namespace/name`` by container ID, name of the host end, path of the namespace, and
    address.
    """

    pods: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Records) -> PodNames:
        """Collect the names of what is recorded; what no pod's name is known of is left out."""
        return cls({text: pod for text, pod in _names(records) if text and pod})

    def complete(self, issue: Issue) -> Issue:
        """Return an issue that names the pods it is about, if it did not."""
        subject = issue.subject
        missing = [p for p in dict.fromkeys(self._found(subject).values()) if p not in subject]
        if missing:
            subject = f"{subject} (pod {', '.join(missing[:MOST_PODS])})"
        message = self._explained(issue.message, subject)
        if (subject, message) == (issue.subject, issue.message):
            return issue
        return replace(issue, subject=subject, message=message)

    def _explained(self, message: str, subject: str) -> str:
        """Say after its first mention whose something is, unless that is said already."""
        found = self._found(message)
        unsaid = {pod: word for word, pod in reversed(found.items()) if pod not in subject}
        for pod in list(reversed(unsaid))[:MOST_PODS]:
            if pod not in message:
                message = message.replace(unsaid[pod], f"{unsaid[pod]} (pod {pod})", 1)
        return message

    def _found(self, text: str) -> dict[str, str]:
        """Return the words that mean a pod, in order, each with the pod."""
        found: dict[str, str] = {}
        for match in WORD.finditer(text):
            word = match[0].rstrip(".:")
            # A namespace may be followed by its inode, an address by its prefix's length.
            for candidate in (word, *(word.partition(c)[0] for c in "@/"), *PARTS.split(word)):
                if pod := self.pods.get(candidate):
                    found.setdefault(word, pod)
                    break
        return found


def _names(records: Records) -> Iterator[tuple[str, str]]:
    """Yield what texts may say, and the pod that is meant; of the same text the last counts."""
    for intent in records.intents:
        yield intent.netns, intent.pod
        yield intent.key.container_id, intent.pod
    for attachment in records.attachments:
        yield netns_path(attachment.netns), attachment.pod
        yield attachment.key.container_id, attachment.pod
        yield attachment.veth, attachment.pod
        for address in attachment.addresses:
            yield str(address), attachment.pod
