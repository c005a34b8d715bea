"""What a container runtime has on a machine, and how it goes away."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from conftest import RUN
from waiting import until

CGROUPS = Path("/sys/fs/cgroup")
CNI_CACHE = Path("/var/lib/cni/results")
"""libcni's own; neither containerd nor podman has a setting for it."""

PAUSE = """\
#include <signal.h>
#include <unistd.h>
static void end(int number) { _exit(0); }
int main(void) { signal(SIGTERM, end); for (;;) pause(); }
"""

IMAGE = "localhost/pause:latest"


class Host:
    """One runtime's directory, and everything that leads back to it.

    Attributes:
        directory: short, because sockets are in it (108 bytes: sun_path of unix(7)).
        cgroup: name of the cgroup that containers are below.
    """

    def __init__(self) -> None:
        self.directory = Path(mkdtemp(prefix="nnr-"))
        self.cgroup = f"nnt-{RUN}-{self.directory.name}"

    def processes(self) -> list[int]:
        """List processes that name the directory, or are in the cgroup."""
        found = {
            int(pid)
            for parent in self.cgroups()
            for procs in parent.rglob("cgroup.procs")
            for pid in procs.read_text().split()
        }
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if str(self.directory).encode() in (entry / "cmdline").read_bytes():
                    found.add(int(entry.name))
        return sorted(found - {os.getpid()})

    def mounts(self) -> list[str]:
        """List mount points below the directory, the latest first."""
        lines = Path("/proc/self/mounts").read_text().splitlines()
        points = [line.split()[1] for line in lines]
        return [p for p in reversed(points) if p.startswith(f"{self.directory}/")]

    def cgroups(self) -> list[Path]:
        """List our cgroup in each hierarchy."""
        return [*CGROUPS.glob(self.cgroup), *CGROUPS.glob(f"*/{self.cgroup}")]

    def containers(self) -> list[Path]:
        """List cgroups of containers."""
        below = [p for parent in self.cgroups() for p in parent.iterdir() if p.is_dir()]
        return [p for p in below if p.name != "conmon"]  # podman keeps that one

    def remove(self) -> None:
        """Remove everything, whatever the runtime has left."""

        def ended() -> bool:
            for pid in self.processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not self.processes()

        until(ended, "the processes' end")
        for point in self.mounts():
            subprocess.run(["umount", "-l", point], check=True)
        for parent in self.cgroups():
            for path in sorted(parent.rglob("*/"), reverse=True):
                path.rmdir()
            parent.rmdir()
        for path in CNI_CACHE.glob("*"):
            with suppress(FileNotFoundError):  # of another runtime, which ends its pod now
                if str(self.directory) in path.read_text():
                    path.unlink()
        shutil.rmtree(self.directory)


@contextmanager
def host() -> Iterator[Host]:
    """A place for a runtime, empty again afterwards."""
    made = Host()
    try:
        yield made
    finally:
        made.remove()


def make_image(directory: Path) -> Path:
    """Make an OCI archive with one program in it that does nothing; return its path."""
    (directory / "pause.c").write_text(PAUSE)
    program = directory / "pause"
    subprocess.run(
        ["gcc", "-static", "-Os", "-s", "-o", program, directory / "pause.c"], check=True
    )
    layer = _tar({"pause": program.read_bytes()})
    blobs = [layer]

    def described(kind: str, content: bytes) -> dict[str, Any]:
        media = f"application/vnd.oci.image.{kind}"
        return {"mediaType": media, "digest": _digest(content), "size": len(content)}

    config = _json(
        {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
            "os": "linux",
            "config": {"Entrypoint": ["/pause"]},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": described("config.v1+json", config),
            "layers": [described("layer.v1.tar", layer)],
        }
    )
    blobs += [config, manifest]
    names = {"io.containerd.image.name": IMAGE, "org.opencontainers.image.ref.name": IMAGE}
    entry = described("manifest.v1+json", manifest) | {"annotations": names}
    files = {f"blobs/sha256/{sha256(blob).hexdigest()}": blob for blob in blobs}
    files["oci-layout"] = _json({"imageLayoutVersion": "1.0.0"})
    files["index.json"] = _json({"schemaVersion": 2, "manifests": [entry]})
    archive = directory / "image.tar"
    archive.write_bytes(_tar(files))
    return archive


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, BytesIO(content))
    return buffer.getvalue()


def _json(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()


def _digest(content: bytes) -> str:
    return f"sha256:{sha256(content).hexdigest()}"
