"""Images as OCI archives, made without a registry or a daemon."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
"""What the kernel calls a machine, and what images do."""


def write_archive(
    archive: Path, name: str, layers: Sequence[Path], config: Mapping[str, Any]
) -> None:
    """Write an image.

    Args:
        archive: the file to write.
        name: of the image, with its tag.
        layers: uncompressed tar files, the lowest first.
        config: the image's ``config``: ``Entrypoint``, ``Cmd``, ``Env``.
    """
    digests = [_digest_of_file(layer) for layer in layers]
    platform = {"architecture": MACHINES[os.uname().machine], "os": "linux"}
    body = platform | {"config": config, "rootfs": {"type": "layers", "diff_ids": digests}}
    configuration = json.dumps(body).encode()
    described = [
        _described("layer.v1.tar", digest, layer.stat().st_size)
        for digest, layer in zip(digests, layers, strict=True)
    ]
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _described_bytes("config.v1+json", configuration),
            "layers": described,
        }
    ).encode()
    entry = _described_bytes("manifest.v1+json", manifest) | {"annotations": _names(name)}
    with tarfile.open(archive, "w") as out:
        _add(out, "oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode())
        _add(out, "index.json", json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode())
        for blob in (configuration, manifest):
            _add(out, _place(_digest(blob)), blob)
        for digest, layer in zip(digests, layers, strict=True):
            out.add(layer, arcname=_place(digest))


def identity(archive: Path) -> str:
    """Return the digest of an archive's image: of its contents and configuration, not its name.

    Raises:
        ValueError: it is no archive of one image.
    """
    with tarfile.open(archive) as source:
        content = source.extractfile("index.json")
        if content is None:
            raise ValueError(f"{archive}: index.json is no file")
        return str(_only_image(archive, json.load(content))["digest"])


def rename(archive: Path, target: Path, name: str) -> None:
    """Copy an archive of one image under another name.

    Args:
        archive: the file to read.
        target: the file to write.
        name: of the image, with its tag.

    Raises:
        ValueError: it is no archive of one image.
    """
    with tarfile.open(archive) as source, tarfile.open(target, "w") as out:
        for entry in source:
            content = source.extractfile(entry) if entry.isfile() else None
            if entry.name == "index.json" and content is not None:
                index = json.load(content)
                _only_image(archive, index)["annotations"] = _names(name)
                _add(out, entry.name, json.dumps(index).encode())
            else:
                out.addfile(entry, content)


def write_layer(layer: Path, contents: Mapping[str, Path]) -> None:
    """Write files and directories as a layer, by the path that each has in the image."""
    with tarfile.open(layer, "w") as out:
        for place, source in contents.items():
            out.add(source, arcname=place.removeprefix("/"), filter=_owned_by_root)


def _only_image(archive: Path, index: dict[str, Any]) -> dict[str, Any]:
    described: list[dict[str, Any]] = index["manifests"]
    if len(described) != 1:
        raise ValueError(f"{archive}: {len(described)} images")
    return described[0]


def _names(name: str) -> dict[str, str]:
    return {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}


def _owned_by_root(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if Path(entry.name).name == "__pycache__":
        return None
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _add(out: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    out.addfile(entry, BytesIO(content))


def _described_bytes(kind: str, content: bytes) -> dict[str, Any]:
    return _described(kind, _digest(content), len(content))


def _described(kind: str, digest: str, size: int) -> dict[str, Any]:
    media = f"application/vnd.oci.image.{kind}"
    return {"mediaType": media, "digest": digest, "size": size}


def _place(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
