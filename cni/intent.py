"""Intents: one file for each container and interface, which is whole or does not exist.

A container ID is used again for a new sandbox (podman restarts a container under its ID, in a new
network namespace). A path and an inode are used again for a new namespace: the kernel gives it the
lowest free inode. So an intent is bound to container ID, interface, pod UID, path and inode
together, and a DEL for an older sandbox, late or repeated, releases nothing.
"""

from __future__ import annotations

import errno
import os

from cni import strict_json
from cni.protocol import INVALID_ENVIRONMENT, MAX_TEXT, Call, CniError, Object, is_path

MAX_BYTES = 65536  # of one intent; those that are written here have a tenth of it at most

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of a file system that is full or read-only."""

WANTED, RELEASED = b'"wanted"  ', b'"released"'
"""The state as it is written. Both have the same length, so that one can replace the other in
place on a disk without room for another file."""


def body_of(call: Call, state: str, netns_inode: int, attempt: str) -> Object:
    """Return the record of a call: ``wanted`` or ``released``; by an attempt like no other.

    An inode of 0 is unknown.
    """
    return {
        "state": state,
        "version": 1,
        "containerID": call.container_id,
        "ifname": call.ifname,
        "netns": call.netns if is_path(call.netns) else "",
        "netnsInode": netns_inode,
        "podNamespace": call.args.get("K8S_POD_NAMESPACE", "")[:MAX_TEXT],
        "podName": call.args.get("K8S_POD_NAME", "")[:MAX_TEXT],
        "podUID": call.pod_uid,
        "network": call.network,
        "attempt": attempt,
        "traceparent": call.environ.get("TRACEPARENT", "")[:MAX_TEXT],
        "tracestate": call.environ.get("TRACESTATE", "")[: 2 * MAX_TEXT],
    }


def path_of(state_dir: str, container_id: str, ifname: str) -> str:
    """Return the path of an intent."""
    # Joined by a colon, which neither part may contain.
    return f"{state_dir}/intents/{container_id}:{ifname}.json"


def read(path: str) -> Object | None:
    """Return what is recorded; None if nothing is, or nothing that can be understood."""
    try:
        # A pipe or device under this name must not make a runtime wait.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            body = strict_json.read(os.read(fd, MAX_BYTES).decode())
        finally:
            os.close(fd)
    except (OSError, ValueError):
        return None
    return body if isinstance(body, dict) else None


def names(state_dir: str) -> list[str]:
    """Return the paths of all intents.

    Raises:
        OSError: the directory cannot be read.
    """
    directory = f"{state_dir}/intents"
    try:
        found = os.listdir(directory)
    except FileNotFoundError:
        return []
    return [f"{directory}/{name}" for name in sorted(found) if name.endswith(".json")]


def written_at(path: str) -> float:
    """Return when an intent was written, in seconds since 1970; infinity if it is gone."""
    try:
        return os.stat(path).st_mtime
    except OSError:
        return float("inf")


def record(path: str, body: Object) -> None:
    """Write an intent durably: temporary file, fsync, rename, fsync of the directory.

    Raises:
        OSError: the disk is full, read-only, or not ours to write to.
    """
    directory, _, name = path.rpartition("/")
    _make(directory)
    temporary = f"{directory}/.{name}.{os.getpid()}.tmp"
    content = strict_json.write(body).encode().replace(b'"wanted"', WANTED, 1) + b"\n"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            while content:
                content = content[os.write(fd, content) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except OSError:
        _unlink(temporary)
        raise
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def overwrite(path: str) -> bool:
    """Turn a wanted intent into a released one in its own place; return whether it is one now.

    It needs no space on the disk: these few bytes are at the file's beginning, in one page.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        content = os.read(fd, MAX_BYTES)
        at = content.find(WANTED)
        if at < 0:
            return b'"state": "released"' in content
        os.pwrite(fd, RELEASED, at)
        # The file's time has the resolution of clock ticks; a new size shows the change.
        os.ftruncate(fd, len(content.rstrip()))
        os.fsync(fd)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _make(directory: str) -> None:
    """Make a directory, and those above it that are missing."""
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        return
    except FileNotFoundError:
        above = directory.rstrip("/").rpartition("/")[0]
        if not above:
            raise
        _make(above)
        _make(directory)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        return  # it was never made, or the disk is read-only by now


# -- which sandbox --------------------------------------------------------------------------------

NEW = "new"  # what is recorded, if anything, is of a sandbox that is gone
AGAIN = "again"  # the same is wanted already: by an ADD that was killed, or that has been answered
TAKEN = "taken"  # the container has this interface in another namespace, which is alive


def judge_add(
    recorded: Object | None, *, netns: str, inode: int, pod_uid: str, is_alive: bool
) -> str:
    """Say what an ADD finds: ``NEW``, ``AGAIN`` or ``TAKEN``.

    Args:
        recorded: the intent of this container and interface, None if there is none.
        netns: path of the namespace that ADD names.
        inode: of that namespace.
        pod_uid: empty if the runtime did not say.
        is_alive: whether the recorded path leads to the recorded inode.
    """
    if recorded is None or recorded.get("state") != "wanted" or not is_alive:
        return NEW
    if _is_other(recorded.get("podUID"), pod_uid):
        return TAKEN
    known = recorded.get("netnsInode") or (inode if _is_same_path(recorded, netns) else 0)
    return AGAIN if known == inode else TAKEN


def is_meant(recorded: Object | None, *, netns: str, inode: int, pod_uid: str) -> bool:
    """Whether a DEL is about what is recorded, and not about an older sandbox.

    An intent that is wrongly kept is released when its namespace has been gone for a while. One
    that is wrongly released cuts off a running pod. So a DEL that fits only in part is not meant.

    Args:
        recorded: the intent of this container and interface, None if there is none.
        netns: path of the namespace that DEL names, empty if it names none.
        inode: of the namespace there; 0 if there is none any more.
        pod_uid: empty if the runtime did not say.
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
        raise CniError(INVALID_ENVIRONMENT, "CNI_NETNS cannot be opened", error) from error
    if own and found.st_dev != own.st_dev:
        raise CniError(INVALID_ENVIRONMENT, "CNI_NETNS is no namespace")
    # As in the reference plugins' skel: for a plugin that runs in the namespace it works on.
    allowed = call.environ.get("CNI_NETNS_OVERRIDE", "").lower() in ("1", "true")
    if own and found.st_ino == own.st_ino and not allowed:
        raise CniError(INVALID_ENVIRONMENT, "CNI_NETNS is the host's own namespace")
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


def is_alive(recorded: Object | None) -> bool:
    """Whether the recorded path leads to the recorded inode."""
    known = (recorded or {}).get("netnsInode") or 0
    inode = find_netns(str((recorded or {}).get("netns", "")))
    return inode != 0 and known in (0, inode)


def _is_other(recorded: object, told: str) -> bool:
    return bool(recorded and told and recorded != told)


def _is_same_path(recorded: Object, netns: str) -> bool:
    return _plain(str(recorded.get("netns", ""))) == _plain(netns)


def _plain(path: str) -> str:
    """Return a path as others write it too: ``/var/run`` is a link to ``/run`` since 2011."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return "/".join(parts[1:] if parts[:2] == ["var", "run"] else parts)
