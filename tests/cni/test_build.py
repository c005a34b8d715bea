"""The build of the static executable: what goes into it, and that it is the same each time."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from lab.lifecycle import STATIC

BUILD = Path(__file__).parents[2] / "deploy/executable"


def python(program: str, **environ: str) -> str:
    """Run a program with the build by Debian's Python, as the build itself is."""
    return subprocess.run(
        ["/usr/bin/python3", "-B", "-c", f"import build\n{program}"],
        cwd=BUILD,
        env=os.environ | {"PYTHONPATH": str(BUILD)} | environ,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_the_same_sources_make_the_same_tables() -> None:
    first, second = (python("print(build.tables())", PYTHONHASHSEED=seed) for seed in ("1", "2"))
    assert first == second
    assert "_frozen_importlib" in first


def test_only_what_is_needed_is_in_it() -> None:
    """Whatever is added here is paid at each start."""
    said = python("texts, built_in = build.modules(); print(*texts, '|', *sorted(built_in))")
    frozen, built_in = (part.split() for part in said.split("|"))
    own = {name for name in frozen if name.split(".")[0] == "cni"}
    assert own == {
        "cni" if path.stem == "__init__" else f"cni.{path.stem}"
        for path in (BUILD.parents[1] / "cni").glob("*.py")
    }
    assert set(frozen) - own == {"_frozen_importlib", "__future__", "encodings", "os", "socket"}
    assert built_in == ["_imp", "_socket", "errno", "posix", "sys", "time"]


def test_a_module_that_nobody_has_is_named() -> None:
    said = python("try: build.source('zlib.nothing')\nexcept LookupError as error: print(error)")
    assert said.startswith("zlib.nothing: neither ours")


def test_cpythons_own_modules_are_not_in_its_writable_data() -> None:
    """Deep-frozen they are a megabyte, which the kernel copies page by page when it starts."""
    body = STATIC.read_bytes()
    offset, size, count = (
        int.from_bytes(body[at : at + width], "little")
        for at, width in ((32, 8), (54, 2), (56, 2))
    )
    headers = [body[offset + i * size : offset + (i + 1) * size] for i in range(count)]
    writable = [
        int.from_bytes(header[32:40], "little")  # p_filesz
        for header in headers
        if int.from_bytes(header[:4], "little") == 1 and header[4] & 2  # PT_LOAD, PF_W
    ]
    assert len(writable) == 1
    assert writable[0] < 512 * 1024
