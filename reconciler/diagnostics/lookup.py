"""What is asked of routing, and what the kernel answers."""

from __future__ import annotations

from dataclasses import dataclass

from reconciler.core.datapath import IpAddress


@dataclass(frozen=True, slots=True)
class Packet:
    """What a route is looked up for.

    Attributes:
        source: None lets the kernel choose.
        link: by which it comes in; "" for one of the host's own.
    """

    source: IpAddress | None
    destination: IpAddress
    link: str = ""
    mark: int = 0

    @property
    def command(self) -> str:
        """The command that asks the kernel."""
        source = f" from {self.source}" if self.source else ""
        link = f" iif {self.link}" if self.link else ""
        mark = f" mark {self.mark:#x}" if self.mark else ""
        return f"ip route get {self.destination}{source}{link}{mark}"


@dataclass(frozen=True, slots=True)
class Found:
    """The kernel's answer.

    Attributes:
        table: the table that answered, 0 if there is no way.
        device: the link it leads to, "lo" for an address of the host.
        refusal: why there is no way, in the kernel's words; "" if there is one.
    """

    table: int
    device: str
    gateway: IpAddress | None = None
    refusal: str = ""
