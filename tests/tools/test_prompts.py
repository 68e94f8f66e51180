"""Prompt files: what is read and what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from vllm_ppsd.config.errors import PPSDConfigError
from vllm_ppsd.tools.prompts import read_prompts


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


def test_no_two_rows_become_one_prompt_by_losing_their_input(tmp_path: Path):
    rows = [{"instruction": "Translate.", "input": text, "output": ""} for text in "abcdef"]
    file = tmp_path / "alpaca.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [p.text for p in read_prompts([file])] == [f"Translate.\n\n{t}" for t in "abcdef"]


def test_a_file_that_is_no_text_is_refused_by_name(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"prompt": "x"}\n{"prompt": "caf\xe9"}\n')
    with pytest.raises(PPSDConfigError, match=r"a\.jsonl, line 2: no UTF-8 text"):
        read_prompts([file])
    file.write_bytes(gzip.compress(b'{"prompt": "x"}\n'))
    with pytest.raises(PPSDConfigError, match=r"a\.jsonl is a gzip file"):
        read_prompts([tmp_path])


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
        ('{"prompt": "x"}\n{"turns": [3]}\n', "line 2: no prompt: turns holds int, not text"),
        ('{"prompt": "\\ud800"}\n', "line 1: no prompt: .*surrogate"),
    ],
)
def test_bad_files_are_refused_with_the_line(tmp_path: Path, content: str, message: str):
    file = tmp_path / "bad.jsonl"
    file.write_text(content)
    with pytest.raises(PPSDConfigError, match=message):
        read_prompts([file])


def test_a_missing_file_and_an_empty_folder_are_refused(tmp_path: Path):
    for path in (tmp_path / "missing.jsonl", tmp_path):
        with pytest.raises(PPSDConfigError, match="no prompt file"):
            read_prompts([path])
