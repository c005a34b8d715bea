"""``sysdump`` into a file, and into a pipe."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from reconciler.cli import sysdump
from reconciler.cli.main import main

KEY = "AKIAIOSFODNN7EXAMPLE"


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    def missing() -> str:
        raise OSError("no reconciler answers")

    def sources(*_: Any) -> sysdump.Sources:
        return (("a.txt", lambda: f"{KEY}\n"), ("status.json", missing))

    monkeypatch.setattr(sysdump, "_sources", sources)
    document = tmp_path / "node-network.yaml"
    document.write_text("apiVersion: node-network/v1alpha1\nkind: NodeNetwork\n")
    return ["sysdump", "-f", str(document), "--state-dir", str(tmp_path)]


def contents(archive: bytes) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        files = {m.name: opened.extractfile(m) for m in opened.getmembers()}
        return {name: file.read().decode() for name, file in files.items() if file}


def test_a_file_and_a_pipe_get_the_same(words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "dump.tar.gz"
    runner = CliRunner()
    written, piped = runner.invoke(main, [*words, str(path)]), runner.invoke(main, [*words, "-"])
    assert (written.exit_code, piped.exit_code) == (0, 0), written.output + piped.stderr
    made = contents(piped.stdout_bytes)
    assert made == contents(path.read_bytes())
    assert set(made) == {"node-network/INDEX.txt", "node-network/a.txt"}
    assert made["node-network/a.txt"] == "(left out)\n"
    assert "status.json          not in it: no reconciler answers" in piped.stderr
    assert "standard output: 2 files" in piped.stderr
    assert written.stdout == f"{path}: 2 files; INDEX.txt says what is in them\n"


def test_nothing_is_overwritten_and_the_refusal_is_a_sentence(
    words: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "dump.tar.gz"
    path.write_text("mine")
    done = CliRunner().invoke(main, [*words, str(path)])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"{path} exists, and is not overwritten; name another FILE\n"
    assert path.read_text() == "mine"
