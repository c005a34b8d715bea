"""Which sandbox a call is about: pure.

A container ID outlives a sandbox (podman starts a container again under its ID, in a new network
namespace), and a path or an inode outlives a namespace: the kernel gives the next one the lowest
inode that is free. So an intent is bound to container ID, interface, pod UID, path and inode
together, and a DEL for an older sandbox, late or repeated, frees nothing that lives.
"""

from __future__ import annotations

NEW = "new"
"""Nothing stands in the way: what is recorded, if anything, is of a sandbox that is no more."""

AGAIN = "again"
"""The very same is wanted already: by an ADD that was killed, or that has been answered."""

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

    What it wrongly spares is freed when its namespace has been gone for a while; what it wrongly
    freed would have cut off a living pod. So in doubt it is not meant.

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


def _is_other(recorded: object, told: str) -> bool:
    return bool(recorded and told and recorded != told)


def _is_same_path(recorded: dict[str, object], netns: str) -> bool:
    return _plain(str(recorded.get("netns", ""))) == _plain(netns)


def _plain(path: str) -> str:
    """Return a path as others write it too: ``/var/run`` is a link to ``/run`` since 2011."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return "/".join(parts[1:] if parts[:2] == ["var", "run"] else parts)
