"""What stands under and around measured numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vllm_ppsd.tools.report import (
    markdown_table,
    median_and_quartiles,
    portable_command,
    quartiles,
    write_report,
)


def test_a_table_has_a_line_per_row():
    table = markdown_table(["a", "b"], [["1", "2"], ["3", ""]])
    assert table == "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 |  |"


def test_quartiles_of_a_single_run():
    assert quartiles([1.5]) == [1.5, 1.5]
    assert median_and_quartiles([1.0, 2.0, 3.0]) == "2.00 (1.50 to 2.50)"


def test_a_command_is_repeated_without_the_paths_of_this_machine(monkeypatch: pytest.MonkeyPatch):
    words = ["program", "/data/model", "--prompts", "/data/sets", "--json=/data/x.json", "-n", "2"]
    monkeypatch.setattr("sys.argv", words)
    said = portable_command("python -m benchmarks.x", "/data/model")
    assert said == "python -m benchmarks.x MODEL --prompts sets --json=x.json -n 2"


def test_a_report_is_printed_with_its_origin_and_written_where_it_is_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    report = {"command": "c", "commit": "abc", "versions": "vllm 1", "rows": [1.25]}
    write_report(report, "table", str(tmp_path / "x.json"))
    assert capsys.readouterr().out == "table\n\n`c`, commit abc, vllm 1\n"
    assert json.loads((tmp_path / "x.json").read_text()) == report
