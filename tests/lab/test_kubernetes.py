"""What an end-to-end cluster is made of, as far as it needs neither Go nor a cluster."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest

from lab.kubernetes import build, cgroups, images, oci
from lab.kubernetes.cgroups import Hierarchy, hierarchies
from lab.kubernetes.cluster import manifest

HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:4 - cgroup cgroup rw,cpu,cpuacct
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/lib/a,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
"""


def test_every_hierarchy_is_mounted_again_with_the_options_that_name_it() -> None:
    top = Path("/sys/fs/cgroup")
    assert hierarchies(HYBRID) == (
        Hierarchy(top / "cpu,cpuacct", "cgroup", "cpu,cpuacct"),
        Hierarchy(top / "systemd", "cgroup", "none,name=systemd"),
        Hierarchy(top / "unified", "cgroup2", ""),
    )


def test_groups_may_go_while_their_processes_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubelet removes those of pods that end."""
    monkeypatch.setattr(cgroups, "present", lambda: (Hierarchy(tmp_path, "cgroup", ""),))
    for path in (tmp_path / "machine", tmp_path / "machine/kept"):
        path.mkdir()
        (path / "cgroup.procs").write_text("4711\n")
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            for number in range(20):
                (tmp_path / f"machine/pod{number}/container").mkdir(parents=True, exist_ok=True)
            for number in range(20):
                shutil.rmtree(tmp_path / f"machine/pod{number}")

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        assert all(cgroups.Group("machine").processes() == {4711} for _ in range(200))
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "node-network"


def test_what_is_built_once_is_kept_and_said(cache: Path) -> None:
    said: list[str] = []

    def make(place: Path) -> None:
        (place / "program").write_text("1")

    first = build.kept("part", "key", make, said.append)
    assert (first / "program").read_text() == "1"
    assert len(said) == 2
    assert build.kept("part", "key", make, said.append) == first
    assert len(said) == 2
    assert build.kept("part", "other", make, said.append) != first


def test_a_build_that_fails_or_was_killed_leaves_nothing(cache: Path) -> None:
    def fail(place: Path) -> None:
        (place / "half").touch()
        raise build.BuildError("no")

    with pytest.raises(build.BuildError):
        build.kept("part", "key", fail, print)
    (cache / ".part-killed").mkdir()
    build.kept("part", "key", lambda place: None, print)
    assert sorted(p.name for p in cache.iterdir()) == ["part-key", "part.lock"]


def test_a_changed_source_is_another_part(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "main.go").write_text("a")
    before = build.fingerprint([source])
    assert build.fingerprint([source]) == before
    (source / "main.go").write_text("b")
    assert build.fingerprint([source]) != before


def test_the_components_are_of_the_release_that_is_named() -> None:
    module = (build.HERE / "components/go.mod").read_text()
    assert f"k8s.io/kubernetes {build.RELEASE}\n" in module
    minor = build.RELEASE.removeprefix("v1.")
    replaced = [line.split()[-1] for line in module.splitlines() if "=>" in line]
    assert set(replaced) == {f"v0.{minor}"}


def test_an_image_has_its_layers_and_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    oci.write_layer(tmp_path / "layer", {"/opt/file": tmp_path / "file"})
    oci.write_archive(tmp_path / "image.tar", "localhost/x:1", [tmp_path / "layer"], {})
    with tarfile.open(tmp_path / "image.tar") as image:

        def read(name: str) -> bytes:
            file = image.extractfile(name)
            assert file
            return file.read()

        def blob(described: dict[str, str]) -> bytes:
            return read(f"blobs/{described['digest'].replace(':', '/')}")

        (entry,) = json.loads(read("index.json"))["manifests"]
        body = json.loads(blob(entry))
        (layer,) = body["layers"]
        assert entry["annotations"]["org.opencontainers.image.ref.name"] == "localhost/x:1"
        assert json.loads(blob(body["config"]))["rootfs"]["diff_ids"] == [layer["digest"]]
        assert blob(layer) == (tmp_path / "layer").read_bytes()
    with tarfile.open(tmp_path / "layer") as files:
        (file,) = files.getmembers()
        assert (file.name, file.uid) == ("opt/file", 0)


def test_an_image_can_be_copied_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    oci.write_layer(tmp_path / "layer", {"/opt/file": tmp_path / "file"})
    first, second = tmp_path / "first.tar", tmp_path / "second.tar"
    oci.write_archive(first, "localhost/x:1", [tmp_path / "layer"], {})
    oci.rename(first, second, "localhost/x:2")

    def contents(archive: Path) -> dict[str, bytes]:
        with tarfile.open(archive) as image:
            files = [(m.name, image.extractfile(m)) for m in image.getmembers()]
            return {name: file.read() for name, file in files if file}

    before, after = contents(first), contents(second)
    assert after.pop("index.json").decode() == before.pop("index.json").decode().replace(
        "localhost/x:1", "localhost/x:2"
    )
    assert after == before


def test_an_images_identity_is_that_of_its_content(tmp_path: Path) -> None:
    first, renamed, second = (tmp_path / f"{n}.tar" for n in ("first", "renamed", "second"))
    (tmp_path / "layer").write_bytes(b"layer")
    oci.write_archive(first, "localhost/x:1", [tmp_path / "layer"], {})
    oci.rename(first, renamed, "localhost/x:2")
    oci.write_archive(second, "localhost/x:1", [tmp_path / "layer"], {"Cmd": ["/x"]})
    assert oci.identity(renamed) == oci.identity(first) != oci.identity(second)


def test_the_earlier_release_is_of_the_newest_commit_that_made_another_image(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit that makes the same image is passed over, also if its sources are others.

    What is not committed yet is this tree's.
    """
    tree = tmp_path / "tree"
    source = images.SOURCES[0]
    for path in (*images.SOURCES, images.MANIFEST, "README.md"):
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text("1")
    monkeypatch.setattr(build, "ROOT", tree)
    monkeypatch.delenv(images.COMMIT, raising=False)

    def built(tree: Path, _: object) -> Path:
        """An image in which comments of its source are not."""
        command = (tree / source).read_text().partition("#")[0]
        place = cache / f"image-{build.fingerprint([tree / source])}"
        place.mkdir(parents=True, exist_ok=True)
        oci.write_archive(place / "image.tar", images.RECONCILER, [], {"Cmd": [command]})
        return place

    monkeypatch.setattr(images, "_built", built)
    assert images.earlier(print) is None

    def commit(path: str, text: str) -> None:
        (tree / path).write_text(text)
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tree)]
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "-q", "-m", text], check=True)

    subprocess.run(["git", "init", "-q", str(tree)], check=True)
    commit(images.MANIFEST, "first's")
    commit(source, "first")
    commit(images.MANIFEST, "second's")
    commit(source, "second")
    commit(source, "second# with a comment")
    commit("README.md", "third")
    found = images.earlier(print)
    assert found
    assert (found.manifest, found.image) == ("first's", images.EARLIER)
    assert oci.identity(found.archive) != oci.identity(images.reconciler(print))
    (tree / source).write_text("not committed")
    again = images.earlier(print)
    assert again
    assert again.commit != found.commit
    monkeypatch.setenv(images.COMMIT, "HEAD~1")
    named = images.earlier(print)
    assert named
    assert named.commit == "HEAD~1"


def test_the_manifest_is_the_shipped_one_with_an_image_and_the_labs_ec2() -> None:
    *others, daemons = manifest("a: document\n")
    (text,) = (b["data"] for b in others if b["kind"] == "ConfigMap")
    assert text == {"node-network.yaml": "a: document\n"}
    (container,) = daemons["spec"]["template"]["spec"]["containers"]
    assert container["image"].startswith("localhost/")
    assert container["env"][-1]["name"] == "AWS_ENDPOINT_URL_EC2"
    assert os.environ.get("AWS_ENDPOINT_URL_EC2") != container["env"][-1]["value"]
