"""What a node's container runtime reads, and where it belongs on the host."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Installation:
    """Directories and files of the host; one that is "" is not managed.

    Attributes:
        conf_dir: the runtime's directory of CNI configurations.
        bin_dir: its directory of plugins.
        program: our executable, as it was shipped.
        state_dir: the records, as the executable on the host sees them.
    """

    conf_dir: str = ""
    bin_dir: str = ""
    program: str = ""
    state_dir: str = ""

    def __bool__(self) -> bool:
        return bool(self.conf_dir or self.bin_dir)


NOWHERE = Installation()
