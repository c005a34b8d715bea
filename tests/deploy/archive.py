"""The archive that ``make image`` writes."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ARCHIVE = Path(__file__).parents[2] / "build/node-network-image.tar"

WHITEOUT = ".wh."
"""Start of the name of a file that stands for one that is gone (OCI image specification,
"Layer Filesystem Changeset"); the whole of a directory's is ``.wh..wh..opq``."""


class Archive:
    """An OCI archive with one image.

    Attributes:
        config: the image's configuration.
    """

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        index = archive.extractfile("index.json")
        assert index is not None
        (entry,) = json.loads(index.read())["manifests"]
        self._manifest = json.loads(self._blob(entry).read())
        self.config: dict[str, Any] = json.loads(self._blob(self._manifest["config"]).read())

    def layers(self) -> Iterator[tarfile.TarFile]:
        """Yield the layers, the base's first."""
        for each in self._manifest["layers"]:
            with tarfile.open(fileobj=self._blob(each)) as layer:
                yield layer

    def _blob(self, descriptor: dict[str, Any]) -> Any:
        return self._archive.extractfile("blobs/" + descriptor["digest"].replace(":", "/"))


@contextmanager
def opened(path: Path = ARCHIVE) -> Iterator[Archive]:
    """Open an archive."""
    with tarfile.open(path) as archive:
        yield Archive(archive)


def unpack(path: Path, root: Path) -> None:
    """Make an image's files below a directory."""
    root.mkdir()
    with opened(path) as archive:
        for layer in archive.layers():
            # As it is: links of a container's root lead out of this directory.
            layer.extraction_filter = lambda member, _: member
            for member in layer:
                name = Path(member.name)
                if name.name.startswith(WHITEOUT):
                    gone = root / name.parent / name.name.removeprefix(WHITEOUT)
                    assert not gone.name.startswith(WHITEOUT), member.name
                    if gone.is_dir() and not gone.is_symlink():
                        shutil.rmtree(gone)
                    else:
                        gone.unlink(missing_ok=True)
                elif not member.isdev():
                    layer.extract(member, root)
