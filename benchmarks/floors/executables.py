"""Executables that do nothing: what a start costs before the first line of ours."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import nodes, shipped
from lab.lifecycle import EXECUTABLE

IN_C, IN_PYTHON, OURS = "an empty program in C", "an empty program in our interpreter", "ours"
LOOPBACK = "loopback plugin"
BUILD = shipped.ROOT / "deploy/executable/build.py"
SCRIPT = """
import runpy, sys
from pathlib import Path
build = runpy.run_path(sys.argv[1])
build["modules"].__globals__["ROOT"] = Path(sys.argv[2])
build["main"](Path(sys.argv[3]))
"""


@contextmanager
def empty() -> Iterator[dict[str, Path]]:
    """Build programs that end at once, static as ours is."""
    with tempfile.TemporaryDirectory(prefix="node-network-bench-") as directory:
        place = Path(directory)
        (place / "empty.c").write_text("int main(void) { return 0; }\n")
        words = ["gcc", "-O2", "-static", "-s", "-o", str(place / "c"), str(place / "empty.c")]
        subprocess.run(words, check=True)
        (place / "cni").mkdir()
        (place / "cni/__init__.py").write_text("")
        (place / "cni/__main__.py").write_text("import cni\ndef main():\n    return 0\n")
        argv = [shipped.PYTHON, "-c", SCRIPT, str(BUILD), directory, str(place / "python")]
        subprocess.run(argv, check=True)
        known = {OURS: EXECUTABLE, LOOPBACK: nodes.PLUGINS / "loopback"}
        yield {IN_C: place / "c", IN_PYTHON: place / "python", **known}


def run(program: Path) -> None:
    """Run one to its end, with what a runtime says to it when it asks for versions."""
    subprocess.run(
        [program],
        input=json.dumps({"cniVersion": "1.0.0", "name": "n", "type": "any"}),
        env={"CNI_COMMAND": "VERSION"},
        text=True,
        check=True,
        stdout=subprocess.DEVNULL,
    )


def instructions(program: Path) -> str:
    """Count the instructions of one start in user mode, in millions; nothing without valgrind."""
    if not shutil.which("valgrind"):
        return ""
    argv = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", str(program)]
    question = '{"cniVersion": "1.0.0", "name": "n", "type": "any"}'
    told = subprocess.run(
        argv,
        input=question,
        env={"CNI_COMMAND": "VERSION", "PATH": "/usr/bin:/bin"},
        text=True,
        check=False,  # not each program runs in there
        capture_output=True,
    ).stderr
    found = re.search(r"Collected : (\d+)", told)
    return f"{int(found[1]) / 1e6:.2f}" if found else ""
