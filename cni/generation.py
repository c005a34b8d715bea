"""Which sandbox a call is about, and which namespace is where.

A container ID is used again for a new sandbox (podman restarts a container under its ID, in a new
network namespace). A path and an inode are used again for a new namespace: the kernel gives it the
lowest free inode. So an intent is bound to container ID, interface, pod UID, path and inode
together, and a DEL for an older sandbox, late or repeated, releases nothing.
"""

from __future__ import annotations

import os

from cni import exchange, protocol
from cni.protocol import Call, CniError

NEW = "new"
"""What is recorded, if anything, is of a sandbox that is gone."""

AGAIN = "again"
"""The same is wanted already: by an ADD that was killed, or that has been answered."""

TAKEN = "taken"
"""The container has this interface in another namespace, which is alive."""


def judge_add(
    recorded: dict[str, object] | None, *, netns: str, inode: int, pod_uid: str, is_alive: bool
) -> str:
    """Say what an ADD finds: ``NEW``, ``AGAIN`` or ``TAKEN``.

    Args:
        recorded: the intent of this container and interface, None if there is none.
        netns: path of the namespace that ADD names.
        inode: of that namespace.
        pod_uid: of the pod, empty if the runtime did not say.
        is_alive: whether the recorded path leads to the recorded inode.
    """
    if recorded is None or recorded.get("state") != "wanted" or not is_alive:
        return NEW
    if _is_other(recorded.get("podUID"), pod_uid):
        return TAKEN
    known = recorded.get("netnsInode") or (inode if _is_same_path(recorded, netns) else 0)
    return AGAIN if known == inode else TAKEN


def is_meant(recorded: dict[str, object] | None, *, netns: str, inode: int, pod_uid: str) -> bool:
    """Whether a DEL is about what is recorded, and not about an older sandbox.

    An intent that is wrongly kept is released when its namespace has been gone for a while. One
    that is wrongly released cuts off a running pod. So a DEL that fits only in part is not meant.

    Args:
        recorded: the intent of this container and interface, None if there is none.
        netns: path of the namespace that DEL names, empty if it names none.
        inode: of the namespace there; 0 if there is none any more.
        pod_uid: of the pod, empty if the runtime did not say.
    """
    if recorded is None or recorded.get("state") != "wanted":
        return True
    if _is_other(recorded.get("podUID"), pod_uid):
        return False
    if not netns:
        return True
    known = recorded.get("netnsInode")
    if inode and known:
        return inode == known
    return _is_same_path(recorded, netns)


def need_netns(call: Call) -> int:
    """Return the inode of the pod's namespace.

    Raises:
        CniError: there is none, or it is the one this process runs in (the specification forbids
            it: the host would lose its own network).
    """
    own = _own_netns()
    try:
        found = os.stat(call.netns)
    except OSError as error:
        raise CniError(
            protocol.INVALID_ENVIRONMENT, "CNI_NETNS cannot be opened", exchange.why(error)
        ) from error
    if own and found.st_dev != own.st_dev:
        raise CniError(protocol.INVALID_ENVIRONMENT, "CNI_NETNS is no namespace")
    # As in the reference plugins' skel: for a plugin that runs in the namespace it works on.
    allowed = call.environ.get("CNI_NETNS_OVERRIDE", "").lower() in ("1", "true")
    if own and found.st_ino == own.st_ino and not allowed:
        raise CniError(protocol.INVALID_ENVIRONMENT, "CNI_NETNS is the host's own namespace")
    return found.st_ino


def _own_netns() -> os.stat_result | None:
    """Return what is known of the namespace this process runs in; None without /proc.

    The reconciler then is the only one to refuse: it knows its own.
    """
    try:
        return os.stat("/proc/self/ns/net")
    except OSError:
        return None


def find_netns(path: str) -> int:
    """Return the inode of the namespace at a path; 0 if there is none any more.

    What is left of a namespace's path when it is unmounted is an empty file.
    """
    own = _own_netns()
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return 0
    return found.st_ino if own is None or found.st_dev == own.st_dev else 0


def is_alive(recorded: dict[str, object] | None) -> bool:
    """Whether the recorded path leads to the recorded inode."""
    known = (recorded or {}).get("netnsInode") or 0
    inode = find_netns(str((recorded or {}).get("netns", "")))
    return inode != 0 and known in (0, inode)


def _is_other(recorded: object, told: str) -> bool:
    return bool(recorded and told and recorded != told)


def _is_same_path(recorded: dict[str, object], netns: str) -> bool:
    return _plain(str(recorded.get("netns", ""))) == _plain(netns)


def _plain(path: str) -> str:
    """Return a path as others write it too: ``/var/run`` is a link to ``/run`` since 2011."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return "/".join(parts[1:] if parts[:2] == ["var", "run"] else parts)
