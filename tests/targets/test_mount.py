"""Whether a file is a mount of its own: asked of the kernel."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from reconciler.targets.files.bounded import is_mounted_alone


@pytest.mark.lab
def test_a_file_that_is_mounted_alone_is_told_from_one_in_a_mounted_directory(
    tmp_path: Path,
) -> None:
    names = ("alone", "with blank\nand \\ backslash", "beside")
    alone, odd, beside = (tmp_path / name for name in names)
    link, absent = tmp_path / "link", tmp_path / "absent"
    for path in (alone, odd, beside):
        path.touch()
    link.symlink_to(alone)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume/document").touch()
    pairs = ((beside, alone), (beside, odd), (tmp_path / "volume", mounted))
    done: list[Path] = []
    try:
        for source, target in pairs:
            subprocess.run(["mount", "--bind", str(source), str(target)], check=True)
            done.append(target)
        assert [is_mounted_alone(p) for p in (alone, odd, link)] == [True] * 3
        within = mounted / "document"
        assert [is_mounted_alone(p) for p in (beside, within, absent)] == [False] * 3
    finally:
        for target in done:
            subprocess.run(["umount", str(target)], check=True)
