"""Egress identities, kept where a reboot leaves them: the addresses stay the same.

One JSON file, a copy of the records. The records count; this is what a start without them, as
after a boot, begins with.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from reconciler.errors import Issue
from reconciler.ipam.identity import MAX_IDENTITIES, EgressIdentity
from reconciler.targets.files.bounded import read_file, replace_file
from reconciler.targets.state import codec
from reconciler.targets.state import record_file as disk

log = logging.getLogger(__name__)

IDENTITIES = "identities.json"

MAX_KEPT_BYTES = 1 << 18
"""Bytes of the file: 64 identities of 8 addresses take 40 KiB."""


class KeptIdentities:
    """The file in a directory; its one writer is the reconciler that holds the node's lock."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / IDENTITIES
        self._wanted: tuple[EgressIdentity, ...] | None = None
        self._written: tuple[EgressIdentity, ...] | None = None

    def recall(self) -> tuple[EgressIdentity, ...]:
        """Return what is kept; nothing of a file that cannot be read, or that others may write."""
        try:
            body = json.loads(read_file(self.path, MAX_KEPT_BYTES, follow=False, own=True))
            codec.check_version(body)
            listed = body["identities"][:MAX_IDENTITIES]
            kept = tuple(map(codec.IDENTITIES.parse, listed))
        except FileNotFoundError:
            return ()
        except disk.UNREADABLE as error:
            text = "the identities that were kept cannot be read; namespaces get new addresses"
            log.warning(text, extra={"file": str(self.path), "why": disk.why(error)})
            return ()
        self._written = kept
        return kept

    def expect(self, identities: Iterable[EgressIdentity]) -> None:
        """Put these there beside those that are: their records are about to be written."""
        known = self._written if self._wanted is None else self._wanted
        both = {i.key: i for i in (*(known or ()), *identities)}
        self.keep(both.values())

    def keep(self, identities: Iterable[EgressIdentity]) -> None:
        """Put these there; what fails is tried again by ``catch_up``."""
        self._wanted = tuple(identities)
        self.catch_up()

    def catch_up(self) -> tuple[Issue, ...]:
        """Write what is not written yet; say why it cannot be."""
        wanted = self._wanted
        if wanted is None or wanted == self._written:
            return ()
        body = {
            "version": codec.VERSION,
            "identities": [codec.IDENTITIES.encode(i) for i in wanted],
        }
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            interim = self.path.with_name(f".{self.path.name}.tmp")
            replace_file(self.path, interim, [json.dumps(body, indent=1).encode()], 0o600)
        except OSError as error:
            why = (
                f"cannot be written: {error.strerror}; after a reboot namespaces would have "
                "other addresses; free the disk or remount it"
            )
            return (Issue(f"file {self.path}", "IdentitiesNotKept", why),)
        self._written = wanted
        return ()
