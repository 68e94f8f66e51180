"""Prompt files: what is read and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vllm_ppsd.training.errors import TrainingError
from vllm_ppsd.training.prompts import read_prompts


def test_each_field_is_read_and_repeats_are_dropped(tmp_path: Path):
    rows = [
        {"turns": ["one", "more"]},
        {"prompt": "two"},
        {"instruction": "three"},
        {"prompt": "one"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = read_prompts([tmp_path])
    assert [(p.text, p.source) for p in prompts] == [("one", "a"), ("two", "a"), ("three", "a")]


def test_a_line_separator_inside_a_string_does_not_end_the_line(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"prompt": "left\u2028right"}, ensure_ascii=False) + "\n")
    assert read_prompts([file])[0].text == "left\u2028right"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no prompts"),
        ('{"prompt": "x"}\n{"prompt": \n', "line 2: no JSON"),
        ('{"text": "x"}\n', "line 1: no prompt"),
        ('{"prompt": 3}\n', "line 1: no prompt"),
        ("[1]\n", "line 1: no prompt"),
    ],
)
def test_bad_files_are_refused_with_the_line(tmp_path: Path, content: str, message: str):
    file = tmp_path / "bad.jsonl"
    file.write_text(content)
    with pytest.raises(TrainingError, match=message):
        read_prompts([file])


def test_a_missing_file_and_an_empty_folder_are_refused(tmp_path: Path):
    for path in (tmp_path / "missing.jsonl", tmp_path):
        with pytest.raises(TrainingError, match="no prompt file"):
            read_prompts([path])
