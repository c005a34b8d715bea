"""What ENIs of ours are set to in EC2, beside the addresses that they hold."""

from __future__ import annotations

from collections.abc import Iterator

from reconciler.core.facts import Eni
from reconciler.ipam import ec2_action as ec2
from reconciler.ipam.pool_status import Pool, PoolStatus


def plan(desired: Pool, at: PoolStatus) -> Iterator[ec2.Ec2Action]:
    """Tie ENIs to the instance, and have them follow the document and the primary ENI."""
    for eni in at.observed.enis:
        tied = eni.delete_on_termination or eni.is_primary
        if eni.owned and eni.attachment_id and not tied and desired.is_of(eni.group):
            yield ec2.TieToInstance(eni.eni_id, eni.attachment_id, "would outlive the instance")
    wanted, source = security_groups(desired, at.observed.primary)
    for eni in at.enis:
        if wanted and not eni.is_primary and eni.security_groups != wanted:
            reason = f"it has {' '.join(eni.security_groups) or 'none'}, {source} others"
            yield ec2.SetSecurityGroups(eni.eni_id, wanted, reason)
    yield from _idle_timeouts(at)


def _idle_timeouts(at: PoolStatus) -> Iterator[ec2.Ec2Action]:
    """Have the primary ENI's idle timeouts on all that serve pods, as far as they were set there.

    A pod's connections must not time out by which ENI its address is on.
    """
    wanted = at.observed.primary.idle_timeouts if at.observed.primary else (0, 0, 0)
    for eni in at.enis:
        tcp, stream, udp = (w or h for w, h in zip(wanted, eni.idle_timeouts, strict=True))
        if not eni.is_primary and (tcp, stream, udp) != eni.idle_timeouts:
            reason = "the primary ENI has others"
            yield ec2.SetIdleTimeouts(eni.eni_id, (tcp, stream, udp), reason)


def security_groups(desired: Pool, primary: Eni | None) -> tuple[tuple[str, ...], str]:
    """Return what secondary ENIs shall have, sorted, and where that is said.

    Unless the document names them they follow the primary ENI's, which others change.
    """
    if named := desired.document.eni.security_groups:
        where = f"group {desired.group}" if desired.group else "eni.securityGroups"
        return tuple(sorted(named)), f"{where} names"
    return tuple(sorted(primary.security_groups)) if primary else (), "the primary ENI has"
