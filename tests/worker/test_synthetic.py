"""The synthetic drafter is right as often as it says, and the same in every run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from vllm_ppsd.config.errors import PPSDConfigError
from vllm_ppsd.config.ppsd import SyntheticDrafter
from vllm_ppsd.worker.synthetic import RecordedDrafts, write_record

PROMPT, OUTPUT = [1, 2, 3], list(range(100, 1100))
REQUEST = SimpleNamespace(req_id="a", prompt_token_ids=PROMPT)


def drafts(path: Path, acceptance: float, seed: int = 0) -> list[int]:
    config = SyntheticDrafter(record=str(path), acceptance=acceptance, seed=seed)
    recorded = RecordedDrafts.load(config, vocab_size=2000)
    return [recorded.draft(REQUEST, len(PROMPT) + i) for i in range(len(OUTPUT))]


@pytest.fixture
def record(tmp_path: Path) -> Path:
    write_record(tmp_path / "record.jsonl", [(PROMPT, OUTPUT)])
    return tmp_path / "record.jsonl"


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.7, 1.0])
def test_it_is_right_as_often_as_it_says(record: Path, acceptance: float):
    hits = sum(d == o for d, o in zip(drafts(record, acceptance), OUTPUT, strict=True))
    assert hits / len(OUTPUT) == pytest.approx(acceptance, abs=0.05)


def test_it_repeats_itself_by_seed(record: Path):
    assert drafts(record, 0.5) == drafts(record, 0.5)
    assert drafts(record, 0.5) != drafts(record, 0.5, seed=1)


def test_beyond_the_record_it_drafts_a_wrong_token(record: Path):
    config = SyntheticDrafter(record=str(record), acceptance=1.0)
    recorded = RecordedDrafts.load(config, vocab_size=2000)
    assert recorded.draft(REQUEST, len(PROMPT) + len(OUTPUT)) == 0
    assert recorded.draft(SimpleNamespace(req_id="b", prompt_token_ids=[9]), 5) == 0


def test_a_broken_record_is_named(tmp_path: Path):
    path = tmp_path / "record.jsonl"
    path.write_text('{"prompt_token_ids": [1]}\n')
    with pytest.raises(PPSDConfigError, match="line 1"):
        RecordedDrafts.load(SyntheticDrafter(record=str(path), acceptance=1.0), 10)
