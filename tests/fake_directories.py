"""The container runtime's directories in memory, held to the real target's contract."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reconciler.core.facts import NOWHERE, Installation
from reconciler.domains import boot_rule
from reconciler.domains.conflist import (
    NAME,
    SUFFIXES,
    Conflist,
    OtherConf,
    Plugins,
    normal,
    words_of,
)
from reconciler.domains.executable import Executable
from reconciler.engine.plan import Change, Verb
from reconciler.errors import ApplyError
from reconciler.targets.files.installation import Installed, Seen
from schemas.cni import TYPE


class FakeDirectories:
    """The runtime's directories: what is in them, by path.

    Attributes:
        files: a configuration's text, or the path of what a program is a copy of; and the mode.
        broken: why nothing can be written.
    """

    def __init__(
        self, places: Installation = NOWHERE, files: dict[str, tuple[str, str]] | None = None
    ) -> None:
        self.places = places
        self.files = files or {}
        self.broken = ""

    def observe(self, desired: Iterable[Installed] = ()) -> frozenset[Seen]:
        conf_dir, bin_dir = self.places.conf_dir, self.places.bin_dir
        found: set[Seen] = set()
        names = {path.rpartition("/")[2]: at for path, at in self._below(bin_dir).items()}
        if bin_dir:
            found.add(Plugins(bin_dir, frozenset(names)))
        if TYPE in names:
            copy_of, mode = names[TYPE]
            same = copy_of if copy_of == self.places.program else ""
            found.add(Executable(f"{bin_dir}/{TYPE}", same, mode))
        for path, (text, mode) in self._below(conf_dir).items():
            name = path.rpartition("/")[2]
            if name == NAME:
                found.add(Conflist(path, _normal(text), mode))
            elif name.endswith(SUFFIXES):
                found.add(OtherConf(name, words_of(text)))
        rule = f"{self.places.tmpfiles_dir}/{boot_rule.NAME}"
        if rule in self.files:
            text, mode = self.files[rule]
            found.add(boot_rule.read(rule, text, f"{conf_dir}/{NAME}", mode))
        return frozenset(found)

    def apply(self, actions: Sequence[Change[Installed]]) -> tuple[ApplyError, ...]:
        if self.broken:
            return tuple(ApplyError(str(a), self.broken, "") for a in actions)
        for action in actions:
            obj = action.object
            if action.verb is Verb.DELETE:
                self.files.pop(obj.path, None)
                continue
            content = obj.copy_of if isinstance(obj, Executable) else obj.text
            self.files[obj.path] = (content, obj.mode)
        return ()

    def _below(self, directory: str) -> dict[str, tuple[str, str]]:
        start = f"{directory}/"
        return {p: at for p, at in self.files.items() if directory and p.startswith(start)}


def _normal(text: str) -> str:
    try:
        return normal(text)
    except ValueError:
        return ""
