"""What of this machine a cluster could leave behind: nothing of it is there afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from e2e.sysctls import changed, sysctls
from waiting import until

from lab import netns
from lab.kubernetes import cgroups
from lab.kubernetes.build import Say
from lab.kubernetes.cluster import Cluster, cluster
from lab.kubernetes.places import Places
from lab.topology import Names


@contextmanager
def watched(say: Say, *, types: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """Make a cluster, remove it, and fail if something of it stays or a setting has changed."""
    before, seen = sysctls(), names_in_root()
    with cluster(say, types=types) as made:
        name = made.lab.names.lab
        assert traces(name), "a cluster that runs leaves no trace that is looked for"
        yield made
    # What was killed may still wait for its parent to notice.
    until(lambda: not traces(name), lambda: f"the end of {traces(name)}", patience_s=20)
    assert changed(before, sysctls()) == {}, "settings of this machine were changed"
    assert names_in_root() - seen == set(), "directories of this machine have new entries"


def traces(name: str) -> list[str]:
    """Name what is there of a cluster: processes, mounts, groups, namespaces, directories."""
    places, names = Places(name), Names(name)
    found = [f"namespace {n}" for n in netns.names(names.prefix)]
    found += [f"cgroup {g}" for g in cgroups.left() if g == f"{cgroups.PREFIX}{name}"]
    paths = (places.directory, places.lock, names.state)
    found += [str(p) for p in paths if p.exists()]
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    found += [f"mount {line}" for line in mounts if name in line]
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            groups = (process / "cgroup").read_text()
            if name in words or f"{cgroups.PREFIX}{name}" in groups:
                found.append(f"process {process.name}: {words}")
    return found


def names_in_root() -> set[str]:
    """Name what is in the directories that a node writes to: those of this machine are not its."""
    directories = ("/etc/cni/net.d", "/etc/tmpfiles.d", "/opt/cni/bin", "/var/lib/kubelet")
    more = ("/var/lib/node-network", "/var/lib/containerd", "/etc/kubernetes", "/opt/kubernetes")
    found = {p for d in (*directories, *more) for p in (Path(d), *Path(d).glob("*"))}
    return {str(p) for p in found if p.exists()}
