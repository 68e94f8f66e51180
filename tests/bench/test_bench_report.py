"""Rows, table and picture of ``vllm-ppsd bench``, from made-up runs."""

import pytest

from vllm_ppsd.bench import report
from vllm_ppsd.bench.methods import Method
from vllm_ppsd.bench.runs import Answer, Round

SETS = ["maths", "code"]


def _answers():
    answers = {}
    for temperature in (0.0, 1.0):
        for repeat in range(2):
            for prompt in range(2):
                slow = 1 + prompt
                answers[Round(temperature, repeat, prompt)] = {
                    Method.PLAIN: Answer([1, 2, 3], 40.0 * slow),
                    Method.PPSD: Answer([1, 2, 3], 20.0 * slow, 10, 8 - prompt),
                    Method.EARLY_EXIT: Answer([1, 2, 4], 80.0 * slow),
                }
    return answers


def _report():
    return {
        "model": "some-model",
        "head": "some-head",
        "partition": [2, 2],
        "tokens": 8,
        "temperatures": [0.0, 1.0],
        "labels": {method: method.label([2, 2]) for method in Method},
        "rows": report.rows(_answers(), SETS),
        "command": "vllm-ppsd bench MODEL",
        "commit": "abc",
        "versions": "vllm 1",
        "cpu": "some processor",
    }


def test_rows_pair_every_run_with_the_plain_one_of_its_round():
    rows = {(r["temperature"], r["set"], r["name"]): r for r in _report()["rows"]}
    whole = rows[1.0, report.ALL, Method.PPSD]
    assert whole["speedup"] == pytest.approx(2.0)
    assert whole["acceptance"] == pytest.approx(0.75)
    assert (whole["identical"], whole["runs"]) == (4, 4)
    assert rows[0.0, "code", Method.PPSD]["acceptance"] == pytest.approx(0.7)
    early = rows[0.0, "maths", Method.EARLY_EXIT]
    assert (early["speedup"], early["acceptance"], early["identical"]) == (0.5, None, 0)


def test_one_prompt_set_needs_no_row_for_all():
    rows = report.rows(_answers(), ["one", "one"])
    assert {row["set"] for row in rows} == {"one"}


def test_the_table_says_everything():
    text = report.render(_report())
    assert "Temperature 1: speedup" in text
    assert "| decoding | ms per token | acceptance | maths | code | all | identical |" in text
    assert "| PPSD, 2 stages | 30.0 | 0.75 | 2.00 (2.00 to 2.00) |" in text
    sure, sampled = [line for line in text.splitlines() if line.startswith("| PPSD")]
    assert sure.endswith("| 4 of 4 |")
    assert sampled.endswith("| other noise |")
    assert "some-model, head some-head (exit layer 2), 8 tokens an answer, some processor" in text
    assert "`vllm-ppsd bench MODEL`, commit abc, vllm 1" in text


def test_the_picture_is_drawn(tmp_path):
    report.draw(_report(), tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 10_000
