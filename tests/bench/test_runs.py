"""A measurement that was cut off goes on, and never mixes with another."""

import pytest

from vllm_ppsd.bench.runs import Answer, Round, Runs
from vllm_ppsd.config.errors import PPSDConfigError

SETTINGS = {"model": "m", "tokens": 8, "methods": ["plain", "ppsd"]}
ORDER = [Round(0.0, 0, 0), Round(0.0, 0, 1), Round(1.0, 0, 0)]
ANSWERS = {"plain": Answer([1, 2], 10.0), "ppsd": Answer([1, 2], 8.0, 4, 3)}


def test_rounds_are_kept_and_only_missing_ones_are_left(tmp_path):
    path = tmp_path / "runs.jsonl"
    first = Runs(path, SETTINGS)
    assert first.missing(ORDER) == ORDER
    first.add(ORDER[0], ANSWERS)
    again = Runs(path, SETTINGS)
    assert again.missing(ORDER) == ORDER[1:]
    assert again.answers[ORDER[0]] == ANSWERS


def test_a_half_written_line_is_dropped(tmp_path):
    path = tmp_path / "runs.jsonl"
    Runs(path, SETTINGS).add(ORDER[0], ANSWERS)
    whole = path.read_text()
    path.write_text(whole + '{"temperature": 0.0, "repe')
    again = Runs(path, SETTINGS)
    assert again.missing(ORDER) == ORDER[1:]
    assert path.read_text() == whole
    again.add(ORDER[1], ANSWERS)
    assert Runs(path, SETTINGS).missing(ORDER) == ORDER[2:]


def test_runs_of_another_measurement_are_refused(tmp_path):
    path = tmp_path / "runs.jsonl"
    Runs(path, SETTINGS)
    with pytest.raises(PPSDConfigError, match=r"tokens: 8 there, 16 now.*another folder with -o"):
        Runs(path, SETTINGS | {"tokens": 16})


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "runs.jsonl"
    Runs(path, SETTINGS).add(ORDER[0], ANSWERS)
    path.write_text(path.read_text() + '{"temperature": 1}\n')
    with pytest.raises(PPSDConfigError, match="line 3, is damaged"):
        Runs(path, SETTINGS)


@pytest.mark.parametrize("text", ["", "not JSON\n", "[1]\n"])
def test_a_file_of_something_else_is_refused(tmp_path, text):
    path = tmp_path / "runs.jsonl"
    path.write_text(text)
    with pytest.raises(PPSDConfigError, match="holds no runs"):
        Runs(path, SETTINGS)
    assert path.read_text() == text
