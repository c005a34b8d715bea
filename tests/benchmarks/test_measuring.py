"""What the sections of the benchmark share: counting, and putting a section in its place."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks import goals, processes, report, shipped

BURN = "import time\nwhile time.process_time() < 0.1: pass\n"


def test_what_a_process_has_started_counts_also_when_it_has_ended():
    script = (
        "import subprocess, sys\n"
        f"subprocess.run([sys.executable, '-S', '-c', {BURN!r}], check=True)\n"
        "print(flush=True)\ninput()\n"
    )
    argv = [sys.executable, "-S", "-c", script]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        taken = processes.cpu(process.pid)
        process.communicate(b"\n")
    assert taken.all - taken.own > 0.07  # two ticks less
    assert taken.own > 0


@pytest.mark.parametrize(
    ("lines", "command", "python"),
    [
        (
            'ENTRYPOINT ["/opt/node-network/venv/bin/node-network"]\n',
            ("env", "V/bin/node-network"),
            ("env", "V/bin/python"),
        ),
        (
            'ENV A=1 \\\n    B=2\nENTRYPOINT ["/opt/node-network/venv/bin/python", "-OO", "-m", '
            '"reconciler"]\n',
            ("env", "A=1", "B=2", "V/bin/python", "-OO", "-m", "reconciler"),
            ("env", "A=1", "B=2", "V/bin/python", "-OO"),
        ),
    ],
)
def test_the_command_is_that_of_the_image(lines, command, python, tmp_path, monkeypatch):
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text(f'FROM base\n{lines}CMD ["run"]\n')
    monkeypatch.setattr(shipped, "DOCKERFILE", dockerfile)
    monkeypatch.setattr(shipped, "prepare", lambda: None)
    monkeypatch.setattr(shipped, "VENV", "V")
    assert shipped.read_command() == command
    assert shipped.interpreter(command) == python


def test_a_section_replaces_the_one_of_its_title_only(tmp_path):
    results = tmp_path / "results.md"
    report.replace_section(results, "## One", ["## One", "", "1"])
    report.replace_section(results, "## One more", ["## One more", "", "2"])
    report.replace_section(results, "## One", ["## One", "", "3"])
    assert results.read_text().split() == ["##", "One", "3", "##", "One", "more", "2"]


def test_goals_are_read_from_the_tables_of_all_sections(tmp_path):
    results = tmp_path / "results.md"
    table = report.table(
        ("ms, p50", "pods there", "ours", "ratio", "goal"),
        [
            ("ADD", "0", "9.0 / 20.1", *report.goal(0.954, 0.95)),
            ("ADD", "250", "9.1", *report.goal(1.0, 1.0, least=True, digits=1)),
        ],
    )
    report.replace_section(results, "## Pods", ["## Pods", "", *table])
    shares = report.table(("share", "all", "goal"), [("idle", *report.goal(0.05, 0.1, unit=" %"))])
    report.replace_section(results, "## Life", ["## Life", "", *shares])
    report.replace_head(results, ["# Results", "", "Heed this."])
    assert list(goals.read(report.body(results))) == [
        ("Pods", "ms, p50; ADD; 0 pods there; ratio", "0.95", "≤ 0.95: not held"),
        ("Pods", "ms, p50; ADD; 250 pods there; ratio", "1.0", "≥ 1: held"),
        ("Life", "share; idle; all", "0.05 %", "≤ 0.1 %: held"),
    ]
    assert "# Results\n\nHeed this.\n\n2 of 3 goals are held" in results.read_text()
    report.replace_section(results, "## Life", ["## Life", "", "none"])
    assert "# Results\n\nHeed this.\n\n1 of 2 goals are held" in results.read_text()
    assert "\n\n## Pods\n\n" in results.read_text()
